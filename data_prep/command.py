"""Exit code of a data_prep command, with its own line after Ctrl-C."""

from collections.abc import Callable

from retrieval.base.command import exit_code

INTERRUPTED = "interrupted: run the same command again to go on from here"


def run(body: Callable[[], None]) -> int:
    """Run `body` and return the exit code, as `exit_code` does."""
    return exit_code(body, INTERRUPTED)
