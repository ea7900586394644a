"""Audio cache: random reads of clips against HDF5 float32, the ancestor's way.

    # a minute, 1 GB in the temporary folder; exits with 1 below 10x
    python -m benchmarks.audio_cache
    # small numbers, any ratio: shows that it runs and that all methods give the same samples
    python -m benchmarks.audio_cache --quick

Synthetic clips of 15-30 s, 16 at random a batch, everything in the page cache; the ways take turns,
so that they meet the same machine. A batch is what the loader makes of clips, in the type that the
model is given: int16 here (`collate_clips` of ClipSplit.read_stored), float32 with HDF5
(`pad_sequence`). `hdf5 vlen` is one variable-length float32 dataset, as the ancestor keeps it (a
window means reading the whole clip); `hdf5 contiguous` is one dataset a clip, HDF5 at its fastest;
`cache, float32` converts every clip first (ClipSplit.read). The model's conversion of int16 is part
of its step and is timed on its own. `cache` is judged against `hdf5 vlen`, as the median ratio of
single batches.
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
import torch

from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError
from retrieval.data import collate_clips, open_cache
from retrieval.data.cache import ClipSplit

ROOT = Path(__file__).resolve().parent.parent
LEAST_RATIO = 10.0
SOURCE_RATE, CACHE_RATE = 44_100, 32_000  # Hz
WINDOW = 10 * CACHE_RATE  # samples
BATCH_SIZE = 16  # clips
COLUMNS = ["keywords", "sound_id", "sound_link", "start_end_samples", "manufacturer", "license"]


def write_corpus(root: Path, num_clips: int) -> None:
    """Split evaluation of `num_clips` clips of 15-30 s noise, in Clotho's layout."""
    rng = np.random.default_rng(0)
    (root / "evaluation").mkdir(parents=True)
    noise = (rng.standard_normal(31 * SOURCE_RATE) * 0.1).astype(np.float32)
    names = [f"clip {index}.wav" for index in range(num_clips)]
    for name in names:
        start = rng.integers(SOURCE_RATE)
        soundfile.write(
            root / "evaluation" / name,
            noise[start : start + rng.integers(15 * SOURCE_RATE, 30 * SOURCE_RATE)],
            SOURCE_RATE,
        )
    for kind, header in (
        ("captions", [f"caption_{number}" for number in range(1, 6)]),
        ("metadata", COLUMNS),
    ):
        with (root / f"clotho_{kind}_evaluation.csv").open(
            "w", newline="", encoding="utf-8"
        ) as file:
            csv.writer(file).writerows(
                [["file_name", *header], *([name, *header] for name in names)]
            )


class Cost(NamedTuple):
    seconds: float
    cpu_seconds: float  # of all processes: hardly moved by what else the machine does
    peak: float  # MB, the sum of the processes' peaks


def build(root: Path, output: Path, num_proc: int) -> Cost:
    """Build the cache with the real command."""
    command = [
        sys.executable,
        "data_prep/build_clotho.py",
        "--root",
        str(root),
        "--output",
        str(output),
        "--splits",
        "evaluation",
    ]
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
        raise UserError(
            f"{command[1]} ended with exit code {process.returncode}; its own message stands above"
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
    """Milliseconds a clip, batch by batch: {"whole clips" | "10 s windows": {method: [ms]}}."""
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
                places.append(
                    (clip, start, start + WINDOW) if kind == "10 s windows" else (clip, 0, None)
                )
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
    """Print medians and ratios; the smallest judged ratio."""
    judged = []
    for kind, times in results.items():
        print(
            f"{kind}, ms a clip: "
            + "; ".join(f"{name} {statistics.median(values):.3f}" for name, values in times.items())
        )
        for ours in ("cache", "cache, float32"):
            ratios = {
                other: ratio(times[other], times[ours])
                for other in ("hdf5 vlen", "hdf5 contiguous")
            }
            print(
                f"  {ours}: "
                + "; ".join(f"{value:.1f}x faster than {other}" for other, value in ratios.items())
            )
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
        write_corpus(root, num_clips)
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
