"""Vectors and frames of clips on this machine, in memory or mapped from files.

Letters: n queries, B clips, R rows, K clips of a query, T frames of a clip, D = dim.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from retrieval.models.dual_encoder import check_not_nan
from retrieval.search.local.exact import exact

UNIT_ROWS = 2**16  # normalised at once for cosines


class IndexedClips:
    """Encoded clips to search in; a ClipStore.

    Args:
        vectors: float32 (R, D), the first stage's vectors, by pooling.directions. May be a memory
            map; it is not copied.
        frames: (frames of all clips, D), any float type: after TAP's norm; for other poolings all
            frames in the shared space, which say when a text is heard. May be a memory map; None
            for other poolings without them.
        first_frames: int64 (B,), the place of a clip's first frame in `frames`.
        num_frames: int64 (B,), number of a clip's frames.
        rows: int64 (B,), the row of each clip's vector, which several clips may share; None: row b
            belongs to clip b.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        frames: Tensor | None = None,
        first_frames: np.ndarray | None = None,
        num_frames: np.ndarray | None = None,
        rows: np.ndarray | None = None,
    ):
        self._vectors, self._frames = vectors, frames
        self._first_frames, self._num_frames = first_frames, num_frames
        self._rows = np.arange(len(vectors)) if rows is None else rows
        # True for an index whose files were added in order and never changed
        self._is_in_order = np.array_equal(self._rows, np.arange(len(vectors)))
        self._used_rows, self._shares_rows = None, False
        if not self._is_in_order:
            counts = np.bincount(self._rows, minlength=len(vectors))  # (R,)
            self._used_rows = None if counts.all() else counts > 0
            self._shares_rows = bool((counts > 1).any())
            # clips by row, for clips that share rows: those of row r stand from _row_starts[r] on
            self._clips_by_row = np.argsort(self._rows, kind="stable")  # (B,)
            self._row_starts, self._row_counts = np.cumsum(counts) - counts, counts

    @property
    def has_frames(self) -> bool:
        return self._frames is not None

    def __len__(self) -> int:
        return len(self._rows)

    def count(self, selection: np.ndarray | None) -> int:
        return len(self) if selection is None else int(np.count_nonzero(selection))

    def nearest(
        self,
        vectors: np.ndarray,
        num: int,
        selection: np.ndarray | None = None,
        cosine: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find clips, see ClipStore.nearest; selection: bool (B,). Raises UserError for NaN."""
        num = min(num, self.count(selection))
        if not num:
            return np.zeros((len(vectors), 0), np.int64), np.zeros((len(vectors), 0), np.float32)
        allowed = self._used_rows
        if selection is not None:
            allowed = np.zeros(len(self._vectors), dtype=bool)
            allowed[self._rows[selection]] = True
        search = self._nearest_by_cosine if cosine else self._nearest_rows
        rows, scores = search(vectors, num, allowed)  # (n, num or all allowed rows)
        check_not_nan(torch.from_numpy(scores))
        if self._is_in_order:
            return rows, scores
        if not self._shares_rows:
            return self._clips_by_row[self._row_starts[rows]], scores
        return self._clips_of_rows(rows, scores, num, selection)

    def _nearest_rows(
        self, vectors: np.ndarray, num: int, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        return exact(self._vectors, vectors, num, allowed)

    def _nearest_by_cosine(
        self, vectors: np.ndarray, num: int, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the rows with the highest cosines to unit vectors (n, D), block by block."""
        all_rows, all_scores = [], []
        for first in range(0, len(self._vectors), UNIT_ROWS):
            block = unit(self._vectors[first : first + UNIT_ROWS])
            own = None if allowed is None else allowed[first : first + UNIT_ROWS]
            rows, scores = exact(block, vectors, num, own)
            all_rows.append(rows + first)
            all_scores.append(scores)
        rows, scores = np.concatenate(all_rows, axis=1), np.concatenate(all_scores, axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :num]
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def _clips_of_rows(
        self, rows: np.ndarray, scores: np.ndarray, num: int, selection: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Replace each row by the selected clips that share it; `num` clips of each query stay."""
        clips = np.empty((len(rows), num), np.int64)
        products = np.empty((len(rows), num), np.float32)
        for query, (own_rows, own_scores) in enumerate(zip(rows, scores, strict=True)):
            counts = self._row_counts[own_rows]
            first = np.repeat(self._row_starts[own_rows], counts)
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            found, values = self._clips_by_row[first + within], np.repeat(own_scores, counts)
            if selection is not None:
                found, values = found[selection[found]], values[selection[found]]
            clips[query], products[query] = found[:num], values[:num]
        return clips, products

    def prefetch(self, clips: Sequence[int]) -> None:
        """Do nothing: the system reads mapped frames at their first use."""

    def frames(self, clip: int) -> Tensor | None:
        """Return the frames (T, D) of a clip, without a copy; None without frames."""
        if self._frames is None:
            return None
        first = self._first_frames[clip]
        return self._frames[first : first + self._num_frames[clip]]

    def sizes(self, clip: int) -> Tensor | None:
        """Return None: output sizes are not stored here."""
        return None

    def num_frames(self, clips: np.ndarray) -> np.ndarray:
        return self._num_frames[clips]

    def vectors(self, clips: Sequence[int]) -> np.ndarray:
        return self._vectors[self._rows[clips]]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (..., D) of length 1; zeros stay zeros."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
