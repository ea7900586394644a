"""Clotho on disk -> Arrow cache.

    python data_prep/build_clotho.py                # from data/clotho_v2, the configurations' place
    python data_prep/build_clotho.py --download     # download it first
    python data_prep/build_clotho.py --root data/clotho_v2 --splits evaluation --codec flac \\
        --output data/clotho_flac

Reads Clotho's folder and writes `<root>/cache`: every clip once, mono, resampled, 16 bit, with its
captions and metadata. `--download` first fetches missing files from Zenodo; a split folder that
exists is used as it is. An interrupted download or build goes on when the same command is run
again. Lost files are listed with the reason; more than 1 % of a split lost stops the build, unless
`--allow-missing`. Exit code 0, 2 (error, one line), 130 (interrupted).
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
from data_prep.corpora.clotho_download import ZENODO_URL, describe_download, download_clotho
from data_prep.corpora.clotho_files import holds_clotho, read_clotho
from retrieval.base.command import run_main
from retrieval.base.errors import UserError
from retrieval.base.progress import set_quiet
from retrieval.data.schema import SPLITS

ROOT = Path("data/clotho_v2")  # data.cache of the configurations is its `cache`


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = build_parser(__doc__)
    root_help = (
        f"Clotho's folder: split folders and CSV files (default: {ROOT}, in the current folder)"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help=root_help)
    parser.add_argument("--output", type=Path, help="cache folder to write (default: ROOT/cache)")
    split_help = f"any of {' '.join(SPLITS)} (default: all)"
    parser.add_argument(
        "--splits", nargs="+", choices=SPLITS, default=SPLITS, metavar="SPLIT", help=split_help
    )
    parser.add_argument(
        "--download", action="store_true", help="fetch missing files first, and unpack them"
    )
    parser.add_argument("--base-url", help=f"with --download: a mirror (default: {ZENODO_URL})")
    parser.add_argument(
        "--checksums",
        type=Path,
        help="with --download: md5sum file for a mirror whose files differ from Zenodo's",
    )
    return parser.parse_args(argv)


def build(arguments: argparse.Namespace) -> None:
    check_options(arguments)
    if not arguments.download and (arguments.base_url or arguments.checksums):
        raise UserError("--base-url and --checksums have no effect without --download")
    splits = [split for split in SPLITS if split in arguments.splits]
    if arguments.download:
        download_clotho(
            arguments.root, splits, arguments.base_url or ZENODO_URL, arguments.checksums
        )
    elif not holds_clotho(arguments.root):
        place = "" if arguments.root.is_absolute() else f" (in {Path.cwd()})"
        remedy = (
            f"--download fetches {describe_download(splits)}; if you have Clotho already, give"
            " its folder: --root DIR"
        )
        raise UserError(f"--root {arguments.root}{place} holds no Clotho: {remedy}")
    output = arguments.output or arguments.root / "cache"
    check_output(output, {"--root": arguments.root})
    build_from_plans("clotho", output, read_clotho(arguments.root, splits), arguments)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    set_quiet(arguments.quiet)
    return run(lambda: build(arguments))


if __name__ == "__main__":
    run_main(main)
