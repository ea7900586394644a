"""Tables of docs/costs.md from measurements and formulas. Computed cells are in italics."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.costs import laws
from benchmarks.costs.laws import Index
from benchmarks.markdown import table
from benchmarks.search_load import DIMS
from retrieval.search.index import CANDIDATES
from retrieval.search.local.approximate import NEAREST, TRIES

STEP_SECONDS = (0.1, 0.5, 1.0)
GPUS_OF_NODE = 8
GB, MB = 1e9, 1e6
WEEK = 7 * 24 * 3600.0  # s
PART_MS = 50  # first stage of one part of a divided collection
NAMES = {"clap": "CLAP", "tap": "TAP"}
FRAME_TYPES = {"clap": ("none",), "tap": ("float16", "int8")}


@dataclass(frozen=True)
class Cell:
    """A figure of a table."""

    text: str
    is_computed: bool

    def __str__(self) -> str:
        return f"*{self.text}*" if self.is_computed and self.text else self.text


def measured(text: str) -> Cell:
    return Cell(text, is_computed=False)


def computed(text: str) -> Cell:
    return Cell(text, is_computed=True)


@dataclass(frozen=True)
class Inputs:
    """Assumptions that a user can change.

    Attributes:
        gpus: Numbers of GPUs.
        pairs: Pairs of the batch on a GPU.
        hours: Hours of recordings.
        excerpts: Numbers of excerpts in an index.
        price: Of a GB for a month, in USD.
    """

    gpus: tuple[int, ...] = (1, 8, 64)
    pairs: int = 16
    hours: tuple[float, ...] = (1, 1_000, 100_000)
    excerpts: tuple[int, ...] = (10_000, 1_000_000, 100_000_000)
    price: float = 0.023


def markdown(header: Sequence[str], rows: Iterable[tuple[str, Sequence[Cell]]]) -> str:
    """Return a table; the first column of a row is text, the others are cells."""
    texts = []
    for name, cells in rows:
        if len(cells) != len(header) - 1:
            raise ValueError(f"{name}: {len(cells)} cells under {len(header) - 1} names")
        texts.append([name, *map(str, cells)])
    return table(header, texts)


def number(value: float) -> str:
    """Write a number with two or three digits that count: 0.034, 1.2, 34, 5,600."""
    if value == 0:
        return "0"
    if value >= 100:
        digits = 10 ** max(0, len(str(int(value))) - 3)
        return f"{round(value / digits) * digits:,}"
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def size(num_bytes: float) -> str:
    """Write bytes in kB, MB, GB or TB."""
    for unit, factor in (("TB", 1e12), ("GB", GB), ("MB", MB), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{number(num_bytes / factor)} {unit}"
    return f"{number(num_bytes)} B" if num_bytes else "0"


def duration(seconds: float) -> str:
    for unit, factor in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= 2 * factor or unit == "s":
            break
    if seconds < 1:
        return f"{number(1000 * seconds)} ms"
    return f"{number(seconds / factor)} {unit}"


def count(value: float) -> str:
    return f"{round(value):,}"


# --- training ---


def training(record: dict[str, Any], inputs: Inputs) -> str:
    of = {
        gpus: laws.step(gpus, inputs.pairs, record["dim"], record["parameters"], record["frames"])
        for gpus in inputs.gpus
    }

    def row(name: str, value: Any, write: Any = size) -> tuple[str, list[Cell]]:
        return name, [computed(write(value(gpus, step))) for gpus, step in of.items()]

    def for_loss(step: laws.Step) -> float:
        return sum(step.sent.values()) - step.sent["gradients of parameters"]

    def to_nodes(gpus: int, step: laws.Step) -> float:
        # a ring through all GPUs leaves each node once
        return sum(step.sent.values()) if gpus > GPUS_OF_NODE else 0

    rows = [
        row("pairs in the batch", lambda _, step: step.num_pairs, count),
        row("texts, all-gather", lambda _, step: step.tensors["texts"]),
        row("their gradient, all-reduce", lambda _, step: step.tensors["gradient of texts"]),
        row("score columns, all-gather", lambda _, step: step.tensors["score columns"]),
        row(
            "gradients of parameters, all-reduce",
            lambda _, step: step.tensors["gradients of parameters"],
        ),
        row("**a GPU sends**", lambda _, step: sum(step.sent.values())),
        row("of it for the loss", lambda _, step: for_loss(step)),
        row("a node of 8 GPUs sends to others", to_nodes),
        row("not sent: frames and their gradient", lambda _, step: step.not_sent),
    ]
    for seconds in STEP_SECONDS:
        rows.append(
            row(
                f"a step of {seconds:g} s: link of a GPU, Gbit/s",
                lambda _, step: laws.gigabits(sum(step.sent.values()), seconds),
                number,
            )
        )
        rows.append(
            row(
                f"a step of {seconds:g} s: network of a node, Gbit/s",
                lambda gpus, step: laws.gigabits(to_nodes(gpus, step), seconds),
                number,
            )
        )
    pair, scores = record["operations_of_pair"], record["operations_of_scores"]
    rows.append(
        (
            "scores of all texts, share of a GPU's operations",
            [share_of_scores(pair, scores, step.num_pairs) for step in of.values()],
        )
    )
    header = ["of a step", *(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in of)]
    return markdown(header, rows)


def share_of_scores(pair: int, scores: dict[str, int], num_pairs: int) -> Cell:
    """Return the share of TAP's scores in the operations of a clip: counted, or by a line."""
    own = scores.get(str(num_pairs))
    write = measured if own is not None else computed
    if own is None:
        own = laws.line([(int(num), value) for num, value in scores.items()]).at(num_pairs)
    return write(f"{100 * own / (own + pair):.1f} %")


