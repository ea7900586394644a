"""Ranks, mAP@k and R@k from a score matrix. Needs numpy only, not the evaluate package.

Letters: N queries, B candidates, R relevant candidates of a query, at least one.

Ties count against the query: a relevant candidate stands behind every other candidate of the same
score. A collapsed model, which scores everything alike, gets zero and not a perfect score.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

ROWS_AT_ONCE = 256
RANK_EDGES = np.array([1, 2, 3, 6, 11, 21, 51, 101, 201, 501])  # first rank of each bar
DIRECTIONS = {"text_to_audio": "text to audio", "audio_to_text": "audio to text"}


def ranks_of_relevant(scores: np.ndarray, relevant: Sequence[int]) -> np.ndarray:
    """Rank the relevant candidates of one query: scores (B,) -> int64 (R,), from 1, ascending.

    The i-th best relevant candidate stands behind i - 1 relevant ones, and behind all others that
    score as much or more.
    """
    hits = -np.sort(-scores[np.asarray(relevant, dtype=np.int64)])  # (R,), best first
    # (R,) candidates that are not relevant
    ahead = (scores >= hits[:, None]).sum(axis=1) - (hits >= hits[:, None]).sum(axis=1)
    return ahead + np.arange(1, len(hits) + 1)


def row_blocks(scores: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of the first row, and ROWS_AT_ONCE rows of scores (N, B).

    The rows are contiguous in memory, also if the matrix is a transposed memory map.
    """
    for first in range(0, len(scores), ROWS_AT_ONCE):
        yield first, np.ascontiguousarray(scores[first : first + ROWS_AT_ONCE])


