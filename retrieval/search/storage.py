"""An index on disk.

    INDEX/index.sqlite          which model, which files (size, time, sha256), which excerpts; all that makes an index valid
    INDEX/vectors-G.f32         float32 (rows, D), of length 1: what FAISS searches
    INDEX/frames-G.f16          float16 (frames of all rows, D), normalised as TAP's keys; only where the pooling looks at the text
    INDEX/unreadable.csv        files that were left out, and why
    INDEX/fast_text/            the model's text tower in 8 bit, once it was asked for (fast_text.py)
    INDEX/.lock                 held by the one process that writes

Numbers are appended first and then a transaction of SQLite says that they are there, so that a kill
at any moment leaves an index as it was after some earlier file; what was appended without a
transaction is cut off by the next writer. G rises when the index is written anew without the
numbers of files that are gone. A reader maps the files of one G and keeps them, whatever a writer
does meanwhile.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from retrieval.base.access import check_readable
from retrieval.base.errors import UserError, one_line
from retrieval.search.two_stage import IndexedClips

Taken = TypeVar("Taken")
SCHEMA = 1
DATABASE = "index.sqlite"
META = {
    "folder": str,
    "model": dict,
    "dim": int,
    "has_frames": bool,
    "hop_seconds": (int, float),
    "complete": bool,
}
META |= {"generation": int, "num_rows": int, "num_frames": int}
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE files (id INTEGER PRIMARY KEY, file TEXT UNIQUE NOT NULL, size INTEGER, mtime_ns INTEGER, sha256 TEXT, seconds REAL);
CREATE INDEX file_of_sha256 ON files (sha256);
CREATE TABLE excerpts (file_id INTEGER NOT NULL REFERENCES files ON DELETE CASCADE, start REAL, stop REAL,
                       row INTEGER, first_frame INTEGER, num_frames INTEGER);
CREATE INDEX excerpts_of_file ON excerpts (file_id);
CREATE INDEX excerpts_of_row ON excerpts (row);
CREATE TABLE unreadable (file TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, reason TEXT);
"""


@dataclass(frozen=True)
class Contents:
    """An opened index. Files in order of name; excerpt b is of file `file_of[b]`, from `starts[b]`
    to `stops[b]` s.
    """

    meta: dict[str, Any]
    files: list[tuple[str, float]]  # name, s
    unreadable: list[tuple[str, str]]  # name, reason
    file_of: np.ndarray  # int64 (B,)
    starts: np.ndarray  # float64 (B,)
    stops: np.ndarray  # float64 (B,)
    clips: IndexedClips


def read_index(folder: Path) -> Contents:
    """Raises UserError for a folder that is absent, no index, of another version or damaged."""
    return _read(folder, _contents)


def read_index_meta(folder: Path) -> dict[str, Any]:
    """What `read_index` has as meta, without its files, excerpts and vectors. Raises UserError."""
    return _read(folder, lambda folder, _database, meta, *_: meta)


