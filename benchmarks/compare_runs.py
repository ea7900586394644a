"""One table from scored models: chance, then a row a group of runs, with mean and standard deviation over its runs.

    python -m benchmarks.compare_runs mean=runs/sample_mean/best TAP=runs/sample_tap/best
    python -m benchmarks.compare_runs mean=runs/mean_1/best,runs/mean_2/best,runs/mean_3/best
    python -m benchmarks.compare_runs mean=runs/sample_mean/best TAP=runs/sample_tap/best --scenes data/sample/scenes.json

Reads what evaluate.py wrote: metrics.json of MODEL/results/SPLIT, and with --scenes its ranks.csv, of which only the captions count that
name one event of a scene with three or more. Figures are in percent, text to audio.
"""

import argparse
import csv
import json
import statistics
from pathlib import Path

import numpy as np

from benchmarks.scenes import single_event_captions
from retrieval.errors import OneLineParser, UserError, one_line, run_main
from retrieval.metrics.text_audio_retrieval.ranking import metrics_of_ranks

NAMES = ("mAP@10", "R@1", "R@5", "R@10")


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="+", metavar="name=MODEL[,MODEL...]")
    parser.add_argument("--split", default="evaluation")
    parser.add_argument("--scenes", type=Path, metavar="FILE", help="scenes.json: only captions that name one event of three or more")
    arguments = parser.parse_args(argv)
    wanted = set(single_event_captions(arguments.scenes, arguments.split)) if arguments.scenes else None
    groups = {}
    for group in arguments.groups:
        name, _, models = group.partition("=")
        if name in groups:
            raise UserError(f"{name} is given twice; list the models of one group with commas: {name}=MODEL,MODEL")
        groups[name] = [read_metrics(Path(model), arguments.split, wanted) for model in models.split(",")]
    if wanted:
        print(f"{len(wanted)} captions")
    print(format_groups(groups))
    return 0


def read_metrics(model: Path, split: str, wanted: set[tuple[str, str]] | None = None) -> dict:
    """The metrics.json of a model folder, for the `wanted` (file name, caption) alone where given. Raises UserError that says how to make it."""
    folder = model / "results" / split
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        if wanted is not None:
            with open(folder / "ranks.csv", encoding="utf-8", newline="") as file:
                ranks = [np.array([int(row["rank"])]) for row in csv.DictReader(file) if (row["clip"], row["query"]) in wanted]
            if len(ranks) != len(wanted):
                found = f"{folder / 'ranks.csv'} has {len(ranks)} of the {len(wanted)} captions of --scenes"
                raise UserError(f"{found}: it was made from another corpus; give that one's scenes.json")
            metrics["text_to_audio"] = metrics_of_ranks(ranks)
        _ = [table[name] + 0.0 for table in (metrics["text_to_audio"], metrics["chance"]["text_to_audio"]) for name in NAMES]
        return metrics
    except UserError:
        raise
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        remedy = f"write it with: python evaluate.py --checkpoint {model} --split {split}"
        raise UserError(f"{folder} cannot be read ({one_line(error)}); {remedy}") from None


def format_groups(groups: dict[str, list[dict]]) -> str:
    """Rows: chance and the groups; columns: number of runs and each metric."""
    chances = {tuple(run["chance"]["text_to_audio"][name] for name in NAMES) for runs in groups.values() for run in runs}
    if len(chances) != 1:
        raise UserError("the runs were scored on different splits or caches, their chance levels differ; compare runs of one corpus")
    width = max(map(len, [*groups, "chance"])) + 2
    rows = ["".join([f"{'%':<{width}}{'runs':>4}", *(f"{name:>14}" for name in NAMES)])]
    rows.append("".join([f"{'chance':<{width}}{'':>4}", *(f"{100 * value:>14.2f}" for value in chances.pop())]))
    for group, runs in groups.items():
        cells = [_cell([100 * run["text_to_audio"][name] for run in runs]) for name in NAMES]
        rows.append("".join([f"{group:<{width}}{len(runs):>4}", *(f"{cell:>14}" for cell in cells)]))
    return "\n".join(rows)


def _cell(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


if __name__ == "__main__":
    run_main(main)