# --- indexing ---


def indexing(records: dict[str, Any], indexes: dict[str, Index], inputs: Inputs) -> str:
    header = ["hours", "model, frames", "excerpts", "core time", "cores", "vectors", "frames"]
    header += ["tables, bits", "disk", "USD a month"]
    rows = []
    for hours in inputs.hours:
        for name, record in records.items():
            for frame_type in FRAME_TYPES[name]:
                rows.append(indexing_row(name, record, indexes[name], hours, frame_type, inputs))
    return markdown(header, rows)


def indexing_row(
    name: str, record: dict[str, Any], index: Index, hours: float, frame_type: str, inputs: Inputs
) -> tuple[str, list[Cell]]:
    num = laws.excerpts_of(hours, record["hop_seconds"])
    seconds = core_seconds(record, index, num)
    disk = index.disk(num, record["frames"], frame_type)
    whole = sum(disk.values())
    cells = [f"{NAMES[name]}, {frame_type}", count(num), duration(seconds)]
    cells += [count(math.ceil(seconds / WEEK))]
    cells += [size(disk["vectors"]), size(disk["frames"])]
    cells += [size(disk["tables"] + disk["approximate"]), size(whole)]
    cells += [f"{whole / GB * inputs.price:,.2f}"]
    return f"{hours:,g}", [measured(cells[0]), *map(computed, cells[1:])]


def core_seconds(record: dict[str, Any], index: Index, num: float) -> float:
    """Return the seconds of one core to index B excerpts, and to write the derived files."""
    of = laws.line([(point["excerpts"], point["core_seconds"]) for point in record["points"]])
    return of.at(num) + (index.derived.at(num) if num >= laws.FLAT_BELOW else 0.0)


# --- queries ---


def queries(records: dict[str, Any], indexes: dict[str, Index], inputs: Inputs) -> str:
    """Queries per second by way, model and number of excerpts; where not measured, computed."""

    def row(title: str, value: Any, write: Any) -> tuple[str, list[Cell]]:
        cells = []
        for name, of in records.items():
            for num in inputs.excerpts:
                is_known = str(num) in of
                base = num if is_known else nearest_base(of, num)
                cell = measured if is_known else computed
                cells.append(cell(write(value(of[str(base)], indexes[name], base, num))))
        return title, cells

    def rate(way: str) -> Any:
        return lambda record, index, base, num: computed_rate(record, way, index, base, num)

    def median(record: dict[str, Any], index: Index, base: int, num: int) -> float:
        more = index.first_stage(num) - index.first_stage(base)
        return (record["ways"]["1 process"]["median_ms"] + more) / 1000

    def own(record: dict[str, Any], index: Index, base: int, num: int) -> float:
        return record["ways"]["1 process"]["own"] + index.own.at(num) - index.own.at(base)

    every = [way for of in records.values() for record in of.values() for way in record["ways"]]
    rows = [row(f"{way}, queries/s", rate(way), number) for way in dict.fromkeys(every)]
    rows.append(row("1 process, median time of a query", median, duration))
    rows.append(row("own memory of a process, with its model", own, size))
    return markdown(["", *columns(records, inputs)], rows)


