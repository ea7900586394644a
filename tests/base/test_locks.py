"""One holder at a time, whatever ends it, with and without the locks of the platform."""

import errno
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retrieval.base import locks
from retrieval.base.errors import UserError
from retrieval.base.locks import LOCK, check_unlocked, locked, take_lock
from tests.conftest import ROOT

HOLD = (
    "import sys, time; from pathlib import Path; from retrieval.base.locks import take_lock;"
    " lock = take_lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / LOCK


@pytest.fixture
def holder(path: Path):
    """Another process that holds `path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_holder_is_named_until_it_dies(path: Path, holder: subprocess.Popen):
    for attempt in (take_lock, check_unlocked):
        with pytest.raises(UserError) as error:
            attempt(path)
        name = f"process {holder.pid} on {socket.gethostname()}"
        assert name in str(error.value) and str(path.parent) in str(error.value)
    holder.kill()
    holder.wait()
    check_unlocked(path)
    with take_lock(path):
        assert path.read_text() == f"process {os.getpid()} on {socket.gethostname()}"


def test_looking_at_a_lock_takes_no_permission_to_write(path: Path, monkeypatch):
    path.parent.mkdir()
    path.write_text("process 1 on host")  # another user's

    def read_only(file, mode="r", **settings):
        if mode != "r":
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return open(file, mode, **settings)

    monkeypatch.setattr(locks, "open", read_only, raising=False)
    check_unlocked(path)


def test_another_waits_and_says_so_once(path: Path, holder: subprocess.Popen, capsys, monkeypatch):
    naps = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            holder.kill()
            holder.wait()

    monkeypatch.setattr(time, "sleep", nap)
    with locked(path, wait=True):
        assert len(naps) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert f"process {holder.pid}" in line and str(path.parent) in line


def test_a_lock_file_that_its_holder_deletes_is_made_again(path: Path, monkeypatch):
    """A process that has opened the deleted file must not believe that it holds the new one."""
    first, original = take_lock(path), locks.try_lock

    def after_the_first_has_ended(file) -> bool:
        if not first.closed:
            path.unlink()
            first.close()
        return original(file)

    monkeypatch.setattr(locks, "try_lock", after_the_first_has_ended)
    with take_lock(path):
        assert path.exists()
        with pytest.raises(UserError):
            take_lock(path)


def fork_and_die(path: Path, children) -> None:
    lock = take_lock(path)
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    child.start()
    children.put(child.pid)
    assert not lock.closed
    children.close()
    children.join_thread()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_forked_child_does_not_keep_the_lock(path: Path):
    context = multiprocessing.get_context("fork")
    children = context.Queue()
    process = context.Process(target=fork_and_die, args=(path, children))
    process.start()
    child = children.get()
    process.join()
    try:
        take_lock(path).close()
        os.kill(child, 0)  # it is alive
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_child_does_not_release_the_lock_of_its_parent(path: Path):
    with take_lock(path):
        child = multiprocessing.get_context("fork").Process(target=int)
        child.start()
        child.join()
        with pytest.raises(UserError):
            take_lock(path)


def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("absence", ["file system", "platform"])
def test_without_locks_each_one_is_granted(path: Path, monkeypatch, absence: str):
    if absence == "platform":
        monkeypatch.setattr(locks, "fcntl", None)
    else:
        monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    with take_lock(path), take_lock(path):
        check_unlocked(path)


class Msvcrt:
    """Locks of Windows: of one byte, from the file's position on, exclusive for an open file."""

    LK_NBLCK = 2

    def __init__(self):
        self.held = {}

    def locking(self, descriptor: int, kind: int, num_bytes: int) -> None:
        assert (kind, num_bytes) == (self.LK_NBLCK, 1)
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == locks.WINDOWS_BYTE
        inode = os.fstat(descriptor).st_ino
        if inode in self.held:
            raise OSError(errno.EACCES, "Permission denied")
        self.held[inode] = descriptor


def test_windows_locks_a_byte_behind_the_content(path: Path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks, "msvcrt", Msvcrt())
    with take_lock(path):
        assert path.read_text() == f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(UserError, match=f"process {os.getpid()}"):
            take_lock(path)
        with pytest.raises(UserError):
            check_unlocked(path)
