"""Metadata of recordings: a CSV whose columns become filters.

    file_name,place,year
    birds/owl.wav,forest,2021
    rain.wav,,2023

The first column names a file of the index: its path below the indexed folder, or its base name if
no other file has it. A column whose values are all numbers takes ranges; every other column holds
text. An empty field is unknown: it passes no filter.
"""

import csv
import math
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Real
from pathlib import Path
from typing import Any, Literal

from retrieval.base.errors import UserError, counted, one_line, printable

Kind = Literal["text", "number"]
Fields = dict[str, str | float]  # known values of a file by column

FILE_NAME = "file_name"
# columns of answers and names of filters: the same name for two things would confuse
BUILT_IN = ("query", "rank", "score", "file", "folder", "from", "to", "excerpt_from", "excerpt_to")
BUILT_IN += ("seconds", "file_seconds", "moments", "copies", "within", "without", "where", "k")
BUILT_IN += ("matches", "metadata")
BUILT_IN += ("min_score", "min_seconds", "max_seconds", "fold")
MOST_COLUMNS, LONGEST_VALUE = 100, 1000  # characters
FEW_TEXTS = 0.2  # share of texts in a column of numbers up to which they are taken for mistakes
NAMES_SHOWN, LONGEST_SHOWN = 3, 60  # in messages
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float = -math.inf
    high: float = math.inf


# Accepted values by column; a value is a text, or a range in a column of numbers. A file passes if
# it has one of the values of every column.
Where = Mapping[str, tuple[str | Range, ...]]


@dataclass(frozen=True)
class Metadata:
    """Content of a metadata file.

    Attributes:
        columns: Kind of each column, in order.
        fields: Known values of each file of the index that has a row.
        num_rows: Rows of the file.
        unknown: The first names that are not files of the index.
        num_unknown: Number of rows with such names.
    """

    columns: dict[str, Kind]
    fields: dict[str, Fields]
    num_rows: int
    unknown: tuple[str, ...]
    num_unknown: int


