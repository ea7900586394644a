"""Measured scores with their intervals, printed beside the published ones."""

import functools
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.compare_runs import NAMES, read_metrics, read_queries
from benchmarks.published import PUBLISHED
from benchmarks.reproduce.plan import WEIGHTS, Training
from retrieval.base.errors import UserError, one_line
from retrieval.base.files import read_json
from retrieval.evaluation.bootstrap import Interval, bootstrap_intervals, query_metrics

SPLIT = "evaluation"
CLOTHO = {"development": 3839, "validation": 1045, "evaluation": 1045}  # clips
Scores = dict[str, Interval]  # fractions by metric


@functools.cache
def measure(trainings: tuple[Training, ...], weights: str) -> Scores:
    """Return the metrics of one run, or the means of several seeds.

    Intervals come from a bootstrap over the evaluation clips; with several runs, from each query's
    mean over the runs. Raises UserError if results cannot be read.
    """
    values, clips = [], []
    for training in trainings:
        queries = read_queries(training.folder / weights, SPLIT)
        clips = [clip for (clip, _), _ in queries]
        values.append(query_metrics([ranks for _, ranks in queries], NAMES))
    intervals = bootstrap_intervals(np.mean(values, axis=0), clips)
    return dict(zip(NAMES, intervals, strict=True))


def clips_of_cache(cache: Path) -> dict[str, int]:
    """Return the number of clips of each split. Raises UserError for a damaged file."""
    path = cache / "cache.json"
    try:
        splits = read_json(path)["splits"]
        return {name: split["num_clips"] for name, split in splits.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)}): delete {cache}, and the same command"
            " builds it again"
        ) from None


def other_corpus(clips: dict[str, int]) -> list[str]:
    """Return a line if a run's numbers of clips are not Clotho's."""
    if clips == CLOTHO:
        return []
    return [f"clips: {', '.join(f'{count} {name}' for name, count in clips.items()) or 'not told'}"]


def format_interval(interval: Interval, spread: float | None = None) -> str:
    """Format a fraction in percent, with its interval in brackets.

    spread: standard deviation over seeds, a fraction.
    """
    mean, low, high = (100 * value for value in (interval.mean, interval.low, interval.high))
    deviation = "" if spread is None else f" ± {100 * spread:.2f}"
    return f"{mean:.2f}{deviation} [{low:.1f}, {high:.1f}]"


def format_experiment(trainings: Sequence[Training]) -> str:
    """Make a table of one experiment: published scores, then each run, then the mean of the runs.

    trainings: Finished and scored runs of one experiment.
    """
    experiment = trainings[0].experiment
    published = PUBLISHED[experiment]
    scored = published.scored or "weights not told"
    rows = [("published", scored, [published.scores[name] for name in NAMES])]
    num_clips = read_metrics(trainings[0].folder / "last", SPLIT)["num_clips"]
    is_altered = num_clips != CLOTHO[SPLIT] or any(one.changed for one in trainings)
    verdicts = ["altered: no reproduction of the published scores"] * is_altered
    for weights in WEIGHTS:
        measured = [measure((training,), weights) for training in trainings]
        for training, scores in zip(trainings, measured, strict=True):
            name = training.name.removeprefix(f"{experiment} ")
            rows.append((name, weights, [format_interval(scores[name]) for name in NAMES]))
        together = measured[0]
        if len(trainings) > 1:
            together = measure((*trainings,), weights)
            spread = {
                name: statistics.stdev(scores[name].mean for scores in measured) for name in NAMES
            }
            cells = [format_interval(together[name], spread[name]) for name in NAMES]
            rows.append((f"mean of {len(trainings)} seeds", weights, cells))
        if published.scored in ("", weights) and not is_altered:
            verdicts.append(f"{weights}: {verdict(experiment, together)}")
    title = f"{experiment}: %, text to audio; [95 % interval of a bootstrap over {num_clips} clips]"
    lines = [f"{'':<30}" + "".join(f"{name:>28}" for name in NAMES)]
    lines += [
        f"{f'{name}, {weights}':<30}" + "".join(f"{cell:>28}" for cell in cells)
        for name, weights, cells in rows
    ]
    return "\n".join([title, *(line.rstrip() for line in lines), *verdicts])


def verdict(experiment: str, scores: Scores) -> str:
    """Say for which metrics the published score lies within the interval of the measured one."""
    published = PUBLISHED[experiment]
    places: dict[str, list[str]] = {"within": [], "above": [], "below": []}
    for name in NAMES:
        percent = published.percent(name)
        low, high = 100 * scores[name].low, 100 * scores[name].high
        place = "above" if percent > high else "below" if percent < low else "within"
        places[place].append(name)
    parts = [f"{place} it for {', '.join(names)}" for place, names in places.items() if names]
    return f"against the measured interval the published score lies {'; '.join(parts)}"
