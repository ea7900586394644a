"""Growth of a training step and of scoring: seconds, peak memory, bytes over the network.

    # a model of middle size on a CPU: some minutes, 3 GiB
    python -m benchmarks.growth [--output docs/growth.png]
    # tiny sizes, the plot goes to a temporary folder
    python -m benchmarks.growth --quick

A step is retrieval.training.train_step with TAP, by batch size, by frames of a clip, and with one
process or two (gloo) that share a batch and a number of threads. Scoring is similarity_matrix of C
clips with 5 C captions, with TAP and with mean pooling; encoder outputs are cached as in a run with
data.frame_cache, because encoding takes C times as long as one clip. Every point has a process of
its own (or two), so that its largest resident set counts for this point only. Bars in the plot
reach from the fastest to the slowest.

Bytes are counted in a real step of two processes, whose calls of collectives are replaced by
counting ones; exits with 1 if they differ from the formula in benchmarks/traffic.py. A gather
counts with the size of its result, a sum with the size of its tensor. The bytes that a process
sends are read from the loopback interface, which other programs should not use meanwhile.
benchmarks/costs computes from the formula what more GPUs would send.

Letters: C clips.
"""

import argparse
import contextlib
import functools
import os
import socket
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.full_size import ROOT, hardware, run_script, write_corpus
from benchmarks.pictures import check_picture
from benchmarks.timing import alternate
from benchmarks.traffic import (
    average_in_python,
    count_bytes,
    formula,
    loopback_bytes,
    num_trained,
    report_bytes,
)
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError, one_line
from retrieval.base.processes import peak_memory, usable_cores

NUM_CLIPS = 20  # in the corpus; scoring repeats them
WIRE_STEPS = 3  # whose bytes on the network are read


@dataclass(frozen=True)
class Sizes:
    """Sizes that --quick changes."""

    window_seconds: float
    batch_sizes: tuple[int, ...]  # of one process and of two, with one window per clip
    windows: tuple[int, ...]  # of a clip, in batches of `batch_sizes[0]`
    copies: tuple[int, ...]  # of the corpus, when it is scored
    # of all points, so that a busy minute of the machine does not slow one point only
    rounds: int
    repeats: int  # in a round
    text: tuple[str, ...]
    model: tuple[str, ...]


FULL = Sizes(
    window_seconds=10.0,
    batch_sizes=(4, 8, 16, 32),
    windows=(1, 2, 4, 6),
    copies=(2, 4, 8, 16),
    rounds=2,
    repeats=2,
    text=("--hidden-size", "256", "--num-layers", "4"),
    model=(
        "dim=256",
        "pooling.attention_dim=512",
        "audio_encoder.embed_dim=192",
        "audio_encoder.depth=4",
        "audio_encoder.num_heads=3",
    ),
)
QUICK = Sizes(
    window_seconds=1.0,
    batch_sizes=(4, 8),
    windows=(1, 2),
    copies=(1, 2),
    rounds=1,
    repeats=1,
    text=("--hidden-size", "16", "--num-layers", "1", "--num-heads", "2"),
    model=(
        "dim=16",
        "pooling.attention_dim=32",
        "audio_encoder.embed_dim=24",
        "audio_encoder.depth=1",
        "audio_encoder.num_heads=2",
    ),
)


@dataclass(frozen=True)
class Point:
    seconds: list[float]  # of each repetition
    peak: float  # GiB, of the larger process
    num_frames: int = 0  # of a clip in training
    # bytes of a step by purpose; with several processes
    counted: dict[str, int] | None = None
    expected: dict[str, int] | None = None  # the same by the formula
    num_buffer_bytes: int = 0  # per forward pass, if DDP broadcast buffers
    wire: float = 0.0  # bytes that a process sends in a step, headers included


Curves = dict[str, dict[int, Point]]  # curve -> x -> point


# --- in the process of a point ---


