"""Shared parts of the build_*.py commands: options of a cache, their checks, build and report."""

import argparse
from pathlib import Path

from data_prep.cache.arrow_cache import CacheSettings, build_cache
from data_prep.cache.split_plan import SplitPlan, print_report
from retrieval.base.errors import OneLineParser, UserError
from retrieval.base.folders import check_has_name
from retrieval.base.processes import usable_cores
from retrieval.data.schema import FLAC, MP3, PCM, SPLITS

CODECS = {"pcm": PCM, "flac": FLAC, "mp3": MP3}
MIN_RATE, MAX_RATE = 8_000, 192_000  # Hz, as in the training configuration


def build_parser(
    description: str, max_lost: float = 1.0, max_seconds: float = 0.0, codec: str = "pcm"
) -> argparse.ArgumentParser:
    """Make a parser with the options of every build.

    Args:
        description: Text of --help.
        max_lost: Default percentage of a split that may be lost.
        max_seconds: Default length of clips; 0 keeps them whole.
        codec: Default codec, a key of CODECS.
    """
    parser = OneLineParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample-rate", type=int, default=32_000, help="Hz (default: 32000)")
    codec_help = (
        "pcm: fastest to read; flac: about half the size, exact; mp3: about a fifth of pcm (V0),"
        " not exact"
    )
    parser.add_argument(
        "--codec", choices=CODECS, default=codec, help=f"{codec_help} (default: {codec})"
    )
    cut_help = (
        f"keep the first S seconds of a longer clip; 0: clips stay whole (default: {max_seconds:g})"
    )
    parser.add_argument(
        "--max-seconds", type=float, default=max_seconds, metavar="S", help=cut_help
    )
    parser.add_argument(
        "--num-proc",
        type=int,
        default=min(8, usable_cores()),
        help="processes (default: one per core, at most 8)",
    )
    lost_help = (
        f"go on when more than this share of a split's clips is lost (default: {max_lost:g};"
        " without a number: any share)"
    )
    parser.add_argument(
        "--allow-missing",
        "--max-lost",
        type=float,
        nargs="?",
        const=100.0,
        default=max_lost,
        metavar="PERCENT",
        help=lost_help,
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="build anew and replace the cache that is there"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser


def check_options(arguments: argparse.Namespace) -> None:
    """Raise UserError for numbers out of range."""
    if not MIN_RATE <= arguments.sample_rate <= MAX_RATE:
        raise UserError(
            f"--sample-rate {arguments.sample_rate}: expected {MIN_RATE} to {MAX_RATE} Hz"
        )
    if arguments.num_proc < 1:
        raise UserError(f"--num-proc {arguments.num_proc}: expected 1 or more")
    if not 0 <= arguments.allow_missing <= 100:
        raise UserError(
            f"--allow-missing {arguments.allow_missing:g}: expected a percentage, 0 to 100"
        )
    if not 0 <= arguments.max_seconds < float("inf"):
        raise UserError(
            f"--max-seconds {arguments.max_seconds:g}: expected seconds, or 0 for whole clips"
        )


def add_fractions(parser: argparse._ActionsContainer) -> None:
    """Add --fractions to a parser, or to a group of options that exclude each other."""
    parser.add_argument(
        "--fractions",
        type=float,
        nargs=3,
        metavar=tuple(split.upper() for split in SPLITS),
        help="divide the clips at random among the splits: shares that add up to 1",
    )


def check_fractions(fractions: list[float] | None, seed: int | None) -> None:
    """Raise UserError if the shares do not add up to 1, or if a seed comes without shares."""
    if fractions and not (min(fractions) >= 0 and abs(sum(fractions) - 1) <= 1e-6):  # nor NaN
        given = " ".join(f"{share:g}" for share in fractions)
        raise UserError(f"--fractions {given}: expected three shares of 0 or more that add up to 1")
    if seed is not None and not fractions:
        raise UserError("--seed has no effect without --fractions")


def check_output(output: Path, sources: dict[str, Path]) -> None:
    """Raise UserError if the cache would replace one of its sources, given by their options."""
    check_has_name(output)
    for option, source in sources.items():
        if source.resolve().is_relative_to(output.resolve()):
            raise UserError(
                f"--output {output} would replace {option} {source}: choose another folder"
            )


def warn(plan: SplitPlan, warnings: list[str]) -> None:
    """Print warnings now, since the build may take hours, and again in its report."""
    for warning in warnings:
        print(f"warning: {warning}", flush=True)
    plan.notes += [f"warning: {warning}" for warning in warnings]


def build_from_plans(
    corpus: str, output: Path, plans: list[SplitPlan], arguments: argparse.Namespace
) -> None:
    """Build the cache with the options of `build_parser`, and print a report. Raises UserError."""
    codec, max_seconds = CODECS[arguments.codec], arguments.max_seconds or None
    settings = CacheSettings(corpus, codec, arguments.sample_rate, max_seconds)
    max_lost = arguments.allow_missing / 100
    info = build_cache(output, settings, plans, arguments.num_proc, max_lost, arguments.overwrite)
    print_report(info, plans)
    print(f"cache: {output}")
