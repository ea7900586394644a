"""Metadata of recordings in the tables of a database: filters, fields and counts, in SQL.

metadata_columns    position, name and kind of each column
metadata            known values of a file by column, by the file's name
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import psycopg

from retrieval.search.facets import Facet
from retrieval.search.metadata import Fields, Kind, Metadata, Range, Where, resolve_where

Rows = Callable[..., list[tuple]]  # query and values to rows


def replace_metadata(connection: psycopg.Connection, metadata: Metadata) -> None:
    """Replace the metadata of all files, within a transaction."""
    connection.execute("DELETE FROM metadata_columns")
    connection.execute("DELETE FROM metadata")
    columns = [(number, *column) for number, column in enumerate(metadata.columns.items())]
    insert = "INSERT INTO metadata_columns VALUES (%s, %s, %s)"
    connection.cursor().executemany(insert, columns)
    with connection.cursor().copy("COPY metadata FROM STDIN") as copy:
        for file, fields in metadata.fields.items():
            copy.write_row((file, json.dumps(fields)))


def copy_metadata(connection: psycopg.Connection, sources: Mapping[str, str]) -> None:
    """Copy metadata to files without any, from files of the same content; sources: by name."""
    copy = (
        "INSERT INTO metadata SELECT own.target, m.fields"
        " FROM unnest(%s::text[], %s::text[]) AS own (target, source)"
        " JOIN metadata m ON m.file = own.source ON CONFLICT DO NOTHING"
    )
    connection.execute(copy, [[*sources], [*sources.values()]])


def read_columns(connection: psycopg.Connection) -> dict[str, Kind]:
    """Read the kind of each column, in order."""
    query = "SELECT name, kind FROM metadata_columns ORDER BY position"
    rows = connection.execute(query).fetchall()
    return {name: "number" if kind == "number" else "text" for name, kind in rows}


def read_fields(rows: Rows, columns: Collection[str], names: Sequence[str]) -> dict[str, Fields]:
    """Read the known values of some files; a file without a row is left out."""
    found = rows("SELECT file, fields FROM metadata WHERE file = ANY(%s)", [list(names)])
    return {
        file: {column: fields[column] for column in columns if column in fields}
        for file, fields in found
    }


def resolved(rows: Rows, columns: Mapping[str, Kind], where: Mapping[str, Any]) -> Where:
    """Check conditions, as resolve_where. Raises UserError."""
    query = "SELECT DISTINCT fields->>%s::text FROM metadata WHERE jsonb_exists(fields, %s)"
    known = {
        column: {value for (value,) in rows(query, [column, column])}
        if kind == "text" and column in where
        else None
        for column, kind in columns.items()
    }
    return resolve_where(where, known)


def condition(where: Where) -> tuple[str, list[Any]]:
    """Return a condition of SQL on files `f`, and its values."""
    conditions, values = [], []
    for column, accepted in where.items():
        one_of = []
        for value in accepted:
            if isinstance(value, Range):
                one_of.append("(fields->%s::text)::float8 BETWEEN %s AND %s")
                values += [column, value.low, value.high]
            else:
                one_of.append("fields->>%s::text = %s")
                values += [column, value]
        conditions.append(f"({' OR '.join(one_of)})")
    wanted = f"SELECT file FROM metadata WHERE {' AND '.join(conditions)}"
    return f"f.file IN ({wanted})", values


def folder_counts(rows: Rows) -> tuple[tuple[str, int], ...]:
    """Count the files below each folder, in order of name."""
    query = "SELECT regexp_replace(file, '/[^/]*$', ''), count(*) FROM files WHERE file ~ '/'"
    counts: Counter[str] = Counter()
    for folder, count in rows(f"{query} GROUP BY 1"):
        while folder:
            counts[folder] += count
            folder = folder.rpartition("/")[0]
    return tuple(sorted(counts.items()))


def facet(rows: Rows, column: str, kind: Kind, most_values: int, num_files: int) -> Facet:
    """Count the values of a column, among the files of the index."""
    value = "(fields->%s::text)::float8" if kind == "number" else 'fields->>%s::text COLLATE "C"'
    known = (
        f"WITH known AS (SELECT {value} AS value FROM metadata JOIN files USING (file)"
        " WHERE jsonb_exists(fields, %s)) "
    )
    query = "SELECT value, count(*) FROM known GROUP BY value ORDER BY 2 DESC, 1 LIMIT %s"
    values = rows(known + query, [column, column, most_values])
    query = "SELECT count(DISTINCT value), count(*), min(value), max(value) FROM known"
    ((num_values, num_known, lowest, highest),) = rows(known + query, [column, column])
    has_limits = kind == "number"
    return Facet(
        column,
        kind,
        tuple(values),
        num_values,
        num_files - num_known,
        lowest if has_limits else None,
        highest if has_limits else None,
    )
