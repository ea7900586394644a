"""Options of a command that name an index: --index, --store, --frames-store."""

import argparse
from pathlib import Path

from retrieval.base.errors import UserError, user_path
from retrieval.search.cluster.address import Address, is_address


def add_place(parser: argparse.ArgumentParser, is_required: bool = False) -> None:
    """Add the options; --index and --store both set `index`, to a Path or an Address."""
    add = parser.add_mutually_exclusive_group(required=is_required).add_argument
    add("--index", type=_folder, metavar="DIR", help="folder of the index")
    store = (
        "instead of --index: an index in a PostgreSQL database, for several machines"
        " (docs/large_indexes.md), as postgresql://user@host/database?index=NAME"
    )
    add("--store", dest="index", type=_address, metavar="URI", help=store)
    frames = (
        "with --store: place of the frames, a folder that all machines share or"
        " s3://bucket/prefix; default: where they were"
    )
    parser.add_argument("--frames-store", metavar="PLACE", help=frames)


def check_store_arguments(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Exit with one line if options of a database are given for a folder."""
    if isinstance(arguments.index, Address):
        return
    for option in ("frames_store", "shard"):
        if getattr(arguments, option, None) is not None:
            parser.error(f"--{option.replace('_', '-')} belongs to --store URI")


def _folder(text: str) -> Path:
    if is_address(text):
        raise argparse.ArgumentTypeError("takes a folder: give the address to --store")
    if not text:
        raise argparse.ArgumentTypeError("is empty; give a path")
    return user_path(text)


def _address(text: str) -> Address:
    if not is_address(text):
        raise argparse.ArgumentTypeError(
            "expected postgresql://user@host/database?index=NAME; a folder is for --index"
        )
    try:
        return Address.parse(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
