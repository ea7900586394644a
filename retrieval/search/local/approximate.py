"""Approximate nearest neighbours: a small file makes searches in many vectors fast.

Above some 200,000 rows a flat search reads too much memory for each query. The file holds every
vector in about one bit a number (RaBitQ, https://arxiv.org/abs/2405.12497). A search compares the
query with all of them, then ranks the best `candidates_factor` x K by exact dot products with the
memory-mapped vectors. So scores are those of the flat search, but a row can be missing. How many
are missing depends on the vectors: `build` measures it with queries. If too many are missing, it
takes more candidates, then 8 bits a number (SQ8), then no file (flat).

A random rotation is applied to the vectors first. Without it one bit keeps too little of vectors
whose numbers differ much in size: the recall of vectors with heavy tails was .03 without it and .99
with it (40,000 rows, D 512).

Letters: n queries, B rows, D = dim, K nearest rows of a query.
"""

import os
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeInt
from tqdm import tqdm

from retrieval.base.errors import one_line
from retrieval.base.extras import needs_extra
from retrieval.base.files import atomic_path, sha256_of
from retrieval.base.progress import bar
from retrieval.search.local.exact import check_vectors, exact, selector_of

with needs_extra("search"):
    import faiss

NEAREST = 100  # K of the gate: recall@100
LEAST_RECALL = 0.98  # of NEAREST, averaged over the queries
# Tried in this order by the gate: kind and candidates_factor.
TRIES = (("RaBitQ", 10), ("RaBitQ", 20), ("RaBitQ", 50), ("SQ8", 10))
APPROXIMATE_FROM = 200_000  # rows; fewer are searched flat
MOST_MISSING = 1000  # rows that each opening adds to the file: some tenths of a second
FILES = "approximate-*.faiss"
LISTS = 64  # RaBitQ keeps differences from the nearest of so many centres; all are searched
TRAINING_ROWS = 256  # for each list
QUERY_BITS = 4
ROWS_AT_ONCE = 2**14
ROUNDING = 1e-6
# A query reads each row of a small selection, which is exact: no slower than the search in bits.
FEW_ROWS = 5_000
# A shortlist of more than this share of the allowed rows is no shortcut.
LARGEST_SHARE = 0.25


