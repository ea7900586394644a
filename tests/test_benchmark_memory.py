"""The memory benchmark runs in miniature: a line for every batch size and way; its mistakes are one line."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.memory", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_quick_run_measures_every_way(tmp_path):
    result = run("--quick", "--batch-sizes", "4", "--work", str(tmp_path))
    assert result.returncode == 0, result.stderr[-2000:]
    lines = re.findall(r"^batch   4, (.+?) +(\d+\.\d\d) GiB, \d+\.\d s$", result.stdout, re.MULTILINE)
    assert [way for way, _ in lines] == ["plain", "checkpointing", "parts", "parts, checkpointing"]
    assert all(0.1 < float(peak) < 8 for _, peak in lines)
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_line():
    result = run("--batch-sizes", "1")
    assert (result.returncode, result.stderr) == (2, "error: --batch-sizes 1: must be 2 or more\n")
