"""Ctrl-C at any moment of a command: one line, exit code 130, and every `finally` runs.

Python's own handler raises KeyboardInterrupt at any line. In the middle of an import that exception
is easily lost: in the weak-reference callbacks of Python's import locks ("Exception ignored in
..."), in a library that catches every error of an optional import, or in an extension module that
turns it into an ImportError. The program then continues, or ends in a traceback. So there are three
phases:

    starting   the command's own imports: no work has begun, the process ends at once
    running    the exception is raised; during an import only after it has ended, and further
               imports fail at once to shorten the wait
    ended      the last line is printed: another Ctrl-C only stops waiting for threads
"""

import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import MetaPathFinder
from types import FrameType, ModuleType
from typing import Any

EXIT_CODE = 130
INTERRUPTED = "interrupted"
IMPORT = "<frozen importlib._bootstrap>"  # file name of the import system's frames
# Finalisers, the hooks of a fork, and callbacks of weak references: Python prints an exception that
# a signal's handler raises there, and drops it.
DROPPING_NAMES = ("__del__", "_launch")
DROPPING_FILES = tuple(
    kind.__init__.__code__.co_filename for kind in (weakref.WeakKeyDictionary, weakref.WeakSet)
)

_is_command = False
_phase = "ended"
_refusal: "_RefuseImports | None" = None  # while an exception waits for the end of an import


def watch_start() -> None:
    """Let Ctrl-C end the process with one line until `watched` begins.

    Call once, before the imports of a command.
    """
    global _is_command, _phase
    if _install():
        _is_command, _phase = True, "starting"


@contextmanager
def watched() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C inside the block, in imports too.

    The handler is restored at its end, unless the process is a command.
    """
    global _phase
    outer, has_installed, _phase = _phase, _install(), "running"
    try:
        yield
    finally:
        _phase = outer if outer == "running" else "ended"
        if has_installed and not _is_command:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _install() -> bool:
    """Return False if other code handles the signal, or if it is ignored (a background job)."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        return False
    signal.signal(signal.SIGINT, _on_ctrl_c)
    return True


def _on_ctrl_c(signum: int, frame: FrameType | None) -> None:
    if _phase == "running":
        interrupt(frame, KeyboardInterrupt())
    if _phase == "starting":
        with suppress(OSError):
            os.write(2, f"{INTERRUPTED}\n".encode())
    if _phase != "running":
        os._exit(EXIT_CODE)


class Terminated(KeyboardInterrupt):
    """SIGTERM came; to a command it is as Ctrl-C."""


def watch_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does, so that temporary files go and work is noted.

    Does nothing if other code handles the signal.
    """
    process = os.getpid()

    def on_sigterm(signum: int, frame: FrameType | None) -> None:
        if os.getpid() != process or _phase != "running":  # a fork inherits this function
            os._exit(128 + signum)
        interrupt(frame, Terminated())

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, on_sigterm)


def callers(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield `frame` and the frames that called it, from the inside out."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def drops_exceptions(frame: FrameType) -> bool:
    """Return True if Python may drop an exception that leaves this frame."""
    return frame.f_code.co_name in DROPPING_NAMES or frame.f_code.co_filename in DROPPING_FILES


def interrupt(frame: FrameType | None, exception: BaseException) -> None:
    """Raise `exception` from a signal handler at a place where it cannot be lost.

    Args:
        frame: The frame that the signal interrupted.
        exception: Raised here. During an import, or where Python would drop it, it is raised in the
            code that these return to; until then every further import raises it too.
    """
    global _refusal
    receiver = None
    for caller in callers(frame):  # the outermost import or finaliser comes last
        if caller.f_code.co_filename == IMPORT or drops_exceptions(caller):
            receiver = caller.f_back
    if receiver is None or _refusal is not None:  # the second Ctrl-C does not wait for the import
        raise exception

    def raise_it(*_: Any) -> None:
        global _refusal
        sys.settrace(None)
        sys.meta_path.remove(_refusal)
        _refusal = None
        raise exception

    # As a debugger does: the receiver's next line, return or exception calls its f_trace.
    receiver.f_trace = raise_it
    sys.settrace(lambda *_: None)
    _refusal = _RefuseImports(exception)
    sys.meta_path.insert(0, _refusal)


class _RefuseImports(MetaPathFinder):
    """Raises in place of finding a module, in the main thread."""

    def __init__(self, exception: BaseException):
        self.exception = exception

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            raise self.exception
