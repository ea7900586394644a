"""Record of a training beside its run folder: hours and energy of each session, weight files."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.reproduce.gpus import Gpu, energy_joules
from retrieval.base.errors import UserError, one_line
from retrieval.base.files import read_json, write_json

FIELDS = ("weights", "processor", "clips", "sessions")


@dataclass
class TrainingRecord:
    """Hours and energy of a run, over all its sessions.

    Args:
        path: JSON file.
        weights: Files and hub models that the training started from, with their digests.
        processor: Name of the GPUs, or of the CPU.
        clips: Their number in each split.
        sessions: Start, seconds and joules of each call of train.py. Seconds and joules are None if
            it was killed; joules also if the driver does not count them.
    """

    path: Path
    weights: list[dict[str, str]] = field(default_factory=list)
    processor: str = ""
    clips: dict[str, int] = field(default_factory=dict)
    sessions: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "TrainingRecord":
        """Read the file; an absent one gives an empty record. Raises UserError."""
        if not path.exists():
            return cls(path)
        try:
            content = read_json(path)
            record = cls(path, **{name: content[name] for name in FIELDS})
            _ = [record.hours, record.kilowatt_hours]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} cannot be read ({one_line(error)}); delete it: the hours before are then"
                " not known"
            ) from None
        return record

    @contextmanager
    def session(self, gpus: Sequence[Gpu]) -> Iterator[None]:
        """Count the time and the energy of the block."""
        now = {"started": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        now |= {"seconds": None, "joules": None}
        self.sessions.append(now)
        self._write()
        start, before = time.monotonic(), energy_joules(gpus)
        try:
            yield
        finally:
            after = energy_joules(gpus)
            now["seconds"] = round(time.monotonic() - start, 1)
            if before is not None and after is not None:
                now["joules"] = round(after - before, 1)
            self._write()

    def _write(self) -> None:
        write_json(self.path, {name: getattr(self, name) for name in FIELDS})

    @property
    def hours(self) -> float:
        return sum(one["seconds"] or 0 for one in self.sessions) / 3600

    @property
    def is_complete(self) -> bool:
        """False if a session was killed: its time is not known."""
        return bool(self.sessions) and all(one["seconds"] is not None for one in self.sessions)

    @property
    def kilowatt_hours(self) -> float | None:
        """Energy of all sessions; None if the driver did not count it in each of them."""
        joules = [one["joules"] for one in self.sessions]
        return sum(joules) / 3.6e6 if joules and None not in joules else None
