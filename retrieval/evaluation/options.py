"""Options of evaluate.py, and all checks that need no model. Loads no torch."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from retrieval.base.checkpoints import check_checkpoint, hub_name, is_own_folder
from retrieval.base.errors import OneLineParser, UserError
from retrieval.base.files import check_not_among, check_not_within, check_outputs
from retrieval.evaluation.outputs import (
    METRICS,
    MOMENTS,
    MOMENTS_FIGURES,
    MOMENTS_PAGE,
    MOMENTS_TABLE,
    RANKS,
    REPORT_FIGURES,
    REPORT_PAGE,
    SCORES,
    SCORES_RECORD,
    STYLE_RANKS,
)
from retrieval.evaluation.submission import FORMATS

CHECKPOINT_HELP = (
    "model folder, such as runs/tap/best; CLAP or PE-Audio, as a folder or by hub name, such as"
    " laion/clap-htsat-unfused; or a .ckpt of salsa"
)
TEXT_ENCODER_HELP = (
    "tokenizer of a .ckpt, which has none: a folder or hub name; default: roberta-large"
)
MOMENT_FORMATS = ("dcase2026",)  # of --submission with --moments
MOMENT_METHODS = ("auto", "head", "contribution", "runs")  # those of retrieval.moments.locator
REPORT_QUERIES, MAX_REPORT_QUERIES = 10, 200  # hardest queries: default, most


def parse_arguments(argv: list[str] | None, description: str) -> argparse.Namespace:
    """Parse the options and check their paths.

    Returns:
        The options. `output` is filled in if it was not given; `is_default_output` then is True.

    Raises:
        UserError: Options contradict each other, or a file cannot be read or written.
    """
    parser = OneLineParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        required=True,
        action="append",
        help=f"{CHECKPOINT_HELP}; several: their mean",
    )
    add(
        "--weight",
        type=float,
        action="extend",
        nargs="+",
        metavar="W",
        help="of each checkpoint in the mean, in the order of --checkpoint; default: equal",
    )
    add(
        "--fit-weights",
        metavar="SPLIT",
        help="find the weights on another split, such as validation: those of its highest mAP@10",
    )
    add(
        "--text-encoder",
        type=Path,
        metavar="NAME",
        help=TEXT_ENCODER_HELP,
    )
    add("--split", default="evaluation", help="default: evaluation")
    add(
        "--cache",
        type=Path,
        help="Arrow cache; default: data.cache in the config.yaml beside the model folder",
    )
    add(
        "--output",
        type=Path,
        help="folder of the results; default: CHECKPOINT/results/SPLIT, SPLIT_relevance with"
        " --relevance, SPLIT_captions with --captions, SPLIT_moments with --moments",
    )
    add(
        "--relevance",
        type=Path,
        metavar="FILE",
        help="CSV query,audio_filenames: the queries and all their right clips",
    )
    add(
        "--captions",
        type=Path,
        metavar="FILE",
        help="CSV file_name,caption[,style]: also ask for the clips in these words, style by style",
    )
    add("--save-scores", action="store_true", help="also write scores.npy and scores.json")
    add(
        "--submission",
        nargs=2,
        type=Path,
        metavar=("FORMAT", "FILE"),
        help=f"DCASE file: {' or '.join(FORMATS)}; with --moments: {' or '.join(MOMENT_FORMATS)}",
    )
    add(
        "--queries",
        type=Path,
        metavar="FILE",
        help="CSV with a column caption: queries of --submission in place of the captions; with"
        " --moments JSON lines with qid, query and vid, also for --predictions",
    )
    add(
        "--report",
        type=Path,
        metavar="DIR",
        help="also write report.html, a page to look inside the run, and report.json",
    )
    add(
        "--report-queries",
        type=int,
        metavar="N",
        help=f"hardest queries shown with sound; default: {REPORT_QUERIES}",
    )
    add(
        "--against",
        type=Path,
        metavar="PATH",
        help="for --report: a checkpoint, or a folder of results, to compare with",
    )
    add(
        "--moments",
        action="store_true",
        help="find the moments of the split's queries with times, and score those; the options that"
        " follow are for it",
    )
    add(
        "--method",
        choices=MOMENT_METHODS,
        help="of finding moments; default: auto, the model's moment head if it has one",
    )
    add(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="also write the moments as JSON lines, as lighthouse does",
    )
    add(
        "--castella-rounding",
        action="store_true",
        help="cut the moments to 0 to 300 s and round them to whole seconds, as lighthouse does for"
        " CASTELLA",
    )
    add(
        "--without-scores",
        action="store_true",
        help="leave the scores out of --submission: the order is the rank",
    )
    add("--audio-batch-size", type=int, help="clips encoded at once")
    add("--text-batch-size", type=int, help="captions encoded at once")
    add(
        "--mixed-precision",
        choices=["auto", "no", "bf16", "fp16"],
        help="of the encoders; scores are float32",
    )
    add("--quiet", action="store_true", help="show no progress")
    arguments = parser.parse_args(argv)
    for name in ("audio_batch_size", "text_batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, found {value}")
    check_checkpoints(arguments.checkpoint)
    _check_moments(arguments)
    if arguments.moments:
        _check_report(arguments)
        _check_outputs(arguments)
        return arguments
    if arguments.queries and (
        arguments.relevance or arguments.save_scores or not arguments.submission
    ):
        raise UserError(
            "--queries replaces the captions for --submission only: add --submission, and leave out"
            " --relevance and --save-scores"
        )
    if arguments.queries and arguments.captions:
        raise UserError(
            "--captions is for metrics by style, which --queries has none of: leave out one of the"
            " two"
        )
    if arguments.relevance and arguments.save_scores:
        raise UserError(
            "--save-scores keeps the scores of the split's own captions: leave out --relevance"
        )
    _check_weights(arguments)
    _check_report(arguments)
    _check_outputs(arguments)
    return arguments


def check_checkpoints(checkpoints: Sequence[Path]) -> None:
    """Raise UserError for a checkpoint that is absent, unreadable or given twice."""
    for checkpoint in checkpoints:
        check_checkpoint(checkpoint)
    if len({checkpoint.resolve() for checkpoint in checkpoints}) < len(checkpoints):
        raise UserError("--checkpoint names one model twice: a mean needs different models")


def _check_moments(arguments: argparse.Namespace) -> None:
    """Check the options that are for --moments only, or not for it. Raises UserError."""
    of_moments = ("method", "predictions", "castella_rounding", "without_scores")
    of_ranking = ("weight", "fit_weights", "relevance", "captions", "save_scores", "against")
    of_ranking += ("audio_batch_size", "text_batch_size")

    def given(names: Sequence[str]) -> list[str]:
        return [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name)]

    if not arguments.moments:
        if options := given(of_moments):
            raise UserError(f"{options[0]} is for --moments: add it, or leave {options[0]} out")
        return
    arguments.method = arguments.method or "auto"
    if options := given(of_ranking):
        raise UserError(f"{options[0]} is not for --moments: leave out one of the two")
    if len(arguments.checkpoint) > 1:
        raise UserError("--moments takes one model: give --checkpoint once")
    if arguments.without_scores and not arguments.submission:
        raise UserError("--without-scores is for --submission: add one, or leave it out")
    if arguments.queries and not (arguments.submission or arguments.predictions):
        raise UserError(
            "--queries replaces the queries of the split for --submission and --predictions: add"
            " one of them"
        )


def _check_weights(arguments: argparse.Namespace) -> None:
    """Check --weight and --fit-weights. Raises UserError."""
    weights, number = arguments.weight, len(arguments.checkpoint)
    if weights is None and arguments.fit_weights is None:
        return
    option = "--weight" if weights else "--fit-weights"
    if weights and arguments.fit_weights is not None:
        raise UserError("--fit-weights finds what --weight gives: leave out one of the two")
    if number == 1:
        raise UserError(f"{option} is for several checkpoints: give --checkpoint more than once")
    if weights is None:
        if arguments.fit_weights == arguments.split:
            raise UserError(
                f"--fit-weights {arguments.fit_weights} is the split that is scored, so the score"
                " would be too good: fit on another one, such as validation"
            )
        return
    if len(weights) != number:
        raise UserError(
            f"--weight gives {len(weights)} numbers for {number} checkpoints: give one for each, in"
            " their order"
        )
    for weight in weights:
        if not 0 < weight < math.inf:
            raise UserError(
                f"--weight {weight:g}: must be above 0 and finite; leave out a checkpoint that does"
                " not count"
            )


def _check_report(arguments: argparse.Namespace) -> None:
    """Check the options of --report and fill in --report-queries. Raises UserError."""
    report, against, num_queries = arguments.report, arguments.against, arguments.report_queries
    if report == Path():
        raise UserError(
            "--report: give the folder by its name: an empty shell variable would mean the current"
            " folder"
        )
    if report is None:
        if against is not None or num_queries is not None:
            raise UserError("--against and --report-queries need --report DIR: add it")
        return
    if arguments.queries:
        raise UserError(
            "--report needs the right clips, which are not known for --queries: leave out one of"
            " the two"
        )
    if num_queries is None:
        arguments.report_queries = REPORT_QUERIES
    elif not 0 <= num_queries <= MAX_REPORT_QUERIES:
        raise UserError(f"--report-queries must be 0 to {MAX_REPORT_QUERIES}, found {num_queries}")
    if against is not None:
        if not against.exists() and hub_name(against) is None:
            raise UserError(
                f"--against {against} does not exist: give a model folder or a hub name, or a"
                " folder of results that evaluate.py wrote"
            )
        if [path.resolve() for path in arguments.checkpoint] == [against.resolve()]:
            raise UserError(
                f"--against {against} is the checkpoint itself: give another one, or a folder of"
                " results"
            )


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Fill in --output, and check that all files can be written. Raises UserError."""
    results = (METRICS, RANKS, STYLE_RANKS, SCORES, SCORES_RECORD, MOMENTS, MOMENTS_TABLE)
    names = [METRICS, RANKS] if not arguments.moments else [MOMENTS, MOMENTS_TABLE]
    names = [] if arguments.queries else names
    names += [STYLE_RANKS] if arguments.captions else []
    names += [SCORES, SCORES_RECORD] if arguments.save_scores else []
    arguments.is_default_output = bool(names) and arguments.output is None
    if arguments.is_default_output:
        checkpoint = arguments.checkpoint[0]
        if len(arguments.checkpoint) > 1:
            raise UserError("the result of several checkpoints has no folder: add --output DIR")
        if checkpoint.is_file():
            raise UserError(
                f"checkpoint {checkpoint} is a file and has no folder for its result: add"
                " --output DIR"
            )
        if not is_own_folder(checkpoint):
            raise UserError(
                f"checkpoint {checkpoint} is not a model folder of this project, where results"
                " belong: add --output DIR"
            )
        name = arguments.split + ("_relevance" if arguments.relevance else "")
        name += "_captions" if arguments.captions else ""
        name += "_moments" if arguments.moments else ""
        arguments.output = checkpoint / "results" / name
    outputs = [arguments.output / name for name in names]
    if arguments.report:
        page = (REPORT_PAGE, REPORT_FIGURES)
        page = (MOMENTS_PAGE, MOMENTS_FIGURES) if arguments.moments else page
        outputs += [arguments.report / name for name in page]
    submission = None
    if arguments.submission:
        kind, submission = str(arguments.submission[0]), arguments.submission[1]
        kinds = MOMENT_FORMATS if arguments.moments else FORMATS
        if kind not in kinds:
            with_moments = " with --moments" if arguments.moments else ""
            raise UserError(
                f"--submission {kind}: must be {' or '.join(kinds)}{with_moments}, followed by the"
                " file to write"
            )
        arguments.submission = kind, submission
    for option, file in (("--submission", submission), ("--predictions", arguments.predictions)):
        if file:
            inputs = (arguments.queries, arguments.relevance, arguments.captions)
            taken = [*outputs, *filter(None, inputs)]
            if arguments.output:
                taken += [arguments.output / name for name in results]
            check_not_among(option, file, taken)
            for checkpoint in filter(is_own_folder, arguments.checkpoint):
                if not file.resolve().is_relative_to((checkpoint / "results").resolve()):
                    check_not_within(option, file, "--checkpoint", checkpoint)
            outputs.append(file)
    check_outputs(outputs)


def check_outside_cache(arguments: argparse.Namespace, cache: Path) -> None:
    """Raise UserError if a file to write lies in the cache, also in that of the run."""
    submission = arguments.submission[1] if arguments.submission else None
    check_not_within("--submission", submission, "cache", cache)
    check_not_within("--predictions", arguments.predictions, "cache", cache)
