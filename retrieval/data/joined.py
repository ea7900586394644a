"""Several corpora as one split to train on."""

import hashlib
from bisect import bisect_right
from itertools import accumulate

import numpy as np

from retrieval.data.cache import ClipSplit


class JoinedSplit:
    """The clips of `splits` one after the other, with what training asks of a ClipSplit. Clip
    numbers run on from split to split.
    """

    def __init__(self, splits: list[ClipSplit]):
        self.splits = splits
        self.holds_frames = splits[0].holds_frames
        self.captions: list[list[str]] = [
            captions for split in splits for captions in split.captions
        ]
        self.num_samples = np.concatenate([split.num_samples for split in splits])  # (len,)
        self._ends = list(accumulate(len(split) for split in splits))

    def __len__(self) -> int:
        return self._ends[-1]

    def fingerprint(self) -> str:
        """The same for the same splits in the same order."""
        return hashlib.sha256(
            repr([split.fingerprint() for split in self.splits]).encode()
        ).hexdigest()

    def read(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """As ClipSplit.read."""
        part, clip = self._place(index)
        return self.splits[part].read(clip, start, stop)

    def read_stored(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """As ClipSplit.read_stored."""
        part, clip = self._place(index)
        return self.splits[part].read_stored(clip, start, stop)

    def _place(self, index: int) -> tuple[int, int]:
        """Which split, and which of its clips."""
        part = bisect_right(self._ends, index)
        return part, index - (self._ends[part - 1] if part else 0)
