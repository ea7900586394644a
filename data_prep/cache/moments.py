"""Clean the times of a clip's queries against its length; count and describe the repairs."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from retrieval.data.moments import MomentQuery, Window

MOMENTS_TYPE = pa.list_(
    pa.struct(
        [
            ("qid", pa.string()),
            ("query", pa.string()),
            ("windows", pa.list_(pa.struct([("start", pa.float64()), ("end", pa.float64())]))),
        ]
    )
)

# Repairs by `clean`, with their text in a report.
REPAIRS = {
    "num_empty_windows": "windows without length are left out",
    "num_late_windows": "windows that begin after the end of their clip are left out",
    "num_cut_windows": "windows that end after their clip are cut at its end",
    "num_joined_windows": "windows that overlap another one of their query are joined with it",
    "num_lost_queries": "queries without a window are left out",
}


@dataclass
class Tally:
    """Numbers of queries, windows and repairs; cache.json holds them for each split."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)  # repair -> where it was made first

    def add(
        self, file_name: str, kept: Iterable[MomentQuery], repairs: list[tuple[str, str]]
    ) -> None:
        """Add the result of `clean` for a clip."""
        for query in kept:
            self.counts["num_queries"] += 1
            self.counts["num_windows"] += len(query.windows)
        for repair, qid in repairs:
            self.counts[repair] += 1
            self.first.setdefault(repair, f"query {qid!r} of {file_name!r}")

    def content(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {**self.counts, "first": self.first}

    def merge(self, content: dict[str, Any]) -> None:
        """Add the `content` of another tally."""
        self.counts.update({name: n for name, n in content.items() if name != "first"})
        self.first = content["first"] | self.first

    def summary(self) -> str:
        """Return the numbers of queries and windows in one line."""
        return f"{self.counts['num_queries']} queries, {self.counts['num_windows']} windows"

    def notes(self) -> list[str]:
        """Return a line for each kind of repair that was made."""
        return [
            f"{self.counts[name]} {text}, first of {self.first[name]}"
            for name, text in REPAIRS.items()
            if self.counts[name]
        ]


def clean(
    queries: Iterable[MomentQuery], seconds: float
) -> tuple[tuple[MomentQuery, ...], list[tuple[str, str]]]:
    """Return the queries with sorted windows that lie within the clip and do not overlap.

    Windows that only touch stay apart.

    Args:
        queries: Of one clip. Windows have finite times; readers of corpora refuse others.
        seconds: Length of the clip.

    Returns:
        The queries that have a window left; and the repairs, each a key of REPAIRS with the qid.
    """
    repairs: list[tuple[str, str]] = []
    kept = []
    for query in queries:
        windows: list[Window] = []
        for start, end in sorted(query.windows):
            if start >= end:
                repairs.append(("num_empty_windows", query.qid))
            elif start >= seconds:
                repairs.append(("num_late_windows", query.qid))
            else:
                if end > seconds:
                    repairs.append(("num_cut_windows", query.qid))
                    end = seconds
                if windows and start < windows[-1][1]:
                    repairs.append(("num_joined_windows", query.qid))
                    windows[-1] = windows[-1][0], max(end, windows[-1][1])
                else:
                    windows.append((start, end))
        if windows:
            kept.append(MomentQuery(query.qid, query.query, tuple(windows)))
        else:
            repairs.append(("num_lost_queries", query.qid))
    return tuple(kept), repairs


def as_row(queries: Iterable[MomentQuery]) -> list[dict]:
    """Return a clip's value of the column `moments`."""
    return [
        {
            "qid": query.qid,
            "query": query.query,
            "windows": [{"start": start, "end": end} for start, end in query.windows],
        }
        for query in queries
    ]
