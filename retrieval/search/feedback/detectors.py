"""Detectors: rankings learned from marks, saved by name. Letters: D = dim."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retrieval.base.errors import UserError, one_line
from retrieval.base.files import atomic_writer, is_unicode
from retrieval.search.feedback.fit import sigmoid
from retrieval.search.model_identity import ModelIdentity

if TYPE_CHECKING:
    from retrieval.search.hits import Hit

NAME = re.compile(r"[^\W_][\w .()+-]{0,79}")  # also a file's name, on every platform
ENDING = ".json"
MARK_COLUMNS = ("file", "start", "end", "right")
RIGHT = {"1": True, "true": True, "yes": True, "right": True}
RIGHT |= {"0": False, "false": False, "no": False, "wrong": False}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Mark(_Frozen):
    """A stretch of a recording, marked right or wrong. It marks the excerpt of largest overlap.

    Attributes:
        file: Name of the recording in its index.
        start, end: Seconds. Without `end`: the excerpt at `start`. Without both: the whole file,
            which must be one excerpt.
        right: Whether it is an answer to the query.
    """

    file: str
    start: float | None = Field(None, ge=0)
    end: float | None = Field(None, ge=0)
    right: bool

    @classmethod
    def of(cls, hit: "Hit", right: bool) -> "Mark":
        """Mark the excerpt of an answer."""
        return cls(file=hit.file, start=hit.start, end=hit.end, right=right)

    def __str__(self) -> str:
        if self.start is None:
            return self.file
        return f"{self.file}@{self.start:g}" + ("" if self.end is None else f"-{self.end:g}")


class Detector(_Frozen):
    """A ranking of an index's excerpts, learned from a sentence and marks.

    The probability of an excerpt is sigmoid(vector . features + bias). Features are the vectors of
    the index, or with TAP its output for the sentence.

    Attributes:
        name: Name under which it is saved; "" before.
        query: The sentence.
        model: sha256 of the files of the index's model.
        model_path: Place of that model.
        marks: The marks that it learned from.
        text: Encoded sentence (D,).
        vector: (D,).
        bias: Log-odds.
        coarse: With TAP, the vector (D,) that finds candidates in the first stage; else None.
        threshold: Probability from which an excerpt counts as found.
    """

    name: str = ""
    query: str
    model: dict[str, str]
    model_path: str
    marks: tuple[Mark, ...]
    text: tuple[float, ...]
    vector: tuple[float, ...]
    bias: float
    coarse: tuple[float, ...] | None = None
    threshold: float = Field(ge=0, le=1)

    @property
    def num_right(self) -> int:
        return sum(mark.right for mark in self.marks)

    @property
    def first_stage(self) -> np.ndarray:
        """The vector float32 (D,) that ranks excerpts in the first stage."""
        return np.array(self.vector if self.coarse is None else self.coarse, np.float32)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return the probability float64 (K,) of each excerpt, from features float32 (K, D)."""
        return sigmoid(features @ np.array(self.vector, np.float32) + self.bias)

    def check_model(self, identity: ModelIdentity, index: Path) -> None:
        """Raise UserError if this detector belongs to another model than the index's."""
        if self.model != identity.digests:
            raise UserError(
                f"detector {self.name or self.query!r} was made with the model {self.model_path},"
                f" but index {index} with {identity.path}; make it anew on this index, from the"
                " same marks"
            )


def numbers(vector: np.ndarray) -> tuple[float, ...]:
    """Return float32 (D,) as numbers of nine digits, which restore it exactly."""
    return tuple(float(f"{value:.9g}") for value in vector.tolist())


class Detectors:
    """Detectors saved in a folder, one file each.

    Args:
        folder: The folder, which need not exist.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def names(self) -> list[str]:
        """Return the names of all detectors, sorted."""
        files = self.folder.glob(f"*{ENDING}") if self.folder.is_dir() else ()
        return sorted(file.stem for file in files if NAME.fullmatch(file.stem))

    def path(self, name: str) -> Path:
        """Return the file of a detector. Raises UserError for a name that no file can have."""
        if not NAME.fullmatch(name) or name != name.strip(" .") or not is_unicode(name):
            raise UserError(
                f"{name!r} cannot be the name of a detector: it needs 1 to 80 letters, digits,"
                " spaces or any of _ - . ( ) +, and begins with a letter or digit"
            )
        return self.folder / f"{name}{ENDING}"

    def load(self, name: str) -> Detector:
        """Read a detector. Raises UserError if it is absent or damaged."""
        path = self.path(name)
        if not path.is_file():
            known = ", ".join(self.names()) or "none"
            raise UserError(f"there is no detector {name!r} in {self.folder}; it has: {known}")
        try:
            return Detector.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        except ValidationError as error:
            raise UserError(f"{path} is damaged, or no detector: {one_line(error)}") from None

    def save(self, detector: Detector, name: str, overwrite: bool = True) -> Detector:
        """Write a detector under a name, atomically.

        Args:
            detector: The detector.
            name: Letters, digits, spaces and some signs.
            overwrite: Replace one of the same name.

        Returns:
            The detector with this name.

        Raises:
            UserError: The name is not allowed or exists, or the folder is not writable.
        """
        path = self.path(name)
        if path.exists() and not overwrite:
            raise UserError(f"a detector {name!r} exists in {self.folder}: give another name")
        named = detector.model_copy(update={"name": name})
        with atomic_writer(path) as file:
            file.write(named.model_dump_json(indent=1) + "\n")
        return named

    def delete(self, name: str) -> None:
        """Remove a detector. Raises UserError if it is absent."""
        path = self.path(name)
        if not path.is_file():
            self.load(name)  # says so
        path.unlink()


def read_marks(path: Path) -> list[Mark]:
    """Read a CSV with the columns file and right, and start and end in s, which may be empty.

    The times may also be called from and to, as in the exports of answers.

    Raises:
        UserError: No such file, a missing column, or a wrong value; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: save it as CSV in UTF-8") from None
    rows = csv.DictReader(text.splitlines())
    if missing := [name for name in ("file", "right") if name not in (rows.fieldnames or ())]:
        adds = " with yes or no in each row" if missing[0] == "right" else ""
        raise UserError(
            f"{path} has no column {missing[0]}: add a column {missing[0]}{adds}; a CSV of marks"
            f" has the columns {', '.join(MARK_COLUMNS)} (or from, to for start, end)"
        )
    times_in = [
        column if column in rows.fieldnames else other
        for column, other in (("start", "from"), ("end", "to"))
    ]
    marks = []
    for row in rows:
        place = f"{path}, line {rows.line_num}"
        right = RIGHT.get((row["right"] or "").strip().lower())
        if right is None:
            raise UserError(f"{place}: right is {row['right']!r}, expected yes or no")
        times = [_seconds(row.get(column), column, place) for column in times_in]
        marks.append(Mark(file=row["file"] or "", start=times[0], end=times[1], right=right))
    return marks


def _seconds(text: str | None, column: str, place: str) -> float | None:
    if not (text or "").strip():
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UserError(f"{place}: {column} is {text!r}, expected seconds, 0 or more")
    return seconds


def write_marks(path: Path, marks: Sequence[Mark]) -> None:
    """Write marks as a CSV that `read_marks` reads. Raises UserError."""
    with atomic_writer(path) as file:
        rows = [(mark.file, mark.start, mark.end, int(mark.right)) for mark in marks]
        csv.writer(file).writerows([MARK_COLUMNS, *rows])
