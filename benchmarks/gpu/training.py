"""Training steps: time against the plain way, TFLOP/s, memory against the dry run's estimate.

One process measures all batches, from small to large. Memory is that of PyTorch's tensors
(torch.cuda.max_memory_allocated, reset for each batch), so that the cache of earlier batches does
not count.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial, partialmethod
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu.steps import Place
from benchmarks.training_step import (
    TOLERANCE,
    data_sheet_peak,
    differences,
    make_batch,
    make_model,
    make_run,
    plain_optimizer,
    plain_step,
    step_flops,
)
from retrieval.base.launch import make_accelerator
from retrieval.base.matrix_products import fastest_product
from retrieval.base.processes import peak_memory
from retrieval.config import Config, TrainConfig
from retrieval.models.dual_encoder import DualEncoder
from retrieval.training.loop import train_step
from retrieval.training.setup import Run, set_up_blocks
from retrieval.training.step_memory import step_memory

BATCHES = (16, 32, 64, 128)
QUICK_BATCHES = (2, 4)
NUM_WARM, NUM_TIMED = 3, 10
GIB = 2**30


def tap(place: Place) -> Iterator[dict[str, Any]]:
    yield from against_plain(place, "tap")


def baseline(place: Place) -> Iterator[dict[str, Any]]:
    yield from against_plain(place, "baseline")


def compiled(place: Place) -> Iterator[dict[str, Any]]:
    """Measure ours with train.compile=true; the first step includes the time to compile."""
    batches = QUICK_BATCHES[:1] if place.rehearse else BATCHES[::2]
    run, flops = start(place, *make_model(place.rehearse, "tap")), {}
    with suppress(torch.cuda.OutOfMemoryError):
        for size in batches:
            flops[size] = step_flops(run, make_batch(size, run.model.sample_rate))
            release(run)
    usual = torch.nn.Module.compile
    # a rehearsal traces the blocks, but has no minute for a compiler
    without_compiler = partialmethod(usual, backend="eager") if place.rehearse else usual
    with mock.patch.object(torch.nn.Module, "compile", without_compiler):
        set_up_blocks(run.model, TrainConfig(compile=True), run.accelerator.device)
    peak = matrix_peak(place)
    for size, count in flops.items():
        batch = make_batch(size, run.model.sample_rate)
        first = seconds_of(place, partial(train_step, run, batch), 0, 1)[0]
        seconds = seconds_of(place, partial(train_step, run, batch))
        yield {"batch": size, "first step s": first} | speed(seconds, count, peak, size)
        release(run)


def pretrained(place: Place) -> Iterator[dict[str, Any]]:
    """Measure CLAP in the sizes of laion/clap-htsat-unfused, all weights trained."""
    from benchmarks.search_profile import write_clap
    from retrieval.config import load_config
    from retrieval.models.build import build_model

    write_clap(place.folder / "clap", place.rehearse)
    names = ("audio_encoder.checkpoint", "text_encoder.name", "train.init_from")
    settings = [f"{name}={place.folder / 'clap'}" for name in names]
    settings += ["data.frame_cache=null"]
    settings += ["audio_encoder.frozen=false", "text_encoder.frozen=false"]
    if place.rehearse:
        settings += ["data.max_seconds=30.0"]
    config = load_config("configs/finetune_clap.yaml", settings)
    run = start(place, build_model(config), config)
    # its spectrograms are made on the CPU: large batches take long
    yield from ours_by_batch(place, run, QUICK_BATCHES[:1] if place.rehearse else BATCHES[::2])


def savings(place: Place) -> Iterator[dict[str, Any]]:
    """Measure memory and time of micro-batches and activation checkpointing."""
    run = start(place, *make_model(place.rehearse, "tap"))
    size, part = (4, 2) if place.rehearse else (64, 16)
    batch = make_batch(size, run.model.sample_rate)
    ways = [("plain", None, False), (f"micro_batch_size={part}", part, False)]
    ways += [("activation_checkpointing", None, True), ("both", part, True)]
    for name, micro, again in ways:
        if again and name == "activation_checkpointing":
            set_up_blocks(
                run.model, TrainConfig(activation_checkpointing=True), torch.device("cpu")
            )
        run.micro_batch_size = micro
        settings = {"batch_size": size, "micro_batch_size": micro}
        settings |= {"activation_checkpointing": again}
        try:
            seconds = seconds_of(place, lambda: train_step(run, batch))
        except torch.cuda.OutOfMemoryError:
            yield {"way": name, "batch": size, "state": "out of memory"}
            release(run)
            continue
        memory = memory_row(place, run, batch, settings)
        yield {"way": name, "batch": size, "s": statistics.median(seconds), **memory}


def against_plain(place: Place, name: str) -> Iterator[dict[str, Any]]:
    """Check that both ways agree, then compare their times at each batch that fits."""
    run = start(place, *make_model(place.rehearse, name))
    batches = QUICK_BATCHES if place.rehearse else BATCHES
    agree = {"difference of losses": None, "of gradients": None}
    agree = dict(zip(agree, differences(run, make_batch(batches[0], run.model.sample_rate))))
    yield agree | {"accepted": TOLERANCE}
    assert max(list(agree.values())[:2]) <= TOLERANCE, "ours and the plain way differ"
    fits = True
    for size, row in zip(batches, ours_by_batch(place, run, batches)):
        plain = None
        if fits and "s" in row:
            plain = plain_seconds(place, run, size)
            fits = plain is not None
        ratio = plain / row["s"] if plain is not None else None
        yield row | {"plain s": plain, "ratio": ratio}


def ours_by_batch(place: Place, run: Run, batches: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Measure our step at each batch, until one does not fit."""
    peak = matrix_peak(place)
    for size in batches:
        batch = make_batch(size, run.model.sample_rate)
        try:
            seconds = seconds_of(place, lambda: train_step(run, batch))
            memory = memory_row(place, run, batch, {"batch_size": size})
            count = step_flops(run, batch)
        except torch.cuda.OutOfMemoryError:
            yield {"batch": size, "state": "out of memory"}
            return
        yield {"batch": size} | speed(seconds, count, peak, size) | memory
        release(run)


