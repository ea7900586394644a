"""Score files of moments, of this project or of any other.

    python -m retrieval.moments score PREDICTIONS.jsonl TRUTH.jsonl [--json] [--castella-rounding]

Both files have lighthouse's format: see retrieval/moments/files.py. Predictions may have no scores,
like submissions to DCASE 2026 task 6. The metrics are R1@0.3, R1@0.5, R1@0.7, mIoU, mAP@0.5,
mAP@0.75 and mAP, the mean of 0.5 to 0.95, equal to lighthouse's.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser
from retrieval.moments.files import (
    castella_rounding,
    check_same_queries,
    read_predictions,
    read_truth,
)
from retrieval.moments.result import format_metrics, remarks, score_answers


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    answers, truths = read_predictions(arguments.predictions), read_truth(arguments.truth)
    check_same_queries(answers, truths, arguments.predictions, arguments.truth)
    if arguments.castella_rounding:
        answers = [replace(one, moments=castella_rounding(one.moments)) for one in answers]
    result = score_answers(answers, truths)
    for remark in remarks(result):
        print(f"note: {remark}", file=sys.stderr)
    if not arguments.json:
        print(format_metrics(result))
        return 0
    num_scored = int(result.is_scored.sum())
    content = result.metrics | {
        "num_queries": num_scored,
        "num_left_out": len(truths) - num_scored,
        "castella_rounding": arguments.castella_rounding,
    }
    print(json.dumps(content, indent=2))
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    score = commands.add_parser("score", help="score predictions against true windows")
    score.add_argument("predictions", type=Path, help="JSON lines with pred_relevant_windows")
    score.add_argument("truth", type=Path, help="JSON lines with relevant_windows")
    score.add_argument("--json", action="store_true", help="print fractions as JSON")
    score.add_argument(
        "--castella-rounding",
        action="store_true",
        help="first cut the predictions to 0 to 300 s and round them to whole seconds, as"
        " lighthouse does for CASTELLA",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_main(main)
