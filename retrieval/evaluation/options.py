"""The options of evaluate.py, and what can be known to fail before anything is scored. Light to
import.
"""

import argparse
from pathlib import Path

from retrieval.base.errors import OneLineParser, UserError
from retrieval.base.files import check_not_among, check_outputs
from retrieval.evaluation.outputs import (
    METRICS,
    RANKS,
    REPORT_FIGURES,
    REPORT_PAGE,
    check_checkpoints,
    default_output,
)
from retrieval.evaluation.score_files import ABOUT, ARRAY
from retrieval.evaluation.submission import FORMATS, check_format

REPORT_QUERIES, MAX_REPORT_QUERIES = 10, 200  # hardest queries: default, most


def parse_arguments(argv: list[str] | None, description: str) -> argparse.Namespace:
    """Options whose paths have been checked; `output` is filled in. Raises UserError."""
    parser = OneLineParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        action="append",
        help="model folder, such as runs/tap/best, or a .ckpt of salsa",
    )
    parser.add_argument(
        "--text-encoder",
        type=Path,
        metavar="DIR",
        help="tokenizer of a .ckpt, which holds none; default: that of roberta-large",
    )
    parser.add_argument("--split", default="evaluation", help="default: evaluation")
    parser.add_argument(
        "--cache",
        type=Path,
        help="Arrow cache; default: data.cache in the config.yaml beside the model folder",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help=(
            "folder of what is written; default: CHECKPOINT/results/SPLIT, SPLIT_relevance with"
            " --relevance"
        ),
    )
    parser.add_argument(
        "--relevance",
        type=Path,
        metavar="FILE",
        help="CSV query,audio_filenames: the queries and all their right clips",
    )
    parser.add_argument(
        "--save-scores", action="store_true", help="also write scores.npy and scores.json"
    )
    parser.add_argument(
        "--submission",
        nargs=2,
        type=Path,
        metavar=("FORMAT", "FILE"),
        help=f"DCASE file: {' or '.join(FORMATS)}",
    )
    parser.add_argument(
        "--queries",
        type=Path,
        metavar="FILE",
        help="CSV with a column caption: what --submission asks in place of the captions",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="also write report.html, a page to look inside the run, and report.json",
    )
    parser.add_argument(
        "--report-queries",
        type=int,
        metavar="N",
        help=f"hardest queries shown with sound; default: {REPORT_QUERIES}",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="PATH",
        help="for --report: a checkpoint, or a folder of results, to compare with",
    )
    parser.add_argument("--audio-batch-size", type=int, help="clips encoded at once")
    parser.add_argument("--text-batch-size", type=int, help="captions encoded at once")
    parser.add_argument(
        "--mixed-precision",
        choices=["auto", "no", "bf16", "fp16"],
        help="of the encoders; scores are float32",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    arguments = parser.parse_args(argv)
    for name in ("audio_batch_size", "text_batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, found {value}")
    _check_paths(arguments)
    return arguments


def _check_paths(arguments: argparse.Namespace) -> None:
    """Fills in --output; `default_output` is the same where it was not given, or None. Raises
    UserError.
    """
    if arguments.queries and (
        arguments.relevance or arguments.save_scores or not arguments.submission
    ):
        raise UserError(
            "--queries asks other questions than the captions, for --submission alone: no"
            " --relevance, no --save-scores"
        )
    if arguments.relevance and arguments.save_scores:
        raise UserError(
            "--save-scores keeps the scores of the split's own captions: leave out --relevance"
        )
    check_checkpoints(arguments.checkpoint)
    _check_report(arguments)
    files = ([METRICS, RANKS] if not arguments.queries else []) + (
        [ARRAY, ABOUT] if arguments.save_scores else []
    )
    arguments.default_output = None
    if files and arguments.output is None:
        name = arguments.split + ("_relevance" if arguments.relevance else "")
        arguments.output = arguments.default_output = default_output(arguments.checkpoint, name)
    outputs = [arguments.output / name for name in files]
    report = (
        [arguments.report / name for name in (REPORT_PAGE, REPORT_FIGURES)]
        if arguments.report
        else []
    )
    outputs += report
    if arguments.submission:
        kind, file = str(arguments.submission[0]), arguments.submission[1]
        check_format(kind)
        arguments.submission = kind, file
        results = (
            [arguments.output / name for name in (METRICS, RANKS, ARRAY, ABOUT)]
            if arguments.output
            else []
        )
        results += report
        check_not_among(
            "--submission",
            file,
            [*results, *filter(None, (arguments.queries, arguments.relevance))],
        )
        outputs.append(file)
    check_outputs(outputs)


def _check_report(arguments: argparse.Namespace) -> None:
    """Fills in --report-queries. Raises UserError."""
    if arguments.report == Path():
        raise UserError(
            "--report: give a folder by its name; the current one is too easily meant by an empty"
            " variable"
        )
    if arguments.report is None:
        if arguments.against is not None or arguments.report_queries is not None:
            raise UserError(
                "--against and --report-queries are about the page of --report DIR: add it"
            )
        return
    if arguments.queries:
        raise UserError(
            "--report looks at ranks, and the right clips of --queries are not known: leave one of"
            " them out"
        )
    if arguments.report_queries is None:
        arguments.report_queries = REPORT_QUERIES
    elif not 0 <= arguments.report_queries <= MAX_REPORT_QUERIES:
        raise UserError(
            f"--report-queries must be 0 to {MAX_REPORT_QUERIES}, found {arguments.report_queries}"
        )
    if arguments.against is not None:
        if not arguments.against.exists():
            raise UserError(
                f"--against {arguments.against} does not exist: give a model folder, or a folder of"
                " results that evaluate.py wrote"
            )
        if [path.resolve() for path in arguments.checkpoint] == [arguments.against.resolve()]:
            raise UserError(
                f"--against {arguments.against} is the checkpoint itself: give another one, or a"
                " folder of results"
            )
