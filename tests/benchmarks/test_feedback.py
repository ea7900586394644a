"""The benchmark of feedback runs in miniature; its average precision is checked by hand."""

import re
from functools import partial

import pytest

from benchmarks import feedback
from benchmarks.feedback import average_precision, is_right
from retrieval.search.feedback import fit as learning
from retrieval.search.hits import IndexedFile
from retrieval.search.store import IndexedExcerpt
from tests.conftest import mistake, run_here

run = partial(run_here, feedback.main)


def test_quick_run_prints_a_table(monkeypatch):
    monkeypatch.setattr(learning, "SAMPLE_WEIGHT", learning.SAMPLE_WEIGHT)  # restored afterwards
    result = run("--quick", "--set", "SAMPLE_WEIGHT=20")
    assert result.returncode == 0, result.stderr[-2000:]
    assert learning.SAMPLE_WEIGHT == 20
    numbers = r"(\d+\.\d) \| (\d+\.\d) \| (\d+\.\d) \| (\d+\.\d) \|"
    rows = re.findall(rf"^\| (.+?) \| {numbers}", result.stdout, re.MULTILINE)
    assert [row[0] for row in rows[-3:]] and rows[0][0].startswith('"a ')
    assert sum("mean of" in row[0] for row in rows) == 3
    # before any mark both ways are the same
    assert rows[-2][1] == rows[-1][1] and "at random" in rows[-1][0]


def excerpt(file: str, start: float = 0.0, end: float = 9.0) -> IndexedExcerpt:
    return IndexedExcerpt(0, IndexedFile(file, 9.0), start, end)


def test_average_precision_by_hand():
    ranked = [excerpt(file) for file in "abacd"]
    assert average_precision(ranked, {"a", "c"}) == (1 + 2 / 3) / 2
    assert average_precision(ranked[1:3], {"a", "x"}) == pytest.approx(1 / 4)


def test_an_answer_is_right_where_the_sound_is_heard():
    spans = {"a": [(1.0, 2.0), (5.0, 6.0)]}
    times = {(0.0, 1.0): False, (1.5, 3.0): True, (2.0, 5.0): False, (4.0, 9.0): True}
    for (start, end), expected in times.items():
        assert is_right(excerpt("a", start, end), spans) == expected
    assert not is_right(excerpt("b"), spans)


def test_a_setting_that_is_none():
    assert "SAMPLE_WAIT" in mistake(feedback.main, "--quick", "--set", "SAMPLE_WAIT=2")
