"""Checks before an export, so that it does not fail after minutes of work."""

import hashlib
import shutil
from pathlib import Path

from retrieval.base.checkpoints import weight_files
from retrieval.base.errors import UserError
from retrieval.base.files import check_writable, nearest_existing, sha256_of

ABOUT = "export.json"  # marks a folder of ONNX graphs


def check_folder(output: Path, overwrite: bool) -> None:
    """Raise UserError if the folder `output` cannot be written or holds anything to keep.

    Only an earlier export is replaced, and only with `overwrite`.
    """
    check_writable(output.parent)
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / ABOUT).is_file():
        raise UserError(
            f"--output {output} exists and is not an earlier export (it has no {ABOUT}): give"
            " another folder"
        )
    own = ("audio.onnx", "text.onnx", "score.onnx", "tokenizer", "README.md", ABOUT)
    if foreign := [path.name for path in output.iterdir() if not path.name.startswith(own)]:
        raise UserError(
            f"--output {output} holds {foreign[0]} beside an export, which would be lost: move it,"
            " or give another folder"
        )
    if not overwrite:
        raise UserError(
            f"--output {output} holds an export already: give another folder, or replace it with"
            " --overwrite"
        )


def check_file(path: Path, overwrite: bool) -> None:
    """Raise UserError if `path` cannot be written, or exists without `overwrite`."""
    check_writable(path.parent)
    if path.is_dir():
        raise UserError(f"--parquet {path} is a folder: give the name of a file")
    if path.exists() and not overwrite:
        raise UserError(
            f"--parquet {path} exists: give another file, or replace it with --overwrite"
        )


def check_room(output: Path, num_bytes: float) -> None:
    """Raise UserError if the disk of `output` has less than `num_bytes` left."""
    free = shutil.disk_usage(nearest_existing(output.absolute().parent)).free
    if num_bytes > free:
        raise UserError(
            f"{output} takes {num_bytes / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are left there:"
            " make room, or write to another disk"
        )


def weights_sha256(checkpoint: Path) -> str:
    """Return the SHA-256 of the weights in a model folder, or of a checkpoint file.

    For several files: the SHA-256 of their digests, one a line, sorted by name.
    """
    files = weight_files(checkpoint) if checkpoint.is_dir() else [checkpoint]
    digests = [sha256_of(file) for file in files]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    )
