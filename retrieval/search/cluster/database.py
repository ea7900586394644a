"""An index in PostgreSQL with pgvector: its tables, connections, and errors as one line.

An index is a schema of the database, with the tables

    meta          the record of the index (IndexMeta), the place of its frames, and `uid`,
                  which is new when the index is made anew
    files         name, size, time, sha256, length, number of excerpts, share
    excerpts      start and stop in s, vector, and the place of its frames
    objects       files of frames (frames.py): registered before they are written
    shards        for each `--shard` whether its last update is complete
    unreadable    files that were left out, with reasons
    metadata, metadata_columns    columns of `index --metadata`

Every change is one transaction. Excerpt ids are never reused.

Letters: D = dim.
"""

import json
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from retrieval.base.errors import UserError, one_line
from retrieval.base.extras import needs_extra
from retrieval.search.cluster.address import Address, StoreError, redacted
from retrieval.search.index_meta import IndexMeta, meta_rows, parse_meta

with needs_extra("search-cluster"):
    import psycopg
    from pgvector.psycopg import register_vector
    from psycopg import errors
    from psycopg.conninfo import conninfo_to_dict

Result = TypeVar("Result")
EXTENSION = "vector"  # pgvector
CONNECT_SECONDS = 10
SILENT_SECONDS = 30  # of a connection, after which its other end is taken for dead
# Vectors lie in the rows of their table, not beside it: a search of 100,000 took 100 ms in place of
# 900. A page of 8 kB must hold a row.
LARGEST_DIM_IN_ROW = 1900
LARGEST_DIM = 16_000  # of pgvector
OWN_KEYS = ("uid", "frames_store", "replaced")  # of `meta`, beside the fields of IndexMeta
TABLES = """
CREATE TABLE meta (key text PRIMARY KEY, value text NOT NULL);
CREATE TABLE files (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    file text COLLATE "C" UNIQUE NOT NULL, share bigint NOT NULL,
    size bigint, mtime_ns bigint, sha256 text NOT NULL,
    seconds double precision NOT NULL, num_excerpts bigint NOT NULL);
CREATE INDEX files_by_sha256 ON files (sha256);
CREATE TABLE objects (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, since timestamptz NOT NULL DEFAULT now());
CREATE TABLE excerpts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    file_id bigint NOT NULL REFERENCES files ON DELETE CASCADE,
    start double precision NOT NULL, stop double precision NOT NULL,
    object bigint REFERENCES objects, first_frame bigint NOT NULL, num_frames bigint NOT NULL,
    vector vector({dim}) NOT NULL);
ALTER TABLE excerpts ALTER COLUMN vector SET STORAGE {storage};
CREATE INDEX excerpts_by_file ON excerpts (file_id);
CREATE INDEX excerpts_by_object ON excerpts (object);
CREATE TABLE shards (
    number int, num_shards int, complete boolean NOT NULL, reader int,
    PRIMARY KEY (number, num_shards));
CREATE TABLE unreadable (
    file text COLLATE "C" PRIMARY KEY, share bigint NOT NULL, size bigint, mtime_ns bigint,
    reason text NOT NULL);
CREATE TABLE metadata_columns (position int PRIMARY KEY, name text NOT NULL, kind text NOT NULL);
CREATE TABLE metadata (file text COLLATE "C" PRIMARY KEY, fields jsonb NOT NULL);
"""


class State(NamedTuple):
    """Record of an index in a database; meta.complete: all shards are complete."""

    meta: IndexMeta
    uid: str
    frames_store: str | None
    replaced: list[tuple[str, str]]  # stores and folders of frames of the indexes before this one

    def frames_folder(self, address: Address) -> str:
        return f"{address.name}-{self.uid}"


