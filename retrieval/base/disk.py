"""Disk errors of Python and of libraries, and their remedies."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retrieval.base.errors import UserError

REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "the quota is used up: make room there",
    errno.EFBIG: (
        "files of this size are not allowed there: see ulimit -f, and what the file system can hold"
    ),
    errno.EROFS: "the file system is read-only: have it mounted for writing",
    errno.EACCES: "permission is missing: change it",
    errno.EPERM: "permission is missing: change it",
    errno.EIO: "the disk or the network drive fails: check it",
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
}


def disk_remedy(error: Exception) -> str | None:
    """Return the remedy of an error that the disk caused, None for any other error.

    A full disk raises OSError in Python, SafetensorError or Exception with `(os error 28)` in Rust
    (safetensors, tokenizers), RuntimeError in torch.save, and OperationalError in SQLite.
    """
    if isinstance(error, OSError):
        # none in the OSErrors that transformers raises for files it cannot use
        number = error.errno
    elif found := re.search(r"\(os error (\d+)\)", str(error)):
        number = int(found[1])
    else:
        number = next(
            (number for text, number in NUMBER_OF_TEXT.items() if text in str(error)), None
        )
    return None if number is None else REMEDIES.get(number, OTHER)


# Full disk, full quota, and the file size limit of the shell (`ulimit -f`).
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turn an OSError raised while writing in `place` into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(
                f"disk full ({error.strerror}) while writing in {place}: free some space and run"
                " the same command again; finished parts are kept"
            ) from None
        raise UserError(f"cannot write in {place}: {error}") from None
