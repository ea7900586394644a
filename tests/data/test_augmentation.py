"""Augmentation: the effect of each change on a tone; off means unchanged; only draws decide."""

import math
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval.config import load_config
from retrieval.data.augmentation import WaveformAugmentation, waveform_augmentation
from retrieval.models.build import build_model
from retrieval.models.mel_augmentation import MelAugmentation, mel_augmentation
from retrieval.training import loop
from tests.training.test_training import configure, losses_of

RATE = 16_000
OFF = {
    "probability": 1.0,
    "gain_db": 0.0,
    "noise_snr_db": None,
    "shift_seconds": 0.0,
    "pitch_semitones": 0.0,
    "stretch": 0.0,
}
ALL = {
    "probability": 0.7,
    "gain_db": 6.0,
    "noise_snr_db": 10.0,
    "shift_seconds": 0.5,
    "pitch_semitones": 2.0,
    "stretch": 0.1,
}


def tone(frequency: float = 440.0, seconds: float = 2.0, amplitude: float = 0.3) -> np.ndarray:
    return (
        amplitude * np.sin(2 * np.pi * frequency * np.arange(int(seconds * RATE)) / RATE)
    ).astype(np.float32)


def augmented(waveform: np.ndarray, seed: int, **settings) -> np.ndarray:
    return WaveformAugmentation(RATE, **(OFF | settings))(waveform, np.random.default_rng(seed))