def columns(names: Iterable[str], inputs: Inputs) -> list[str]:
    return [f"{NAMES[name]}, {num:,}" for name in names for num in inputs.excerpts]


def nearest_base(of: dict[str, Any], num: int) -> int:
    """Return the largest measured number of excerpts that is below `num`, or the smallest one."""
    sizes = sorted(map(int, of))
    return max((own for own in sizes if own < num), default=sizes[0])


def computed_rate(record: dict[str, Any], way: str, index: Index, base: int, num: int) -> float:
    own = record["ways"][way]["per_second"]
    return laws.queries_per_second(own, side_by_side(way, record), index, base, num)


def side_by_side(way: str, record: dict[str, Any]) -> int:
    """Return the number of queries that a way answers at once: one a process or server."""
    return min(int(way.split()[0]), record["cores"])


# --- what an index needs ---


def limits(
    loads: dict[str, Any],
    growths: dict[str, list[dict[str, Any]]],
    indexes: dict[str, Index],
    recordings: dict[str, Any],
    database: dict[str, Any],
    inputs: Inputs,
) -> str:
    """Memory, time and reads of an index by model and number of excerpts."""
    header = ["", *columns(loads, inputs)]

    def row(title: str, value: Any, write: Any, key: str | None = None) -> tuple[str, list[Cell]]:
        cells = []
        for name in loads:
            points = {point["excerpts"]: point for point in growths[name]}
            for num in inputs.excerpts:
                if key is not None and num in points:
                    cells.append(measured(write(points[num][key])))
                else:
                    cells.append(computed(write(value(name, num))))
        return title, cells

    def in_database(name: str, num: int) -> float:
        """Return seconds of one core, in proportion to the bytes of the vectors."""
        of = laws.line([(point["rows"], point["search_ms"]) for point in database["points"]])
        more = indexes[name].dim / database["dim"]
        return of.slope * num * more * database["cores"] / 1000

    def single_reads(name: str, num: int) -> float:
        return TRIES[0][1] * NEAREST if num >= laws.FLAT_BELOW else 0

    def frames_read(name: str, num: int) -> float:
        frames, dim = recordings[name]["frames"], indexes[name].dim
        return min(CANDIDATES, num) * laws.frames_bytes(frames, dim, "float16")

    def parts(name: str, num: int) -> float:
        of = indexes[name].bits
        return max(1, math.ceil(num / ((PART_MS - of.constant) / of.slope)))

    rows = [
        row(
            "own memory of a process, without the model",
            lambda name, num: indexes[name].own.at(num),
            size,
            "own_bytes",
        ),
        row(
            "opened in", lambda name, num: indexes[name].opened.at(num), duration, "opened_seconds"
        ),
        row(
            "first stage of a query, one core, ms",
            lambda name, num: indexes[name].first_stage(num),
            number,
            "search_ms",
        ),
        row("vectors that a query reads one by one", single_reads, count),
        row("frames that a query reads, float16", frames_read, size),
        row(f"parts, each searched by one core in {PART_MS} ms", parts, count),
        row("PostgreSQL: cores for an answer in 1 s", in_database, number),
    ]
    return markdown(header, rows)


# --- laws against measurements ---


@dataclass(frozen=True)
class Check:
    """A formula, and a measurement that it was not fitted to.

    Attributes:
        name: What was measured.
        law: How it was computed.
        found, expected: The measurement, and the computed value.
        write: Writes both.
    """

    name: str
    law: str
    found: float
    expected: float
    write: Callable[[float], str]

    @property
    def error(self) -> float:
        return self.expected / self.found - 1