def connect(address: Address) -> psycopg.Connection:
    """Open a connection whose statements are transactions of their own. Raises psycopg.Error."""
    limits = {"connect_timeout": CONNECT_SECONDS, "tcp_user_timeout": 1000 * SILENT_SECONDS}
    limits |= {"keepalives_idle": SILENT_SECONDS, "application_name": "text-to-audio-retrieval"}
    try:
        given = conninfo_to_dict(address.uri)
    except psycopg.Error:  # its text may hold parts of a password
        raise UserError(
            f"--store {address} is not an address that PostgreSQL understands: expected"
            " postgresql://user@host/database?index=NAME, with %-codes for special characters in"
            " user and password"
        ) from None
    limits = {key: value for key, value in limits.items() if key not in given}
    connection = psycopg.connect(address.uri, autocommit=True, **limits)
    try:
        prepare(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection


def prepare(connection: psycopg.Connection, address: Address) -> None:
    """Set up a connection: look up tables in the index's schema; convert vectors to arrays."""
    own = connection.execute(
        "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
        " WHERE e.extname = %s",
        [EXTENSION],
    ).fetchone()
    path = ", ".join([address.name, *(f'"{name}"' for name in own or ())])
    # Compiling a statement of one query takes longer than running it.
    connection.execute(f"SET search_path = {path}; SET jit = off")
    if own:
        register_vector(connection)


@contextmanager
def explained(address: Address, advice: str = "") -> Iterator[None]:
    """Turn errors of the database into UserError of one line, without passwords.

    advice: Text added to the remedy of a temporary error.
    """
    try:
        yield
    except psycopg.Error as error:
        text = redacted(error.diag.message_primary or " ".join(str(error).split()))[:300]
        raise StoreError(f"--store {address} {_reason(error, text, advice)}") from None


def _reason(error: psycopg.Error, text: str, advice: str) -> str:
    if isinstance(error, errors.InsufficientPrivilege):
        who = "ask the database's administrator, see docs/large_indexes.md"
        return f"lacks a right of this user ({text}); {who}"
    if isinstance(error, (errors.DiskFull, errors.ReadOnlySqlTransaction)):
        return f"cannot be written ({text}); make room there, or open it for writing{advice}"
    if isinstance(error, (errors.UndefinedTable, errors.UndefinedColumn)):
        who = "give another ?index=NAME, or make it again with --overwrite"
        return f"is not an index of this program ({text}); {who}"
    if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
        who = "check host, port, database, user and password, and that the server runs"
        return f"cannot be reached ({text}); {who}{advice}"
    return f"gave an error: {one_line(error)}"


class Database:
    """A connection for reads, reopened when it is lost. Threads take turns."""

    def __init__(self, address: Address):
        self.address = address
        self._lock = threading.Lock()
        self._connection: psycopg.Connection | None = None

    def read(self, function: Callable[[psycopg.Connection], Result]) -> Result:
        """Return function(connection), which sees one state of the database.

        A lost connection is opened again, once. Raises UserError.
        """
        with self._lock, explained(self.address):
            try:
                return self._read(function)
            except (psycopg.OperationalError, psycopg.InterfaceError):
                if not self._connection or not self._connection.closed:
                    raise
                self.close()  # the server was restarted since the last query
                return self._read(function)

    def _read(self, function: Callable[[psycopg.Connection], Result]) -> Result:
        if self._connection is None:
            connection = connect(self.address)
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            self._connection = connection
        with self._connection.transaction():
            return function(self._connection)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def read_state(connection: psycopg.Connection, address: Address) -> State | None:
    """Read the record of the index; None without index. Raises UserError for foreign tables."""
    query = (
        "SELECT c.relname, has_schema_privilege(n.oid, 'USAGE') FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s"
    )
    found = dict(connection.execute(query, [address.name]).fetchall())
    names = found.keys()
    if not names:
        return None
    if not all(found.values()):
        raise StoreError(
            f"--store {address} lacks a right of this user (USAGE of schema {address.name});"
            " ask the database's administrator, see docs/large_indexes.md"
        )
    if "meta" not in names or "shards" not in names:
        raise UserError(
            f"--store {address}: schema {address.name} holds other tables, such as"
            f" {min(names)}; give another ?index=NAME"
        )
    values = dict(connection.execute("SELECT key, value FROM meta").fetchall())
    own = {key: json.loads(values.pop(key)) for key in OWN_KEYS if key in values}
    meta = parse_meta(values, address)
    meta.complete = is_complete(connection)
    return State(meta, own.get("uid", ""), own.get("frames_store"), own.get("replaced", []))


def is_complete(connection: psycopg.Connection) -> bool:
    """Whether each shard of some division into shards is complete, and none is at work."""
    query = "SELECT num_shards, count(*), bool_and(complete) FROM shards GROUP BY num_shards"
    rows = connection.execute(query).fetchall()
    return any(own == count for own, count, _ in rows) and all(own for *_, own in rows)


def create(
    connection: psycopg.Connection,
    address: Address,
    meta: IndexMeta,
    frames_store: str | None,
    overwrite: bool,
) -> None:
    """Make an empty index, unless another process has just made it. Raises UserError.

    overwrite: Replace an existing index, in the same transaction.
    """
    if meta.dim > LARGEST_DIM:
        raise UserError(
            f"--store {address}: pgvector takes at most {LARGEST_DIM:,} dimensions, the model has"
            f" {meta.dim:,}"
        )
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"make {address.name}"])
        before = read_state(connection, address)
        if before is not None and not overwrite:
            return
        replaced = []
        if before is not None:
            own = (before.frames_store, before.frames_folder(address))
            replaced = [*before.replaced, *([own] if before.frames_store else [])]
            connection.execute(f"DROP SCHEMA {address.name} CASCADE")
        try:
            connection.execute(f"CREATE EXTENSION IF NOT EXISTS {EXTENSION} SCHEMA public")
        except (errors.UndefinedFile, errors.FeatureNotSupported):
            raise UserError(
                f"--store {address}: the server has no pgvector; install it there"
                " (github.com/pgvector/pgvector)"
            ) from None
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {address.name}")
        prepare(connection, address)
        storage = "PLAIN" if meta.dim <= LARGEST_DIM_IN_ROW else "EXTERNAL"
        connection.execute(TABLES.format(dim=meta.dim, storage=storage))
        own = {"uid": secrets.token_hex(8), "frames_store": frames_store, "replaced": replaced}
        rows = [*meta_rows(meta), *((key, json.dumps(value)) for key, value in own.items())]
        connection.cursor().executemany("INSERT INTO meta VALUES (%s, %s)", rows)
