"""EfficientAT: golden numbers of the reference, official weights, bad input.

Letters: W windows, S samples, T frames.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from retrieval.base.errors import UserError
from retrieval.models.audio.efficientat import EfficientAt
from tests.golden import formulas

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
SMALL = np.load(GOLDEN / "passt_mn_small.npz")
SMALL_SHAPES = json.loads((GOLDEN / "passt_mn_small.json").read_text())["mn_small"]["state_dict"]
FULL = json.loads((GOLDEN / "passt_effat_shapes.json").read_text())
SECOND = 32_000


def golden_weight(name: str, shape: list[int]) -> np.ndarray:
    """The rule in passt_mn_small.json."""
    if not shape:
        return np.int64(0)
    values = formulas.chirp(name, shape, 1.0, dtype=np.float64)
    if name.endswith("running_var") or len(shape) == 1 and name.endswith(".weight"):
        return 1 + 0.3 * values
    if len(shape) == 4:
        return 1.4 * math.sqrt(2 / (shape[1] * shape[2] * shape[3])) * values
    return math.sqrt(2 / shape[1]) * values if len(shape) == 2 else 0.1 * values


@pytest.fixture(scope="module")
def golden_encoder() -> EfficientAt:
    encoder = EfficientAt(width=0.1, mel_jitter=False).eval()
    encoder.classifier[5] = nn.Linear(128, 10)  # the golden encoder knows ten classes
    weights = {
        name: torch.from_numpy(np.asarray(golden_weight(name, shape)))
        for name, shape in SMALL_SHAPES.items()
    }
    encoder.load_state_dict(weights)
    return encoder


@pytest.fixture
def small() -> EfficientAt:
    torch.manual_seed(0)
    return EfficientAt(width=0.1)


def two_windows() -> torch.Tensor:
    window = torch.from_numpy(formulas.waveform(SECOND))
    return torch.stack([window, window.flip(0)])


def some_audio(num_samples: int, num_windows: int = 1) -> torch.Tensor:
    return torch.from_numpy(formulas.noise("effat", num_windows * num_samples, 0.1)).view(
        num_windows, -1
    )


def relative_difference(found: torch.Tensor, golden: np.ndarray) -> float:
    assert found.shape == golden.shape
    return float(np.abs(found.detach().numpy() - golden).max() / np.abs(golden).max())


# --- against the reference ---


def test_feature_map_frames_vector_and_logits_equal_the_reference(golden_encoder):
    feature_map = golden_encoder.features(golden_encoder.log_mel(two_windows()).unsqueeze(1))
    assert relative_difference(feature_map, SMALL["mn.fmap"]) < 1e-4
    assert relative_difference(golden_encoder.classifier(feature_map), SMALL["mn.logits"]) < 1e-4
    frames = golden_encoder(two_windows())
    assert relative_difference(frames, SMALL["mn.fmap"].mean(axis=2).transpose(0, 2, 1)) < 1e-4
    golden_encoder.sequence = False
    assert relative_difference(golden_encoder(two_windows()), SMALL["mn.features"][:, None]) < 1e-4
    golden_encoder.sequence = True


@pytest.mark.parametrize(
    "name",
    [
        "features.0.1.running_mean",
        "features.5.block.2.conc_se_layers.0.fc2.weight",
        "features.16.0.weight",
    ],
)
def test_negative_control_golden_numbers_notice_a_changed_weight(golden_encoder, name):
    weight = golden_encoder.state_dict()[name]
    weight += 0.05
    assert (
        relative_difference(
            golden_encoder.features(golden_encoder.log_mel(two_windows()).unsqueeze(1)),
            SMALL["mn.fmap"],
        )
        > 1e-3
    )
    weight -= 0.05


def test_full_size_has_the_official_names_shapes_and_number_of_parameters():
    with torch.device("meta"):
        encoder = EfficientAt()
    assert {name: list(value.shape) for name, value in encoder.state_dict().items()} == FULL[
        "mn40_state_dict"
    ]
    assert (
        sum(parameter.numel() for parameter in encoder.parameters())
        == FULL["mn40_as_ext"]["n_params"]
        == 68_427_303
    )
    assert encoder.feature_dim == 3840 and encoder.num_frames(10 * SECOND) == 32


# --- windows ---


@pytest.mark.parametrize(
    "num_samples", [514, 1000, 10_239, 10_240, 10_241, 10_242, 70_001, 160_000, 320_000, 330_017]
)
def test_number_of_frames_is_what_comes_out(small, num_samples):
    assert small.eval()(some_audio(num_samples)).shape == (
        1,
        small.num_frames(num_samples),
        small.feature_dim,
    )


@pytest.mark.parametrize("num_samples", [0, 100, 513, 601 * SECOND])
def test_windows_that_do_not_fit_are_refused(small, num_samples):
    with pytest.raises(
        UserError, match="does not fit EfficientAT; set audio_encoder.window_seconds"
    ):
        small.num_frames(num_samples)


def test_one_vector_a_window_is_the_mean_of_the_frames(small):
    frames = small.eval()(some_audio(SECOND, 2))
    small.sequence = False
    assert small.num_frames(SECOND) == 1 and torch.allclose(
        small(some_audio(SECOND, 2)), frames.mean(dim=1, keepdim=True), atol=1e-6
    )


# --- training ---


def test_windows_do_not_see_each_other_also_in_training(small):
    """With batch statistics they would: the negative control."""
    small.mel.jitter = False
    small.train()
    windows = torch.cat([some_audio(SECOND), 5 * two_windows()[:1, :SECOND]])
    before = {name: value.clone() for name, value in small.state_dict().items()}
    alone, together = small(windows[:1]), small(windows)[:1]
    assert (alone - together).abs().max() < 1e-5 * alone.abs().max()
    # statistics are as they were
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    for module in small.modules():
        module.training = True
    assert (small(windows[:1]) - small(windows)[:1]).abs().max() > 1e-2 * alone.abs().max()


def test_what_is_trained_has_a_gradient_and_the_head_is_not():
    torch.manual_seed(0)
    # at 0.1 a squeeze has 8 units, which one window can leave all at 0
    encoder = EfficientAt(width=0.5).train()
    encoder(some_audio(SECOND)).square().mean().backward()
    gradients = {
        name: parameter.grad
        for name, parameter in encoder.named_parameters()
        if parameter.requires_grad
    }
    without = [
        name
        for name, gradient in gradients.items()
        if gradient is None or not gradient.isfinite().all() or not gradient.any()
    ]
    assert without == []
    assert {
        name.split(".")[0]
        for name, parameter in encoder.named_parameters()
        if not parameter.requires_grad
    } == {"classifier"}


@pytest.mark.parametrize("width", [0.1, 1.0])
def test_random_weights_keep_the_scale_and_hear_the_audio(width):
    """Negative control: the usual initialisation of MobileNets, which needs batch statistics."""

    def distance(encoder: EfficientAt) -> float:
        loud, quiet = encoder(torch.cat([some_audio(SECOND), 0.1 * some_audio(SECOND)])).detach()
        return float((loud - quiet).square().mean().sqrt())

    torch.manual_seed(0)
    encoder = EfficientAt(width, mel_jitter=False).train()
    assert 0.05 < distance(encoder) < 20
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    assert distance(encoder) < 1e-4


def test_spectrograms_can_be_augmented_and_jitter_is_of_training(small):
    waveform, seen = some_audio(SECOND), []
    plain = small.eval()(waveform)
    assert torch.equal(plain, small(waveform)) and not torch.equal(
        plain, small(waveform, lambda mel: seen.append(mel.shape) or mel.flip(1))
    )
    assert seen == [(1, 128, 100)]
    small.train()
    assert not torch.equal(small(waveform), small(waveform))


def test_bf16_autocast(small):
    small.eval()
    with torch.autocast("cpu", torch.bfloat16):
        found = small(some_audio(SECOND))
    assert (found.float() - small(some_audio(SECOND))).abs().max() < 0.1 * found.abs().max()


# --- official weights ---


def saved(encoder: EfficientAt, path: Path) -> Path:
    torch.save(encoder.state_dict(), path)
    return path


def test_official_weights_load(small, tmp_path):
    torch.manual_seed(1)
    other = EfficientAt(width=0.1)
    small.load_official(saved(other, tmp_path / "mn01.pt"))
    assert all(
        torch.equal(value, other.state_dict()[name]) for name, value in small.state_dict().items()
    )


@pytest.mark.parametrize("damage", ["width", "missing", "extra", "scalar", "truncated", "absent"])
def test_weights_that_do_not_fit_change_nothing(small, tmp_path, damage):
    path = tmp_path / "weights.pt"
    state = EfficientAt(width=1.0 if damage == "width" else 0.1).state_dict()
    if damage == "missing":
        del state["features.3.block.0.0.weight"]
    if damage == "extra":
        state["features.17.0.weight"] = torch.zeros(1)
    if damage == "scalar":
        state["features.16.0.weight"] = torch.tensor(1.0)
    torch.save(state, path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    if damage == "absent":
        path.unlink()
    message = {
        "width": "is of width 1, the encoder of width 0.1; set audio_encoder.width=1",
        "missing": "lacks features.3.block.0.0.weight",
        "extra": "has features.17.0.weight",
        "scalar": (
            r"is of another size than EfficientAT with width 0.1: features.16.0.weight \[\] for"
        ),
        "truncated": "truncated or no PyTorch checkpoint",
        "absent": "do not exist",
    }[damage]
    before = {name: value.clone() for name, value in small.state_dict().items()}
    with pytest.raises(UserError, match=message):
        small.load_official(path)
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
