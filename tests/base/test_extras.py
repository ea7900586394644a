"""A command that needs a package of an extra says how to install it; a training goes on."""

import subprocess
import sys
from pathlib import Path

import pytest

from retrieval.base.errors import UserError
from retrieval.base.extras import needs_extra
from tests.conftest import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
# Runs a module or a script as a command, in a Python without the packages of the first argument.
BLOCKED = """
import runpy, sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))
sys.argv = sys.argv[2:]
if sys.argv[0].endswith(".py"):
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def run_without(packages: str, *command: object) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-c", BLOCKED, packages, *map(str, command)]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)


@pytest.fixture(scope="module")
def run_folder(tiny, tmp_path_factory) -> Path:
    """A run of one step, without TensorBoard."""
    folder = tmp_path_factory.mktemp("run") / "run"
    settings = (f"train.output={folder}", "train.max_steps=1")
    trained = run_without(
        "tensorboard", "train.py", "--config", tiny / "tiny.yaml", "--quiet", *settings
    )
    assert trained.returncode == 0, trained.stderr
    (note,) = [line for line in trained.stderr.splitlines() if "tensorboard" in line]
    assert 'pip install "text-to-audio-retrieval[tracking]"' in note
    return folder


def test_a_run_without_tensorboard_trains(run_folder):
    assert (run_folder / "metrics.json").is_file() and (run_folder / "best").is_dir()
    assert not list(run_folder.glob("events.*"))


@pytest.mark.parametrize(
    ("package", "extra", "command"),
    [
        ("faiss", "search", ("retrieval.search", "query", "a dog", "--index", "{run}")),
        ("gradio", "search", ("retrieval.app", "--index", "{run}", "--port", "0")),
        ("onnxruntime", "export", ("retrieval.export", *"--onnx --output {out}".split())),
        ("onnxscript", "export", ("retrieval.export", *"--onnx --output {out}".split())),
        ("jinja2", "tracking", ("evaluate.py", "--report", "{out}")),
    ],
)
def test_one_line_says_what_to_install(run_folder, tmp_path, package, extra, command):
    name, *options = command
    if name in ("retrieval.export", "evaluate.py"):
        options += ["--checkpoint", "{run}/best"]
    places = {"run": run_folder, "out": tmp_path / "out"}
    failed = run_without(package, name, *(option.format(**places) for option in options))
    assert failed.returncode == 2, failed.stderr
    (line,) = failed.stderr.splitlines()
    assert package in line and f'pip install "text-to-audio-retrieval[{extra}]"' in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("module", ["search", "app", "export"])
def test_help_needs_no_extra(module):
    packages = "faiss,gradio,uvicorn,matplotlib,onnx,onnxruntime,tensorboard"
    assert run_without(packages, f"retrieval.{module}", "--help").returncode == 0


def test_parquet_needs_no_extra(run_folder, tiny, tmp_path):
    options = ("--checkpoint", run_folder / "best", "--cache", tiny / "cache")
    file = tmp_path / "vectors.parquet"
    exported = run_without("onnxruntime", "retrieval.export", *options, "--parquet", file)
    assert exported.returncode == 0 and file.is_file(), exported.stderr


def test_a_missing_module_of_the_project_is_no_missing_extra():
    with pytest.raises(ModuleNotFoundError) as found, needs_extra("search"):
        import retrieval.a_module_that_is_gone  # noqa: F401
    assert not isinstance(found.value, UserError)
