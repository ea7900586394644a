"""Files that appear under their name only when they are whole, and folders that one process
holds.
"""

import errno
import fcntl
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from retrieval.base.disk import disk_remedy
from retrieval.base.errors import UserError


@contextmanager
def atomic_writer(path: Path) -> Iterator[TextIO]:
    """A text file that replaces `path` in one step, at the end, and only if nothing went wrong.
    Raises UserError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with _explained(path):
        if path.exists() and not path.is_file():  # a device or a pipe would be replaced as well
            raise UserError(
                f"{path} is there and is not a file; give another name for what is to be written"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "w", encoding="utf-8", newline="") as file:
                yield file
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raises UserError where files could not be written to `folder`, which need not exist. Leaves
    nothing behind.
    """
    with _explained(folder):
        nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        tempfile.TemporaryFile(dir=nearest).close()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); {disk_remedy(error)}, or choose another"
            " output folder"
        ) from None


LOCK = ".lock"


def lock_folder(folder: Path) -> TextIO:
    """Hold `folder` until the file that is returned is closed or this process ends, however it
    ends. Raises UserError where another process does.

    A record lock: processes that this one forks do not inherit it, and would not keep it after its
    death.
    """
    file = open(folder / LOCK, "a+", encoding="utf-8")
    _record_lock(file, fcntl.LOCK_EX, folder)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def check_unlocked(folder: Path) -> None:
    """Raises UserError where another process holds `folder`. Not for the holder: looking would let
    go.
    """
    if (folder / LOCK).exists():
        with open(folder / LOCK, encoding="utf-8") as file:
            _record_lock(file, fcntl.LOCK_SH, folder)


def _record_lock(file: TextIO, kind: int, folder: Path) -> None:
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return  # a file system without locks
        file.seek(0)
        holder = file.read() or "another process"
        file.close()
        raise UserError(
            f"{holder} is at work in {folder}: wait until it has ended, or choose another folder"
        ) from None


def sha256_of(path: Path) -> str:
    """Of the file's content, read in parts."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_outputs(paths: Sequence[Path]) -> None:
    """Raises UserError where one of these files could not be written."""
    for path in paths:
        check_writable(path.parent)
        if path.is_dir():
            raise UserError(
                f"{path} is a folder, and a file is to be written under that name: remove it, or"
                " choose another output"
            )


def check_not_among(option: str, file: Path, others: Sequence[Path]) -> None:
    """Raises UserError where the file of `option` would take the place of one that this run reads
    or that belongs to its results.
    """
    if file.resolve() in {other.resolve() for other in others}:
        raise UserError(
            f"{option} {file} is a file that this run reads, or the name of one of its results:"
            " choose another name"
        )


def write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_writer(path) as file:
        file.write(json.dumps(content, indent=2) + "\n")