def peak(waveform: np.ndarray) -> float:
    """Hz of the loudest frequency."""
    middle = waveform[len(waveform) // 4 : 3 * len(waveform) // 4]
    return np.abs(np.fft.rfft(middle * np.hanning(len(middle)))).argmax() * RATE / len(middle)


class Extreme:
    """A generator whose draws are all at the same end."""

    def __init__(self, high: bool):
        self.high = high

    def random(self) -> float:
        return 0.0

    def uniform(self, low: float, high: float) -> float:
        return high if self.high else low


@pytest.mark.parametrize(("high", "ratio"), [(True, 2.0), (False, 0.5)])
def test_pitch_moves_by_semitones_and_the_length_stays(high, ratio):
    found = WaveformAugmentation(RATE, **(OFF | {"pitch_semitones": 12.0}))(tone(), Extreme(high))
    assert abs(len(found) - len(tone())) <= 1 and peak(found) == pytest.approx(
        440 * ratio, rel=0.005
    )


@pytest.mark.parametrize(("high", "length"), [(True, 1 / 1.25), (False, 1 / 0.75)])
def test_stretch_changes_the_length_and_not_the_pitch(high, length):
    found = WaveformAugmentation(RATE, **(OFF | {"stretch": 0.25}))(tone(), Extreme(high))
    assert len(found) == pytest.approx(length * len(tone()), rel=1e-3) and peak(
        found
    ) == pytest.approx(440, rel=0.005)


@pytest.mark.parametrize(("high", "factor"), [(True, 2.0), (False, 0.5)])
def test_gain(high, factor):
    found = WaveformAugmentation(RATE, **(OFF | {"gain_db": 20 * math.log10(2)}))(
        tone(), Extreme(high)
    )
    assert np.abs(found - factor * tone()).max() < 1e-6


def test_shift_rotates_by_at_most_its_seconds():
    waveform = np.zeros(RATE, np.float32)
    waveform[RATE // 2] = 0.5
    places = [
        augmented(waveform, seed, shift_seconds=0.1).argmax() - RATE // 2 for seed in range(50)
    ]
    assert -0.1 * RATE <= min(places) < -0.05 * RATE and 0.05 * RATE < max(places) <= 0.1 * RATE


def test_noise_has_the_ratio_that_was_drawn():
    for seed in range(5):
        noise = augmented(tone(), seed, noise_snr_db=10.0) - tone()
        ratio = 10 * math.log10(
            np.mean(tone().astype(float) ** 2) / np.mean(noise.astype(float) ** 2)
        )
        assert 9.5 < ratio < 40.5
        spectrum = np.abs(np.fft.rfft(noise)) ** 2
        assert spectrum[: len(spectrum) // 2].sum() == pytest.approx(
            spectrum[len(spectrum) // 2 :].sum(), rel=0.1
        )  # white


def test_a_result_beyond_full_scale_is_turned_down_and_not_clipped():
    found = WaveformAugmentation(RATE, **(OFF | {"gain_db": 40.0}))(tone(), Extreme(True))
    assert (
        np.abs(found).max() == pytest.approx(1.0, abs=1e-6)
        and np.corrcoef(found, tone())[0, 1] > 0.999999
    )


@pytest.mark.parametrize(
    "waveform",
    [np.zeros(RATE, np.float32), tone(seconds=10 / RATE), tone(seconds=0.05)],
    ids=["silence", "ten", "short"],
)
def test_silence_and_short_clips(waveform):
    for seed in range(20):
        found = WaveformAugmentation(RATE, **ALL)(waveform, np.random.default_rng(seed))
        assert (
            found.dtype == np.float32
            and len(found) >= 1
            and np.isfinite(found).all()
            and np.abs(found).max() <= 1
        )
        assert waveform.any() or not found.any()


def test_the_draws_alone_decide_and_nothing_else_is_touched():
    waveform, before = tone(), tone()
    augment = pickle.loads(pickle.dumps(WaveformAugmentation(RATE, **ALL)))
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    results = [augment(waveform, np.random.default_rng(seed)) for seed in (7, 7, 8)]
    assert np.array_equal(results[0], results[1]) and not (
        results[0].shape == results[2].shape and np.array_equal(results[0], results[2])
    )
    assert np.array_equal(waveform, before)
    assert (
        random.getstate() == states[0]
        and np.random.get_state()[1].tolist() == states[1]
        and torch.equal(torch.get_rng_state(), states[2])
    )


def test_probability_is_how_often_a_change_is_made():
    changed = [
        not np.array_equal(
            augmented(tone(seconds=0.1), seed, gain_db=3.0, probability=0.3), tone(seconds=0.1)
        )
        for seed in range(400)
    ]
    assert 0.2 < np.mean(changed) < 0.4


def test_negative_control_switched_off_nothing_changes():
    assert np.array_equal(augmented(tone(), 0), tone())
    assert (
        waveform_augmentation(RATE, **OFF) is None
        and waveform_augmentation(RATE, **(ALL | {"probability": 0.0})) is None
    )
    assert isinstance(waveform_augmentation(RATE, **(OFF | {"gain_db": 1.0})), WaveformAugmentation)
    assert isinstance(
        waveform_augmentation(RATE, **(OFF | {"noise_snr_db": 0.0})), WaveformAugmentation
    )


# --- spectrograms ---


def spectrogram(num_windows: int = 3, num_columns: int = 40) -> torch.Tensor:
    return torch.rand(num_windows, 64, num_columns, generator=torch.Generator().manual_seed(0))


def test_frequency_warping_moves_a_tone_by_a_bounded_number_of_bands():
    mel = torch.zeros(200, 64, 5)
    mel[:, 30] = 1.0
    torch.manual_seed(0)
    bands = MelAugmentation(0, 0, 0.1)(mel).mean(dim=2).argmax(dim=1)  # (200,)
    assert (
        bands.unique().numel() > 5
        and 30 - 0.1 * 64 - 1 <= bands.min() < 28
        and 32 < bands.max() <= 30 + 0.1 * 64 + 1
    )
    ends = torch.zeros(10, 64, 5)
    ends[:, 0], ends[:, -1] = 1.0, 2.0
    warped = MelAugmentation(0, 0, 0.3)(ends)
    assert torch.equal(warped[:, 0], ends[:, 0]) and torch.equal(warped[:, -1], ends[:, -1])


@pytest.mark.parametrize("most", [0.1, 0.5])
def test_warped_bands_keep_their_order(most):
    ramp = torch.arange(64.0)[None, :, None].expand(100, 64, 3)
    steps = MelAugmentation(0, 0, most)(ramp).diff(dim=1)
    assert steps.min() > -1e-4
    assert (steps - 1).abs().max() > 0.1  # negative control: it did bend


def test_masks_hide_what_they_may_and_every_window_has_its_own():
    mel = spectrogram(50)
    torch.manual_seed(0)
    hidden = MelAugmentation(8, 10, 0.0)(mel) != mel  # (W, M, C)
    bands, columns = hidden.all(dim=2).sum(dim=1), hidden.all(dim=1).sum(dim=1)
    assert (
        bands.max() <= 8
        and columns.max() <= 10
        and bands.unique().numel() > 3
        and columns.unique().numel() > 3
    )
    mean = mel.mean(dim=(1, 2))
    values = MelAugmentation(8, 10, 0.0)(mel)
    assert all(
        torch.isclose(value[value != original], mean[w], atol=1e-5).any()
        for w, (value, original) in enumerate(zip(values, mel))
    )


def test_a_short_window_is_never_all_mask():
    for seed in range(50):
        torch.manual_seed(seed)
        mel = spectrogram(2, 6)
        assert ((MelAugmentation(0, 192, 0.0)(mel) - mel).abs() < 1e-6).all(dim=1).sum(
            dim=1
        ).min() >= 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 64, 1), (2, 128, 1000)])
