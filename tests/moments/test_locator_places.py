"""Where the frames of excerpts lie: a ramp as sound, whose frames say their own place."""

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.pooling import AveragePooling
from retrieval.models.windows import WindowGrid
from retrieval.moments.locator import Locator
from retrieval.moments.spans import Moment, suppressed


class RampEncoder(nn.Module):
    """Frames that are the samples at their begin."""

    takes_lengths = pools_windows = False

    def __init__(self, sample_rate: int, frames_per_window: int):
        super().__init__()
        self.sample_rate, self.frames_per_window = sample_rate, frames_per_window

    def num_frames(self, num_samples: int) -> int:
        return self.frames_per_window

    def forward(self, windows: torch.Tensor, augment: None = None) -> torch.Tensor:
        begins = torch.arange(self.frames_per_window) * windows.shape[1] / self.frames_per_window
        return windows[:, begins.long()][..., None]


class RampModel(nn.Module):
    """The parts of a DualEncoder that a Locator uses, without weights."""

    audio_features, frame_vectors = DualEncoder.audio_features, DualEncoder.frame_vectors
    _resampled, moment_head = DualEncoder._resampled, None

    def __init__(self, rate: int, clip: float, window: float, hop: float, frames: int):
        super().__init__()
        self.sample_rate, self.clip_seconds = rate, clip
        self.audio_encoder, self.audio_projection = RampEncoder(rate, frames), nn.Identity()
        self.temperature = nn.Parameter(torch.tensor(1.0), requires_grad=False)
        self.loss_parameters = {"bias": torch.tensor(0.0)}
        samples = (round(seconds * rate) for seconds in (clip, window, hop))
        self.windows = WindowGrid(*samples, frames_per_window=frames)
        self.pooling = AveragePooling("dot")


def ramp(num_samples: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """1, 2, 3, ... in blocks of any length, also none."""
    borders = np.sort(random.integers(0, num_samples + 1, 9))
    return iter(np.split(np.arange(1, num_samples + 1, dtype=np.float32), borders))


GRIDS = {  # clip, window, hop in s, frames of a window
    "one window": (10.0, 10.0, 10.0, 250),
    "three of 10 s": (30.0, 10.0, 10.0, 250),
    "six": (30.0, 5.0, 5.0, 125),
    "window does not divide the clip": (7.0, 4.0, 4.0, 100),
    "the rest is longer than a window": (11.0, 4.0, 4.0, 100),
    "windows overlap": (10.0, 4.0, 2.0, 100),
    "windows overlap by no whole frames": (12.34, 2.5, 0.925, 62),
    "frames of no whole samples": (7.0, 7.0, 7.0, 19),
    "one frame a window": (6.0, 2.0, 2.0, 1),
    "one frame": (1.0, 1.0, 1.0, 1),
}


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
@pytest.mark.parametrize("grid", GRIDS)
def test_frames_lie_where_they_were_heard(grid, rate):
    model, random = RampModel(rate, *GRIDS[grid]), np.random.default_rng(rate)
    locator = Locator(model, "contribution")
    clip, hop, size = locator.excerpt_samples, locator.hop_samples, locator.samples_per_frame
    lengths = [1, 7, clip - 1, clip, clip + 1, hop, hop + 1, clip + hop, clip + hop + 1]
    for num_samples in [*lengths, *random.integers(1, 40 * rate, 6).tolist()]:
        found = locator.locate(torch.ones(1, 1), locator.hear(ramp(num_samples, random)))
        curve, places = found.curves[0], np.arange(found.curves.shape[1])
        assert len(curve) == max(1, np.ceil(num_samples / size - 1e-6))
        errors = np.abs(curve - (places * size + 1)) / size
        if GRIDS[grid][1] == GRIDS[grid][2]:
            # by rounding to samples, which may also leave the last frame to the one before it
            assert errors[:-1].max(initial=0) < 0.01 + 3 / size and errors[-1] < 1.01
        else:  # two windows place a frame differently; no window has the last ones as valid
            assert np.quantile(errors, 0.9) <= 0.51
        assert found.seconds == num_samples / rate
        for own in found.moments[0]:
            assert 0 <= own.start < own.end <= found.seconds


def test_sound_that_no_window_hears_has_its_neighbour_s_value():
    model = RampModel(8_000, 10.0, 2.0, 4.0, 50)  # 2 s of every 4 s
    locator = Locator(model, "contribution")
    random = np.random.default_rng(0)
    found = locator.locate(torch.ones(1, 1), locator.hear(ramp(30 * 8_000, random)))
    assert found.curves.shape == (1, 750) and np.isfinite(found.curves).all()


def test_the_fuzz_can_fail(monkeypatch):
    """Negative control: an excerpt one frame late."""
    model, random = RampModel(8_000, *GRIDS["one window"]), np.random.default_rng(0)
    locator = Locator(model, "contribution")
    places = Locator._places
    monkeypatch.setattr(
        Locator,
        "_places",
        lambda *given: (places(*given)[0] + (given[1].start > 0), *places(*given)[1:]),
    )
    found = locator.locate(torch.ones(1, 1), locator.hear(ramp(160_000, random)))
    errors = np.abs(found.curves[0] - (np.arange(found.curves.shape[1]) * 320 + 1)) / 320
    assert errors.max() > 0.4


def memory_of(minutes: int) -> tuple[int, int]:
    """Peak bytes of numpy, and the most samples in a block or piece, while minutes are heard."""
    rate, second = 8_000, np.ones(8_000, np.float32)
    model = RampModel(rate, 30.0, 10.0, 10.0, 250)
    locator = Locator(model, "contribution")
    tracemalloc.start()
    found = locator.locate(
        torch.ones(2, 1), locator.hear(second.copy() for _ in range(60 * minutes))
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.curves.shape == (2, 60 * 25 * minutes)
    return peak


def test_memory_grows_by_the_curve_alone():
    short, long = memory_of(5), memory_of(60)
    sound, curves = 55 * 60 * 8_000 * 4, 55 * 60 * 25 * 2 * 4  # bytes
    assert long - short < 12 * curves < sound / 10


def test_suppression_stops_at_the_number_asked_for():
    moments = [Moment(float(place), place + 1.0, -place) for place in range(100)]
    assert suppressed(moments, 0.5, 7) == moments[:7] and len(suppressed(moments, 0.5)) == 100
