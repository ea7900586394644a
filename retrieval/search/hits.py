"""What a search answers.

Letters: T frames.
"""

from dataclasses import dataclass

import numpy as np
import torch

HALF = 0.5  # of the attention lies between attended_from and attended_to


@dataclass(frozen=True)
class IndexedFile:
    """`file` is the path below the indexed folder, "/" between folders."""

    file: str
    seconds: float


@dataclass(frozen=True)
class Hit:
    """An answer: an excerpt of a file and where in it the query is heard. Times are seconds from
    the file's beginning.
    """

    rank: int  # 1 is best
    score: float  # cosine similarity
    file: str  # path below the indexed folder, "/" between folders
    start: float  # of the excerpt, which is the whole file where that is short
    end: float
    # the shortest stretch that holds half of TAP's attention; the excerpt for other poolings and
    # for sounds
    attended_from: float
    attended_to: float
    seconds: float  # length of the file
    # float32 (T,), sums to 1; frame t is centred at start + (t + 0.5) * frame_seconds
    attention: np.ndarray | None
    frame_seconds: float


def make_hit(
    rank: int,
    score: float,
    file: IndexedFile,
    start: float,
    end: float,
    weights: torch.Tensor | None,
) -> Hit:
    """weights: the attention (T,) over the excerpt, or None."""
    if weights is None:
        return Hit(rank, score, file.file, start, end, start, end, file.seconds, None, end - start)
    attention = weights.cpu().numpy()
    frame_seconds = (end - start) / len(attention)
    first, last = (start + frame * frame_seconds for frame in shortest_stretch(attention))
    return Hit(
        rank, score, file.file, start, end, first, last, file.seconds, attention, frame_seconds
    )


def shortest_stretch(weights: np.ndarray, share: float = HALF) -> tuple[int, int]:
    """First frame, and the one after the last, of the shortest stretch that holds `share` of the
    weights (T,); of equal ones the first.
    """
    sums = np.concatenate([[0.0], np.cumsum(weights, dtype=np.float64)])  # (T + 1,)
    # (T,): the first end that holds enough, T + 1 for none
    lasts = np.searchsorted(sums, sums[:-1] + share * sums[-1] * (1 - 1e-9))
    lengths = np.where(lasts < len(sums), lasts - np.arange(len(weights)), len(sums))
    first = int(lengths.argmin())
    return first, int(lasts[first])
