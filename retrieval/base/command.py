"""How a command begins and ends, the same for train.py, `python -m retrieval.*` and data_prep: exit
codes, and one line for a user's mistake.

0 success | 2 a mistake, or a file that cannot be read or written: one line on stderr | 130 Ctrl-C |
141 the pipe's reader has ended
"""

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from retrieval.base import interrupts
from retrieval.base.errors import UserError

BROKEN_PIPE = 141
ROOT = Path(__file__).resolve().parents[2]


def begin() -> None:
    """Prepare the process before anything heavy is imported, if it was started as one of the
    project's commands.
    """
    if _is_command():
        _fill_closed_streams()
        interrupts.watch_start()


def _is_command() -> bool:
    """Return False if `retrieval` is a library of another program, which handles signals itself."""
    # `python -m retrieval.search`: its package is imported before __main__ is known
    if sys.argv[:1] == ["-m"]:
        return "-m" in sys.orig_argv and sys.orig_argv[sys.orig_argv.index("-m") + 1].startswith(
            "retrieval."
        )
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if file is None:
        return False
    path = Path(file).resolve()
    return path in (ROOT / "train.py", ROOT / "evaluate.py") or path.parent in (
        ROOT / "data_prep",
        ROOT / "benchmarks",
    )


def _fill_closed_streams() -> None:
    """Open /dev/null for each closed standard stream: otherwise a file opened later gets its
    number, and libraries print into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, this one
    # A closed stdout stays None: see exit_code.
    sys.stdin = sys.stdin or open(0, closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)


def run_main(main: Callable[[], int | None], interrupted: str = interrupts.INTERRUPTED) -> None:
    """Run `main` and end the process with its exit code. See exit_code."""
    _fill_closed_streams()
    with interrupts.watched():
        code = exit_code(main, interrupted)
    sys.exit(code)


def exit_code(main: Callable[[], int | None], interrupted: str = interrupts.INTERRUPTED) -> int:
    """Run `main`, print a user's mistake as one line on stderr, and return the exit code.

    Args:
        main: Returns an exit code, None for 0. It may raise UserError, OSError, KeyboardInterrupt,
        and SystemExit as argparse does. interrupted: The line to print after Ctrl-C.

    Returns:
        The exit code. Other exceptions are faults of the program and pass through.
    """
    if sys.stdout is None:
        return _say("error: standard output is closed: send it to a file, or to /dev/null", 2)
    with _watched_output() as output:
        code = _run(main, interrupted)
        try:
            output.flush()
        except OSError:
            pass  # output.error
        if isinstance(output, _Output) and output.error:
            code = _end_of_output(output, code)
    return code


def _run(main: Callable[[], int | None], interrupted: str) -> int:
    try:
        return main() or 0
    except SystemExit as end:
        if isinstance(end.code, str):
            raise
        return end.code or 0
    except KeyboardInterrupt:
        return _say(interrupted, interrupts.EXIT_CODE)
    except UserError as error:
        return _say(f"error: {error}", 2)
    except OSError as error:
        if error is getattr(sys.stdout, "error", None):
            return 0  # _end_of_output reports it
        if error.errno == errno.ENAMETOOLONG:
            return _say(f"error: {str(error.filename)[:80]}...: the name is too long", 2)
        return _say(f"error: {error}", 2)


def _end_of_output(output: "_Output", code: int) -> int:
    """Report that `output` is lost, unless its reader has ended or another error was reported
    before.
    """
    error, output.error = output.error, None
    _discard(output)
    if code:
        return code
    return (
        BROKEN_PIPE
        if error.errno == errno.EPIPE
        else _say(f"error: standard output cannot be written: {error.strerror}", 2)
    )


def _discard(output: TextIO) -> None:
    """Send unwritten text to /dev/null: Python flushes once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())


def _say(line: str, code: int) -> int:
    """Print `line` on stderr, with escapes for line breaks and terminal commands in names; return
    the exit code.
    """
    text = " ".join(line.splitlines())
    try:
        print(
            "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text),
            file=sys.stderr,
            flush=True,
        )
    except OSError:  # stderr cannot be written either
        _discard(sys.stderr)
    return code


class _Output(io.TextIOWrapper):
    """Standard output that keeps the error which writing to it raised."""

    error: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self.error = error
            raise


@contextmanager
def _watched_output() -> Iterator[TextIO]:
    """Standard output that records its own errors. Characters that the terminal cannot show are
    escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    outer = sys.stdout
    if type(outer) is not io.TextIOWrapper:  # a notebook's, a test's, or within another exit_code
        yield outer
        return
    sys.stdout = _Output(
        outer.buffer,
        outer.encoding,
        outer.errors,
        line_buffering=outer.line_buffering,
        write_through=outer.write_through,
    )
    try:
        yield sys.stdout
    finally:
        try:
            sys.stdout.detach()  # flushes, also after a fault of the program
        except OSError:
            _discard(outer)
        sys.stdout = outer