def test_shapes_and_types_stay(dtype, shape):
    mel = torch.rand(shape).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = MelAugmentation(20, 100, 0.2)(mel)
    assert found.shape == mel.shape and found.dtype == dtype and torch.isfinite(found).all()


def test_the_same_seed_is_the_same_spectrogram():
    augment = MelAugmentation(8, 10, 0.2)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(augment(spectrogram()))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_negative_control_spectrograms_without_augmentation():
    assert mel_augmentation(0, 0, 0.0) is None
    assert torch.allclose(MelAugmentation(0, 0, 0.0)(spectrogram()), spectrogram(), atol=1e-6)
    assert all(
        isinstance(mel_augmentation(*arguments), MelAugmentation)
        for arguments in ((1, 0, 0.0), (0, 1, 0.0), (0, 0, 0.1))
    )


# --- in training ---

EVERYTHING = {
    "gain_db": 6,
    "noise_snr_db": 10,
    "shift_seconds": 0.2,
    "pitch_semitones": 2,
    "stretch": 0.1,
    "mask_mels": 8,
    "mask_columns": 20,
}
EVERYTHING |= {"warp_mels": 0.1, "mix_probability": 0.3}


def first_losses(tiny, folder: Path, *overrides: str) -> dict[int, float]:
    loop.train(configure(tiny, folder, "train.max_steps=2", *overrides))
    return losses_of(folder)


@pytest.mark.parametrize("name", EVERYTHING)
def test_each_change_reaches_the_training(tiny, tmp_path, name):
    always = ["augmentation.probability=1", f"augmentation.{name}={EVERYTHING[name]}"]
    changed, plain = (
        first_losses(tiny, tmp_path / "changed", *always),
        first_losses(tiny, tmp_path / "plain", "augmentation.probability=1"),
    )
    assert changed[1] != plain[1] and math.isfinite(changed[2])


def test_validation_and_evaluation_hear_what_was_recorded(tiny):
    config = load_config(
        tiny / "tiny.yaml",
        [
            f"augmentation.{name}={EVERYTHING[name]}"
            for name in ("mask_mels", "mask_columns", "warp_mels")
        ],
    )
    model = build_model(config)
    waveform, lengths = (
        torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0)),
        torch.tensor([16_000, 9_000]),
    )
    plain = model.eval().audio_features(waveform, lengths)[0]
    model.augment_mel = mel_augmentation(**config.augmentation.mel)
    assert torch.equal(model.eval().audio_features(waveform, lengths)[0], plain)
    # negative control: the encoder has no dropout
    assert not torch.equal(model.train().audio_features(waveform, lengths)[0], plain)


def test_a_run_with_everything_on_is_repeatable_and_differs_from_one_without(tiny, tmp_path):
    settings = [f"augmentation.{name}={value}" for name, value in EVERYTHING.items()]
    for name, overrides in (("first", settings), ("second", settings), ("plain", [])):
        loop.train(configure(tiny, tmp_path / name, "train.max_steps=3", *overrides))
    first, second, plain = (losses_of(tmp_path / name) for name in ("first", "second", "plain"))
    assert first == second and all(math.isfinite(loss) for loss in first.values())
    assert all(first[step] != plain[step] for step in first)
