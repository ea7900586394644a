"""One table from scored models: chance, then a row a group of runs, with mean and standard deviation over its runs.

    python -m benchmarks.compare_runs mean=runs/sample_mean/best TAP=runs/sample_tap/best
    python -m benchmarks.compare_runs mean=runs/mean_1/best,runs/mean_2/best,runs/mean_3/best
    python -m benchmarks.compare_runs mean=runs/sample_mean/best TAP=runs/sample_tap/best --scenes data/sample/scenes.json
    python -m benchmarks.compare_runs mean=runs/sample_mean/best TAP=runs/sample_tap/best --bootstrap

Reads what evaluate.py wrote: metrics.json of MODEL/results/SPLIT, and its ranks.csv with --scenes, of which only the captions count that
name one event of a scene with three or more, and with --bootstrap, which asks whether each group differs from the first one: confidence
interval and p-value of a paired bootstrap over clips (retrieval/comparison.py), each query with its mean over the runs of a group.
--split evaluation_relevance reads the results of evaluate.py --relevance. Figures are in percent, text to audio.
"""

import argparse
import csv
import json
import statistics
from pathlib import Path

import numpy as np

from benchmarks.scenes import single_event_captions
from retrieval.comparison import paired_bootstrap, query_metrics
from retrieval.errors import OneLineParser, UserError, one_line, run_main
from retrieval.metrics.text_audio_retrieval.ranking import metrics_of_ranks

NAMES = ("mAP@10", "R@1", "R@5", "R@10")
NUM_RESAMPLES = 10_000
Queries = list[tuple[tuple[str, str], np.ndarray]]  # (file name of the right clip, query), ranks of all right clips


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="+", metavar="name=MODEL[,MODEL...]")
    parser.add_argument("--split", default="evaluation")
    parser.add_argument("--scenes", type=Path, metavar="FILE", help="scenes.json: only captions that name one event of three or more")
    parser.add_argument("--bootstrap", action="store_true", help="confidence intervals and p-values of the differences to the first group")
    arguments = parser.parse_args(argv)
    models = models_of_groups(arguments.groups)
    if arguments.bootstrap and len(models) < 2:
        raise UserError("--bootstrap compares groups with the first one: give two at least")
    wanted = set(single_event_captions(arguments.scenes, arguments.split)) if arguments.scenes else None
    groups = {name: [read_metrics(model, arguments.split, wanted) for model in group] for name, group in models.items()}
    if wanted:
        print(f"{len(wanted)} captions")
    print(format_groups(groups))
    if arguments.bootstrap:
        queries = {name: [read_ranks(model, arguments.split, wanted) for model in group] for name, group in models.items()}
        have_own_clip = not any("relevance" in run for runs in groups.values() for run in runs)
        print(format_differences(queries, names_of_metrics(groups), have_own_clip))
    return 0


def models_of_groups(groups: list[str]) -> dict[str, list[Path]]:
    """Name -> model folders, from name=MODEL[,MODEL...]. Raises UserError."""
    models = {}
    for group in groups:
        name, equals, folders = group.partition("=")
        if not (name and equals and all(folders.split(","))):
            raise UserError(f"{group!r} is not of the form name=MODEL[,MODEL...], such as TAP=runs/tap/best")
        if name in models:
            raise UserError(f"{name} is given twice; list the models of one group with commas: {name}=MODEL,MODEL")
        models[name] = [Path(folder) for folder in folders.split(",")]
    return models


def read_metrics(model: Path, split: str, wanted: set[tuple[str, str]] | None = None) -> dict:
    """The metrics.json of a model folder, for the `wanted` (file name, caption) alone where given. Raises UserError that says how to make it."""
    folder = model / "results" / split
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        _ = [table[name] + 0.0 for table in (metrics["text_to_audio"], metrics["chance"]["text_to_audio"]) for name in NAMES]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(model, split, error) from None
    if wanted is not None:
        metrics["text_to_audio"] = metrics_of_ranks([ranks for _, ranks in read_ranks(model, split, wanted)])
    return metrics


