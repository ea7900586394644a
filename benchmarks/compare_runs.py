"""One table from scored models: chance, then a row a group of runs, with mean and standard deviation over its runs.

    python -m benchmarks.compare_runs mean=runs/sample_mean/best TAP=runs/sample_tap/best
    python -m benchmarks.compare_runs mean=runs/mean_1/best,runs/mean_2/best,runs/mean_3/best

Reads what evaluate.py wrote: MODEL/results/SPLIT/metrics.json. Figures are in percent, text to audio.
"""

import argparse
import json
import statistics
from pathlib import Path

from retrieval.errors import OneLineParser, UserError, run_main

NAMES = ("mAP@10", "R@1", "R@5", "R@10")


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="+", metavar="name=MODEL[,MODEL...]")
    parser.add_argument("--split", default="evaluation")
    arguments = parser.parse_args(argv)
    groups = {}
    for group in arguments.groups:
        name, _, models = group.partition("=")
        groups[name] = [read_metrics(Path(model), arguments.split) for model in models.split(",")]
    print(format_groups(groups))
    return 0


def read_metrics(model: Path, split: str) -> dict:
    """The metrics.json of a model folder. Raises UserError that says how to make it."""
    path = model / "results" / split / "metrics.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); write it with: python evaluate.py --checkpoint {model} --split {split}") from None


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
