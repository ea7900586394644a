"""The one process that writes an index: appends, then says so in a transaction. How the files stand
on disk: retrieval/search/storage.py.
"""

import csv
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.base.disk import disk_errors
from retrieval.base.errors import UserError
from retrieval.base.files import atomic_writer
from retrieval.base.locks import LOCK, take_lock
from retrieval.search.sound import Found
from retrieval.search.storage import DATABASE, SCHEMA, TABLES, array_files, connect, read_meta

UNREADABLE, FAST_TEXT = "unreadable.csv", "fast_text"
MOST_DEAD = 0.5  # share of vectors of files that are gone, above which the index is written anew


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one process writes to an index; a second one waits and says so. The lock ends with its
    process, however that ends. Raises UserError.
    """
    with disk_errors(f"--index {folder}", "or choose another folder"):
        lock = take_lock(folder / LOCK, wait=True)
    with lock:
        yield


def check_target(folder: Path) -> None:
    """Raises UserError for a folder that holds something else than an index."""
    if (
        folder.is_dir()
        and not (folder / DATABASE).exists()
        and not all(_is_ours(path.name) for path in folder.iterdir())
    ):
        raise UserError(
            f"--index {folder} is a folder with other files; give a new one, or an index"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--index {folder} is a file; give a folder")


def _is_ours(name: str) -> bool:
    return name.startswith(
        (DATABASE, "vectors-", "frames-", FAST_TEXT, f".{FAST_TEXT}", f".{UNREADABLE}")
    ) or name in (UNREADABLE, LOCK)


class IndexWriter:
    """Opened under the lock, by `opened`. Numbers of excerpts are appended with `append`; `commit`
    makes them and their files part of the index.
    """

    def __init__(self, folder: Path, database: sqlite3.Connection):
        self.folder, self.database = folder, database
        self.meta = read_meta(database, folder)
        self._arrays = [open(path, "rb+") for path in array_files(folder, self.meta)]
        for file, count in zip(self._arrays, (self.meta["num_rows"], self.meta["num_frames"])):
            file.seek(0, os.SEEK_END)
            if file.tell() < count * self._bytes_of_row(file):
                raise UserError(
                    f"{file.name} is shorter than what was written; make the index again with"
                    " --overwrite"
                )
            file.truncate(count * self._bytes_of_row(file))  # what a killed writer appended
            file.seek(0, os.SEEK_END)
        self._pending: list[tuple[str, tuple[Any, ...]]] = []

    def _bytes_of_row(self, file: Any) -> int:
        return self.meta["dim"] * (4 if file is self._arrays[0] else 2)

    @classmethod
    @contextmanager
    def opened(
        cls, folder: Path, about: dict[str, Any], overwrite: bool
    ) -> Iterator["IndexWriter"]:
        """`about`: dim, has_frames, folder, model, ... of a new index. Call it under the lock.
        Raises UserError, also for a full disk.
        """
        with _explained(folder), ExitStack() as stack:
            if overwrite or not (folder / DATABASE).exists():
                shutil.rmtree(folder / FAST_TEXT, ignore_errors=True)  # of another model, perhaps
                _create(folder, about)
            writer = cls(folder, stack.enter_context(connect(folder)))
            stack.callback(writer._close)
            writer._remove_other_generations()
            yield writer

    def _close(self) -> None:
        for file in self._arrays:
            file.close()

    # --- what is there ---

    def files(self) -> dict[str, tuple[int, int | None]]:
        """Return size and time of each file; time None if only the content can show whether the
        file has changed.
        """
        return {
            file: (size, time)
            for file, size, time in self.database.execute("SELECT file, size, mtime_ns FROM files")
        }

    def unreadable(self) -> dict[str, tuple[int, int]]:
        """Size and time of files that could not be read; None of those that were not opened."""
        return {
            file: (size, time)
            for file, size, time in self.database.execute(
                "SELECT file, size, mtime_ns FROM unreadable"
            )
        }

    def listed_unreadable(self) -> list[tuple[str, str]]:
        """File and reason."""
        return self.database.execute("SELECT file, reason FROM unreadable ORDER BY file").fetchall()

    def digests(self) -> dict[str, str]:
        """Return the sha256 of each file in the index."""
        return dict(self.database.execute("SELECT file, sha256 FROM files"))

    # --- changes: they count from the next commit on ---

    def append(
        self, vectors: np.ndarray, frames: list[np.ndarray] | None
    ) -> list[tuple[int, int, int]]:
        """Vectors float32 (b, D) and the frames float16 (T, D) of each: row, first frame and number
        of frames of each.
        """
        places = []
        for vector, own in zip(vectors, frames or [None] * len(vectors)):
            num_frames = 0 if own is None else len(own)
            places.append((self.meta["num_rows"], self.meta["num_frames"], num_frames))
            self.meta["num_rows"] += 1
            self.meta["num_frames"] += num_frames
            self._arrays[0].write(np.ascontiguousarray(vector, np.float32))
            if own is not None:
                self._arrays[1].write(np.ascontiguousarray(own, np.float16))
        return places

    def add_file(
        self,
        found: Found,
        sha256: str,
        seconds: float,
        excerpts: list[tuple[float, float, int, int, int]],
    ) -> None:
        """`excerpts`: start and stop in s, and what `append` gave. Takes the place of what the
        index had under this name.
        """
        self._forget(found.file)
        insert = "INSERT INTO files (file, size, mtime_ns, sha256, seconds) VALUES (?, ?, ?, ?, ?)"
        self._pending.append((insert, (found.file, found.size, found.mtime_ns, sha256, seconds)))
        for excerpt in excerpts:
            self._pending.append(
                (
                    (
                        "INSERT INTO excerpts VALUES ((SELECT id FROM files WHERE file = ?), ?, ?,"
                        " ?, ?, ?)"
                    ),
                    (found.file, *excerpt),
                )
            )

    def add_known(self, found: Found, sha256: str) -> str | None:
        """Add a file with the content of one that the index has, without encoding it; the name of
        that one, which may be its own, or None.
        """
        query = "SELECT id, file, seconds FROM files WHERE sha256 = ? ORDER BY file = ? DESC"
        known = self.database.execute(query, (sha256, found.file)).fetchone()
        if known is None:
            return None
        number, name, seconds = known
        rows = self.database.execute(
            "SELECT start, stop, row, first_frame, num_frames FROM excerpts WHERE file_id = ?",
            (number,),
        ).fetchall()
        self.add_file(found, sha256, seconds, rows)
        return name

    def move_folder(self, folder: Path, recognised: list[tuple[Found, str]]) -> None:
        """Make this the index of `folder`, in one transaction.

        Entries of files that were not recognised stay, without a time: the next update compares
        their content.

        Args:
            folder: The new folder.
            recognised: Its files with content that is in the index, with their sha256.
        """
        digests, names, contents = (
            self.digests(),
            {found.file for found, _ in recognised},
            {sha256 for _, sha256 in recognised},
        )
        self._pending += [("UPDATE files SET mtime_ns = NULL", ()), ("DELETE FROM unreadable", ())]
        for found, sha256 in recognised:
            if digests.get(found.file) == sha256:
                self._pending.append(
                    ("UPDATE files SET mtime_ns = ? WHERE file = ?", (found.mtime_ns, found.file))
                )
            else:
                self.add_known(found, sha256)
        for file, sha256 in digests.items():
            if sha256 in contents and file not in names:
                self.remove(file)  # its content now has another name
        self.commit(folder=str(folder.resolve()), complete=False)

    def add_unreadable(self, file: str, reason: str, found: Found | None = None) -> None:
        self._forget(file)
        row = file, found and found.size, found and found.mtime_ns, reason
        self._pending.append(("INSERT INTO unreadable VALUES (?, ?, ?, ?)", row))

    def remove(self, file: str) -> None:
        self._forget(file)

    def _forget(self, file: str) -> None:
        self._pending += [
            (f"DELETE FROM {table} WHERE file = ?", (file,)) for table in ("files", "unreadable")
        ]

    def commit(self, **meta: Any) -> None:
        """Everything since the last commit, or nothing of it, is in the index. `meta` is noted with
        it.
        """
        self.meta |= meta
        for file in self._arrays:
            file.flush()
            os.fsync(file.fileno())
        self.database.execute("BEGIN IMMEDIATE")
        try:
            for statement, values in self._pending:
                self.database.execute(statement, values)
            _write_meta(self.database, self.meta)
            self.database.execute("COMMIT")
        except sqlite3.Error:
            if self.database.in_transaction:
                self.database.execute("ROLLBACK")
            raise
        self._pending.clear()

    def finish(self) -> None:
        """Without what is of no use any more, and with the list of unreadable files."""
        (num_live,) = self.database.execute("SELECT count(DISTINCT row) FROM excerpts").fetchone()
        if self.meta["num_rows"] - num_live > MOST_DEAD * self.meta["num_rows"]:
            self._write_anew()
        with atomic_writer(self.folder / UNREADABLE) as file:
            csv.writer(file).writerows([("file", "reason"), *self.listed_unreadable()])

    def _write_anew(self) -> None:
        """A new generation with the rows that are in use alone."""
        places = self.database.execute(
            "SELECT DISTINCT row, first_frame, num_frames FROM excerpts ORDER BY row"
        ).fetchall()
        meta = self.meta | {
            "generation": self.meta["generation"] + 1,
            "num_rows": 0,
            "num_frames": 0,
        }
        old, self.meta = self._arrays, meta
        self._arrays = [open(path, "wb+") for path in array_files(self.folder, meta)]
        dim = meta["dim"]
        for row, first, num_frames in places:
            vector = _read(old[0], row, 1, dim, np.float32)
            frames = (
                [_read(old[1], first, num_frames, dim, np.float16)] if meta["has_frames"] else None
            )
            ((new_row, new_first, _),) = self.append(vector, frames)
            self._pending.append(
                (
                    "UPDATE excerpts SET row = ?, first_frame = ? WHERE row = ?",
                    (-1 - new_row, new_first, row),
                )
            )
        # the old and the new numbers did not meet on the way
        self._pending.append(("UPDATE excerpts SET row = -1 - row", ()))
        self.commit()
        for file in old:
            file.close()
        self._remove_other_generations()

    def _remove_other_generations(self) -> None:
        own = array_files(self.folder, self.meta)
        for path in [*self.folder.glob("vectors-*.f32"), *self.folder.glob("frames-*.f16")]:
            if path not in own:
                path.unlink()


def _read(file: Any, first: int, count: int, dim: int, dtype: Any) -> np.ndarray:
    """(count, dim), from row `first` on."""
    size = np.dtype(dtype).itemsize
    file.seek(first * dim * size)
    return np.frombuffer(file.read(count * dim * size), dtype).reshape(count, dim)


def _create(folder: Path, about: dict[str, Any]) -> None:
    """An empty index, which takes the place of an old one when its database does. A reader of the
    old one finds its files or none, never these.
    """
    used = [int(path.stem.partition("-")[2]) for path in folder.glob("vectors-*.f32")]
    meta = about | {
        "schema": SCHEMA,
        "generation": max(used, default=-1) + 1,
        "num_rows": 0,
        "num_frames": 0,
        "complete": False,
    }
    for path in array_files(folder, meta):
        path.touch()
    new = folder / f"{DATABASE}.new"
    new.unlink(missing_ok=True)
    database = sqlite3.connect(new)
    try:
        database.executescript(TABLES)
        _write_meta(database, meta)
        database.commit()
    finally:
        database.close()
    if (folder / DATABASE).exists():
        with suppress(UserError, sqlite3.Error), connect(folder) as old:
            old.execute("SELECT count(*) FROM meta")  # undoes what a killed writer left half done
    # SQLite would do so to the new database
    (folder / f"{DATABASE}-journal").unlink(missing_ok=True)
    os.replace(new, folder / DATABASE)


def _write_meta(database: sqlite3.Connection, meta: dict[str, Any]) -> None:
    database.executemany(
        "INSERT OR REPLACE INTO meta VALUES (?, ?)",
        [(key, json.dumps(value)) for key, value in meta.items()],
    )


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """A full or failing disk as one line: what was committed is kept."""
    try:
        with disk_errors(f"index {folder}", "and run the command again: it goes on from here"):
            yield
    except sqlite3.Error as error:
        raise UserError(
            f"index {folder} is damaged ({error}); make it again with --overwrite"
        ) from None
