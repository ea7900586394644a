"""benchmarks.search runs, and its mistakes are one line."""

import pytest

from benchmarks import search, search_growth
from retrieval.search.local import approximate
from tests.conftest import mistake, run_here


@pytest.mark.slow
def test_a_small_one_runs(tmp_path):
    result = run_here(
        search.main,
        "--quick",
        "--clips",
        "150",
        "--queries",
        "2",
        "--cold",
        "--work",
        str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    output = result.stdout
    assert (
        "150 clips" in output
        and output.count("a query median") == 2
        and output.count("from the disk") == 2
        and "TAP on every clip" in output
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clips", "0"], "--clips 0"),
        (["--queries", "-1"], "--queries -1"),
        (["--work", "absent"], "is not a folder"),
        (["--growth", "--dim", "0"], "--dim 0"),
        (["--growth", "--clips", "999999999"], "GB free"),
        (["--clips", "999999999"], "GB free"),
    ],
)
def test_mistakes(arguments, message):
    assert message in mistake(search.main, *arguments)


def test_growth_compares_two_ways(monkeypatch, tmp_path):
    monkeypatch.setattr(search_growth, "in_new_process", search_growth.measure)
    monkeypatch.setattr(approximate, "APPROXIMATE_FROM", 1000)
    arguments = ("--growth", "--quick", "--dim", "32", "--work", str(tmp_path))
    result = run_here(search.main, *arguments)
    assert result.returncode == 0, result.stderr
    output = result.stdout
    assert "3,000 excerpts" in output and "before:" in output and "now   :" in output
    assert "100.00 %" in output and "; searched by RaBitQ" in output
    assert list(tmp_path.iterdir()) == []


def test_accuracy_needs_the_sample(monkeypatch, tmp_path):
    monkeypatch.setattr(search, "SAMPLE", tmp_path)
    assert "make demo" in mistake(search.main, "--accuracy")
