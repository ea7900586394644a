"""Reads the CSV files of the corpora: which encoding, which columns must be there, and where a
broken row stands.
"""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrieval.base.errors import UserError

UNCLOSED = "unexpected end of data"  # the csv module's words for a quote that is not closed
REMEDY = "is a quote missing or the file cut off?"


def read_csv(path: Path, columns: tuple[str, ...], encodings: list[str]) -> list[dict[str, str]]:
    """Return the rows of read_numbered_csv without line numbers."""
    return [row for _, row in read_numbered_csv(path, columns, encodings)]


def read_numbered_csv(
    path: Path, columns: tuple[str, ...], encodings: list[str]
) -> list[tuple[int, dict[str, str]]]:
    """Return line number and fields by column name for each row of `path`, in the first of
    `encodings` that fits.

    Raises UserError unless each of `columns` is in the first line, none is there twice, and every
    row has as many fields as it.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    lines = _lines(path, _decode(path, raw, encodings))
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
    """Rows, with the number of the line that each ends in. A quote that is not closed would take
    the rows after it into its field: an error.
    """
    try:
        try:
            return list(_numbered(reader := csv.reader(io.StringIO(text, newline=""), strict=True)))
        except csv.Error as error:
            if str(error) == UNCLOSED:
                raise
            # Text behind a closed quote, as in `"Bark" of a dog`, is kept where no field goes on in
            # another line.
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
    """`caption_1`, `caption_2`, ... of a row, in the order of their numbers."""
    return sorted(
        (column for column in row if re.fullmatch(r"caption_\d+", column)),
        key=lambda column: int(column[8:]),
    )


def one_spaced(text: str) -> str:
    """A caption without line breaks and doubled blanks."""
    return " ".join(text.split())


def _decode(path: Path, raw: bytes, encodings: list[str]) -> str:
    for encoding in encodings:
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError as error:
            reason = error
    raise UserError(
        f"{path} is not UTF-8: {reason.reason} at byte {reason.start}; save it as UTF-8"
    )
