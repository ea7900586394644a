"""Cores and memory; command lines of processes (Linux); workers that end with their parent."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_memory() -> int:
    """Return the largest memory of this process so far, in bytes; 0 if unknown (Windows)."""
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kB on Linux


def keep_freed_memory() -> None:
    """Keep freed memory in this process for its next allocations (glibc only).

    By default glibc returns large blocks to Linux at once, and Linux fills each page with zeros
    when it hands it out again. A training step on a CPU frees and allocates gigabytes: with
    configs/tap.yaml this took 12 to 13 % of the step. The peak stays about the same, but other
    programs get the memory only when this process ends.
    """
    try:
        libc = ctypes.CDLL(None)
        _, set_option = libc.gnu_get_libc_version, libc.mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return
    set_option(M_MMAP_MAX, 0)
    set_option(M_TRIM_THRESHOLD, -1)  # never


def end_with_parent() -> None:
    """End this multiprocessing worker when its parent ends.

    A killed parent closes no queue: its workers would wait for ever.
    """
    sentinel = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()


def terminating_with_parent() -> Callable[[], None] | None:
    """Return a function with which a process asks for SIGTERM when its parent dies; Linux only."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return lambda: library.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def words_of(process: int) -> list[str]:
    """Return the command line of a process; empty if unknown."""
    return _entries(process, "cmdline")


def environment_of(process: int) -> dict[str, str]:
    """Return the environment that a process was started with; empty if unknown."""
    return dict(entry.split("=", 1) for entry in _entries(process, "environ") if "=" in entry)


def parent_of(process: int) -> int:
    """Return the number of the parent process; 0 if unknown."""
    return _status_of(process)[1]


def has_terminal(process: int) -> bool:
    """Return True if the process has a controlling terminal; False if unknown."""
    return _status_of(process)[4] != 0


def _status_of(process: int) -> list[int]:
    """Return 0, parent, process group, session and terminal as numbers: see proc_pid_stat(5)."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return [0] * 5
    # the name, in parentheses, may hold anything
    return [0, *map(int, status.rpartition(")")[2].split()[1:5])]


def _entries(process: int, file: str) -> list[str]:
    try:
        return (
            Path(f"/proc/{process}/{file}")
            .read_bytes()
            .decode(errors="surrogateescape")
            .split("\0")[:-1]
        )
    except OSError:
        return []
