"""Searches in an index in a database: PostgreSQL compares all vectors to find candidates.

Letters: n queries, K clips, T frames, D = dim.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import psycopg
import torch
from pgvector import Vector
from torch import Tensor

from retrieval.base.errors import UserError
from retrieval.models.dual_encoder import check_not_nan
from retrieval.search.cluster.address import Address, StoreError
from retrieval.search.cluster.database import Database, State, read_state
from retrieval.search.cluster.frames import FrameObjects, FramesPlace
from retrieval.search.cluster.metadata import (
    condition,
    facet,
    folder_counts,
    read_columns,
    read_fields,
    resolved,
)
from retrieval.search.facets import Facets
from retrieval.search.filters import Filters
from retrieval.search.hits import IndexedFile
from retrieval.search.local.clips import unit
from retrieval.search.metadata import Fields, Kind
from retrieval.search.store import IndexedExcerpt

PLACES_KEPT = 100_000  # places of clips; the least recently found go first
FRAMES_AT_ONCE = 32 * 2**20  # bytes that are read side by side
FRAMES_KEPT = 256 * 2**20  # bytes
FILES_AT_ONCE = 1000
PLACE = "e.id, f.file, f.seconds, e.start, e.stop, e.object, e.first_frame, e.num_frames"


@dataclass(frozen=True)
class Selection:
    """Condition of SQL on files `f`, and its values."""

    condition: str
    values: tuple[Any, ...]


class DatabaseStore:
    """An index in a database, opened for searches; a Store.

    Searches see the newest state of the tables; `num_files` and `seconds` are those at opening. If
    the index is made anew meanwhile, searches raise an error until it is opened again.

    Args:
        address: Of the index.
        frames_store: Present place of its frames; None: where they were written.

    Raises:
        UserError: The database cannot be reached, or holds no such index.
    """

    def __init__(self, address: Address, frames_store: str | None = None):
        self.address, self._database = address, Database(address)
        state, self.unreadable, self.columns, counts = self._database.read(self._opened)
        self.meta, self._uid = state.meta, state.uid
        self.num_files, self.seconds = counts
        self.has_frames = self.meta.has_frames
        self.files = DatabaseFiles(self, self.num_files)
        self._objects = None
        if self.has_frames:
            root = frames_store or state.frames_store
            self._objects = FrameObjects(root, state.frames_folder(address), self.meta.coding)
        self._lock = threading.RLock()  # of the tables below
        self._places: OrderedDict[int, tuple[IndexedExcerpt, FramesPlace]] = OrderedDict()
        self._frames: OrderedDict[int, np.ndarray] = OrderedDict()  # rows by clip
        self._num_bytes = 0  # of these
        self._announced: dict[int, int] = {}  # position of clips in _order
        self._order: list[int] = []

    def _opened(
        self, connection: psycopg.Connection
    ) -> tuple[State, list[tuple[str, str]], dict[str, Kind], tuple[int, float]]:
        state = read_state(connection, self.address)
        if state is None:
            raise UserError(
                f"--store {self.address} holds no index {self.address.name}; make one: python -m"
                f" retrieval.search index FOLDER --checkpoint MODEL --store {self.address}"
            )
        query = "SELECT file, reason FROM unreadable ORDER BY file"
        unreadable = connection.execute(query).fetchall()
        query = "SELECT count(*), coalesce(sum(seconds), 0.0) FROM files"
        counts = connection.execute(query).fetchone()
        return state, unreadable, read_columns(connection), counts

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple]:
        """Return the rows of a query. Raises UserError."""
        return self._read(lambda connection: connection.execute(query, values).fetchall())

    def _read(self, function: Any) -> Any:
        def checked(connection: psycopg.Connection) -> Any:
            found = connection.execute("SELECT value FROM meta WHERE key = 'uid'").fetchone()
            if found is None or found[0] != f'"{self._uid}"':
                raise StoreError(
                    f"--store {self.address} was made anew since it was opened; open it again"
                )
            return function(connection)

        return self._database.read(checked)

    def __len__(self) -> int:
        return self.count(None)

    @cached_property
    def folders(self) -> list[str]:
        return [folder for folder, _ in folder_counts(self.rows)]

    def file(self, name: str) -> IndexedFile | None:
        if not is_text(name):
            return None
        found = self.rows("SELECT file, seconds FROM files WHERE file = %s", [name])
        return IndexedFile(*found[0]) if found else None

    def select(self, filters: Filters) -> Selection | None:
        conditions, values = [], []
        if filters.where:
            where = resolved(self.rows, self.columns, filters.where)
            text, own = condition(where)
            conditions.append(text)
            values += own
        if filters.folder:
            is_possible = is_text(filters.folder)
            conditions.append("starts_with(f.file, %s)" if is_possible else "false")
            values += [f"{filters.folder}/"] if is_possible else []
        if filters.limit_length:
            conditions.append("f.seconds BETWEEN %s AND %s")
            values += [filters.min_seconds, filters.max_seconds]
        if filters.without and is_text(filters.without):
            conditions.append("f.file <> %s")
            values.append(filters.without)
        return Selection(" AND ".join(conditions), tuple(values)) if conditions else None

    def count(self, selection: Selection | None) -> int:
        query, values = "SELECT coalesce(sum(f.num_excerpts), 0)::bigint FROM files f", ()
        if selection is not None:
            query, values = f"{query} WHERE {selection.condition}", selection.values
        return self.rows(query, values)[0][0]

    def nearest(
        self,
        vectors: np.ndarray,
        num: int,
        selection: Selection | None = None,
        cosine: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find clips, see Store.nearest; of equal products the older first. Raises UserError."""
        vectors = unit(vectors) if cosine else vectors
        # <#> is the negative product, <=> is 1 - cosine, or NaN for zeros, whose cosine is 0 here
        order = "coalesce(nullif(e.vector <=> %s, 'NaN'), 1)" if cosine else "e.vector <#> %s"
        rows, values = "excerpts e", ()
        if selection is not None:
            rows = f"excerpts e JOIN files f ON f.id = e.file_id WHERE {selection.condition}"
            values = selection.values
        query = (
            f"SELECT {PLACE}, e.distance FROM (SELECT e.*, {order} AS distance FROM {rows}"
            " ORDER BY distance, e.id LIMIT %s) e JOIN files f ON f.id = e.file_id"
            " ORDER BY e.distance, e.id"
        )
        check_not_nan(torch.from_numpy(vectors))

        def found(connection: psycopg.Connection) -> list[list[tuple]]:
            return [
                connection.execute(query, (Vector(vector), *values, num), binary=True).fetchall()
                for vector in vectors
            ]

        answers = self._read(found)
        clips = np.array([[row[0] for row in rows] for rows in answers], np.int64)
        distances = np.array([[row[-1] for row in rows] for rows in answers], np.float64)
        self._keep_places(row[:-1] for rows in answers for row in rows)
        scores = (1 - distances if cosine else -distances).astype(np.float32)
        num_found = len(answers[0]) if answers else 0
        return clips.reshape(len(vectors), num_found), scores.reshape(len(vectors), num_found)

    def _keep_places(self, rows: Iterable[tuple]) -> None:
        """Remember rows of PLACE."""
        with self._lock:
            for clip, file, seconds, start, stop, number, first, count in rows:
                excerpt = IndexedExcerpt(clip, IndexedFile(file, seconds), start, stop)
                self._places[clip] = excerpt, FramesPlace(number, first, count)
                self._places.move_to_end(clip)
            while len(self._places) > PLACES_KEPT:
                self._places.popitem(last=False)

    def _placed(self, clips: Sequence[int]) -> list[tuple[IndexedExcerpt, FramesPlace]]:
        """Return excerpt and place of the frames of each clip. Raises UserError if one is gone."""
        with self._lock:
            known = {int(clip): self._places.get(int(clip)) for clip in clips}
            if missing := [clip for clip, place in known.items() if place is None]:
                query = f"SELECT {PLACE} FROM excerpts e JOIN files f ON f.id = e.file_id"
                rows = self.rows(f"{query} WHERE e.id = ANY(%s)", [missing])
                self._keep_places(rows)
                known |= {row[0]: self._places[row[0]] for row in rows}
        if None in known.values():
            raise UserError("the index was brought up to date meanwhile; ask again")
        return [known[int(clip)] for clip in clips]

    def excerpts(self, clips: Sequence[int]) -> list[IndexedExcerpt]:
        return [excerpt for excerpt, _ in self._placed(clips)]

    def clips_of(self, name: str) -> list[int]:
        query = f"SELECT {PLACE} FROM excerpts e JOIN files f ON f.id = e.file_id"
        rows = self.rows(f"{query} WHERE f.file = %s ORDER BY e.start", [name])
        self._keep_places(rows)
        return [row[0] for row in rows]

    def sample(self, num: int) -> list[int]:
        ((first, last),) = self.rows("SELECT min(id), max(id) FROM excerpts")
        if first is None:
            return []
        if len(self) <= num:
            return [row[0] for row in self.rows("SELECT id FROM excerpts ORDER BY id")]
        # the next clip after each of `num` numbers at equal distances
        numbers = np.linspace(first, last, num).astype(int).tolist()
        query = (
            "SELECT DISTINCT e.id FROM unnest(%s::bigint[]) AS place, LATERAL (SELECT id FROM"
            " excerpts WHERE id >= place ORDER BY id LIMIT 1) e ORDER BY e.id"
        )
        return [row[0] for row in self.rows(query, [numbers])]

    def fields(self, names: Sequence[str]) -> dict[str, Fields]:
        return read_fields(self.rows, self.columns, names) if self.columns else {}

    def facets(self, most_values: int) -> Facets:
        ((num_files,),) = self.rows("SELECT count(*) FROM files")
        columns = (
            facet(self.rows, column, kind, most_values, num_files)
            for column, kind in self.columns.items()
        )
        return Facets(folder_counts(self.rows), tuple(columns))

    def vectors(self, clips: Sequence[int]) -> np.ndarray:
        rows = self.rows("SELECT id, vector FROM excerpts WHERE id = ANY(%s)", [list(clips)])
        found = {clip: vector.to_numpy() for clip, vector in rows}
        if len(found) < len(set(clips)):
            raise UserError("the index was brought up to date meanwhile; ask again")
        empty = np.zeros((0, self.meta.dim), np.float32)
        return np.stack([found[clip] for clip in clips]).astype(np.float32) if found else empty

    def num_frames(self, clips: np.ndarray) -> np.ndarray:
        return np.array([place.count for _, place in self._placed(clips)], dtype=np.int64)

    def prefetch(self, clips: Sequence[int]) -> None:
        """Announce clips in the order in which `frames` is called, to read several at once."""
        with self._lock:
            self._order = [int(clip) for clip in clips]
            self._announced = {clip: position for position, clip in enumerate(self._order)}

    def frames(self, clip: int) -> Tensor | None:
        if self._objects is None:
            return None
        clip = int(clip)
        with self._lock:
            if clip not in self._frames:
                self._fetch(clip)
            self._frames.move_to_end(clip)
            ((_, place),) = self._placed([clip])
            return self.meta.coding.decode(self._frames[clip], place.count)

    def sizes(self, clip: int) -> Tensor | None:
        """Return None: a database stores no output sizes (DatabaseWriter.append says why)."""
        return None

    def _fetch(self, clip: int) -> None:
        """Read the frames of a clip, and of those announced after it, side by side."""
        position = self._announced.get(clip)
        following = [clip] if position is None else self._order[position:]
        wanted: dict[int, FramesPlace] = {}
        num_bytes = 0
        for one in following:
            if one in self._frames:
                continue
            ((_, place),) = self._placed([one])
            num_bytes += self.meta.coding.num_rows(place.count) * self.meta.coding.row.itemsize
            if wanted and num_bytes > FRAMES_AT_ONCE:
                break
            wanted[one] = place
        for one, frames in zip(wanted, self._objects.read([*wanted.values()]), strict=True):
            self._frames[one] = frames
            self._num_bytes += frames.nbytes
        while self._num_bytes > FRAMES_KEPT and len(self._frames) > len(wanted):
            self._num_bytes -= self._frames.popitem(last=False)[1].nbytes


