"""Histogram of the ranks of a scored split."""

import numpy as np

RANK_EDGES = np.array([1, 2, 3, 6, 11, 21, 51, 101, 201, 501])  # first rank of each bar


DIRECTIONS = {"text_to_audio": "text to audio", "audio_to_text": "audio to text"}


def rank_histogram(
    ranks: dict[str, list[np.ndarray]],
) -> tuple[list[str], dict[str, np.ndarray], dict[str, float]]:
    """Names of the bars, and for each direction the number of queries in each and the median, by
    the rank of the best relevant candidate.
    """
    best = {
        direction: np.array([query[0] for query in queries]) for direction, queries in ranks.items()
    }
    # By the number of captions, the highest rank there can be, so that the axis is the same in
    # every epoch.
    highest = max(max(values.max(), len(values)) for values in best.values())
    num_bars = np.searchsorted(RANK_EDGES, highest, side="right")
    bounds = [
        f"{first}" if first == last else f"{first}-{last}"
        for first, last in zip(RANK_EDGES, RANK_EDGES[1:] - 1)
    ]
    counts = {
        name: np.bincount(np.searchsorted(RANK_EDGES, values, side="right") - 1, minlength=num_bars)
        for name, values in best.items()
    }
    return (
        [*bounds, f"{RANK_EDGES[-1]}+"][:num_bars],
        counts,
        {name: float(np.median(values)) for name, values in best.items()},
    )
