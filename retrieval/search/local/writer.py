"""Write an index: append numbers, then confirm them in a transaction. Files: storage.py."""

import csv
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from retrieval.base.errors import UserError
from retrieval.base.files import atomic_writer, disk_errors
from retrieval.base.locks import LOCK, take_lock
from retrieval.search.cluster.address import Share
from retrieval.search.index_meta import IndexMeta, Sizes
from retrieval.search.local.approximate import FILES, updated
from retrieval.search.local.catalogue import CATALOGUE, COUNTER, update_saved
from retrieval.search.local.metadata import (
    read_columns,
    statements_to_copy,
    statements_to_replace,
)
from retrieval.search.local.storage import (
    DATABASE,
    TABLES,
    array_files,
    connect,
    mapped,
    mapped_sizes,
    read_meta,
    rows_of_files,
    sizes_file,
    write_meta,
)
from retrieval.search.metadata import Metadata
from retrieval.search.sound import Found
from retrieval.search.store import renamed

UNREADABLE, FAST_TEXT = "unreadable.csv", "fast_text"
BYTES_OF_SIZES = 8  # a frame: two float32
MOST_DEAD = 0.5  # share of rows of removed files; above it the index is copied without them


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the index for writing; a second process waits and says so. Raises UserError."""
    with disk_errors(f"--index {folder}", "or choose another folder"):
        lock = take_lock(folder / LOCK, wait=True)
    with lock:
        yield


def check_target(folder: Path) -> None:
    """Raise UserError if `folder` is a file, or a folder with files that no index has."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--index {folder} is a file; give a folder")
    starts = (DATABASE, "vectors-", "frames-", "sizes-", FAST_TEXT, f".{FAST_TEXT}")
    starts += (f".{UNREADABLE}", CATALOGUE, f".{CATALOGUE}", "approximate-", ".approximate-")
    if folder.is_dir() and not (folder / DATABASE).exists():
        for path in folder.iterdir():
            if not path.name.startswith(starts) and path.name not in (UNREADABLE, LOCK):
                raise UserError(
                    f"--index {folder} is a folder with other files, such as {path.name}; give a"
                    " new one, or an index"
                )


