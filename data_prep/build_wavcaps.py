"""WavCaps on disk -> Arrow cache, without the clips that other corpora test with.

    python data_prep/build_wavcaps.py --root data/wavcaps --exclude-clotho data/clotho_v2 \\
        --exclude-audiocaps data/audiocaps/test.csv data/audiocaps/val.csv
    python data_prep/build_wavcaps.py --root data/wavcaps --sources SoundBible --codec flac \\
        --max-seconds 0 --output data/soundbible

Reads WavCaps' folders and writes `<root>/cache` with one split, development. Most of the 7,500
hours lie in recordings of minutes and hours. A training takes 30 s of a clip (`data.max_seconds`),
so by default the first 30 s are kept, as MP3 (V0, some 50 MB/h at 32 kHz): all sources fit on an
ordinary disk. Excluded clips are counted, and listed in cache.json. At most 5 % of the clips may
be lost, unless `--allow-missing`. Exit code 0, 2 (error, one line), 130 (interrupted: the same
command goes on).
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
from data_prep.corpora.exclusions import Exclusions
from data_prep.corpora.wavcaps_files import SOURCES, leak_warnings, read_wavcaps
from retrieval.base.command import run_main
from retrieval.base.progress import set_quiet


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = build_parser(__doc__, max_lost=5.0, max_seconds=30.0, codec="mp3")
    parser.add_argument(
        "--root", type=Path, required=True, help="WavCaps' folder, with json_files/"
    )
    parser.add_argument(
        "--audio",
        type=Path,
        help="folder with a sub-folder of audio files for each source (default: ROOT/audio)",
    )
    parser.add_argument("--output", type=Path, help="cache folder to write (default: ROOT/cache)")
    source_help = f"any of {' '.join(SOURCES)} (default: all)"
    parser.add_argument(
        "--sources", nargs="+", choices=SOURCES, default=SOURCES, metavar="SOURCE", help=source_help
    )
    clotho_help = "Clotho's folder: its validation and evaluation clips are left out"
    parser.add_argument("--exclude-clotho", type=Path, metavar="ROOT", help=clotho_help)
    ids_help = (
        "CSV files with a column sound_id: Freesound clips to leave out, such as DCASE's list"
    )
    parser.add_argument(
        "--exclude-ids", type=Path, nargs="+", default=[], metavar="FILE", help=ids_help
    )
    audiocaps_help = (
        "CSV files with a column youtube_id, such as AudioCaps' test.csv and val.csv: their videos"
        " are left out"
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
    if arguments.exclude_clotho:
        exclusions.add_clotho(arguments.exclude_clotho)
    for path in arguments.exclude_ids:
        exclusions.add_freesound_list(path)
    for path in arguments.exclude_audiocaps:
        exclusions.add_audiocaps(path)
    sources = [source for source in SOURCES if source in arguments.sources]
    plan = read_wavcaps(arguments.root, audio, sources, exclusions)
    warn(plan, leak_warnings(sources, exclusions) + exclusions.unmatched())
    build_from_plans("wavcaps", output, [plan], arguments)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    set_quiet(arguments.quiet)
    return run(lambda: build(arguments))


if __name__ == "__main__":
    run_main(main)
