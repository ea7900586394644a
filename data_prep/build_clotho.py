"""Clotho on disk -> Arrow cache.

    python data_prep/build_clotho.py --root data/clotho_v2 --download
    python data_prep/build_clotho.py --root data/clotho_v2 --splits evaluation --codec flac --output data/clotho_flac

Reads Clotho's folder layout (clotho_files.py), writes `<root>/cache` (arrow_cache.py): every clip once, mono, resampled, 16 bit, with its
captions and metadata. `--download` first fetches from Zenodo what is missing; a split folder that exists is used as it is. An interrupted
download or build goes on where it was when the same command is run again. The files that are lost are listed with the reason; more than
1 % of a split lost stops the build, unless `--allow-missing`. Exit code 0, 2 (error, one line), 130 (interrupted).
"""

import argparse
import os
import sys
from pathlib import Path

from arrow_cache import CacheSettings, build_cache, print_report
from clotho_download import ZENODO_URL, download_clotho
from clotho_files import SPLITS, read_clotho
from prep_errors import OneLineParser, UserError, check_has_name, run

CODECS = {"pcm": "pcm_s16le", "flac": "flac"}
MIN_RATE, MAX_RATE = 8_000, 192_000  # Hz, as in the training configuration


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="Clotho's folder: split folders and CSV files")
    parser.add_argument("--output", type=Path, help="cache folder to write (default: ROOT/cache)")
    split_help = f"any of {' '.join(SPLITS)} (default: all)"
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, metavar="SPLIT", help=split_help)
    parser.add_argument("--sample-rate", type=int, default=32_000, help="Hz (default: 32000)")
    parser.add_argument("--codec", choices=CODECS, default="pcm", help="pcm: fastest to read (default); flac: about half the size")
    num_cores = len(os.sched_getaffinity(0))
    parser.add_argument("--num-proc", type=int, default=min(8, num_cores), help="processes (default: one a core, at most 8)")
    parser.add_argument("--allow-missing", action="store_true", help="go on when more than 1 %% of a split's clips are lost")
    parser.add_argument("--overwrite", action="store_true", help="build anew and replace the cache that is there")
    parser.add_argument("--download", action="store_true", help="fetch missing files first, and unpack them")
    parser.add_argument("--base-url", help=f"with --download: a mirror (default: {ZENODO_URL})")
    parser.add_argument("--checksums", type=Path, help="with --download: md5sum file for a mirror whose files differ from Zenodo's")
    return parser.parse_args(argv)


def build(arguments: argparse.Namespace) -> None:
    if not MIN_RATE <= arguments.sample_rate <= MAX_RATE:
        raise UserError(f"--sample-rate {arguments.sample_rate}: expected {MIN_RATE} to {MAX_RATE} Hz")
    if arguments.num_proc < 1:
        raise UserError(f"--num-proc {arguments.num_proc}: expected 1 or more")
    if not arguments.download and (arguments.base_url or arguments.checksums):
        raise UserError("--base-url and --checksums have no effect without --download")
    splits = [split for split in SPLITS if split in arguments.splits]
    if arguments.download:
        download_clotho(arguments.root, splits, arguments.base_url or ZENODO_URL, arguments.checksums)
    output = arguments.output or arguments.root / "cache"
    check_has_name(output)
    if arguments.root.resolve().is_relative_to(output.resolve()):
        raise UserError(f"--output {output} would replace --root {arguments.root}: choose another folder")
    plans = read_clotho(arguments.root, splits)
    settings = CacheSettings("clotho", CODECS[arguments.codec], arguments.sample_rate)
    info = build_cache(output, settings, plans, arguments.num_proc, arguments.allow_missing, arguments.overwrite)
    print_report(info, plans)
    print(f"cache: {output}")


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    return run(lambda: build(arguments))


if __name__ == "__main__":
    sys.exit(main())
