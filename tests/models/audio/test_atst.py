"""ATST-Frame against golden numbers of the reference; official checkpoint layouts; bad input.

Letters: W windows, S samples, T frames, E = embed_dim.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio

from retrieval.base.errors import UserError
from retrieval.models.audio import AUDIO_ENCODERS
from retrieval.models.audio.atst import PREFIXES, AtstFrame
from tests.golden import formulas

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
MEL = np.load(GOLDEN / "atst_mel.npz")
FRAME = np.load(GOLDEN / "atst_frame.npz")
KEYS = json.loads((GOLDEN / "atst_base_state_dict.json").read_text())
CASES = {"S": {"scale": 0.02}, "Q": {"scale": 0.15, "ln_scale": 0.1}}


class NotAllowed:
    """Something that a weights-only load must not touch."""


def small_encoder(case: str = "Q") -> AtstFrame:
    encoder = AtstFrame(embed_dim=48, depth=2, num_heads=4).eval()
    shapes = KEYS["small_test_config"]["state_dict"]
    weights = formulas.params(shapes, case, is_norm=lambda key: "norm" in key, **CASES[case])
    encoder.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    return encoder


def loud_window() -> torch.Tensor:
    return torch.from_numpy(formulas.waveform(16_000))


def quiet_window() -> torch.Tensor:
    quiet = np.float32(0.02) * formulas.waveform(
        16_000, f0=200, f1=4000, amp=0.02, noise_amp=0.0001, name="quiet"
    )
    quiet[80_000:] = 0
    return torch.from_numpy(quiet)


def largest_difference(found: torch.Tensor, golden: np.ndarray) -> float:
    assert found.shape == golden.shape
    return float(np.abs(found.detach().numpy() - golden).max())


# --- shapes and names ---


def test_base_has_the_keys_shapes_and_parameters_of_the_official_model():
    with torch.device("meta"):
        base = AUDIO_ENCODERS["atst_frame"]()
    assert {key: list(value.shape) for key, value in base.state_dict().items()} == KEYS[
        "frame_ast_base"
    ]
    assert (
        sum(parameter.numel() for parameter in base.parameters())
        == KEYS["n_params_frame_ast_base"]
        == 85_419_264
    )


def test_heads_must_divide_the_embedding():
    with pytest.raises(UserError, match="embed_dim 50 is not a multiple of num_heads 4"):
        AtstFrame(embed_dim=50, depth=1, num_heads=4)


@pytest.mark.parametrize(
    ("num_samples", "num_frames"), [(160_000, 250), (80_000, 125), (513, 1), (160_479, 250)]
)
def test_num_frames_is_what_forward_gives(num_samples: int, num_frames: int):
    encoder = AtstFrame(embed_dim=8, depth=1, num_heads=2)
    assert encoder.num_frames(num_samples) == num_frames
    assert encoder(torch.zeros(2, num_samples)).shape == (2, num_frames, 8)


@pytest.mark.parametrize("num_samples", [0, 512, 160_480 + 160, 320_000])
def test_windows_beyond_the_position_table_or_too_short_are_refused(num_samples: int):
    encoder = AtstFrame(embed_dim=8, depth=1, num_heads=2)
    with pytest.raises(
        UserError, match=f"a window of {num_samples} samples.*set audio_encoder.window_seconds"
    ):
        encoder(torch.zeros(1, num_samples))


# --- mel front end ---


def test_log_mel_equals_the_reference():
    assert largest_difference(small_encoder().log_mel(loud_window()[None]), MEL["logmel"][0]) < 1e-5


@pytest.mark.parametrize(
    "together", [False, True], ids=["window by window, as on a CPU", "at once, as on a GPU"]
)
def test_log_mel_does_not_depend_on_the_batch(monkeypatch, together):
    # the other reason to compute all windows at once
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: together)
    batch = torch.stack([loud_window(), quiet_window()])
    found = small_encoder().log_mel(batch)[1:, :, ::10]
    assert largest_difference(found, MEL["logmel_quiet_alone"][0]) < 1e-5
    # Negative control: the reference's floor over the whole batch is plainly another number.
    assert largest_difference(found, MEL["logmel_quiet_in_batch"][0]) > 0.1


def test_log_mel_is_float32_under_autocast():
    encoder, waveform = small_encoder(), quiet_window()[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = encoder.log_mel(waveform)
    assert found.dtype == torch.float32
    assert torch.equal(found, encoder.log_mel(waveform))


def test_silence_gives_finite_features():
    assert small_encoder()(torch.zeros(1, 160_000)).isfinite().all()


# --- encoder ---


def test_patches_are_bin_by_bin_and_the_last_column_is_dropped():
    value = torch.arange(64)[:, None] * 13 + torch.arange(13)  # (64, 13)
    assert (
        largest_difference(
            small_encoder().patch_embed.patches(value[None].float()), FRAME["patch_out"]
        )
        == 0
    )


@pytest.mark.parametrize("case", CASES)
def test_small_encoder_equals_the_reference(case: str):
    encoder, waveform = small_encoder(case), loud_window()[None]
    # (1, 250, 48)
    tokens = encoder.patch_embed(encoder.log_mel(waveform)) + encoder.pos_embed[:, 1:]
    assert largest_difference(tokens[:, ::10], FRAME[f"{case}_tokens"]) < 1e-5
    assert largest_difference(encoder.blocks[0](tokens)[:, ::10], FRAME[f"{case}_block0"]) < 1e-5
    frames = encoder(waveform)
    assert largest_difference(frames, FRAME[f"{case}_out"]) < 1e-5
    assert np.abs(frames[0, ::25].detach().numpy() - FRAME[f"{case}_out_f64_slice"]).max() < 1e-5
    short = encoder.encode_mel(encoder.log_mel(waveform)[:, :, :321])
    assert largest_difference(short[:, ::8], FRAME[f"{case}_out_321frames"]) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_resampled_clip_equals_the_reference(case: str):
    waveform = torchaudio.functional.resample(
        torch.from_numpy(formulas.waveform(32_000))[None], 32_000, 16_000
    )
    assert (
        largest_difference(small_encoder(case)(waveform)[:, ::5], FRAME[f"{case}_wrapper_out"][0])
        < 1e-5
    )


def test_golden_numbers_notice_a_shifted_position_table():
    encoder = small_encoder()
    # positions from row 0 in place of row 1
    encoder.pos_embed.data = encoder.pos_embed.data.roll(-1, dims=1)
    assert largest_difference(encoder(loud_window()[None]), FRAME["Q_out"]) > 1e-2


def test_a_window_does_not_see_its_neighbours():
    encoder, batch = small_encoder(), torch.stack([loud_window(), quiet_window()])
    torch.testing.assert_close(encoder(batch)[1], encoder(batch[1:])[0], rtol=0, atol=1e-5)


def test_bf16_autocast_stays_near_float32():
    encoder, waveform = small_encoder("S"), loud_window()[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = encoder(waveform)
    assert (found - encoder(waveform)).abs().max() < 0.1  # features have unit variance


def test_every_trainable_parameter_gets_a_gradient():
    encoder = AtstFrame(embed_dim=8, depth=2, num_heads=2)
    encoder(torch.randn(1, 8_000)).square().sum().backward()
    assert [
        name
        for name, parameter in encoder.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ] == []
    assert [
        name for name, parameter in encoder.named_parameters() if not parameter.requires_grad
    ] == ["mask_embed"]


# --- official checkpoints ---


def write_checkpoint(path: Path, state: dict, prefix: str, **other) -> Path:
    checkpoint = {
        "epoch": 3,
        "pytorch-lightning_version": "1.6.0",
        "hyper_parameters": {"arch": "base", "args": argparse.Namespace(lr=1e-4)},
        "state_dict": (
            {prefix + key: value for key, value in state.items()}
            | {"encoder.head.weight": torch.zeros(3)}
        ),
    }
    torch.save(checkpoint | other, path)
    return path


@pytest.mark.parametrize("prefix", PREFIXES)
def test_official_layouts_load(tmp_path: Path, prefix: str):
    state = small_encoder().state_dict()
    path = write_checkpoint(tmp_path / "a.ckpt", state, prefix)
    # the distilled layout holds a second encoder, which must not be taken
    if "frame_encoder" in prefix:
        checkpoint = torch.load(path, weights_only=False)
        checkpoint["state_dict"] |= {
            f"encoder.encoder.teacher_module.{key}": value + 1 for key, value in state.items()
        }
        torch.save(checkpoint, path)
    encoder = AtstFrame(embed_dim=48, depth=2, num_heads=4)
    encoder.load_official(path)
    assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())


def test_self_supervised_layout_with_class_token_and_plain_norm_loads(tmp_path: Path):
    state = small_encoder().state_dict()
    official = {key.replace("norm_frame.", "norm."): value for key, value in state.items()} | {
        "cls_token": torch.zeros(1, 1, 48)
    }
    encoder = AtstFrame(embed_dim=48, depth=2, num_heads=4)
    encoder.load_official(write_checkpoint(tmp_path / "a.ckpt", official, "model.teacher.encoder."))
    assert torch.equal(encoder.norm_frame.weight, state["norm_frame.weight"])


def without(state: dict, *parts: str) -> dict:
    return {key: value for key, value in state.items() if not any(part in key for part in parts)}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


FINE_TUNED = PREFIXES[2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p, state: None, "do not exist; set audio_encoder.checkpoint"),
        (lambda p, state: p.mkdir(), "is a folder, expected a file; set audio_encoder.checkpoint"),
        (lambda p, state: p.write_bytes(b""), "truncated or no PyTorch checkpoint"),
        (lambda p, state: p.write_text("<html>404</html>"), "truncated or no PyTorch checkpoint"),
        (
            lambda p, state: truncate(write_checkpoint(p, state, FINE_TUNED)),
            "truncated or no PyTorch checkpoint",
        ),
        (lambda p, state: torch.save([1, 2], p), 'no "state_dict"'),
        (
            lambda p, state: write_checkpoint(p, state, ""),
            r"no key that begins with model.teacher.encoder., .*found mask_embed, ",
        ),
        (
            lambda p, state: write_checkpoint(p, without(state, "mask_embed"), FINE_TUNED),
            "lacks mask_embed of ATST-Frame with embed_dim",
        ),
        (
            lambda p, state: write_checkpoint(p, without(state, "blocks.1."), FINE_TUNED),
            r"lacks blocks.1.norm1.weight, .*\(11 in all\)",
        ),
        (
            lambda p, state: write_checkpoint(p, AtstFrame(48, 3, 4).state_dict(), FINE_TUNED),
            "has blocks.2.norm1.weight, .*set audio_enc",
        ),
        (
            lambda p, state: write_checkpoint(p, AtstFrame(32, 2, 4).state_dict(), FINE_TUNED),
            r"mask_embed \[1, 1, 32\] for \[1, 1, 48\], ",
        ),
        (
            lambda p, state: write_checkpoint(p, state, FINE_TUNED, callbacks=NotAllowed()),
            "Python object .*NotAllowed.*if you trust",
        ),
    ],
    ids=(
        "absent folder empty html truncated no_state_dict no_prefix missing_key shallower deeper"
        " other_size unsafe".split()
    ),
)
def test_checkpoints_that_do_not_fit_end_in_one_line_and_change_nothing(
    tmp_path: Path, make, message: str
):
    path = tmp_path / "weights.ckpt"
    make(path, small_encoder().state_dict())
    encoder = AtstFrame(embed_dim=48, depth=2, num_heads=4)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(UserError, match=message) as error:
        encoder.load_official(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
