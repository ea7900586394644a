"""What the benchmarks that compare ways share: ways that take turns, and the verdict on a ratio."""

import sys
import time
from collections.abc import Callable
from typing import Any


def alternate(
    ways: dict[Any, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[dict[Any, list[float]], dict[Any, Any]]:
    """Seconds of each way in every round, and what it returned last. The ways take turns, so that
    they meet the same machine.
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
    """Whether `ratio` is below `least`, with a line that says so."""
    if ratio < least:
        print(
            f"error: ratio {ratio:.2f} is below {least:g}; is the machine busy with something"
            " else?",
            file=sys.stderr,
        )
    return ratio < least
