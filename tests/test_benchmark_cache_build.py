"""The benchmark of cache building runs in miniature, and both ways hold the same samples; the figures are for a quiet machine."""

import subprocess
import sys
from pathlib import Path


def test_quick_run_prints_both_ways_and_their_growth():
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "benchmarks.cache_build", "--quick"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("of a 16-bit step") == 2
    assert result.stdout.count("MB a clip: ") == 3 and result.stdout.count("x as fast, ") == 2