def all_ranks(scores: np.ndarray, relevant: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Rank the relevant candidates of every query.

    Args:
        scores: (N, B), a row for each query.
        relevant: For each query the columns of its relevant candidates.

    Returns:
        For each query its ranks, int64 (R,), from 1, ascending.

    Raises:
        ValueError: A score is NaN, a query has no relevant candidate, or a column is out of range.
    """
    scores = np.asarray(scores)
    if scores.ndim != 2 or len(scores) != len(relevant) or not len(scores):
        raise ValueError(
            "scores must be (N, B) with a list of relevant candidates per row, found"
            f" {scores.shape} and {len(relevant)} lists"
        )
    unique = [sorted(set(indices)) for indices in relevant]
    for query, indices in enumerate(unique):
        if not indices:
            raise ValueError(f"query {query} has no relevant candidate; leave such queries out")
        if indices[0] < 0 or indices[-1] >= scores.shape[1]:
            raise ValueError(
                f"query {query}: relevant candidates {indices} are not all in"
                f" 0..{scores.shape[1] - 1}"
            )
    ranks, num_nan = [], 0
    for first, rows in row_blocks(scores):
        num_nan += int(np.isnan(rows).sum())
        ranks += [
            ranks_of_relevant(row, indices)
            for row, indices in zip(rows, unique[first : first + len(rows)], strict=True)
        ]
    if num_nan:
        raise ValueError(f"{num_nan} of {scores.size} scores are NaN, so there is no ranking")
    return ranks


def best_right(scores: np.ndarray, right: Sequence[int]) -> int:
    """Return the column in `right` that scores highest for a query with scores (B,)."""
    right = np.sort(right)
    return int(right[scores[right].argmax()])


def first_columns(scores: np.ndarray, right: Sequence[int], number: int) -> list[int]:
    """Return the first columns of a query's ranking, scores (B,).

    As in the metrics, tied columns stand before those in `right`.
    """
    last = max(0, len(scores) - number)
    # all that score as much as the last one, or more
    candidates = np.flatnonzero(scores >= np.partition(scores, last)[last])
    order = np.lexsort((np.isin(candidates, right), -scores[candidates]))
    return candidates[order[:number]].tolist()


def average_precision(ranks: np.ndarray, k: int) -> float:
    """Return AP@k of one query, as DCASE defines it.

    The precisions at the hits within k are added, and divided by the number of relevant candidates.
    With one relevant candidate this is 1 / rank, or 0 beyond k. With more than k of them it cannot
    reach 1.
    """
    hits = ranks[ranks <= k]
    return float((np.arange(1, len(hits) + 1) / hits).sum() / len(ranks))


def recall(ranks: np.ndarray, k: int) -> float:
    """Return R@k of one query: 1 if at least one relevant candidate is within k.

    The retrieval literature counts audio to text in this way, where a clip has five right captions.
    With one relevant candidate it equals the share of relevant candidates that is found.
    """
    return float(ranks[0] <= k)


def metrics_of_ranks(
    ranks: Sequence[np.ndarray],
    map_at: int | Sequence[int] = 10,
    recall_at: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Average the metrics over queries.

    The order of the queries does not change the means, not even the last bit (math.fsum): training
    compares the means of epochs.

    Args:
        ranks: N arrays of `all_ranks`.
        map_at: Depth of mAP, or several.
        recall_at: Depths of R.

    Returns:
        Fractions by name: "mAP@10", "R@1", "R@5", "R@10".
    """
    means = {
        f"mAP@{k}": math.fsum(average_precision(query, k) for query in ranks) / len(ranks)
        for k in np.atleast_1d(map_at).tolist()
    }
    return means | {
        f"R@{k}": math.fsum(recall(query, k) for query in ranks) / len(ranks) for k in recall_at
    }


def transpose_relevance(relevant: Sequence[Sequence[int]], num_candidates: int) -> list[list[int]]:
    """List the queries that each candidate is relevant to, for the other direction.

    A list may be empty.
    """
    queries: list[list[int]] = [[] for _ in range(num_candidates)]
    for query, indices in enumerate(relevant):
        for candidate in set(indices):
            queries[candidate].append(query)
    return queries


def ranks_of_both_directions(
    scores: np.ndarray, relevant: Sequence[Sequence[int]]
) -> dict[str, list[np.ndarray]]:
    """Rank in both directions, without a copy of the matrix.

    Args:
        scores: (texts, audios).
        relevant: For each text its relevant audios.

    Returns:
        Ranks of `all_ranks` by "text_to_audio" and "audio_to_text". An audio without a text is a
        candidate but not a query.
    """
    scores = np.asarray(scores)
    text_to_audio = all_ranks(scores, relevant)
    captions = transpose_relevance(relevant, scores.shape[1])
    asked = [clip for clip, indices in enumerate(captions) if indices]
    audio_to_text: list[np.ndarray] = []
    for first in range(0, len(asked), ROWS_AT_ONCE):
        clips = asked[first : first + ROWS_AT_ONCE]
        audio_to_text += all_ranks(scores.T[clips], [captions[clip] for clip in clips])
    return {"text_to_audio": text_to_audio, "audio_to_text": audio_to_text}


def chance_metrics(
    num_candidates: int,
    num_relevant: Sequence[int],
    map_at: int | Sequence[int] = 10,
    recall_at: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Return the expected metrics of a random order.

    The candidate at rank r is relevant with probability R / B, and then each of the r - 1 before it
    with (R - 1) / (B - 1).

    Args:
        num_candidates: B.
        num_relevant: R of each query.
        map_at: Depth of mAP, or several.
        recall_at: Depths of R.

    Returns:
        Fractions by name, as in `metrics_of_ranks`.
    """
    others = max(num_candidates - 1, 1)
    chance = {}
    for depth in np.atleast_1d(map_at).tolist():
        ranks = range(1, min(depth, num_candidates) + 1)
        precision = [
            sum((1 + (r - 1) * (number - 1) / others) / r for r in ranks) / num_candidates
            for number in num_relevant
        ]
        chance[f"mAP@{depth}"] = float(np.mean(precision))
    for depth in recall_at:
        depth_reached = min(depth, num_candidates)
        orders = math.comb(num_candidates, depth_reached)
        missed = [
            math.comb(num_candidates - number, depth_reached) / orders for number in num_relevant
        ]
        chance[f"R@{depth}"] = 1 - float(np.mean(missed))
    return chance


def rank_histogram(
    ranks: dict[str, list[np.ndarray]],
) -> tuple[list[str], dict[str, np.ndarray], dict[str, float]]:
    """Count queries by the rank of their best relevant candidate.

    Args:
        ranks: Direction -> ranks of each query, as in `ranks_of_both_directions`.

    Returns:
        Names of the bars; number of queries in each bar and median rank, by direction.
    """
    best = {
        direction: np.array([query[0] for query in queries]) for direction, queries in ranks.items()
    }
    # The number of captions bounds all ranks, so the axis is the same in every epoch.
    highest = max(max(values.max(), len(values)) for values in best.values())
    num_bars = np.searchsorted(RANK_EDGES, highest, side="right")
    names = [
        f"{first}" if first == last else f"{first}-{last}"
        for first, last in zip(RANK_EDGES, RANK_EDGES[1:] - 1, strict=False)
    ]
    names.append(f"{RANK_EDGES[-1]}+")
    counts, medians = {}, {}
    for direction, values in best.items():
        bars = np.searchsorted(RANK_EDGES, values, side="right") - 1
        counts[direction] = np.bincount(bars, minlength=num_bars)
        medians[direction] = float(np.median(values))
    return names[:num_bars], counts, medians
