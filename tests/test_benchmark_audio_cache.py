"""The audio-cache benchmark: its mistakes are one line. The figures are for a quiet machine."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--num-proc", "0"], "--num-proc 0: must be 1 or more"), (["--num-proc", "two"], "argument --num-proc: invalid")]
)
def test_mistakes_are_one_line(arguments: list[str], message: str):
    command = [sys.executable, "-m", "benchmarks.audio_cache", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {message}") and result.stderr.count("\n") == 1
