"""Render a planned scene: the background, and parts of clips at their signal-to-noise ratios.

The signal-to-noise ratio of a clip is 20 log10 of the RMS of its added samples over the RMS of the
background within the same window. `fg_dB` of Clotho-Moment is something else: the peak of the clip
over the RMS of the whole background before its own gain.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.moment_scenes.backgrounds import Cut, make_noise, read_cut
from data_prep.moment_scenes.foregrounds import open_split
from data_prep.moment_scenes.plan import Placement
from data_prep.seeds import generator

PEAK = 0.95  # of every scene: nothing is clipped
FADE_SECONDS = 0.01  # at both ends of a clip: a click would give the window away
# Lowest RMS of a background that counts: else clips on digital silence would be silent too.
LOWEST_RMS = 1e-3  # -60 dB of full scale


@dataclass(frozen=True)
class Scene:
    """A scene of a split, to be rendered in any process.

    Attributes:
        cache: Folder of the cache with the clips.
        split: Split of the clips and of the backgrounds.
        num_samples: Length of the scene.
        placements: Parts of clips, sorted by time.
        background: Folder of a cache, or one of backgrounds.NOISES.
        cut: Piece of a recording; None for noise.
        key: Key of the noise's random numbers.
        sources: Digests of both caches' splits.
    """

    cache: Path
    split: str
    num_samples: int
    placements: tuple[Placement, ...]
    background: Path | str
    cut: Cut | None
    key: tuple[int, ...]
    sources: tuple[str, ...]

    def digest(self) -> list[Any]:
        """Return everything that decides the samples, as JSON, without places on the disk."""
        placements = [list(asdict(placed).values()) for placed in self.placements]
        where = asdict(self.cut) if self.cut else self.background
        return [self.num_samples, placements, where, self.key, self.sources]

    def samples(self) -> np.ndarray:
        """Return the mix, float32 (S,) with a peak of PEAK."""
        mix, foregrounds = self.parts()
        for start, samples in foregrounds:
            mix[start : start + len(samples)] += samples
        return mix * np.float32(PEAK / np.abs(mix).max())

    def parts(self) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
        """Return the background, float32 (S,), and the added clips: first sample, samples (s,)."""
        clips = open_split(self.cache, self.split)
        rate, foregrounds = clips.sample_rate, []
        background = self._background(rate)
        for placed in self.placements:
            first, length = round(placed.offset * rate), round(placed.length * rate)
            samples = _faded(clips.read(placed.clip, first, first + length), rate)
            start = min(round(placed.start * rate), self.num_samples - length)
            level = max(rms(background[start : start + length]), LOWEST_RMS)
            gain = level * 10 ** (placed.snr_db / 20) / rms(samples)
            foregrounds.append((start, samples * np.float32(gain)))
        return background, foregrounds

    def _background(self, rate: int) -> np.ndarray:
        if self.cut is None:
            return make_noise(generator(*self.key), str(self.background), self.num_samples, rate)
        return read_cut(Path(self.background), self.split, self.cut, self.num_samples).copy()


def rms(samples: np.ndarray) -> float:
    """Return the root of the mean square of samples (S,)."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def _faded(samples: np.ndarray, rate: int) -> np.ndarray:
    """Return a copy of float32 (S,) that begins and ends at zero."""
    ramp = np.linspace(0, 1, max(2, round(FADE_SECONDS * rate)), dtype=np.float32)
    samples = samples.copy()
    samples[: len(ramp)] *= ramp
    samples[-len(ramp) :] *= ramp[::-1]
    return samples
