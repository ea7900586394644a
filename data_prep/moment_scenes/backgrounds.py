"""Backgrounds of scenes: recordings of an Arrow cache, of a folder, or noise that is made here.

A folder becomes a cache first, with every recording in one split: scenes of different splits never
share a background. Cuts are then slices of that cache, however long its recordings are.
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from data_prep.cache.arrow_cache import CacheSettings, build_cache
from data_prep.cache.shards import Clip
from data_prep.cache.split_plan import SplitPlan, print_report
from data_prep.corpora.audio_files import audio_of_corpus, passed_over_note, readable_name
from data_prep.moment_scenes.foregrounds import open_split
from retrieval.base.errors import UserError
from retrieval.data.cache import open_cache
from retrieval.data.schema import PCM

MIN_SECONDS = 5.0  # a shorter recording would repeat itself audibly in every scene
NOISES = ("pink", "white")
NOISE_RMS = 0.05  # a scene is scaled to its peak afterwards
LOWEST_PINK = 20.0  # Hz: below that, 1/f power would make the level of short windows random
MAX_LOST = 0.01  # of the recordings of a folder


@dataclass(frozen=True)
class Cut:
    """A piece of a recording: its number in the split, and its first sample."""

    recording: int
    start: int


def cache_of_folder(
    folder: Path,
    splits: dict[str, int],
    seed: int,
    output: Path,
    sample_rate: int,
    num_proc: int,
    overwrite: bool,
) -> None:
    """Build a cache of the recordings below a folder, each in one split.

    Args:
        folder: The folder.
        splits: Number of scenes of each split: recordings are dealt out in this proportion.
        seed: Decides which recording goes where; the order of the files does not matter.
        output: Folder of the cache. It is used again if the recordings are the same.
        sample_rate: Hz.
        num_proc: Number of processes.
        overwrite: Replace a cache of other recordings.

    Raises:
        UserError: There are too few recordings, or some cannot be read.
    """
    found = audio_of_corpus(folder, "--background")
    names = {readable_name(path.relative_to(folder).as_posix()): path for path in found.paths}
    if len(names) < len(splits):
        raise UserError(
            f"--background {folder} holds {len(names)} recordings, and each of the"
            f" {len(splits)} splits needs one of its own: give more recordings, leave out a split"
            " by a 0 in --num-scenes, or use --background-noise"
        )
    plans = []
    for split, chosen in deal(sorted(names), splits, seed).items():
        clips = [Clip(f"{split}/{name}", name, str(names[name]), (), {}) for name in chosen]
        plans.append(SplitPlan(split, clips))
    plans[0].notes += passed_over_note(found)
    settings = CacheSettings("backgrounds", PCM, sample_rate)
    info = build_cache(output, settings, plans, num_proc, MAX_LOST, overwrite)
    print_report(info, plans)
    print(f"backgrounds: {output}")


def deal(names: list[str], splits: dict[str, int], seed: int) -> dict[str, list[str]]:
    """Deal names out to splits in proportion to `splits`, at least one to each.

    There are at least as many names as splits. A digest decides, so that a name does not move when
    the order of the files changes.
    """
    order = sorted(names, key=lambda name: sha256(f"{seed}\n{name}".encode()).digest())
    total, spare = sum(splits.values()), len(order) - len(splits)
    ends, weight = [], 0
    for number, share in enumerate(splits.values(), 1):
        weight += share
        ends.append(number + round(spare * weight / total))
    starts = [0, *ends[:-1]]
    return {
        split: sorted(order[start:end])
        for split, start, end in zip(splits, starts, ends, strict=True)
    }


def check_backgrounds(cache: Path, splits: list[str], sample_rate: int, given: Path) -> None:
    """Raise UserError if a cache, made of `given` or the same, cannot be their background."""
    opened = open_cache(cache)
    if opened.sample_rate != sample_rate:
        raise UserError(
            f"--background {given} is sampled at {opened.sample_rate} Hz, and --cache at"
            f" {sample_rate} Hz: build it with --sample-rate {sample_rate}"
        )
    for split in splits:
        longest = int(open_split(cache, split).num_samples.max()) / sample_rate
        if longest < MIN_SECONDS:
            raise UserError(
                f"--background {given}: the longest recording of the split {split} has"
                f" {longest:.2f} s, expected {MIN_SECONDS:g} s or more: give longer recordings"
            )


def draw_cut(
    rng: np.random.Generator, lengths: np.ndarray, sample_rate: int, num_samples: int
) -> Cut:
    """Draw a piece of the recordings of a split; every second is equally likely.

    Args:
        rng: Source of random numbers.
        lengths: Samples of each recording (R,). Those below MIN_SECONDS are not drawn.
        sample_rate: Hz.
        num_samples: Length of the piece; shorter recordings begin anywhere and are repeated.
    """
    usable = np.where(lengths >= MIN_SECONDS * sample_rate, lengths, 0)
    ends = np.cumsum(usable)
    recording = int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))
    length = int(lengths[recording])
    num_starts = length - num_samples + 1 if length >= num_samples else length
    return Cut(recording, int(rng.integers(num_starts)))


def read_cut(cache: Path, split: str, cut: Cut, num_samples: int) -> np.ndarray:
    """Read a piece of a recording, which is repeated if it is too short.

    Returns:
        float32 (num_samples,).
    """
    clips = open_split(cache, split)
    length = int(clips.num_samples[cut.recording])
    if length >= num_samples:
        return clips.read(cut.recording, cut.start, cut.start + num_samples)
    return np.resize(np.roll(clips.read(cut.recording), -cut.start), num_samples)


def make_noise(
    rng: np.random.Generator, kind: str, num_samples: int, sample_rate: int
) -> np.ndarray:
    """Make noise of NOISE_RMS.

    Args:
        rng: Source of random numbers.
        kind: One of NOISES: `white` has equal power in each Hz, `pink` in each octave.
        num_samples: Length.
        sample_rate: Hz.

    Returns:
        float32 (num_samples,).
    """
    noise = rng.standard_normal(num_samples, dtype=np.float32)
    if kind == "pink":
        frequencies = np.fft.rfftfreq(num_samples, 1 / sample_rate).astype(np.float32)
        shape = np.zeros_like(frequencies)
        audible = frequencies >= LOWEST_PINK
        shape[audible] = frequencies[audible] ** -0.5
        noise = np.fft.irfft(np.fft.rfft(noise) * shape, num_samples).astype(np.float32)
    return noise * np.float32(NOISE_RMS / np.sqrt(np.mean(np.square(noise), dtype=np.float64)))
