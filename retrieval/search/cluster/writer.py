"""Write an index in a database; several machines may write at once.

A writer first writes frames, as objects. Then one transaction makes all changes since the last one
part of the index. A kill at any moment leaves the index as it was after a transaction. If two
writers write one file, the later transaction counts.
"""

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from pgvector import Vector
from psycopg import errors
from torch import Tensor

from retrieval.base.errors import UserError
from retrieval.search.cluster.address import Address, Share, share_number
from retrieval.search.cluster.database import (
    State,
    connect,
    create,
    explained,
    prepare,
    read_state,
)
from retrieval.search.cluster.frames import FrameObjects
from retrieval.search.cluster.metadata import copy_metadata, replace_metadata
from retrieval.search.index_meta import IndexMeta, meta_rows
from retrieval.search.metadata import Metadata
from retrieval.search.sound import Found
from retrieval.search.store import renamed

GOES_ON = "; then run the command again: it goes on from here"
UPLOADS = 4  # of frames, side by side
TRIES = 4  # of a transaction that meets another writer's
SECONDS_BETWEEN_TRIES = 0.5
# Objects without excerpts are kept for so long: queries under way may read them, and a writer may
# be about to name them.
SECONDS_KEPT = 3600
OF_SHARDS = ("complete", "reader")  # fields of IndexMeta that the table `shards` holds
FILES_FIELDS = ("file", "share", "size", "mtime_ns", "sha256", "seconds", "num_excerpts")
EXCERPT_FIELDS = "file_id, start, stop, object, first_frame, num_frames, vector"
EXCERPT_TYPES = ("int8", "float8", "float8", "int8", "int8", "int8", "vector")


@dataclass(frozen=True)
class _Change:
    """Change of a file by the next transaction.

    Attributes:
        file: Row of the table `files`; None: remove the file.
        excerpts: start, stop and place of each excerpt.
        source: id of a file whose excerpts are copied in place of these.
        source_name: Its name.
        is_touched: The excerpts stay as they are.
        unreadable: Row of the table `unreadable`, after the name and share.
    """

    file: tuple[Any, ...] | None = None
    excerpts: Sequence[tuple[Any, ...]] = ()
    source: int | None = None
    source_name: str = ""
    is_touched: bool = False
    unreadable: tuple[Any, ...] | None = None


