"""Formulas that continue measurements to sizes that no machine here holds.

Letters: B excerpts, D dimensions, T frames of an excerpt, P processes (GPUs), N pairs of the batch
of all processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.traffic import formula, sent
from retrieval.search.local.approximate import APPROXIMATE_FROM
from retrieval.search.local.catalogue import SAVED_FROM

FLAT_BELOW = APPROXIMATE_FROM  # excerpts, below which a query is compared with all vectors
NUM_FLAT = 3  # measurements of flat searches that their law is made from
FRAME_BYTES = {"none": 0, "float16": 2, "int8": 1}  # of a number
SCALE_BYTES = 4  # of a frame in int8
BITS = 8


@dataclass(frozen=True)
class Line:
    """y = constant + slope x."""

    constant: float
    slope: float

    def at(self, x: float) -> float:
        return self.constant + self.slope * x


def line(points: Sequence[tuple[float, float]]) -> Line:
    """Fit a line to points (x, y) with the least squares of the relative errors.

    One point gives a line through it and the origin.
    """
    x, y = np.array(points, np.float64).T
    if len(x) == 1:
        return Line(0.0, float(y[0] / x[0]))
    weights = 1 / np.abs(y)
    columns = np.stack([weights, weights * x], axis=1)
    constant, slope = np.linalg.lstsq(columns, weights * y, rcond=None)[0]
    return Line(float(constant), float(slope))


@dataclass(frozen=True)
class Curve:
    """Measured points, ascending: lines between them, the first value before, a line beyond."""

    points: tuple[tuple[float, float], ...]
    beyond: Line

    def at(self, x: float) -> float:
        if x > self.points[-1][0]:
            return self.beyond.at(x)
        return float(np.interp(x, *np.array(self.points).T))


# --- training ---


@dataclass(frozen=True)
class Step:
    """What a step of training moves.

    Attributes:
        num_pairs: N.
        tensors: Bytes of the tensors that are handed to collectives, by purpose.
        sent: Bytes that each GPU sends, by purpose.
        not_sent: Bytes that each GPU would send if frames were gathered as texts are, and the sum
            of their gradient.
    """

    num_pairs: int
    tensors: dict[str, float]
    sent: dict[str, float]
    not_sent: float


def step(num_gpus: int, pairs_of_gpu: int, dim: int, num_parameters: int, num_frames: int) -> Step:
    """Compute a step of TAP. One GPU sends nothing."""
    num_pairs = num_gpus * pairs_of_gpu
    tensors = formula(num_gpus, num_pairs, dim, num_parameters)
    if num_gpus == 1:
        tensors = dict.fromkeys(tensors, 0)
    frames = num_pairs * num_frames * dim * 4
    share = (num_gpus - 1) / num_gpus
    return Step(num_pairs, tensors, sent(tensors, num_gpus), 3 * frames * share)


def gigabits(num_bytes: float, seconds: float) -> float:
    """Return the Gbit/s that a link must carry."""
    return num_bytes * BITS / seconds / 1e9


# --- an index ---


def excerpts_of(hours: float, hop_seconds: float) -> float:
    """Return B of long recordings, in which an excerpt begins every `hop_seconds`."""
    return hours * 3600 / hop_seconds


def frames_bytes(num_frames: float, dim: int, frame_type: str) -> float:
    """Return the bytes of an excerpt's frames on disk."""
    if frame_type == "none":
        return 0.0
    scale = SCALE_BYTES if frame_type == "int8" else 0
    return num_frames * (FRAME_BYTES[frame_type] * dim + scale)


@dataclass(frozen=True)
class Index:
    """Laws of an index of one D, from its growth as measured.

    Attributes:
        dim: D.
        tables: Bytes of index.sqlite and catalogue.npz against B.
        approximate: Bytes of the file for approximate searches against B.
        derived: Seconds to write the derived files against B.
        flat, bits: Milliseconds of the first stage against B, below and from FLAT_BELOW on.
        opened: Seconds to open it against B.
        own: Bytes of memory that a process has for itself, after searches, against B.
    """

    dim: int
    tables: Curve
    approximate: Line
    derived: Line
    flat: Line
    bits: Line
    opened: Line
    own: Line

    @classmethod
    def of(cls, dim: int, points: list[dict[str, Any]]) -> "Index":
        """Fit to points of measure.growth. Each needs two on both sides of FLAT_BELOW."""

        def law(name: str, chosen: list[dict[str, Any]]) -> Line:
            return line([(point["excerpts"], point[name]) for point in chosen])

        # The vectors of still fewer excerpts stay in the processor's cache.
        few = [point for point in points if point["excerpts"] < FLAT_BELOW][-NUM_FLAT:]
        many = [point for point in points if point["excerpts"] >= FLAT_BELOW]
        # The tables are arrays too from SAVED_FROM on: another law than below.
        arrays = [point for point in points if point["excerpts"] >= SAVED_FROM] or points
        tables = tuple((point["excerpts"], point["tables_bytes"]) for point in points)
        return cls(
            dim,
            tables=Curve(tables, law("tables_bytes", arrays)),
            approximate=law("approximate_bytes", many),
            derived=law("derived_seconds", many),
            flat=law("search_ms", few),
            bits=law("search_ms", many),
            opened=law("opened_seconds", many),
            own=law("own_bytes", many),
        )

    def first_stage(self, num: float) -> float:
        """Return the milliseconds of the first stage among B excerpts, on one core."""
        return (self.flat if num < FLAT_BELOW else self.bits).at(num)

    def disk(self, num: float, num_frames: float, frame_type: str) -> dict[str, float]:
        """Return bytes on disk of B excerpts of T frames: vectors, frames, tables, approximate."""
        return {
            "vectors": 4 * self.dim * num,
            "frames": num * frames_bytes(num_frames, self.dim, frame_type),
            "tables": self.tables.at(num),
            "approximate": self.approximate.at(num) if num >= FLAT_BELOW else 0.0,
        }


# --- queries ---


def queries_per_second(
    measured: float, cores: int, index: Index, num_measured: int, num: float
) -> float:
    """Continue queries per second from one number of excerpts to another.

    Only the first stage grows: a query takes so much more of its core.

    Args:
        measured: Queries per second of `cores` processes with a core each, or of one process.
        cores: Number of queries that are answered side by side.
        index: Laws of the index.
        num_measured, num: B where it was measured, and B to compute.
    """
    seconds = cores / measured
    seconds += (index.first_stage(num) - index.first_stage(num_measured)) / 1000
    return cores / seconds