def train_point(overrides: tuple[str, ...], repeats: int) -> Point:
    """Time steps on one batch, after one to warm up."""
    from retrieval.base.exchange import any_process, world_size
    from retrieval.config import load_config
    from retrieval.training.loop import train_step
    from retrieval.training.setup import prepare

    config = load_config(ROOT / "configs" / "tap.yaml", overrides)
    with contextlib.redirect_stdout(None):
        run = prepare(config, Path(config.train.output), resume=False, overwrite=True)
    run.wrapped.train()
    run.batches.start(0)
    batch = next(iter(run.loader))
    seconds = timed(lambda: train_step(run, batch), repeats)
    peak = peak_memory() / 2**30
    point = {"seconds": seconds, "peak": peak, "num_frames": run.model.windows.num_frames}
    if world_size() > 1:
        average_in_python(run.wrapped)
        expected = formula(
            world_size(), config.train.batch_size, config.dim, num_trained(run.model)
        )
        point |= {"counted": count_bytes(run, batch), "expected": expected}

        def step() -> None:
            train_step(run, batch)
            any_process(False, run.accelerator.device)

        step()  # all processes have ended their first one
        before = loopback_bytes()
        for _ in range(WIRE_STEPS):
            step()
        point["wire"] = (loopback_bytes() - before) / WIRE_STEPS / world_size()
        run.wrapped.broadcast_buffers = True  # shows that the count would include buffers
        point["num_buffer_bytes"] = count_bytes(run, batch).get("buffers", 0)
    run.tracker.close()
    # The process group ends with the process: destroying it while gloo's thread holds a tensor of
    # the last exchange can hang.
    return Point(**point)


def score_point(overrides: tuple[str, ...], repeats: int, copies: int) -> Point:
    from retrieval.base.launch import make_accelerator
    from retrieval.config import load_config
    from retrieval.data import JoinedSplit, open_cache
    from retrieval.evaluation.score_matrix import captions_of, similarity_matrix
    from retrieval.models.build import build_model
    from retrieval.models.frame_cache import cached_captions, cached_frames
    from retrieval.training.setup import set_seed

    config = load_config(ROOT / "configs" / "tap.yaml", overrides)
    set_seed(config.seed)  # the same random weights in every process, so that one cache serves all
    model, folder, accelerator = (
        build_model(config),
        Path(config.train.output).with_name("encodings"),
        make_accelerator("no"),
    )
    clips = open_cache(config.data.cache).split("development")
    model.caption_features = cached_captions(
        model, captions_of(clips)[0], folder, accelerator, batch_size=256
    )
    split = JoinedSplit(
        [cached_frames(model, clips, folder, accelerator, batch_size=4, num_workers=0)] * copies
    )
    split.name = clips.name
    captions = captions_of(split)[0]
    seconds = timed(lambda: similarity_matrix(model, captions, split), repeats)
    return Point(seconds, peak_memory() / 2**30)


def timed(work: Callable[[], Any], repeats: int) -> list[float]:
    """Time repetitions of `work`, after one to warm up."""
    return alternate({"work": work}, repeats + 1)[0]["work"][1:]


# --- points ---


def in_processes(
    name: str, num_processes: int, threads: int, work: Callable[..., Point], *arguments: Any
) -> Point:
    """Run `work` in fresh processes, with `threads` in all; print and return its point.

    Raises UserError if a process fails.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The fork server imports once; the memory of the modules still counts for each process.
    context = get_context("forkserver")
    context.set_forkserver_preload(["retrieval.training.loop"])
    try:
        with ProcessPoolExecutor(num_processes, mp_context=context) as processes:
            place = functools.partial(
                at_place, work, num_processes, max(1, threads // num_processes), port, arguments
            )
            points = list(processes.map(place, range(num_processes)))
    except BrokenProcessPool:
        raise UserError(
            f"{name}: a process ended; its message is above, or else the memory ran out"
        ) from None
    if any(point.counted != points[0].counted for point in points):
        raise UserError(
            f"{name}: the processes counted different bytes: {[point.counted for point in points]}"
        )
    point = max(points, key=lambda point: point.peak)
    print(
        f"{name:28s} {num_processes} process(es)  {statistics.median(point.seconds):7.3f} s "
        f" {point.peak:6.3f} GiB",
        flush=True,
    )
    return point


def at_place(
    work: Callable[..., Point],
    num_processes: int,
    threads: int,
    port: int,
    arguments: tuple[Any, ...],
    rank: int,
) -> Point:
    """Run `work` as one of the processes.

    A failure ends the process at once: the other would wait for it.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if num_processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        import torch

        torch.set_num_threads(threads)
        return work(*arguments)
    except Exception as error:
        print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
        os._exit(1)


