"""Files for the DCASE challenge on language-based audio retrieval, from a score matrix.

dcase2024  (2022 to 2024) CSV `caption,file_name_1,...,file_name_10`: the ten best clips of each
           query, best first.
dcase2025  CSV of the whole matrix, a row a query: the first column is called `index` and holds
           the query, the others are called by the clips' file names and hold their scores. Larger
           is better; only the order counts. d25_t6/predict.py of that year's baseline
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
    """The column `caption` of a CSV, as in the challenge's retrieval captions, or `query`, as in
    its file of relevance. Raises UserError.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            column = next(
                (name for name in ("caption", "query") if name in (reader.fieldnames or ())), None
            )
            if column is None:
                found = ", ".join(map(str, reader.fieldnames or ()))[:200] or "none"
                raise UserError(f"--queries {path} needs a column caption or query, found: {found}")
            queries = [(row[column] or "").strip() for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--queries {path} cannot be read ({one_line(error)})") from None
    if not all(queries) or not queries:
        raise UserError(
            f"--queries {path} has "
            + (f"no text in row {queries.index('') + 1}" if queries else "no rows")
        )
    return queries


def check_format(kind: str) -> None:
    """Raises UserError for an unknown one."""
    if kind not in FORMATS:
        raise UserError(
            f"--submission {kind}: must be {' or '.join(FORMATS)}, followed by the file to write"
        )


def check_file_names(file_names: Sequence[str]) -> None:
    """Raises UserError for clips that a submission could not tell apart; before anything is
    scored.
    """
    if len(set(file_names)) != len(file_names):
        twice = next(name for name, number in Counter(file_names).items() if number > 1)
        raise UserError(
            f"--submission: two clips are called {twice!r}, and a submission knows clips by their"
            " names alone; rename one, build again"
        )


def write_submission(
    kind: str, path: Path, queries: Sequence[str], file_names: Sequence[str], scores: np.ndarray
) -> None:
    """scores (N, B) of `queries` with the clips `file_names`; equal scores keep the order of the
    clips. Raises UserError.
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
        writer.writerow(["caption", *(f"file_name_{place}" for place in range(1, NUM_BEST + 1))])
        for query, row in zip(queries, scores, strict=True):
            best = np.argsort(-row, kind="stable")[:NUM_BEST]
            writer.writerow(
                [query, *(file_names[clip] for clip in best), *[""] * (NUM_BEST - len(best))]
            )
