"""Weights of an ensemble: those of the highest text-to-audio mAP@10 on a split.

The weights are at least 0, sum to 1, and are multiples of 1 / NUM_STEPS. Up to MAX_WHOLE_GRID
combinations (four models) are all tried. For more models the search starts from equal weights and
from each model by itself, and moves one step from one model to another as long as that helps. Equal
weights are always tried. Of equal mAP@10 the weights nearest to equal ones win, then the first in
order, so that the result depends on nothing else.

Letters: K models, N captions, B clips.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

import torch

from retrieval.base.errors import UserError
from retrieval.base.progress import bar
from retrieval.data import ClipSplit
from retrieval.evaluation.metrics.text_audio_retrieval.ranking import (
    average_precision,
    ranks_of_relevant,
)
from retrieval.evaluation.score_matrix import Scorer, captions_of

NUM_STEPS = 20  # of 0.05
MAX_WHOLE_GRID = 2000  # combinations; four models have 1,771, five 10,626
MAP_AT = 10
ROWS_AT_ONCE = 128  # float64 sums of a block stay in the processor's cache


@dataclass(frozen=True)
class FittedWeights:
    """Weights found by `fit_weights`."""

    weights: list[float]  # K
    value: float  # mAP@10 with them
    equal: float  # mAP@10 with equal weights


def fit_weights(
    matrices: Sequence[torch.Tensor], relevant: Sequence[Sequence[int]]
) -> FittedWeights:
    """Find the weights with the highest text-to-audio mAP@10.

    Args:
        matrices: K score matrices float32 (N, B) of the same captions and clips, on the CPU.
        relevant: For each caption the columns of its right clips.
    """
    num_models = len(matrices)
    known: dict[tuple[float, ...], float] = {}
    num_points = math.comb(NUM_STEPS + num_models - 1, num_models - 1)
    is_whole = num_points <= MAX_WHOLE_GRID
    num_tries = num_points + 1 if is_whole else None  # and equal weights
    progress = bar(total=num_tries, desc="fitting weights", unit="weighting", leave=False)

    def value_of(weights: tuple[float, ...]) -> float:
        if weights not in known:
            known[weights] = mean_average_precision(matrices, weights, relevant)
            progress.update()
        return known[weights]

    with progress:
        equal = value_of((1 / num_models,) * num_models)
        if is_whole:
            for steps in simplex(num_models):
                value_of(_fractions(steps))
        else:
            shares = [NUM_STEPS * (model + 1) // num_models for model in range(num_models)]
            starts = [tuple(last - first for first, last in zip([0, *shares], shares))]
            starts += [
                tuple(NUM_STEPS * (model == other) for other in range(num_models))
                for model in range(num_models)
            ]
            for steps in starts:
                while better := _better_neighbour(steps, value_of):
                    steps = better
    best = min(known, key=lambda weights: (-known[weights], _unevenness(weights), weights))
    return FittedWeights(list(best), known[best], equal)


def fitted_weights(
    scorer: Scorer, split_name: str, scored: ClipSplit
) -> tuple[list[float], dict[str, Any]]:
    """Fit the weights of a scorer's checkpoints on another split than the one that is scored.

    Returns:
        The weights, and where they come from: split, its fingerprint, mAP@10 there with these and
        with equal weights.

    Raises:
        UserError: The split is absent, has no captions, or has clips of the scored one.
    """
    split = scorer.cache.split(split_name)
    if common := set(split.clip_ids) & set(scored.clip_ids):
        raise UserError(
            f"--fit-weights {split_name}: {len(common)} clips are also in {scored.name!r}, which is"
            f" scored, such as {min(common)!r}; fit on a split without them"
        )
    captions, clips = captions_of(split)
    columns: dict[str, list[int]] = {}
    for column, clip_id in enumerate(split.clip_ids):
        columns.setdefault(clip_id, []).append(column)
    relevant = [columns[split.clip_ids[clip]] for clip in clips]
    # The same on every process: each has all scores.
    found = fit_weights(scorer.matrices(captions, split), relevant)
    scorer.accelerator.print(
        f"weights fitted on {split_name}: mAP@10 {100 * found.value:.2f} %, with equal weights"
        f" {100 * found.equal:.2f} %"
    )
    return found.weights, {
        "split": split_name,
        "fingerprint": split.fingerprint(),
        "mAP@10": found.value,
        "mAP@10_equal_weights": found.equal,
    }


def simplex(num_models: int) -> Iterator[tuple[int, ...]]:
    """Yield all ways to share NUM_STEPS steps between K models."""
    for bars in combinations(range(NUM_STEPS + num_models - 1), num_models - 1):
        ends = (-1, *bars, NUM_STEPS + num_models - 1)
        yield tuple(last - first - 1 for first, last in zip(ends, ends[1:]))


def _fractions(steps: Sequence[int]) -> tuple[float, ...]:
    return tuple(step / NUM_STEPS for step in steps)


def _unevenness(weights: Sequence[float]) -> float:
    return round(sum(weight**2 for weight in weights), 9)


def _better_neighbour(
    steps: tuple[int, ...], value_of: Callable[[tuple[float, ...]], float]
) -> tuple[int, ...] | None:
    """Return the best point one step away if it is better than `steps`, else None."""
    found, best = None, value_of(_fractions(steps))
    for giver, taker in permutations(range(len(steps)), 2):
        if steps[giver]:
            moved = list(steps)
            moved[giver] -= 1
            moved[taker] += 1
            if (value := value_of(_fractions(moved))) > best:
                found, best = tuple(moved), value
    return found


def mean_average_precision(
    matrices: Sequence[torch.Tensor],
    weights: Sequence[float],
    relevant: Sequence[Sequence[int]],
) -> float:
    """Return mAP@10 of a weighted mean, as `retrieval_metrics` would.

    That function ranks query by query; here queries with one right clip are ranked at once, since
    thousands of combinations are tried.

    Args:
        matrices: K score matrices float32 (N, B).
        weights: K.
        relevant: For each of N queries the columns of its right clips.
    """
    first = torch.tensor([columns[0] for columns in relevant])  # (N,)
    values = []
    for start in range(0, len(first), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        scores = weighted_mean([matrix[rows] for matrix in matrices], weights)  # (n, B)
        right = scores.gather(1, first[rows, None])  # (n, 1)
        ranks = (scores >= right).sum(1)  # (n,), a tied clip stands before the right one
        hits = torch.where(ranks <= MAP_AT, 1 / ranks.double(), 0.0).tolist()
        for row, columns in enumerate(relevant[rows]):
            if len(set(columns)) > 1:
                several = ranks_of_relevant(scores[row].numpy(), sorted(set(columns)))
                hits[row] = average_precision(several, MAP_AT)
        values += hits
    return math.fsum(values) / len(values)


def weighted_mean(matrices: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Average matrices in float64, to float32."""
    total = torch.zeros(matrices[0].shape, dtype=torch.float64)
    for matrix, weight in zip(matrices, weights, strict=True):
        total.add_(matrix, alpha=weight)
    return (total / math.fsum(weights)).float()
