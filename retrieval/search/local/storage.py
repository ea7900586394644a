"""An index on disk.

    INDEX/index.sqlite      model, files (size, time, sha256) and excerpts; it decides which rows
                            of the other files are valid
    INDEX/vectors-G.f32     float32 (rows, D), by pooling.directions: FAISS searches them
    INDEX/frames-G.f16      float16 (frames of all rows, D): after TAP's norm, for other poolings
                            by pooling.directions. A search finds moments in them. Absent
                            with --frames none, or if the model has one vector a window
    INDEX/frames-G.i8       the same with --frames int8; both may hold averages of frames
                            (frame_coding.py)
    INDEX/sizes-G.f32       float32 (frames of all rows, 2), with TAP: output sizes of each frame
                            (OutputSizes in two_stage.py), which a query needs to find moments. It
                            computes them for frames with zeros here, or without a row
    INDEX/approximate-N.faiss  of a large index: the vectors in few bits, for a faster search
                            (approximate.py); `meta` names it
    INDEX/catalogue.npz     the tables of a large index as arrays, to open it faster (catalogue.py)
    INDEX/unreadable.csv    files that were left out, with reasons
    INDEX/fast_text/        the model's text tower in 8 bit, made at its first use (fast_text.py)
    INDEX/detectors/        rankings learned from marks, as NAME.json (feedback/)
    INDEX/.lock             held by the process that writes

A writer first appends rows, then confirms them in a transaction of SQLite. A kill at any moment
leaves the index as it was after an earlier file; the next writer cuts off unconfirmed rows. G
increases when a writer copies the index without the rows of removed files. A reader maps the files
of one G and keeps them while a writer changes the index.

Letters: B excerpts in the index, D = dim.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval.base.access import check_readable
from retrieval.base.errors import UserError, one_line
from retrieval.search.index_meta import IndexMeta, damaged, meta_rows, parse_meta
from retrieval.search.local.catalogue import COUNTER, Catalogue, stamp_of
from retrieval.search.local.metadata import read_columns
from retrieval.search.metadata import Kind

DATABASE = "index.sqlite"
ROWS_CHECKED = 1000  # at least, evenly spread
TABLES = (
    """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE files (id INTEGER PRIMARY KEY, file TEXT UNIQUE NOT NULL, size INTEGER,
                    mtime_ns INTEGER, sha256 TEXT, seconds REAL);
CREATE INDEX file_of_sha256 ON files (sha256);
CREATE TABLE excerpts (file_id INTEGER NOT NULL REFERENCES files ON DELETE CASCADE,
                       start REAL, stop REAL, row INTEGER, first_frame INTEGER, num_frames INTEGER);
