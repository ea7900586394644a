"""benchmarks.search runs, and its mistakes are one line."""

import pytest

from benchmarks import search
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
        (["--clips", "999999999"], "GB free"),
    ],
)
def test_mistakes(arguments, message):
    assert message in mistake(search.main, *arguments)


def test_accuracy_needs_the_sample(monkeypatch, tmp_path):
    monkeypatch.setattr(search, "SAMPLE", tmp_path)
    assert "make demo" in mistake(search.main, "--accuracy")
