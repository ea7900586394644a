"""Disk errors of Python and of libraries, and their remedies."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retrieval.base.errors import UserError, one_line

# Not on every platform: EDQUOT.
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
}
# Advice after a remedy, for commands that continue an interrupted build.
FINISHED_PARTS_ARE_KEPT = "and run the same command again: finished parts are kept"


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


@contextmanager
def disk_errors(target: str | Path, advice: str) -> Iterator[None]:
    """Turn an error of the disk within the block into a UserError; raise all others unchanged.

    Args:
        target: The file or folder that is written, in the words of the message.
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
        # A file elsewhere: the block also reads.
        if isinstance(file, str) and str(Path(file).parent) not in str(target):
            reason += f": {file}"
        raise UserError(f"{target} cannot be written ({reason}); {remedy}, {advice}") from None
