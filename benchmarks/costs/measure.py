"""Measure the parts of the cost tables on this machine.

Each function returns numbers for JSON. Letters as in laws.py.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import growth, search_growth, search_load
from benchmarks.costs.tables import Inputs
from benchmarks.traffic import num_trained, sent
from retrieval.base.processes import usable_cores

PROCESSES = (2, 4)
MINUTES = {"clap": (1, 3, 6), "tap": (1, 2, 4)}  # of recordings
GROWTH = (100, 1_000, 10_000, 50_000, 100_000, 200_000, 500_000, 1_000_000)
QUICK_GROWTH = (500, 1_000, 2_000, 3_000)
QUERIES, ROUNDS = 30, 2
TABLES = ("index.sqlite", "catalogue.npz")
DATABASE_ROWS = (100_000, 300_000, 600_000)  # beyond the 128 MB that its server caches by itself
SECONDS = 6.0  # of each way to ask


def training(quick: bool) -> dict[str, Any]:
    """Count the bytes of real steps of several processes; count operations at full size."""
    # a model of middle size, so that headers are a small part of its bytes; short sounds
    sizes = growth.QUICK if quick else replace(growth.FULL, window_seconds=1.0, batch_sizes=(8,))
    batch, counted = max(sizes.batch_sizes), []
    growth.set_environment()
    with tempfile.TemporaryDirectory(prefix="costs_") as temporary:
        growth.write_inputs(Path(temporary), sizes)
        overrides = (
            *growth.overrides_of(Path(temporary), sizes),
            f"train.batch_size={batch}",
            f"data.max_seconds={sizes.window_seconds}",
        )
        for number in PROCESSES[:1] if quick else PROCESSES:
            point = growth.in_processes(
                f"{number} processes", number, usable_cores(), growth.train_point, overrides, 1
            )
            counted.append(
                {
                    "processes": number,
                    "pairs": batch,
                    "counted": sum(point.counted.values()),
                    "formula": sum(point.expected.values()),
                    "wire": point.wire,
                    "ring": sum(sent(point.expected, number).values()),
                }
            )
    return {"counted": counted} | operations(quick)


def operations(quick: bool) -> dict[str, Any]:
    """Count floating-point operations of a pair's encoders, and of the scores of a clip.

    Forward and backward pass; a multiplication and an addition are two.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.training_step import make_captions, make_model

    model, config = make_model(quick)
    model.train()
    clip = torch.zeros(1, round(model.clip_seconds * model.sample_rate))
    lengths = torch.tensor([clip.shape[1]])

    def count(work: Callable[[], Any]) -> int:
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    def encoders() -> None:
        frames, _ = model.encode_audio(clip, lengths)
        (frames.sum() + model.encode_text(make_captions(1)).sum()).backward()

    def scores(num_texts: int) -> None:
        text = torch.randn(num_texts, config.dim, requires_grad=True)
        frames = torch.randn(1, model.windows.num_frames, config.dim, requires_grad=True)
        mask = torch.ones(frames.shape[:2], dtype=torch.bool)
        model.score(text, frames, mask).sum().backward()

    numbers = [Inputs.pairs * num_gpus for num_gpus in Inputs.gpus]
    return {
        "dim": config.dim,
        "parameters": num_trained(model),
        "frames": model.windows.num_frames,
        "operations_of_pair": count(encoders),
        "operations_of_scores": {str(num): count(lambda: scores(num)) for num in numbers},
    }


def indexing(folder: Path, name: str, quick: bool) -> dict[str, Any]:
    """Time AudioIndex.build on recordings of several lengths, from the loaded model on.

    The processor time of all threads, which other programs on the machine change less.
    """
    from benchmarks.search_profile import write_recordings
    from retrieval.search import AudioIndex, update
    from retrieval.search.local.storage import array_files

    checkpoint = search_load.prepared_model(folder, name, quick)
    load, loaded = update.load_model, [0.0]

    def timed_load(*names: Any) -> Any:
        model = load(*names)
        loaded[0] = time.process_time()
        return model

    points = []
    with mock.patch.object(update, "load_model", timed_load):
        for minutes in (1, 2) if quick else MINUTES[name]:
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                recordings, path = Path(temporary, "recordings"), Path(temporary, "index")
                write_recordings(recordings, minutes)
                index = AudioIndex.build(recordings, checkpoint, path)
                seconds = time.process_time() - loaded[0]
                meta, num = index.store.meta, len(index.store)
                arrays = [file.stat().st_size for file in array_files(path, meta)]
                whole = sum(file.stat().st_size for file in path.iterdir())
                points.append(
                    {
                        "minutes": minutes,
                        "excerpts": num,
                        "core_seconds": seconds,
                        "frames": meta.num_frames / num,
                        "vectors_bytes": arrays[0],
                        "frames_bytes": sum(arrays[1:]),
                        "bytes": whole,
                    }
                )
                print(f"{name}: {points[-1]}", flush=True)
    model = index.model
    return {
        "dim": meta.dim,
        "hop_seconds": meta.hop_seconds,
        "frames": model.windows.num_frames if meta.has_frames else 0,
        "points": points,
    }


def first_stage(folder: Path, dim: int, quick: bool) -> dict[str, Any]:
    """Grow an index without frames; at each size open it and search in it, in new processes.

    Times are those of the fastest process, because other programs can only slow it.
    """
    path, points = folder / f"growth-{dim}", []
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        for num in QUICK_GROWTH if quick else GROWTH:
            derived = search_growth.write_index(path, num, dim)
            runs = [search_growth.in_new_process("now", path, QUERIES) for _ in range(ROUNDS)]
            tables = sum((path / name).stat().st_size for name in TABLES if (path / name).exists())
            points.append(
                {
                    "excerpts": num,
                    "derived_seconds": derived,
                    "opened_seconds": min(run["opened"] for run in runs),
                    "search_ms": min(statistics.median(run["searches"]) for run in runs),
                    "own_bytes": max(run["own"] for run in runs),
                    "tables_bytes": tables,
                    "approximate_bytes": sum(
                        file.stat().st_size for file in path.glob("approximate-*")
                    ),
                    "vectors_bytes": sum(file.stat().st_size for file in path.glob("vectors-*")),
                }
            )
            print(f"D {dim}: {points[-1]}", flush=True)
    finally:
        shutil.rmtree(path)
    return {"points": points}


def queries(folder: Path, name: str, num: int, quick: bool) -> dict[str, Any]:
    """Measure queries per second on an index of `num` excerpts, in all ways."""
    path = search_load.prepared_index(folder, name, num, quick)
    cores = max(2, usable_cores())
    return {
        "cores": usable_cores(),
        "processes": cores,
        "ways": search_load.loads(path, 0.3 if quick else SECONDS, cores),
    }


def database(quick: bool) -> dict[str, Any]:
    """Time exact searches of PostgreSQL with pgvector, as an index in a database does them."""
    from benchmarks.search_engines import DIM, search_times

    rows = (1_000, 2_000) if quick else DATABASE_ROWS
    rounds = [
        [search_times("postgresql", num)["all rows"] for num in rows] for _ in range(ROUNDS)
    ]  # the faster one counts: other programs can only slow it
    points = [
        {"rows": num, "search_ms": min(times)}
        for num, times in zip(rows, zip(*rounds, strict=True), strict=True)
    ]
    return {"dim": DIM, "cores": usable_cores(), "points": points}