def all_checks(parts: dict[str, Any], loads: dict[str, Any]) -> list[Check]:
    found = []
    for own in parts["training"]["counted"]:
        who = f"step of {own['processes']} processes"
        found += [
            Check(f"{who}: bytes to collectives", "formula", own["counted"], own["formula"], size),
            Check(f"{who}: bytes that one sends", "ring", own["wire"], own["ring"], size),
        ]
    for name, dim in DIMS.items():
        record, growth = parts[f"indexing {name}"], parts[f"growth {dim}"]["points"]
        *others, last = record["points"]
        minutes = f"{NAMES[name]}, {last['minutes']} min of recordings"
        law = laws.line([(point["excerpts"], point["core_seconds"]) for point in others])
        shorter = f"line through {' and '.join(str(point['minutes']) for point in others)} min"
        found.append(
            Check(
                f"{minutes}: core time to index",
                shorter,
                last["core_seconds"],
                law.at(last["excerpts"]),
                duration,
            )
        )
        index = Index.of(dim, growth)
        disk = index.disk(last["excerpts"], last["frames"], FRAME_TYPES[name][0])
        found.append(Check(f"{minutes}: disk", "formula", last["bytes"], sum(disk.values()), size))
        found += growth_checks(dim, growth)
        found += load_checks(NAMES[name], index, loads[name])
    *others, last = parts["database"]["points"]
    law = laws.line([(point["rows"], point["search_ms"]) for point in others])
    name = f"PostgreSQL, {last['rows']:,} rows: a search"
    smaller = f"line through {' and '.join(format(point['rows'], ',') for point in others)}"
    expected = law.at(last["rows"]) / 1000
    found.append(Check(name, smaller, last["search_ms"] / 1000, expected, duration))
    return found


def growth_checks(dim: int, points: list[dict[str, Any]]) -> list[Check]:
    """Compare the largest index with the laws of the smaller ones."""
    *others, last = points
    index, num = Index.of(dim, others), last["excerpts"]
    where = f"D {dim}, {num:,} excerpts"
    smaller = f"line through fewer, up to {others[-1]['excerpts']:,}"

    def check(
        name: str, key: str, law: laws.Line | laws.Curve, write: Callable[[float], str]
    ) -> Check:
        return Check(f"{where}: {name}", smaller, last[key], law.at(num), write)

    *few, largest = [point for point in points if point["excerpts"] < laws.FLAT_BELOW]
    few = few[-laws.NUM_FLAT + 1 :]
    flat = laws.line([(point["excerpts"], point["search_ms"]) for point in few])
    return [
        Check(
            f"D {dim}, {largest['excerpts']:,} excerpts: first stage, ms",
            f"line through fewer, up to {few[-1]['excerpts']:,}",
            largest["search_ms"],
            flat.at(largest["excerpts"]),
            number,
        ),
        check("first stage, ms", "search_ms", index.bits, number),
        check("opened in", "opened_seconds", index.opened, duration),
        check("own memory", "own_bytes", index.own, size),
        check("derived files, time", "derived_seconds", index.derived, duration),
        check("their bytes", "approximate_bytes", index.approximate, size),
        check("tables", "tables_bytes", index.tables, size),
    ]


def load_checks(name: str, index: Index, of: dict[str, Any]) -> list[Check]:
    """Compute queries per second of the largest index from those of the smallest."""
    base, num = min(map(int, of)), max(map(int, of))
    if base == num:
        return []
    checks = []
    for way, own in of[str(num)]["ways"].items():
        expected = computed_rate(of[str(base)], way, index, base, num)
        title = f"{name}, {num:,} excerpts: queries/s of {way}"
        checks.append(Check(title, f"from {base:,}", own["per_second"], expected, number))
    return checks


def checks(parts: dict[str, Any], loads: dict[str, Any]) -> str:
    rows = [
        (
            check.name,
            [
                measured(check.write(check.found)),
                computed(check.write(check.expected)),
                computed(f"{100 * check.error:+.1f} %"),
                measured(check.law),
            ],
        )
        for check in all_checks(parts, loads)
    ]
    return markdown(["what", "measured", "computed", "difference", "by"], rows)


def measurements(of: dict[str, Any]) -> str:
    rows = [
        (
            f'`--measure "{name}"`',
            [
                measured(part["machine"]),
                measured(f"`{part['commit'][:7]}`"),
                measured("" if part["busy_cores"] is None else f"{part['busy_cores']:.1f}"),
            ],
        )
        for name, part in of.items()
    ]
    return markdown(["part", "machine", "commit", "cores busy with other programs"], rows)