def _read(folder: Path, take: Callable[..., Taken]) -> Taken:
    """What `take` makes of folder, database, meta, vectors and frames (mapped) of one state of the
    index.
    """
    for _ in range(3):
        try:
            _check_there(folder)
            with connect(folder) as database:
                database.execute("BEGIN")
                meta = read_meta(database, folder)
                return take(folder, database, meta, *_mapped(folder, meta))
        except FileNotFoundError:
            pass  # a writer has just removed the files that the database named: read it again
        except (sqlite3.Error, KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            if isinstance(error, UserError):
                raise
            raise damaged(folder, one_line(error)) from None
    raise damaged(folder, "its vectors or frames are missing")


def damaged(folder: Path, reason: str) -> UserError:
    return UserError(
        f"index {folder} is damaged ({reason}); make it again: python -m retrieval.search index"
        f" FOLDER --index {folder} --overwrite"
    )


def _contents(
    folder: Path,
    database: sqlite3.Connection,
    meta: dict[str, Any],
    vectors: np.ndarray,
    frames: np.ndarray | None,
) -> Contents:
    files = database.execute("SELECT id, file, seconds FROM files ORDER BY file").fetchall()
    columns = "e.file_id, e.start, e.stop, e.row, e.first_frame, e.num_frames"
    found = database.execute(
        f"SELECT {columns} FROM excerpts e JOIN files f ON f.id = e.file_id ORDER BY f.file,"
        " e.start"
    ).fetchall()
    unreadable = database.execute("SELECT file, reason FROM unreadable ORDER BY file").fetchall()
    place = {number: position for position, (number, *_) in enumerate(files)}
    numbers = np.array([row[3:] for row in found], dtype=np.int64).reshape(-1, 3)
    beyond = (numbers[:, 0] >= meta["num_rows"]) | (numbers[:, 1:].sum(axis=1) > meta["num_frames"])
    beyond |= (numbers[:, :2] < 0).any(axis=1) | (numbers[:, 2] < int(meta["has_frames"]))
    rows, first_frames, num_frames = numbers.T
    vectors = np.zeros((0, 0), np.float32) if beyond.any() else vectors[rows]  # (B, D), in memory
    if beyond.any() or not np.isfinite(vectors).all():
        raise damaged(folder, "its vectors are not those that were written")
    frames = None if frames is None else torch.from_numpy(frames)
    clips = IndexedClips(torch.from_numpy(vectors), frames, first_frames, num_frames)
    times = np.array([row[1:3] for row in found], dtype=np.float64).reshape(-1, 2)
    file_of = np.array([place[row[0]] for row in found], dtype=np.int64)
    return Contents(
        meta,
        [(file, seconds) for _, file, seconds in files],
        unreadable,
        file_of,
        times[:, 0],
        times[:, 1],
        clips,
    )


def _mapped(folder: Path, meta: dict[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
    dim, names = meta["dim"], array_files(folder, meta)
    arrays = []
    for path, dtype, count in zip(
        names, (np.float32, np.float16), (meta["num_rows"], meta["num_frames"])
    ):
        if path.stat().st_size < count * dim * np.dtype(dtype).itemsize:
            raise damaged(folder, f"{path.name} is shorter than what was written")
        # Copy on write: torch.from_numpy wants an array that may be written to.
        arrays.append(
            np.memmap(path, dtype, "c", shape=(count, dim)) if count else np.zeros((0, dim), dtype)
        )
    return arrays[0], arrays[1] if len(arrays) > 1 else None


def array_files(folder: Path, meta: dict[str, Any]) -> list[Path]:
    """Of the vectors, and of the frames where there are any."""
    names = [f"vectors-{meta['generation']}.f32"] + (
        [f"frames-{meta['generation']}.f16"] if meta["has_frames"] else []
    )
    return [folder / name for name in names]


def _check_there(folder: Path) -> None:
    check_readable(folder / DATABASE, "index")
    if not (folder / DATABASE).is_file():
        what = "is not an index of recordings" if folder.exists() else "does not exist"
        raise UserError(
            f"index {folder} {what}; make one: python -m retrieval.search index FOLDER --checkpoint"
            f" MODEL --index {folder}"
        )


@contextmanager
def connect(folder: Path) -> Iterator[sqlite3.Connection]:
    """Raises UserError. SQLite's transactions are those that are written out: BEGIN, COMMIT."""
    # In mode rw what a killed writer left half done is undone; SQLite falls back to reading where
    # the file may not be written.
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


def read_meta(database: sqlite3.Connection, folder: Path) -> dict[str, Any]:
    """Raises UserError for an index of another version, and a damaged one."""
    try:
        meta = {
            key: json.loads(value) for key, value in database.execute("SELECT key, value FROM meta")
        }
        schema = meta["schema"]
    except (sqlite3.Error, ValueError, KeyError) as error:
        raise damaged(folder, one_line(error)) from None
    if schema != SCHEMA:
        raise UserError(
            f"index {folder} is of version {schema}, this program reads version {SCHEMA}; make it"
            " again with --overwrite"
        )
    wrong = [
        name
        for name, kind in META.items()
        if not isinstance(meta.get(name), kind) or (kind is int and meta[name] < 0)
    ]
    if wrong or not {"path", "files"} <= meta["model"].keys():
        raise damaged(folder, f"it does not say its {', '.join(wrong) or 'model'}")
    return meta
