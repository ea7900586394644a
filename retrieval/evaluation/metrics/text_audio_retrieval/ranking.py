"""Ranks, mAP@k and R@k from a score matrix. numpy only, so that it loads without the evaluate
package.

Letters: N queries, B candidates, R relevant candidates of a query. A query may have several
relevant candidates.

Ties are resolved against the query: a relevant candidate stands behind every other candidate of the
same score. A collapsed model, which scores everything alike, gets zero and not a perfect score.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

ROWS_AT_ONCE = 256


def ranks_of_relevant(scores: np.ndarray, relevant: Sequence[int]) -> np.ndarray:
    """Ranks, from 1 and ascending, of the relevant candidates of one query: scores (B,) -> int64
    (R,).

    The i-th best relevant candidate stands behind i - 1 relevant ones and all others that score as
    much or more.
    """
    hits = -np.sort(-scores[np.asarray(relevant, dtype=np.int64)])  # (R,), best first
    # (R,) candidates that are not relevant
    ahead = (scores >= hits[:, None]).sum(axis=1) - (hits >= hits[:, None]).sum(axis=1)
    return ahead + np.arange(1, len(hits) + 1)


def row_blocks(scores: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, ROWS_AT_ONCE rows) of scores (N, B), contiguous whatever the order in memory: a
    matrix may be a transposed memory map.
    """
    for first in range(0, len(scores), ROWS_AT_ONCE):
        yield first, np.ascontiguousarray(scores[first : first + ROWS_AT_ONCE])


def all_ranks(scores: np.ndarray, relevant: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Ranks of every query's relevant candidates: scores (N, B), relevant[n] = indices of
    candidates -> N arrays.

    Raises ValueError for NaN scores, a query without relevant candidate and an index that is no
    candidate.
    """
    scores = np.asarray(scores)
    if scores.ndim != 2 or len(scores) != len(relevant) or not len(scores):
        raise ValueError(
            f"scores must be (N, B) with a list of relevant candidates a row, found {scores.shape}"
            f" and {len(relevant)} lists"
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


def average_precision(ranks: np.ndarray, k: int) -> float:
    """AP@k of one query: precision at each hit within k, summed, divided by the number of relevant
    candidates (DCASE).

    With one relevant candidate this is 1 / rank, or 0 beyond k. With more than k of them it cannot
    reach 1.
    """
    hits = ranks[ranks <= k]
    return float((np.arange(1, len(hits) + 1) / hits).sum() / len(ranks))


def recall(ranks: np.ndarray, k: int) -> float:
    """R@k of one query: 1 if at least one relevant candidate is within k.

    That is how the retrieval literature, and every result we compare with, counts audio to text,
    where a clip has five right captions; with one relevant candidate it is the same as the share of
    them that is found.
    """
    return float(ranks[0] <= k)


def metrics_of_ranks(
    ranks: Sequence[np.ndarray],
    map_at: int | Sequence[int] = 10,
    recall_at: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Means over the queries, as fractions: {"mAP@10": ..., "R@1": ..., "R@5": ..., "R@10": ...};
    map_at may be several depths.

    The order of the ranks does not change the means, not even the last bit (math.fsum): training
    compares the means of epochs.
    """
    means = {
        f"mAP@{k}": math.fsum(average_precision(query, k) for query in ranks) / len(ranks)
        for k in _depths(map_at)
    }
    return means | {
        f"R@{k}": math.fsum(recall(query, k) for query in ranks) / len(ranks) for k in recall_at
    }


def _depths(map_at: int | Sequence[int]) -> Sequence[int]:
    return [map_at] if isinstance(map_at, int) else map_at


def transpose_relevance(relevant: Sequence[Sequence[int]], num_candidates: int) -> list[list[int]]:
    """The queries that each candidate is relevant to, for the other direction; a list may be
    empty.
    """
    queries: list[list[int]] = [[] for _ in range(num_candidates)]
    for query, indices in enumerate(relevant):
        for candidate in set(indices):
            queries[candidate].append(query)
    return queries


def ranks_of_both_directions(
    scores: np.ndarray, relevant: Sequence[Sequence[int]]
) -> dict[str, list[np.ndarray]]:
    """all_ranks of each direction: scores (texts, audios), relevant[text] = audios ->
    {"text_to_audio", "audio_to_text"}.

    A clip that no caption belongs to is a candidate for texts, but no query of its own. No copy of
    the matrix is made.
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
    """Expected metrics of a random order; num_relevant[n] of the candidates are relevant to query
    n.

    A candidate at rank r is relevant with probability R / B, and then each of the r - 1 before it
    with (R - 1) / (B - 1).
    """
    others = max(num_candidates - 1, 1)
    chance = {}
    for depth in _depths(map_at):
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
