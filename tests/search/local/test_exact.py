"""Exact search of vectors where they lie gives what faiss.IndexFlatIP gives, to the last bit."""

import faiss
import numpy as np
import pytest

from retrieval.search.local.exact import exact

SHAPES = [  # rows, dim, queries, rows to find
    (1, 3, 1, 1),
    (700, 64, 1, 10),
    (700, 63, 7, 150),
    (3000, 512, 1, 100),
    (1500, 513, 25, 100),  # from 20 queries on FAISS multiplies matrices
    (300, 64, 3, 300),
]


def flat(vectors, queries, num, allowed):
    """The way with a copy: faiss.IndexFlatIP."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    selector = None
    if allowed is not None:
        bitmap = np.packbits(allowed, bitorder="little")
        selector = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bitmap))
    scores, rows = index.search(queries, num, params=selector)
    return rows, scores


def arrays(num_rows: int, dim: int, num_queries: int):
    """Vectors, half of them twice, which gives ties; and queries."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((num_rows, dim), dtype=np.float32)
    half = num_rows // 2
    vectors[num_rows - half :] = vectors[:half]
    return vectors, rng.standard_normal((num_queries, dim), dtype=np.float32)


@pytest.mark.parametrize("share", [None, 0.5, 0.05])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_flat_index_to_the_last_bit(tmp_path, shape, share):
    *shape, num = shape
    vectors, queries = arrays(*shape)
    vectors.tofile(tmp_path / "vectors")
    mapped = np.memmap(tmp_path / "vectors", np.float32, "c", shape=vectors.shape)
    allowed = None
    if share is not None:
        allowed = np.random.default_rng(1).random(len(vectors)) < share
        allowed[0] = True
        num = min(num, int(allowed.sum()))
    expected = flat(vectors, queries, num, allowed)
    for got, wanted in zip(exact(mapped, queries, num, allowed), expected, strict=True):
        assert got.dtype == wanted.dtype and np.array_equal(got, wanted)


def test_fewer_rows_than_wanted():
    vectors, queries = arrays(20, 8, 2)
    allowed = np.zeros(20, dtype=bool)
    assert exact(vectors, queries, 5, allowed)[0].shape == (2, 0)
    allowed[[3, 7]] = True
    rows, scores = exact(vectors, queries, 5, allowed)
    assert set(rows[0]) == {3, 7} and scores.shape == (2, 2)
    assert exact(vectors, queries, 50)[0].shape == (2, 20)
    assert exact(vectors[:0], queries, 5)[0].shape == (2, 0)


def test_a_dot_product_that_is_nan_gives_no_row():
    vectors, queries = arrays(20, 8, 1)
    vectors[4, 2] = np.nan
    rows, scores = exact(vectors, queries, 20)
    assert 4 not in rows and rows[0, -1] == -1
    assert np.isnan(scores[0, -1]) and not np.isnan(scores[0, :-1]).any()


@pytest.mark.parametrize(
    ("vectors", "queries"),
    [
        (np.zeros((4, 8)), np.zeros((1, 8), np.float32)),
        (np.zeros((4, 16), np.float32)[:, ::2], np.zeros((1, 8), np.float32)),
        (np.zeros((4, 8), np.float32), np.zeros((1, 4), np.float32)),
        (np.zeros((4, 8), np.float32), np.zeros(8, np.float32)),
    ],
    ids=["type", "order", "dim", "axes"],
)
def test_arrays_that_would_be_misread(vectors, queries):
    with pytest.raises(ValueError):
        exact(vectors, queries, 1)
