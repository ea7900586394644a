"""Export a trained model as ONNX graphs, or the vectors of a split as a Parquet file.

python -m retrieval.export --checkpoint DIR --onnx --output DIR [--overwrite]
python -m retrieval.export --checkpoint DIR --parquet FILE --cache DIR --split NAME [--frames]
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval.base.checkpoints import hub_name
from retrieval.base.errors import OneLineParser
from retrieval.base.extras import needs_extra
from retrieval.base.launch import check_environment
from retrieval.base.progress import set_quiet, silence_transformers
from retrieval.evaluation.options import (
    CHECKPOINT_HELP,
    TEXT_ENCODER_HELP,
    check_checkpoints,
)

if TYPE_CHECKING:
    from retrieval.models.dual_encoder import DualEncoder


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    set_quiet(arguments.quiet)
    check_environment(several=False)
    check_checkpoints([arguments.checkpoint])
    if arguments.onnx:
        write_onnx(arguments)
    else:
        write_parquet(arguments)
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m retrieval.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help=CHECKPOINT_HELP,
    )
    parser.add_argument(
        "--text-encoder",
        type=Path,
        metavar="NAME",
        help=TEXT_ENCODER_HELP,
    )
    parser.add_argument(
        "--onnx",
        action="store_true",
        help="both towers and the score as ONNX, checked against PyTorch",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the ONNX graphs")
    parser.add_argument(
        "--parquet", type=Path, metavar="FILE", help="vectors of clips and captions"
    )
    parser.add_argument(
        "--cache", type=Path, help="Arrow cache whose clips and captions are embedded"
    )
    parser.add_argument("--split", default="evaluation", help="default: evaluation")
    parser.add_argument(
        "--frames",
        action="store_true",
        help="also the frames of each clip (TAP), which the exact score needs",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an earlier export of that name",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")
    arguments = parser.parse_args(argv)
    if arguments.onnx == (arguments.parquet is not None):
        parser.error("give either --onnx --output DIR, or --parquet FILE --cache DIR")
    if arguments.onnx and arguments.output is None:
        parser.error("--onnx needs --output DIR")
    if arguments.parquet and arguments.cache is None:
        parser.error("--parquet needs --cache DIR")
    if arguments.parquet and arguments.output:
        parser.error("--output is the folder of --onnx; --parquet names its file itself")
    if arguments.onnx and (arguments.cache or arguments.frames):
        parser.error("--cache and --frames belong to --parquet")
    return arguments


def write_onnx(arguments: argparse.Namespace) -> None:
    from retrieval.sharing.export.checks import check_folder

    with needs_extra("export"):
        from retrieval.sharing.export.onnx_files import export_onnx

    check_folder(arguments.output, arguments.overwrite)
    model, source = load(arguments), source_of(arguments.checkpoint)
    export = export_onnx(model, arguments.output, source, arguments.overwrite)
    for name, difference in export["differences_to_pytorch"].items():
        print(f"largest difference to PyTorch, {name}: {difference:.2g}")
    graphs = export["graphs"].values()
    names = ", ".join(graph["file"] for graph in graphs)
    megabytes = sum(graph["bytes"] for graph in graphs) / 1e6
    print(f"written: {arguments.output} ({names}; {megabytes:.1f} MB, opset {export['opset']})")


def write_parquet(arguments: argparse.Namespace) -> None:
    from retrieval.data import open_cache
    from retrieval.evaluation.score_matrix import cache_rate, check_sample_rate, hear_cache
    from retrieval.sharing.export.checks import check_file, check_room
    from retrieval.sharing.export.parquet import export_parquet, num_bytes

    check_file(arguments.parquet, arguments.overwrite)
    cache = open_cache(arguments.cache)
    split = cache.split(arguments.split, need_captions=False)
    model = load(arguments)
    check_sample_rate(cache, arguments.checkpoint, cache_rate(model))
    hear_cache(model, cache)
    check_room(arguments.parquet, num_bytes(model, split, arguments.frames))
    source = source_of(arguments.checkpoint) | {"corpus": str(cache.info.get("corpus"))}
    num_rows = export_parquet(model, split, arguments.parquet, source, frames=arguments.frames)
    print(
        f"written: {arguments.parquet} ({len(split)} clips, {num_rows - len(split)} captions,"
        f" {model.architecture['dim']} numbers each)"
    )


def load(arguments: argparse.Namespace) -> "DualEncoder":
    import torch

    from retrieval.models.pretrained import load_pretrained

    silence_transformers()
    model = load_pretrained(arguments.checkpoint, arguments.text_encoder)
    return model.cuda() if torch.cuda.is_available() and arguments.parquet else model


def source_of(checkpoint: Path) -> dict[str, str]:
    """Return name and weights digest of the exported model.

    The name is user/name@commit for a hub model, else the last two parts of its path.
    """
    from retrieval.models.pretrained import exact_name, local_checkpoint
    from retrieval.sharing.export.checks import weights_sha256

    name = exact_name(checkpoint)
    return {
        "checkpoint": name if hub_name(checkpoint) else "/".join(Path(name).parts[-2:]),
        "weights_sha256": weights_sha256(local_checkpoint(name)),
    }