class DatabaseFiles(Sequence):
    """Files of an index in order of name, read on access."""

    def __init__(self, store: DatabaseStore, num_files: int):
        self._store, self._num_files = store, num_files

    def __len__(self) -> int:
        return self._num_files

    def __getitem__(self, position: int | slice) -> Any:
        if isinstance(position, slice):
            return [self[own] for own in range(*position.indices(len(self)))]
        position = position + len(self) if position < 0 else position
        query = "SELECT file, seconds FROM files ORDER BY file LIMIT 1 OFFSET %s"
        found = self._store.rows(query, [position]) if 0 <= position < len(self) else []
        if not found:
            raise IndexError(position)
        return IndexedFile(*found[0])

    def __iter__(self) -> Iterator[IndexedFile]:
        last = ""
        while True:
            query = "SELECT file, seconds FROM files WHERE file > %s ORDER BY file LIMIT %s"
            rows = self._store.rows(query, [last, FILES_AT_ONCE])
            yield from (IndexedFile(*row) for row in rows)
            if not rows:
                return
            last = rows[-1][0]

    def __contains__(self, file: object) -> bool:
        return isinstance(file, IndexedFile) and self._store.file(file.file) == file

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return NotImplemented
        return all(own == their for own, their in zip(self, other, strict=False))

    __hash__ = None


def is_text(name: str) -> bool:
    """Whether a database can hold a name: UTF-8 without a zero byte."""
    return "\0" not in name and name.encode("utf-8", "replace").decode() == name
