"""Write DIR/report.html and DIR/report.json of a scored split."""

from datetime import datetime
from pathlib import Path

from retrieval.base.versions import git_commit
from retrieval.data import ClipSplit
from retrieval.evaluation.metrics.text_audio_retrieval.ranking import rank_histogram
from retrieval.evaluation.outputs import REPORT_FIGURES, REPORT_PAGE, ScoringRecord
from retrieval.evaluation.report.against import OtherRun
from retrieval.evaluation.report.figures import (
    Figures,
    breakdowns,
    difference_figures,
    duplicate_figures,
    hardest_queries,
    has_common_queries,
    metric_figures,
    query_figures,
    style_figures,
)
from retrieval.evaluation.report.media import gather_media
from retrieval.evaluation.report.near_duplicates import find_near_duplicates
from retrieval.evaluation.report.page import render, write_page
from retrieval.evaluation.result import EvaluationResult, few_clips_warning
from retrieval.evaluation.score_matrix import Scorer


def write_report(
    result: EvaluationResult,
    split: ClipSplit,
    scorer: Scorer,
    folder: Path,
    record: ScoringRecord,
    num_queries: int,
    other: OtherRun | None = None,
    styles: dict[str, EvaluationResult] | None = None,
) -> None:
    """Write page and figures; both files appear together, when they are complete.

    Args:
        result: Scores and ranks.
        split: The clips that were scored.
        scorer: Names the checkpoints whose attention is drawn.
        folder: Made if absent.
        record: Origin of the scores.
        num_queries: Hardest queries that are shown with sound and pictures.
        other: Run to compare with.
        styles: Results of queries in other styles, by style.

    Raises:
        UserError: The disk is full or read-only.
    """
    figures = collect(result, split, record, num_queries, other, styles)
    shown: dict[int, list[int]] = {}  # clip -> queries, in the order of the page
    for hard in figures["hardest"]:
        for answer in (hard["right"], *hard["returned"]):
            shown.setdefault(answer["clip"], []).append(hard["number"])
    page = render(figures, gather_media(scorer, split, result.captions, shown))
    write_page(folder / REPORT_PAGE, page, folder / REPORT_FIGURES, figures)


def collect(
    result: EvaluationResult,
    split: ClipSplit,
    record: ScoringRecord,
    num_queries: int,
    other: OtherRun | None,
    styles: dict[str, EvaluationResult] | None = None,
) -> Figures:
    """Collect all figures, as JSON; arguments as in `write_report`."""
    by_query = record.relevance is not None or has_common_queries(result)
    found = find_near_duplicates(result.captions, result.relevant)
    bars, counts, medians = rank_histogram(result.ranks)
    seconds = (split.num_samples / split.sample_rate).tolist()
    about = {
        **record.to_json(),
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
        "about": about,
        **metric_figures(result, by_query),
        "styles": style_figures(styles) if styles else [],
        "against": difference_figures(result, other, by_query) if other else None,
        "rank_histogram": {"ranks": bars, **histogram},
        "hardest": hardest_queries(result, num_queries, found.also_right),
        "breakdowns": breakdowns(result, seconds, split.column("keywords")),
        "near_duplicates": duplicate_figures(result, found),
        "queries": query_figures(result, other),
    }
