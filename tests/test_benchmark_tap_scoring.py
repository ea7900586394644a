"""The TAP benchmark runs and its ways agree; the ratio itself is for a quiet machine."""

import subprocess
import sys
from pathlib import Path


def test_quick_run_prints_ratio_and_difference():
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "benchmarks.tap_scoring", "--quick"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "largest difference" in result.stdout and "ratio" in result.stdout
