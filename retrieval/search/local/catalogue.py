"""Table of an index in memory: files in order of name, excerpts, and the rows of their vectors.

SQLite holds the table. Reading a million excerpts from it takes seconds, so the writer of a large
index also saves the table as arrays, in `catalogue.npz`. A reader uses the arrays only if their
counter of changes equals that of the database. Triggers raise the counter at every change.

Letters: F files, B excerpts.
"""

import sqlite3
import zipfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval.base.files import atomic_path
from retrieval.search.hits import IndexedFile

CATALOGUE = "catalogue.npz"
SAVED_FROM = 10_000  # excerpts; fewer are read from SQLite in a few hundredths of a second

# The counter must exist before the triggers fire; a value in `meta` is JSON.
COUNTER = """
INSERT OR IGNORE INTO meta VALUES ('changes', '0');
CREATE TRIGGER IF NOT EXISTS file_added AFTER INSERT ON files
    BEGIN UPDATE meta SET value = value + 1 WHERE key = 'changes'; END;
CREATE TRIGGER IF NOT EXISTS file_removed AFTER DELETE ON files
    BEGIN UPDATE meta SET value = value + 1 WHERE key = 'changes'; END;
"""


class Files(Sequence):
    """Files in order of name, stored as arrays.

    Args:
        names: Their names in UTF-8, one after the other, uint8.
        ends: int64 (F,), the end of each name in `names`.
        seconds: Length of each, float64 (F,).
    """

    def __init__(self, names: np.ndarray, ends: np.ndarray, seconds: np.ndarray):
        self.names, self.ends, self.seconds = names, ends, seconds

    @classmethod
    def of(cls, files: Iterable[tuple[str, float]]) -> "Files":
        """Make it from names and seconds, in order of the names' bytes."""
        names, seconds = zip(*files, strict=True) if files else ((), ())
        encoded = [name.encode() for name in names]
        return cls(
            np.frombuffer(b"".join(encoded), np.uint8),
            np.cumsum([len(name) for name in encoded], dtype=np.int64),
            np.array(seconds, np.float64),
        )

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, place: int | slice) -> IndexedFile | list[IndexedFile]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number = place + len(self) if place < 0 else place
        if not 0 <= number < len(self):
            raise IndexError(f"there are {len(self)} files, found place {place}")
        return IndexedFile(self.name(number).decode(), float(self.seconds[number]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def name(self, number: int) -> bytes:
        first = int(self.ends[number - 1]) if number else 0
        return self.names[first : int(self.ends[number])].tobytes()

    def all_names(self) -> Iterator[str]:
        """Yield all names in order, as fast as a list of them."""
        names, first = self.names.tobytes(), 0
        for end in self.ends.tolist():
            yield names[first:end].decode()
            first = end

    def place(self, name: str | bytes) -> int:
        """Return the number of the first file whose name is not before `name`."""
        encoded = name.encode("utf-8", "surrogatepass") if isinstance(name, str) else name
        return bisect_left(range(len(self)), encoded, key=self.name)

    def number(self, name: str) -> int | None:
        """Return the number of a file; None if there is no such file."""
        number = self.place(name)
        found = number < len(self) and self.name(number) == name.encode("utf-8", "surrogatepass")
        return number if found else None

    def below(self, folder: str) -> slice:
        """Return the numbers of the files below a folder, which are consecutive."""
        inside = f"{folder}/"
        return slice(self.place(inside), self.place(f"{folder}0"))  # "0" comes after "/"

    def folders(self) -> list[str]:
        """Return all folders with files, in order of name."""
        found = set()
        for folder in self._folders_of_files():
            while folder and folder not in found:
                found.add(folder)
                folder = folder.rpartition(b"/")[0]
        return sorted(folder.decode() for folder in found)

    def _folders_of_files(self) -> Iterator[bytes]:
        before = b""
        for number in range(len(self)):
            folder = self.name(number).rpartition(b"/")[0]
            if folder != before:
                before = folder
                yield folder


@dataclass(frozen=True)
class Catalogue:
    """Files in order of name, and excerpts in order of name and start.

    Attributes:
        files: The files.
        file_of: int64 (B,), number of each excerpt's file.
        starts, stops: float64 (B,), in s from the beginning of the file.
        rows: int64 (B,), row of each excerpt's vector; copies of a file share rows.
        first_frames, num_frames: int64 (B,), first frame and number of frames of each excerpt.
    """

    files: Files
    file_of: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    rows: np.ndarray
    first_frames: np.ndarray
    num_frames: np.ndarray

    @classmethod
    def read(cls, database: sqlite3.Connection) -> "Catalogue":
        """Read the table from SQLite. Raises sqlite3.Error, TypeError, ValueError."""
        files = database.execute("SELECT id, file, seconds FROM files ORDER BY file").fetchall()
        excerpts = database.execute(
            "SELECT e.file_id, e.start, e.stop, e.row, e.first_frame, e.num_frames"
            " FROM excerpts e JOIN files f ON f.id = e.file_id ORDER BY f.file, e.start"
        ).fetchall()
        position = {number: position for position, (number, *_) in enumerate(files)}
        times = np.array([row[1:3] for row in excerpts], dtype=np.float64).reshape(-1, 2)
        places = np.array([row[3:] for row in excerpts], dtype=np.int64).reshape(-1, 3)
        return cls(
            Files.of([(file, seconds) for _, file, seconds in files]),
            np.array([position[row[0]] for row in excerpts], dtype=np.int64),
            *np.ascontiguousarray(times.T),
            *np.ascontiguousarray(places.T),
        )

    def save(self, folder: Path, stamp: tuple[int, int]) -> None:
        """Write the arrays, with the state of their database."""
        arrays = {
            "stamp": np.array(stamp, np.int64),
            "names": self.files.names,
            "ends": self.files.ends,
            "seconds": self.files.seconds,
        }
        arrays |= {name: getattr(self, name) for name in list(self.__dataclass_fields__)[1:]}
        with atomic_path(folder / CATALOGUE) as path, open(path, "wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, folder: Path, stamp: tuple[int, int]) -> "Catalogue | None":
        """Read the arrays; None if they are absent, damaged, or of another state."""
        try:
            with np.load(folder / CATALOGUE, allow_pickle=False) as arrays:
                if tuple(arrays["stamp"].tolist()) != stamp:
                    return None
                files = Files(arrays["names"], arrays["ends"], arrays["seconds"])
                fields = list(cls.__dataclass_fields__)[1:]
                return cls(files, *(arrays[name] for name in fields))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None


def stamp_of(database: sqlite3.Connection, generation: int) -> tuple[int, int] | None:
    """Return an identifier of the state of the table; None if nothing counts changes."""
    row = database.execute("SELECT value FROM meta WHERE key = 'changes'").fetchone()
    return None if row is None else (generation, int(row[0]))


def update_saved(folder: Path, database: sqlite3.Connection, generation: int) -> None:
    """Save the table of a large index as arrays; remove the arrays of a small one."""
    for path in folder.glob(f".{CATALOGUE}.*.tmp"):  # of a killed writer
        path.unlink()
    (num_excerpts,) = database.execute("SELECT count(*) FROM excerpts").fetchone()
    stamp = stamp_of(database, generation)
    if num_excerpts < SAVED_FROM or stamp is None:
        (folder / CATALOGUE).unlink(missing_ok=True)
    elif Catalogue.load(folder, stamp) is None:
        Catalogue.read(database).save(folder, stamp)
