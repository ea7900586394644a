"""Ctrl-C, SIGTERM and the death of the launcher: training saves its state and stops."""

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from retrieval.base.interrupts import callers, drops_exceptions, interrupt
from retrieval.base.processes import (
    environment_of,
    parent_of,
    terminating_with_parent,
    words_of,
)

# accelerate launch and torchrun set these for the processes that they start
LAUNCHERS = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"}
# Set by users who start each process by hand.
RENDEZVOUS = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}

WAITING = (
    b"\nsaving after this step; a second Ctrl-C ends at once, and loses the steps since the last"
    b" saved state\n"
)


def resume_command() -> str:
    """Return the command that started this process, with --resume and the variables that it needs.

    With a launcher, this is the launcher's command. Call it while the launcher is running.
    """
    words, environment = [sys.executable, *sys.argv], dict(os.environ)
    process = os.getppid()
    # A launcher's command line ends with the command that it starts.
    while (above := words_of(process))[-len(sys.argv) :] == sys.argv:
        words, environment, process = above, environment_of(process), parent_of(process)
    if Path(words[1]).name in ("accelerate", "torchrun"):
        words = words[1:]  # a script of the Python environment, started as `python PATH/accelerate`
    words[0] = Path(words[0]).name
    needed = [
        name for name in sorted(environment) if name.startswith("ACCELERATE_") or name in RENDEZVOUS
    ]
    settings = [f"{name}={shlex.quote(environment[name])}" for name in needed]
    command = [word for word in words if word not in ("--overwrite", "--resume")] + ["--resume"]
    return " ".join([*settings, shlex.join(command)])


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived; the newest state on disk is where the training continues.

    Like KeyboardInterrupt it is not an Exception: code that catches Exception while it loads a file
    would call the file damaged.
    """

    def __init__(self, signum: int):
        self.signum = signum


@dataclass
class StopRequest:
    """Handler of signals that asks the training loop to stop after its step.

    While `at_once` is set, and for a second Ctrl-C, a signal interrupts right away, except where
    Python would drop the exception. A second SIGTERM does nothing: after Ctrl-C the launcher dies
    first and sends one. A loader process starts with its parent's handlers: they do nothing
    there until it has set its own (retrieval.data.pairs).
    """

    signum: int = 0
    at_once: bool = True
    process: int = field(default_factory=os.getpid)

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            return
        is_second = self.signum != 0
        if is_second and signum != signal.SIGINT:
            return
        self.signum = signum
        would_be_lost = any(drops_exceptions(one) for one in callers(frame))
        if (self.at_once or is_second) and not would_be_lost:
            interrupt(frame, Interrupted(signum))
        elif signum == signal.SIGINT and not (self.at_once or is_second):
            if os.environ.get("LOCAL_RANK", "0") == "0":
                with suppress(OSError):  # the reader of a pipe may have ended
                    os.write(2, WAITING)  # a handler must not print: it may interrupt a print


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """A request that Ctrl-C, SIGTERM and the death of the launcher set within the block.

    A block within another such block gets the same request.
    """
    if isinstance(outer := signal.getsignal(signal.SIGTERM), StopRequest):
        yield outer
        return
    stop = StopRequest()
    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    if LAUNCHERS & os.environ.keys() and (terminate := terminating_with_parent()):
        # A killed launcher does not pass SIGTERM on: the training would run on unseen.
        terminate()
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        if stop.signum:
            # the launcher's death must not cut off the last message
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
