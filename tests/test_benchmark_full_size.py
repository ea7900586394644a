"""The full-size benchmark runs, in miniature, with the real commands; its mistakes are one line. The figures are for a quiet machine."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.full_size", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_quick_run_prints_seconds_and_memory_and_cleans_up(tmp_path):
    result = run("--quick", "--steps", "2", "--work", str(tmp_path))
    assert result.returncode == 0, result.stderr[-2000:]
    assert re.findall(r"^step (\d+): \d+\.\d s, loss \d\.\d{4}$", result.stdout, re.MULTILINE) == ["1", "2"]
    peaks = re.search(r"peak memory .*: (\S+) GiB after the last step, (\S+) GiB in the whole command", result.stdout)
    assert 0.1 < float(peaks[1]) <= float(peaks[2]) + 0.01 < 20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--batch-size", "1"], "--batch-size 1: must be 2 or more"), (["--work", "absent"], "absent is no folder; make it")],
)
def test_mistakes_are_one_line(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2 and result.stderr.startswith("error: ") and message in result.stderr and result.stderr.count("\n") == 1
