"""The figures of a report: metrics with intervals, ranks, what the score depends on, the hardest
queries, two runs side by side.

Letters: N captions or other queries, B clips, Q queries of one direction, M metrics.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from retrieval.evaluation.bootstrap import narrow_intervals_warning, paired_bootstrap, query_metrics
from retrieval.evaluation.metrics.text_audio_retrieval.ranking import (
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
from retrieval.evaluation.result import EvaluationResult, best_right, first_columns

NUM_RESAMPLES, CONFIDENCE, SEED = 10_000, 0.95, 0  # of the bootstrap
NUM_RETURNED, MAX_CAPTIONS = 3, 10  # wrong clips shown for a query, captions of a clip
NUM_BINS = 5
BIN_METRICS = ("mAP@10", "R@10")
Figures = dict[str, Any]


def drawn_units(result: EvaluationResult, by_query: bool) -> tuple[str, dict[str, list[Any]]]:
    """What the bootstrap draws, and for each query of a direction the unit that it belongs to.

    Clips with their captions. `by_query`: queries that were not written for one clip are each drawn
    for themselves.
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
    """Both directions with percentile intervals, which a single clip does not have, and how they
    were made.
    """
    unit, units = drawn_units(result, by_query)
    table: Figures = {}
    for direction, metrics in result.metrics.items():
        names = list(metrics)
        values = query_metrics(result.ranks[direction], names)  # (Q, M)
        bounds = _bootstrap(np.zeros_like(values), values, units[direction])
        for column, name in enumerate(names):
            interval = (
                {"low": bounds[column].low, "high": bounds[column].high}
                if bounds
                else {"low": None, "high": None}
            )
            table.setdefault(direction, {})[name] = {
                "value": metrics[name],
                **interval,
                "chance": result.chance[direction][name],
            }
    num_units = len(set(units["text_to_audio"]))
    return {"metrics": table, "bootstrap": _about_bootstrap(num_units, unit)}


def breakdowns(
    result: EvaluationResult, seconds: Sequence[float], keywords: Sequence[Any] | None
) -> list[Figures]:
    """Text to audio by caption length, clip length and keyword; seconds and keywords (of the cache,
    or None) go clip by clip.

    Of queries with several right clips: the mean length of these, and the keywords of each.
    """
    values = query_metrics(result.ranks["text_to_audio"], BIN_METRICS)  # (N, 2)
    lengths = np.array([len(words(caption)) for caption in result.captions])
    durations = np.array(
        [np.mean([seconds[clip] for clip in columns]) for columns in result.relevant]
    )
    found: dict[str, list[int]] = {}
    for query, columns in enumerate(result.relevant):
        for keyword in (
            {keyword for clip in columns for keyword in split_keywords(keywords[clip])}
            if keywords
            else ()
        ):
            found.setdefault(keyword, []).append(query)
    by_keyword = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        {
            "by": "caption length",
            "unit": "words",
            "bins": [_bin(name, values[rows]) for name, rows in _quantile_bins(lengths, "{:.0f}")],
        },
        {
            "by": "clip length",
            "unit": "seconds",
            "bins": [
                _bin(name, values[rows]) for name, rows in _quantile_bins(durations, "{:.1f}")
            ],
        },
        {
            "by": "keyword",
            "unit": None,
            "bins": [_bin(name, values[rows]) for name, rows in by_keyword],
            "absent": keywords is None,
        },
    ]


def split_keywords(text: Any) -> list[str]:
    """Of one clip: a list, or as in Clotho a string with semicolons. In lower case, without
    repeats.
    """
    parts = text.split(";") if isinstance(text, str) else text or []
    return list(
        dict.fromkeys(
            part for part in (" ".join(str(part).split()).lower() for part in parts) if part
        )
    )


