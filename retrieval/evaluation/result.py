"""From a model and a split to the score matrix, ranks and metrics of both directions.

Every clip is encoded once, in batches, and scored at once against all captions: frames are never
kept, so memory does not grow with the number of clips. With several processes each encodes its
share of the clips.

Letters: N captions, B clips, T frames, D dimensions, S samples.
"""

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrieval.base.files import atomic_writer
from retrieval.evaluation.metrics.text_audio_retrieval.ranking import (
    all_ranks,
    chance_metrics,
    metrics_of_ranks,
    ranks_of_both_directions,
    row_blocks,
)
from retrieval.evaluation.score_matrix import captions_of, similarity_matrix

NUM_TOP = 10  # file names listed for each query in ranks.csv


def retrieval_metrics(
    scores: torch.Tensor | np.ndarray, relevant: Sequence[Sequence[int]]
) -> dict[str, float]:
    """mAP@10, R@1, R@5 and R@10 of the queries in the rows of scores (N, B), as fractions.

    relevant[n] are the columns that are right for query n. Ties count against the query. With ten
    candidates or fewer R@10 is 1 whatever the model does (`few_clips_warning`). Raises ValueError
    for NaN scores and for impossible indices.
    """
    return metrics_of_ranks(all_ranks(_to_numpy(scores), relevant))


@dataclass(frozen=True)
class EvaluationResult:
    """A scored split. Rows of `scores` are captions (or other queries), columns clips."""

    split: str
    scores: torch.Tensor  # float32 (N, B), CPU; may be a memory map
    captions: list[str]  # N
    # N, the column of the clip that the caption was written for, or else of one that is right
    clips: list[int]
    clip_ids: list[str]  # B
    file_names: list[str]  # B
    # N, the columns that are right; not given: those with the clip id of the caption's own clip
    relevant: list[list[int]] = None
    map_at: Sequence[int] = (10,)
    # direction -> ranks of each query's relevant candidates
    ranks: dict[str, list[np.ndarray]] = field(init=False)
    # direction -> {"mAP@10", "R@1", "R@5", "R@10"}, fractions
    metrics: dict[str, dict[str, float]] = field(init=False)

    def __post_init__(self) -> None:
        if self.relevant is None:
            columns: dict[str, list[int]] = {}
            for column, clip_id in enumerate(self.clip_ids):
                columns.setdefault(clip_id, []).append(column)
            object.__setattr__(
                self, "relevant", [columns[self.clip_ids[clip]] for clip in self.clips]
            )
        ranks = ranks_of_both_directions(_to_numpy(self.scores), self.relevant)
        object.__setattr__(self, "ranks", ranks)
        object.__setattr__(
            self,
            "metrics",
            {
                direction: metrics_of_ranks(queries, self.map_at)
                for direction, queries in ranks.items()
            },
        )

    @property
    def chance(self) -> dict[str, dict[str, float]]:
        """The metrics that a random order is expected to get."""
        num_candidates = {"text_to_audio": len(self.clip_ids), "audio_to_text": len(self.captions)}
        num_relevant = {
            direction: [len(query) for query in queries]
            for direction, queries in self.ranks.items()
        }
        return {
            name: chance_metrics(num_candidates[name], num_relevant[name], self.map_at)
            for name in num_relevant
        }


def evaluate_split(model: torch.nn.Module, split: Any, **settings: Any) -> EvaluationResult:
    """Score all captions of a ClipSplit against all its clips; `settings` are those of
    `similarity_matrix`.

    Raises UserError for a split without captions and for a model that gives NaN.
    """
    captions, clips = captions_of(split)
    scores = similarity_matrix(model, captions, split, **settings)
    return EvaluationResult(
        split.name, scores, captions, clips, list(split.clip_ids), list(split.file_names)
    )


def few_clips_warning(num_clips: int) -> str | None:
    """What to tell the user of a split with too few clips for R@10, or None."""
    clips = "1 clip, which is" if num_clips == 1 else f"{num_clips} clips, all of them"
    return f"only {clips} in every top 10: R@10 says nothing" if num_clips <= 10 else None


def format_table(result: EvaluationResult) -> str:
    """Both directions and their chance levels in percent, as text."""
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


def write_metrics(path: str | Path, results: dict[str, Any], environment: dict[str, Any]) -> None:
    """JSON of `results`, of the environment (checkpoint.environment()) and of what evaluate.save
    adds, under its names.
    """
    provenance = {
        "_timestamp": datetime.now().isoformat(),
        "_git_commit_hash": environment["git_commit"],
        "_evaluate_version": environment["libraries"]["evaluate"],
        "_python_version": sys.version,
        "_interpreter_path": sys.executable,
    }
    with atomic_writer(Path(path)) as file:
        json.dump(
            results | {"environment": environment} | provenance, file, indent=2, ensure_ascii=False
        )
        file.write("\n")


def write_ranks(path: str | Path, result: EvaluationResult) -> None:
    """CSV, a row a query: query, clip, rank and score, the ten best file names, and the ranks of
    all right clips.

    clip, rank and score are those of one clip, the right one that stands highest: of several right
    ones it may be another for another model. As in the metrics, tied clips stand before the right
    one.
    """
    with atomic_writer(Path(path)) as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "query",
                "clip",
                "rank",
                "score",
                *(f"top_{place}" for place in range(1, NUM_TOP + 1)),
                "ranks",
            ]
        )
        for first, rows in row_blocks(_to_numpy(result.scores)):
            for row, scores in enumerate(rows, first):
                right, ranks = result.relevant[row], result.ranks["text_to_audio"][row]
                clip, best = best_right(scores, right), first_columns(scores, right, NUM_TOP)
                names = [result.file_names[index] for index in best] + [""] * (NUM_TOP - len(best))
                head = [
                    result.captions[row],
                    result.file_names[clip],
                    ranks[0],
                    f"{scores[clip]:.6f}",
                ]
                writer.writerow([*head, *names, " ".join(map(str, ranks))])


def best_right(scores: np.ndarray, right: Sequence[int]) -> int:
    """Of the columns that are right for a query, scores (B,), the one that scores highest."""
    right = np.sort(right)
    return int(right[scores[right].argmax()])


def first_columns(scores: np.ndarray, right: Sequence[int], number: int) -> list[int]:
    """The first columns of a query's ranking, scores (B,); as in the metrics, tied ones stand
    before those that are right.
    """
    last = max(0, len(scores) - number)
    # all that tie with the last one, too
    candidates = np.flatnonzero(scores >= np.partition(scores, last)[last])
    order = np.lexsort((np.isin(candidates, right), -scores[candidates]))
    return candidates[order[:number]].tolist()


def _to_numpy(scores: torch.Tensor | np.ndarray) -> np.ndarray:
    """Without a copy where numpy knows the type; half precision as float32, which orders it the
    same.
    """
    if not isinstance(scores, torch.Tensor):
        return np.asarray(scores)
    scores = scores.detach().cpu()
    return (scores if scores.dtype == torch.float64 else scores.float()).numpy()
