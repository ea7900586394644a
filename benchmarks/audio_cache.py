"""Audio cache: random reads of clips against HDF5 float32, the ancestor's way.

    # a minute, 1 GB in the temporary folder; exits with 1 below 10x
    python -m benchmarks.audio_cache
    # small numbers, any ratio: shows that it runs and that all methods give the same samples
    python -m benchmarks.audio_cache --quick

Batches of 16 random clips of noise, 15-30 s long, all in the page cache. The ways take turns, so
that a busy machine slows all of them. A batch has the type that the model gets: int16 from the
cache (`collate_clips` of ClipSplit.read_stored), float32 from HDF5 (`pad_sequence`).

- `hdf5 vlen`: one variable-length float32 dataset, as the ancestor has it; to read a window it
  reads the whole clip.
- `hdf5 contiguous`: one dataset per clip, the fastest way in HDF5.
- `cache, float32`: every clip is converted first (ClipSplit.read).

The model's conversion of int16 is part of its step and is timed separately. `cache` is judged
against `hdf5 vlen`, by the median ratio of single batches.
"""

import argparse
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
import torch

from benchmarks.full_size import ROOT, write_corpus
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError
from retrieval.data import collate_clips, open_cache
from retrieval.data.cache import ClipSplit

LEAST_RATIO = 10.0
CACHE_RATE = 32_000  # Hz
SECONDS = (15.0, 30.0)  # shortest and longest clip
WINDOW = 10 * CACHE_RATE  # samples
BATCH_SIZE = 16  # clips


class Cost(NamedTuple):
    seconds: float
    cpu_seconds: float  # of all processes; other programs hardly change it
    peak: float  # MB, the sum of the processes' peaks


def build(root: Path, output: Path, num_proc: int) -> Cost:
    """Build the cache with the real command."""
    command = [sys.executable, "data_prep/build_clotho.py", "--splits", "evaluation"]
    folders = ["--root", str(root), "--output", str(output)]
    return watched([*command, *folders, "--num-proc", str(num_proc)])


def watched(command: list[str]) -> Cost:
    """Run a command in the repository root. Raises UserError if it fails."""
    start, cpu_start = time.perf_counter(), _cpu_seconds_of_children()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    peaks: dict[int, int] = {}  # process id -> kB
    while process.poll() is None:
        peaks.update(_peaks_of_tree(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise UserError(
            f"{command[1]} ended with exit code {process.returncode}; its message is above"
        )
    return Cost(
        time.perf_counter() - start,
        _cpu_seconds_of_children() - cpu_start,
        sum(peaks.values()) / 1024,
    )


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


Place = tuple[int, int, int | None]  # clip, first sample, the sample after the last
Way = Callable[[list[Place]], torch.Tensor]


def methods(split: ClipSplit, hdf5: h5py.File) -> dict[str, Way]:
    def floats(read: Callable[[int], np.ndarray | h5py.Dataset]) -> Way:
        def batch(places: list[Place]) -> torch.Tensor:
            return torch.nn.utils.rnn.pad_sequence(
                [torch.from_numpy(read(clip)[start:stop]) for clip, start, stop in places],
                batch_first=True,
            )

        return batch

    return {
        "cache": lambda places: collate_clips([split.read_stored(*place) for place in places])[0],
        "cache, float32": lambda places: collate_clips([split.read(*place) for place in places])[0],
        "hdf5 vlen": floats(lambda clip: hdf5["vlen"][clip]),
        "hdf5 contiguous": floats(lambda clip: hdf5[f"contiguous/{clip}"]),
    }


def time_reads(
    split: ClipSplit, hdf5: h5py.File, num_batches: int
) -> dict[str, dict[str, list[float]]]:
    """Time each batch: {"whole clips" | "10 s windows": {method: [milliseconds a clip]}}."""
    ways, rng, results = methods(split, hdf5), np.random.default_rng(1), {}
    for kind in ("whole clips", "10 s windows"):
        times: dict[str, list[float]] = {name: [] for name in [*ways, "model's conversion"]}

        def timed(
            name: str, way: Callable[[], torch.Tensor], times: dict[str, list[float]] = times
        ) -> torch.Tensor:
            begin = time.perf_counter()
            result = way()
            times[name].append(1000 / BATCH_SIZE * (time.perf_counter() - begin))
            return result

        for _ in range(num_batches):
            places: list[Place] = []
            for clip in rng.integers(len(split), size=BATCH_SIZE).tolist():
                start = int(rng.integers(split.num_samples[clip] - WINDOW))
                is_window = kind == "10 s windows"
                places.append((clip, start, start + WINDOW) if is_window else (clip, 0, None))
            for name in rng.permutation(list(ways)):
                timed(name, lambda way=ways[name]: way(places))
            stored = ways["cache"](places)
            # as DualEncoder.audio_features
            converted = timed("model's conversion", lambda: stored.to(torch.float32).div_(32768))
            assert torch.equal(converted, ways["hdf5 vlen"](places))
        results[kind] = times
    return results


def ratio(slower: list[float], faster: list[float]) -> float:
    return statistics.median(map(operator.truediv, slower, faster))


def report(results: dict[str, dict[str, list[float]]]) -> float:
    """Print medians and ratios. Returns the smallest judged ratio."""
    judged = []
    for kind, times in results.items():
        medians = (f"{name} {statistics.median(values):.3f}" for name, values in times.items())
        print(f"{kind}, ms per clip: {'; '.join(medians)}")
        for ours in ("cache", "cache, float32"):
            ratios = (
                f"{ratio(times[other], times[ours]):.1f}x faster than {other}"
                for other in ("hdf5 vlen", "hdf5 contiguous")
            )
            print(f"  {ours}: {'; '.join(ratios)}")
        judged.append(ratio(times["hdf5 vlen"], times["cache"]))
    return min(judged)


def main() -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="10 clips, 5 batches; the ratio is not judged"
    )
    parser.add_argument(
        "--num-proc", type=int, default=2, help="processes of the build (default: 2)"
    )
    arguments = parser.parse_args()
    if arguments.num_proc < 1:
        raise UserError(f"--num-proc {arguments.num_proc}: must be 1 or more")
    num_clips, num_batches = (10, 5) if arguments.quick else (100, 100)
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder) / "corpus", Path(folder) / "cache"
        write_corpus(root, {"evaluation": num_clips}, SECONDS)
        build(root, cache, arguments.num_proc)
        split = open_cache(cache, CACHE_RATE).split("evaluation")
        write_hdf5(Path(folder) / "clips.h5", split)
        with h5py.File(Path(folder) / "clips.h5") as hdf5:
            least = report(time_reads(split, hdf5, num_batches))
    if least < LEAST_RATIO and not arguments.quick:
        print(
            f"error: a read is {least:.1f}x faster than hdf5 vlen, less than {LEAST_RATIO:.0f}x; is"
            " the machine busy?",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    run_main(main)