def plain_seconds(place: Place, run: Run, size: int) -> float | None:
    """Return the median seconds of a plain step; None if it does not fit."""
    batch = make_batch(size, run.model.sample_rate)
    optimizer = plain_optimizer(run.model, run.config)
    result = None
    with suppress(torch.cuda.OutOfMemoryError):
        work = partial(plain_step, run, optimizer, batch)
        result = statistics.median(seconds_of(place, work, 2, NUM_TIMED // 2))
        del work
    del optimizer
    release(run)
    return result


# --- parts ---


def start(place: Place, model: DualEncoder, config: Config) -> Run:
    """Make a run in bf16."""
    accelerator = make_accelerator("bf16", cpu=not place.is_gpu, several=False)
    return make_run(model, config, accelerator)


def seconds_of(
    place: Place, work: Callable[[], Any], num_warm: int = NUM_WARM, num_timed: int = NUM_TIMED
) -> list[float]:
    """Time `work` after calls to warm up; the memory peak is reset after them.

    The clock stops when the GPU has finished.
    """
    if place.rehearse:
        num_warm, num_timed = min(num_warm, 1), min(num_timed, 2)
    seconds = []
    for number in range(num_warm + num_timed):
        if place.is_gpu:
            torch.cuda.synchronize()
            if number == num_warm:
                torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        work()
        if place.is_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return seconds[num_warm:]


def speed(seconds: list[float], flops: int, peak: float, num_pairs: int) -> dict[str, float | None]:
    """Return the median second, pairs a second, TFLOP/s and its shares of the peak."""
    median = statistics.median(seconds)
    sheet = data_sheet_peak() if torch.cuda.is_available() else None
    achieved = flops / median / 1e12
    return {
        "s": median,
        "slowest s": max(seconds),
        "pairs/s": num_pairs / median,
        "TFLOP": flops / 1e12,
        "TFLOP/s": achieved,
        "of the data sheet's peak": None if sheet is None else achieved / sheet,
        "of a measured matrix product": achieved / peak,
    }


def matrix_peak(place: Place) -> float:
    """Return the TFLOP/s of a large matrix product of random bf16 numbers, the fastest of 10."""
    return fastest_product(torch.bfloat16, 256 if place.rehearse else 8192, place.device) / 1e12


def memory_row(
    place: Place, run: Run, batch: dict[str, Any], settings: dict[str, Any]
) -> dict[str, float | None]:
    """Return the peak since seconds_of reset it, and the estimate for this batch."""
    peak = torch.cuda.max_memory_allocated() if place.is_gpu else peak_memory()
    estimate = estimated(run, batch, settings)
    return {
        "peak GiB": peak / GIB,
        "estimate GiB": estimate / GIB,
        "estimate / peak": estimate / peak if place.is_gpu else None,
        "reserved GiB": torch.cuda.max_memory_reserved() / GIB if place.is_gpu else None,
    }


def estimated(run: Run, batch: dict[str, Any], settings: dict[str, Any]) -> int:
    """Estimate bytes as --dry-run does, for the windows and tokens of this batch."""
    model, grid = run.model, run.model.windows
    num_valid = grid.num_valid_frames(batch["lengths"])
    num_windows = int((-(-num_valid // grid.frames_per_window)).sum())
    num_tokens = model.text_encoder.tokens(batch["captions"])["input_ids"].shape[1]
    config = run.config.model_copy(update={"train": run.config.train.model_copy(update=settings)})
    with torch.device("meta"):
        copy = DualEncoder(**model.architecture)
    return step_memory(
        config,
        copy,
        "bf16",
        on_gpu=run.accelerator.device.type == "cuda",
        num_windows=num_windows,
        num_tokens=num_tokens,
    ).peak


def release(run: Run) -> None:
    """Free gradients and PyTorch's cache, so that the next batch starts like the first."""
    run.optimizer.zero_grad()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
