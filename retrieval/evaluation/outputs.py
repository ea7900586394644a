"""What evaluate.py leaves behind, and where: checked before anything is scored, written at the end.
Light to import.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval.base.access import check_readable
from retrieval.base.errors import UserError

if TYPE_CHECKING:
    from retrieval.evaluation.result import EvaluationResult

METRICS, RANKS = "metrics.json", "ranks.csv"
REPORT_PAGE, REPORT_FIGURES = "report.html", "report.json"


def check_checkpoints(checkpoints: Sequence[Path]) -> None:
    """Raises UserError for what is neither a model folder nor a file, and for a repeated one."""
    for checkpoint in checkpoints:
        check_readable(checkpoint, "checkpoint")
        if not checkpoint.exists():
            raise UserError(
                f"checkpoint {checkpoint} does not exist; train.py writes RUN/best and RUN/last,"
                " and a model of the Hugging Face hub is fetched by: hf download NAME"
                " --local-dir DIR"
            )
    if len({checkpoint.resolve() for checkpoint in checkpoints}) < len(checkpoints):
        raise UserError("--checkpoint: one is given twice; a mean is taken over different models")


def default_output(checkpoints: Sequence[Path], name: str) -> Path:
    """CHECKPOINT/results/NAME. Raises UserError where there is no one folder to put it in."""
    if len(checkpoints) > 1:
        raise UserError(
            "several checkpoints have no folder of their own for their common result: add"
            " --output DIR"
        )
    if checkpoints[0].is_file():
        raise UserError(
            f"checkpoint {checkpoints[0]} is a file and has no folder for its result: add"
            " --output DIR"
        )
    return checkpoints[0] / "results" / name


def check_default_output(output: Path | None, cache: Path, is_other_cache: bool) -> None:
    """Raises UserError where the result on a cache that is not the run's own would take the place
    of the run's own result in `output`.
    """
    if output is not None and is_other_cache:
        raise UserError(
            f"{output} is for results on the cache of the run, and {cache} is another one: add"
            " --output DIR for this result"
        )


def report(result: "EvaluationResult", output: Path, about: dict[str, Any]) -> None:
    """The table in the terminal, metrics.json (with `about`) and ranks.csv in `output`. Raises
    UserError.
    """
    from retrieval.base.versions import environment
    from retrieval.evaluation.result import (
        few_clips_warning,
        format_table,
        write_metrics,
        write_ranks,
    )

    print(format_table(result))
    num_clips = len(result.clip_ids)
    if warning := few_clips_warning(num_clips):
        print(f"warning: {warning}", file=sys.stderr)
    about = about | {
        "split": result.split,
        "num_clips": num_clips,
        "num_captions": len(result.captions),
        "chance": result.chance,
    }
    write_metrics(output / METRICS, result.metrics | about, environment())
    write_ranks(output / RANKS, result)
    print(f"written: {output / METRICS}, {output / RANKS}")
