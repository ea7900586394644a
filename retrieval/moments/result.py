"""Scored moments: metrics, values of each query, and remarks about the answers and the truth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.base.errors import UserError
from retrieval.evaluation.metrics.audio_moment_retrieval.scoring import (
    LONGEST_WINDOW,
    MOST_PREDICTIONS,
    NAMES,
    metric_columns,
    query_values,
    true_windows,
)
from retrieval.moments.files import Answer, Truth

TOLERANCE = 1e-3  # seconds that a time may lie beyond its recording: files are rounded


@dataclass(frozen=True)
class MomentResult:
    """Answers to Q queries, and their scores.

    Attributes:
        answers: Q.
        truths: Q, of the same queries in the same order.
        ious: float64 (Q,), of the first moment with its best true window; NaN for a query that has
            no true window and is left out of the metrics.
        precisions: float64 (Q, 10), AP at each threshold; NaN as in `ious`.
    """

    answers: list[Answer]
    truths: list[Truth]
    ious: np.ndarray
    precisions: np.ndarray

    @property
    def is_scored(self) -> np.ndarray:
        """Bool (Q,): the query counts in the metrics."""
        return ~np.isnan(self.ious)

    @property
    def columns(self) -> np.ndarray:
        """Each query's share of each metric, float64 (Q, 7), as scoring.NAMES; for a bootstrap."""
        return metric_columns(self.ious, self.precisions)

    @property
    def metrics(self) -> dict[str, float]:
        """R1@0.3, R1@0.5, R1@0.7, mIoU, mAP@0.5, mAP@0.75 and mAP as fractions.

        Equal to scoring.moment_metrics of the same queries.
        """
        columns = self.columns[self.is_scored]
        return {name: math.fsum(column) / len(columns) for name, column in zip(NAMES, columns.T)}


def score_answers(answers: Sequence[Answer], truths: Sequence[Truth]) -> MomentResult:
    """Score answers, in the order of the truth.

    Args:
        answers: Of the queries of `truths`, in any order.
        truths: True windows of each query.

    Raises:
        UserError: No query has a true window.
    """
    by_qid = {answer.qid: answer for answer in answers}
    ordered = [by_qid[truth.qid] for truth in truths]
    ious, precisions = query_values(
        [answer.moments for answer in ordered], [truth.windows for truth in truths]
    )
    if np.isnan(ious).all():
        raise UserError(
            f"none of the {len(truths)} queries has a true window with a length: there is nothing"
            " to score"
        )
    return MomentResult(ordered, list(truths), ious, precisions)


def format_metrics(result: MomentResult) -> str:
    """Format the metrics in percent, as lines of text."""
    header = f"{int(result.is_scored.sum())} queries, %"
    values = result.metrics
    lines = [
        " " * len(header) + "".join(f"{name:>10}" for name in values),
        header + "".join(f"{100 * value:10.2f}" for value in values.values()),
    ]
    return "\n".join(lines)


def remarks(result: MomentResult) -> list[str]:
    """List unusual things in answers and truth that change the meaning of the metrics."""
    answers, truths = result.answers, result.truths
    counts = {
        f"true windows without length, or longer than {LONGEST_WINDOW:g} s, which are dropped": sum(
            len(truth.windows) - len(true_windows(truth.windows)) for truth in truths
        ),
        "queries without a true window, which are left out": int((~result.is_scored).sum()),
        "true windows that end after their recording, which count as they are": sum(
            _num_beyond(truth.windows, truth.duration) for truth in truths
        ),
        "queries without a prediction, which count as 0": sum(
            not answer.moments for answer in answers
        ),
        "predictions that begin before their recording or end after it, which are not cut, as in"
        " lighthouse": sum(_num_beyond(a.moments, t.duration) for a, t in zip(answers, truths)),
        "queries whose predictions are not sorted by falling score, so that R1 reads the first of"
        " the list and mAP the scores": sum(map(_is_unsorted, answers)),
        f"queries with more than {MOST_PREDICTIONS} predictions, of which the first"
        f" {MOST_PREDICTIONS} count": sum(
            len(answer.moments) > MOST_PREDICTIONS for answer in answers
        ),
    }
    return [f"{text}: {number}" for text, number in counts.items() if number]


def _num_beyond(windows: Sequence[Sequence[float]], duration: float | None) -> int:
    """Count windows that reach beyond a recording of `duration` seconds, if that is known."""
    end = math.inf if duration is None else duration + TOLERANCE
    return sum(window[0] < -TOLERANCE or window[1] > end for window in windows)


def _is_unsorted(answer: Answer) -> bool:
    scores = [moment.score for moment in answer.moments]
    return any(second > first for first, second in zip(scores, scores[1:]))
