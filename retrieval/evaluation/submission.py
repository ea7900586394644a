"""Files for the DCASE challenge on language-based audio retrieval, from a score matrix.

dcase2024  (2022 to 2024) CSV `caption,file_name_1,...,file_name_10`: the ten best clips of each
           query, best first.
dcase2025  CSV of the whole matrix, a row per query: the column `index` holds the query, and one
           column per clip, named by the clip's file name, holds its scores. Larger is better; only
           the order counts. d25_t6/predict.py of that year's baseline
           (CPJKU/dcase2025_task6_baseline, of which we read copies) writes the same, but it
           writes a repeated query once. No file has been handed in.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retrieval.base.errors import UserError, one_line
from retrieval.base.files import atomic_writer

FORMATS = ("dcase2024", "dcase2025")
NUM_BEST = 10


def read_queries(path: Path) -> list[str]:
    """Read the queries of a CSV. Raises UserError for a file without a column of them.

    They stand in the column `caption`, as in the challenge's retrieval captions, or `query`, as in
    its file of relevance.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or ()
            column = next((name for name in ("caption", "query") if name in columns), None)
            if column is None:
                found = ", ".join(map(str, columns))[:200] or "none"
                raise UserError(f"--queries {path} needs a column caption or query, found: {found}")
            queries = [(row[column] or "").strip() for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--queries {path} cannot be read ({one_line(error)})") from None
    if not queries:
        raise UserError(f"--queries {path} has no rows")
    if not all(queries):
        raise UserError(f"--queries {path} has no text in row {queries.index('') + 1}")
    return queries


def check_file_names(file_names: Sequence[str]) -> None:
    """Raise UserError if two clips have the same name: a submission names clips by their files."""
    if len(set(file_names)) != len(file_names):
        twice = next(name for name, number in Counter(file_names).items() if number > 1)
        raise UserError(
            f"--submission: two clips are called {twice!r}, and a submission tells clips apart by"
            " their names; rename one and build the cache again"
        )


def write_submission(
    kind: str, path: Path, queries: Sequence[str], file_names: Sequence[str], scores: np.ndarray
) -> None:
    """Write a submission. Equal scores keep the order of the clips.

    Args:
        kind: One of FORMATS.
        path: File to write.
        queries: N texts.
        file_names: B clips.
        scores: (N, B).

    Raises:
        UserError: Two clips have the same name, or the disk is full or read-only.
    """
    check_file_names(file_names)
    with atomic_writer(path) as file:
        writer = csv.writer(file)
        if kind == "dcase2025":
            writer.writerow(["index", *file_names])
            writer.writerows(
                [query, *(f"{score:.9g}" for score in row)]
                for query, row in zip(queries, scores, strict=True)
            )
            return
        places = [f"file_name_{place}" for place in range(1, NUM_BEST + 1)]
        writer.writerow(["caption", *places])
        for query, row in zip(queries, scores, strict=True):
            best = [file_names[clip] for clip in np.argsort(-row, kind="stable")[:NUM_BEST]]
            writer.writerow([query, *best, *[""] * (NUM_BEST - len(best))])
