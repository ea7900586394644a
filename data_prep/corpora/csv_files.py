"""Read the CSV files of the corpora: encodings, required columns, lines of broken rows."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrieval.base.errors import UserError

UNCLOSED = "unexpected end of data"  # message of the csv module for a quote that is not closed
REMEDY = "is a quote missing or the file cut off?"


def read_csv(path: Path, columns: tuple[str, ...], encodings: list[str]) -> list[dict[str, str]]:
    """Return the rows of read_numbered_csv without line numbers."""
    return [row for _, row in read_numbered_csv(path, columns, encodings)]


def read_numbered_csv(
    path: Path, columns: tuple[str, ...], encodings: list[str]
) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV file with a header.

    Args:
        path: The file.
        columns: Columns that must be there.
        encodings: Encodings to try, in this order.

    Returns:
        Line number and fields by column name of each row.

    Raises:
        UserError: A column is missing or there twice, a row has another number of fields than the
            header, or the file cannot be read.
    """
    return _rows(path, _decoded(path, encodings), columns, ",")


def read_spreadsheet_csv(
    path: Path, columns: tuple[str, ...]
) -> tuple[list[tuple[int, dict[str, str]]], str]:
    """Read a CSV as spreadsheets write it: UTF-8, a header in any capitals, `,`, `;` or a tab.

    Returns:
        Rows as of read_numbered_csv, with column names in small letters; and the separator.

    Raises:
        UserError: As read_numbered_csv.
    """
    text = _decoded(path, ["utf-8-sig"])
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    text = header.lower() + text[len(header) :]
    return _rows(path, text, columns, separator), separator


def _decoded(path: Path, encodings: list[str]) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    for encoding in encodings:
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError as error:
            reason = f"{error.reason} at byte {error.start}"
    raise UserError(f"{path} is not UTF-8: {reason}; save it as UTF-8")


def _rows(
    path: Path, text: str, columns: tuple[str, ...], separator: str
) -> list[tuple[int, dict[str, str]]]:
    lines = _lines(path, text, separator)
    header = [column.strip() for column in lines[0][1]] if lines else []
    for column in [*columns, *filter(None, header)]:
        if header.count(column) != 1:
            found = ", ".join(header)[:200] or "nothing"
            raise UserError(
                f"{path}: column {column} must occur once in its first line, found: {found}"
            )
    rows = []
    for number, row in lines[1:]:
        if len(row) not in (0, len(header)):
            raise UserError(
                f"{path}, line {number}: {len(row)} fields, expected {len(header)}; {REMEDY}"
            )
        if row:
            rows.append((number, dict(zip(header, row, strict=True))))
    return rows


def _lines(path: Path, text: str, separator: str) -> list[tuple[int, list[str]]]:
    """Return each row with the number of its last line.

    A quote that is not closed is an error: its field would swallow the rows after it.
    """
    try:
        try:
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
            return list(_numbered(reader))
        except csv.Error as error:
            if str(error) == UNCLOSED:
                raise
            # Accept text behind a closed quote, as in `"Bark" of a dog`, if no field has a line
            # break.
            lenient = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
            lines = list(_numbered(lenient))
            if any({"\n", "\r"} & set(field) for _, row in lines for field in row):
                raise
            return lines
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; {REMEDY}") from None


def _numbered(reader: Any) -> Iterator[tuple[int, list[str]]]:
    for row in reader:
        yield reader.line_num, row


def caption_columns(row: dict[str, str]) -> list[str]:
    """Return the columns `caption_1`, `caption_2`, ... of a row in the order of their numbers."""
    columns = [column for column in row if re.fullmatch(r"caption_\d+", column)]
    return sorted(columns, key=lambda column: int(column.removeprefix("caption_")))


def one_spaced(text: str) -> str:
    """Return a caption without line breaks and doubled blanks."""
    return " ".join(text.split())
