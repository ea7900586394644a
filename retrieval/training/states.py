"""Find the saved states of a run, and settings that keep it from going on. Light to import."""

from pathlib import Path

from retrieval.base.access import check_readable
from retrieval.config import Config, config_differences, read_config

# Settings that may change when a run is resumed: they do not change the numbers of the training.
# Progress compares the contents of caches and teachers.
HARMLESS = (
    "data.cache",
    "data.frame_cache",
    "data.num_workers",
    "train.caches",
    "loss.teachers",
    "train.output",
    "train.max_steps",
    "train.patience",
    "train.save_every_steps",
    "train.log_every_steps",
    "train.tracker",
    "evaluation.",
)


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


def changed_settings(run: Path, config: Config) -> list[str]:
    """Return a line for each setting that differs from the run's own and keeps it from going on.

    Raises:
        UserError: RUN/config.yaml cannot be read.
    """
    differences = config_differences(read_config(run), config)
    return [line for line in differences if not line.startswith(HARMLESS)]
