"""Score time spans against true windows. Needs numpy only, not the evaluate package.

The conventions are those of lighthouse (github.com/line/lighthouse, training/standalone_eval),
which scores CASTELLA and DCASE 2026 task 6. Two differ, where lighthouse stops or counts a broken
span as right: a query with an empty list gets 0, and an end before its start is an error, as NaN
is.

Letters: Q queries, P predictions of a query in their order, R true windows of a query.
"""

import math
from collections.abc import Sequence

import numpy as np

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)  # of mAP
FIRST_AT = (0.3, 0.5, 0.7)  # thresholds of R1
MAP_AT = (0.5, 0.75)  # thresholds of mAP that are named beside the mean of all
NAMES = (*(f"R1@{t}" for t in FIRST_AT), "mIoU", *(f"mAP@{t}" for t in MAP_AT), "mAP")
MOST_PREDICTIONS = 10  # of a query: the first of its list
LONGEST_WINDOW = 1500.0  # seconds; lighthouse drops true windows that are longer

Prediction = Sequence[float]  # start and end in seconds, score
Window = Sequence[float]  # start and end in seconds


def true_windows(reference: Sequence[Window]) -> np.ndarray:
    """Return the windows of a query that count: float64 (R, 2), in the order of the list.

    Windows without length and those longer than LONGEST_WINDOW are dropped. A query that has no
    other is left out of all means, together with its predictions.

    Raises:
        ValueError: A time is NaN or infinite.
    """
    windows = _rows(reference, 2, "a true window is [start, end]")
    lengths = windows[:, 1] - windows[:, 0]
    return windows[(lengths > 0) & (lengths <= LONGEST_WINDOW)]


def predicted_windows(prediction: Sequence[Prediction]) -> np.ndarray:
    """Return the predictions of a query, float64 (P, 3): start, end, score, in their order.

    Nothing is cut to the recording. A prediction without length is never right.

    Raises:
        ValueError: A number is NaN or infinite, or an end is before its start.
    """
    predictions = _rows(prediction, 3, "a prediction is [start, end, score]")
    if (inverted := predictions[:, 1] < predictions[:, 0]).any():
        wrong = predictions[inverted][0].tolist()
        raise ValueError(f"the prediction {wrong} ends before it starts")
    return predictions


def _rows(rows: Sequence[Sequence[float]], length: int, form: str) -> np.ndarray:
    """Convert a list of number lists to float64 (len(rows), length)."""
    if any(len(row) != length for row in rows):
        raise ValueError(f"{form}, found {next(list(row) for row in rows if len(row) != length)}")
    array = np.array([list(row) for row in rows], dtype=np.float64).reshape(-1, length)
    if not np.isfinite(array).all():
        wrong = array[~np.isfinite(array).all(axis=1)][0].tolist()
        raise ValueError(f"{form} of finite numbers, found {wrong}")
    return array


