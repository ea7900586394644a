"""Audio cache: random reads of clips against HDF5 float32, the ancestor's way.

    python -m benchmarks.audio_cache            # a minute, 1 GB in the temporary folder; exits with 1 below 10x
    python -m benchmarks.audio_cache --quick    # small numbers, any ratio: shows that it runs and that all methods give the same samples

Synthetic clips of 15-30 s. Reads come in random order, all methods in turn, so that they meet the same machine; everything is in the
page cache. `read` has the samples in memory as they are stored, int16, as the loader gets them (there they stay where they lie, here they are
copied); `array` is a float32 array (ClipSplit.read). `hdf5 vlen` is one variable-length float32 dataset, as the ancestor keeps it (a window means
reading the whole clip); `hdf5 contiguous` is one dataset a clip, HDF5 at its fastest. `row` and `hdf5 row` go on to a row of a batch of
float32, as collation does. `read` is judged against `hdf5 vlen`, as the median ratio of single reads.
"""

import argparse
import csv
import operator
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import soundfile

from retrieval.data import as_float, open_cache
from retrieval.data.cache import ClipSplit
from retrieval.errors import OneLineParser, UserError, run_main

ROOT = Path(__file__).resolve().parent.parent
LEAST_RATIO = 10.0
SOURCE_RATE, CACHE_RATE = 44_100, 32_000  # Hz
WINDOW = 10 * CACHE_RATE  # samples
COLUMNS = ["keywords", "sound_id", "sound_link", "start_end_samples", "manufacturer", "license"]


