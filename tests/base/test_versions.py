"""The commit that runs record: the package's own, never that of a repository around it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import retrieval
from tests.conftest import PATIENCE

PACKAGE = Path(retrieval.__file__).parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git(folder, *arguments):
    author = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", "-C", str(folder), *author, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path) -> Path:
    """A repository with one commit."""
    git(tmp_path, "init")
    (tmp_path / "file").write_text("text")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


def put_package(folder: Path) -> Path:
    """Copy the package below `folder`, and return the folder that holds it."""
    copy = folder / "retrieval"
    copy.mkdir(parents=True)
    shutil.copy(PACKAGE / "__init__.py", copy)
    shutil.copytree(PACKAGE / "base", copy / "base", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def recorded(folder: Path, **variables: str) -> str:
    """The commit that the package in `folder` records, as text."""
    code = "from retrieval.base.versions import git_commit; print(git_commit())"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def test_a_source_tree_records_its_commit(repository):
    git(put_package(repository), "add", "retrieval")
    git(repository, "commit", "-m", "second")
    commit = git(repository, "rev-parse", "HEAD")
    assert recorded(repository) == commit
    (repository / "docs").mkdir()
    (repository / "docs" / "results.md").write_text("no run yet")
    git(repository, "add", "docs")
    git(repository, "commit", "-m", "third")
    commit = git(repository, "rev-parse", "HEAD")
    (repository / "docs" / "results.md").write_text("of benchmarks.reproduce")
    assert recorded(repository) == commit
    (repository / "file").write_text("changed")
    assert recorded(repository) == f"{commit}-dirty"


def test_a_repository_around_the_package_is_not_recorded(repository):
    inside = put_package(repository / ".venv" / "lib" / "site-packages")
    assert git(inside, "rev-parse", "HEAD")  # git would answer
    assert recorded(inside) == "None"
    source = put_package(repository / "vendored")
    assert recorded(source, GIT_DIR=str(repository / ".git"), GIT_WORK_TREE=str(source)) == "None"


@pytest.mark.parametrize(
    ("url", "commit"),
    [
        ({"vcs_info": {"vcs": "git", "commit_id": COMMIT}}, COMMIT),
        ({"archive_info": {}}, "None"),
        ({"dir_info": {"editable": True}}, "None"),
        (None, "None"),
    ],
)
def test_pip_says_which_commit_it_installed(repository, url, commit):
    inside = put_package(repository / ".venv" / "lib" / "site-packages")
    information = inside / "text_to_audio_retrieval-0.1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.4\nName: text-to-audio-retrieval\n")
    if url is not None:
        (information / "direct_url.json").write_text(json.dumps({"url": "https://a.b/c"} | url))
    assert recorded(inside) == commit
    assert recorded(put_package(repository / "other")) == "None"  # not the one that pip installed
