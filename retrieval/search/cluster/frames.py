"""Frames of an index in a database: objects in a folder or store that all machines reach.

    ROOT/NAME-UID/0/17.f16      frames of excerpts that were encoded together, in order (.i8: int8,
                                see frame_coding.py); never changed

ROOT is any place that fsspec opens: a shared folder, s3://bucket/prefix, ... A writer registers an
object in the database before it writes it, so a later one can remove objects of a killed writer.
An object is removed one hour after its last excerpt is removed, so that running queries still find
it.

Letters: T frames, D = dim.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retrieval.base.errors import UserError, one_line
from retrieval.base.extras import needs_extra
from retrieval.base.files import atomic_path
from retrieval.search.cluster.address import StoreError, redacted
from retrieval.search.frame_coding import FrameCoding

with needs_extra("search-cluster"):
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

OBJECTS_A_FOLDER = 1000


class FramesPlace(NamedTuple):
    """Place of the frames of an excerpt: object, first row, number of frames."""

    object: int
    first: int
    count: int


class FrameObjects:
    """Writes and reads the objects of one index.

    Args:
        root: Folder, or a URI of fsspec.
        folder: Name of the index's own folder in it.
        coding: Coding of the frames.

    Raises:
        UserError: The kind of store is unknown, or its package is not installed.
    """

    def __init__(self, root: str, folder: str, coding: FrameCoding):
        self.root, self.folder, self.coding = root, folder, coding
        self.shown = redacted(root)
        if "::" in root:
            raise UserError(f"--frames-store {self.shown}: chains of stores are not supported")
        try:
            self._files, self._root = fsspec.core.url_to_fs(root)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"--frames-store {self.shown} cannot be opened ({one_line(error)}): give a folder,"
                " or a URI of fsspec whose package is installed, such as s3fs for s3://"
            ) from None
        self._root = self._root.rstrip("/")

    def path(self, number: int) -> str:
        part = number // OBJECTS_A_FOLDER
        return f"{self._root}/{self.folder}/{part}/{number}.{self.coding.ending}"

    def check_writable(self) -> None:
        """Raise UserError unless an object can be written and removed."""
        probe = f"{self._root}/{self.folder}/probe"
        with self._explained("written"):
            self._write(probe, b"probe")
            self._files.rm_file(probe)

    def write(self, number: int, rows: list[np.ndarray]) -> None:
        """Write the encoded frames of some excerpts as an object. Raises UserError."""
        with self._explained("written"):
            self._write(self.path(number), np.concatenate(rows).tobytes())

    def _write(self, path: str, content: bytes) -> None:
        if isinstance(self._files, LocalFileSystem):
            with atomic_path(Path(path)) as temporary:
                temporary.write_bytes(content)
        else:
            self._files.pipe_file(path, content)

    def read(self, places: Sequence[FramesPlace]) -> list[np.ndarray]:
        """Read the rows of frames of several excerpts in parallel.

        Raises:
            UserError: The store cannot be reached, or an object is absent or too short.
        """
        row = self.coding.row  # its shape is () or (D,)
        counts = [self.coding.num_rows(place.count) for place in places]
        paths = [self.path(place.object) for place in places]
        starts = [place.first * row.itemsize for place in places]
        sizes = [count * row.itemsize for count in counts]  # bytes
        stops = [start + size for start, size in zip(starts, sizes, strict=True)]
        with self._explained("read"):
            parts = self._files.cat_ranges(paths, starts, stops, on_error="return")
        arrays = []
        for path, part, size in zip(paths, parts, sizes, strict=True):
            if isinstance(part, BaseException):
                with self._explained("read", path):
                    raise part
            if len(part) != size:
                raise StoreError(f"{path} is shorter than it was written: the index is damaged")
            # torch wants arrays that may be written to
            rows = np.frombuffer(bytearray(part), row.base)
            arrays.append(rows.reshape(-1, *row.shape))
        return arrays

    def remove(self, number: int) -> None:
        """Remove an object if it exists. Raises UserError."""
        with self._explained("written"):
            try:
                self._files.rm_file(self.path(number))
            except FileNotFoundError:
                pass  # its writer was killed before it wrote it

    def remove_all(self) -> None:
        """Remove all objects of the index. Raises UserError."""
        with self._explained("written"):
            try:
                self._files.rm(f"{self._root}/{self.folder}", recursive=True)
            except FileNotFoundError:
                pass

    @contextmanager
    def _explained(self, verb: str, path: str = "") -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except FileNotFoundError as error:
            missing = path or error.filename or one_line(error)
            raise StoreError(
                f"--frames-store {self.shown} cannot be {verb}: {missing} is not there; give its"
                " place now, or make the index again with --overwrite"
            ) from None
        except Exception as error:  # of each store's own kinds
            raise StoreError(
                f"--frames-store {self.shown} cannot be {verb} ({redacted(one_line(error))}); check"
                " that it is reachable from this machine, and its permissions"
            ) from None
