"""The benchmark of a large collection runs in miniature: both ways agree, and more memory than allowed is an error."""

import re
import sys

import pytest

from benchmarks import large_collection
from tests.conftest import mistake, run_module


def test_quick_run_prints_metrics_seconds_and_memory():
    result = run_module("benchmarks.large_collection", "--quick")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "2,000 clips x 50 queries" in result.stdout and "100.00% the same clips" in result.stdout
    assert 0.3 < float(re.search(r"mAP@10 (\d\.\d+)", result.stdout)[1]) < 1
    assert 0.1 < float(re.search(r"peak memory (\d+\.\d+) GB", result.stdout)[1]) < 4


def test_too_much_memory_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(large_collection, "MOST_GB", 0.01)
    monkeypatch.setattr(sys, "argv", ["large_collection", "--quick"])
    assert large_collection.main() == 1
    assert "GB is more than" in capsys.readouterr().err


@pytest.mark.parametrize("sizes", ["0 0", "5 0", "5 6"])
def test_impossible_sizes_are_one_line(sizes):
    assert mistake(large_collection.main, "--work", *sizes.split()) == f"error: --work {sizes}: at least one query, and a clip for each\n"


def test_clips_are_the_same_in_every_pass_and_all_made():
    passes = [list(large_collection.blocks(5000)) for _ in range(2)]
    assert [(first, len(vectors)) for first, vectors in passes[0]] == [(0, 4096), (4096, 904)]
    assert all(bool((one == other).all()) for (_, one), (_, other) in zip(*passes))
