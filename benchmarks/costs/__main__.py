"""Cost tables of docs/costs.md: training on many GPUs, indexing many hours, queries per second.

    python -m benchmarks.costs                      # print the tables
    python -m benchmarks.costs --price 0.1 --gpus 4 32 --pairs 32 --hours 500 --excerpts 5000000
    python -m benchmarks.costs --write              # into docs/costs.md
    python -m benchmarks.costs --measure [PART ...] --work DIR    # on this machine
    python -m benchmarks.costs --measure --quick    # tiny sizes, nothing is kept

Tables join measurements (measured.json beside this file: each part with its machine, commit and
command) and formulas (laws.py). Figures in *italics* are computed. --measure replaces parts of the
file; without PART all of them. DIR keeps models and indexes for the next run; all parts take some
15 minutes on two cores and at most 11 GB of disk, one part of queries 7 GB.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.costs import measure, tables
from benchmarks.costs.laws import Index
from benchmarks.costs.tables import Inputs
from benchmarks.full_size import ROOT, hardware, set_quiet_and_offline, work_folder
from benchmarks.search_load import DIMS, SIZES
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError, one_line
from retrieval.base.files import atomic_path, read_json
from retrieval.base.interrupts import watch_sigterm

MEASURED = Path(__file__).with_name("measured.json")
DOCUMENT = ROOT / "docs" / "costs.md"
BEGIN, END = "<!-- table: {} -->", "<!-- end of table -->"
LARGEST = 1e15  # of a given number; a float still counts every one

Part = Callable[[Path, bool], dict[str, Any]]
PARTS: dict[str, Part] = {
    "training": lambda _, quick: measure.training(quick),
    "indexing clap": lambda folder, quick: measure.indexing(folder, "clap", quick),
    "indexing tap": lambda folder, quick: measure.indexing(folder, "tap", quick),
    "growth 512": lambda folder, quick: measure.first_stage(folder, 512, quick),
    "growth 1024": lambda folder, quick: measure.first_stage(folder, 1024, quick),
}
for _name in DIMS:
    for _num in SIZES:
        PARTS[f"queries {_name} {_num}"] = lambda folder, quick, name=_name, num=_num: (
            measure.queries(folder, name, 300 if quick else num, quick)
        )
# Without them formulas continue from the largest measured index.
OPTIONAL = {f"queries {name} {SIZES[-1]}" for name in DIMS}
PARTS["database"] = lambda _, quick: measure.database(quick)


def all_tables(measured: dict[str, Any], inputs: Inputs) -> dict[str, str]:
    """Return the Markdown of each table by its name in docs/costs.md."""
    parts = {name: part["measured"] for name, part in measured.items()}
    growths = {name: parts[f"growth {dim}"]["points"] for name, dim in DIMS.items()}
    indexes = {name: Index.of(dim, growths[name]) for name, dim in DIMS.items()}
    loads = loads_of(parts)
    recordings = {name: parts[f"indexing {name}"] for name in DIMS}
    return {
        "training": tables.training(parts["training"], inputs),
        "indexing": tables.indexing(recordings, indexes, inputs),
        "queries": tables.queries(loads, indexes, inputs),
        "limits": tables.limits(loads, growths, indexes, recordings, parts["database"], inputs),
        "checks": tables.checks(parts, loads),
        "measurements": tables.measurements(measured),
    }


def loads_of(parts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return queries per second by model and number of excerpts, as far as they are measured."""
    return {
        name: {
            str(num): parts[f"queries {name} {num}"]
            for num in SIZES
            if f"queries {name} {num}" in parts
        }
        for name in DIMS
    }


def read_measured() -> dict[str, Any]:
    """Read the measurements. Raises UserError for a damaged file."""
    try:
        found = read_json(MEASURED)
        if not isinstance(found, dict):
            raise TypeError(f"{type(found).__name__} in place of parts by name")
    except (OSError, ValueError, TypeError) as error:
        raise unusable(error) from None
    return found


def unusable(error: Exception) -> UserError:
    return UserError(
        f"{MEASURED} cannot be used ({one_line(error)}): put it back by git checkout, or delete it"
        " and --measure again"
    )


def with_tables(text: str, made: dict[str, str]) -> str:
    """Return a document with the tables between its marks.

    Raises UserError for a mark that is missing or there twice: a copy of the table would grow old.
    """
    for name, table in made.items():
        begin = BEGIN.format(name) + "\n"
        before, _, rest = text.partition(begin)
        inner, ended, after = rest.partition(END)
        if text.count(begin) != 1 or not ended or BEGIN.partition("{")[0] in inner:
            raise UserError(
                f"{DOCUMENT}: table {name} needs the line {begin.strip()} once, and {END} after it:"
                " correct them, or put the file back by git checkout"
            )
        text = f"{before}{begin}\n{table}\n\n{ended}{after}"
    return text


