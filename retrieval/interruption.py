"""Ctrl-C, SIGTERM and the death of the launcher: the loop stops at a place of its own choosing and saves."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


LAUNCHERS = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"}  # what accelerate launch and torchrun set for the processes they start


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; what had been trained is in the newest state on disk."""

    def __init__(self, signum: int):
        self.signum = signum


@dataclass
class StopRequest:
    """While `at_once` is set a signal interrupts right away; else it asks the loop to stop after its step.

    A second Ctrl-C does not wait. A second SIGTERM does nothing: after a Ctrl-C the launcher dies first, which sends one.
    """

    signum: int = 0
    at_once: bool = True

    def __call__(self, signum: int, _frame: Any) -> None:
        is_second = self.signum != 0
        if is_second and signum != signal.SIGINT:
            return
        self.signum = signum
        if self.at_once or is_second:
            raise Interrupted(signum)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Ctrl-C and SIGTERM set the request instead of ending the process; so does the death of the launcher."""
    stop = StopRequest()
    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    if LAUNCHERS & os.environ.keys() and sys.platform == "linux":
        # The launcher does not pass SIGTERM on; without this, killing it would leave the training running unseen.
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        if stop.signum:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's death must not cut off the last words