def read_metadata(path: Path, files: Collection[str]) -> Metadata:
    """Read a metadata file for an index of `files`, row by row.

    Raises:
        UserError: It cannot be read or is no CSV in UTF-8, has no column file_name, two columns of
            one name or one with a built-in name, two rows for a file, a name that several files
            have, a column of numbers with a few texts, or no row for any file.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            columns = _checked_columns(path, next(rows, []))
            return _read_rows(path, columns, rows, files)
    except UnicodeDecodeError as error:
        raise UserError(
            f"--metadata {path} is not UTF-8 ({one_line(error)}); save it as CSV in UTF-8"
        ) from None
    except csv.Error as error:
        raise UserError(
            f"--metadata {path}, line {rows.line_num}: {error}; expected a CSV"
        ) from None
    except OSError as error:
        raise UserError(f"--metadata {path} cannot be read: {error.strerror}") from None


def _checked_columns(path: Path, header: list[str]) -> list[str]:
    """Return the columns after the first. Raises UserError."""
    names = [name.strip() for name in header]
    if not names or names[0] != FILE_NAME:
        found = _shown(",".join(header)) or "an empty line"
        raise UserError(
            f"--metadata {path}: the first column must be {FILE_NAME}, with commas between columns;"
            f" its first line is {found}"
        )
    for number, name in enumerate(names[1:], 2):
        place = f"--metadata {path}: column {number}"
        if not name or not name.isprintable() or "=" in name or len(name) > LONGEST_SHOWN:
            raise UserError(
                f"{place} is called {_shown(name)!r}; give it a name of 1 to {LONGEST_SHOWN}"
                " characters, without ="
            )
        if names.index(name) != number - 1:
            raise UserError(f"{place} is called {name!r}, as column {names.index(name) + 1}")
        if name.lower() in BUILT_IN:
            raise UserError(
                f"{place} is called {name!r}, which answers have already; give it another name"
            )
    if not 2 <= len(names) <= MOST_COLUMNS:
        raise UserError(
            f"--metadata {path} has {len(names):,} columns; expected {FILE_NAME} and 1 to"
            f" {MOST_COLUMNS - 1} more"
        )
    return names[1:]


def _read_rows(
    path: Path, columns: list[str], rows: Iterator[list[str]], files: Collection[str]
) -> Metadata:
    named, texts = _Names(files), {}  # texts: fields of each file, as written
    row_of, num_rows, unknown, num_unknown = {}, 0, [], 0
    for number, row in enumerate(rows, 2):  # as a spreadsheet counts: 1 is the header
        if not any(row):
            continue
        num_rows += 1
        place = f"--metadata {path}, row {number}"
        if len(row) != len(columns) + 1:
            raise UserError(f"{place} has {len(row):,} fields, the header {len(columns) + 1}")
        if not row[0].strip():
            raise UserError(f"{place} has no {FILE_NAME}")
        found = named.find(row[0].strip())
        if len(found) > 1:
            raise UserError(
                f"{place}: several files are called {_shown(row[0])}, such as {found[0]} and"
                f" {found[1]}; give the path below the indexed folder"
            )
        if not found:
            num_unknown += 1
            if len(unknown) < NAMES_SHOWN:
                unknown.append(_shown(row[0]))
            continue
        (file,) = found
        if file in row_of:
            raise UserError(f"{place}: {FILE_NAME} {file} is in row {row_of[file]} too")
        row_of[file], texts[file] = number, [value.strip() for value in row[1:]]
        for name, value in zip(columns, texts[file], strict=True):
            if len(value) > LONGEST_VALUE or "\0" in value:
                raise UserError(
                    f"{place}: {name} of {file} has {len(value):,} characters or a zero byte; at"
                    f" most {LONGEST_VALUE:,} characters of text can be filtered by"
                )
    if not texts:
        first = f", such as {', '.join(unknown)}" if unknown else ""
        raise UserError(
            f"--metadata {path}: none of its {counted(num_rows, 'row')} names a file of the"
            f" index{first}; {FILE_NAME} is the path below the indexed folder"
        )
    kinds, fields = {}, {file: {} for file in texts}
    for position, name in enumerate(columns):
        given = {file: own[position] for file, own in texts.items() if own[position]}
        no_number = [file for file, value in given.items() if number_of(value) is None]
        if no_number and len(no_number) <= FEW_TEXTS * len(given):
            file = no_number[0]
            raise UserError(
                f"--metadata {path}, row {row_of[file]}: {name} of {file} is"
                f" {_shown(given[file])!r}, and a number in {len(given) - len(no_number):,} other"
                " rows; give a number, or leave it empty"
            )
        kinds[name] = "text" if no_number or not given else "number"
        for file, value in given.items():
            fields[file][name] = value if kinds[name] == "text" else number_of(value)
    return Metadata(kinds, fields, num_rows, tuple(unknown), num_unknown)


class _Names:
    """Finds files by path or base name. Letters may be composed (é) or not, slashes be `\\`."""

    def __init__(self, files: Collection[str]):
        self.files, self.by_path, self.by_base = set(files), {}, {}
        for file in files:
            path = unicodedata.normalize("NFC", file)
            self.by_path.setdefault(path, []).append(file)
            self.by_base.setdefault(path.rpartition("/")[2], []).append(file)

    def find(self, name: str) -> list[str]:
        """Return the files that a name in the CSV can refer to."""
        if name in self.files:
            return [name]
        composed = unicodedata.normalize("NFC", name)
        for written in (composed, composed.replace("\\", "/")):
            path = written.removeprefix("./")
            if found := self.by_path.get(path) or self.by_base.get(path):
                return found
        return []


def number_of(text: str) -> float | None:
    """Parse a number of digits with a decimal point; return None for other texts."""
    if not NUMBER.fullmatch(text) or not math.isfinite(value := float(text)):
        return None
    return value


def as_written(value: str | float) -> str | float:
    """Return a value as the metadata file has it: 2020, not 2020.0."""
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return int(value) if is_whole else value


def fields_as_written(fields: Fields) -> Fields:
    """Return all values of a file as its metadata file has them."""
    return {column: as_written(value) for column, value in fields.items()}


# --- filters ---


def parse_where(conditions: Sequence[str]) -> dict[str, list[str]]:
    """Parse `place=forest` and `year=2020..2024` of --where; a column may be repeated.

    Raises UserError.
    """
    where: dict[str, list[str]] = {}
    for condition in conditions:
        column, sign, value = condition.partition("=")
        if not (sign and column.strip() and value.strip()):
            raise UserError(
                f"--where {_shown(condition)!r}: expected COLUMN=VALUE, such as place=forest, or a"
                " range of numbers, such as year=2020..2024"
            )
        where.setdefault(column.strip(), []).append(value.strip())
    return where


def resolve_where(
    where: Mapping[str, Any], values: Mapping[str, Collection[str] | None]
) -> dict[str, tuple[str | Range, ...]]:
    """Check conditions against an index, and convert them to the form that a store applies.

    Args:
        where: By column a value, or a list of values of which a file must have one. In a column of
            numbers a value is a number, a pair (lowest, highest) with None for no limit, a Range,
            or a text as on the terminal: "2020", "2020..2024", "2020..".
        values: Columns of the index; those of text with all texts that it holds, those of numbers
            with None. Of columns that `where` does not name only the names are used.

    Returns:
        Accepted values by column; a Range in columns of numbers.

    Raises:
        UserError: An unknown column, an unknown text, or something that is no number or range.
    """
    resolved = {}
    for column, given in where.items():
        if column not in values:
            near = near_names(column, values, "columns")
            raise UserError(f"the index has no column {_shown(str(column))!r} of metadata{near}")
        known = values[column]
        several = list(given) if isinstance(given, (list, set, frozenset)) else [given]
        if not several:
            raise UserError(f"{column}=[] accepts no value: leave it out, or give one")
        if known is None:
            resolved[column] = tuple(_range(column, one) for one in several)
            continue
        for one in several:
            if not isinstance(one, str) or one not in known:
                near = near_names(str(one), known, "values")
                if isinstance(one, (tuple, Range)) or ".." in str(one):
                    raise UserError(
                        f"{column}={_shown(str(one))} is a range, which needs a column of numbers;"
                        f" {column} holds texts{near}"
                    )
                raise UserError(f"no file has {column}={_shown(str(one))}{near}")
        resolved[column] = tuple(several)
    return resolved


def _range(column: str, given: Any) -> Range:
    if isinstance(given, Range):
        return given
    low = high = given
    if isinstance(given, str):
        low, dots, high = given.partition("..")
        low, high = low.strip(), high.strip() if dots else low.strip()
        is_wrong = any(own and number_of(own) is None for own in (low, high)) or not low + high
        low, high = (number_of(own) if own else None for own in (low, high))
    elif isinstance(given, tuple) and len(given) == 2:
        low, high = given
        is_wrong = False
    else:
        is_wrong = given is None
    is_wrong = is_wrong or not all(_is_number(own) for own in (low, high) if own is not None)
    limits = Range(
        -math.inf if low is None or is_wrong else float(low),
        math.inf if high is None or is_wrong else float(high),
    )
    if is_wrong or not limits.low <= limits.high:
        raise UserError(
            f"{column} holds numbers, found {column}={_shown(str(given))}; give a number, or a"
            " range from the lower to the higher one, such as 2020..2024 or 2020.."
        )
    return limits


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def near_names(name: str, known: Collection[str], what: str) -> str:
    """Name the nearest of some names, or the first."""
    if not known:
        return "; index the folder with --metadata FILE.csv first" if what == "columns" else ""
    folded = {own.casefold(): own for own in known}
    near = get_close_matches(name.casefold(), folded, n=NAMES_SHOWN, cutoff=0.6)
    if near:
        return f"; did you mean {' or '.join(_shown(folded[own]) for own in near)}?"
    first = sorted(known)[: 3 * NAMES_SHOWN]
    more = ", ..." if len(known) > len(first) else ""
    return f"; its {what}: {', '.join(map(_shown, first))}{more}"


def _shown(text: str) -> str:
    """Cut and quote a text of a file for a message of one line."""
    text = printable(text)
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."
