"""Place of an index in a database, for AudioIndex and its update."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from huggingface_hub.constants import HF_HOME

from retrieval.base.errors import UserError
from retrieval.search.cluster.address import Address, Share
from retrieval.search.cluster.database import Database, read_state
from retrieval.search.cluster.frames import FrameObjects
from retrieval.search.cluster.store import DatabaseStore
from retrieval.search.frame_coding import FrameCoding
from retrieval.search.index_meta import IndexMeta
from retrieval.search.store import Store, Writer


@dataclass(frozen=True)
class DatabasePlace:
    """An index in a database; a Place.

    Attributes:
        name: Its address.
        share: The files that a writer keeps up to date.
        frames_store: Place of its frames; None: the one recorded in the index.
    """

    name: Address
    share: Share
    frames_store: str | None

    @property
    def folder(self) -> Path:
        return Path(HF_HOME, "retrieval", sha256(str(self.name).encode()).hexdigest()[:16])

    def read_meta(self) -> IndexMeta | None:
        database = Database(self.name)
        try:
            state = database.read(lambda connection: read_state(connection, self.name))
        finally:
            database.close()
        return state and state.meta

    def check_target(self) -> None:
        """Raise UserError if the place of the frames cannot be opened."""
        if self.frames_store is not None:
            FrameObjects(self._root, "", FrameCoding("float16", 1))

    @property
    def _root(self) -> str | None:
        """The frames' place, with the whole path of a folder."""
        if self.frames_store is None or "://" in self.frames_store:
            return self.frames_store
        return str(Path(self.frames_store).expanduser().resolve())

    def open(self) -> Store:
        return DatabaseStore(self.name, self._root)

    @contextmanager
    def writer(self, meta: IndexMeta, overwrite: bool) -> Iterator[Writer]:
        if overwrite and not self.share.is_all:
            raise UserError(
                "--overwrite would remove the work of other shards: run it without --shard first,"
                " or give a new index: ?index=NAME"
            )
        from retrieval.search.cluster.writer import DatabaseWriter  # searches do without it

        with DatabaseWriter.opened(self.name, meta, overwrite, self.share, self._root) as writer:
            yield writer
