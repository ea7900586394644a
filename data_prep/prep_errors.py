"""Exit of a data_prep script (retrieval/base/command.py), and errors of its disk.

Each script imports this file first: it makes `retrieval` importable, and from then on Ctrl-C prints
one line.
"""

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # `python data_prep/build_clotho.py` has data_prep there

from retrieval.base.command import exit_code, run_main  # noqa: E402
from retrieval.base.errors import OneLineParser, UserError  # noqa: E402
from retrieval.base.folders import check_has_name, whole_folder  # noqa: E402

__all__ = ["OneLineParser", "UserError", "check_has_name", "run_main", "whole_folder"]
INTERRUPTED = "interrupted: run the same command again to go on from here"
# Full disk, full quota, and the file size limit of the shell (`ulimit -f`).
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turn an OSError raised while writing in `place` into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(
                f"disk full ({error.strerror}) while writing in {place}: free some space and run"
                " the same command again; finished parts are kept"
            ) from None
        raise UserError(f"cannot write in {place}: {error}") from None


def run(body: Callable[[], None]) -> int:
    """Run `body`; return the exit code."""
    return exit_code(body, INTERRUPTED)
