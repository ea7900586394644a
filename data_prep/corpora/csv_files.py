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
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    for encoding in encodings:
        try:
            text = raw.decode(encoding)
            break
        except UnicodeDecodeError as error:
            reason = f"{error.reason} at byte {error.start}"
    else:
        raise UserError(f"{path} is not UTF-8: {reason}; save it as UTF-8")
    lines = _lines(path, text)
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


def _lines(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """Return each row with the number of its last line.

    A quote that is not closed is an error: its field would swallow the rows after it.
    """
    try:
        try:
            return list(_numbered(reader := csv.reader(io.StringIO(text, newline=""), strict=True)))
        except csv.Error as error:
            if str(error) == UNCLOSED:
                raise
            # Accept text behind a closed quote, as in `"Bark" of a dog`, if no field has a line
            # break.
            lines = list(_numbered(csv.reader(io.StringIO(text, newline=""))))
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
