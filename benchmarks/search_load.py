"""Queries per second of an index: by one process, by several, and by the page's server.

    python -m benchmarks.search_load [--model tap|clap] [--clips 10000 1000000] [--seconds 8]
    python -m benchmarks.search_load --quick    # tiny sizes: shows that it runs

Sentences, each a new one, go through the 8 bit text encoder (`--fast-text`), the first stage, TAP
where the model has it, and ten answers. Ways:

- processes: each opens the index for itself and asks without a pause, with its share of the cores.
  Vectors and frames are mapped files, which all processes share.
- servers: processes of `python -m retrieval.app`, asked through POST /api/search by several clients
  each, as other programs ask. Clients run on the same cores.

Of three rounds the fastest counts, because other programs can only slow them.

Models have the shapes of configs/tap.yaml (D 1024, roberta-large) and laion/clap-htsat-unfused (D
512, roberta-base), and random weights. Vectors are those of search_growth.py, 10 excerpts a file.
With TAP the excerpts of 30 s share the frames of 200 of them, 307 MB, which stay in memory: a real
index of a million excerpts has 1.5 TB of frames, which a query reads from its disk.

--work names a folder that keeps models and indexes for the next run; --prepare only makes them.
"""

import argparse
import json
import math
import multiprocessing
import os
import queue
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.full_size import ROOT, hardware, set_quiet_and_offline, work_folder
from benchmarks.search_growth import memory, write_index
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError, one_line
from retrieval.base.interrupts import watch_sigterm
from retrieval.base.processes import end_with_parent, terminating_with_parent, usable_cores
from retrieval.base.progress import set_quiet, silence_transformers

MODELS = {"tap": 30.0, "clap": 10.0}  # seconds of an excerpt
DIMS = {"clap": 512, "tap": 1024}
SIZES = (10_000, 1_000_000)
CLIENTS = 4  # of a server
NUM_WARM = 3  # queries of each process, not counted
ROUNDS = 3
FRAMES_OF = 200  # excerpts
SECONDS_TO_OPEN = 600
MOST_A_CORE = 16  # processes; each has some 0.5 GB of its own


def prepared_model(folder: Path, name: str, quick: bool) -> Path:
    """Return the folder of a model with random weights, made at the first time."""
    from benchmarks.search_profile import write_model

    path = folder / f"model-{name}"
    if not (path / "config.json").is_file():
        write_model(path, name, quick)
    return path


def prepared_index(folder: Path, name: str, num_clips: int, quick: bool) -> Path:
    """Return the folder of an index, made at the first time, with its text encoder in 8 bit."""
    from retrieval.models.pretrained import load_pretrained
    from retrieval.search import AudioIndex
    from retrieval.search.local.writer import FAST_TEXT
    from retrieval.search.model_identity import ModelIdentity

    path, checkpoint = folder / f"index-{name}-{num_clips}", prepared_model(folder, name, quick)
    if not (path / FAST_TEXT).is_dir():
        model, frames = load_pretrained(checkpoint), None
        if model.pooling.keeps_frames:
            num_frames = model.windows.num_frames
            rng = np.random.default_rng(0)
            frames = [
                rng.standard_normal((num_frames, model.dim), dtype=np.float32).astype(np.float16)
                for _ in range(min(FRAMES_OF, num_clips))
            ]
        identity = ModelIdentity.of(checkpoint.resolve())
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        write_index(path, num_clips, model.dim, identity, MODELS[name], frames)
        other = next(folder.glob(f"index-{name}-*/{FAST_TEXT}"), None)
        if other is not None:
            shutil.copytree(other, path / FAST_TEXT)
        AudioIndex.open(path, fast_text=True)  # makes it at the first time
    return path


def check_disk(folder: Path, name: str, sizes: Iterable[int]) -> None:
    """Raise UserError if the vectors of indexes that are not there yet do not fit on the disk."""
    new = [num for num in sizes if not (folder / f"index-{name}-{num}").is_dir()]
    needed = 4e-9 * DIMS[name] * sum(new)
    free = shutil.disk_usage(folder).free / 1e9
    if free < needed:
        raise UserError(
            f"--clips {' '.join(map(str, new))}: vectors of {needed:,.1f} GB, and {folder} has"
            f" {free:.1f} GB free; take fewer, or another --work folder"
        )


