"""Output folders that appear under their name only when they are complete."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retrieval.base.access import follow_umask
from retrieval.base.disk import disk_remedy
from retrieval.base.errors import UserError


def check_has_name(output: Path) -> None:
    """Raise UserError for an output without a name of its own, such as the current folder: it is
    written beside that name.
    """
    if output.name in ("", ".."):
        raise UserError(
            f"--output {output}: give the folder by its own name; it is written beside that name"
            " and renamed when it is complete"
        )


@contextmanager
def whole_folder(output: Path, what: str) -> Iterator[Path]:
    """A new folder to write in; it takes the place of `output` at the end, and only if nothing went
    wrong. Raises UserError naming `what`.
    """
    check_has_name(output)
    output = output.resolve()  # a link stays, what it points to is replaced
    partial, old = (
        output.with_name(f".{output.name}.partial"),
        output.with_name(f".{output.name}.old"),
    )
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
        remedy = f"; {remedy}, or choose another folder" if (remedy := disk_remedy(error)) else ""
        raise UserError(
            f"{what} could not be written to {output}: {error.strerror or error}{remedy}"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
