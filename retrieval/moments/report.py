"""Look inside scored moments: DIR/moments.html, a page that needs no network, and its figures.

    python evaluate.py --moments --checkpoint runs/tap/best --report DIR

    DIR/moments.html         metrics with intervals, queries of lowest IoU with sound and stretches,
                             metrics by lengths, share of right moments by score
    DIR/moments_report.json  the same figures

Letters: Q queries, T frames of a recording.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrieval.base.progress import bar
from retrieval.base.versions import git_commit
from retrieval.data import ClipSplit
from retrieval.evaluation.attention import MAX_POINTS, spectrogram
from retrieval.evaluation.metrics.audio_moment_retrieval.scoring import (
    MOST_PREDICTIONS,
    NAMES,
    overlaps,
    predicted_windows,
    true_windows,
)
from retrieval.evaluation.outputs import MOMENTS_FIGURES, MOMENTS_PAGE, ScoringRecord
from retrieval.evaluation.report.figures import bootstrap_settings, intervals, quantile_groups
from retrieval.evaluation.report.media import MAX_BYTES, sound_uri, spectrogram_uri
from retrieval.evaluation.report.page import fill, write_page
from retrieval.moments.evaluation import clips_of, whole_recordings
from retrieval.moments.locator import RUN_PROBABILITY, Locator
from retrieval.moments.result import MomentResult
from retrieval.moments.split import read_blocks

MAX_SECONDS = 300.0  # of a recording that is drawn and heard: around the first true window
NUM_DRAWN = 5  # moments of an answer
RIGHT = 0.5  # IoU of a right moment in the reliability curve
NUM_BINS = 10
BIN_METRICS = ("R1@0.5", "mIoU", "mAP")
Figures = dict[str, Any]


# --- figures ---


def collect(
    result: MomentResult,
    split: ClipSplit,
    record: ScoringRecord,
    about: dict[str, Any],
    num_queries: int,
) -> Figures:
    """Collect all figures, as JSON; arguments as in `write_report`."""
    kept = np.flatnonzero(result.is_scored)
    all_clips = clips_of(split)
    clips = [all_clips[query] for query in kept]
    result = MomentResult(
        [result.answers[query] for query in kept],
        [result.truths[query] for query in kept],
        result.ious[kept],
        result.precisions[kept],
    )
    columns = result.columns  # (Q, 7)
    bounds = intervals(np.zeros_like(columns), columns, clips)
    whole = whole_recordings(result.truths).metrics
    heard = {truth.vid: truth.duration for truth in result.truths}
    return {
        "about": {
            **record.to_json(),
            **about,
            "split": split.name,
            "num_clips": len(heard),
            "num_queries": len(result.truths),
            "num_windows": sum(len(truth.windows) for truth in result.truths),
            "hours": sum(heard.values()) / 3600,
            "git_commit": git_commit(),
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        },
        "metrics": {
            name: {"value": value, "low": own["low"], "high": own["high"], "whole": whole[name]}
            for (name, value), own in zip(result.metrics.items(), bounds, strict=True)
        },
        "bootstrap": bootstrap_settings(clips, "clips"),
        "hardest": hardest_queries(result, split, clips, num_queries),
        "breakdowns": breakdowns(result),
        "reliability": reliability(result, is_probability=about["method"] != "contribution"),
        "reliability_of_first": reliability(
            result, is_probability=about["method"] != "contribution", most=1
        ),
    }


def hardest_queries(
    result: MomentResult, split: ClipSplit, clips: Sequence[int], number: int
) -> list[Figures]:
    """Collect the queries of lowest IoU below 1; of equal ones the most confident answer first.

    Args:
        result: Q queries.
        split: The clips.
        clips: Clip of each query.
        number: Most queries.
    """
    scores = [answer.moments[0].score if answer.moments else -np.inf for answer in result.answers]
    wrong = [query for query in range(len(clips)) if result.ious[query] < 1]
    hardest = sorted(wrong, key=lambda query: (result.ious[query], -scores[query], query))
    return [
        {
            "number": query,
            "qid": result.truths[query].qid,
            "query": result.truths[query].query,
            "clip": clips[query],
            "file_name": split.file_names[clips[query]],
            "seconds": result.truths[query].duration,
            "iou": float(result.ious[query]),
            "windows": [list(window) for window in result.truths[query].windows],
            "moments": [list(moment) for moment in result.answers[query].moments[:NUM_DRAWN]],
        }
        for query in hardest[:number]
    ]


def breakdowns(result: MomentResult) -> list[Figures]:
    """Group the metrics by length, share and number of true windows, and by recording length."""
    columns, truths = result.columns, result.truths
    lengths = [[end - start for start, end in truth.windows] for truth in truths]
    shares = [sum(own) / truth.duration for own, truth in zip(lengths, truths)]
    groups = {
        ("mean length of the true windows", "seconds", "{:.1f}"): list(map(np.mean, lengths)),
        ("share of the recording that is true", "percent", "{:.0f}"): [100 * s for s in shares],
        ("length of the recording", "seconds", "{:.0f}"): [truth.duration for truth in truths],
        ("number of true windows", "windows", "{:.0f}"): list(map(len, lengths)),
    }
    return [
        {
            "by": by,
            "unit": unit,
            "bins": [
                {
                    "name": name,
                    "num_queries": len(rows),
                    **{key: float(columns[rows, NAMES.index(key)].mean()) for key in BIN_METRICS},
                }
                for name, rows in quantile_groups(np.array(values, dtype=float), form)
            ],
        }
        for (by, unit, form), values in groups.items()
    ]


def reliability(
    result: MomentResult, is_probability: bool, most: int = MOST_PREDICTIONS
) -> Figures:
    """Compare the scores of moments with the share of right ones, in bins.

    Right: IoU of RIGHT or more with a true window.

    Args:
        result: Q queries.
        is_probability: Put the scores into NUM_BINS equal bins of 0 to 1, in place of bins of about
            equally many moments.
        most: First moments of each query that count.

    Returns:
        `bins`, each with `low`, `high`, `mean_score`, `share_right` and `count`; `error`, the
        expected calibration error (mean of |mean_score - share_right|, weighed by the counts), None
        for scores that are no probabilities.
    """
    scores, right = [], []
    for answer, truth in zip(result.answers, result.truths):
        moments = answer.moments[:most]
        iou = overlaps(predicted_windows(moments), true_windows(truth.windows))  # (P, R)
        scores += [moment.score for moment in moments]
        right += (iou.max(axis=1, initial=0) >= RIGHT).tolist()
    values, hits = np.array(scores, dtype=float), np.array(right, dtype=bool)
    if is_probability:
        edges = np.arange(1, NUM_BINS) / NUM_BINS
    else:
        edges = np.quantile(values, np.arange(1, NUM_BINS) / NUM_BINS) if len(values) else []
    places = np.searchsorted(np.unique(edges), values, side="right")
    bins = [
        {
            "low": float(values[places == place].min()),
            "high": float(values[places == place].max()),
            "mean_score": float(values[places == place].mean()),
            "share_right": float(hits[places == place].mean()),
            "count": int((places == place).sum()),
        }
        for place in np.unique(places)
    ]
    gaps = [own["count"] * abs(own["mean_score"] - own["share_right"]) for own in bins]
    return {
        "iou": RIGHT,
        "num_moments": len(values),
        "bins": bins,
        "error": sum(gaps) / len(values) if is_probability and len(values) else None,
    }


# --- pictures and sounds ---


@dataclass
class Shown:
    """The part of a recording that a query shows; picture and sound None: left out."""

    start: float  # seconds
    seconds: float
    curve: str  # an SVG path in a box of num_points x 100
    num_points: int
    top: float  # value at the upper edge
    line: float | None  # y of the threshold
    picture: str | None = None
    sound: str | None = None


def gather_shown(
    hard: Sequence[Figures], split: ClipSplit, locator: Locator
) -> tuple[dict[int, Shown], int]:
    """Draw the hardest queries.

    Returns:
        The part of a recording that each query shows, by the query's number; and the number of
        queries without picture or sound, because the page is full.
    """
    shown, num_bytes, num_left_out = {}, 0, 0
    with bar(total=len(hard), desc="sounds and pictures", unit="clip", leave=False) as progress:
        for own in hard:
            model, rate = locator.model, split.sample_rate
            with locator.listening():
                text = model.encode_text([own["query"]]).float()
            located = locator.locate(text, locator.hear(read_blocks(split, own["clip"])))
            start = 0.0
            if own["seconds"] > MAX_SECONDS:
                middle = sum(own["windows"][0]) / 2
                start = min(max(0.0, middle - MAX_SECONDS / 2), own["seconds"] - MAX_SECONDS)
            seconds = min(own["seconds"] - start, MAX_SECONDS)
            curve = located.curves[0]
            frames = np.arange(len(curve)) * located.frame_seconds
            inside = (frames >= start) & (frames < start + seconds)
            part = Shown(start, seconds, *curve_path(curve[inside], float(curve.max()), locator))
            shown[own["number"]] = part
            samples = split.read(own["clip"], round(start * rate), round((start + seconds) * rate))
            uris = {"picture": _picture(locator, samples), "sound": sound_uri(samples, rate)}
            for name, uri in uris.items():
                if num_bytes + len(uri) <= MAX_BYTES:
                    setattr(part, name, uri)
                    num_bytes += len(uri)
            num_left_out += part.picture is None or part.sound is None
            progress.update()
    return shown, num_left_out


def _picture(locator: Locator, samples: np.ndarray) -> str:
    model = locator.model
    size = round(model.clip_seconds * model.sample_rate)
    parts = [
        spectrogram(model, torch.from_numpy(samples[first : first + size]))
        for first in range(0, len(samples), size)
    ]
    return spectrogram_uri(np.concatenate(parts, axis=1))


def curve_path(
    curve: np.ndarray, highest: float, locator: Locator
) -> tuple[str, int, float, float | None]:
    """Draw a curve as steps.

    Args:
        curve: (T,), the part of the recording that is shown.
        highest: Highest value of the whole recording.
        locator: Made the curve.

    Returns:
        SVG path in a box of num_points x 100; num_points; value at the upper edge; y of the
        threshold, None for contributions.
    """
    groups = np.array_split(curve, min(MAX_POINTS, len(curve)))
    levels = np.array([group.max() for group in groups])
    is_probability = locator.method != "contribution"
    top = 1.0 if is_probability else max(1.08 * float(levels.max()), 1e-6)
    heights = (100 * (1 - np.clip(levels / top, 0, 1))).tolist()
    steps = " ".join(f"V{height:.1f}H{place}" for place, height in enumerate(heights, 1))
    threshold = None
    if locator.method == "head":
        threshold = float(locator.model.moment_head.threshold) * highest
    elif locator.method == "runs":
        threshold = RUN_PROBABILITY
    line = None if threshold is None else 100 * (1 - threshold)
    return f"M0,100 {steps} V100Z", len(levels), top, line


# --- page ---


def write_report(
    result: MomentResult,
    split: ClipSplit,
    locator: Locator,
    folder: Path,
    record: ScoringRecord,
    about: dict[str, Any],
    num_queries: int,
) -> None:
    """Write page and figures; both files appear together, when they are complete.

    Args:
        result: Scored answers to the queries of `split`.
        split: The clips.
        locator: Draws its curves.
        folder: Made if absent.
        record: Origin of the answers.
        about: Settings of the answers: `method`, ...
        num_queries: Queries of lowest IoU that are shown with sound and pictures.

    Raises:
        UserError: The disk is full or read-only.
    """
    figures = collect(result, split, record, about, num_queries)
    shown, num_left_out = gather_shown(figures["hardest"], split, locator)
    page = fill(
        Path(__file__).with_name("report.html"), **figures, shown=shown, num_left_out=num_left_out
    )
    write_page(folder / MOMENTS_PAGE, page, folder / MOMENTS_FIGURES, figures)