def sentences() -> Iterator[str]:
    """Yield sentences without end, of the length that captions have."""
    from benchmarks.full_size import CAPTION_WORDS, WORDS

    rng = np.random.default_rng(os.getpid())
    while True:
        yield " ".join(rng.choice(WORDS, rng.integers(*CAPTION_WORDS)))


def asking(
    ask: Callable[[str], Any], begin: Callable[[], Any], seconds: float
) -> list[dict[str, Any]]:
    """Ask for ROUNDS rounds; return the seconds of each answer and of each round.

    `begin` blocks until all who ask side by side are ready for the round.
    """
    words, rounds = sentences(), []
    for _ in range(NUM_WARM):
        ask(next(words))
    for _ in range(ROUNDS):
        begin()
        start, took = time.perf_counter(), []
        while not took or time.perf_counter() - start < seconds / ROUNDS:
            asked = time.perf_counter()
            ask(next(words))
            took.append(time.perf_counter() - asked)
        rounds.append({"took": took, "in_all": time.perf_counter() - start})
    return rounds


def process(
    path: Path, seconds: float, begin: Any, results: Any, fast_text: bool, threads: int
) -> None:
    """Open an index and ask; runs in a process of its own."""
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets Ctrl-C too, and ends this
        end_with_parent()
    import torch

    from retrieval.search import AudioIndex

    torch.set_num_threads(threads)
    silence_transformers()
    set_quiet(True)
    index = AudioIndex.open(path, fast_text=fast_text)
    rounds = asking(index.search, begin.wait, seconds)
    of = memory()
    # processes share mapped files
    results.put({"rounds": rounds, "own": of["own"], "mapped": of["resident"] - of["own"]})


def by_processes(path: Path, num: int, seconds: float, fast_text: bool = True) -> dict[str, Any]:
    """Ask by `num` processes side by side."""
    threads = max(1, usable_cores() // num)
    context = multiprocessing.get_context("spawn")
    begin, results = context.Barrier(num), context.Queue()
    arguments = (path, seconds, begin, results, fast_text, threads)
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)  # FAISS reads it when it is imported
    running = [context.Process(target=process, args=arguments) for _ in range(num)]
    try:
        for one in running:
            one.start()
        found = [answer_of(results, running, SECONDS_TO_OPEN + seconds) for _ in running]
        for one in running:
            one.join(5)
    finally:
        for one in running:
            if one.pid is not None:  # it was started
                one.kill()
                one.join()
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
    largest = {name: max(one[name] for one in found) for name in ("own", "mapped")}
    return best_round([one["rounds"] for one in found]) | largest


def answer_of(results: Any, running: list[Any], seconds: float) -> Any:
    """Wait for one answer. Raises UserError if a process failed: the others wait for it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        failed = [one.exitcode for one in running if one.exitcode]
        try:
            return results.get(timeout=0.5)
        except queue.Empty:
            if failed:
                raise UserError(
                    f"a process ended with exit code {failed[0]}; its message is above, or else the"
                    " memory ran out: fewer --processes need less"
                ) from None
    raise UserError(f"no answer in {seconds:.0f} s: take fewer --processes, or more --seconds")


@contextmanager
def served(path: Path, threads: int) -> Iterator[str]:
    """Start the page's server; yield its address."""
    command = [sys.executable, "-m", "retrieval.app", "--index", str(path), "--fast-text"]
    command += ["--port", "0", "--no-password"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=terminating_with_parent(),
    ) as server:
        try:
            line = next((line for line in server.stdout if line.startswith("search page: ")), None)
            if line is None:
                raise UserError("the page's server did not start; its message is above")
            yield line.split()[2]
        finally:
            server.kill()