def overlaps(predictions: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Return IoU, float64 (P, R), of spans (P, 2 or more) with true windows (R, 2).

    Spans that only touch have 0.
    """
    starts, ends = predictions[:, None, 0], predictions[:, None, 1]  # (P, 1)
    shared = np.minimum(ends, windows[:, 1]) - np.maximum(starts, windows[:, 0])
    shared = np.maximum(shared, 0)  # (P, R)
    with np.errstate(over="ignore"):  # a length beyond all numbers has an IoU of 0
        return shared / ((ends - starts) + (windows[:, 1] - windows[:, 0]) - shared)


def first_iou(predictions: np.ndarray, windows: np.ndarray) -> float:
    """Return the IoU of the first prediction, whatever its score, with its best true window."""
    return float(overlaps(predictions[:1], windows).max(initial=0))


def average_precision(iou: np.ndarray, threshold: float) -> float:
    """Return AP of one query at one threshold (VOC 2010 and later: all points, envelope).

    Each prediction takes the free true window of its highest IoU, of equal ones the last, if that
    reaches the threshold. So a second prediction of a taken window may take the next best one.

    Args:
        iou: (P, R) with predictions by falling score.
        threshold: IoU of a hit, in (0, 1].
    """
    num_predictions, num_windows = iou.shape
    hits = np.zeros(num_predictions, dtype=bool)
    free = iou.copy()
    for place, row in enumerate(free):
        best = num_windows - 1 - int(row[::-1].argmax())
        if row[best] >= threshold:
            hits[place] = True
            free[:, best] = -1  # taken
    precisions = hits.cumsum() / np.arange(1, num_predictions + 1)
    at_or_after = np.maximum.accumulate(precisions[::-1])[::-1]
    return float(at_or_after[hits].sum() / num_windows)


def average_precisions(predictions: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Return AP of one query at each of THRESHOLDS, float64 (10,).

    The first MOST_PREDICTIONS of the list count, then sorted by score; equal scores keep the order
    of the list.
    """
    first = predictions[:MOST_PREDICTIONS]
    iou = overlaps(first[np.argsort(-first[:, 2], kind="stable")], windows)
    return np.array([average_precision(iou, threshold) for threshold in THRESHOLDS])


def query_values(
    predictions: Sequence[Sequence[Prediction]], references: Sequence[Sequence[Window]]
) -> tuple[np.ndarray, np.ndarray]:
    """Score each query.

    Args:
        predictions: Q lists of (start, end, score), in seconds, best first. A list may be empty.
        references: Q lists of true (start, end), in seconds.

    Returns:
        IoU of the first prediction, float64 (Q,), and AP at THRESHOLDS, float64 (Q, 10). Both are
        NaN for a query that has no true window (see true_windows).

    Raises:
        ValueError: The lists differ in number, a number is NaN or infinite, or a prediction ends
            before it starts. The message names the query by its number.
    """
    if len(predictions) != len(references):
        raise ValueError(
            f"found predictions of {len(predictions)} queries and references of {len(references)}"
        )
    ious = np.full(len(references), np.nan)
    precisions = np.full((len(references), len(THRESHOLDS)), np.nan)
    for query, (prediction, reference) in enumerate(zip(predictions, references)):
        try:
            found, windows = predicted_windows(prediction), true_windows(reference)
        except ValueError as error:
            raise ValueError(f"query {query}: {error}") from None
        if len(windows):
            ious[query] = first_iou(found, windows)
            precisions[query] = average_precisions(found, windows)
    return ious, precisions


def metric_columns(ious: np.ndarray, precisions: np.ndarray) -> np.ndarray:
    """Return each query's share of each metric, float64 (Q, 7), columns as NAMES.

    Their means over queries are the metrics, so they are what a bootstrap draws from.

    Args:
        ious: (Q,) of query_values.
        precisions: (Q, 10) of query_values.
    """
    nan = np.where(np.isnan(ious), np.nan, 0)
    columns = [(ious >= threshold) + nan for threshold in FIRST_AT] + [ious]
    columns += [precisions[:, THRESHOLDS.index(threshold)] for threshold in MAP_AT]
    return np.column_stack([*columns, precisions.mean(axis=1)])


def moment_metrics(
    predictions: Sequence[Sequence[Prediction]], references: Sequence[Sequence[Window]]
) -> dict[str, float]:
    """Average the metrics over the queries that have a true window.

    R1@t is the share of queries whose first prediction has an IoU of t or more with a true window;
    mIoU is the mean of that IoU. mAP@t is the mean of the queries' AP, and mAP the mean over
    THRESHOLDS. The order of the queries does not change a bit (math.fsum).

    Args:
        predictions: Q lists of (start, end, score), in seconds, best first. A list may be empty.
        references: Q lists of true (start, end), in seconds.

    Returns:
        Fractions by name, as NAMES.

    Raises:
        ValueError: As query_values, and if no query has a true window.
    """
    columns = metric_columns(*query_values(predictions, references))
    columns = columns[~np.isnan(columns[:, 0])]
    if not len(columns):
        raise ValueError(f"none of {len(references)} queries has a true window")
    return {name: math.fsum(column) / len(columns) for name, column in zip(NAMES, columns.T)}
