"""Exit of a data_prep script (retrieval/base/command.py), and output that is complete or absent.

Each script imports this file first: it makes `retrieval` importable, and from then on Ctrl-C prints one line.
"""

import errno
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # `python data_prep/build_clotho.py` has data_prep there

from retrieval.base.access import follow_umask  # noqa: E402
from retrieval.base.command import exit_code, run_main  # noqa: E402
from retrieval.base.errors import OneLineParser, UserError  # noqa: E402

__all__ = ["OneLineParser", "UserError", "run_main"]
INTERRUPTED = "interrupted: run the same command again to go on from here"
# Full disk, full quota, and the file size limit of the shell (`ulimit -f`).
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_has_name(output: Path) -> None:
    """The scripts write beside `output` and rename at the end, which the current folder does not allow. Raises UserError."""
    if output.name in ("", ".."):
        raise UserError(f"--output {output}: give the folder by its own name; it is written beside that name and renamed when it is complete")


@contextmanager
def whole_folder(output: Path, what: str) -> Iterator[Path]:
    """A new folder to write in; it takes the place of `output` at the end, and only if nothing went wrong. Raises UserError naming `what`."""
    check_has_name(output)
    output = output.resolve()  # a link stays, what it points to is replaced
    partial, old = output.with_name(f".{output.name}.partial"), output.with_name(f".{output.name}.old")
    try:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        follow_umask(partial)
        if output.exists():
            output.rename(old)
        try:
            partial.rename(output)
        except OSError:
            if old.exists():
                old.rename(output)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{what} could not be written to {output}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turn an OSError raised while writing in `place` into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(
                f"disk full ({error.strerror}) while writing in {place}: free some space and run the same command again; "
                "finished parts are kept"
            ) from None
        raise UserError(f"cannot write in {place}: {error}") from None


def run(body: Callable[[], None]) -> int:
    """Run `body`; return the exit code."""
    return exit_code(body, INTERRUPTED)
