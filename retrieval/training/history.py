"""Losses and metrics of every epoch as files: RUN/history.jsonl, and the same in RUN/history.csv.

A line holds:
    epoch             counted from 1; 0 is the validation before training (train.validate_first)
    global_step       optimizer steps done
    seconds           since the line before, or since this process was ready
    train/mean_loss   mean over the steps of the epoch
    lr/GROUP          learning rate of the last step
    validation/...    metrics of both directions, named as in TensorBoard
"""

import csv
import json
import time
from pathlib import Path
from typing import Any

from retrieval.base.errors import UserError
from retrieval.base.files import atomic_writer


class History:
    """Writer of both files, which are replaced as a whole after each validation.

    Args:
        folder: Run folder.
        enabled: False makes every call do nothing: on all processes but the first.
    """

    def __init__(self, folder: Path, enabled: bool):
        self.folder, self.enabled = folder, enabled
        self.rows: list[dict[str, Any]] = []
        self.last_time = time.perf_counter()

    def read(self) -> None:
        """Take over the lines of an interrupted run. Raises UserError if they cannot be read."""
        path = self.folder / "history.jsonl"
        if not self.enabled or not path.exists():  # a run of an earlier version has none
            return
        try:
            self.rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            if not all(isinstance(row["epoch"], int) for row in self.rows):
                raise TypeError("an epoch is not a whole number")
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path} cannot be read ({type(error).__name__}: {error}); put it back from a copy,"
                " or delete it: the run goes on without its earlier lines"
            ) from None

    def add(self, epoch: int, global_step: int, values: dict[str, float | None]) -> None:
        """Write the line of a validation; it replaces lines of this epoch and of later ones.

        Args:
            epoch: Counted from 1; 0 is before training.
            global_step: Optimizer steps done.
            values: The other columns, the same names in every line; None where there is no value.
        """
        if not self.enabled:
            return
        now = time.perf_counter()
        row = {
            "epoch": epoch,
            "global_step": global_step,
            "seconds": round(now - self.last_time, 3),
        }
        self.last_time = now
        # a run that was killed after a validation validates again
        self.rows = [row for row in self.rows if row["epoch"] < epoch] + [row | values]
        with atomic_writer(self.folder / "history.jsonl") as file:
            file.writelines(json.dumps(row) + "\n" for row in self.rows)
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with atomic_writer(self.folder / "history.csv") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
