"""Interrupt the start of a command at many moments.

Python imports this file by itself if its folder is on PYTHONPATH.

At each moment the process forks: the copy gets SIGINT, and its exit code and output are noted,
while the process itself goes on with its start. The moments depend on no clock: they are the
imports of the modules INTERRUPT_AT names, and every INTERRUPT_EVERY-th call of the weak-reference
callback of Python's import locks, where Python drops exceptions. At INTERRUPT_LAST's import the
process itself gets the signal.
"""

import importlib
import json
import os
import signal
import sys
import time

SECONDS = 120  # that a copy may take on a busy machine, before it counts as one that runs on

names = set(os.environ["INTERRUPT_AT"].split())
last = os.environ["INTERRUPT_LAST"]
every = int(os.environ["INTERRUPT_EVERY"])
parent = os.getpid()
num_callbacks = 0


def at(moment: str) -> None:
    """Fork; interrupt the copy, and write down how it ended."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        names.clear()
        os.close(reader)
        for stream in (1, 2):
            os.dup2(writer, stream)
        handler = signal.getsignal(signal.SIGINT)
        if hasattr(handler, "process"):
            handler.process = os.getpid()  # train.py's, which takes a fork for a loader process
        if "INTERRUPT_BY_PYTHON" in os.environ:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)
        return
    os.close(writer)
    with open(reader) as output, open(os.environ["INTERRUPT_RESULTS"], "a") as results:
        code, deadline = None, time.monotonic() + SECONDS
        while code is None:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            else:
                time.sleep(0.005)
        results.write(json.dumps([moment, code, output.read()]) + "\n")


class Finder:
    """First on sys.meta_path; finds nothing."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if os.getpid() != parent:
            return
        global last
        if name == last:
            last = None
            signal.raise_signal(signal.SIGINT)
        elif name in names:
            names.discard(name)
            at(name)


class ImportLock:
    """`_imp` of the import system, which the callback asks for the lock first."""

    def __getattr__(self, name):
        return getattr(sys.modules["_imp"], name)

    def acquire_lock(self):
        global num_callbacks
        if os.getpid() == parent and sys._getframe(1).f_code.co_name == "cb":
            num_callbacks += 1
            if num_callbacks % every == 0 and "retrieval" in sys.modules:
                at(f"callback {num_callbacks}")
        sys.modules["_imp"].acquire_lock()


sys.meta_path.insert(0, Finder)
importlib._bootstrap._imp = ImportLock()
