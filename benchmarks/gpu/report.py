"""Results of benchmarks.gpu: a JSON file, and a Markdown file made from it."""

from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.gpu.steps import STEPS, Step
from benchmarks.markdown import table
from retrieval.base.files import atomic_writer, write_json

RESULTS, MARKDOWN = "results.json", "results.md"
DONE = "done"


def save(folder: Path, results: dict[str, Any], steps: dict[str, Step]) -> None:
    """Write both files, each atomically. Raises UserError."""
    write_json(folder / RESULTS, results)
    with atomic_writer(folder / MARKDOWN) as file:
        file.write(markdown(results, steps))


def markdown(results: dict[str, Any], steps: dict[str, Step] = STEPS) -> str:
    """Return the tables of all steps; a step without a result has its reason."""
    place = results["place"]
    lines = ["# Measured on a GPU", ""]
    if place["rehearsal"]:
        lines = ["# Rehearsal on a CPU: figures have no meaning", ""]
    lines += [
        f"{place['card']}; {place['machine']}; PyTorch {place['torch']}; commit"
        f" `{place['commit']}`. Command: `{results['command']}`.",
        "",
        "| step | state | s |",
        "| --- | --- | --- |",
    ]
    for name in steps:
        step = results["steps"].get(name, {"state": "not run", "why": "not asked for"})
        why = f": {_cell(step['why'])}" if step.get("why") else ""
        lines.append(f"| `{name}` | {step['state']}{why} | {_cell(step.get('seconds', ''))} |")
    for name, step in steps.items():
        rows = results["steps"].get(name, {}).get("rows", [])
        if rows:
            lines += ["", f"## {step.title} (`{name}`)", "", *_tables(rows)]
    return "\n".join(lines) + "\n"


def _tables(rows: list[dict[str, Any]]) -> list[str]:
    """Return a table for each run of rows with the same keys."""
    lines: list[str] = []
    for names, group in groupby(rows, key=list):
        lines += [""] if lines else []
        lines.append(table(names, [list(map(_cell, row.values())) for row in group]))
    return lines


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:,.4g}"
    return " ".join(str(value).split()).replace("|", "\\|")
