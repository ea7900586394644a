"""Pooling against golden numbers of the reference and against the unfolded formula, pair by pair.

Letters: N texts, B audios, T frames, D = dim, D_p = attention_dim.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from retrieval.base.errors import UserError
from retrieval.models import pooling
from retrieval.models.pooling import MeanPooling, TextAwareAttentionPooling, cosine
from tests.golden import formulas

GOLDEN = np.load(Path(__file__).resolve().parents[1] / "golden" / "tap.npz")
CASES = {"S": {"scale": 0.02}, "Q": {"scale": 0.2, "ln_scale": 0.1}}
REFERENCE_NAMES = {
    "w_q": "query",
    "w_k": "key",
    "w_v": "value",
    "w_0": "output",
    "layer_norm": "norm",
}
REFERENCE_SHAPES = {f"w_{x}.weight": (128, 64) for x in "qkv"} | {
    f"w_{x}.bias": (128,) for x in "qkv"
}
REFERENCE_SHAPES |= {
    "w_0.weight": (64, 128),
    "w_0.bias": (64,),
    "layer_norm.weight": (64,),
    "layer_norm.bias": (64,),
}


def unfolded(
    module: TextAwareAttentionPooling, text: Tensor, frames: Tensor, mask: Tensor
) -> Tensor:
    """The formula of the paper as it stands, audio by audio: pooled audio (N, B, D)."""
    pooled = []
    for audio, valid in zip(frames, mask):
        query = module.query(module.norm(text))  # (N, D_p)
        key, value = module.key(module.norm(audio)), module.value(module.norm(audio))  # (T, D_p)
        logits = query @ key.T / math.sqrt(key.shape[1])  # (N, T)
        weights = logits.masked_fill(~valid, -math.inf).softmax(dim=1)
        pooled.append(module.norm(module.output(weights @ value)))
    return torch.stack(pooled, dim=1)


def unfolded_score(
    module: TextAwareAttentionPooling, text: Tensor, frames: Tensor, mask: Tensor
) -> Tensor:
    return functional.cosine_similarity(text[:, None], unfolded(module, text, frames, mask), dim=-1)


def folded_score(
    module: TextAwareAttentionPooling, text: Tensor, frames: Tensor, mask: Tensor
) -> Tensor:
    return module.score(text, frames, mask)


def our_name(name: str) -> str:
    part, parameter = name.split(".")
    return f"{REFERENCE_NAMES[part]}.{parameter}"


def golden_module(case: str) -> TextAwareAttentionPooling:
    module = TextAwareAttentionPooling(64, 128).eval()
    weights = formulas.params(REFERENCE_SHAPES, case, **CASES[case])
    module.load_state_dict(
        {our_name(name): torch.from_numpy(value) for name, value in weights.items()}
    )
    return module


def golden_inputs() -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.from_numpy(GOLDEN["text"][:, 0]),
        torch.from_numpy(GOLDEN["audio"]),
        torch.from_numpy(GOLDEN["mask"]) > 0,
    )


def random_inputs(
    num_texts: int = 6, num_audios: int = 5, num_frames: int = 9, dim: int = 16
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(num_texts, dim, generator=generator)
    frames = torch.randn(num_audios, num_frames, dim, generator=generator)
    num_valid = torch.randint(1, num_frames + 1, (num_audios, 1), generator=generator)
    return text, frames, torch.arange(num_frames) < num_valid


def gradients(module: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    return dict(
        zip(
            [name for name, _ in module.named_parameters()],
            torch.autograd.grad(loss, list(module.parameters())),
        )
    )


# --- golden numbers ---


@pytest.mark.parametrize("score", [folded_score, unfolded_score])
@pytest.mark.parametrize("case", CASES)
def test_scores_equal_the_reference(case: str, score):
    found = score(golden_module(case), *golden_inputs()).detach().numpy()
    assert np.abs(found - GOLDEN[f"{case}_C_textraw"]).max() < 1e-6
    assert np.abs(found - GOLDEN[f"{case}_C_textraw_f64"]).max() < 1e-6
    text, frames, mask = golden_inputs()
    unmasked = score(golden_module(case), text, frames, torch.ones_like(mask)).detach().numpy()
    assert np.abs(unmasked - GOLDEN[f"{case}_C_textraw"]).max() > 1e-2  # negative control


@pytest.mark.parametrize("score", [folded_score, unfolded_score])
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_the_reference(case: str, score):
    module, (text, frames, mask) = golden_module(case), golden_inputs()
    text.requires_grad_(), frames.requires_grad_()
    # As the reference has it: raw text for the first audio, normalised text for the others.
    first = score(module, text, frames[:1], mask[:1])
    scores = torch.cat(
        [first, score(module, functional.normalize(text, dim=1), frames[1:], mask[1:])], dim=1
    )
    assert np.abs(scores.detach().numpy() - GOLDEN[f"{case}_C_ref"]).max() < 1e-6
    (scores * torch.from_numpy(GOLDEN["G"])).sum().backward()
    found = {name: module.get_parameter(our_name(name)).grad for name in REFERENCE_SHAPES}
    found |= {"audio": frames.grad, "text": text.grad[:, None]}
    assert found.pop("w_k.bias").abs().max() < 1e-6  # zero; the reference holds rounding noise
    for name, gradient in found.items():
        golden = GOLDEN[f"{case}_grad.{name}"]
        assert np.linalg.norm(gradient.numpy() - golden) < 1e-5 * np.linalg.norm(golden), name
        assert abs(gradient.norm().item() / GOLDEN[f"{case}_gradnorm_f64.{name}"] - 1) < 1e-5, name


@pytest.mark.parametrize("case", CASES)
def test_pooled_audio_and_attention_equal_the_reference(case: str):
    module, (text, frames, mask) = golden_module(case), golden_inputs()
    pooled = module(text, frames, mask).detach().numpy()
    assert np.abs(pooled - GOLDEN[f"{case}_z"][:, :, 0].transpose(1, 0, 2)).max() < 1e-5
    attention = module.attention(text, frames, mask).detach()
    assert np.abs(attention[:, 0].numpy() - GOLDEN[f"{case}_attn_audio0"]).max() < 1e-6
    torch.testing.assert_close(attention.sum(dim=2), torch.ones(7, 5))
    assert attention[:, ~mask].abs().max() == 0


def test_mean_pooling_equals_the_reference():
    text, frames, mask = golden_inputs()
    pooled = MeanPooling()(frames, mask)
    assert np.abs(pooled.numpy() - GOLDEN["pooled_mean"]).max() < 1e-6
    scores = MeanPooling().score(text, pooled[:, None], mask[:, :1])
    assert np.abs(scores.numpy() - GOLDEN["C_mean"].T).max() < 1e-6  # golden is (audio, text)
    assert (
        np.abs(MeanPooling()(frames, torch.ones_like(mask)).numpy() - GOLDEN["pooled_mean"]).max()
        > 1e-2
    )  # negative control


# --- the folded computation ---


# few vectors go through both linear maps, many through their product
@pytest.mark.parametrize("num_texts", [3, 200])
@pytest.mark.parametrize("num_audios", [2, 40])
def test_folded_equals_unfolded_either_side_of_the_premultiplied_matrices(
    num_texts: int, num_audios: int
):
    module = TextAwareAttentionPooling(16, 24).eval()
    text, frames, mask = random_inputs(num_texts, num_audios)
    torch.testing.assert_close(
        module(text, frames, mask), unfolded(module, text, frames, mask), rtol=0, atol=5e-6
    )
    torch.testing.assert_close(
        module.score(text, frames, mask),
        unfolded_score(module, text, frames, mask),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("bias", ["query", "value", "output"])
def test_every_bias_but_the_keys_counts(bias: str):
    module, inputs = golden_module("Q"), golden_inputs()
    module.key.bias.data += 1.0
    assert np.abs(module.score(*inputs).detach().numpy() - GOLDEN["Q_C_textraw"]).max() < 1e-6
    module.get_submodule(bias).bias.data.zero_()
    assert np.abs(module.score(*inputs).detach().numpy() - GOLDEN["Q_C_textraw"]).max() > 1e-4


def test_dropout_on_the_weights_is_exact():
    module, (text, frames, mask) = (
        TextAwareAttentionPooling(16, 24, attention_dropout=0.5),
        random_inputs(),
    )
    torch.manual_seed(0)
    found = module(text, frames, mask)
    query, key, value = (
        module.query(module.norm(text)),
        module.key(module.norm(frames)),
        module.value(module.norm(frames)),
    )
    logits = query @ key.transpose(1, 2) / math.sqrt(24)  # (B, N, T)
    torch.manual_seed(0)
    weights = functional.dropout(logits.masked_fill(~mask[:, None], -math.inf).softmax(dim=2), 0.5)
    torch.testing.assert_close(
        found, module.norm(module.output(weights @ value)).transpose(0, 1), rtol=0, atol=5e-6
    )
    assert (found - module.eval()(text, frames, mask)).abs().max() > 0.1


def test_output_dropout_is_for_training_only():
    module, inputs = TextAwareAttentionPooling(16, 24, output_dropout=0.5), random_inputs()
    assert 0.3 < (module(*inputs) == 0).float().mean() < 0.7
    assert (module.eval()(*inputs) == 0).sum() == 0


@pytest.mark.parametrize("block_elements", [1, 60, 600])
def test_blocks_change_neither_scores_nor_gradients(block_elements: int):
    module, inputs = TextAwareAttentionPooling(16, 24), random_inputs()
    whole = module.score(*inputs)
    expected = gradients(module, whole.square().sum())
    module.block_elements = block_elements
    blocked = module.score(*inputs)
    torch.testing.assert_close(blocked, whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        gradients(module, blocked.square().sum()), expected, rtol=1e-5, atol=1e-6
    )
    with torch.no_grad():  # works in other blocks: by audios too, and without their padding
        torch.testing.assert_close(module.score(*inputs), whole, rtol=0, atol=1e-6)


def test_recomputed_blocks_replay_their_dropout(monkeypatch):
    module, inputs = TextAwareAttentionPooling(16, 24, attention_dropout=0.5), random_inputs()
    module.block_elements = 200
    torch.manual_seed(0)
    found = gradients(module, module.score(*inputs).square().sum())
    monkeypatch.setattr(
        pooling, "checkpoint", lambda function, *arguments, use_reentrant: function(*arguments)
    )
    torch.manual_seed(0)
    torch.testing.assert_close(found, gradients(module, module.score(*inputs).square().sum()))


class LargestTensor(TorchDispatchMode):
    """Numbers in the largest tensor that any operation returned."""

    largest = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                storage_shared = tensor._is_view()  # an expanded view holds nothing
                self.largest = max(self.largest, 0 if storage_shared else tensor.numel())
        return result


@pytest.mark.parametrize("with_gradient", [False, True])
def test_score_never_holds_a_vector_for_every_pair(with_gradient: bool):
    module, (text, frames, mask) = (
        TextAwareAttentionPooling(16, 24),
        random_inputs(num_texts=100, num_audios=80, num_frames=9),
    )
    module.block_elements = 8_000
    with torch.set_grad_enabled(with_gradient), LargestTensor() as tensors:
        scores = module.score(text, frames, mask)
        if with_gradient:
            scores.sum().backward()
    # the scores themselves, and what belongs to audios alone
    assert 100 * 80 <= tensors.largest <= 80 * 9 * 24
    with LargestTensor() as tensors:  # negative control: forward does hold it
        module(text, frames, mask)
    assert tensors.largest >= 100 * 80 * 16


# --- padding, precision, parameters ---


def test_padding_frames_get_no_weight():
    module, (text, frames, mask) = TextAwareAttentionPooling(16, 24).eval(), random_inputs()
    other = torch.where(mask[:, :, None], frames, 100.0 * frames)
    assert torch.equal(module.score(text, frames, mask), module.score(text, other, mask))
    assert torch.equal(MeanPooling()(frames, mask), MeanPooling()(other * mask[:, :, None], mask))
    assert not torch.equal(
        module.score(text, frames, torch.ones_like(mask)),
        module.score(text, other, torch.ones_like(mask)),
    )


def test_audio_without_a_valid_frame_gives_finite_numbers():
    module, (text, frames, mask) = TextAwareAttentionPooling(16, 24), random_inputs()
    scores = module.score(text, frames, torch.zeros_like(mask))
    assert scores.isfinite().all() and all(
        gradient.isfinite().all() for gradient in gradients(module, scores.sum()).values()
    )
    pooled = MeanPooling()(frames, torch.zeros_like(mask))
    assert MeanPooling().score(text, pooled[:, None], mask[:, :1]).abs().max() == 0


def test_scores_are_float32_under_bf16_autocast():
    module, (text, frames, mask) = golden_module("Q"), golden_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for found, golden in [
            (module.score(text, frames, mask), GOLDEN["Q_C_textraw"]),
            (
                MeanPooling().score(text, MeanPooling()(frames, mask)[:, None], mask[:, :1]),
                GOLDEN["C_mean"].T,
            ),
        ]:
            assert found.dtype == torch.float32
            assert np.abs(found.detach().numpy() - golden).max() < 0.01
            # not computed in bf16 and widened: that makes ties
            assert (found != found.bfloat16().float()).any()
        attention = module.attention(text, frames, mask)
    assert attention.dtype == torch.float32
    torch.testing.assert_close(attention.sum(dim=2), torch.ones(7, 5), rtol=0, atol=1e-6)


def test_a_bf16_module_scores_in_float32():
    module, (text, frames, mask) = golden_module("Q").bfloat16(), golden_inputs()
    found = module.score(text.bfloat16(), frames.bfloat16(), mask)
    assert (
        found.dtype == torch.float32
        and np.abs(found.detach().numpy() - GOLDEN["Q_C_textraw"]).max() < 0.02
    )


@pytest.mark.parametrize("init", ["default", "identity"])
def test_every_parameter_gets_a_gradient_and_the_key_bias_a_zero(init: str):
    module = TextAwareAttentionPooling(16, 24, init=init)
    found = gradients(module, module.score(*random_inputs()).square().sum())
    assert found.pop("key.bias").abs().max() == 0
    assert all(gradient.abs().max() > 0 for gradient in found.values())


def test_cosine_of_zero_vectors_is_zero_with_finite_gradient():
    text = torch.zeros(2, 4, requires_grad=True)
    scores = cosine(text, torch.randn(3, 4))
    scores.sum().backward()
    assert scores.abs().max() == 0 and text.grad.isfinite().all()


def test_mean_pooling_scores_one_vector_a_clip():
    text, frames, mask = random_inputs()
    with pytest.raises(ValueError, match=r"found frames \(5, 9, 16\)"):
        MeanPooling().score(text, frames, mask)


# --- initialisation ---


@pytest.mark.parametrize("attention_dim", [16, 40])
def test_identity_starts_as_similarity_weighted_average_of_frames(attention_dim: int):
    module, (text, frames, mask) = (
        TextAwareAttentionPooling(16, attention_dim, init="identity").eval(),
        random_inputs(),
    )
    texts, audios = functional.layer_norm(text, (16,)), functional.layer_norm(frames, (16,))
    weights = torch.zeros(6, 5, 9)
    for n in range(6):
        for b in range(5):
            weights[n, b, mask[b]] = (
                audios[b, mask[b]] @ texts[n] / math.sqrt(attention_dim)
            ).softmax(dim=0)
    torch.testing.assert_close(module.attention(text, frames, mask), weights, rtol=0, atol=1e-6)
    average = functional.layer_norm(torch.einsum("nbt,btd->nbd", weights, audios), (16,))
    torch.testing.assert_close(module(text, frames, mask), average, rtol=0, atol=1e-5)
    default = TextAwareAttentionPooling(16, attention_dim).eval()(text, frames, mask)
    assert (default - average).abs().max() > 0.1  # negative control


def test_identity_lets_the_extra_coordinates_learn():
    torch.manual_seed(0)
    module, inputs = TextAwareAttentionPooling(16, 40, init="identity"), random_inputs()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    for _ in range(2):  # query and value move once key and output have
        optimizer.zero_grad()
        module.score(*inputs).square().sum().backward()
        optimizer.step()
    for name in ("query", "key", "value"):
        assert (
            module.get_parameter(f"{name}.weight")[16:] - start[f"{name}.weight"][16:]
        ).abs().max() > 0, name
    assert (module.output.weight[:, 16:] - start["output.weight"][:, 16:]).abs().max() > 0


def test_unknown_or_impossible_initialisation_is_refused():
    with pytest.raises(
        UserError,
        match=(
            "pooling.init=identity needs pooling.attention_dim >= dim, found 8 < 16;"
            " .*pooling.init=default"
        ),
    ):
        TextAwareAttentionPooling(16, 8, init="identity")
    with pytest.raises(UserError, match='"default" or "identity", found \'eye\''):
        TextAwareAttentionPooling(16, 16, init="eye")
