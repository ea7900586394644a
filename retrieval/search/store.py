"""Interfaces of an index: for searches (ClipStore, Store) and for updates (Writer).

Letters: n queries, K clips, T frames, D = dim. Clips are excerpts of files, named by numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from retrieval.search.cluster.address import Address, Share
from retrieval.search.facets import Facets
from retrieval.search.filters import Filters
from retrieval.search.hits import IndexedFile
from retrieval.search.index_meta import IndexMeta
from retrieval.search.metadata import Fields, Kind, Metadata
from retrieval.search.sound import Found


class IndexedExcerpt(NamedTuple):
    """An excerpt of a file, from `start` to `end` s."""

    clip: int
    file: IndexedFile
    start: float
    end: float


class ClipStore(Protocol):
    """Vectors and frames of clips, as TwoStage needs them.

    Attributes:
        has_frames: Whether it holds the clips' frames.
    """

    has_frames: bool

    def __len__(self) -> int:
        """Return the number of clips."""

    def count(self, selection: Any) -> int:
        """Return the number of clips in a selection; None: all clips."""

    def nearest(
        self, vectors: np.ndarray, num: int, selection: Any = None, cosine: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the clips of a selection with the highest dot products, or cosines.

        Args:
            vectors: float32 (n, D).
            num: Number of clips.
            selection: Result of `select`; None: all clips.
            cosine: Compare by cosines, which ignore the lengths of the clips' vectors.

        Returns:
            Clips int64 (n, K) and their products float32 (n, K), best first; K is `num`, or the
            number of clips in the selection.

        Raises:
            UserError: A product is NaN.
        """

    def prefetch(self, clips: Sequence[int]) -> None:
        """Announce that the frames of these clips will be read next."""

    def frames(self, clip: int) -> Tensor | None:
        """Return the frames (T, D) of a clip, of any float type; None without frames."""

    def sizes(self, clip: int) -> Tensor | None:
        """Return output sizes float32 (T, 2) of a clip's frames.

        None if the index does not store them; two_stage.OutputSizes computes them from the frames.
        """

    def num_frames(self, clips: np.ndarray) -> np.ndarray:
        """Return the number of frames int64 (K,) of each clip."""

    def vectors(self, clips: Sequence[int]) -> np.ndarray:
        """Return the first stage's vectors float32 (K, D)."""


class Store(ClipStore, Protocol):
    """An index, opened for searches; it does not change while it is open.

    Attributes:
        meta: Its record.
        files: Its files in order of name, read when they are asked for.
        num_files: Number of its files.
        seconds: Total length of its files.
        folders: Folders with files.
        unreadable: (file, reason) of the files that were left out.
        columns: Kind of each column of metadata.
    """

    meta: IndexMeta
    files: Sequence[IndexedFile]
    num_files: int
    seconds: float
    folders: list[str]
    unreadable: list[tuple[str, str]]
    columns: Mapping[str, Kind]

    def file(self, name: str) -> IndexedFile | None:
        """Return a file by name; None if the index has no such file."""

    def select(self, filters: Filters) -> Any:
        """Return the clips that pass the filters, in the store's own form; None: all clips.

        Raises UserError if `where` names an unknown column or value; see resolve_where.
        """

    def excerpts(self, clips: Sequence[int]) -> list[IndexedExcerpt]:
        """Return file and times of each clip."""

    def clips_of(self, name: str) -> list[int]:
        """Return the clips of a file, by start."""

    def sample(self, num: int) -> list[int]:
        """Return `num` clips spread over the index, or all if it has fewer.

        They are always the same for one state of the index.
        """

    def fields(self, names: Sequence[str]) -> dict[str, Fields]:
        """Return the known metadata of some files; files without any may be left out."""

    def facets(self, most_values: int) -> Facets:
        """Count the values to filter by, at most so many of a column."""


def renamed(digests: dict[str, str], recognised: list[tuple[Found, str]]) -> list[str]:
    """Return the files of an index whose content now has other names; for Writer.move_folder.

    Args:
        digests: sha256 of each file of the index.
        recognised: Files of the new folder with content that is in the index, with their sha256.
    """
    names = {found.file for found, _ in recognised}
    contents = {sha256 for _, sha256 in recognised}
    return [file for file, sha256 in digests.items() if sha256 in contents and file not in names]


class Writer(Protocol):
    """Index opened for an update, by the one process that updates it or a share of it.

    Changes count from the next `commit` on.

    Attributes:
        folder: Where the index lives.
        meta: Its record.
        share: Files that this writer updates; it does not change the others.
    """

    folder: Path | Address
    meta: IndexMeta
    share: Share

    def files(self) -> dict[str, tuple[int, int | None]]:
        """Return size and time of each file; time None if its content must be compared."""

    def unreadable(self) -> dict[str, tuple[int | None, int | None]]:
        """Return size and time of each file that was left out; None if it was not opened."""

    def listed_unreadable(self) -> list[tuple[str, str]]:
        """Return file and reason of each file that was left out."""

    def digests(self) -> dict[str, str]:
        """Return the sha256 of each file."""

    def append(
        self,
        vectors: np.ndarray,
        frames: list[np.ndarray] | None,
        sizes: Callable[[Tensor], Tensor] | None = None,
    ) -> list[tuple]:
        """Write encoded excerpts.

        Args:
            vectors: float32 (b, D).
            frames: (T, D) of each excerpt, of any float type; None if the index holds none.
            sizes: Function from stored frames (M, D) to their output sizes float32 (M, 2); None:
                the model needs none.

        Returns:
            Place of each excerpt, for `add_file`.
        """

    def add_file(
        self, found: Found, sha256: str, seconds: float, excerpts: list[tuple[Any, ...]]
    ) -> None:
        """Add a file of length `seconds`; excerpts: start and stop in s, and place, of each."""

    def add_known(self, found: Found, sha256: str) -> str | None:
        """Add a file whose content the index has; return the other file's name, or None."""

    def move_folder(self, folder: Path, recognised: list[tuple[Found, str]]) -> None:
        """Make this the index of `folder`, with the files recognised by their sha256."""

    def add_unreadable(self, file: str, reason: str, found: Found | None = None) -> None:
        """List a file that was left out; found: do not try it again until it changes."""

    def remove(self, file: str) -> None:
        """Remove a file from the index, or from the list of those that were left out."""

    def commit(self, **changes: Any) -> None:
        """Make all since the last commit part of the index; changes: new fields of `meta`."""

    def finish(self, gate_queries: Callable[[], np.ndarray] | None = None) -> None:
        """Remove the numbers of removed files, and write derived files.

        gate_queries: returns vectors float32 (n, D) of texts, with which an approximate search is
            measured; None: leave it as it is.
        """

    def replace_metadata(self, metadata: Metadata) -> None:
        """Replace the metadata of all files."""
