"""AudioCaps on disk -> Arrow cache.

    python data_prep/build_audiocaps.py --root data/audiocaps --audio data/audiocaps/audio
    python data_prep/build_audiocaps.py --root data/audiocaps --splits development --codec flac \\
        --exclude-audiocaps old/test.csv

Reads AudioCaps' CSV files and your own audio files, the 10 s excerpts, and writes `<root>/cache`
with the splits development (train.csv), validation (val.csv) and evaluation (test.csv). Videos of
val.csv and test.csv, and of the files of `--exclude-audiocaps`, are left out of development. Clips
without a file are listed in cache.json: up to 20 % of a split may be lost, unless `--allow-missing`
says otherwise. Exit code 0, 2 (error, one line), 130 (interrupted: the same command goes on).
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # import from the repository, and nothing from this folder
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(path for path in sys.path if Path(path).resolve() != here)]

from data_prep.command import run  # first: from here on Ctrl-C prints one line

# isort: split

import argparse

from data_prep.cache.build_command import (
    build_from_plans,
    build_parser,
    check_options,
    check_output,
    warn,
)
from data_prep.corpora.audiocaps_files import read_audiocaps
from data_prep.corpora.exclusions import Exclusions
from retrieval.base.command import run_main
from retrieval.base.progress import set_quiet
from retrieval.data.schema import DEVELOPMENT, SPLITS


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = build_parser(__doc__, max_lost=20.0)
    parser.add_argument(
        "--root", type=Path, required=True, help="folder with train.csv, val.csv and test.csv"
    )
    parser.add_argument(
        "--audio",
        type=Path,
        help="folder with the audio files, in any sub-folders (default: ROOT/audio)",
    )
    parser.add_argument("--output", type=Path, help="cache folder to write (default: ROOT/cache)")
    split_help = f"any of {' '.join(SPLITS)} (default: all)"
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=SPLITS,
        default=SPLITS,
        metavar="SPLIT",
        help=split_help,
    )
    audiocaps_help = (
        "further CSV files with a column youtube_id, such as those of AudioCaps' other version:"
        " their videos are left out of development"
    )
    parser.add_argument(
        "--exclude-audiocaps", type=Path, nargs="+", default=[], metavar="FILE", help=audiocaps_help
    )
    return parser.parse_args(argv)


def build(arguments: argparse.Namespace) -> None:
    check_options(arguments)
    audio = arguments.audio or arguments.root / "audio"
    output = arguments.output or arguments.root / "cache"
    check_output(output, {"--root": arguments.root, "--audio": audio})
    exclusions = Exclusions()
    for path in arguments.exclude_audiocaps:
        exclusions.add_audiocaps(path)
    splits = [split for split in SPLITS if split in arguments.splits]
    plans = read_audiocaps(arguments.root, audio, splits, exclusions)
    if DEVELOPMENT in splits:  # the only split that loses clips to exclusions
        warn(plans[0], exclusions.unmatched())
    build_from_plans("audiocaps", output, plans, arguments)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    set_quiet(arguments.quiet)
    return run(lambda: build(arguments))


if __name__ == "__main__":
    run_main(main)
