"""Audio moment retrieval as an `evaluate.Metric`; needs no network.

metric = evaluate.load("retrieval/evaluation/metrics/audio_moment_retrieval")
"""

from collections.abc import Sequence

import datasets

import evaluate

from .scoring import moment_metrics

_DESCRIPTION = """
R1, mIoU and mAP of time spans that answer sentences within recordings, with the conventions of
lighthouse (CASTELLA, DCASE 2026 task 6). R1@t is the share of queries whose first prediction has an
IoU of at least t with a true window, mIoU the mean of that IoU. AP of a query takes its first ten
predictions; mAP is the mean over queries and over the thresholds 0.5, 0.55 to 0.95. A query with no
prediction gets 0; a query without a true window is left out.
"""

_INPUTS = """
Args:
    predictions: for each query a list of [start, end, score], seconds, best first; may be empty.
    references: for each query a list of true [start, end], seconds.
Returns:
    {"R1@0.3", "R1@0.5", "R1@0.7", "mIoU", "mAP@0.5", "mAP@0.75", "mAP"}, fractions.
Example:
    >>> metric = evaluate.load("retrieval/evaluation/metrics/audio_moment_retrieval")
    >>> answer, truth = [[2.0, 8.0, 0.9], [20.0, 30.0, 0.4]], [[0.0, 8.0], [20.0, 30.0]]
    >>> metric.compute(predictions=[answer], references=[truth])["mIoU"]
    0.75
"""


class AudioMomentRetrieval(evaluate.Metric):
    """Moments within recordings, scored as lighthouse does."""

    def _info(self) -> evaluate.MetricInfo:
        spans = datasets.List(datasets.List(datasets.Value("float64")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": spans, "references": spans}),
            reference_urls=["https://github.com/line/lighthouse"],
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[Sequence[float]]],
        references: Sequence[Sequence[Sequence[float]]],
    ) -> dict[str, float]:
        return moment_metrics(predictions, references)
