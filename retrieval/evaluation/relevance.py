"""Queries with several right clips, in the format of DCASE 2025 task 6: a CSV with columns `query`
and `audio_filenames`.

`audio_filenames` is a Python list of file names. The queries are scored as they stand in the file;
they need not be captions of the cache. AP@k of such a query is the sum of the precisions at the
hits within k, divided by the number of its right clips (metrics/).
"""

import ast
import csv
import html
import unicodedata
from pathlib import Path
from typing import Any

from retrieval.base.errors import UserError, one_line

COLUMNS = ("query", "audio_filenames")
NUM_NAMED = 3  # file names in an error
MAP_AT = (10, 16)  # DCASE until 2024, DCASE 2025


def read_relevance(path: Path) -> dict[str, list[str]]:
    """query -> file names of its right clips, in the order of the file. Raises UserError."""
    relevance: dict[str, list[str]] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not set(COLUMNS) <= set(reader.fieldnames or ()):
                found = ", ".join(map(str, reader.fieldnames or ())) or "none"
                raise UserError(
                    f"--relevance {path} needs the columns {' and '.join(COLUMNS)}, found:"
                    f" {found[:200]}"
                )
            for row in reader:
                query = " ".join((row["query"] or "").split())
                if not query or query in relevance:
                    raise UserError(
                        f"--relevance {path}, line {reader.line_num}:"
                        f" {f'the query {query!r} is there twice' if query else 'no query'}"
                    )
                relevance[query] = _file_names(
                    row["audio_filenames"], f"--relevance {path}, line {reader.line_num}"
                )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--relevance {path} cannot be read ({one_line(error)})") from None
    if not relevance:
        raise UserError(f"--relevance {path} has no queries")
    return relevance


def relevant_columns(relevance: dict[str, list[str]], split: Any) -> list[list[int]]:
    """For each query the columns of its right clips in a ClipSplit, in the order of its list.
    Raises UserError that lists unknown file names.
    """
    columns: dict[str, list[int]] = {}
    for column, name in enumerate(split.file_names):
        columns.setdefault(normalise_name(name), []).append(column)
    asked = {normalise_name(name): name for names in relevance.values() for name in names}
    unknown = [name for normalised, name in asked.items() if normalised not in columns]
    if unknown:
        named = ", ".join(map(repr, unknown[:NUM_NAMED])) + (
            ", ..." if len(unknown) > NUM_NAMED else ""
        )
        raise UserError(
            f"split {split.name!r} of the cache lacks {len(unknown)} of the {len(asked)} clips that"
            f" --relevance names: {named}; give the split that the file was made for, in a cache"
            " without lost clips"
        )
    return [
        list(dict.fromkeys(column for name in names for column in columns[normalise_name(name)]))
        for names in relevance.values()
    ]


def normalise_name(name: str) -> str:
    """As data_prep/clotho_files.py joins Clotho's own files: Unicode NFC, HTML entities, blanks,
    case of the suffix.
    """
    stem, dot, suffix = unicodedata.normalize("NFC", html.unescape(name)).strip().rpartition(".")
    return " ".join(stem.split()) + dot + suffix.lower()


def _file_names(text: str | None, place: str) -> list[str]:
    try:
        names = ast.literal_eval((text or "").strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        names = None
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(name, str) and name.strip() for name in names)
    ):
        raise UserError(
            f"{place}: audio_filenames must be a list of file names such as ['a.wav', 'b.wav'],"
            f" found {(text or '')[:60]!r}"
        )
    return names