class IndexWriter:
    """Writes an index; made by `opened`, under the lock.

    Changes count from the next `commit` on.

    Attributes:
        folder: Folder of the index.
        meta: Its record, with the rows appended since.
        share: The files that it keeps: all.
    """

    share = Share()

    def __init__(self, folder: Path, database: sqlite3.Connection):
        self.folder, self.database = folder, database
        self.meta = read_meta(database, folder)
        database.executescript(COUNTER)  # an index of an older version has none
        self._arrays = [open(path, "rb+") for path in array_files(folder, self.meta)]
        for file, (row, count) in zip(self._arrays, rows_of_files(self.meta), strict=True):
            size = count * row.itemsize  # bytes
            if file.seek(0, os.SEEK_END) < size:
                raise UserError(
                    f"{file.name} is shorter than it was written; make the index again with"
                    " --overwrite"
                )
            file.truncate(size)  # without the rows that a killed writer appended
            file.seek(0, os.SEEK_END)
        self._sizes: BinaryIO | None = None  # opened at the first sizes
        self._pending: list[tuple[str, tuple[Any, ...]]] = []
        self._num_columns = len(read_columns(self.database))  # of metadata

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, meta: IndexMeta, overwrite: bool) -> Iterator["IndexWriter"]:
        """Open an index, or create one with the record `meta`; call it under the lock.

        Raises UserError, also for a full disk within the block.
        """
        with _explained(folder), ExitStack() as stack:
            if overwrite or not (folder / DATABASE).exists():
                # the model may be another one
                shutil.rmtree(folder / FAST_TEXT, ignore_errors=True)
                _create(folder, meta)
            writer = cls(folder, stack.enter_context(connect(folder)))
            stack.callback(writer._close)
            writer._remove_other_generations()
            yield writer

    def files(self) -> dict[str, tuple[int, int | None]]:
        """Return size and time of each file; time None if its content must be compared."""
        rows = self.database.execute("SELECT file, size, mtime_ns FROM files")
        return {file: (size, time) for file, size, time in rows}

    def unreadable(self) -> dict[str, tuple[int | None, int | None]]:
        """Return size and time of each file that was left out; None if it was not opened."""
        rows = self.database.execute("SELECT file, size, mtime_ns FROM unreadable")
        return {file: (size, time) for file, size, time in rows}

    def listed_unreadable(self) -> list[tuple[str, str]]:
        """Return file and reason of each file that was left out."""
        return self.database.execute("SELECT file, reason FROM unreadable ORDER BY file").fetchall()

    def digests(self) -> dict[str, str]:
        """Return the sha256 of each file."""
        return dict(self.database.execute("SELECT file, sha256 FROM files"))

    def append(
        self,
        vectors: np.ndarray,
        frames: list[np.ndarray] | None,
        sizes: Callable[[Tensor], Tensor] | None = None,
    ) -> list[tuple[int, int, int]]:
        """Append encoded excerpts.

        Args:
            vectors: float32 (b, D).
            frames: (T, D) of each excerpt, of any float type; None if the index holds none.
            sizes: See Writer.append.

        Returns:
            Row, first row of the frames, and number of frames of each excerpt.
        """
        coding, places = self.meta.coding, []
        for number, vector in enumerate(vectors):
            rows = None if frames is None else coding.encode(frames[number])
            num_frames = 0 if frames is None else len(frames[number])
            if rows is not None and sizes is not None:
                self._append_sizes(sizes(coding.decode_rows(rows)).numpy())
            places.append((*self._append_rows(vector, rows), num_frames))
        return places

    def _append_sizes(self, sizes: np.ndarray) -> None:
        """Write the output sizes (M, 2) of the frames that are appended next."""
        if self._sizes is None:
            path = sizes_file(self.folder, self.meta)
            path.touch()
            self._sizes = open(path, "rb+")
            self._sizes.truncate(BYTES_OF_SIZES * len(mapped_sizes(self.folder, self.meta)))
        self._pad_sizes()
        self._sizes.write(np.ascontiguousarray(sizes, np.float32))

    def _pad_sizes(self) -> None:
        """Write zeros for frames without sizes, such as those that an older version added."""
        self._sizes.flush()
        self._sizes.truncate(BYTES_OF_SIZES * self.meta.num_frames)
        self._sizes.seek(0, os.SEEK_END)

    def _close(self) -> None:
        for file in (*self._arrays, self._sizes):
            if file is not None:
                file.close()

    def _append_rows(self, vector: np.ndarray, frames: np.ndarray | None) -> tuple[int, int]:
        """Append a vector (D,) and its rows of frames; return the places of both."""
        place = self.meta.num_rows, self.meta.num_frames
        self._arrays[0].write(np.ascontiguousarray(vector, np.float32))
        self.meta.num_rows += 1
        if frames is not None:
            self._arrays[1].write(np.ascontiguousarray(frames))
            self.meta.num_frames += len(frames)
        return place

    def add_file(
        self,
        found: Found,
        sha256: str,
        seconds: float,
        excerpts: list[tuple[float, float, int, int, int]],
    ) -> None:
        """Add a file, in place of the one with its name.

        Args:
            found: Name, size and time.
            sha256: Of its content.
            seconds: Its length.
            excerpts: Of each excerpt start and stop in s, and the place that `append` returned.
        """
        self.remove(found.file)
        insert = "INSERT INTO files (file, size, mtime_ns, sha256, seconds) VALUES (?, ?, ?, ?, ?)"
        self._pending.append((insert, (found.file, found.size, found.mtime_ns, sha256, seconds)))
        number = "(SELECT id FROM files WHERE file = ?)"
        insert = f"INSERT INTO excerpts VALUES ({number}, ?, ?, ?, ?, ?)"
        self._pending += [(insert, (found.file, *excerpt)) for excerpt in excerpts]

    def add_known(self, found: Found, sha256: str) -> str | None:
        """Add a file with content that the index has, without encoding it.

        Returns:
            Name of the file with the same content, which may be its own; None if there is none.
        """
        query = "SELECT id, file, seconds FROM files WHERE sha256 = ? ORDER BY file = ? DESC"
        known = self.database.execute(query, (sha256, found.file)).fetchone()
        if known is None:
            return None
        number, name, seconds = known
        query = "SELECT start, stop, row, first_frame, num_frames FROM excerpts WHERE file_id = ?"
        excerpts = self.database.execute(query, (number,)).fetchall()
        self.add_file(found, sha256, seconds, excerpts)
        self._pending += statements_to_copy(name, found.file, self._num_columns)
        return name

    def replace_metadata(self, metadata: Metadata) -> None:
        """Replace the metadata of all files."""
        self._pending += statements_to_replace(metadata)
        self._num_columns = len(metadata.columns)

    def move_folder(self, folder: Path, recognised: list[tuple[Found, str]]) -> None:
        """Make this the index of `folder`, in one transaction.

        Entries of files that were not recognised stay, without a time: the next update compares
        their content.

        Args:
            folder: The new folder.
            recognised: Its files with content that is in the index, with their sha256.
        """
        digests = self.digests()
        self._pending += [("UPDATE files SET mtime_ns = NULL", ()), ("DELETE FROM unreadable", ())]
        update = "UPDATE files SET mtime_ns = ? WHERE file = ?"
        for found, sha256 in recognised:
            if digests.get(found.file) == sha256:
                self._pending.append((update, (found.mtime_ns, found.file)))
            else:
                self.add_known(found, sha256)
        for file in renamed(digests, recognised):
            self.remove(file)
        self.commit(folder=str(folder.resolve()), complete=False)

    def add_unreadable(self, file: str, reason: str, found: Found | None = None) -> None:
        """List a file that was left out; found: do not try it again while it is the same."""
        self.remove(file)
        row = file, found and found.size, found and found.mtime_ns, reason
        self._pending.append(("INSERT INTO unreadable VALUES (?, ?, ?, ?)", row))

    def remove(self, file: str) -> None:
        """Remove a file from the index, or from the list of those that were left out."""
        for table in ("files", "unreadable"):
            self._pending.append((f"DELETE FROM {table} WHERE file = ?", (file,)))

    def commit(self, **changes: Any) -> None:
        """Make everything since the last commit part of the index, or nothing of it.

        changes: of fields of `meta`.
        """
        self.meta = self.meta.model_copy(update=changes)
        files = list(self._arrays)
        if self._sizes is not None:
            self._pad_sizes()
            facts = Sizes(generation=self.meta.generation, num_rows=self.meta.num_frames)
            self.meta = self.meta.model_copy(update={"sizes": facts})
            files.append(self._sizes)
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        self.database.execute("BEGIN IMMEDIATE")
        try:
            for statement, values in self._pending:
                self.database.execute(statement, values)
            write_meta(self.database, self.meta)
            self.database.execute("COMMIT")
        except sqlite3.Error:
            if self.database.in_transaction:
                self.database.execute("ROLLBACK")
            raise
        self._pending.clear()

    def finish(self, gate_queries: Callable[[], np.ndarray] | None = None) -> None:
        """Copy the index without removed rows if these are many; write derived files.

        gate_queries: returns vectors float32 (n, D) of texts, with which the approximate search of
            a large index is measured; None: leave its file as it is.
        """
        (num_live,) = self.database.execute("SELECT count(DISTINCT row) FROM excerpts").fetchone()
        if self.meta.num_rows - num_live > MOST_DEAD * self.meta.num_rows:
            self._copy_live_rows()
        update_saved(self.folder, self.database, self.meta.generation)
        if gate_queries is not None:
            self._update_approximate(gate_queries)
        with atomic_writer(self.folder / UNREADABLE) as file:
            csv.writer(file).writerows([("file", "reason"), *self.listed_unreadable()])

    def _update_approximate(self, gate_queries: Callable[[], np.ndarray]) -> None:
        for file in self._arrays:
            file.flush()
        vectors, _ = mapped(self.folder, self.meta)
        live = np.zeros(len(vectors), dtype=bool)
        live[[row for (row,) in self.database.execute("SELECT DISTINCT row FROM excerpts")]] = True
        meta = self.meta
        facts = updated(self.folder, meta.approximate, vectors, live, gate_queries, meta.generation)
        if facts != meta.approximate:
            self.commit(approximate=facts)
            self._remove_other_generations()

    def _copy_live_rows(self) -> None:
        """Write a new generation of vectors and frames with the rows that excerpts refer to."""
        query = "SELECT DISTINCT row, first_frame, num_frames FROM excerpts ORDER BY row"
        places = self.database.execute(query).fetchall()
        vectors, frames = mapped(self.folder, self.meta)
        sizes = mapped_sizes(self.folder, self.meta)
        self._close()
        self._sizes = None
        generation = self.meta.generation + 1
        empty = {"generation": generation, "num_rows": 0, "num_frames": 0, "approximate": None}
        empty["sizes"] = None
        self.meta = self.meta.model_copy(update=empty)
        self._arrays = [open(path, "wb+") for path in array_files(self.folder, self.meta)]
        # Negative numbers first, so that an old and a new one are never the same.
        update = "UPDATE excerpts SET row = ?, first_frame = ? WHERE row = ?"
        for row, first, num_frames in places:
            stop = first + self.meta.coding.num_rows(num_frames)
            own = None if frames is None else frames[first:stop]
            if stop <= len(sizes):
                self._append_sizes(sizes[first:stop])
            new_row, new_first = self._append_rows(vectors[row], own)
            self._pending.append((update, (-1 - new_row, new_first, row)))
        self._pending.append(("UPDATE excerpts SET row = -1 - row", ()))
        self.commit()
        del vectors, frames, sizes  # Windows removes no file that is mapped
        self._remove_other_generations()

    def _remove_other_generations(self) -> None:
        own = [*array_files(self.folder, self.meta), sizes_file(self.folder, self.meta)]
        if self.meta.approximate is not None:
            own.append(self.folder / self.meta.approximate.file)
        patterns = ("vectors-*.f32", "frames-*", "sizes-*.f32", FILES, f".{FILES}.*.tmp")
        for path in chain.from_iterable(self.folder.glob(pattern) for pattern in patterns):
            if path not in own:
                # On Windows an open index keeps its files: a later writer removes them.
                with suppress(PermissionError, IsADirectoryError):
                    path.unlink()


