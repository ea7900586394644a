"""Exit of a data_prep command: errors in one line, and what to do after Ctrl-C."""

from collections.abc import Callable

from retrieval.base.command import exit_code

INTERRUPTED = "interrupted: run the same command again to go on from here"


def run(body: Callable[[], None]) -> int:
    """Run `body`; return the exit code."""
    return exit_code(body, INTERRUPTED)