def write_inputs(folder: Path, sizes: Sizes) -> None:
    """Write a cache of noise and a text encoder."""
    longest = max(sizes.windows) * sizes.window_seconds
    write_corpus(folder / "corpus", {"development": NUM_CLIPS, "validation": 2}, (longest, longest))
    run_script(
        "build_clotho.py", "--root", folder / "corpus", "--splits", "development", "validation"
    )
    captions = folder / "corpus" / "clotho_captions_development.csv"
    run_script(
        "make_text_encoder.py",
        "--captions",
        captions,
        "--output",
        folder / "text_encoder",
        *sizes.text,
    )


def overrides_of(folder: Path, sizes: Sizes) -> tuple[str, ...]:
    """Return settings of all points, for the inputs of `write_inputs`."""
    settings = {
        "data.cache": folder / "corpus" / "cache",
        "text_encoder.name": folder / "text_encoder",
        "train.output": folder / "run",
    }
    settings |= {
        "audio_encoder.window_seconds": sizes.window_seconds,
        "audio_encoder.hop_seconds": sizes.window_seconds,
        "data.num_workers": 0,
    }
    common = (
        *(f"{name}={value}" for name, value in settings.items()),
        "text_encoder.pretrained=false",
        "audio_encoder.checkpoint=null",
    )
    return (*common, "train.mixed_precision=no", *sizes.model)


def set_environment() -> None:
    """Set what the processes of points inherit."""
    # tqdm reads it once, when it is imported
    os.environ |= {"ACCELERATE_USE_CPU": "true", "TQDM_DISABLE": "1"}


def measure(folder: Path, sizes: Sizes, threads: int) -> Curves:
    common = overrides_of(folder, sizes)

    def step(batch_size: int, num_windows: int, num_processes: int = 1) -> Point:
        overrides = (
            *common,
            f"train.batch_size={batch_size}",
            f"data.max_seconds={num_windows * sizes.window_seconds}",
        )
        name = f"step, batch {batch_size}, {num_windows} window(s)"
        return in_processes(name, num_processes, threads, train_point, overrides, sizes.repeats)

    def scoring(copies: int, pooling: str, name: str = "scoring") -> Point:
        overrides = (*common, f"data.max_seconds={sizes.window_seconds}", f"pooling.name={pooling}")
        return in_processes(
            f"{name}, {copies * NUM_CLIPS} clips, {pooling}",
            1,
            threads,
            score_point,
            overrides,
            sizes.repeats,
            copies,
        )

    def one_round() -> Curves:
        windows = [step(sizes.batch_sizes[0], count) for count in sizes.windows]
        return {
            "1 process": {size: step(size, 1) for size in sizes.batch_sizes},
            "2 processes": {size: step(size, 1, 2) for size in sizes.batch_sizes},
            "windows": {point.num_frames: point for point in windows},
            "TAP": {copies * NUM_CLIPS: scoring(copies, "tap") for copies in sizes.copies},
            "mean": {copies * NUM_CLIPS: scoring(copies, "mean") for copies in sizes.copies},
        }

    set_environment()
    scoring(1, "tap", "encoding")  # fills the cache; its memory is not counted
    return merged([one_round() for _ in range(sizes.rounds)])


def merged(rounds: list[Curves]) -> Curves:
    """Join the seconds of all rounds, and take the highest peak."""

    def point_of(points: list[Point]) -> Point:
        return replace(
            points[0],
            seconds=[value for point in points for value in point.seconds],
            peak=max(point.peak for point in points),
        )

    return {
        name: {x: point_of([curves[name][x] for curves in rounds]) for x in curve}
        for name, curve in rounds[0].items()
    }


