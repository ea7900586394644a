"""Metadata in the SQLite database of an index: two tables that older versions ignore.

    metadata_columns    name and kind of each column
    metadata            a row for each file, by its name: c0, c1, ... hold the columns

Rows belong to file names, so metadata stays when the content of a file changes.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

from retrieval.search.metadata import Fields, Kind, Metadata

FILES_AT_ONCE = 500  # SQLite's limit on parameters is 999 in old versions

Statement = tuple[str, tuple[Any, ...]]


def statements_to_replace(metadata: Metadata) -> Iterator[Statement]:
    """Yield the statements that replace all metadata of an index, for one transaction."""
    places = [f"c{number}" for number in range(len(metadata.columns))]
    yield "DROP TABLE IF EXISTS metadata_columns", ()
    yield "DROP TABLE IF EXISTS metadata", ()
    columns = "(position INTEGER PRIMARY KEY, name TEXT NOT NULL, kind TEXT NOT NULL)"
    yield f"CREATE TABLE metadata_columns {columns}", ()
    # no types: SQLite would turn the text "007" of a column of numbers into 7
    yield f"CREATE TABLE metadata (file TEXT PRIMARY KEY, {', '.join(places)}) WITHOUT ROWID", ()
    for number, (name, kind) in enumerate(metadata.columns.items()):
        yield "INSERT INTO metadata_columns VALUES (?, ?, ?)", (number, name, kind)
    insert = f"INSERT INTO metadata VALUES ({', '.join('?' * (len(places) + 1))})"
    for file, fields in metadata.fields.items():
        yield insert, (file, *map(fields.get, metadata.columns))


def statements_to_copy(file: str, new: str, num_columns: int) -> Iterator[Statement]:
    """Yield a statement that gives file `new` the metadata of a file of the same content."""
    if num_columns and new != file:
        places = ", ".join(f"c{number}" for number in range(num_columns))
        copy = f"INSERT OR IGNORE INTO metadata SELECT ?, {places} FROM metadata WHERE file = ?"
        yield copy, (new, file)


def read_columns(database: sqlite3.Connection) -> dict[str, Kind]:
    """Read the kind of each column, in order; none if the index has no metadata."""
    there = "SELECT count(*) FROM sqlite_master WHERE name = 'metadata_columns'"
    if not database.execute(there).fetchone()[0]:
        return {}
    rows = database.execute("SELECT name, kind FROM metadata_columns ORDER BY position").fetchall()
    return {name: "number" if kind == "number" else "text" for name, kind in rows}


def read_column(database: sqlite3.Connection, position: int) -> dict[str, str | float]:
    """Read the known values of a column by file."""
    place = f"c{position}"
    query = f"SELECT file, {place} FROM metadata WHERE {place} IS NOT NULL"
    return dict(database.execute(query))


def read_fields(database: sqlite3.Connection, files: Sequence[str]) -> dict[str, Fields]:
    """Read the known values of some files; a file without a row is left out."""
    kinds, found = read_columns(database), {}
    for first in range(0, len(files) if kinds else 0, FILES_AT_ONCE):
        part = tuple(files[first : first + FILES_AT_ONCE])
        query = f"SELECT * FROM metadata WHERE file IN ({', '.join('?' * len(part))})"
        for file, *values in database.execute(query, part):
            pairs = zip(kinds, values, strict=True)
            found[file] = {name: value for name, value in pairs if value is not None}
    return found
