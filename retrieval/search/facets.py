"""Metadata of all files of an index in arrays: filters, and counts of their values.

A text column is an array of codes into its values, a number column an array of floats, so that a
million files are filtered and counted in milliseconds. A column is read when it is first asked for.
Letters: F files.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.search.metadata import Kind, Range, Where

MOST_VALUES = 100  # of a column, in Facets
UNKNOWN = -1  # code of an empty field


@dataclass(frozen=True)
class Facet:
    """Values of a column of metadata.

    Attributes:
        column: Its name.
        kind: "text" or "number".
        values: The most frequent values with the number of their files; of equal counts the lower
            value first.
        num_values: Number of different values; `values` may hold fewer.
        num_unknown: Number of files without a value.
        lowest, highest: Of a column of numbers; None for texts, and if all are unknown.
    """

    column: str
    kind: Kind
    values: tuple[tuple[str | float, int], ...]
    num_values: int
    num_unknown: int
    lowest: float | None = None
    highest: float | None = None


@dataclass(frozen=True)
class Facets:
    """Folders and columns that an index can be filtered by.

    Attributes:
        folders: Every folder below the indexed one, in order of name, with the number of files in
            it and its sub-folders.
        columns: Columns of metadata, in the order of the CSV.
    """

    folders: tuple[tuple[str, int], ...]
    columns: tuple[Facet, ...]


class MetadataArrays:
    """Metadata of the F files of an index, in their order.

    Args:
        kinds: Kind of each column, in order.
        num_files: F.
        read: Returns the value of each file in a column; None where it is unknown.
    """

    def __init__(
        self,
        kinds: Mapping[str, Kind],
        num_files: int,
        read: Callable[[str], Sequence[str | float | None]],
    ):
        self.kinds, self.num_files, self._read = dict(kinds), num_files, read
        # of a text column the code of each value; None for numbers
        self._codes: dict[str, dict[str, int] | None] = {}
        # int32 (F,) codes, or float64 (F,) with NaN for unknown
        self._arrays: dict[str, np.ndarray] = {}

    def _column(self, column: str) -> tuple[np.ndarray, dict[str, int] | None]:
        if column not in self._arrays:
            values, codes = self._read(column), None
            if self.kinds[column] == "number":
                array = np.array(values, dtype=np.float64)  # None becomes NaN
            else:
                codes = {}
                numbers = (
                    UNKNOWN if value is None else codes.setdefault(value, len(codes))
                    for value in values
                )
                array = np.fromiter(numbers, np.int32, self.num_files)
            self._arrays[column], self._codes[column] = array, codes
        return self._arrays[column], self._codes[column]

    def values(self, columns: Sequence[str]) -> dict[str, Mapping[str, int] | None]:
        """Return all columns, with the texts of those in `columns`; for resolve_where."""
        return {own: self._column(own)[1] if own in columns else None for own in self.kinds}

    def select(self, where: Where) -> np.ndarray:
        """Return bool (F,), True for files that pass conditions of resolve_where."""
        good = np.ones(self.num_files, dtype=bool)
        for column, accepted in where.items():
            array, codes = self._column(column)
            one_of = np.zeros(self.num_files, dtype=bool)
            for value in accepted:
                if isinstance(value, Range):
                    one_of |= (array >= value.low) & (array <= value.high)  # False for NaN
                else:
                    one_of |= array == codes[value]
            good &= one_of
        return good

    def facets(self, most_values: int = MOST_VALUES) -> tuple[Facet, ...]:
        """Count the values of each column."""
        return tuple(self._facet(column, most_values) for column in self.kinds)

    def _facet(self, column: str, most_values: int) -> Facet:
        array, codes = self._column(column)
        if codes is None:
            known = array[~np.isnan(array)]
            values, counts = np.unique(known, return_counts=True)
            values = values.tolist()
        else:
            known, values = array[array != UNKNOWN], list(codes)
            counts = np.bincount(known, minlength=len(values))
        places = range(len(values))
        if len(values) > most_values:  # a column of names may have a million values
            least = np.partition(counts, -most_values)[-most_values]
            places = np.flatnonzero(counts >= least).tolist()
        best = heapq.nsmallest(most_values, places, key=lambda own: (-counts[own], values[own]))
        has_limits = codes is None and values
        return Facet(
            column,
            self.kinds[column],
            tuple((values[own], int(counts[own])) for own in best),
            len(values),
            self.num_files - len(known),
            values[0] if has_limits else None,
            values[-1] if has_limits else None,
        )
