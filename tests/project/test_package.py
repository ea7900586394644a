"""pyproject.toml, requirements.txt, the imports and the files of the package agree."""

import fnmatch
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import retrieval
from tests.project.test_structure import PYTHON, ROOT, imports_of, name_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest there

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
REQUIREMENTS = [
    line
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def name_of_requirement(requirement: str) -> str:
    """Normalised name, as of PEP 503: `faiss-cpu` of `faiss-cpu>=1.12`."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


DISTRIBUTIONS = packages_distributions()  # by the names of their modules
CORE = set(map(name_of_requirement, REQUIREMENTS))
TRIED = {"pymilvus"}  # of benchmarks/search_engines.py, which says how to install it
ALL = CORE | {name_of_requirement(each) for extra in EXTRAS.values() for each in extra}


def undeclared(path: Path, allowed: set[str]) -> set[str]:
    """Packages that a file imports and `allowed` does not name."""
    modules = {name.partition(".")[0] for name in imports_of(path)} - {""}
    own = {"retrieval", "data_prep", "benchmarks"}
    if path.is_relative_to(ROOT / "benchmarks"):
        own |= {"tests"}  # golden numbers
    return {
        module
        for module in modules - own - sys.stdlib_module_names
        if not allowed & set(map(name_of_requirement, DISTRIBUTIONS.get(module, [module])))
    }


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="finds no modules of packages without a top_level.txt"
)
@pytest.mark.parametrize("part", ["retrieval", "data_prep", "benchmarks"])
def test_every_import_is_declared(part):
    allowed = CORE if part == "data_prep" else ALL | TRIED
    files = [path for path in PYTHON if path.is_relative_to(ROOT / part)]
    assert not {name_of(path): missing for path in files if (missing := undeclared(path, allowed))}


def test_an_undeclared_import_is_found():
    search = [path for path in PYTHON if path.is_relative_to(ROOT / "retrieval" / "search")]
    assert {"faiss", "gradio"} <= set().union(*(undeclared(path, CORE) for path in search))


def test_a_requirement_that_is_named_twice_is_the_same():
    by_name = {}
    for requirement in [*REQUIREMENTS, *(each for extra in EXTRAS.values() for each in extra)]:
        by_name.setdefault(name_of_requirement(requirement), set()).add(requirement)
    assert not {name: given for name, given in by_name.items() if len(given) > 1}


def test_all_holds_every_extra():
    (everything,) = EXTRAS["all"]
    inner = re.fullmatch(r"text-to-audio-retrieval\[(.*)\]", everything)[1].split(",")
    assert set(inner) == set(EXTRAS) - {"all"}


def test_the_messages_name_extras_that_exist():
    named = {
        extra
        for path in PYTHON
        if path.is_relative_to(ROOT / "retrieval") or path.parent == ROOT
        for extra in re.findall(r"with needs_extra\(\"(\w+)\"\)", path.read_text(encoding="utf-8"))
    }
    assert named and named <= set(EXTRAS)


def test_the_wheel_holds_every_file_of_the_package():
    """A folder without __init__.py, or a file of an unnamed kind, would be left out."""
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["retrieval"]
    package = ROOT / "retrieval"
    for path in package.rglob("*"):
        if path.is_dir() and path.name != "__pycache__" and any(path.glob("*.*")):
            assert (path / "__init__.py").is_file(), path
        elif path.is_file() and path.suffix not in (".py", ".pyc"):
            name = path.relative_to(package).as_posix()
            assert any(fnmatch.fnmatch(name, each.removeprefix("**/")) for each in patterns), path


def test_one_version():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[(\d.*?)\]", changes, re.MULTILINE)[1] == retrieval.__version__
    assert "version" in PROJECT["project"]["dynamic"]
