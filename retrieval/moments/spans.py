"""From a curve over frames to stretches of time. Letters: T frames."""

import heapq
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

MOST_MOMENTS = 10  # answers to a text: as many as mAP counts
# A further stretch counts from this share of the best one's sum on; chosen on the sample corpus's
# validation split (benchmarks/moments.py).
LEAST_SHARE = 0.3
FLAT = 1e-6  # relative difference of highest and lowest value, below which it is rounding


class Moment(NamedTuple):
    """A stretch of a recording.

    Attributes:
        start, end: Seconds from the beginning of the recording, start < end.
        score: The higher, the better; comparable between the answers to one query.
    """

    start: float
    end: float
    score: float


def maximum_sum(values: np.ndarray) -> tuple[int, int, float]:
    """Find the stretch of at least one frame with the highest sum; of equal ones the first.

    Source: Kadane's algorithm (Bentley, 1984), by cumulative sums.

    Args:
        values: (T,), T of 1 or more, finite.

    Returns:
        Its first frame, the frame after its last, and its sum.
    """
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])  # (T + 1,)
    lowest = np.minimum.accumulate(sums[:-1])  # (T,): best beginning before each end
    gains = sums[1:] - lowest
    stop = int(gains.argmax()) + 1
    first = int(sums[:stop].argmin())
    return first, stop, float(gains[stop - 1])


def stretches(values: np.ndarray, most: int, least_share: float) -> list[tuple[int, int, float]]:
    """Find stretches of high sum, each the best of the frames that those before it leave.

    Args:
        values: (T,), T of 1 or more; frames that belong to no stretch are below 0.
        most: Largest number of stretches.
        least_share: Smallest sum, as a share of the first one's.

    Returns:
        First frame, the frame after the last, and the sum as a share of the first one's (1.0 for
        the first), best first. The first stretch is there even if no frame is above 0.
    """
    # heap of (-sum, first, stop, low, high): the best stretch, first to stop, of frames low to high
    first, stop, highest = maximum_sum(values)
    waiting, found = [(-highest, first, stop, 0, len(values))], []
    least = max(least_share * highest, np.finfo(np.float64).tiny)
    while waiting and len(found) < most:
        negative, first, stop, low, high = heapq.heappop(waiting)
        if found and -negative < least:
            break
        found.append((first, stop, -negative / highest if found else 1.0))
        for left, right in ((low, first), (stop, high)):
            if left < right:
                begin, end, total = maximum_sum(values[left:right])
                heapq.heappush(waiting, (-total, left + begin, left + end, left, right))
    return found


def peaks(curve: np.ndarray, score: float) -> list[tuple[int, int, float]]:
    """Find the stretches of an excerpt where a text is heard: high sums over the mean.

    Args:
        curve: (T,), part of each frame in the excerpt's score (Pooling.contributions), times any
            positive number.
        score: The excerpt's score.

    Returns:
        First frame of each stretch, the frame after its last, and its score, best first. The first
        has the excerpt's score, others a lower one. A curve without peaks, as of silence, is one
        stretch.
    """
    if np.ptp(curve) <= FLAT * np.abs(curve).max():
        return [(0, len(curve), score)]
    return [
        (first, stop, score * share if score > 0 else score / share)
        for first, stop, share in stretches(curve - curve.mean(), MOST_MOMENTS, LEAST_SHARE)
    ]


def over_threshold(
    curve: np.ndarray, threshold: float, most: int = MOST_MOMENTS
) -> list[tuple[int, int, float]]:
    """Find the stretches of a moment head's probabilities, best first.

    Args:
        curve: (T,), probabilities.
        threshold: As a share of the highest probability.
        most: Largest number of stretches.

    Returns:
        First frame of each stretch, the frame after its last, and its score: its highest
        probability. In long recordings this ranks better than the mean, and than the sum, which
        favours long stretches of low probability.
    """
    cuts = stretches(curve - threshold * curve.max(), most, LEAST_SHARE)
    found = [(first, stop, float(curve[first:stop].max())) for first, stop, _ in cuts]
    return sorted(found, key=lambda stretch: -stretch[2])


def runs(curve: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """Find the maximal runs of frames above a threshold, in order.

    Args:
        curve: (T,).
        threshold: Frames of exactly this value are below.

    Returns:
        First frame of each run, and the frame after its last.
    """
    above = np.concatenate([[False], curve > threshold, [False]])
    edges = np.flatnonzero(above[1:] != above[:-1])  # first, stop, first, stop, ...
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def iou(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Return the overlap of two stretches (start, end, ...) divided by their union."""
    overlap = min(first[1], second[1]) - max(first[0], second[0])
    if overlap <= 0:
        return 0.0
    return overlap / (first[1] - first[0] + second[1] - second[0] - overlap)


def with_others(
    moments: list[Moment], others: Iterable[Moment], overlap: float, most: int | None = None
) -> list[Moment]:
    """Add each of `others`, in order, whose IoU with all before it is below `overlap`.

    most: stop at so many moments; without it, time grows with the square of a recording's length.
    """
    kept = list(moments)
    for moment in others:
        if most is not None and len(kept) >= most:
            break
        if all(iou(moment, own) < overlap for own in kept):
            kept.append(moment)
    return kept


def suppressed(moments: Iterable[Moment], overlap: float, most: int | None = None) -> list[Moment]:
    """Sort moments by falling score, and drop those that overlap a better one.

    Args:
        moments: In any order; of equal scores the earlier in the list comes first.
        overlap: Smallest IoU with a better one that drops a moment.
        most: Stop after so many; None: none is left out.
    """
    ranked = sorted(moments, key=lambda moment: -moment.score)
    return with_others([], ranked, overlap, most)
