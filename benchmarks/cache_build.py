"""Seconds and peak memory of building the cache, against a plain build.

    # 1 minute, 3 GB on disk, 2 GB of memory; exits with 1 if slower or above a tenth of the memory
    python -m benchmarks.cache_build
    # small numbers, not judged: shows that it runs and that both hold the same samples
    python -m benchmarks.cache_build --quick

Plain (plain_build.py) decodes every clip of a split, resamples it by soxr at the same quality, and
holds it as float32; then it writes all of them to one variable-length float32 dataset of an HDF5
file, in one process. Ours is the real `data_prep/build_clotho.py`, with 1 and with 2 processes.

Memory is the sum of the peaks of all processes of a build. Plain memory grows with the split and
ours does not. So the memory for the 3,839 clips of Clotho's development split is computed from the
growth between two sizes, and judged; the measured ratio is printed. Speed is judged by the time
that each further clip takes, so that the start of Python does not count: with one process CPU time,
which other programs hardly change; with two processes elapsed time, because two cores that share
caches take more CPU time for the same work.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import soundfile

from benchmarks.audio_cache import CACHE_RATE, SECONDS, Cost, build, watched
from benchmarks.full_size import write_corpus
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser
from retrieval.data import open_cache

NUM_CLIPS_OF_CLOTHO = 3839  # development split
LEAST_SPEED_RATIO, LEAST_MEMORY_RATIO = 1.0, 10.0
OURS = {1: "ours, one process", 2: "ours, two processes"}


def _files(root: Path) -> list[Path]:
    return sorted((root / "evaluation").glob("*.wav"))


def largest_difference(root: Path, hdf5_path: Path, cache: Path) -> float:
    """Compare the samples of both builds; rounding costs half a step of 16 bit."""
    split = open_cache(cache, CACHE_RATE).split("evaluation")
    ours = {name: index for index, name in enumerate(split.file_names)}
    with h5py.File(hdf5_path) as file:
        return max(
            float(np.abs(file["audio"][i] - split.read(ours[path.name])).max())
            for i, path in enumerate(_files(root))
        )


def measure(folder: Path, num_clips: int) -> dict[str, Cost]:
    """Build one split in every way. Returns {way: cost}."""
    root, hdf5_path = folder / "corpus", folder / "clips.h5"
    write_corpus(root, {"evaluation": num_clips}, SECONDS)
    hours = sum(soundfile.info(path).duration for path in _files(root)) / 3600
    files = [str(root / "evaluation"), str(hdf5_path)]
    plain = [sys.executable, "benchmarks/plain_build.py", *files, str(CACHE_RATE)]
    results = {"plain": watched(plain)}
    for num_proc, way in OURS.items():
        results[way] = build(root, folder / f"cache{num_proc}", num_proc)
    for way, cost in results.items():
        cpu = f"{cost.cpu_seconds:6.1f} s of CPU, {cost.cpu_seconds / hours:5.1f} s a clip-hour"
        print(
            f"{num_clips} clips, {way:20s}{cost.seconds:6.1f} s, {cpu}, peak memory"
            f" {cost.peak:6.0f} MB",
            flush=True,
        )
    difference = largest_difference(root, hdf5_path, folder / "cache1")
    print(f"  largest difference of a sample {32768 * difference:.3f} of a 16-bit step")
    assert difference < 0.51 / 32768
    return results


def judge(sizes: tuple[int, int], small: dict[str, Cost], large: dict[str, Cost]) -> bool:
    """Print ratios and growth.

    Returns True if ours is as fast and takes a tenth of the memory on Clotho's development split.
    """
    clotho = {}
    for way in large:
        growth = (large[way].peak - small[way].peak) / (sizes[1] - sizes[0])  # MB per clip
        # Peaks vary by a few MB, so the smaller size may have the higher one.
        clotho[way] = large[way].peak + max(0.0, growth) * (NUM_CLIPS_OF_CLOTHO - sizes[1])
        print(
            f"{way:20s} grows by {growth:6.3f} MB per clip: {clotho[way]:7.0f} MB for"
            f" {NUM_CLIPS_OF_CLOTHO:,} clips (computed)"
        )
    good = True
    for way in list(large)[1:]:
        speed = large["plain"].seconds / large[way].seconds
        additional = (large["plain"].seconds - small["plain"].seconds) / (
            large[way].seconds - small[way].seconds
        )
        cpu = (large["plain"].cpu_seconds - small["plain"].cpu_seconds) / (
            large[way].cpu_seconds - small[way].cpu_seconds
        )
        memory, whole = large["plain"].peak / large[way].peak, clotho["plain"] / clotho[way]
        times = (
            f"{speed:.2f}x as fast, {additional:.2f}x by the time and {cpu:.2f}x by the CPU time"
            " that a clip adds"
        )
        print(
            f"{way}: {times}; 1/{memory:.1f} of the memory, 1/{whole:.1f} for"
            f" {NUM_CLIPS_OF_CLOTHO:,} clips (computed)"
        )
        judged = cpu if way == OURS[1] else additional
        good = good and judged >= LEAST_SPEED_RATIO and whole >= LEAST_MEMORY_RATIO
    return good


def main() -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="6 and 12 clips; nothing is judged")
    arguments = parser.parse_args()
    sizes = (6, 12) if arguments.quick else (100, 400)
    results = []
    for num_clips in sizes:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(Path(folder), num_clips))
    if not judge(sizes, *results) and not arguments.quick:
        print(
            "error: a build is slower than plain or takes more than a tenth of its memory; is the"
            " machine busy?",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    run_main(main)