class DatabaseWriter:
    """Writes an index in a database, a Writer; made by `opened`.

    Changes count from the next `commit` on.

    Attributes:
        folder: Address of the index.
        meta: Its record; `complete` and `reader` are those of this writer's share.
        share: The share of the files that this writer updates.
    """

    def __init__(
        self, connection: psycopg.Connection, address: Address, state: State, share: Share
    ):
        self.folder, self.share, self.meta = address, share, state.meta
        self._connection, self._state = connection, state
        self._written = _rows_of(state.meta)  # fields as the last transaction left them
        query = "SELECT complete, reader FROM shards WHERE number = %s AND num_shards = %s"
        own = connection.execute(query, [share.number, share.of]).fetchone()
        self.meta.complete, self.meta.reader = own or (False, None)
        self._pending: dict[str, _Change] = {}
        self._metadata: Metadata | None = None  # that the next transaction writes
        self._is_moved = False  # the next transaction forgets the times of all files
        self._objects = None
        self._uploads: deque[Future] = deque()
        self._unnamed: set[int] = set()  # objects of files that are not read to their end

    @classmethod
    @contextmanager
    def opened(
        cls,
        address: Address,
        meta: IndexMeta,
        overwrite: bool,
        share: Share,
        frames_store: str | None,
    ) -> Iterator["DatabaseWriter"]:
        """Open an index, or create one with the record `meta`. A second writer of a share waits.

        Raises UserError, also if the database is lost within the block.
        """
        with explained(address, GOES_ON), ExitStack() as stack:
            connection = stack.enter_context(connect(address))
            _lock(connection, address, share)
            state = read_state(connection, address)
            if state is None or overwrite:
                frames_store = frames_store or (state and state.frames_store)
                if meta.has_frames and frames_store is None:
                    raise UserError(
                        f"index {address} keeps the frames of its excerpts: add --frames-store, a"
                        " folder that all machines share, or s3://bucket/prefix"
                    )
                create(connection, address, meta, frames_store, overwrite)
                prepare(connection, address)
                state = read_state(connection, address)
            writer = cls(connection, address, state, share)
            if state.meta.has_frames and meta.has_frames:
                root = frames_store or state.frames_store
                objects = FrameObjects(root, state.frames_folder(address), meta.coding)
                objects.check_writable()
                pool = stack.enter_context(ThreadPoolExecutor(UPLOADS))
                stack.callback(pool.shutdown, wait=True, cancel_futures=True)
                writer._objects, writer._pool = objects, pool
            yield writer

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple]:
        return self._connection.execute(query, values).fetchall()

    def _own(self, columns: str, table: str) -> list[tuple]:
        """Return columns of a table for the files of this share."""
        query = f"SELECT {columns} FROM {table} WHERE share %% %s = %s"
        return self._rows(query, [self.share.of, self.share.number - 1])

    def files(self) -> dict[str, tuple[int, int | None]]:
        """Return size and time of each file; time None if its content must be compared."""
        return {
            file: (size, time) for file, size, time in self._own("file, size, mtime_ns", "files")
        }

    def unreadable(self) -> dict[str, tuple[int | None, int | None]]:
        """Return size and time of each file that was left out; None if it was not opened."""
        rows = self._own("file, size, mtime_ns", "unreadable")
        return {file: (size, time) for file, size, time in rows}

    def listed_unreadable(self) -> list[tuple[str, str]]:
        """Return file and reason of each file that was left out."""
        return sorted(self._own("file, reason", "unreadable"))

    def digests(self) -> dict[str, str]:
        """Return the sha256 of each file of all shares, so that equal files are encoded once."""
        return dict(self._rows("SELECT file, sha256 FROM files"))

    def append(
        self,
        vectors: np.ndarray,
        frames: list[np.ndarray] | None,
        sizes: Callable[[Tensor], Tensor] | None = None,
    ) -> list[tuple[int | None, int, int, np.ndarray]]:
        """Start to write the frames of encoded excerpts, as one object.

        Args:
            vectors: float32 (b, D).
            frames: (T, D) of each excerpt, of any float type; None if the index holds none.
            sizes: Not used: to fetch them, each answer would need one more request, which takes as
                long as to compute them.

        Returns:
            Object, first frame, number of frames and vector of each excerpt.
        """
        if frames is None:
            return [(None, 0, 0, vector) for vector in vectors]
        # registered first: a killed writer leaves no object that nobody knows of
        ((number,),) = self._rows("INSERT INTO objects DEFAULT VALUES RETURNING id")
        while len(self._uploads) >= UPLOADS:
            self._uploads.popleft().result()
        rows = [self.meta.coding.encode(own) for own in frames]
        self._uploads.append(self._pool.submit(self._objects.write, number, rows))
        self._unnamed.add(number)
        places, first = [], 0
        for vector, own, coded in zip(vectors, frames, rows, strict=True):
            places.append((number, first, len(own), vector))
            first += len(coded)
        return places

    def add_file(
        self, found: Found, sha256: str, seconds: float, excerpts: list[tuple[Any, ...]]
    ) -> None:
        """Add a file, or replace the one of the same name; see IndexWriter.add_file."""
        row = _file_row(found, sha256, seconds, len(excerpts))
        self._pending[found.file] = _Change(row, excerpts)

    def add_known(self, found: Found, sha256: str) -> str | None:
        """Add a file with content that the index has, without encoding it.

        Returns:
            Name of the file with the same content, which may be its own; None if there is none.
        """
        query = "SELECT id, file, seconds, num_excerpts FROM files WHERE sha256 = %s"
        known = self._rows(f"{query} ORDER BY file = %s DESC LIMIT 1", [sha256, found.file])
        if not known:
            return None
        ((number, name, seconds, num_excerpts),) = known
        row = _file_row(found, sha256, seconds, num_excerpts)
        is_touched = name == found.file
        source = (None, "") if is_touched else (number, name)
        self._pending[found.file] = _Change(row, (), *source, is_touched=is_touched)
        return name

    def move_folder(self, folder: Path, recognised: list[tuple[Found, str]]) -> None:
        """Make this the index of `folder`, in one transaction; see IndexWriter.move_folder."""
        digests = self.digests()
        self._is_moved = True
        for found, sha256 in recognised:
            self.add_known(found, sha256)
        for file in renamed(digests, recognised):
            self.remove(file)
        self.commit(folder=str(folder.resolve()), complete=False)

    def add_unreadable(self, file: str, reason: str, found: Found | None = None) -> None:
        """List a file that was left out; found: do not try it again until it changes."""
        row = found and found.size, found and found.mtime_ns, reason
        self._pending[file] = _Change(unreadable=row)

    def remove(self, file: str) -> None:
        """Remove a file from the index, or from the list of those that were left out."""
        self._pending[file] = _Change()

    def replace_metadata(self, metadata: Metadata) -> None:
        """Replace the metadata of all files."""
        self._metadata = metadata

    def commit(self, **changes: Any) -> None:
        """Make all changes since the last commit part of the index, or none of them.

        changes: New values of fields of `meta`.
        """
        while self._uploads:
            self._uploads.popleft().result()
        self.meta = self.meta.model_copy(update=changes)
        for number in range(TRIES):
            try:
                with self._connection.transaction():
                    self._write()
                break
            except (errors.DeadlockDetected, errors.SerializationFailure):
                if number == TRIES - 1:
                    raise
                time.sleep(SECONDS_BETWEEN_TRIES)
        for change in self._pending.values():
            self._unnamed -= {number for _, _, number, *_ in change.excerpts}
        self._pending.clear()
        self._is_moved, self._metadata = False, None
        self._written = _rows_of(self.meta)

    def _write(self) -> None:
        """Write what is pending, within a transaction. It may be written twice."""
        query = "SELECT value FROM meta WHERE key = 'uid' FOR SHARE"
        if self._rows(query) != [(json.dumps(self._state.uid),)]:
            raise UserError(f"--store {self.folder} was made anew meanwhile; run the command again")
        if self._is_moved:
            self._connection.execute("UPDATE files SET mtime_ns = NULL")
            self._connection.execute("DELETE FROM unreadable")
        # A file of many hours is added long after its first frames were written.
        run = self._connection.execute
        run("UPDATE objects SET since = now() WHERE id = ANY(%s)", [sorted(self._unnamed)])
        if self._pending:
            self._write_files()
        if self._metadata is not None:
            replace_metadata(self._connection, self._metadata)
        self._write_meta()

    def _write_files(self) -> None:
        run = self._connection.execute
        names = sorted(self._pending, key=str.encode)  # as all writers lock them
        changes = {name: self._pending[name] for name in names}
        sources = {name: own.source for name, own in changes.items() if own.source is not None}
        query = "SELECT id, sha256 FROM files WHERE file = ANY(%s) OR id = ANY(%s)"
        locked = run(f"{query} ORDER BY file FOR UPDATE", [names, [*sources.values()]]).fetchall()
        contents = dict(locked)
        for name, source in sources.items():
            if contents.get(source) != changes[name].file[FILES_FIELDS.index("sha256")]:
                raise UserError(
                    f"--store {self.folder}: another process has changed the files with the content"
                    f" of {name}; run the command again: it goes on from here"
                )
        # Their objects may lose their last excerpt now.
        run(
            "UPDATE objects SET since = now() WHERE id IN (SELECT e.object FROM excerpts e"
            " JOIN files f ON f.id = e.file_id WHERE f.file = ANY(%s))",
            [[name for name, own in changes.items() if not own.is_touched]],
        )
        kept = {name: own for name, own in changes.items() if own.file}
        ids = self._write_rows([own.file for own in kept.values()])
        # Both parts of this statement see the table as it is before it.
        run(
            "WITH gone AS (DELETE FROM excerpts WHERE file_id = ANY(%s))"
            f" INSERT INTO excerpts ({EXCERPT_FIELDS})"
            " SELECT own.target, e.start, e.stop, e.object, e.first_frame, e.num_frames, e.vector"
            " FROM unnest(%s::bigint[], %s::bigint[]) AS own (source, target)"
            " JOIN excerpts e ON e.file_id = own.source",
            [
                [ids[name] for name, own in kept.items() if not own.is_touched],
                [*sources.values()],
                [ids[name] for name in sources],
            ],
        )
        copy_metadata(self._connection, {name: changes[name].source_name for name in sources})
        with self._connection.cursor().copy(
            f"COPY excerpts ({EXCERPT_FIELDS}) FROM STDIN (FORMAT binary)"
        ) as copy:
            copy.set_types(EXCERPT_TYPES)
            for name, own in kept.items():
                for start, stop, number, first, count, vector in own.excerpts:
                    row = ids[name], start, stop, number, first, count, Vector(vector)
                    copy.write_row(row)
        run("DELETE FROM files WHERE file = ANY(%s)", [[own for own in names if own not in kept]])
        run("DELETE FROM unreadable WHERE file = ANY(%s)", [names])
        left_out = [
            (name, share_number(name), *own.unreadable)
            for name, own in changes.items()
            if own.unreadable
        ]
        if left_out:
            insert = "INSERT INTO unreadable VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING"
            self._connection.cursor().executemany(insert, left_out)

    def _write_rows(self, rows: list[tuple[Any, ...]]) -> dict[str, int]:
        """Insert or update rows of `files`; return their ids by name."""
        types = ("text", "bigint", "bigint", "bigint", "text", "float8", "bigint")
        lists = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in types]
        arrays = ", ".join(f"%s::{own}[]" for own in types)
        updates = ", ".join(f"{own} = excluded.{own}" for own in FILES_FIELDS[1:])
        query = (
            f"INSERT INTO files ({', '.join(FILES_FIELDS)}) SELECT * FROM unnest({arrays})"
            f" ON CONFLICT (file) DO UPDATE SET {updates} RETURNING file, id"
        )
        return dict(self._rows(query, lists))

    def _write_meta(self) -> None:
        query = (
            "INSERT INTO shards VALUES (%s, %s, %s, %s) ON CONFLICT (number, num_shards)"
            " DO UPDATE SET complete = excluded.complete, reader = excluded.reader"
        )
        share, meta = self.share, self.meta
        self._connection.execute(query, [share.number, share.of, meta.complete, meta.reader])
        done = "SELECT count(*) FROM shards WHERE num_shards = %s AND complete"
        if meta.complete and self._rows(done, [share.of]) == [(share.of,)]:
            # these shards are all files: an earlier division has nothing to say any more
            self._connection.execute("DELETE FROM shards WHERE num_shards <> %s", [share.of])
        # Other writers may change other fields.
        rows = _rows_of(meta)
        changed = [(key, rows[key]) for key in rows if rows[key] != self._written.get(key)]
        query = "INSERT INTO meta VALUES (%s, %s) ON CONFLICT (key) DO UPDATE"
        self._connection.cursor().executemany(f"{query} SET value = excluded.value", changed)
        absent = [*(IndexMeta.model_fields.keys() - rows.keys() - set(OF_SHARDS))]
        self._connection.execute("DELETE FROM meta WHERE key = ANY(%s)", [absent])

    def finish(self, gate_queries: Callable[[], np.ndarray] | None = None) -> None:
        """Remove the frames of removed excerpts, and update the database's statistics.

        gate_queries is not used, because the database searches exactly.
        """
        with suppress(errors.InsufficientPrivilege):
            self._connection.execute("ANALYZE files, excerpts")
        if self._objects is None:
            return
        while self._remove_objects():
            pass
        for root, folder in self._state.replaced:
            FrameObjects(root, folder, self.meta.coding).remove_all()
        if self._state.replaced:
            self._connection.execute("UPDATE meta SET value = '[]' WHERE key = 'replaced'")

    def _remove_objects(self, most: int = 100) -> int:
        """Remove some objects that no excerpt names; return their number."""
        with self._connection.transaction():
            # The locks keep every writer from naming them meanwhile: it would fail.
            rows = self._rows(
                "SELECT id FROM objects o WHERE since < now() - make_interval(secs => %s)"
                " AND NOT EXISTS (SELECT FROM excerpts WHERE object = o.id)"
                " LIMIT %s FOR UPDATE SKIP LOCKED",
                [SECONDS_KEPT, most],
            )
            for (number,) in rows:
                self._objects.remove(number)
            query = "DELETE FROM objects WHERE id = ANY(%s)"
            self._connection.execute(query, [[number for (number,) in rows]])
        return len(rows)


def _rows_of(meta: IndexMeta) -> dict[str, str]:
    """Return the rows of `meta`; those of the table `shards` are not among them."""
    return {key: value for key, value in meta_rows(meta) if key not in OF_SHARDS}


def _file_row(found: Found, sha256: str, seconds: float, num_excerpts: int) -> tuple[Any, ...]:
    share = share_number(found.file)
    return found.file, share, found.size, found.mtime_ns, sha256, seconds, num_excerpts


def _lock(connection: psycopg.Connection, address: Address, share: Share) -> None:
    """Hold a share for writing, as long as the connection lives; wait for its other writer."""
    name = f"write {address.name} {share}"
    is_waiting = False
    while not connection.execute(
        "SELECT pg_try_advisory_lock(hashtext(current_database()), hashtext(%s))", [name]
    ).fetchone()[0]:
        if not is_waiting:
            print(f"waiting for another process that writes to {address}", file=sys.stderr)
            is_waiting = True
        time.sleep(SECONDS_BETWEEN_TRIES)
