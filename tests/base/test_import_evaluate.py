"""`import evaluate` is the Hugging Face package, however a process of this project starts.

The layout is rebuilt in a folder, with a stub for the package: the real one takes seconds to load.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import retrieval
from tests.conftest import PATIENCE

ROOT = Path(retrieval.__file__).parents[1]
WITH_FINDER = "import retrieval\n"
ASK = "import evaluate; print('found', evaluate.WHO)\n"


@pytest.fixture
def layout(tmp_path):
    """Folder with the scripts of the root, and `installed`, where the package is."""
    (tmp_path / "retrieval").mkdir()
    shutil.copy(retrieval.__file__, tmp_path / "retrieval" / "__init__.py")
    shutil.copytree(ROOT / "retrieval" / "base", tmp_path / "retrieval" / "base")
    (tmp_path / "installed" / "evaluate").mkdir(parents=True)
    (tmp_path / "installed" / "evaluate" / "__init__.py").write_text("WHO = 'package'\n")
    (tmp_path / "train.py").write_text(WITH_FINDER + ASK)
    (tmp_path / "evaluate.py").write_text(
        f"WHO = 'script'\nif __name__ == '__main__':\n    {WITH_FINDER}    {ASK}"
    )
    return tmp_path


def run(folder, *command, installed=True):
    environment = {**os.environ, "PYTHONPATH": str(folder / "installed") if installed else ""}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_python_train(layout):
    assert "found package" in run(layout, "train.py").stdout
    (layout / "train.py").write_text(ASK)
    assert "found script" in run(layout, "train.py").stdout  # negative control


def test_python_evaluate(layout):
    assert "found package" in run(layout, "evaluate.py").stdout


def test_accelerate_launch(layout):
    settings = (
        "--cpu",
        "--num_processes=1",
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
    )
    launched = run(layout, "-m", "accelerate.commands.launch", *settings, "train.py")
    assert "found package" in launched.stdout, launched.stderr


def test_python_m_pytest(layout):
    (layout / "tests").mkdir()
    (layout / "tests" / "conftest.py").write_text(WITH_FINDER)
    (layout / "tests" / "test_it.py").write_text(
        "def test_it():\n    import evaluate\n    assert evaluate.WHO == 'package'\n"
    )
    passed = run(layout, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert passed.returncode == 0, passed.stdout
    (layout / "tests" / "conftest.py").write_text("")
    assert (
        "assert 'script' == 'package'"
        in run(layout, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests").stdout
    )  # negative control


@pytest.mark.parametrize("folder", ["root", "elsewhere"])
def test_installed_beside_evaluate(layout, tmp_path, folder):
    """In site-packages, `retrieval` and the Hugging Face package lie side by side."""
    shutil.move(layout / "retrieval", layout / "installed" / "retrieval")
    (layout / "retrieval").mkdir()  # the repository, whose modules this Python does not load
    (layout / "retrieval" / "__init__.py").write_text("raise AssertionError")
    (layout / "elsewhere").mkdir()
    code = f"import sys; sys.path.append({str(layout)!r}); {WITH_FINDER.strip()}; {ASK}"
    place = layout / "elsewhere" / "script.py"
    if folder == "root":  # first on sys.path, as for a tool that the repository's folder starts
        code = f"import sys; {WITH_FINDER.strip()}; sys.path.insert(0, {str(layout)!r}); {ASK}"
    place.write_text(code)
    assert "found package" in run(layout, str(place)).stdout


def test_package_not_installed(layout):
    without = (
        "import sys; sys.path = [entry for entry in sys.path if 'site-packages' not in entry]\n"
    )
    (layout / "train.py").write_text(without + WITH_FINDER + ASK)
    failed = run(layout, "train.py", installed=False)
    assert (
        "ModuleNotFoundError: the Hugging Face package evaluate is not installed" in failed.stderr
    )


def test_this_process():
    """pytest itself runs with the root on sys.path and the real package installed."""
    import evaluate

    assert Path(evaluate.__file__).parent != ROOT and hasattr(evaluate, "Metric")


def test_importing_retrieval_loads_nothing():
    code = (
        "import sys, retrieval; print([name for name in sys.modules if name.split('.')[0] in"
        " ('evaluate', 'torch', 'numpy')])"
    )
    assert run(ROOT, "-c", code).stdout.strip() == "[]"
