"""Write the tables of docs/results.md, between its markers, from docs/results.json."""

import re
import statistics
from pathlib import Path
from typing import Any

from benchmarks.compare_runs import NAMES
from benchmarks.markdown import table
from benchmarks.published import PUBLISHED
from retrieval.base.errors import UserError, counted, one_line
from retrieval.base.files import atomic_writer, check_outputs, read_json, write_json

BEGIN, END = "<!-- written by python -m benchmarks.reproduce -->", "<!-- end -->"
NEW_PAGE = f"# Measured results\n\n{BEGIN}\n{END}\n"
KEY = ("experiment", "seed", "commit", "changed")  # a later run with the same key replaces a row
Row = dict[str, Any]  # of one run, as make_row gives it


def read_rows(page: Path) -> list[Row]:
    """Read the rows of page.json; empty if the file is absent. Raises UserError."""
    path = page.with_suffix(".json")
    if not path.exists():
        return []
    try:
        rows = read_json(path)["runs"]
        if not isinstance(rows, list):
            raise TypeError(f"runs is no list, but {type(rows).__name__}")
        render(rows)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)}): put it back from a copy, or delete it"
        ) from None
    return rows


def check(page: Path) -> None:
    """Raise UserError if the page or its rows cannot be read, or not be written."""
    if not page.name or page.is_dir():
        raise UserError(f"--results {page} is a folder: give a file, such as {page / 'results.md'}")
    if page.suffix == ".json":
        raise UserError(
            f"--results {page}: the rows go to that file; give the page a name such as"
            f" {page.with_suffix('.md')}"
        )
    read_rows(page)
    _parts(page)
    check_outputs([page, page.with_suffix(".json")])


def add_row(page: Path, row: Row) -> None:
    """Add a run to the page and its rows; write only what has changed. Raises UserError."""
    before, after = _parts(page)
    old = read_rows(page)
    rows = with_row(old, row)
    if rows != old:
        write_json(page.with_suffix(".json"), {"runs": rows})
    new = f"{before}{BEGIN}\n{render(rows)}\n{END}{after}"
    if not page.exists() or page.read_text(encoding="utf-8") != new:
        with atomic_writer(page) as file:
            file.write(new)


def _parts(page: Path) -> tuple[str, str]:
    """Return the text before and after the tables. Raises UserError for a page without markers."""
    try:
        text = page.read_text(encoding="utf-8") if page.exists() else NEW_PAGE
    except UnicodeDecodeError as error:
        raise UserError(
            f"{page} is not UTF-8 (byte {error.start}): save it as UTF-8, or give another file by"
            " --results"
        ) from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(
            f"{page} has no lines {BEGIN} and {END}, between which the tables go: put them back, or"
            " give another file by --results"
        )
    return before, after


def with_row(rows: list[Row], row: Row) -> list[Row]:
    """Return `rows` with `row` instead of the one with the same KEY, or at the end."""
    keys = [[other[name] for name in KEY] for other in rows]
    key = [row[name] for name in KEY]
    if key not in keys:
        return [*rows, row]
    place = keys.index(key)
    return [*rows[:place], row, *rows[place + 1 :]]


def render(rows: list[Row]) -> str:
    """Make the Markdown between the markers."""
    if not rows:
        return "No run yet."
    numbered = list(enumerate(rows, 1))
    scores, runs = [], []
    for experiment in PUBLISHED:
        of_this = [(number, row) for number, row in numbered if row["experiment"] == experiment]
        if not of_this:
            continue
        published = PUBLISHED[experiment]
        cells = [published.scores[name] for name in NAMES]
        scores.append([experiment, "published", published.scored or "not told", *cells])
        for number, row in of_this:
            run = f"{number}{', altered' * bool(row['changed'])}"
            for weights, measured in row["scores"].items():
                cells = [_cell(*measured[name]) for name in NAMES]
                scores.append([experiment, run, weights, *cells])
        scores += _means(experiment, [row for _, row in of_this])
    for number, row in numbered:
        runs.append(
            [
                *(str(number), row["experiment"], str(row["seed"]), f"`{_short(row['commit'])}`"),
                *(row["processor"], _hours(row), _energy(row), row["day"]),
            ]
        )
    commands = [[str(number), _command(row)] for number, row in numbered]
    intro = "%, text to audio, evaluation split; [95 % interval of a bootstrap over the clips]:"
    tables = [
        table(["experiment", "run", "weights", *NAMES], scores),
        table("run,experiment,seed,commit,processor,hours,energy,day".split(","), runs),
        table(["run", "command"], commands),
    ]
    return "\n\n".join([intro, *tables])


def _means(experiment: str, rows: list[Row]) -> list[list[str]]:
    """Make rows with the mean over seeds, for each commit with several of them."""
    by_version: dict[tuple, list[Row]] = {}
    for row in rows:
        by_version.setdefault((row["commit"], *row["changed"]), []).append(row)
    lines = []
    for (commit, *changed), group in by_version.items():
        if len(group) < 2:
            continue
        name = f"mean of {len(group)} at `{_short(commit)}`{', altered' * bool(changed)}"
        for weights in group[0]["scores"]:
            cells = []
            for metric in NAMES:
                values = [100 * row["scores"][weights][metric][0] for row in group]
                cells.append(f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}")
            lines.append([experiment, name, weights, *cells])
    return lines


def _cell(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:.2f} [{100 * low:.1f}, {100 * high:.1f}]"


def _short(commit: str) -> str:
    return re.sub(r"\b([0-9a-f]{7})[0-9a-f]{33}\b", r"\1", commit)


def _hours(row: Row) -> str:
    return f"{'' if row['hours_complete'] else 'over '}{row['hours']:.2f}"


def _energy(row: Row) -> str:
    energy = row["kilowatt_hours"]
    return "not told" if energy is None else f"{energy:.2f} kWh"


def _command(row: Row) -> str:
    """Return the command as code, with a note if the run is altered."""
    clips = [text for text in row["changed"] if text.startswith("clips: ")]
    num_settings = len(row["changed"]) - len(clips)
    changed = [counted(num_settings, "changed setting")] * bool(num_settings)
    changed += ["other clips"] * bool(clips)
    note = f"; {', '.join(changed)}: results.json" if changed else ""
    return f"`{row['command']}`{note}"
