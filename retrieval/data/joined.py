"""Several corpora as one split to train on."""

import hashlib
from bisect import bisect_right
from itertools import accumulate

import numpy as np

from retrieval.data.cache import ClipSplit


class JoinedSplit:
    """The clips of `splits` one after the other, numbered from the first to the last.

    It has the part of ClipSplit that training uses.
    """

    def __init__(self, splits: list[ClipSplit]):
        self.splits = splits
        self.holds_frames = splits[0].holds_frames
        self.captions: list[list[str]] = [
            captions for split in splits for captions in split.captions
        ]
        # qids are unique within each split only
        self.moments = [queries for split in splits for queries in split.moments]
        self.num_samples = np.concatenate([split.num_samples for split in splits])  # (len,)
        self._ends = list(accumulate(len(split) for split in splits))

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def has_moments(self) -> bool:
        """True if any clip has queries with times."""
        return any(self.moments)

    def fingerprint(self, with_moments: bool = False) -> str:
        """Return a digest of the fingerprints of the splits, in order."""
        content = repr([split.fingerprint(with_moments) for split in self.splits])
        return hashlib.sha256(content.encode()).hexdigest()

    def read(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read samples of a clip; see ClipSplit.read."""
        part, clip = self._place(index)
        return self.splits[part].read(clip, start, stop)

    def read_stored(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read samples of a clip as stored; see ClipSplit.read_stored."""
        part, clip = self._place(index)
        return self.splits[part].read_stored(clip, start, stop)

    def _place(self, index: int) -> tuple[int, int]:
        """Return the number of the split, and of the clip within it."""
        part = bisect_right(self._ends, index)
        return part, index - (self._ends[part - 1] if part else 0)
