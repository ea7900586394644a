"""Queries with several right clips, in the format of DCASE 2025 task 6.

A CSV with the columns `query` and `audio_filenames`, a Python list of file names. The queries need
not be captions of the cache.
"""

import ast
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval.base.errors import UserError, one_line
from retrieval.base.sound_files import normalise_name

if TYPE_CHECKING:
    from retrieval.data import ClipSplit

COLUMNS = ("query", "audio_filenames")
NUM_NAMED = 3  # file names in an error
MAP_AT = (10, 16)  # DCASE until 2024, DCASE 2025


def read_relevance(path: Path) -> dict[str, list[str]]:
    """Read the file names of each query's right clips, in the order of the file.

    Raises:
        UserError: The file cannot be read, lacks a column, or has a query twice or without a list.
    """
    relevance: dict[str, list[str]] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not set(COLUMNS) <= set(reader.fieldnames or ()):
                found = ", ".join(map(str, reader.fieldnames or ()))[:200] or "none"
                raise UserError(
                    f"--relevance {path} needs the columns {' and '.join(COLUMNS)}, found: {found}"
                )
            for row in reader:
                place = f"--relevance {path}, line {reader.line_num}"
                query = " ".join((row["query"] or "").split())
                if not query:
                    raise UserError(f"{place}: no query")
                if query in relevance:
                    raise UserError(f"{place}: the query {query!r} is there twice")
                relevance[query] = _file_names(row["audio_filenames"] or "", place)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--relevance {path} cannot be read ({one_line(error)})") from None
    if not relevance:
        raise UserError(f"--relevance {path} has no queries")
    return relevance


def _file_names(text: str, place: str) -> list[str]:
    """Parse a Python list of file names. Raises UserError."""
    try:
        names = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        names = None
    is_list = isinstance(names, list) and bool(names)
    if not is_list or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(
            f"{place}: audio_filenames must be a list of file names such as ['a.wav', 'b.wav'],"
            f" found {text[:60]!r}"
        )
    return names


def relevant_columns(
    relevance: dict[str, list[str]], split: "ClipSplit", option: str = "--relevance"
) -> list[list[int]]:
    """Return for each query the columns of its right clips in a split, in the order of its list.

    Args:
        relevance: File names of the right clips, by query.
        split: The clips.
        option: Named in errors, as the origin of the queries.

    Raises:
        UserError: The split lacks some of the clips.
    """
    columns: dict[str, list[int]] = {}
    for column, name in enumerate(split.file_names):
        columns.setdefault(normalise_name(name), []).append(column)
    asked = {normalise_name(name): name for names in relevance.values() for name in names}
    unknown = [name for normalised, name in asked.items() if normalised not in columns]
    if unknown:
        raise UserError(
            f"split {split.name!r} of the cache lacks {len(unknown)} of the {len(asked)} clips that"
            f" {option} names: {quoted(unknown)}; give the split that the file was made for, in a"
            " cache without lost clips"
        )
    return [
        list(dict.fromkeys(column for name in names for column in columns[normalise_name(name)]))
        for names in relevance.values()
    ]


def quoted(names: Sequence[str]) -> str:
    """Quote the first NUM_NAMED names of a list, for an error."""
    more = ", ..." if len(names) > NUM_NAMED else ""
    return ", ".join(map(repr, names[:NUM_NAMED])) + more
