"""Start and end of every command: Ctrl-C, exit codes, one line for a user's mistake.

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
    """Prepare a process of one of the project's commands, before anything heavy is imported.

    Does nothing if another program uses `retrieval` as a library: it handles signals itself.
    """
    words, is_command = sys.orig_argv, False
    if sys.argv[:1] == ["-m"]:  # the package of `python -m` is imported before __main__ is known
        is_command = "-m" in words and words[words.index("-m") + 1].startswith("retrieval.")
    elif file := getattr(sys.modules.get("__main__"), "__file__", None):
        path = Path(file).resolve()
        is_script = path in (ROOT / "train.py", ROOT / "evaluate.py")
        is_command = is_script or path.parent == ROOT / "data_prep"
        is_command |= ROOT / "benchmarks" in path.parents
    if is_command:
        _fill_closed_streams()
        interrupts.watch_start()


def _fill_closed_streams() -> None:
    """Open /dev/null for each closed standard stream.

    Otherwise a file opened later gets its number, and libraries print into it.
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
            and SystemExit as argparse does.
        interrupted: The line to print after Ctrl-C.

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
        error = getattr(output, "error", None)
        if error is not None:
            output.error = None
            _discard(output)
            if code == 0 and error.errno == errno.EPIPE:  # its reader has ended
                return BROKEN_PIPE
            if code == 0:
                return _say(f"error: standard output cannot be written: {error.strerror}", 2)
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
            return 0  # exit_code reports it
        if error.errno == errno.ENAMETOOLONG:
            return _say(f"error: {str(error.filename)[:80]}...: the name is too long", 2)
        return _say(f"error: {error}", 2)


def _discard(output: TextIO) -> None:
    """Send unwritten text to /dev/null: Python flushes once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())


def _say(line: str, code: int) -> int:
    """Print `line` on stderr and return `code`. Terminal commands in names are escaped."""
    text = " ".join(line.splitlines())
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    try:
        print(text, file=sys.stderr, flush=True)
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
    """Standard output that records its errors, and escapes letters that a terminal cannot show."""
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