class Facts(BaseModel):
    """Record of a file of nearest neighbours, kept in the index.

    Attributes:
        kind: RaBitQ, SQ8, or flat: no file, because neither found enough of the nearest rows.
        file: Name of the file; empty for flat.
        generation: Generation of the vectors that it is derived from.
        rows: Number of rows in it, from the first on.
        rows_when_trained: Number of rows when it was trained and measured.
        candidates_factor: Number of candidates for each requested row.
        recall: Share of the exact NEAREST rows that it found when it was measured.
        bytes, sha256: Size and digest, checked first because FAISS crashes on some damaged files.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    kind: Literal["RaBitQ", "SQ8", "flat"]
    file: str = ""
    generation: NonNegativeInt = 0
    rows: NonNegativeInt
    rows_when_trained: NonNegativeInt
    candidates_factor: NonNegativeInt
    recall: float
    bytes: NonNegativeInt = 0
    sha256: str = ""

    def __str__(self) -> str:
        share = f"{100 * self.recall:.1f} % of the nearest {NEAREST} excerpts"
        if self.kind == "flat":
            return f"searched flat, since bits would find only {share}"
        return f"searched by {self.kind}, which finds {share} of a sentence"


class Unusable(Exception):
    """A file of nearest neighbours is absent or damaged; the message is the reason."""


class Approximate:
    """Finds rows through a file of nearest neighbours; made by `load`.

    Attributes:
        facts: Record of the file.
        vectors: float32 (B, D), including rows added since the file was written.
    """

    def __init__(self, index: faiss.Index, facts: Facts, vectors: np.ndarray):
        self.facts, self.vectors = facts, vectors
        self._index, self._file = index, None
        if isinstance(vectors, np.memmap) and hasattr(os, "pread"):
            self._file = os.open(vectors.filename, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
        self._core, self._rotation = index, None
        if facts.kind == "RaBitQ":
            self._core = faiss.downcast_index(index.index)
            linear = faiss.downcast_VectorTransform(index.chain.at(0))
            self._rotation = faiss.vector_to_array(linear.A).reshape(2 * [index.d])  # (D, D)

    @classmethod
    def load(cls, path: Path, facts: Facts, vectors: np.ndarray) -> "Approximate":
        """Open a file, and add rows that are not in it.

        Args:
            path: The file.
            facts: Its record.
            vectors: float32 (B, D), its vectors and later ones.

        Raises:
            Unusable: The file is absent, or differs from its record.
        """
        try:
            if path.stat().st_size != facts.bytes or sha256_of(path) != facts.sha256:
                raise Unusable(f"{path.name} is not as it was written")
            index = faiss.read_index(str(path))
        except FileNotFoundError:
            raise Unusable(f"{path.name} is missing") from None
        except OSError as error:
            raise Unusable(f"{path.name} cannot be read: {error.strerror}") from None
        except RuntimeError as error:  # of FAISS
            raise Unusable(f"{path.name} cannot be read: {one_line(error)}") from None
        if index.ntotal != facts.rows or index.d != vectors.shape[1] or facts.rows > len(vectors):
            raise Unusable(f"{path.name} is of other vectors")
        _add(index, vectors)
        try:
            return cls(index, facts, vectors)
        except OSError as error:
            raise Unusable(f"the vectors cannot be read: {error.strerror}") from None

    def save(self, path: Path) -> Facts:
        """Write the file with all present rows; return its record. Raises OSError."""
        return _write(self._index, path, self.facts)

    def search(
        self, queries: np.ndarray, num: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the rows with the highest dot products; a few can be missing.

        Arguments, results and errors are those of exact.py. Scores are exact. Small
        selections are searched exactly.
        """
        check_vectors(self.vectors, queries)
        num_rows = len(self.vectors)
        num_allowed = num_rows if allowed is None else int(np.count_nonzero(allowed))
        num = min(num, num_allowed)
        if num_allowed <= FEW_ROWS:
            few = np.arange(num_rows) if allowed is None else np.flatnonzero(allowed)
            return self._among(few, queries, num)
        num_candidates = self.facts.candidates_factor * max(num, NEAREST)
        if num_candidates > LARGEST_SHARE * num_allowed:
            return exact(self.vectors, queries, num, allowed)
        rows = np.empty((len(queries), num), np.int64)
        scores = np.empty((len(queries), num), np.float32)
        selector = None if num_allowed == num_rows else selector_of(allowed)
        for number, own in enumerate(self._candidates(queries, num_candidates, selector)):
            own, query = np.sort(own[own >= 0]), queries[number : number + 1]
            if len(own) >= num:
                found = self._among(own, query, num)
            else:  # FAISS could not compare, such as a query of NaN
                found = exact(self.vectors, query, num, allowed)
            rows[number], scores[number] = found
        return rows, scores

    def _candidates(
        self, queries: np.ndarray, num: int, selector: faiss.IDSelector | None
    ) -> np.ndarray:
        """Return rows int64 (n, num), best first by the numbers of the file; -1 for none."""
        if self.facts.kind == "SQ8":
            return self._core.search(queries, num, params=faiss.SearchParameters(sel=selector))[1]
        parameters = faiss.IVFRaBitQSearchParameters()
        parameters.nprobe, parameters.qb = self._core.nlist, QUERY_BITS
        if selector is not None:
            parameters.sel = selector
        return self._core.search(self._rotated(queries), num, params=parameters)[1]

    def _among(
        self, rows: np.ndarray, queries: np.ndarray, num: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search only in some rows int64, ascending; results as those of `exact`."""
        places, scores = exact(self._read(rows), queries, num)  # (n, K)
        return np.where(places < 0, -1, rows[places]), scores

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """Return some rows float32 (K, D).

        They are read from the file if the vectors are mapped: through the map the system keeps 16
        pages around each row, all 1.2 GB of 300,000 rows after 50 searches, and takes longer.
        """
        if self._file is None:
            return self.vectors[rows]
        dim = self.vectors.shape[1]
        size = 4 * dim  # bytes
        parts = [os.pread(self._file, size, place) for place in (rows * size).tolist()]
        return np.frombuffer(b"".join(parts), np.float32).reshape(-1, dim)

    def _rotated(self, queries: np.ndarray) -> np.ndarray:
        """Return the rotated queries (n, D).

        On one thread: on a busy machine a matrix product waits milliseconds for its threads.
        """
        rotated, dim = np.empty_like(queries, order="C"), queries.shape[1]
        for query, result in zip(np.ascontiguousarray(queries), rotated, strict=True):
            faiss.fvec_inner_products_ny(
                *map(faiss.swig_ptr, (result, query, self._rotation)), dim, dim
            )
        return rotated


def updated(
    folder: Path,
    before: Facts | None,
    vectors: np.ndarray,
    live: np.ndarray | None,
    queries: Callable[[], np.ndarray],
    generation: int,
) -> Facts | None:
    """Update the file of an index to its vectors, under a new name if it changes.

    A file is made above APPROXIMATE_FROM rows, and made again when there are twice as many rows as
    when it was measured, or when it is damaged. Fewer new rows are added to it; up to MOST_MISSING
    are left to those who open it.

    Args:
        folder: Folder of the file.
        before: Record of the existing file.
        vectors, live, generation: As for `build`.
        queries: Returns the queries of `build`; called if it builds.

    Returns:
        The record: `before` if the file is still good; None if the index is small.

    Raises:
        OSError: The disk is full, ...
    """
    if len(vectors) < APPROXIMATE_FROM:
        return None
    used = [path.stem.partition("-")[2] for path in folder.glob(FILES)]
    number = 1 + max((int(number) for number in used if number.isdecimal()), default=-1)
    path = folder / FILES.replace("*", str(number))
    is_current = before is not None and before.generation == generation
    if is_current and len(vectors) < 2 * before.rows_when_trained:
        if before.kind == "flat":
            return before
        try:
            existing = Approximate.load(folder / before.file, before, vectors)
        except Unusable as error:
            print(f"note: {folder}: {error}; it is made again", file=sys.stderr)
        else:
            is_enough = len(vectors) - before.rows <= MOST_MISSING
            return before if is_enough else existing.save(path)
    return build(vectors, live, queries(), path, generation)


def build(
    vectors: np.ndarray,
    live: np.ndarray | None,
    queries: np.ndarray,
    path: Path,
    generation: int = 0,
) -> Facts:
    """Write a file for vectors, of the first kind that finds enough of the nearest rows.

    Memory holds the file and TRAINING_ROWS x LISTS vectors, not the others.

    Args:
        vectors: float32 (B, D), such as a memory map.
        live: bool (B,), True for rows that a search may find; None: all. The others are in the
            file too, so that its rows have the same numbers.
        queries: float32 (n, D), such as searches have: texts if texts are searched for. The gate
            asks for their nearest rows.
        path: The file; it appears when it is complete, on disk. None for kind flat.
        generation: Of the vectors.

    Returns:
        Its record.

    Raises:
        OSError: The disk is full, ...
    """
    check_vectors(vectors, queries)
    rows = np.arange(len(vectors)) if live is None else np.flatnonzero(live)
    sample = np.random.default_rng(0).permutation(rows)[: TRAINING_ROWS * LISTS]
    common = {"generation": generation, "rows": len(vectors), "rows_when_trained": len(vectors)}
    with bar(total=2 * len(vectors), desc="nearest neighbours", unit="row") as progress:
        best = _nearest_scores(vectors, live, queries, progress)  # (n, K)
        made, recall = None, 0.0
        for kind, factor in TRIES:
            if made is None or made.facts.kind != kind:
                index = _trained(kind, vectors[np.sort(sample)])
                _add(index, vectors, progress)
            facts = Facts(kind=kind, candidates_factor=factor, recall=0.0, **common)
            made = Approximate(index, facts, vectors)
            recall = _recall(made, live, queries, best)
            if recall >= LEAST_RECALL:
                return _write(index, path, facts.model_copy(update={"recall": recall}))
    return Facts(kind="flat", candidates_factor=0, recall=recall, **common)


def _trained(kind: str, sample: np.ndarray) -> faiss.Index:
    """Return an empty index of a kind, trained on vectors float32 (b, D)."""
    dim = sample.shape[1]
    if kind == "SQ8":
        quantizer = faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexScalarQuantizer(dim, quantizer, faiss.METRIC_INNER_PRODUCT)
    else:
        lists = max(1, min(LISTS, len(sample) // TRAINING_ROWS))
        centres = faiss.IndexFlatIP(dim)
        core = faiss.IndexIVFRaBitQ(centres, dim, lists, faiss.METRIC_INNER_PRODUCT)
        index = faiss.IndexPreTransform(faiss.RandomRotationMatrix(dim, dim), core)
    index.train(sample)
    return index


def _add(index: faiss.Index, vectors: np.ndarray, progress: tqdm | None = None) -> None:
    """Add the rows of vectors (B, D) that the index lacks."""
    for first in range(index.ntotal, len(vectors), ROWS_AT_ONCE):
        block = vectors[first : first + ROWS_AT_ONCE]
        index.add(block)
        if progress is not None:
            progress.update(len(block))


def _write(index: faiss.Index, path: Path, facts: Facts) -> Facts:
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as file:
            writer = faiss.PyCallbackIOWriter(file.write)
            faiss.write_index(index, writer)
        about = {"bytes": temporary.stat().st_size, "sha256": sha256_of(temporary)}
    return facts.model_copy(update={"file": path.name, "rows": index.ntotal, **about})


def _nearest_scores(
    vectors: np.ndarray, live: np.ndarray | None, queries: np.ndarray, progress: tqdm
) -> np.ndarray:
    """Return the highest dot products float32 (n, K) of queries (n, D), best first.

    Block by block, so that rows are read once for all queries.
    """
    best = np.empty((len(queries), 0), np.float32)
    for first in range(0, len(vectors), ROWS_AT_ONCE):
        block = slice(first, first + ROWS_AT_ONCE)
        _, scores = exact(vectors[block], queries, NEAREST, None if live is None else live[block])
        best = -np.sort(-np.concatenate([best, scores], axis=1), axis=1)[:, :NEAREST]
        progress.update(len(vectors[block]))
    return best


def _recall(
    made: Approximate, live: np.ndarray | None, queries: np.ndarray, best: np.ndarray
) -> float:
    """Return the share of the nearest rows that are among the candidates.

    Of rows with equal scores at the end of the nearest ones each counts; so do those that only
    differ by rounding.

    Args:
        made: The index to measure.
        live: bool (B,) or None, rows that may be found.
        queries: float32 (n, D).
        best: float32 (n, K), the highest dot products.
    """
    if not best.size:
        return 1.0
    num_candidates = made.facts.candidates_factor * NEAREST
    selector = None if live is None else selector_of(live)
    shares = []
    for query, wanted in zip(queries, best, strict=True):
        (own,) = made._candidates(query[None], min(num_candidates, len(made.vectors)), selector)
        own = np.sort(own[own >= 0])
        _, scores = made._among(own, query[None], len(wanted))
        least = wanted[-1] - ROUNDING * np.abs(wanted[-1])
        shares.append(np.count_nonzero(scores >= least) / len(wanted))
    return float(np.mean(shares))
