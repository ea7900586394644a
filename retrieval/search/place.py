"""Place of an index: a folder of this machine, or a database that many machines reach."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from retrieval.base.errors import UserError
from retrieval.search.cluster.address import Address, Share, is_address
from retrieval.search.index_meta import IndexMeta
from retrieval.search.local.storage import DATABASE, read_index_meta
from retrieval.search.local.store import LocalStore
from retrieval.search.store import Store, Writer


class Place(Protocol):
    """Place of an index.

    Attributes:
        name: Its name in messages: a folder, or an address.
        folder: Folder on this machine for files that are derived from the index and its model.
    """

    name: Path | Address
    folder: Path

    def read_meta(self) -> IndexMeta | None:
        """Return the record of the index; None if there is none. Raises UserError."""

    def check_target(self) -> None:
        """Raise UserError if an index cannot be made here, before anything is written."""

    def open(self) -> Store:
        """Open the index for searches. Raises UserError."""

    def writer(self, meta: IndexMeta, overwrite: bool) -> AbstractContextManager[Writer]:
        """Open the index for writing, or make one with the record `meta`. Raises UserError."""


@dataclass(frozen=True)
class FolderPlace:
    """An index in a folder."""

    name: Path

    @property
    def folder(self) -> Path:
        return self.name

    def read_meta(self) -> IndexMeta | None:
        return read_index_meta(self.name) if (self.name / DATABASE).exists() else None

    def check_target(self) -> None:
        from retrieval.search.local.writer import check_target  # searches do without the writer

        check_target(self.name)

    def open(self) -> Store:
        return LocalStore(self.name)

    @contextmanager
    def writer(self, meta: IndexMeta, overwrite: bool) -> Iterator[Writer]:
        from retrieval.search.local.writer import IndexWriter, locked

        with locked(self.name), IndexWriter.opened(self.name, meta, overwrite) as writer:
            yield writer


def place_of(
    index: str | Path | Address, *, frames_store: str | Path | None = None, shard: str | None = None
) -> Place:
    """Return the place of an index.

    Args:
        index: A folder, or postgresql://user@host/database?index=NAME.
        frames_store: For a database, the place of its frames: a folder, or a URI of fsspec.
        shard: For a database, the share of the files to keep up to date, such as "3/16".

    Raises:
        UserError: The address or the shard is wrong, or a folder has options for databases.
    """
    if is_address(index):
        index = Address.parse(str(index))
    if isinstance(index, Address):
        share = Share.parse(shard or "1/1")
        from retrieval.search.cluster.place import DatabasePlace  # here: it needs an extra

        return DatabasePlace(index, share, frames_store and str(frames_store))
    for option, value in {"--frames-store": frames_store, "--shard": shard}.items():
        if value is not None:
            raise UserError(f"{option} belongs to an index in a database: --store postgresql://...")
    return FolderPlace(Path(index))
