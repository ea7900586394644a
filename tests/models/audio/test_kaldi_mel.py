"""The mel front end of PaSST and EfficientAT against golden numbers; its jitter in training."""

from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval.models.audio import kaldi_mel
from retrieval.models.audio.kaldi_mel import MIN_SAMPLES, NUM_MEL_BINS, KaldiMel, num_columns
from tests.golden import formulas

GOLDEN = np.load(Path(__file__).resolve().parents[2] / "golden" / "passt_mel.npz")
TOLERANCE = 1e-3  # the reference in float32 is 3e-4 away from itself in float64


@pytest.fixture(scope="module")
def window() -> torch.Tensor:
    return torch.from_numpy(formulas.waveform(32_000))[None]


def difference(found: torch.Tensor) -> float:
    return float(np.abs(found[0, :, ::4].numpy() - GOLDEN["logmel_every4"]).max())


def test_log_mel_equals_the_reference(window: torch.Tensor):
    found = KaldiMel(jitter=True).eval()(window)
    assert list(found.shape) == list(GOLDEN["shape"]) == [1, 128, 1000]
    assert difference(found) < TOLERANCE
    for column in (0, 999):
        assert (
            np.abs(found[0, :, column].numpy() - GOLDEN[f"logmel_frame{column}"]).max() < TOLERANCE
        )


def test_mel_bank_equals_the_reference():
    bank = KaldiMel(jitter=False).mel_bank.numpy()  # (513, 128)
    assert np.abs(bank[:512, [0, 1, 64, 127]].T - GOLDEN["mel_bank_rows"]).max() < 1e-4
    assert np.abs(bank.sum(axis=0) - GOLDEN["mel_bank_rowsum"]).max() < 1e-4


def test_silence_has_the_lowest_value(window: torch.Tensor):
    found = KaldiMel(jitter=False)(torch.zeros(1, 32_000)).unique()
    assert found.item() == pytest.approx(GOLDEN["silence_value"].item(), abs=1e-6)
    assert KaldiMel(jitter=False)(window).min() > found


def without_pre_emphasis(mel: KaldiMel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kaldi_mel, "PRE_EMPHASIS", 0.0)


def with_periodic_window(mel: KaldiMel, monkeypatch: pytest.MonkeyPatch) -> None:
    mel.window = torch.hann_window(800)


def with_another_highest_frequency(mel: KaldiMel, monkeypatch: pytest.MonkeyPatch) -> None:
    mel.mel_bank = kaldi_mel._mel_bank(0, 15_100)


@pytest.mark.parametrize(
    "change", [without_pre_emphasis, with_periodic_window, with_another_highest_frequency]
)
def test_golden_numbers_notice_another_front_end(
    window: torch.Tensor, change, monkeypatch: pytest.MonkeyPatch
):
    mel = KaldiMel(jitter=False)
    change(mel, monkeypatch)
    assert difference(mel(window)) > 3 * TOLERANCE


@pytest.mark.parametrize("num_samples", [MIN_SAMPLES, 640, 641, 4_801, 31_999, 32_000, 32_001])
def test_num_columns_is_what_forward_gives(num_samples: int):
    assert KaldiMel(jitter=False)(torch.zeros(2, num_samples)).shape == (
        2,
        NUM_MEL_BINS,
        num_columns(num_samples),
    )


def test_one_sample_less_is_too_short():
    with pytest.raises(RuntimeError):
        KaldiMel(jitter=False)(torch.zeros(1, MIN_SAMPLES - 1))


def test_windows_do_not_see_each_other(window: torch.Tensor):
    batch = torch.cat([window, 0.01 * window.flip(1)])[:, :32_000]
    mel = KaldiMel(jitter=False)
    assert torch.equal(mel(batch)[1:], mel(batch[1:]))


def test_log_mel_is_float32_under_autocast(window: torch.Tensor):
    mel = KaldiMel(jitter=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mel(window)
    assert found.dtype == torch.float32
    assert torch.equal(found, mel(window))


def test_jitter_is_drawn_in_training_from_the_global_generator(window: torch.Tensor):
    window = window[:, :32_000]
    mel = KaldiMel(jitter=True).train()
    torch.manual_seed(3)
    first, second = mel(window), mel(window)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(mel(window), first)
    assert torch.equal(mel.eval()(window), KaldiMel(jitter=False)(window))
    assert torch.equal(
        KaldiMel(jitter=False).train()(window), KaldiMel(jitter=False).eval()(window)
    )


def test_jitter_has_the_range_of_the_reference(monkeypatch: pytest.MonkeyPatch):
    mel, drawn = KaldiMel(jitter=True), []
    monkeypatch.setattr(kaldi_mel, "_mel_bank", lambda *limits: drawn.append(limits))
    torch.manual_seed(0)
    for _ in range(30_000):
        mel._jittered_bank()
    lowest, highest = np.array(drawn).T
    assert (lowest.min(), lowest.max(), highest.min(), highest.max()) == (0, 9, 14_001, 16_000)


def test_bank_at_the_limits_is_finite_and_every_filter_hears_something():
    for lowest, highest in ((0, 14_001), (9, 16_000)):
        bank = kaldi_mel._mel_bank(lowest, highest)
        assert bank.isfinite().all() and (bank.sum(dim=0) > 0).all()


def test_is_built_with_values_on_the_meta_device(window: torch.Tensor):
    with torch.device("meta"):
        mel = KaldiMel(jitter=False)
    assert torch.equal(mel(window[:, :3200]), KaldiMel(jitter=False)(window[:, :3200]))
    assert mel.state_dict() == {}  # nothing that official weights would lack
