"""Time several ways in turns, and judge a ratio."""

import sys
import time
from collections.abc import Callable
from typing import Any


def alternate(
    ways: dict[Any, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[dict[Any, list[float]], dict[Any, Any]]:
    """Time each way in turns, so that a busy machine slows all of them.

    Returns the seconds of each way in every round, and its last result.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in ways}
    results = {}
    for _ in range(repeats):
        for name, way in ways.items():
            start = clock()
            results[name] = way()
            seconds[name].append(clock() - start)
    return seconds, results


def is_too_slow(ratio: float, least: float) -> bool:
    """Return True, with a printed error, if `ratio` is below `least`."""
    if ratio < least:
        print(
            f"error: ratio {ratio:.2f} is below {least:g}; is the machine busy with something"
            " else?",
            file=sys.stderr,
        )
    return ratio < least