def read_ranks(model: Path, split: str, wanted: set[tuple[str, str]] | None = None) -> Queries:
    """The ranks.csv of a model folder, of the `wanted` queries alone where given. Raises UserError that says how to make it."""
    path = model / "results" / split / "ranks.csv"
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [((row["clip"], row["query"]), np.array([int(rank) for rank in row["ranks"].split()])) for row in csv.DictReader(file)]
        if not rows or not all(len(ranks) for _, ranks in rows):
            raise ValueError("ranks.csv has no queries, or one without a rank")
    except (OSError, KeyError, TypeError, ValueError, AttributeError, csv.Error) as error:
        raise _unreadable(model, split, error) from None
    if wanted is None:
        return rows
    rows = [(key, ranks) for key, ranks in rows if key in wanted]
    if len(rows) != len(wanted):
        found = f"{path} has {len(rows)} of the {len(wanted)} captions of --scenes"
        raise UserError(f"{found}: it was made from another corpus; give that one's scenes.json")
    return rows


def _unreadable(model: Path, split: str, error: Exception) -> UserError:
    options = f"--split {split.removesuffix('_relevance')}" + (" --relevance FILE" if split.endswith("_relevance") else "")
    remedy = f"write it with: python evaluate.py --checkpoint {model} {options}"
    return UserError(f"{model / 'results' / split} cannot be read ({one_line(error)}); {remedy}")


def names_of_metrics(groups: dict[str, list[dict]]) -> list[str]:
    """Those that all runs have, in the order of the first."""
    tables = [table for runs in groups.values() for run in runs for table in (run["text_to_audio"], run["chance"]["text_to_audio"])]
    return [name for name in tables[0] if all(name in table for table in tables)]


def format_groups(groups: dict[str, list[dict]]) -> str:
    """Rows: chance and the groups; columns: number of runs and each metric."""
    names = names_of_metrics(groups)
    chances = {tuple(run["chance"]["text_to_audio"][name] for name in names) for runs in groups.values() for run in runs}
    if len(chances) != 1:
        raise UserError("the runs were scored on different splits or caches, their chance levels differ; compare runs of one corpus")
    width = max(map(len, [*groups, "chance"])) + 2
    rows = ["".join([f"{'%':<{width}}{'runs':>4}", *(f"{name:>14}" for name in names)])]
    rows.append("".join([f"{'chance':<{width}}{'':>4}", *(f"{100 * value:>14.2f}" for value in chances.pop())]))
    for group, runs in groups.items():
        cells = [_cell([100 * run["text_to_audio"][name] for run in runs]) for name in names]
        rows.append("".join([f"{group:<{width}}{len(runs):>4}", *(f"{cell:>14}" for cell in cells)]))
    return "\n".join(rows)


def format_differences(groups: dict[str, list[Queries]], names: list[str], have_own_clip: bool) -> str:
    """A row for each group but the first and each metric. Raises UserError where the queries differ."""
    first, *others = groups
    keys = [key for key, _ in groups[first][0]]
    values = {}
    for group, runs in groups.items():
        if any([key for key, _ in run] != keys for run in runs):
            raise UserError(f"the runs of {group} were asked other queries than the first of {first}; compare runs of one corpus")
        values[group] = np.mean([query_metrics([ranks for _, ranks in run], names) for run in runs], axis=0)  # (Q, M)
    # Queries with several right clips were not written for one of them: each is drawn for itself.
    drawn = [clip if have_own_clip else query for clip, query in keys]
    what = f"{len(set(drawn))} {'clips' if have_own_clip else 'queries'}"
    rows = [f"\ndifference to {first}, 95 % interval and p of {NUM_RESAMPLES:,} resamples of {what}"]
    width = max(map(len, others)) + 2
    for other in others:
        for name, difference in zip(names, paired_bootstrap(values[first], values[other], drawn, NUM_RESAMPLES), strict=True):
            interval = f"[{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"
            rows.append(f"{other:<{width}}{name:>7}{100 * difference.mean:>+9.2f}{interval:>18}   p {difference.p_value:.4f}")
    return "\n".join(rows)


def _cell(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


if __name__ == "__main__":
    run_main(main)
