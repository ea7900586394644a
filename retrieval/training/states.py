"""Find the saved states of a run. Light to import."""

from pathlib import Path

from retrieval.base.access import check_readable


def latest_state(run: Path) -> Path | None:
    """Return the newest complete state folder of `run`, None without one. Raises UserError if it
    may not be read.
    """
    check_readable(run / "states", "saved state")
    states = [
        path
        for path in (run / "states").glob("step-*")
        if path.suffix != ".partial" and path.is_dir()
    ]
    newest = max(states, default=None)
    if newest is not None:
        check_readable(newest, "saved state")
    return newest
