"""Exact search in vectors, in memory or memory-mapped.

faiss.IndexFlatIP copies its vectors. This module calls its search function on the vectors in place,
such as a memory map. The results are the same to the last bit.

Letters: n queries, B rows, D = dim, K nearest rows of a query.
"""

import numpy as np

from retrieval.base.extras import needs_extra

with needs_extra("search"):
    import faiss


def exact(
    vectors: np.ndarray, queries: np.ndarray, num: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows with the highest dot products.

    Args:
        vectors: float32 (B, D), row after row; they are read in place.
        queries: float32 (n, D).
        num: Rows to find.
        allowed: bool (B,), True for rows that may be found; None: all.

    Returns:
        Rows int64 (n, K) and dot products float32 (n, K), best first, in the order of
        faiss.IndexFlatIP. K is `num`, or the number of allowed rows if these are fewer. Rows whose
        dot products are NaN come last, as row -1 and NaN.

    Raises:
        ValueError: The vectors or queries have another type or shape.
    """
    check_vectors(vectors, queries)
    num_allowed = len(vectors) if allowed is None else int(np.count_nonzero(allowed))
    num = min(num, num_allowed)
    rows = np.empty((len(queries), num), np.int64)
    scores = np.empty((len(queries), num), np.float32)
    if not rows.size:
        return rows, scores
    selector = selector_of(allowed) if num_allowed < len(vectors) else None
    queries = np.ascontiguousarray(queries)
    faiss.knn_inner_product(
        faiss.swig_ptr(queries),
        faiss.swig_ptr(vectors),
        vectors.shape[1],
        len(queries),
        len(vectors),
        num,
        faiss.swig_ptr(scores),
        faiss.swig_ptr(rows),
        selector,
    )
    scores[rows < 0] = np.nan  # FAISS finds no row where it compares NaN
    return rows, scores


def selector_of(allowed: np.ndarray) -> faiss.IDSelector:
    """Convert bool (B,), True for rows that may be found, to FAISS's selector."""
    return faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))


def check_vectors(vectors: np.ndarray, queries: np.ndarray) -> None:
    """Raise ValueError for arrays that FAISS would misread, since it sees only their addresses."""
    for name, array in (("vectors", vectors), ("queries", queries)):
        if array.dtype != np.float32 or array.ndim != 2:
            raise ValueError(f"{name} must be float32 of 2 axes, found {array.dtype} {array.shape}")
    if not vectors.flags.c_contiguous:
        raise ValueError("vectors must lie row after row in memory")
    if vectors.shape[1] != queries.shape[1]:
        raise ValueError(f"queries of {queries.shape[1]} numbers, vectors of {vectors.shape[1]}")
