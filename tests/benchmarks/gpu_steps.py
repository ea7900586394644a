"""Steps for the tests of benchmarks.gpu: one that works, and all ways to fail."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.steps import NotHere, Place, Step

Rows = Iterator[dict[str, Any]]


def works(place: Place) -> Rows:
    print("printed by the step")
    yield {"number": 1}
    yield {"number": 2, "more": 0.5}


def fails(place: Place) -> Rows:
    yield {"number": 1}
    raise ValueError("three | four")


def crashes(place: Place) -> Rows:
    yield {"number": 1}
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(place: Place) -> Rows:
    yield {"number": 1}
    time.sleep(600)


def lacks(place: Place) -> Rows:
    import no_such_package

    yield {"number": no_such_package}


def cannot(place: Place) -> Rows:
    raise NotHere("this machine is too small")
    yield {}


def step(function: Any) -> Step:
    return Step(function.__name__, f"tests.benchmarks.gpu_steps:{function.__name__}", 60)
