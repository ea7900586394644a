"""Submission files of the DCASE challenge: read back, they rank as the scores did."""

import csv

import numpy as np
import pytest

from retrieval.base.errors import UserError
from retrieval.evaluation.metrics.text_audio_retrieval.ranking import all_ranks
from retrieval.evaluation.submission import check_file_names, read_queries, write_submission

NAMES = [f'clip, "{clip}".wav' for clip in range(30)]
QUERIES = ["A dog, barking", 'Somebody says "hello"\nand leaves', "rain"]
SCORES = np.random.default_rng(0).normal(size=(3, 30)).astype(np.float32)


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_the_ten_best(tmp_path):
    write_submission("dcase2024", tmp_path / "new" / "s.csv", QUERIES, NAMES, SCORES)
    header, *rows = read(tmp_path / "new" / "s.csv")
    assert header == ["caption", *(f"file_name_{place}" for place in range(1, 11))]
    for row, query, scores in zip(rows, QUERIES, SCORES, strict=True):
        assert row[0] == query
        for rank, name in enumerate(row[1:], start=1):
            assert all_ranks(scores[None], [[NAMES.index(name)]])[0].tolist() == [rank]
    write_submission("dcase2024", tmp_path / "short.csv", QUERIES, NAMES[:4], SCORES[:, :4])
    assert all(len(row) == 11 and row[5:] == [""] * 6 for row in read(tmp_path / "short.csv")[1:])


def test_the_whole_matrix(tmp_path):
    write_submission("dcase2025", tmp_path / "s.csv", QUERIES, NAMES, SCORES)
    header, *rows = read(tmp_path / "s.csv")
    assert header == ["index", *NAMES] and [row[0] for row in rows] == QUERIES
    read_back = np.array([row[1:] for row in rows], dtype=np.float32)
    np.testing.assert_array_equal(read_back, SCORES)  # nine digits are enough for every float32
    np.testing.assert_array_equal(np.argsort(-read_back), np.argsort(-SCORES))


def test_what_cannot_be_submitted(tmp_path):
    with pytest.raises(UserError, match="two clips are called 'clip, \"0\".wav'"):
        write_submission("dcase2025", tmp_path / "s.csv", QUERIES, [NAMES[0], *NAMES[:-1]], SCORES)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="two clips are called 'b'"):
        check_file_names(["a", "b", "c", "b"])
    check_file_names(NAMES)


def test_queries(tmp_path):
    path = tmp_path / "queries.csv"
    path.write_text('caption,other\n A dog barks. ,1\n"Rain, then wind",2\n', encoding="utf-8")
    assert read_queries(path) == ["A dog barks.", "Rain, then wind"]
    for content, message in (
        ("text\na\n", "needs a column caption or query, found: text"),
        ("", "found: none"),
        ("caption\n", "has no rows"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_queries(path)
    path.write_text("caption,x\na,1\n,2\n")
    with pytest.raises(UserError, match="no text in row 2"):
        read_queries(path)
    path.write_bytes(b"caption\n\xff\n")
    with pytest.raises(UserError, match="cannot be read"):
        read_queries(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_queries(tmp_path / "absent.csv")
