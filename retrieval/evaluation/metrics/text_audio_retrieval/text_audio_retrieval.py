"""Text-audio retrieval as an `evaluate.Metric`; needs no network.

metric = evaluate.load("retrieval/evaluation/metrics/text_audio_retrieval")
"""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np

import evaluate

from .ranking import metrics_of_ranks, ranks_of_both_directions

_DESCRIPTION = """
mAP@k and R@k of text-to-audio and audio-to-text retrieval from one matrix of similarities.
Ties count against the query, so a model that scores everything alike gets zero.
AP@k is the sum of the precisions at the hits within k, divided by the number of relevant candidates
(DCASE); R@k is the share of queries with at least one relevant candidate within k.
"""

_INPUTS = """
Args:
    predictions: similarities (texts, audios), one row per text.
    references: for each text the indices of its relevant audios (columns).
    map_at: depth of mAP (10), or several.
    recall_at: depths of R (1, 5, 10).
Returns:
    {"text_to_audio": {"mAP@10", "R@1", "R@5", "R@10"}, "audio_to_text": the same}, fractions.
Example:
    >>> metric = evaluate.load("retrieval/evaluation/metrics/text_audio_retrieval")
    >>> both = metric.compute(predictions=[[0.9, 0.1], [0.8, 0.3]], references=[[0], [1]])
    >>> both["text_to_audio"]["mAP@10"]
    0.75
"""


class TextAudioRetrieval(evaluate.Metric):
    """Both directions of retrieval from one score matrix."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.List(datasets.Value("float32")),
                    "references": datasets.List(datasets.Value("int64")),
                }
            ),
            reference_urls=[
                "https://dcase.community/challenge2025/task-language-based-audio-retrieval"
            ],
        )

    def _compute(
        self,
        predictions: Any,
        references: Sequence[Sequence[int]],
        map_at: int | Sequence[int] = 10,
        recall_at: Sequence[int] = (1, 5, 10),
    ) -> dict[str, dict[str, float]]:
        ranks = ranks_of_both_directions(np.asarray(predictions, dtype=np.float32), references)
        return {
            direction: metrics_of_ranks(queries, map_at, recall_at)
            for direction, queries in ranks.items()
        }
