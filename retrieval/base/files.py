"""Files that appear under their name only when they are complete; checks of outputs."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from retrieval.base.disk import disk_errors
from retrieval.base.errors import UserError

ANOTHER_FOLDER = "or choose another output folder"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary file name; the file replaces `path` at the end if the block raised nothing.

    It is flushed to disk before the rename: a power cut leaves the old content or the new one.
    The folders above `path` are made. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_writer(path: Path) -> Iterator[TextIO]:
    """An open text file that replaces `path` at the end if the block raised nothing.

    Line ends are written as they are. Raises UserError if `path` cannot be written, or is a device
    or a pipe.
    """
    with disk_errors(path, ANOTHER_FOLDER):
        if path.exists() and not path.is_file():  # a device or a pipe would be replaced as well
            raise UserError(f"{path} exists and is not a file: give the output another name")
        with atomic_path(path) as temporary:
            with open(temporary, "w", encoding="utf-8", newline="") as file:
                yield file


def allocate(path: Path) -> None:
    """Reserve the disk space of a sparse file. Raises OSError for a full disk.

    A full disk would kill a process that writes to a memory map. Not every platform can reserve.
    """
    if hasattr(os, "posix_fallocate"):
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))


def check_writable(folder: Path) -> None:
    """Raise UserError if no file can be written to `folder`, which need not exist.

    Leaves nothing behind.
    """
    with disk_errors(folder, ANOTHER_FOLDER):
        nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        tempfile.TemporaryFile(dir=nearest).close()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits. The file is read in parts."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_outputs(paths: Sequence[Path]) -> None:
    """Raise UserError if one of these files cannot be written."""
    for path in paths:
        check_writable(path.parent)
        if path.is_dir():
            raise UserError(f"{path} is a folder, expected a file: choose another output")


def check_not_among(option: str, file: Path, others: Sequence[Path]) -> None:
    """Raise UserError if `file`, the value of `option`, is one of `others`.

    Others are the files that this run reads, and its other results.
    """
    if file.resolve() in {other.resolve() for other in others}:
        raise UserError(
            f"{option} {file} is a file that this run reads, or another result: choose another name"
        )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path` in one step. Raises UserError."""
    with atomic_writer(path) as file:
        file.write(json.dumps(content, indent=2) + "\n")