def _create(folder: Path, meta: IndexMeta) -> None:
    """Make an empty index; it replaces an old one when its database does.

    A reader of the old one finds its files or none, never the new ones.
    """
    used = [int(path.stem.partition("-")[2]) for path in folder.glob("vectors-*.f32")]
    meta = meta.model_copy(update={"generation": max(used, default=-1) + 1})
    for path in array_files(folder, meta):
        path.touch()
    new = folder / f"{DATABASE}.new"
    new.unlink(missing_ok=True)
    database = sqlite3.connect(new)
    try:
        database.executescript(TABLES)
        write_meta(database, meta)
        database.commit()
    finally:
        database.close()
    # The journal of a killed writer belongs to the old database; SQLite would apply it to the new.
    if (folder / DATABASE).exists():
        with suppress(UserError, sqlite3.Error), connect(folder) as old:
            old.execute("SELECT count(*) FROM meta")  # SQLite applies and removes the journal
    (folder / f"{DATABASE}-journal").unlink(missing_ok=True)
    os.replace(new, folder / DATABASE)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn errors of the disk and of SQLite into UserError; committed changes are kept."""
    try:
        with disk_errors(f"index {folder}", "and run the command again: it goes on from here"):
            yield
    except sqlite3.Error as error:
        raise UserError(
            f"index {folder} is damaged ({error}); make it again with --overwrite"
        ) from None
