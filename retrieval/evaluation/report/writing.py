"""From a scored split to DIR/report.html and DIR/report.json."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from retrieval.base.files import atomic_writer
from retrieval.base.versions import git_commit
from retrieval.data import ClipSplit
from retrieval.evaluation.outputs import REPORT_FIGURES, REPORT_PAGE
from retrieval.evaluation.ranks import rank_histogram
from retrieval.evaluation.report.against import OtherRun
from retrieval.evaluation.report.figures import (
    Figures,
    breakdowns,
    difference_figures,
    duplicate_figures,
    hardest_queries,
    metric_figures,
    query_figures,
)
from retrieval.evaluation.report.media import gather_media
from retrieval.evaluation.report.near_duplicates import find_near_duplicates
from retrieval.evaluation.report.page import render
from retrieval.evaluation.result import EvaluationResult, few_clips_warning
from retrieval.evaluation.score_matrix import Scorer


def write_report(
    result: EvaluationResult,
    split: ClipSplit,
    scorer: Scorer,
    folder: Path,
    about: dict[str, Any],
    num_queries: int,
    other: OtherRun | None = None,
) -> None:
    """Page and figures; `num_queries` hardest queries are shown with sound and pictures. Both files
    appear when both are whole. Raises UserError.
    """
    figures = collect(result, split, about, num_queries, other)
    media = gather_media(scorer, split, result.captions, clips_shown(figures))
    page = render(figures, media)
    with (
        atomic_writer(folder / REPORT_PAGE) as html,
        atomic_writer(folder / REPORT_FIGURES) as numbers,
    ):
        html.write(page)
        json.dump(figures, numbers, indent=1, ensure_ascii=False)
        numbers.write("\n")
    print(
        f"written: {folder / REPORT_PAGE} ({len(page.encode()) / 2**20:.1f} MiB),"
        f" {folder / REPORT_FIGURES}"
    )


def collect(
    result: EvaluationResult,
    split: ClipSplit,
    about: dict[str, Any],
    num_queries: int,
    other: OtherRun | None,
) -> Figures:
    """All that is said, as JSON; `about` is where the scores come from."""
    by_query = "relevance" in about
    found = find_near_duplicates(result.captions, result.relevant)
    ranks, counts, medians = rank_histogram(result.ranks)
    seconds = (split.num_samples / split.sample_rate).tolist()
    head = about | {
        "split": result.split,
        "num_clips": len(result.clip_ids),
        "num_captions": len(result.captions),
        "hours": sum(seconds) / 3600,
        "warning": few_clips_warning(len(result.clip_ids)),
        "git_commit": git_commit(),
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    histogram = {
        name: {"counts": counts[name].tolist(), "median": medians[name]} for name in counts
    }
    return {
        "about": head,
        **metric_figures(result, by_query),
        "against": difference_figures(result, other, by_query) if other else None,
        "rank_histogram": {"ranks": ranks, **histogram},
        "hardest": hardest_queries(result, num_queries, found.also_right),
        "breakdowns": breakdowns(result, seconds, split.column("keywords")),
        "near_duplicates": duplicate_figures(result, found),
        "queries": query_figures(result, other),
    }


def clips_shown(figures: Figures) -> dict[int, list[int]]:
    """The clips of the hardest queries in the order of the page, and the queries that each is shown
    for.
    """
    shown: dict[int, list[int]] = {}
    for hard in figures["hardest"]:
        for answer in (hard["right"], *hard["returned"]):
            shown.setdefault(answer["clip"], []).append(hard["number"])
    return shown
