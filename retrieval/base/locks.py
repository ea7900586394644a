"""Locks on files: one process at a time writes to a run, an index, a cache.

The kernel releases a lock when its holder closes the file or ends, also after SIGKILL. On a file
system without locks, and on a platform without fcntl and msvcrt, every lock is granted.
"""

import errno
import os
import socket
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TextIO

from retrieval.base.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
try:
    import msvcrt
except ImportError:  # not Windows
    msvcrt = None

LOCK = ".lock"  # name of the lock file in a folder
SECONDS_BETWEEN_TRIES = 0.2
WAIT = ": wait until it has ended, or choose another folder"
# Windows locks bytes, which others then cannot read: this one lies behind the content of any file.
WINDOWS_BYTE = 2**40

_held: "weakref.WeakSet[IO]" = weakref.WeakSet()


def try_lock(file: IO, shared: bool = False) -> bool:
    """Lock an open file without waiting.

    Forked children do not keep the lock after their parent's death.

    Args:
        file: Open for writing; for a shared lock, reading is enough. Closing it releases the lock.
        shared: Allow other shared locks at the same time. Windows does not know these.

    Returns:
        False if another process, or another open file of this one, holds the lock.
    """
    try:
        if fcntl is not None:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        elif msvcrt is not None:
            position = os.lseek(file.fileno(), 0, os.SEEK_CUR)
            os.lseek(file.fileno(), WINDOWS_BYTE, os.SEEK_SET)
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            finally:
                os.lseek(file.fileno(), position, os.SEEK_SET)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
    _held.add(file)
    return True


def _close_in_child() -> None:
    # flock belongs to the open file, which a child shares with its parent until both close it
    for file in list(_held):
        with suppress(OSError):
            file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _at_work(file: TextIO, path: Path) -> str:
    """Name the holder of a lock file, as take_lock wrote it, and its folder."""
    file.seek(0)
    return f"{file.read() or 'another process'} is at work in {path.parent}"


def take_lock(path: Path, wait: bool = False) -> TextIO:
    """Lock the file `path`, and write the name of this process into it.

    Args:
        path: The lock file. It is made, with the folders above it, and stays; its holder may
            delete it.
        wait: Wait for another holder, after a line on stderr, instead of raising UserError.

    Returns:
        The open file. Closing it releases the lock.

    Raises:
        UserError: Another process holds the lock.
        OSError: The file cannot be written.
    """
    is_waiting = False
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")
        if try_lock(file):
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    break
            file.close()  # the last holder has deleted it meanwhile
            continue
        at_work = _at_work(file, path)
        file.close()
        if not wait:
            raise UserError(f"{at_work}{WAIT}")
        if not is_waiting:
            print(f"{at_work}; waiting for it", file=sys.stderr)
            is_waiting = True
        time.sleep(SECONDS_BETWEEN_TRIES)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path` within the block. Arguments and errors are those of take_lock."""
    with take_lock(path, wait):
        yield


def check_unlocked(path: Path) -> None:
    """Raise UserError if a process holds the lock file `path`. The file may be absent."""
    if path.exists():
        with open(path, encoding="utf-8") as file:  # it may be another user's
            if not try_lock(file, shared=True):
                raise UserError(f"{_at_work(file, path)}{WAIT}")