# --- plot and table ---


def draw(curves: Curves, sizes: Sizes, threads: int, output: Path) -> None:
    """Plot seconds above, memory below."""
    from matplotlib.figure import Figure

    legends = {
        "1 process": f"1 process of {threads} thread(s)",
        "2 processes": f"2 processes of {max(1, threads // 2)}, gloo, same batch",
    }
    legends |= {"windows": f"batch {sizes.batch_sizes[0]}"}
    panels = [
        (
            f"Training step, clips of {sizes.window_seconds:g} s",
            "pairs in the batch, of all processes",
            ("1 process", "2 processes"),
        ),
        (
            "Training step, longer clips",
            f"frames of a clip, {min(curves['windows'])} in {sizes.window_seconds:g} s",
            ("windows",),
        ),
        (
            "Scoring C clips with 5 C captions",
            f"clips C, of {sizes.window_seconds:g} s, encodings cached",
            ("TAP", "mean"),
        ),
    ]
    figure = Figure(figsize=(13, 7), dpi=80, layout="constrained")
    axes = figure.subplots(2, len(panels), sharex="col")
    for column, (title, label, names) in zip(axes.T, panels, strict=True):
        for name in names:
            sizes_of, points = list(curves[name]), list(curves[name].values())
            medians = [statistics.median(point.seconds) for point in points]
            below = [median - min(point.seconds) for median, point in zip(medians, points)]
            above = [max(point.seconds) - median for median, point in zip(medians, points)]
            column[0].errorbar(
                sizes_of,
                medians,
                (below, above),
                fmt="o-",
                capsize=3,
                label=legends.get(name, name),
            )
            column[1].plot(
                sizes_of, [point.peak for point in points], "o-", label=legends.get(name, name)
            )
        column[0].set_title(title)
        column[1].set_xlabel(label)
        for axis, unit in zip(column, ("median time, s", "peak memory of a process, GiB")):
            axis.set(ylabel=unit, ylim=(0, 1.2 * axis.dataLim.y1), xlim=(0, None))
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8, loc="upper left")
    model = ", ".join(setting.replace("audio_encoder.", "ATST ") for setting in sizes.model)
    text = " ".join(sizes.text).replace("--", "")
    caption = (
        f"{hardware()}, float32, median of {sizes.rounds * sizes.repeats}, bars from the fastest to"
        f" the slowest\n{model}, RoBERTa {text}"
    )
    figure.supxlabel(caption, fontsize=9)
    figure.savefig(output)


def report_points(curves: Curves) -> None:
    for name, curve in curves.items():
        print(f"{name}:")
        for x, point in curve.items():
            seconds = (
                f"median {statistics.median(point.seconds):.3f} s, {min(point.seconds):.3f} to"
                f" {max(point.seconds):.3f} s"
            )
            print(f"    {x:5d}  {seconds}, peak {point.peak:.3f} GiB")


def main() -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "docs" / "growth.png",
        help="picture to write (default: docs/growth.png)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=usable_cores(),
        help="of all processes of a step (default: all cores)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny model, two points a curve, plot not kept"
    )
    arguments = parser.parse_args()
    if arguments.threads < 1:
        raise UserError(f"--threads {arguments.threads}: must be 1 or more")
    check_picture(arguments.output)
    sizes = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory(prefix="growth_") as name:
        folder = Path(name)
        output = folder / "growth.png" if arguments.quick else arguments.output
        write_inputs(folder, sizes)
        print(f"{hardware()}, {arguments.threads} thread(s), float32", flush=True)
        curves = measure(folder, sizes, arguments.threads)
        draw(curves, sizes, arguments.threads, output)
        report_points(curves)
        print(f"{output.name}: {output.stat().st_size / 1000:.0f} kB")
    if not report_bytes(curves["2 processes"]):
        print("error: the counted bytes differ from the formula", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_main(main)
