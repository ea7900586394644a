"""Times of a cache: queries of a clip, each with the windows in which it is heard.

data_prep writes these queries, so this file imports nothing heavy: its scripts start at once.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Window = tuple[float, float]  # start and end in s from the clip's beginning

# s by which a window may end after the last sample: other programs round to milliseconds
TOLERANCE = 1e-3


@dataclass(frozen=True)
class MomentQuery:
    """A sentence about parts of a clip.

    Attributes:
        qid: Name of the query, unique in its split.
        query: The sentence.
        windows: Where it is heard, sorted and without overlap; a builder's reader may give them
            in any order.
    """

    qid: str
    query: str
    windows: tuple[Window, ...]


def read_moments(rows: list[list[dict[str, Any]] | None]) -> list[list[MomentQuery]]:
    """Return the queries of each clip from the rows of the column `moments`.

    Raises ValueError if a row has other fields, or fields of another type.
    """
    try:
        return [
            [
                MomentQuery(
                    _text(item["qid"]),
                    _text(item["query"]),
                    tuple((float(w["start"]), float(w["end"])) for w in item["windows"]),
                )
                for item in row or []
            ]
            for row in rows
        ]
    except KeyError as error:
        raise ValueError(f"column moments lacks {error}") from None
    except TypeError as error:
        raise ValueError(f"column moments has another form: {error}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{value!r} is no text")
    return value


def check_moments(moments: list[list[MomentQuery]], seconds: Iterable[float]) -> None:
    """Raise ValueError for the first query that breaks a rule of MomentQuery.

    Args:
        moments: Queries of each clip of a split.
        seconds: Length of each clip.
    """
    qids: set[str] = set()
    for queries, length in zip(moments, seconds, strict=True):
        for query in queries:
            if query.qid in qids:
                raise ValueError(f"moments: query {query.qid!r} is there twice")
            qids.add(query.qid)
            if reason := _fault(query, length):
                raise ValueError(f"moments: query {query.qid!r} {reason}")


def _fault(query: MomentQuery, seconds: float) -> str | None:
    if not query.windows:
        return "has no window"
    last = 0.0
    for start, end in query.windows:
        window = f"has the window {start:g} to {end:g} s"
        if not (math.isfinite(start) and math.isfinite(end)):
            return window
        if not 0 <= start < end:
            return f"{window}: expected 0 <= start < end"
        if end > seconds + TOLERANCE:
            return f"{window} in a clip of {seconds:g} s"
        if start < last:
            return f"{window}, which begins before the end of the one before it"
        last = end
    return None