CREATE INDEX excerpts_of_file ON excerpts (file_id);
CREATE INDEX excerpts_of_row ON excerpts (row);
CREATE TABLE unreadable (file TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, reason TEXT);
"""
    + COUNTER
)


@dataclass(frozen=True)
class Contents:
    """One state of an index on disk.

    Attributes:
        meta: Its record.
        catalogue: Its files and excerpts.
        unreadable: (file, reason) of the files that were left out.
        vectors: float32 (rows, D), mapped.
        frames: Rows of meta.coding, mapped, or None.
        sizes: Output sizes float32 (frames, 2) of the first frames, mapped.
        columns: Kind of each column of metadata.
    """

    meta: IndexMeta
    catalogue: Catalogue
    unreadable: list[tuple[str, str]]
    vectors: np.ndarray
    frames: np.ndarray | None
    sizes: np.ndarray
    columns: dict[str, Kind]


def read_index(folder: Path) -> Contents:
    """Open an index; its vectors and frames stay on disk, as memory maps.

    Raises:
        UserError: The folder is absent, no index, of another version or damaged.
    """
    for _ in range(3):
        try:
            return _read_state(folder)
        except FileNotFoundError:
            continue  # a writer has just removed the files that the database named: read it again
        except UserError:
            raise
        except (sqlite3.Error, TypeError, ValueError, IndexError, OverflowError) as error:
            raise damaged(folder, one_line(error)) from None
    raise damaged(folder, "its vectors or frames are missing")


def _read_state(folder: Path) -> Contents:
    """Read one state of the index. Raises FileNotFoundError if a writer replaces it meanwhile."""
    check_there(folder)
    with connect(folder) as database:
        database.execute("BEGIN")
        meta = read_meta(database, folder)
        vectors, frames = mapped(folder, meta)
        sizes = mapped_sizes(folder, meta)
        stamp = stamp_of(database, meta.generation)
        catalogue = stamp and Catalogue.load(folder, stamp)
        if catalogue is None:
            catalogue = Catalogue.read(database)
        query = "SELECT file, reason FROM unreadable ORDER BY file"
        unreadable = database.execute(query).fetchall()
        columns = read_columns(database)
    ends = catalogue.first_frames + meta.coding.num_rows(catalogue.num_frames)  # (B,)
    is_wrong = (catalogue.rows < 0) | (catalogue.rows >= meta.num_rows)
    is_wrong |= (catalogue.first_frames < 0) | (ends > meta.num_frames)
    is_wrong |= catalogue.num_frames < int(meta.has_frames)
    # Numbers are finite when they are written; a sample tells of files that were overwritten.
    sample = vectors[:: max(1, len(vectors) // ROWS_CHECKED)]
    if is_wrong.any() or not np.isfinite(sample).all():
        raise damaged(folder, "its vectors are not those that were written")
    return Contents(meta, catalogue, unreadable, vectors, frames, sizes, columns)


def read_index_meta(folder: Path) -> IndexMeta:
    """Read the record of an index without its files and vectors. Raises UserError."""
    check_there(folder)
    with connect(folder) as database:
        return read_meta(database, folder)


def mapped(folder: Path, meta: IndexMeta) -> tuple[np.ndarray, np.ndarray | None]:
    """Map the files of vectors (rows, D), and the rows of frames if there are any."""
    arrays = []
    for path, (row, count) in zip(array_files(folder, meta), rows_of_files(meta), strict=True):
        if path.stat().st_size < count * row.itemsize:
            raise damaged(folder, f"{path.name} is shorter than it was written")
        # Copy on write: torch.from_numpy wants an array that may be written to.
        arrays.append(np.memmap(path, row, "c", shape=(count,)) if count else np.zeros(0, row))
    return arrays[0], arrays[1] if len(arrays) > 1 else None


def mapped_sizes(folder: Path, meta: IndexMeta) -> np.ndarray:
    """Map the output sizes float32 (rows, 2) of the first meta.num_sizes frames.

    Empty if the file is absent or too short: queries then compute the sizes.
    """
    path, shape = sizes_file(folder, meta), (meta.num_sizes, 2)
    row = np.dtype((np.float32, shape[1:]))
    if not shape[0] or not path.is_file() or path.stat().st_size < shape[0] * row.itemsize:
        return np.zeros((0, 2), np.float32)
    return np.memmap(path, np.float32, "c", shape=shape)


def sizes_file(folder: Path, meta: IndexMeta) -> Path:
    return folder / f"sizes-{meta.generation}.f32"


def rows_of_files(meta: IndexMeta) -> list[tuple[np.dtype, int]]:
    """Return the type and the number of rows in each of array_files."""
    frames = [(meta.coding.row, meta.num_frames)] if meta.has_frames else []
    return [(np.dtype((np.float32, (meta.dim,))), meta.num_rows), *frames]


def array_files(folder: Path, meta: IndexMeta) -> list[Path]:
    """Return the path of the vectors, and that of the frames if there are any."""
    frames = folder / f"frames-{meta.generation}.{meta.coding.ending}"
    frames = [frames] if meta.has_frames else []
    return [folder / f"vectors-{meta.generation}.f32", *frames]


def check_there(folder: Path) -> None:
    """Raise UserError if there is no index in `folder`, or it may not be read."""
    check_readable(folder / DATABASE, "index")
    if not (folder / DATABASE).is_file():
        found = "is not an index of recordings" if folder.exists() else "does not exist"
        raise UserError(
            f"index {folder} {found}; make one: python -m retrieval.search index FOLDER"
            f" --checkpoint MODEL --index {folder}"
        )


@contextmanager
def connect(folder: Path) -> Iterator[sqlite3.Connection]:
    """An open database; transactions are explicit: BEGIN, COMMIT. Raises UserError."""
    # Mode rw undoes the unfinished transaction of a killed writer; where the file may not be
    # written, SQLite falls back to reading.
    uri = (folder / DATABASE).absolute().as_uri() + "?mode=rw"
    try:
        database = sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None)
    except sqlite3.Error as error:
        raise UserError(f"{folder / DATABASE} cannot be opened ({error})") from None
    try:
        database.execute("PRAGMA foreign_keys = ON")
        yield database
    finally:
        database.close()


def read_meta(database: sqlite3.Connection, folder: Path) -> IndexMeta:
    """Read the table `meta`. Raises UserError if it is damaged or of another version."""
    try:
        values = dict(database.execute("SELECT key, value FROM meta"))
    except sqlite3.Error as error:
        raise damaged(folder, one_line(error)) from None
    return parse_meta(values, folder)


def write_meta(database: sqlite3.Connection, meta: IndexMeta) -> None:
    rows = meta_rows(meta)
    database.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)
    absent = [(key,) for key in IndexMeta.model_fields.keys() - dict(rows).keys()]
    database.executemany("DELETE FROM meta WHERE key = ?", absent)
