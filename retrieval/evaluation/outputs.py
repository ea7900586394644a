"""Write and read the results of evaluate.py: metrics.json, ranks.csv, style_ranks.csv.

Loads no torch.
"""

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval.base.errors import one_line
from retrieval.base.files import atomic_writer
from retrieval.base.versions import environment
from retrieval.evaluation.metrics.text_audio_retrieval.ranking import (
    best_right,
    first_columns,
    row_blocks,
)

if TYPE_CHECKING:
    from retrieval.evaluation.result import EvaluationResult

METRICS, RANKS = "metrics.json", "ranks.csv"
STYLE_RANKS = "style_ranks.csv"  # ranks.csv of the captions of --captions
SCORES, SCORES_RECORD = "scores.npy", "scores.json"  # score_files.py
REPORT_PAGE, REPORT_FIGURES = "report.html", "report.json"  # report/
# of evaluate.py --moments, in retrieval/moments
MOMENTS, MOMENTS_TABLE = "moments.json", "moments.csv"
MOMENTS_PAGE, MOMENTS_FIGURES = "moments.html", "moments_report.json"
NUM_TOP = 10  # file names listed for each query in ranks.csv
TOP_COLUMNS = [f"top_{place}" for place in range(1, NUM_TOP + 1)]
RANKS_HEADER = ["query", "clip", "rank", "score", *TOP_COLUMNS, "ranks"]


@dataclass(frozen=True)
class ScoringRecord:
    """Origin of a score matrix, stored in metrics.json, scores.json and report.json."""

    checkpoint: str | list[str]  # several: their mean
    cache: str
    fingerprint: str  # of the clips and captions of the split
    sample_rate: int  # Hz
    mixed_precision: str  # "no", "bf16" or "fp16"
    relevance: str | None = None  # file with the queries; None: the captions of the split
    captions: str | None = None  # file with the captions by style
    weights: list[float] | None = None  # of several checkpoints, in their order; None: equal ones
    fitted_on: dict[str, Any] | None = None  # the split that gave the weights, its mAP@10

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def name_mean(checkpoints: list[str], weights: list[float] | None) -> str:
    """List checkpoints, with their weights if they have some."""
    if weights is None:
        return ", ".join(checkpoints)
    return ", ".join(
        f"{weight:.3g} x {checkpoint}"
        for checkpoint, weight in zip(checkpoints, weights, strict=True)
    )


def write_results(
    folder: Path,
    result: "EvaluationResult",
    record: ScoringRecord,
    styles: "dict[str, EvaluationResult] | None" = None,
) -> None:
    """Write metrics.json and ranks.csv, with results by style also style_ranks.csv.

    Raises UserError if the disk is full or read-only.
    """
    write_metrics(folder / METRICS, result, record, styles)
    write_ranks(folder / RANKS, result)
    if styles:
        write_style_ranks(folder / STYLE_RANKS, styles)
    names = (METRICS, RANKS, STYLE_RANKS) if styles else (METRICS, RANKS)
    print("written: " + ", ".join(str(folder / name) for name in names))


def style_metrics(result: "EvaluationResult") -> dict[str, Any]:
    """Return the metrics and sizes of the captions of one style, as JSON."""
    return {
        **result.metrics,
        "num_captions": len(result.captions),
        "num_clips": len({clip for columns in result.relevant for clip in columns}),
        "num_candidates": len(result.clip_ids),
        "chance": result.chance,
    }


def write_metrics(
    path: Path,
    result: "EvaluationResult",
    record: ScoringRecord,
    styles: "dict[str, EvaluationResult] | None" = None,
) -> None:
    """Write metrics and origin of a result."""
    by_style = {}
    if styles:
        by_style = {"styles": {style: style_metrics(one) for style, one in styles.items()}}
    content = {
        **result.metrics,
        **record.to_json(),
        "split": result.split,
        "num_clips": len(result.clip_ids),
        "num_captions": len(result.captions),
        "chance": result.chance,
        **by_style,
        **provenance(),
    }
    with atomic_writer(path) as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


def provenance() -> dict[str, Any]:
    """Return versions, time and commit, also under the keys that evaluate.save would add."""
    versions = environment()
    return {
        "environment": versions,
        "_timestamp": datetime.now().isoformat(),
        "_git_commit_hash": versions["git_commit"],
        "_evaluate_version": versions["libraries"]["evaluate"],
        "_python_version": sys.version,
        "_interpreter_path": sys.executable,
    }


def write_ranks(path: Path, result: "EvaluationResult") -> None:
    """Write a CSV with a row for each query.

    Its columns are query, clip, rank, score, top_1 to top_10, and the ranks of all right clips.
    clip, rank and score describe the best-ranked right clip; of several right clips another model
    may rank another one best. As in the metrics, tied clips rank before it.
    """
    with atomic_writer(path) as file:
        writer = csv.writer(file)
        writer.writerow(RANKS_HEADER)
        writer.writerows(_rank_rows(result))


def write_style_ranks(path: Path, styles: "dict[str, EvaluationResult]") -> None:
    """Write the rows of `write_ranks` for each style, with the style in front."""
    with atomic_writer(path) as file:
        writer = csv.writer(file)
        writer.writerow(["style", *RANKS_HEADER])
        for style, result in styles.items():
            writer.writerows([style, *row] for row in _rank_rows(result))


def _rank_rows(result: "EvaluationResult") -> Iterator[list[Any]]:
    for first, rows in row_blocks(result.scores.numpy()):
        for row, scores in enumerate(rows, first):
            right, ranks = result.relevant[row], result.ranks["text_to_audio"][row]
            clip = best_right(scores, right)
            best = first_columns(scores, right, NUM_TOP)
            names = [result.file_names[index] for index in best] + [""] * (NUM_TOP - len(best))
            head = [result.captions[row], result.file_names[clip], ranks[0]]
            yield [*head, f"{scores[clip]:.6f}", *names, " ".join(map(str, ranks))]


@dataclass(frozen=True)
class RankTable:
    """Contents of ranks.csv, N queries."""

    queries: list[str]
    clips: list[str]  # file name of the right clip that stands highest
    first: list[str]  # file name that was returned first
    ranks: list[np.ndarray]  # of all right clips, ascending


def read_ranks(path: Path) -> RankTable:
    """Read a file of `write_ranks`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged.
    """
    with open(path, encoding="utf-8", newline="") as file:
        try:
            rows = list(csv.DictReader(file))
            table = RankTable(
                [row["query"] for row in rows],
                [row["clip"] for row in rows],
                [row["top_1"] for row in rows],
                [np.array([int(rank) for rank in row["ranks"].split()]) for row in rows],
            )
        except (KeyError, AttributeError, csv.Error) as error:
            raise ValueError(one_line(error)) from None
    if not rows or not all(map(len, table.ranks)):
        raise ValueError(f"{path.name} has no queries, or one without a rank")
    return table
