"""The benchmark of a large collection runs in miniature: both ways agree, and more memory than
allowed is an error.
"""

import re
import subprocess

import pytest

from benchmarks import large_collection
from tests.conftest import mistake, run_here


def test_quick_run_prints_metrics_seconds_and_memory(capfd, monkeypatch):
    result = run_here(large_collection.main, "--quick")
    result.stdout += capfd.readouterr().out  # of the process that scores
    assert result.returncode == 0, result.stderr[-2000:]
    assert "2,000 clips x 50 queries" in result.stdout and "100.00% the same clips" in result.stdout
    assert 0.3 < float(re.search(r"mAP@10 (\d\.\d+)", result.stdout)[1]) < 1
    assert 0.1 < float(re.search(r"peak memory (\d+\.\d+) GB", result.stdout)[1]) < 4
    monkeypatch.setattr(large_collection, "MOST_GB", 0.01)
    # the peak is that of the process before
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0))
    result = run_here(large_collection.main, "--quick")
    assert result.returncode == 1 and "GB is more than" in result.stderr


@pytest.mark.parametrize("sizes", ["0 0", "5 0", "5 6"])
def test_impossible_sizes_are_one_line(sizes):
    assert (
        mistake(large_collection.main, "--work", *sizes.split())
        == f"error: --work {sizes}: at least one query, and a clip for each\n"
    )


def test_clips_are_the_same_in_every_pass_and_all_made():
    passes = [list(large_collection.blocks(5000)) for _ in range(2)]
    assert [(first, len(vectors)) for first, vectors in passes[0]] == [(0, 4096), (4096, 904)]
    assert all(bool((one == other).all()) for (_, one), (_, other) in zip(*passes))
