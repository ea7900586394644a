"""Golden numbers of the reference (tests/golden) on the device, in three precisions."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.full_size import ROOT
from benchmarks.gpu.steps import Place
from retrieval.models.audio.atst import AtstFrame
from retrieval.models.pooling import TextAwareAttentionPooling
from retrieval.models.windows import resample
from tests.golden import formulas

GOLDEN = ROOT / "tests" / "golden"
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Largest accepted difference: at least twice that on a CPU. Frames have unit variance, scores are
# cosines, and each gradient is relative to its norm. Spectrograms and resampled sounds are float32
# in every precision.
MOST = {
    "resampled": dict.fromkeys(DTYPES, 1e-5),
    "log-mel": dict.fromkeys(DTYPES, 1e-4),
    "frames": {"float32": 1e-4, "bf16": 0.1, "fp16": 0.02},
    "scores": {"float32": 1e-5, "bf16": 0.02, "fp16": 0.003},
    "gradients": {"float32": 1e-4, "bf16": 0.2, "fp16": 0.05},
}
# As in tests/models.
ENCODER_SCALES = {"S": {"scale": 0.02}, "Q": {"scale": 0.15, "ln_scale": 0.1}}
POOLING_SCALES = {"S": {"scale": 0.02}, "Q": {"scale": 0.2, "ln_scale": 0.1}}
POOLING_NAMES = {"w_q": "query", "w_k": "key", "w_v": "value", "w_0": "output"}
POOLING_NAMES |= {"layer_norm": "norm"}


def parity(place: Place) -> Iterator[dict[str, Any]]:
    """Compare resampling, spectrogram, frames of ATST-Frame, TAP's scores and gradients.

    Raises AssertionError, after all rows, if a difference is too large.
    """
    wrong = []
    for precision, dtype in DTYPES.items():
        for what, case, difference in differences(torch.device(place.device), dtype):
            most = MOST[what][precision]
            is_good = difference <= most  # False for NaN
            row = {"precision": precision, "what": what, "weights": case}
            yield row | {"largest difference": difference, "accepted": most, "good": is_good}
            if not is_good:
                wrong.append(f"{what} in {precision} ({difference:.1e})")
    assert not wrong, f"golden numbers are missed: {', '.join(wrong)}"


def differences(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, str, float]]:
    """Yield the compared quantity, the case of weights, and the largest difference."""

    def computed(work: Callable[[], torch.Tensor]) -> np.ndarray:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            return work().detach().float().cpu().numpy()

    golden = np.load(GOLDEN / "resample.npz")
    clip = torch.from_numpy(formulas.waveform(32_000))[None].to(device)
    heard = computed(lambda: resample(clip, 32_000, 16_000))
    yield "resampled", "", largest(heard[0, ::50], golden["out_every50"])

    window = torch.from_numpy(formulas.waveform(16_000))[None].to(device)
    for case in ENCODER_SCALES:
        golden, encoder = np.load(GOLDEN / "atst_frame.npz"), make_encoder(case).to(device)
        if case == "S":
            mel = np.load(GOLDEN / "atst_mel.npz")["logmel"][0]
            yield "log-mel", "", largest(computed(lambda: encoder.log_mel(window)), mel)
        with torch.no_grad():
            yield "frames", case, largest(computed(lambda: encoder(window)), golden[f"{case}_out"])

    golden = np.load(GOLDEN / "tap.npz")
    for case in POOLING_SCALES:
        pooling = make_pooling(case).to(device)
        text, frames, mask = (
            torch.from_numpy(golden[name]).to(device) for name in ("text", "audio", "mask")
        )
        text, mask = text[:, 0], mask > 0
        with torch.no_grad():
            scores = computed(lambda: pooling.score(text, frames, mask))
        yield "scores", case, largest(scores, golden[f"{case}_C_textraw"])
        yield "gradients", case, of_gradients(pooling, text, frames, mask, golden, case, dtype)


def of_gradients(
    pooling: TextAwareAttentionPooling,
    text: torch.Tensor,
    frames: torch.Tensor,
    mask: torch.Tensor,
    golden: Any,
    case: str,
    dtype: torch.dtype,
) -> float:
    """Return the largest ||ours - golden|| / ||golden|| of text, frames and weights."""
    text, frames = text.clone().requires_grad_(), frames.clone().requires_grad_()
    with torch.autocast(text.device.type, dtype=dtype, enabled=dtype != torch.float32):
        # As the reference: raw text for the first audio, normalised text for the others.
        first = pooling.score(text, frames[:1], mask[:1])
        unit = nn.functional.normalize(text, dim=1)
        scores = torch.cat([first, pooling.score(unit, frames[1:], mask[1:])], dim=1)
    (scores * torch.from_numpy(golden["G"]).to(scores.device)).sum().backward()
    found = {"audio": frames.grad, "text": text.grad[:, None]}
    for theirs, ours in POOLING_NAMES.items():
        for kind in ("weight", "bias"):
            found[f"{theirs}.{kind}"] = pooling.get_parameter(f"{ours}.{kind}").grad
    del found["w_k.bias"]  # zero; the reference holds rounding noise
    return max(
        float(np.linalg.norm(own.float().cpu().numpy() - golden[f"{case}_grad.{name}"]))
        / float(np.linalg.norm(golden[f"{case}_grad.{name}"]))
        for name, own in found.items()
    )


def make_encoder(case: str) -> AtstFrame:
    import json

    keys = json.loads((GOLDEN / "atst_base_state_dict.json").read_text())
    encoder = AtstFrame(embed_dim=48, depth=2, num_heads=4).eval()
    weights = formulas.params(
        keys["small_test_config"]["state_dict"],
        case,
        is_norm=lambda key: "norm" in key,
        **ENCODER_SCALES[case],
    )
    encoder.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    return encoder


def make_pooling(case: str) -> TextAwareAttentionPooling:
    pooling = TextAwareAttentionPooling(64, 128).eval()
    shapes = {name: tuple(weight.shape) for name, weight in pooling.named_parameters()}
    theirs = {ours: name for name, ours in POOLING_NAMES.items()}
    names = {f"{theirs[name.split('.')[0]]}.{name.split('.')[1]}": name for name in shapes}
    weights = formulas.params(
        {name: shapes[ours] for name, ours in names.items()}, case, **POOLING_SCALES[case]
    )
    pooling.load_state_dict(
        {names[name]: torch.from_numpy(value) for name, value in weights.items()}
    )
    return pooling


def largest(found: np.ndarray, golden: np.ndarray) -> float:
    assert found.shape == golden.shape, f"shape {found.shape}, golden {golden.shape}"
    return float(np.abs(found - golden).max())
