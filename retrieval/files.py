"""Files that appear under their name only when they are whole, and folders that one process
holds.
"""

import errno
import fcntl
import hashlib
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from retrieval.base.access import check_readable
from retrieval.base.disk import disk_remedy
from retrieval.errors import UserError


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


def latest_state(run: Path) -> Path | None:
    """Return the newest complete state folder of `run`, None without one. Raises UserError if it
    may not be read.
    """
    check_readable(run / "states", "saved state")
    states = [
        path
        for path in (run / "states").glob("step-*")
        if path.suffix != ".partial" and path.is_dir()
    ]
    newest = max(states, default=None)
    if newest is not None:
        check_readable(newest, "saved state")
    return newest


def sha256_of(path: Path) -> str:
    """Of the file's content, read in parts."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
