"""Find the active part of each clip of a cache, from which scenes take their foregrounds.

A clip is cut to whole seconds. Its active part reaches from the first to the last second whose
power exceeds the clip's mean power - 5 dB. Source: the generator of Clotho-Moment
(h-munakata/Lighthouse-Wrapper-for-Audio-Moment-Retrieval).
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from data_prep.parallel import ordered_map
from retrieval.base.progress import bar
from retrieval.data.cache import ClipSplit, open_cache

THRESHOLD_DB = -5.0  # of a second's power, against the mean power of the clip
SILENT = 1e-8  # mean power below -80 dB of full scale
CLIPS_A_TASK = 32

TOO_SHORT = "shorter than a second"
IS_SILENT = "silent"
NO_CAPTIONS = "without captions"


@dataclass(frozen=True)
class Foreground:
    """A clip that scenes may use.

    Attributes:
        clip: Its number in the split.
        seconds: Numbers of its active seconds, rising; the active part is seconds[0] to
            seconds[-1] + 1.
    """

    clip: int
    seconds: tuple[int, ...]


def open_split(cache: Path, split: str) -> ClipSplit:
    """Open a split, once in each process as long as the cache is the same."""
    return _open_split(cache, split, (cache / "cache.json").stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _open_split(cache: Path, split: str, _: int) -> ClipSplit:
    return open_cache(cache).split(split, need_captions=False)


def find_foregrounds(
    cache: Path, split: str, num_proc: int
) -> tuple[list[Foreground], Counter[str]]:
    """Find the active part of each clip of a split.

    Args:
        cache: Folder of the cache.
        split: Name of the split.
        num_proc: Number of processes.

    Returns:
        The usable clips in order, and the number of the others by reason.

    Raises:
        UserError: The cache is damaged.
    """
    clips = open_split(cache, split)
    reasons = Counter({NO_CAPTIONS: sum(not captions for captions in clips.captions)})
    captioned = [number for number, captions in enumerate(clips.captions) if captions]
    tasks = [captioned[i : i + CLIPS_A_TASK] for i in range(0, len(captioned), CLIPS_A_TASK)]
    found = []
    with bar(total=len(captioned), desc=f"active parts of {split}", unit="clip") as progress:
        work = partial(_find, cache, split)
        for task, results in zip(tasks, ordered_map(work, tasks, num_proc, 1), strict=True):
            for clip, result in zip(task, results, strict=True):
                if isinstance(result, str):
                    reasons[result] += 1
                else:
                    found.append(Foreground(clip, result))
            progress.update(len(task))
    return found, +reasons


def _find(cache: Path, split: str, numbers: list[int]) -> list[tuple[int, ...] | str]:
    clips = open_split(cache, split)
    return [active_seconds(clips.read(number), clips.sample_rate) for number in numbers]


def active_seconds(samples: np.ndarray, sample_rate: int) -> tuple[int, ...] | str:
    """Find the seconds whose power exceeds the clip's mean power - 5 dB.

    Args:
        samples: float32 (S,).
        sample_rate: Hz.

    Returns:
        Numbers of the seconds, or the reason why the clip has none.
    """
    num_seconds = len(samples) // sample_rate
    if not num_seconds:
        return TOO_SHORT
    seconds = samples[: num_seconds * sample_rate].reshape(num_seconds, sample_rate)
    power = np.array([np.mean(second, dtype=np.float64) for second in np.square(seconds)])
    if power.mean() < SILENT:
        return IS_SILENT
    is_active = power > power.mean() * 10 ** (THRESHOLD_DB / 10)
    return tuple(np.flatnonzero(is_active).tolist())