def measured_parts(names: list[str], work: Path | None, quick: bool) -> dict[str, Any]:
    """Measure parts; the file of measurements has each as soon as it is measured."""
    from retrieval.base.versions import git_commit

    found = {} if quick or not MEASURED.exists() else read_measured()
    commit = git_commit()  # before the file changes
    with tempfile.TemporaryDirectory(prefix="costs_") as temporary:
        folder = work_folder(work or Path(temporary))
        for name in names:
            print(f"--- {name}", flush=True)
            before, start = busy_seconds(), time.perf_counter()
            part = PARTS[name](folder, quick)
            others = (busy_seconds() - before) / (time.perf_counter() - start)
            print(f"--- {name}: other programs kept {others:.2f} cores busy", flush=True)
            is_served = name == "database"  # its server counts as another program
            found[name] = {
                "machine": hardware(),
                "commit": commit,
                "busy_cores": None if is_served else round(max(0.0, others), 2),
                "measured": part,
            }
            if not quick:
                if MEASURED.exists():  # other parts may have been measured meanwhile
                    found = read_measured() | {name: found[name]}
                write(found)
    return found


def busy_seconds() -> float:
    """Return the processor seconds that other programs have used so far (Linux)."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    own = os.times()
    used = own.user + own.system + own.children_user + own.children_system
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - used


def write(found: dict[str, Any]) -> None:
    in_order = {name: found[name] for name in PARTS if name in found}
    with atomic_path(MEASURED) as path:
        path.write_text(json.dumps(in_order, indent=1) + "\n", encoding="utf-8")


def check_numbers(inputs: Inputs) -> None:
    """Raise UserError for a number that tables cannot have."""
    for name, given in asdict(inputs).items():
        for value in given if isinstance(given, tuple) else [given]:
            is_free = name == "price" and value == 0
            if not (is_free or 0 < value <= LARGEST):  # as with NaN
                least = "0 or more" if name == "price" else "above 0"
                raise UserError(f"--{name} {value}: must be {least}, and at most {LARGEST:g}")


def main() -> int:
    parser = OneLineParser(
        prog="python -m benchmarks.costs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, default = parser.add_argument, Inputs()
    add("--gpus", type=int, nargs="+", default=default.gpus, help="default: 1 8 64")
    add("--pairs", type=int, default=default.pairs, help="of the batch on a GPU (default: 16)")
    add("--hours", type=float, nargs="+", default=default.hours, help="of recordings")
    add("--excerpts", type=int, nargs="+", default=default.excerpts, help="of an index")
    add("--price", type=float, default=default.price, help="USD for a GB and month")
    add("--write", action="store_true", help="write the tables into docs/costs.md")
    parts = f"parts (default: all): {', '.join(PARTS)}"
    add("--measure", nargs="*", choices=PARTS, metavar="PART", help=parts)
    add("--work", type=Path, help="folder that keeps models and indexes (default: none is kept)")
    add("--quick", action="store_true", help="with --measure: tiny sizes; nothing is kept")
    arguments = parser.parse_args()
    inputs = Inputs(
        gpus=tuple(arguments.gpus),
        pairs=arguments.pairs,
        hours=tuple(arguments.hours),
        excerpts=tuple(arguments.excerpts),
        price=arguments.price,
    )
    check_numbers(inputs)
    if arguments.write and inputs != default:
        raise UserError("--write takes no other inputs: docs/costs.md has the default ones")
    if arguments.quick and arguments.measure is None:
        raise UserError("--quick is for --measure; tables take no time")
    if arguments.quick and arguments.write:
        raise UserError("--write takes no --quick: its measurements are not kept")
    if arguments.measure is not None:
        set_quiet_and_offline()
        names = arguments.measure or list(PARTS)
        found = measured_parts(names, arguments.work, arguments.quick)
        if arguments.quick:
            return 0
    else:
        found = read_measured()
    if missing := PARTS.keys() - found.keys() - OPTIONAL:
        line = f"no tables: not measured yet are {', '.join(sorted(missing))}"
        if arguments.write or arguments.measure is None:
            raise UserError(f"{line}; --measure measures them")
        print(line)
        return 0
    try:
        made = all_tables(found, inputs)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise unusable(error) from None
    if arguments.write:
        try:
            text = with_tables(DOCUMENT.read_text(encoding="utf-8"), made)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{DOCUMENT} is not UTF-8 (byte {error.start}): put it back by git checkout"
            ) from None
        with atomic_path(DOCUMENT) as path:
            path.write_text(text, encoding="utf-8")
    else:
        print("\n\n".join(f"{name}:\n\n{table}" for name, table in made.items()))
    return 0


if __name__ == "__main__":
    watch_sigterm()
    run_main(main)
