"""Output folders that appear under their name only when they are complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from retrieval.base.access import follow_umask
from retrieval.base.errors import UserError
from retrieval.base.files import disk_errors, read_json

MADE_FROM = "made_from.json"  # in an output: its settings and sources


def check_has_name(output: Path) -> None:
    """Raise UserError for an output without a name, such as the current folder.

    An output is written under a temporary name beside its own, and renamed when it is complete.
    """
    if output.name in ("", ".."):
        raise UserError(
            f"--output {output}: give the folder by its own name; it is written beside it under a"
            " temporary name, and renamed when it is complete"
        )


def read_made_from(output: Path, entries: dict[str, type]) -> dict[str, Any] | None:
    """Read the settings and sources of an output that a command may use again or replace.

    Args:
        output: Its folder.
        entries: Names and types of entries that this command writes.

    Returns:
        The content of made_from.json; None if `output` is absent or empty.

    Raises:
        UserError: `output` is not a folder, or holds something else.
    """
    if not output.exists():
        return None
    if not output.is_dir():
        raise UserError(f"{output} is not a folder; give another --output")
    with suppress(OSError, ValueError):
        found = read_json(output / MADE_FROM)
        if isinstance(found, dict) and all(
            isinstance(found.get(name), kind) for name, kind in entries.items()
        ):
            return found
    if any(output.iterdir()):
        raise UserError(
            f"{output} is not empty and was not made by this command (no {MADE_FROM} of it); give"
            " another --output"
        )
    return None


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def swap_folder(new: Path, target: Path) -> None:
    """Rename the complete folder `new` to `target`, which may exist.

    All files of `new` are flushed first: a power cut does not leave empty files under the final
    name. For a moment there is no `target`; see recover_folder. Raises OSError; `target` is then
    as it was.
    """
    for path in new.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
    old = _replaced(target)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(target: Path) -> None:
    """Finish a whole_folder that was killed between its two renames."""
    if not target.exists() and _replaced(target).exists():
        new = _partial(target) if _partial(target).exists() else _replaced(target)
        new.rename(target)


@contextmanager
def whole_folder(
    output: Path, kind: str, advice: str = "or choose another folder"
) -> Iterator[Path]:
    """A new folder to write in; it replaces `output` at the end if the block raised nothing.

    Args:
        output: Its final name. A link stays, and the folder that it points to is replaced.
        kind: Name of the content in messages, such as "the weights".
        advice: Follows the remedy of a disk error.

    Raises:
        UserError: The disk is full, the folder cannot be written, ...
    """
    check_has_name(output)
    output = output.resolve()
    partial = _partial(output)
    try:
        with disk_errors(f"{kind} {output}", advice):
            recover_folder(output)
            for leftover in (partial, _replaced(output)):
                shutil.rmtree(leftover, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            follow_umask(partial)
            swap_folder(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
