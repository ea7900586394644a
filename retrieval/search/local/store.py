"""Index on this machine: tables of SQLite, vectors and frames as memory maps; see storage.py.

Letters: B clips, F files.
"""

import mmap
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from retrieval.base.errors import UserError
from retrieval.search.facets import Facets, MetadataArrays
from retrieval.search.filters import Filters
from retrieval.search.hits import IndexedFile
from retrieval.search.local.approximate import Approximate, Unusable
from retrieval.search.local.clips import IndexedClips
from retrieval.search.local.metadata import read_column, read_columns, read_fields
from retrieval.search.local.storage import Contents, connect, read_index
from retrieval.search.metadata import Fields, resolve_where
from retrieval.search.store import IndexedExcerpt

MOST_PREFETCHED = 2**28  # bytes: more might push out of memory what is needed first


class LocalStore(IndexedClips):
    """One state of an index, read from its folder; a Store. A writer does not change it.

    Args:
        path: Folder of the index.

    Raises:
        UserError: The folder is absent, no index, of another version or damaged.
    """

    def __init__(self, path: Path):
        contents, self._approximate = _opened(path)
        table = self._catalogue = contents.catalogue
        self._coded_frames, self._sizes = contents.frames, contents.sizes
        super().__init__(contents.vectors, None, table.first_frames, table.num_frames, table.rows)
        self.path, self.columns = path, contents.columns
        self.meta, self.unreadable = contents.meta, contents.unreadable
        self.files, self.num_files = table.files, len(table.files)
        self.seconds = float(table.files.seconds.sum())

    def _nearest_rows(
        self, vectors: np.ndarray, num: int, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        if self._approximate is None:
            return super()._nearest_rows(vectors, num, allowed)
        return self._approximate.search(vectors, num, allowed)

    @property
    def has_frames(self) -> bool:
        return self._coded_frames is not None

    def prefetch(self, clips: Sequence[int]) -> None:
        """Ask the system to read the frames of the first of these clips from the disk at once.

        Read at their first use, one after the other, 100 clips took 110 ms in place of 46.
        """
        memory = getattr(self._coded_frames, "base", None)
        if not isinstance(memory, mmap.mmap) or not hasattr(mmap, "MADV_WILLNEED"):
            return
        coding, num_left = self.meta.coding, MOST_PREFETCHED
        for clip in clips:
            begin = int(self._first_frames[clip]) * coding.row.itemsize
            size = coding.num_rows(int(self._num_frames[clip])) * coding.row.itemsize
            num_left -= size
            if num_left < 0:
                return
            extra = begin % mmap.PAGESIZE
            memory.madvise(mmap.MADV_WILLNEED, begin - extra, size + extra)

    def frames(self, clip: int) -> torch.Tensor | None:
        """Return the frames (T, D) of a clip; without a copy if float16 holds all of them."""
        if self._coded_frames is None:
            return None
        coding, num_frames = self.meta.coding, int(self._num_frames[clip])
        first = int(self._first_frames[clip])
        return coding.decode(
            self._coded_frames[first : first + coding.num_rows(num_frames)], num_frames
        )

    def sizes(self, clip: int) -> torch.Tensor | None:
        """Return output sizes float32 (T, 2) of a clip's frames; None if they are not stored."""
        coding, num_frames = self.meta.coding, int(self._num_frames[clip])
        first = int(self._first_frames[clip])
        own = self._sizes[first : first + coding.num_rows(num_frames)]
        if len(own) < coding.num_rows(num_frames) or not own.all():
            return None
        return coding.spread(torch.from_numpy(own), num_frames)

    @cached_property
    def folders(self) -> list[str]:
        return self.files.folders()

    def file(self, name: str) -> IndexedFile | None:
        number = self.files.number(name)
        return None if number is None else self.files[number]

    def select(self, filters: Filters) -> np.ndarray | None:
        """Return bool (B,), True for clips that pass; None: all do."""
        if filters == Filters():
            return None
        files, seconds = self.files, self.files.seconds  # (F,)
        good = (filters.min_seconds <= seconds) & (seconds <= filters.max_seconds)
        if filters.folder:
            inside = files.below(filters.folder)
            good[: inside.start] = good[inside.stop :] = False
        if filters.without and (number := files.number(filters.without)) is not None:
            good[number] = False
        if filters.where:
            known = self._metadata.values(list(filters.where))
            good &= self._metadata.select(resolve_where(filters.where, known))
        return None if good.all() else good[self._catalogue.file_of]

    def excerpts(self, clips: Sequence[int]) -> list[IndexedExcerpt]:
        table, found = self._catalogue, []
        for clip in clips:
            file = self.files[int(table.file_of[clip])]
            times = float(table.starts[clip]), float(table.stops[clip])
            found.append(IndexedExcerpt(int(clip), file, *times))
        return found

    def clips_of(self, name: str) -> list[int]:
        number, file_of = self.files.number(name), self._catalogue.file_of
        if number is None:
            return []
        first, stop = np.searchsorted(file_of, [number, number + 1]).tolist()
        return list(range(first, stop))

    def sample(self, num: int) -> list[int]:
        return np.linspace(0, len(self) - 1, min(num, len(self))).round().astype(int).tolist()

    @cached_property
    def _metadata(self) -> MetadataArrays:
        return MetadataArrays(self.columns, self.num_files, self._read_column)

    def _read_column(self, column: str) -> list[str | float | None]:
        with connect(self.path) as database:
            database.execute("BEGIN")
            if read_columns(database) != self.columns:
                raise UserError(
                    f"index {self.path} was given other metadata meanwhile; open it again"
                )
            found = read_column(database, list(self.columns).index(column))
        return [found.get(name) for name in self.files.all_names()]

    def fields(self, names: Sequence[str]) -> dict[str, Fields]:
        if not self.columns:
            return {}
        with connect(self.path) as database:
            database.execute("BEGIN")
            return read_fields(database, names)

    def facets(self, most_values: int) -> Facets:
        below = ((folder, self.files.below(folder)) for folder in self.folders)
        folders = tuple((folder, inside.stop - inside.start) for folder, inside in below)
        return Facets(folders, self._metadata.facets(most_values))


def _opened(path: Path) -> tuple[Contents, Approximate | None]:
    """Read an index, and the file for approximate searches if it has one.

    Without that file, searches are exact and slower. Raises UserError.
    """
    contents = read_index(path)
    while (facts := contents.meta.approximate) is not None:
        # A program that does not know the file may have copied the vectors.
        if facts.kind == "flat" or facts.generation != contents.meta.generation:
            break
        try:
            return contents, Approximate.load(path / facts.file, facts, contents.vectors)
        except Unusable as error:
            reason, before = error, contents.meta
            contents = read_index(path)
            if contents.meta == before:  # else a writer has just replaced the file
                print(
                    f"note: index {path}: {reason}; searches are exact and slower until the next"
                    " `python -m retrieval.search index` makes it again",
                    file=sys.stderr,
                )
                break
    return contents, None