def by_servers(path: Path, num: int, num_clients: int, seconds: float) -> dict[str, Any]:
    """Ask `num` servers by `num_clients` clients each."""
    threads = max(1, usable_cores() // num)
    with ExitStack() as stack:
        addresses = [stack.enter_context(served(path, threads)) for _ in range(num)]
        begin, found = threading.Barrier(num * num_clients), []
        faults: list[Exception] = []

        def client(address: str) -> None:
            def ask(sentence: str) -> Any:
                request = urllib.request.Request(
                    f"{address}/api/search",
                    json.dumps({"query": sentence}).encode(),
                    {"Content-Type": "application/json"},
                )
                with urllib.request.urlopen(request, timeout=SECONDS_TO_OPEN) as answer:
                    return json.load(answer)

            try:
                found.append(asking(ask, begin.wait, seconds))
            except (OSError, ValueError, HTTPException, threading.BrokenBarrierError) as error:
                faults.append(error)
                begin.abort()  # the others would wait for this one

        clients = [
            threading.Thread(target=client, args=(address,))
            for address in addresses
            for _ in range(num_clients)
        ]
        for one in clients:
            one.start()
        for one in clients:
            one.join()
    if faults:
        raise UserError(
            f"a server did not answer ({one_line(faults[0])}); if the memory ran out, take fewer"
            " --processes"
        )
    return best_round(found)


def best_round(found: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the fastest of the rounds of all that asked: other programs can only slow them."""
    return max(map(summed, map(list, zip(*found))), key=lambda one: one["per_second"])


def summed(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return queries per second of all, and the median and the 95th percentile of an answer, ms."""
    took = sorted(1000 * second for one in found for second in one["took"])
    return {
        "per_second": sum(len(one["took"]) / one["in_all"] for one in found),
        "median_ms": statistics.median(took),
        "p95_ms": took[min(len(took) - 1, int(0.95 * len(took)))],
        "queries": len(took),
    }


def loads(path: Path, seconds: float, cores: int) -> dict[str, dict[str, Any]]:
    """Measure all ways on an index; print and return them by name."""
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "1 process": lambda: by_processes(path, 1, seconds),
        f"{cores} processes": lambda: by_processes(path, cores, seconds),
        "1 server, 1 client": lambda: by_servers(path, 1, 1, seconds),
        f"1 server, {CLIENTS} clients": lambda: by_servers(path, 1, CLIENTS, seconds),
        f"{cores} servers, {CLIENTS} clients each": lambda: by_servers(
            path, cores, CLIENTS, seconds
        ),
        "1 process, PyTorch's text encoder": lambda: by_processes(path, 1, seconds, False),
    }
    found = {}
    for name, way in ways.items():
        one = found[name] = way()
        resident = (
            f"; own memory {one['own'] / 1e9:.2f} GB, mapped files {one['mapped'] / 1e9:.2f} GB"
            if "own" in one
            else ""
        )
        print(
            f"  {name}: {one['per_second']:.1f} queries/s, median {one['median_ms']:.0f} ms, 95 %"
            f" within {one['p95_ms']:.0f} ms{resident}",
            flush=True,
        )
    return found


def main() -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=MODELS, default="clap", help="default: clap")
    add("--clips", type=int, nargs="+", help="excerpts in the index (default: 10000 1000000)")
    add("--seconds", type=float, help="of each way (default: 8)")
    several = "processes, or servers, side by side (default: one a core, at least 2)"
    add("--processes", type=int, help=several)
    add("--work", type=Path, help="folder that keeps models and indexes (default: none is kept)")
    add("--prepare", action="store_true", help="only make models and indexes")
    add("--quick", action="store_true", help="tiny model, 300 excerpts, 0.3 s")
    arguments = parser.parse_args()
    sizes = arguments.clips or ((300,) if arguments.quick else SIZES)
    seconds, processes = arguments.seconds, arguments.processes
    seconds = (0.3 if arguments.quick else 8.0) if seconds is None else seconds
    processes = max(2, usable_cores()) if processes is None else processes
    for name, value in (("clips", min(sizes)), ("seconds", seconds), ("processes", processes)):
        if not 0 < value < math.inf:
            raise UserError(f"--{name} {value}: must be above 0")
    if processes > (most := MOST_A_CORE * usable_cores()):
        raise UserError(f"--processes {processes}: at most {most} here, {MOST_A_CORE} a core")
    if arguments.prepare and arguments.work is None:
        raise UserError("--prepare makes models and indexes for a later run: name a --work folder")
    set_quiet_and_offline()
    with tempfile.TemporaryDirectory(prefix="search_load_") as temporary:
        folder = work_folder(arguments.work or Path(temporary))
        check_disk(folder, arguments.model, sizes)
        paths = {
            size: prepared_index(folder, arguments.model, size, arguments.quick) for size in sizes
        }
        if arguments.prepare:
            return 0
        print(f"{arguments.model}; {hardware()}", flush=True)
        for size, path in paths.items():
            print(f"{size:,} excerpts:", flush=True)
            loads(path, seconds, processes)
    return 0


if __name__ == "__main__":
    watch_sigterm()
    run_main(main)
