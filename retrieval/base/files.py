"""Read and write files: errors of the disk, JSON, and files that appear when they are complete."""

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from retrieval.base.errors import UserError, one_line

# EDQUOT is not defined on every platform.
QUOTA = getattr(errno, "EDQUOT", errno.ENOSPC)
# Full disk, full quota, and the file size limit of the shell (`ulimit -f`).
DISK_FULL = (errno.ENOSPC, QUOTA, errno.EFBIG)
REMEDIES = {
    QUOTA: "the quota is used up: make room there",
    errno.ENOSPC: "make room there",
    errno.EFBIG: (
        "files of this size are not allowed there: see ulimit -f, and the file system's own limit"
    ),
    errno.EROFS: "the file system is read-only: have it mounted for writing",
    errno.EACCES: "permission is missing: change it",
    errno.EPERM: "permission is missing: change it",
    errno.EIO: "the disk or the network drive fails: check it",
    errno.EBUSY: "wait until no other program uses it",
}
OTHER = "check that path"
NUMBER_OF_TEXT = {
    # torch.save: no error number in its message
    **dict.fromkeys(
        ("PytorchStreamWriter failed", "unexpected pos", "iostream error"), errno.ENOSPC
    ),
    # sqlite3.OperationalError
    "database or disk is full": errno.ENOSPC,
    "disk I/O error": errno.EIO,
    "readonly database": errno.EROFS,
    "database is locked": errno.EBUSY,
    "unable to open database file": errno.ENOENT,
    # libsndfile: its only word for all errors of the disk
    "System error.": errno.ENOSPC,
}
# Advice after a remedy, for commands that continue an interrupted build.
FINISHED_PARTS_ARE_KEPT = "and run the same command again: finished parts are kept"
ANOTHER_FOLDER = "or choose another output folder"


def disk_remedy(error: Exception) -> str | None:
    """Return the remedy of an error that the disk caused, None for any other error.

    A full disk raises OSError in Python, SafetensorError or Exception with `(os error 28)` in Rust
    (safetensors, tokenizers), RuntimeError in torch.save, and OperationalError in SQLite.
    """
    if isinstance(error, OSError):
        # None: transformers raises OSErrors without a number for files that it cannot use
        number = error.errno
    elif found := re.search(r"\(os error (\d+)\)", str(error)):
        number = int(found[1])
    else:
        number = next(
            (number for text, number in NUMBER_OF_TEXT.items() if text in str(error)), None
        )
    return None if number is None else REMEDIES.get(number, OTHER)


@contextmanager
def disk_errors(target: str | Path, advice: str) -> Iterator[None]:
    """Turn an error of the disk within the block into a UserError; raise all others unchanged.

    Args:
        target: The file or folder that is written, as the message names it.
        advice: Follows the remedy, such as "or choose another folder".
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        remedy = disk_remedy(error)
        if remedy is None:
            raise
        reason = getattr(error, "strerror", None) or one_line(error)
        file = getattr(error, "filename", None)
        # The error may be about another file, which the block reads.
        if isinstance(file, str) and str(Path(file).parent) not in str(target):
            reason += f": {file}"
        raise UserError(f"{target} cannot be written ({reason}); {remedy}, {advice}") from None


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

    A full disk would kill a process that writes to a memory map. Some platforms cannot reserve.
    """
    if hasattr(os, "posix_fallocate"):
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))


def check_writable(folder: Path) -> None:
    """Raise UserError if no file can be written to `folder`, which need not exist.

    Leaves nothing behind.
    """
    with disk_errors(folder, ANOTHER_FOLDER):
        tempfile.TemporaryFile(dir=nearest_existing(folder)).close()


def nearest_existing(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


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


def check_not_within(option: str, file: Path | None, name: str, folder: Path) -> None:
    """Raise UserError if `file`, the value of `option`, lies in a folder that this run reads.

    name: of the folder, in the message.
    """
    if file and file.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{option} {file} lies within {name} {folder}, which this run reads: choose"
            " another place"
        )


def is_unicode(text: str) -> bool:
    """Return False for half a character, as JSON's "\\ud83d", which no file or tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_json(text: str | bytes) -> Any:
    """Parse `text`. Raises ValueError if it is not JSON, or nested too deep for Python."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its lists and objects are nested too deep") from None


def read_json(path: Path) -> Any:
    """Parse the file `path`. Raises OSError, and ValueError as parse_json does."""
    if path.exists() and not path.is_file():  # a pipe or a device may never end
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return parse_json(path.read_text(encoding="utf-8-sig"))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path` in one step. Raises UserError."""
    with atomic_writer(path) as file:
        file.write(json.dumps(content, indent=2) + "\n")
