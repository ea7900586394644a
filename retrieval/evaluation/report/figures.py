"""Figures of a report: metrics with intervals, the hardest queries, two runs side by side.

Letters: N captions or other queries, B clips, Q queries of one direction, M metrics.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from retrieval.evaluation.bootstrap import narrow_intervals_warning, paired_bootstrap, query_metrics
from retrieval.evaluation.metrics.text_audio_retrieval.ranking import (
    best_right,
    first_columns,
    metrics_of_ranks,
    transpose_relevance,
)
from retrieval.evaluation.report.against import OtherRun
from retrieval.evaluation.report.near_duplicates import (
    THRESHOLD,
    NearDuplicates,
    forgiving_ranks,
    words,
)
from retrieval.evaluation.result import EvaluationResult

NUM_RESAMPLES, CONFIDENCE, SEED = 10_000, 0.95, 0  # of the bootstrap
NUM_RETURNED, MAX_CAPTIONS = 3, 10  # wrong clips shown for a query, captions of a clip
NUM_BINS = 5
BIN_METRICS = ("mAP@10", "R@10")
Figures = dict[str, Any]


def drawn_units(result: EvaluationResult, by_query: bool) -> tuple[str, dict[str, list[Any]]]:
    """Name the unit that the bootstrap draws, and list each query's unit by direction.

    It draws clips with their captions; with `by_query`, single queries, because they were not
    written for one clip.
    """
    if by_query:
        return "queries", {
            "text_to_audio": list(range(len(result.captions))),
            "audio_to_text": list(range(len(result.ranks["audio_to_text"]))),
        }
    # the rows of audio to text
    asked = sorted({column for columns in result.relevant for column in columns})
    return "clips", {
        "text_to_audio": [result.clip_ids[clip] for clip in result.clips],
        "audio_to_text": [result.clip_ids[clip] for clip in asked],
    }


def metric_figures(result: EvaluationResult, by_query: bool) -> Figures:
    """Collect the metrics of both directions with percentile intervals, and their bootstrap."""
    unit, units = drawn_units(result, by_query)
    table: Figures = {direction: {} for direction in result.metrics}
    for direction, metrics in result.metrics.items():
        values = query_metrics(result.ranks[direction], list(metrics))  # (Q, M)
        bounds = intervals(np.zeros_like(values), values, units[direction])
        for (name, value), interval in zip(metrics.items(), bounds, strict=True):
            table[direction][name] = {
                "value": value,
                "low": interval["low"],
                "high": interval["high"],
                "chance": result.chance[direction][name],
            }
    return {"metrics": table, "bootstrap": bootstrap_settings(units["text_to_audio"], unit)}


def has_common_queries(result: EvaluationResult) -> bool:
    """Return True if a query has several right clips, so that no query belongs to one clip.

    Columns of one clip id are one clip.
    """
    return any(
        len({result.clip_ids[column] for column in columns}) > 1 for columns in result.relevant
    )


def style_figures(styles: dict[str, EvaluationResult]) -> list[Figures]:
    """Collect sizes and metrics with intervals of each style; see retrieval.evaluation.styles."""
    return [
        {
            "style": style,
            "num_queries": len(result.captions),
            "num_clips": len({column for columns in result.relevant for column in columns}),
            **metric_figures(result, has_common_queries(result)),
        }
        for style, result in styles.items()
    ]


def difference_figures(result: EvaluationResult, other: OtherRun, by_query: bool) -> Figures:
    """Collect the differences this run minus the other, text to audio, by a paired bootstrap.

    Also counts the queries whose right clip stands higher in one of the two.
    """
    ours, names = result.ranks["text_to_audio"], list(result.metrics["text_to_audio"])
    unit, units = drawn_units(result, by_query)
    values, other_values = query_metrics(ours, names), query_metrics(other.ranks, names)  # (N, M)
    bounds = intervals(other_values, values, units["text_to_audio"])
    table = {}
    for column, name in enumerate(names):
        this, that = float(values[:, column].mean()), float(other_values[:, column].mean())
        means = {"this": this, "other": that, "difference": this - that}
        table[name] = means | bounds[column]
    won = np.array(
        [int(that[0]) - int(this[0]) for this, that in zip(ours, other.ranks, strict=True)]
    )
    return {
        "name": other.name,
        "metrics": table,
        "higher_here": int((won > 0).sum()),
        "equal": int((won == 0).sum()),
        "higher_there": int((won < 0).sum()),
        "bootstrap": bootstrap_settings(units["text_to_audio"], unit),
    }


def intervals(first: np.ndarray, second: np.ndarray, units: list[Any]) -> list[Figures]:
    """Compute low, high and p-value of second - first (Q, M) for each metric.

    They are None if there is only one unit: all its resamples are equal.
    """
    ends = ("low", "high", "p_value")
    if len(set(units)) < 2:
        return [dict.fromkeys(ends) for _ in range(first.shape[1])]
    differences = paired_bootstrap(first, second, units, NUM_RESAMPLES, CONFIDENCE, SEED)
    return [{end: getattr(difference, end) for end in ends} for difference in differences]


def bootstrap_settings(units: list[Any], unit: str) -> Figures:
    """Describe the bootstrap of `intervals`; `unit` names the units, in the plural."""
    num_units = len(set(units))
    warning = f"no intervals: they need at least two {unit}"
    if num_units > 1:
        warning = narrow_intervals_warning(num_units)
    return {
        "num_resamples": NUM_RESAMPLES,
        "confidence": CONFIDENCE,
        "seed": SEED,
        "unit": unit,
        "num_units": num_units,
        "warning": warning,
    }


def breakdowns(
    result: EvaluationResult, seconds: Sequence[float], keywords: Sequence[Any] | None
) -> list[Figures]:
    """Split text to audio by caption length, clip length and keyword.

    A query with several right clips counts with their mean length, and for the keywords of each.

    Args:
        result: N queries, B clips.
        seconds: Length of each clip.
        keywords: Keywords of each clip, as stored in the cache; None without that column.
    """
    values = query_metrics(result.ranks["text_to_audio"], BIN_METRICS)  # (N, 2)
    lengths = np.array([len(words(caption)) for caption in result.captions])
    durations = np.array(
        [np.mean([seconds[clip] for clip in columns]) for columns in result.relevant]
    )
    queries_of: dict[str, list[int]] = {}
    for query, columns in enumerate(result.relevant if keywords else ()):
        for keyword in {word for clip in columns for word in split_keywords(keywords[clip])}:
            queries_of.setdefault(keyword, []).append(query)
    by_keyword = sorted(queries_of.items(), key=lambda item: (-len(item[1]), item[0]))

    def bins(groups: Sequence[tuple[str, Sequence[int]]]) -> list[Figures]:
        return [
            {
                "name": name,
                "num_queries": len(rows),
                **dict(zip(BIN_METRICS, values[rows].mean(axis=0).tolist(), strict=True)),
            }
            for name, rows in groups
        ]

    by_words, by_seconds = (
        quantile_groups(lengths, "{:.0f}"),
        quantile_groups(durations, "{:.1f}"),
    )
    return [
        {"by": "caption length", "unit": "words", "bins": bins(by_words)},
        {"by": "clip length", "unit": "seconds", "bins": bins(by_seconds)},
        {"by": "keyword", "unit": None, "bins": bins(by_keyword), "absent": keywords is None},
    ]


def quantile_groups(values: np.ndarray, form: str) -> list[tuple[str, np.ndarray]]:
    """Group queries by a value: at most NUM_BINS ranges of equally many, and their queries."""
    inner = np.unique(np.quantile(values, np.arange(1, NUM_BINS) / NUM_BINS, method="inverted_cdf"))
    places = np.searchsorted(inner, values, side="left")
    groups = []
    for place in range(len(inner) + 1):
        rows = np.flatnonzero(places == place)
        if len(rows):
            low, high = form.format(values[rows].min()), form.format(values[rows].max())
            groups.append((low if low == high else f"{low}–{high}", rows))
    return groups


def split_keywords(text: Any) -> list[str]:
    """Return the keywords of a clip in lower case, without repeats.

    `text` is a list or, as in Clotho, a string with semicolons.
    """
    parts = text.split(";") if isinstance(text, str) else text or []
    keywords = [" ".join(str(part).split()).lower() for part in parts]
    return list(dict.fromkeys(filter(None, keywords)))


def duplicate_figures(result: EvaluationResult, found: NearDuplicates) -> Figures:
    """Collect pairs of near-duplicate captions, and text to audio in three ways.

    As scored; with the clips of near-duplicates right as well; and without those clips.
    """
    ranks, scores = result.ranks["text_to_audio"], result.scores.numpy()
    counted, left_out = forgiving_ranks(scores, result.relevant, ranks, found.also_right)
    rows = {
        "as scored": ranks,
        "their clips count as right": counted,
        "their clips left out of the ranking": left_out,
    }
    concerned = [query for query, clips in enumerate(found.also_right) if clips]

    def metrics(queries: Sequence[int]) -> Figures:
        return {
            name: metrics_of_ranks([row[query] for query in queries], result.map_at)
            for name, row in rows.items()
        }

    pairs = [
        {
            "similarity": similarity,
            "captions": [result.captions[query] for query in pair],
            "clips": [result.file_names[result.clips[query]] for query in pair],
        }
        for similarity, *pair in found.pairs
    ]
    return {
        "threshold": THRESHOLD,
        "num_pairs": found.num_pairs,
        "num_captions": len(concerned),
        "metrics": metrics(range(len(ranks))),
        "metrics_of_these_captions": metrics(concerned) if concerned else {},
        "pairs": pairs,
    }


def query_figures(result: EvaluationResult, other: OtherRun | None) -> list[Figures]:
    """Collect for each query its best right clip and rank, and the clip returned first.

    With another run also its answers, and the ranks won against it.
    """
    rows = []
    for query, ranks in enumerate(result.ranks["text_to_audio"]):
        scores, right = result.scores[query].numpy(), result.relevant[query]
        row = {
            "query": result.captions[query],
            "clip": result.file_names[best_right(scores, right)],
            "rank": int(ranks[0]),
            "first": result.file_names[first_columns(scores, right, 1)[0]],
        }
        if other is not None:
            other_rank = int(other.ranks[query][0])
            row |= {
                "other_rank": other_rank,
                "won": other_rank - row["rank"],
                "other_first": other.first[query],
            }
        rows.append(row)
    return rows


def hardest_queries(
    result: EvaluationResult, number: int, also_right: Sequence[Sequence[int]]
) -> list[Figures]:
    """Collect the queries whose best right clip stands lowest, and the clips returned instead.

    Queries with a right clip at rank 1 are left out. Of equal ranks, the query whose right clip
    scores furthest below the first clip comes first. Clips are columns of the matrix.
    """
    scores = result.scores.numpy()
    ranks = [int(query[0]) for query in result.ranks["text_to_audio"]]
    best, gaps = {}, {}
    for query, rank in enumerate(ranks):
        if rank > 1:
            clip = best[query] = best_right(scores[query], result.relevant[query])
            gaps[query] = float(scores[query].max() - scores[query, clip])
    hardest = sorted(gaps, key=lambda query: (-ranks[query], -gaps[query], query))[:number]
    queries_of = transpose_relevance(result.relevant, len(result.clip_ids))

    def answer(query: int, clip: int, rank: int) -> Figures:
        return {
            "clip": clip,
            "file_name": result.file_names[clip],
            "rank": rank,
            "score": float(scores[query, clip]),
            "captions": [result.captions[other] for other in queries_of[clip][:MAX_CAPTIONS]],
            "near_duplicate": clip in also_right[query],
        }

    rows = []
    for query in hardest:
        right, num_wrong = result.relevant[query], min(NUM_RETURNED, ranks[query] - 1)
        wrong = first_columns(scores[query], right, num_wrong)
        rows.append(
            {
                "number": query,
                "query": result.captions[query],
                "right": answer(query, best[query], ranks[query]),
                "num_right": len(set(right)),
                "returned": [answer(query, clip, rank) for rank, clip in enumerate(wrong, 1)],
            }
        )
    return rows
