"""The scripts of data_prep run as plain scripts: from any folder, through links, and with -P."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.corpora import read_info, write_sound

SCRIPTS = sorted(
    path
    for path in (ROOT / "data_prep").glob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)
WAYS = ("file", "link to the file", "link to the folder", "safe path", "variable")


def command_of(script: Path, way: str, folder: Path) -> list[str]:
    if way == "link to the file":
        (folder / "link.py").symlink_to(script)
        return [sys.executable, "link.py"]
    if way == "link to the folder":
        (folder / "link").symlink_to(script.parent)
        return [sys.executable, f"link/{script.name}"]
    if way == "safe path" and sys.version_info >= (3, 11):
        return [sys.executable, "-P", str(script)]
    return [sys.executable, str(script)]


def run(command: list[str], way: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {"PYTHONSAFEPATH": "1"} if way == "variable" else {}
    # a module of the user's own must not take the place of the project's
    (folder / "command.py").write_text("raise SystemExit('not this one')")
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_script_runs_through_a_link(script: Path, tmp_path: Path):
    done = run([*command_of(script, "link to the file", tmp_path), "--help"], "", tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage: ")


@pytest.mark.parametrize("way", WAYS)
def test_workers_start_however_the_script_was_started(way: str, tmp_path: Path):
    """Two shards, two worker processes, and one process that decodes for each."""
    for number in range(10):
        path = write_sound(tmp_path / "sounds" / f"{number}.wav")
        path.with_suffix(".txt").write_text("A short noise.")
    command = command_of(ROOT / "data_prep" / "build_folder.py", way, tmp_path)
    done = run([*command, "--audio", "sounds", "--num-proc", "2"], way, tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_info(tmp_path / "sounds" / "cache")["splits"]["development"]["num_clips"] == 10


def test_no_module_of_data_prep_is_a_top_level_name():
    code = f"""
import runpy, sys
sys.argv = ["build_clotho.py", "--help"]
sys.path.insert(0, {str(ROOT / "data_prep")!r})
try:
    runpy.run_path({str(ROOT / "data_prep" / "build_clotho.py")!r}, run_name="__main__")
except SystemExit:
    pass
from importlib.util import find_spec
print([name for name in ("command", "cache", "captions", "corpora") if find_spec(name)])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.splitlines()[-1] == "[]"
