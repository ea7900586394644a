"""Audio cache: random clip reads against HDF5 float32, and peak memory of building 100 and 400 clips.

    python benchmarks/audio_cache.py            # two minutes, 2 GB in the temporary folder
    python benchmarks/audio_cache.py --quick    # small numbers, to see that it runs

Synthetic clips of 15-30 s. Reads come in random order, PCM cache and HDF5 in turn, so that both meet the same machine; both are in the
page cache. `slice` is the zero-copy view of the memory map (int16), `read` the float32 array that training gets. HDF5 holds one float32
dataset a clip, without chunks or compression: its fastest form. Memory is the sum over all processes of a build of each one's peak.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # behind the installed packages: the root holds a script named evaluate.py

from retrieval.data import open_cache  # noqa: E402
from retrieval.data.cache import ClipSplit  # noqa: E402

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


def build(root: Path, num_proc: int) -> tuple[float, float]:
    """Build the cache with the real command; seconds and the sum of the processes' peak memory in MB."""
    command = [sys.executable, str(ROOT / "data_prep" / "build_clotho.py"), "--root", str(root), "--splits", "evaluation"]
    start = time.perf_counter()
    process = subprocess.Popen([*command, "--num-proc", str(num_proc)], stdout=subprocess.DEVNULL)
    peaks: dict[int, int] = {}  # process id -> kB
    while process.poll() is None:
        peaks.update(_peaks_of_tree(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"the build failed with exit code {process.returncode}")
    return time.perf_counter() - start, sum(peaks.values()) / 1024


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
        for index in range(len(split)):
            file.create_dataset(str(index), data=split.read(index))


def time_reads(split: ClipSplit, hdf5: h5py.File, num_reads: int) -> dict[str, dict[str, float]]:
    """Median milliseconds: {"whole clip" | "10 s window": {method: ms}}."""
    audio = split._audio  # the memory-mapped column itself

    def view(index: int, start: int, stop: int | None) -> np.ndarray:
        return np.frombuffer(audio[index].as_buffer(), dtype="<i2")[start:stop]

    methods: dict[str, Callable[[int, int, int | None], np.ndarray]] = {
        "slice": view,
        "read": split.read,
        "hdf5": lambda index, start, stop: hdf5[str(index)][start:stop],
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
        assert np.array_equal(split.read(index, start, stop), hdf5[str(index)][start:stop])
        results[kind] = {name: statistics.median(values) for name, values in times.items()}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 and 20 clips, 50 reads")
    parser.add_argument("--num-proc", type=int, default=2, help="processes of a build (default: 2)")
    arguments = parser.parse_args()
    sizes, num_reads = ((10, 20), 50) if arguments.quick else ((100, 400), 2000)
    with tempfile.TemporaryDirectory() as folder:
        peaks = []
        for num_clips in sizes:
            root = Path(folder) / str(num_clips)
            write_corpus(root, num_clips)
            seconds, peak = build(root, arguments.num_proc)
            peaks.append(peak)
            print(f"build of {num_clips} clips, {arguments.num_proc} processes: {seconds:.1f} s, peak memory {peak:.0f} MB", flush=True)
        print(f"peak memory, {sizes[1]} clips / {sizes[0]} clips: {peaks[1] / peaks[0]:.3f} (expected: within 10 %)")
        split = open_cache(Path(folder) / str(sizes[0]) / "cache", CACHE_RATE).split("evaluation")
        write_hdf5(Path(folder) / "clips.h5", split)
        with h5py.File(Path(folder) / "clips.h5") as hdf5:
            for kind, times in time_reads(split, hdf5, num_reads).items():
                medians = ", ".join(f"{name} {times[name]:.3f} ms" for name in times)
                print(f"{kind}: {medians}; hdf5/slice {times['hdf5'] / times['slice']:.0f}x, hdf5/read {times['hdf5'] / times['read']:.1f}x")


if __name__ == "__main__":
    main()
