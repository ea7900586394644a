"""Read times from a CSV: `file_name,query,start,end`, optionally `qid` and `split`.

    file_name,query,start,end
    street.wav,a car horn,3.5,4.25
    street.wav,a car horn,1:02.5,1:04        a second window of the same query

A header in other capitals, a byte order mark, Windows' line ends and semicolons between the fields
are accepted; with semicolons a comma is a decimal point, as spreadsheets of such languages write.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.corpora.csv_files import one_spaced, read_spreadsheet_csv
from retrieval.base.errors import UserError
from retrieval.data.moments import MomentQuery, Window
from retrieval.data.schema import SPLITS

COLUMNS = ("file_name", "query", "start", "end")
SECONDS = re.compile(r"\d+(\.\d*)?([eE][+-]?\d+)?|\.\d+", re.ASCII)
CLOCK = re.compile(r"(?:(\d{1,9}):)?(\d{1,2}):(\d{1,2}(?:\.\d*)?)", re.ASCII)  # [h:]m:s


@dataclass
class FileMoments:
    """Queries of a file."""

    line: int  # the first of its lines in the CSV
    split: str  # "" without a column `split`
    queries: list[MomentQuery] = field(default_factory=list)


@dataclass
class _Query:
    line: int
    name: str
    text: str
    windows: list[Window]


def read_moments_csv(path: Path, name_of: Callable[[str], str]) -> dict[str, FileMoments]:
    """Read the queries of each file, in the order of the CSV.

    Rows of one file and one query, or of one qid if there is that column, are windows of one query.
    A row with neither start nor end is a query without a window. Without a column `qid` the queries
    are `<file_name>_<number from 1>`.

    Args:
        path: The CSV.
        name_of: Brings a file name to one spelling.

    Raises:
        UserError: A row is broken; the message names its line.
    """
    rows, separator = read_spreadsheet_csv(path, COLUMNS)
    if not rows:
        raise UserError(f"{path} has no rows: expected {','.join(COLUMNS)}")
    files: dict[str, FileMoments] = {}
    queries: dict[tuple[str, str], _Query] = {}
    for line, row in rows:
        where = f"{path}, line {line}"
        text, qid = one_spaced(row["query"]), row.get("qid", "").strip()
        for column in ("file_name", "query", *(["qid"] if "qid" in row else [])):
            if not row[column].strip():
                raise UserError(f"{where}: {column} is empty")
        name = name_of(row["file_name"])
        split = row.get("split", "").strip()
        if "split" in row and split not in SPLITS:
            raise UserError(f"{where}: split {split!r} is none of {', '.join(SPLITS)}")
        file = files.setdefault(name, FileMoments(line, split))
        if file.split != split:
            raise UserError(
                f"{where}: {name!r} is in {split}, in {file.split} in line {file.line}; a file"
                " belongs to one split"
            )
        key = ("", qid) if qid else (name, text)
        query = queries.setdefault(key, _Query(line, name, text, []))
        if (query.name, query.text) != (name, text):
            raise UserError(
                f"{where}: qid {qid!r} is {query.text!r} of {query.name!r} in line {query.line};"
                " a qid belongs to one query of one file"
            )
        if separator == ";":
            row |= {column: row[column].replace(",", ".") for column in ("start", "end")}
        query.windows += _windows(row, where)
    for (_, qid), query in queries.items():
        of_file = files[query.name].queries
        qid = qid if "qid" in rows[0][1] else f"{query.name}_{len(of_file) + 1}"
        of_file.append(MomentQuery(qid, query.text, tuple(query.windows)))
    return files


def _windows(row: dict[str, str], where: str) -> list[Window]:
    """Return the window of a row; none if it has neither start nor end."""
    if not (row["start"].strip() or row["end"].strip()):
        return []
    start, end = (_seconds(row[column], f"{where}: {column}") for column in ("start", "end"))
    if end < start:
        raise UserError(f"{where}: end {row['end'].strip()} is before start {row['start'].strip()}")
    return [(start, end)]


def _seconds(text: str, where: str) -> float:
    text = text.strip()
    if SECONDS.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    if clock := CLOCK.fullmatch(text):
        hours, minutes, seconds = int(clock[1] or 0), int(clock[2]), float(clock[3])
        if seconds < 60 and (minutes < 60 or clock[1] is None):
            return 3600 * hours + 60 * minutes + seconds
    hint = "a point before the decimals, " if "," in text else ""
    raise UserError(
        f"{where} is {text!r}: expected {hint}seconds from the beginning of the recording, such as"
        " 83.5 or 1:23.5"
    )
