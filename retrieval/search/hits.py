"""Answers of a search. Letters: T frames."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class IndexedFile:
    """A file of an index.

    Attributes:
        file: Path below the indexed folder, with "/" between folders.
        seconds: Length.
    """

    file: str
    seconds: float


@dataclass(frozen=True)
class Hit:
    """An answer: an excerpt of a file, and the place in it that fits the query.

    Times are seconds from the beginning of the file.

    Attributes:
        rank: 1 is the best.
        score: Of the model, by `model.score`: a cosine or a dot product. For a sound as query the
            cosine of two clip vectors.
        file: Path below the indexed folder, with "/" between folders.
        start, end: The excerpt; a short file is one excerpt.
        attended_from, attended_to: The shortest stretch that holds half of TAP's attention; the
            excerpt for other poolings and for sounds as queries.
        seconds: Length of the file.
        attention: TAP's weights float32 (T,), which sum to 1; None for other poolings and sounds.
        frame_seconds: Length of a frame; frame t is centred at start + (t + 0.5) * frame_seconds.
    """

    rank: int
    score: float
    file: str
    start: float
    end: float
    attended_from: float
    attended_to: float
    seconds: float
    attention: np.ndarray | None
    frame_seconds: float


def make_hit(
    rank: int,
    score: float,
    file: IndexedFile,
    start: float,
    end: float,
    attention: np.ndarray | None,
) -> Hit:
    """Make the answer with an excerpt of `file`; attention: weights (T,) of its frames, or None."""
    first, last, frame_seconds = start, end, end - start
    if attention is not None:
        frame_seconds = (end - start) / len(attention)
        first, last = (start + frame * frame_seconds for frame in shortest_stretch(attention))
    return Hit(
        rank, score, file.file, start, end, first, last, file.seconds, attention, frame_seconds
    )


def shortest_stretch(weights: np.ndarray, share: float = 0.5) -> tuple[int, int]:
    """Find the shortest stretch that holds `share` of the weights (T,); of equal ones the first.

    Returns:
        Its first frame, and the frame after its last.
    """
    sums = np.concatenate([[0.0], np.cumsum(weights, dtype=np.float64)])  # (T + 1,)
    # (T,): for each first frame the end that is far enough; T + 1 if there is none
    lasts = np.searchsorted(sums, sums[:-1] + share * sums[-1] * (1 - 1e-9))
    lengths = np.where(lasts < len(sums), lasts - np.arange(len(weights)), len(sums))
    first = int(lengths.argmin())
    return first, int(lasts[first])
