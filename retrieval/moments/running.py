"""Average the curves of excerpts that overlap. Letters: N texts, T frames, t of an excerpt."""

import numpy as np


class RunningAverage:
    """Curves of a recording whose excerpts come one after another."""

    def __init__(self, num_texts: int):
        self._sums = np.zeros((num_texts, 0), np.float32)
        self._counts = np.zeros(0, np.int32)

    def add(self, first: int, sums: np.ndarray, counts: np.ndarray) -> None:
        """Add the sums (N, t) and counts (t,) of the places from `first` on."""
        stop = first + len(counts)
        if stop > len(self._counts):
            more = stop + len(self._counts) // 2 - len(self._counts)
            self._sums = np.pad(self._sums, ((0, 0), (0, more)))
            self._counts = np.pad(self._counts, (0, more))
        self._sums[:, first:stop] += sums
        self._counts[first:stop] += counts

    def curves(self, num_frames: int) -> np.ndarray:
        """Return the averages of num_frames frames, float32 (N, num_frames)."""
        sums, counts = self._sums[:, :num_frames], self._counts[:num_frames]
        missing = num_frames - len(counts)
        return averaged(np.pad(sums, ((0, 0), (0, missing))), np.pad(counts, (0, missing)))


def summed(places: np.ndarray, values: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Sum the values of equal places.

    Args:
        places: int64 (t,), t of 1 or more.
        values: float32 (N, t).

    Returns:
        The lowest place; sums float64 (N, n) from it to the highest place; number of values of
        each sum, int64 (n,).
    """
    first, offsets = int(places.min()), places - places.min()
    return first, np.stack([np.bincount(offsets, row) for row in values]), np.bincount(offsets)


def averaged(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Divide sums (N, t) by counts (t,), float32 (N, t).

    A place with a count of 0 takes the average before it: windows may leave gaps between them.
    """
    filled = np.maximum.accumulate(np.where(counts > 0, np.arange(len(counts)), 0))
    return (sums[:, filled] / counts[filled]).astype(np.float32)
