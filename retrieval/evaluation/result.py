"""A scored split: ranks and metrics of both directions.

Letters: N captions or other queries, B clips.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from retrieval.data import ClipSplit
from retrieval.evaluation.metrics.text_audio_retrieval.ranking import (
    all_ranks,
    chance_metrics,
    metrics_of_ranks,
    ranks_of_both_directions,
)
from retrieval.evaluation.score_matrix import captions_of, similarity_matrix


def retrieval_metrics(
    scores: torch.Tensor | np.ndarray, relevant: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Return mAP@10, R@1, R@5 and R@10 of a score matrix.

    Ties count against the query. With ten candidates or fewer R@10 is 1, whatever the model does.

    Args:
        scores: (N, B), a row for each query.
        relevant: For each query the columns of its right candidates.

    Returns:
        Fractions by name.

    Raises:
        ValueError: A score is NaN, a query has no right candidate, or a column is out of range.
    """
    return metrics_of_ranks(all_ranks(_to_numpy(scores), relevant))


@dataclass(frozen=True)
class EvaluationResult:
    """A scored split. Rows of `scores` are captions or other queries, columns clips."""

    split: str
    scores: torch.Tensor  # float32 (N, B), CPU; may be a memory map
    captions: list[str]  # N
    clips: list[int]  # N, the column of each caption's clip; for other queries, of one right clip
    clip_ids: list[str]  # B
    file_names: list[str]  # B
    # N, the columns of right clips; None: all with the clip id of the caption's clip
    relevant: list[list[int]] = None
    map_at: Sequence[int] = (10,)
    # direction -> ranks of each query's relevant candidates
    ranks: dict[str, list[np.ndarray]] = field(init=False)
    # direction -> {"mAP@10", "R@1", "R@5", "R@10"}, fractions
    metrics: dict[str, dict[str, float]] = field(init=False)

    best_by: ClassVar = "mAP@10"  # the metric that chooses the best epoch

    def __post_init__(self) -> None:
        if self.relevant is None:
            columns: dict[str, list[int]] = {}
            for column, clip_id in enumerate(self.clip_ids):
                columns.setdefault(clip_id, []).append(column)
            relevant = [columns[self.clip_ids[clip]] for clip in self.clips]
            object.__setattr__(self, "relevant", relevant)
        ranks = ranks_of_both_directions(_to_numpy(self.scores), self.relevant)
        metrics = {
            direction: metrics_of_ranks(queries, self.map_at)
            for direction, queries in ranks.items()
        }
        object.__setattr__(self, "ranks", ranks)
        object.__setattr__(self, "metrics", metrics)

    @property
    def main(self) -> dict[str, float]:
        """Metrics of text to audio by name."""
        return self.metrics["text_to_audio"]

    def table(self) -> str:
        """Format the metrics as lines of text; see `format_table`."""
        return format_table(self)

    @property
    def curves(self) -> dict[str, float]:
        """Metrics by SPLIT/DIRECTION/METRIC, as curves and columns are named."""
        return {
            f"{self.split}/{direction}/{name}": value
            for direction, metrics in self.metrics.items()
            for name, value in metrics.items()
        }

    @cached_property
    def chance(self) -> dict[str, dict[str, float]]:
        """Expected metrics of a random order, by direction."""
        num_candidates = {"text_to_audio": len(self.clip_ids), "audio_to_text": len(self.captions)}
        return {
            direction: chance_metrics(
                num_candidates[direction], [len(query) for query in queries], self.map_at
            )
            for direction, queries in self.ranks.items()
        }


def evaluate_split(model: torch.nn.Module, split: ClipSplit, **settings: Any) -> EvaluationResult:
    """Score all captions of a split against all its clips.

    Args:
        model: A DualEncoder, not wrapped.
        split: Clips with captions.
        **settings: Keyword arguments of `similarity_matrix`.

    Raises:
        UserError: The split has no captions, or a score is NaN.
    """
    captions, clips = captions_of(split)
    scores = similarity_matrix(model, captions, split, **settings)
    return EvaluationResult(
        split.name, scores, captions, clips, list(split.clip_ids), list(split.file_names)
    )


def few_clips_warning(num_clips: int) -> str | None:
    """Return a warning if a split has too few clips for R@10, else None."""
    clips = "1 clip, which is" if num_clips == 1 else f"{num_clips} clips, all of them"
    return f"only {clips} in every top 10: R@10 says nothing" if num_clips <= 10 else None


def format_table(result: EvaluationResult) -> str:
    """Format both directions and their chance levels, in percent, as lines of text."""
    rows = {name.replace("_", " "): values for name, values in result.metrics.items()}
    rows |= {f"chance, {name.replace('_', ' ')}": values for name, values in result.chance.items()}
    names = list(result.metrics["text_to_audio"])
    header = f"{len(result.clip_ids)} clips, {len(result.captions)} captions, %"
    width = max(len(title) for title in [header, *rows])
    lines = [f"{header:<{width}}" + "".join(f"{name:>8}" for name in names)]
    lines += [
        f"{title:<{width}}" + "".join(f"{100 * values[name]:8.2f}" for name in names)
        for title, values in rows.items()
    ]
    return "\n".join(lines)


def format_styles(result: EvaluationResult, styles: dict[str, EvaluationResult]) -> str:
    """Format text to audio of the styles in percent, with the main result as first row."""
    rows = {"captions above": result} | {f"style {name}": one for name, one in styles.items()}
    names = list(next(iter(styles.values())).metrics["text_to_audio"])
    header = f"text to audio, all {len(result.clip_ids)} clips, %"
    width = max(len(title) for title in [header, *rows])
    lines = [f"{header:<{width}}" + "".join(f"{name:>8}" for name in [*names, "queries"])]
    for title, one in rows.items():
        values = "".join(f"{100 * one.metrics['text_to_audio'][name]:8.2f}" for name in names)
        lines.append(f"{title:<{width}}{values}{len(one.captions):8}")
    return "\n".join(lines)


def _to_numpy(scores: torch.Tensor | np.ndarray) -> np.ndarray:
    """Convert without a copy if numpy has the type; half precision becomes float32."""
    if not isinstance(scores, torch.Tensor):
        return np.asarray(scores)
    scores = scores.detach().cpu()
    return (scores if scores.dtype == torch.float64 else scores.float()).numpy()
