"""The one exception for a user's mistake: entry points print it as a single line and exit with code 2."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """What was found, what was expected and what to do, in one line."""


class OneLineParser(argparse.ArgumentParser):
    """argparse without the usage text in front of the error."""

    def error(self, message: str) -> None:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def one_line(error: Exception, longest: int = 200) -> str:
    """Kind and text of any exception, without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:longest]


def run_main(main: Callable[[], int | None]) -> None:
    """Run `main`; print a UserError as one `error: ...` line on stderr and exit with 2; after Ctrl-C with 130.

    What a terminal without Unicode cannot show is escaped; a reader that has gone (`| head`) ends the program without a word.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main()
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        sys.exit(141)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"error: {str(error.filename)[:80]}...: the name is too long", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