def duplicate_figures(result: EvaluationResult, found: NearDuplicates) -> Figures:
    """The pairs, and text to audio as scored, with the clips of near-duplicates right as well, and
    without them.
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

    def pair_figures(similarity: float, *pair: int) -> Figures:
        clips = [result.file_names[result.clips[query]] for query in pair]
        return {
            "similarity": similarity,
            "captions": [result.captions[query] for query in pair],
            "clips": clips,
        }

    return {
        "threshold": THRESHOLD,
        "num_pairs": found.num_pairs,
        "num_captions": len(concerned),
        "metrics": metrics(range(len(ranks))),
        "metrics_of_these_captions": metrics(concerned) if concerned else {},
        "pairs": [pair_figures(*pair) for pair in found.pairs],
    }


def query_figures(result: EvaluationResult, other: OtherRun | None) -> list[Figures]:
    """A row a query: its best right clip and rank, what was returned first, and the same of the
    other run with the ranks won against it.
    """
    rows = []
    for query, ranks in enumerate(result.ranks["text_to_audio"]):
        scores, right = result.scores[query].numpy(), result.relevant[query]
        row = {
            "query": result.captions[query],
            "clip": result.file_names[best_right(scores, right)],
            "rank": int(ranks[0]),
        }
        row["first"] = result.file_names[first_columns(scores, right, 1)[0]]
        if other is not None:
            other_rank = int(other.ranks[query][0])
            row |= {
                "other_rank": other_rank,
                "won": other_rank - row["rank"],
                "other_first": other.first[query],
            }
        rows.append(row)
    return rows


def difference_figures(result: EvaluationResult, other: OtherRun, by_query: bool) -> Figures:
    """This run minus the other, text to audio, by a paired bootstrap; and how many queries stand
    higher in which.
    """
    names = list(result.metrics["text_to_audio"])
    unit, units = drawn_units(result, by_query)
    ours, theirs = (
        query_metrics(ranks, names) for ranks in (result.ranks["text_to_audio"], other.ranks)
    )  # (N, M)
    differences = _bootstrap(theirs, ours, units["text_to_audio"])
    table = {}
    for column, name in enumerate(names):
        ends = ("low", "high", "p_value")
        interval = {end: getattr(differences[column], end) if differences else None for end in ends}
        this, that = float(ours[:, column].mean()), float(theirs[:, column].mean())
        table[name] = {"this": this, "other": that, "difference": this - that, **interval}
    won = np.array(
        [
            int(that[0]) - int(this[0])
            for this, that in zip(result.ranks["text_to_audio"], other.ranks, strict=True)
        ]
    )
    counts = {
        "higher_here": int((won > 0).sum()),
        "equal": int((won == 0).sum()),
        "higher_there": int((won < 0).sum()),
    }
    return {
        "name": other.name,
        "metrics": table,
        **counts,
        "bootstrap": _about_bootstrap(len(set(units["text_to_audio"])), unit),
    }


def hardest_queries(
    result: EvaluationResult, number: int, also_right: Sequence[Sequence[int]]
) -> list[Figures]:
    """The queries whose best right clip stands lowest, and what was returned instead; none of those
    that found theirs first.

    Clips are columns of the matrix. Of equal ranks the query comes first whose right clip scores
    further below the first one.
    """
    scores, ranks = (
        result.scores.numpy(),
        [int(query[0]) for query in result.ranks["text_to_audio"]],
    )
    best = {
        query: best_right(scores[query], result.relevant[query])
        for query, rank in enumerate(ranks)
        if rank > 1
    }
    gaps = {query: float(scores[query].max() - scores[query, clip]) for query, clip in best.items()}
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

    def returned(query: int) -> list[Figures]:
        first = first_columns(
            scores[query], result.relevant[query], min(NUM_RETURNED, ranks[query] - 1)
        )
        return [answer(query, clip, rank) for rank, clip in enumerate(first, 1)]

    return [
        {
            "number": query,
            "query": result.captions[query],
            "right": answer(query, best[query], ranks[query]),
            "num_right": len(set(result.relevant[query])),
            "returned": returned(query),
        }
        for query in hardest
    ]


def _bootstrap(first: np.ndarray, second: np.ndarray, units: list[Any]) -> list[Any] | None:
    """Of two units at least: resamples of a single one are all the same."""
    return (
        paired_bootstrap(first, second, units, NUM_RESAMPLES, CONFIDENCE, SEED)
        if len(set(units)) > 1
        else None
    )


def _about_bootstrap(num_units: int, unit: str) -> Figures:
    warning = (
        narrow_intervals_warning(num_units)
        if num_units > 1
        else "no intervals: they need two at least"
    )
    about = {
        "num_resamples": NUM_RESAMPLES,
        "confidence": CONFIDENCE,
        "seed": SEED,
        "unit": unit,
        "num_units": num_units,
    }
    return about | {"warning": warning}


def _quantile_bins(values: np.ndarray, form: str) -> list[tuple[str, np.ndarray]]:
    """At most NUM_BINS of about equally many queries: their range, and the queries."""
    inner = np.unique(np.quantile(values, np.arange(1, NUM_BINS) / NUM_BINS, method="inverted_cdf"))
    places = np.searchsorted(inner, values, side="left")
    bins = [np.flatnonzero(places == place) for place in range(len(inner) + 1)]
    return [
        (_range(form.format(values[rows].min()), form.format(values[rows].max())), rows)
        for rows in bins
        if len(rows)
    ]


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low}–{high}"


def _bin(name: str, values: np.ndarray) -> Figures:
    return {
        "name": name,
        "num_queries": len(values),
        **dict(zip(BIN_METRICS, values.mean(axis=0).tolist())),
    }
