"""benchmarks.search runs, and its mistakes are one line."""

import sys

import pytest

from benchmarks import search
from retrieval.errors import UserError


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["search", *arguments])
    return search.main()


@pytest.mark.slow
def test_a_small_one_runs(monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, "--quick", "--clips", "150", "--queries", "2", "--cold", "--work", str(tmp_path)) == 0
    output = capsys.readouterr().out
    assert "150 clips" in output and output.count("a query median") == 2 and output.count("from the disk") == 2 and "TAP on every clip" in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clips", "0"], "--clips 0"),
        (["--queries", "-1"], "--queries -1"),
        (["--work", "absent"], "is no folder"),
        (["--clips", "999999999"], "GB free"),
    ],
)
def test_mistakes(monkeypatch, arguments, message):
    with pytest.raises(UserError, match=message):
        run(monkeypatch, *arguments)


def test_accuracy_needs_the_sample(monkeypatch, tmp_path):
    monkeypatch.setattr(search, "SAMPLE", tmp_path)
    with pytest.raises(UserError, match="make demo"):
        run(monkeypatch, "--accuracy")
