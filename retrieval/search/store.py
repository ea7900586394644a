"""What AudioIndex asks of the place where an index lives.

Letters: n queries, K clips, T frames, D = dim. Clips are excerpts of files, named by numbers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from retrieval.search.filters import Filters
from retrieval.search.hits import IndexedFile
from retrieval.search.storage import IndexMeta


class IndexedExcerpt(NamedTuple):
    """An excerpt of a file, from `start` to `end` s."""

    clip: int
    file: IndexedFile
    start: float
    end: float


class ClipStore(Protocol):
    """Vectors and frames of clips; TwoStage needs no more.

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
            selection: Of `select`; None: all clips.
            cosine: Compare by cosines, in which the lengths of the clips' vectors do not count.

        Returns:
            Clips int64 (n, K) and their products float32 (n, K), best first; K is `num`, or the
            number of clips in the selection.

        Raises:
            UserError: A product is NaN.
        """

    def prefetch(self, clips: Sequence[int]) -> None:
        """Announce that the frames of these clips are read next."""

    def frames(self, clip: int) -> Tensor | None:
        """Return the frames (T, D) of a clip, of any float type; None without frames."""

    def num_frames(self, clips: np.ndarray) -> np.ndarray:
        """Return the number of frames int64 (K,) of each clip."""

    def vectors(self, clips: Sequence[int]) -> np.ndarray:
        """Return the first stage's vectors float32 (K, D)."""


class Store(ClipStore, Protocol):
    """An index, opened for searches; it does not change while it is open.

    Attributes:
        meta: Its record.
        files: Its files in order of name, read when they are asked for.
        num_files: Their number.
        seconds: Their length, added up.
        folders: Folders with files.
        unreadable: (file, reason) of the files that were left out.
    """

    meta: IndexMeta
    files: Sequence[IndexedFile]
    num_files: int
    seconds: float
    folders: list[str]
    unreadable: list[tuple[str, str]]

    def file(self, name: str) -> IndexedFile | None:
        """Return a file by name; None if the index has no such file."""

    def select(self, filters: Filters) -> Any:
        """Return the clips that pass the filters, in the store's own form; None: all clips."""

    def excerpts(self, clips: Sequence[int]) -> list[IndexedExcerpt]:
        """Return file and times of each clip."""

    def clips_of(self, name: str) -> list[int]:
        """Return the clips of a file, by start."""
