"""One table from scored models: chance, then mean and standard deviation of each group of runs.

    python -m benchmarks.compare_runs mean=runs/sample_mean/best TAP=runs/sample_tap/best
    python -m benchmarks.compare_runs mean=runs/mean_1/best,runs/mean_2/best,runs/mean_3/best

Reads the results of evaluate.py, metrics.json in MODEL/results/SPLIT. For an ensemble or a .ckpt
give its --output folder as MODEL. Figures are in percent, text to audio.

--scenes data/sample/scenes.json
    Counts only the captions that name one event of a scene with three or more (from ranks.csv).
--bootstrap
    Says whether each group differs from the first: confidence interval and p-value of a paired
    bootstrap over clips (retrieval/evaluation/bootstrap.py). Each query counts with its mean over
    the runs of a group.
--split evaluation_relevance
    Reads the results of evaluate.py --relevance.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import numpy as np

from benchmarks.scenes import single_event_captions
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError, expand_home, one_line
from retrieval.evaluation.bootstrap import narrow_intervals_warning, paired_bootstrap, query_metrics
from retrieval.evaluation.metrics.text_audio_retrieval.ranking import metrics_of_ranks
from retrieval.evaluation.outputs import METRICS, RANKS, read_ranks

NAMES = ("mAP@10", "R@1", "R@5", "R@10")
NUM_RESAMPLES = 10_000
# (file name of the right clip, query), ranks of all right clips
Queries = list[tuple[tuple[str, str], np.ndarray]]


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="+", metavar="name=MODEL[,MODEL...]")
    parser.add_argument("--split", default="evaluation")
    parser.add_argument(
        "--scenes",
        type=Path,
        metavar="FILE",
        help="scenes.json: only captions that name one event of three or more",
    )
    parser.add_argument(
        "--bootstrap",
        action="store_true",
        help="confidence intervals and p-values of the differences to the first group",
    )
    arguments = parser.parse_args(argv)
    models = models_of_groups(arguments.groups, arguments.split)
    if arguments.bootstrap and len(models) < 2:
        raise UserError("--bootstrap compares groups with the first one: give at least two")
    wanted = None
    if arguments.scenes:
        wanted = set(single_event_captions(arguments.scenes, arguments.split))
    groups = {
        name: [read_metrics(model, arguments.split, wanted) for model in group]
        for name, group in models.items()
    }
    if wanted:
        print(f"{len(wanted)} captions")
    check_one_corpus(groups)
    print(format_groups(groups))
    if arguments.bootstrap:
        queries = {
            name: [read_queries(model, arguments.split, wanted) for model in group]
            for name, group in models.items()
        }
        unit = "clips"
        if any("relevance" in run for runs in groups.values() for run in runs):
            # Queries with several right clips were not written for one clip: each is drawn by
            # itself.
            unit = "queries"
            queries = {
                name: [[((query, query), ranks) for (_, query), ranks in run] for run in runs]
                for name, runs in queries.items()
            }
        print(format_differences(queries, names_of_metrics(groups), unit))
        if warning := narrow_intervals_warning(num_drawn(queries)):
            print(f"warning: {warning}", file=sys.stderr)
    return 0


def models_of_groups(groups: list[str], split: str) -> dict[str, list[Path]]:
    """Parse name=MODEL[,MODEL...] into model folders by name. Raises UserError."""
    models = {}
    for group in groups:
        name, equals, folders = group.partition("=")
        if not (name and equals and all(folders.split(","))):
            raise UserError(
                f"{group!r} is not of the form name=MODEL[,MODEL...], such as TAP=runs/tap/best"
            )
        if name in models:
            raise UserError(
                f"{name} is given twice; list the models of one group with commas:"
                f" {name}=MODEL,MODEL"
            )
        try:
            models[name] = [Path(expand_home(folder)) for folder in folders.split(",")]
        except ValueError as error:
            raise UserError(str(error)) from None
        if len({results_of(model, split).resolve() for model in models[name]}) < len(models[name]):
            raise UserError(
                f"{name} lists one folder twice, which would count as two runs: {folders}"
            )
    return models


def results_of(model: Path, split: str) -> Path:
    """Return the folder of the results: `model` itself if it was --output of evaluate.py."""
    is_output = all((model / name).is_file() for name in (METRICS, RANKS))
    return model if is_output else model / "results" / split


def read_metrics(model: Path, split: str, wanted: set[tuple[str, str]] | None = None) -> dict:
    """Read the metrics.json of a model folder.

    With `wanted` (file name, caption) the metrics are those of these captions, from ranks.csv.
    Raises UserError that says how to make it.
    """
    folder = results_of(model, split)
    found = split
    try:
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        if folder == model:
            found = metrics["split"] + ("_relevance" if "relevance" in metrics else "")
        for table in (metrics["text_to_audio"], metrics["chance"]["text_to_audio"]):
            _ = [table[name] + 0.0 for name in NAMES]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(model, split, error) from None
    if found != split:
        raise UserError(
            f"{model} holds results of {found}, and --split is {split}: change it, or give another"
            " folder"
        )
    if wanted is not None:
        ranks = [ranks for _, ranks in read_queries(model, split, wanted)]
        metrics["text_to_audio"] = metrics_of_ranks(ranks)
    return metrics


def read_queries(model: Path, split: str, wanted: set[tuple[str, str]] | None = None) -> Queries:
    """Read the ranks.csv of a model folder; of the `wanted` queries only if given.

    Raises UserError that says how to make it.
    """
    path = results_of(model, split) / RANKS
    try:
        table = read_ranks(path)
    except (OSError, ValueError) as error:
        raise _unreadable(model, split, error) from None
    rows = list(zip(zip(table.clips, table.queries, strict=True), table.ranks, strict=True))
    if wanted is None:
        return rows
    rows = [(key, ranks) for key, ranks in rows if key in wanted]
    if len(rows) != len(wanted):
        raise UserError(
            f"{path} has {len(rows)} of the {len(wanted)} captions of --scenes: it was made from"
            " another corpus; give that one's scenes.json"
        )
    return rows


def _unreadable(model: Path, split: str, error: Exception) -> UserError:
    folder = results_of(model, split)
    place = f"MODEL --output {model}" if folder == model else str(model)
    options = f"--split {split.removesuffix('_relevance')}"
    if split.endswith("_relevance"):
        options += " --relevance FILE"
    return UserError(
        f"{folder} cannot be read ({one_line(error)}); write it with: python evaluate.py"
        f" --checkpoint {place} {options}"
    )


def check_one_corpus(groups: dict[str, list[dict]]) -> None:
    """Raise UserError if two runs were scored on different clips or captions.

    Fingerprints hold the clips' lengths in samples, so they can be compared at one sample rate
    only. Results of earlier versions have none.
    """
    found: dict[int, tuple[str, str]] = {}  # sample rate -> fingerprint, group
    for group, runs in groups.items():
        for run in runs:
            if "fingerprint" in run:
                fingerprint, first = found.setdefault(
                    run.get("sample_rate"), (run["fingerprint"], group)
                )
                if run["fingerprint"] != fingerprint:
                    which = f"{group} and {first}" if group != first else f"the runs of {group}"
                    raise UserError(
                        f"{which} were scored on different clips or captions; score all on the same"
                        " split of the same cache"
                    )


def names_of_metrics(groups: dict[str, list[dict]]) -> list[str]:
    """List the metrics that all runs have, in the order of the first."""
    tables = [
        table
        for runs in groups.values()
        for run in runs
        for table in (run["text_to_audio"], run["chance"]["text_to_audio"])
    ]
    return [name for name in tables[0] if all(name in table for table in tables)]


def format_groups(groups: dict[str, list[dict]]) -> str:
    """Make a table with a row for chance and each group, and a column for each metric."""
    names = names_of_metrics(groups)
    chances = {
        tuple(run["chance"]["text_to_audio"][name] for name in names)
        for runs in groups.values()
        for run in runs
    }
    if len(chances) != 1:
        raise UserError(
            "the runs were scored on different splits or caches, their chance levels differ;"
            " compare runs of one corpus"
        )
    width = max(map(len, [*groups, "chance"])) + 2
    header = "".join(f"{name:>14}" for name in names)
    chance = "".join(f"{100 * value:>14.2f}" for value in chances.pop())
    rows = [f"{'%':<{width}}{'runs':>4}{header}", f"{'chance':<{width}}{'':>4}{chance}"]
    for group, runs in groups.items():
        cells = ""
        for name in names:
            values = [100 * run["text_to_audio"][name] for run in runs]
            cell = f"{statistics.mean(values):.2f}"
            if len(values) > 1:
                cell += f" ± {statistics.stdev(values):.2f}"
            cells += f"{cell:>14}"
        rows.append(f"{group:<{width}}{len(runs):>4}{cells}")
    return "\n".join(rows)


def num_drawn(groups: dict[str, list[Queries]]) -> int:
    """Count the clips that the queries of the first run were written for."""
    return len({clip for (clip, _), _ in next(iter(groups.values()))[0]})


def format_differences(groups: dict[str, list[Queries]], names: list[str], unit: str) -> str:
    """Make a table of differences to the first group; `unit` names the drawn things.

    Raises UserError if the queries of two runs differ.
    """
    first, *others = groups
    keys = [key for key, _ in groups[first][0]]
    values = {}
    for group, runs in groups.items():
        if any([key for key, _ in run] != keys for run in runs):
            raise UserError(
                f"the runs of {group} have other queries than the first of {first}; compare runs of"
                " one corpus"
            )
        values[group] = np.mean(
            [query_metrics([ranks for _, ranks in run], names) for run in runs], axis=0
        )  # (Q, M)
    drawn = [clip for clip, _ in keys]
    rows = [
        f"\ndifference to {first}, 95 % interval and p of {NUM_RESAMPLES:,} resamples of"
        f" {num_drawn(groups)} {unit}"
    ]
    width = max(map(len, others)) + 2
    for other in others:
        differences = paired_bootstrap(values[first], values[other], drawn, NUM_RESAMPLES)
        for name, difference in zip(names, differences, strict=True):
            interval = f"[{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"
            rows.append(
                f"{other:<{width}}{name:>7}{100 * difference.mean:>+9.2f}{interval:>18}   p"
                f" {difference.p_value:.4f}"
            )
    return "\n".join(rows)


if __name__ == "__main__":
    run_main(main)
