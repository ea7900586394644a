"""CASTELLA on disk -> Arrow cache with times.

    python data_prep/build_castella.py --annotations data/castella/json/en \\
        --audio data/castella/audio --output data/castella/cache
    python data_prep/build_castella.py --annotations data/lighthouse --audio data/castella/audio \\
        --splits evaluation --output data/castella/lighthouse

Reads the json files of line/CASTELLA (json/en or json/ja), or lighthouse's
castella_{train,val,test}_release.jsonl, and your own audio files, `<YouTube id>.<any ending>`.
Writes the splits development (train), validation (val) and evaluation (test): a clip for each
recording, its caption, and its queries with their windows. Recordings longer than the annotated
300 s are cut there. Recordings that YouTube no longer has are listed in cache.json: up to 20 % of a
split may be lost, unless `--max-lost` says otherwise. Faults of the annotations are repaired and
counted in the report. Exit code 0, 2 (error, one line), 130 (interrupted: the same command goes
on).
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
)
from data_prep.corpora.castella_files import SECONDS, read_castella
from retrieval.base.command import run_main
from retrieval.base.progress import set_quiet
from retrieval.data.schema import SPLITS


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = build_parser(__doc__, max_lost=20.0, max_seconds=SECONDS)
    annotations_help = "folder of {train,val,test}.json or castella_{train,val,test}_release.jsonl"
    parser.add_argument("--annotations", type=Path, required=True, help=annotations_help)
    parser.add_argument(
        "--audio", type=Path, required=True, help="folder with the audio files, in any sub-folders"
    )
    parser.add_argument("--output", type=Path, help="cache folder to write (default: AUDIO/cache)")
    split_help = f"any of {' '.join(SPLITS)} (default: all)"
    parser.add_argument(
        "--splits", nargs="+", choices=SPLITS, default=SPLITS, metavar="SPLIT", help=split_help
    )
    return parser.parse_args(argv)


def build(arguments: argparse.Namespace) -> None:
    check_options(arguments)
    output = arguments.output or arguments.audio / "cache"
    check_output(output, {"--annotations": arguments.annotations, "--audio": arguments.audio})
    splits = [split for split in SPLITS if split in arguments.splits]
    plans = read_castella(arguments.annotations, arguments.audio, splits)
    build_from_plans("castella", output, plans, arguments)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    set_quiet(arguments.quiet)
    return run(lambda: build(arguments))


if __name__ == "__main__":
    run_main(main)