def write_corpus(root: Path, num_clips: int) -> None:
    """Split evaluation of `num_clips` clips of 15-30 s noise, in Clotho's layout."""
    rng = np.random.default_rng(0)
    (root / "evaluation").mkdir(parents=True)
    noise = (rng.standard_normal(31 * SOURCE_RATE) * 0.1).astype(np.float32)
    names = [f"clip {index}.wav" for index in range(num_clips)]
    for name in names:
        start = rng.integers(SOURCE_RATE)
        soundfile.write(root / "evaluation" / name, noise[start : start + rng.integers(15 * SOURCE_RATE, 30 * SOURCE_RATE)], SOURCE_RATE)
    for kind, header in (("captions", [f"caption_{number}" for number in range(1, 6)]), ("metadata", COLUMNS)):
        with (root / f"clotho_{kind}_evaluation.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["file_name", *header], *([name, *header] for name in names)])


class Cost(NamedTuple):
    seconds: float
    cpu_seconds: float  # of all processes: hardly moved by what else the machine does
    peak: float  # MB, the sum of the processes' peaks


def build(root: Path, output: Path, num_proc: int) -> Cost:
    """Build the cache with the real command."""
    command = [sys.executable, "data_prep/build_clotho.py", "--root", str(root), "--output", str(output), "--splits", "evaluation"]
    return watched([*command, "--num-proc", str(num_proc)])


def watched(command: list[str]) -> Cost:
    """Run `command` in the repository root."""
    start, cpu_start = time.perf_counter(), _cpu_seconds_of_children()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    peaks: dict[int, int] = {}  # process id -> kB
    while process.poll() is None:
        peaks.update(_peaks_of_tree(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise UserError(f"{command[1]} ended with exit code {process.returncode}; its own message stands above")
    return Cost(time.perf_counter() - start, _cpu_seconds_of_children() - cpu_start, sum(peaks.values()) / 1024)


def _cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _peaks_of_tree(root_pid: int) -> dict[int, int]:
    parents, peaks = {}, {}
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in path.read_text().splitlines())
        except OSError:  # ended meanwhile
            continue
        if "VmHWM" in fields:
            pid = int(path.parent.name)
            parents[pid], peaks[pid] = int(fields["PPid"]), int(fields["VmHWM"].split()[0])
    return {pid: peak for pid, peak in peaks.items() if root_pid in (pid, parents[pid])}


def write_hdf5(path: Path, split: ClipSplit) -> None:
    with h5py.File(path, "w") as file:
        rows = file.create_dataset("vlen", shape=(len(split),), dtype=h5py.vlen_dtype(np.float32))
        for index in range(len(split)):
            rows[index] = split.read(index)
            file.create_dataset(f"contiguous/{index}", data=rows[index])


def time_reads(split: ClipSplit, hdf5: h5py.File, num_reads: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of every read: {"whole clip" | "10 s window": {method: [ms]}}."""
    row = np.zeros(int(split.num_samples.max()), np.float32)  # of a batch

    def into_row(samples: np.ndarray) -> np.ndarray:
        return as_float(samples, out=row[: len(samples)])

    methods: dict[str, Callable[[int, int, int | None], np.ndarray]] = {
        "read": lambda index, start, stop: split.read_stored(index, start, stop).copy(),
        "array": split.read,
        "hdf5 vlen": lambda index, start, stop: hdf5["vlen"][index][start:stop],
        "hdf5 contiguous": lambda index, start, stop: hdf5[f"contiguous/{index}"][start:stop],
        "row": lambda index, start, stop: into_row(split.read_stored(index, start, stop)),
        "hdf5 row": lambda index, start, stop: into_row(hdf5["vlen"][index][start:stop]),
    }
    rng = np.random.default_rng(1)
    results = {}
    for kind in ("whole clip", "10 s window"):
        times: dict[str, list[float]] = {name: [] for name in methods}
        for _ in range(num_reads):
            index = int(rng.integers(len(split)))
            start = int(rng.integers(split.num_samples[index] - WINDOW)) if kind == "10 s window" else 0
            stop = start + WINDOW if kind == "10 s window" else None
            for name in rng.permutation(list(methods)):
                begin = time.perf_counter()
                samples = methods[name](index, start, stop)
                times[name].append(1000 * (time.perf_counter() - begin))
                del samples
        expected = split.read(index, start, stop)
        assert all(np.array_equal(as_float(method(index, start, stop)), expected) for method in methods.values())
        results[kind] = times
    return results


def ratio(slower: list[float], faster: list[float]) -> float:
    return statistics.median(map(operator.truediv, slower, faster))


def report(results: dict[str, dict[str, list[float]]]) -> float:
    """Print medians and ratios; the smallest ratio of `hdf5 vlen` to `read`."""
    judged = []
    for kind, times in results.items():
        print(f"{kind}: " + ", ".join(f"{name} {statistics.median(values):.3f} ms" for name, values in times.items()))
        for ours in ("read", "array"):
            ratios = {other: ratio(times[other], times[ours]) for other in ("hdf5 vlen", "hdf5 contiguous")}
            print(f"  {ours}: " + ", ".join(f"{value:.1f}x faster than {other}" for other, value in ratios.items()))
        print(f"  row: {ratio(times['hdf5 row'], times['row']):.1f}x faster than hdf5 row")
        judged.append(ratio(times["hdf5 vlen"], times["read"]))
    return min(judged)


def main() -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 clips, 50 reads; the ratio is not judged")
    parser.add_argument("--num-proc", type=int, default=2, help="processes of the build (default: 2)")
    arguments = parser.parse_args()
    if arguments.num_proc < 1:
        raise UserError(f"--num-proc {arguments.num_proc}: must be 1 or more")
    num_clips, num_reads = (10, 50) if arguments.quick else (100, 1000)
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder) / "corpus", Path(folder) / "cache"
        write_corpus(root, num_clips)
        build(root, cache, arguments.num_proc)
        split = open_cache(cache, CACHE_RATE).split("evaluation")
        write_hdf5(Path(folder) / "clips.h5", split)
        with h5py.File(Path(folder) / "clips.h5") as hdf5:
            least = report(time_reads(split, hdf5, num_reads))
    if least < LEAST_RATIO and not arguments.quick:
        print(f"error: read is {least:.1f}x faster than hdf5 vlen, less than {LEAST_RATIO:.0f}x; is the machine busy?", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_main(main)
