"""The benchmark of cache building runs in miniature, and both ways hold the same samples."""

import pytest

from tests.conftest import run_module


@pytest.mark.slow
def test_quick_run_prints_both_ways_and_their_growth():
    result = run_module("benchmarks.cache_build", "--quick")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("of a 16-bit step") == 2
    assert result.stdout.count("MB per clip: ") == 3 and result.stdout.count("x as fast, ") == 2
