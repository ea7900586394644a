"""Find the saved states of a run. Light to import."""

from pathlib import Path

from retrieval.base.access import check_readable


def latest_state(run: Path) -> Path | None:
    """Return the newest complete state folder of a run folder, or None.

    Raises:
        UserError: A folder may not be read.
    """
    check_readable(run / "states", "saved state")
    complete = (path for path in (run / "states").glob("step-*") if path.suffix != ".partial")
    newest = max((path for path in complete if path.is_dir()), default=None)
    if newest is not None:
        check_readable(newest, "saved state")
    return newest
