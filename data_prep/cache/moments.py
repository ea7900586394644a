"""Clean the times of a clip's queries against its length; count and describe the repairs."""

from collections import Counter
from collections.abc import Iterable

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

# Numbers of `clean`, with what a report says of them; cache.json holds their sums.
REPAIRS = {
    "num_empty_windows": "windows without length are left out",
    "num_late_windows": "windows that begin after the end of their clip are left out",
    "num_cut_windows": "windows that end after their clip are cut at its end",
    "num_joined_windows": "windows that overlap another one of their query are joined with it",
    "num_lost_queries": "queries without a window are left out",
}


def clean(
    queries: Iterable[MomentQuery], seconds: float
) -> tuple[tuple[MomentQuery, ...], Counter[str]]:
    """Return the queries with sorted windows that lie within the clip and do not overlap.

    Windows that only touch stay apart.

    Args:
        queries: Of one clip. Windows have finite times; readers of corpora refuse others.
        seconds: Length of the clip.

    Returns:
        The queries that have a window left; and `num_queries` and `num_windows` of these, and the
        number of each repair of REPAIRS.
    """
    counts: Counter[str] = Counter()
    kept = []
    for query in queries:
        windows: list[Window] = []
        for start, end in sorted(query.windows):
            if start >= end:
                counts["num_empty_windows"] += 1
            elif start >= seconds:
                counts["num_late_windows"] += 1
            else:
                counts["num_cut_windows"] += end > seconds
                end = min(end, seconds)
                if windows and start < windows[-1][1]:
                    counts["num_joined_windows"] += 1
                    windows[-1] = windows[-1][0], max(end, windows[-1][1])
                else:
                    windows.append((start, end))
        if windows:
            kept.append(MomentQuery(query.qid, query.query, tuple(windows)))
            counts["num_windows"] += len(windows)
        else:
            counts["num_lost_queries"] += 1
    counts["num_queries"] += len(kept)
    return tuple(kept), counts


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


def repair_notes(counts: dict[str, int]) -> list[str]:
    """Return a line for each kind of repair that occurs."""
    return [f"{counts[name]} {text}" for name, text in REPAIRS.items() if counts.get(name)]
