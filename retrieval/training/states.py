"""Find the saved states of a run. Light to import."""

from pathlib import Path

from retrieval.base.access import check_readable


def latest_state(run: Path) -> Path | None:
    """Return the newest complete state folder of a run folder, or None.

    Raises:
        UserError: A folder may not be read.
    """
    check_readable(run / "states", "saved state")
    folders = [path for path in (run / "states").glob("*step-*") if path.is_dir()]
    complete = [path for path in folders if path.suffix != ".partial"]
    # The dot sorts before any letter: `.step-N.old`, which a kill within swap_folder leaves, is the
    # newest only if there is no other.
    newest = max(complete, default=None)
    if newest is not None:
        check_readable(newest, "saved state")
    return newest
