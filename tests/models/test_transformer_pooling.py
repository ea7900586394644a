"""The transformer pooling against PyTorch's own layers, clip by clip without padding.

Letters: N texts, B clips, T frames, F = dim, D the size of the shared space.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from retrieval.base.errors import UserError
from retrieval.models.transformer_pooling import TransformerPooling

DIM, MAX_FRAMES, NUM_HEADS = 24, 12, 4


@pytest.fixture(params=["first", "mean"])
def readout(request) -> str:
    return request.param


@pytest.fixture
def pooling(readout: str) -> TransformerPooling:
    """In eval mode; no two weights alike, so that a mix-up is seen."""
    torch.manual_seed(0)
    module = TransformerPooling(DIM, MAX_FRAMES, num_layers=2, num_heads=NUM_HEADS, readout=readout)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module.eval()


def inputs() -> tuple[Tensor, Tensor]:
    """frames (B, T, F), mask (B, T); T is less than MAX_FRAMES."""
    torch.manual_seed(1)
    return torch.randn(4, 10, DIM), torch.arange(10) < torch.tensor([10, 7, 1, 4])[:, None]


def slow(pooling: TransformerPooling, frames: Tensor, mask: Tensor) -> Tensor:
    """One clip at a time, its valid frames alone, through nn.TransformerEncoderLayer."""
    layers = []
    for layer in pooling.layers:
        reference = nn.TransformerEncoderLayer(
            DIM, NUM_HEADS, 4 * DIM, activation="gelu", batch_first=True, norm_first=True
        )
        linears = {
            "self_attn.in_proj_": layer.qkv,
            "self_attn.out_proj.": layer.proj,
            "linear1.": layer.mlp[0],
            "linear2.": layer.mlp[3],
        }
        linears |= {"norm1.": layer.norm1, "norm2.": layer.norm2}
        reference.load_state_dict(
            {
                prefix + kind: getattr(module, kind)
                for prefix, module in linears.items()
                for kind in ("weight", "bias")
            }
        )
        layers.append(reference.eval())
    pooled = []
    for clip, valid in zip(frames, mask):
        hidden = clip[valid] + pooling.positions[: valid.sum()]
        if pooling.token is not None:
            hidden = torch.cat([pooling.token[None], hidden])
        for layer in layers:
            hidden = layer(hidden[None])[0]
        hidden = functional.layer_norm(hidden, (DIM,), pooling.norm.weight, pooling.norm.bias)
        pooled.append(hidden.mean(dim=0) if pooling.token is None else hidden[0])
    return torch.stack(pooled)


def test_the_batch_equals_pytorchs_layers_clip_by_clip(pooling: TransformerPooling):
    frames, mask = inputs()
    found = pooling(frames, mask)
    assert found.shape == (4, DIM)
    assert (found - slow(pooling, frames, mask)).abs().max() < 1e-5
    # Negative control: padding that is taken for frames, and frames in another order.
    assert (found - slow(pooling, frames, torch.ones_like(mask))).abs().amax(dim=1)[1:].min() > 1e-2
    assert (found[0] - pooling(frames.flip(1), mask)[0]).abs().max() > 1e-2


def test_what_is_in_padding_does_not_matter(pooling: TransformerPooling):
    frames, mask = inputs()
    expected = pooling(frames, mask)
    for garbage in (1e6, torch.inf, torch.nan):
        assert torch.equal(pooling(torch.where(mask[..., None], frames, garbage), mask), expected)
    # Negative control: a valid frame does.
    frames[1, 6, 0] += 1.0  # one number: the same for all would not pass the LayerNorm
    changed = (pooling(frames, mask) - expected).abs().amax(dim=1)
    assert changed[1] > 1e-3 and changed[[0, 2, 3]].max() == 0


def test_a_clip_alone_is_the_clip_in_a_batch(pooling: TransformerPooling):
    frames, mask = inputs()
    found = pooling(frames, mask)
    for i, num_valid in enumerate(mask.sum(dim=1)):
        assert (
            pooling(frames[i : i + 1, :num_valid], mask[i : i + 1, :num_valid])[0] - found[i]
        ).abs().max() < 1e-5


def test_without_gradients_the_numbers_are_the_same(pooling: TransformerPooling):
    frames, mask = inputs()
    expected = pooling(frames, mask)
    with torch.no_grad():
        assert torch.equal(pooling(frames, mask), expected)


def test_dropout_in_training_only(pooling: TransformerPooling, readout: str):
    frames, mask = inputs()
    assert not torch.equal(pooling.train()(frames, mask), pooling(frames, mask))
    without = TransformerPooling(DIM, MAX_FRAMES, 2, NUM_HEADS, readout, dropout=0.0)
    without.load_state_dict(pooling.state_dict())
    assert torch.equal(without.train()(frames, mask), pooling.eval()(frames, mask))


def test_attention_weights_drop_out(pooling: TransformerPooling):
    for module in pooling.train().modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    frames, mask = inputs()
    assert not torch.equal(pooling(frames, mask), pooling(frames, mask))


def test_every_parameter_gets_a_gradient(pooling: TransformerPooling, readout: str):
    pooling.train()(*inputs()).square().sum().backward()
    assert [
        name
        for name, parameter in pooling.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ] == []
    assert ("token" in dict(pooling.named_parameters())) == (readout == "first")


def test_padding_gives_no_gradient_even_where_it_is_no_number(pooling: TransformerPooling):
    frames, mask = inputs()
    frames = torch.where(mask[..., None], frames, torch.nan).requires_grad_()
    pooling(frames, mask).square().sum().backward()
    assert frames.grad.isfinite().all() and not frames.grad[~mask].any() and frames.grad[mask].all()
    assert all(parameter.grad.isfinite().all() for parameter in pooling.parameters())


def test_a_clip_without_a_valid_frame_is_finite_and_leaves_the_others(
    pooling: TransformerPooling, readout: str
):
    frames, mask = inputs()
    expected = pooling(frames, mask)
    mask[2] = False
    attended = []
    with pooling.layers[0].register_forward_pre_hook(
        lambda _module, arguments: attended.append(arguments[1])
    ):
        found = pooling(frames, mask)
    # what a kernel makes of nothing to attend to is its own affair
    assert attended[0].any(dim=1).all()
    assert found.isfinite().all() and (found - expected)[[0, 1, 3]].abs().max() < 1e-6
    assert (not found[2].any()) == (readout == "mean")


@pytest.mark.parametrize("gradients", [True, False])
def test_float32_comes_out_also_under_autocast(pooling: TransformerPooling, gradients: bool):
    frames, mask = inputs()
    exact = pooling(frames, mask)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(gradients):
        found = pooling(frames.bfloat16(), mask)
    assert found.dtype == torch.float32
    assert (found - exact).norm() < 0.05 * exact.norm()


def test_scores_are_cosines(pooling: TransformerPooling):
    text, clips = torch.randn(3, 8), torch.randn(4, 1, 8)
    found = pooling.score(text, clips, torch.ones(4, 1, dtype=torch.bool))  # (N, B)
    assert torch.allclose(
        found, functional.cosine_similarity(text[:, None], clips[:, 0], dim=-1), atol=1e-6
    )
    with pytest.raises(ValueError, match="pool and project"):
        pooling.score(text, torch.randn(4, 2, 8), torch.ones(4, 2, dtype=torch.bool))


def test_more_frames_than_positions(pooling: TransformerPooling):
    pooling(torch.randn(1, MAX_FRAMES, DIM), torch.ones(1, MAX_FRAMES, dtype=torch.bool))
    with pytest.raises(ValueError, match="positions for 12 frames, found 13"):
        pooling(
            torch.randn(1, MAX_FRAMES + 1, DIM), torch.ones(1, MAX_FRAMES + 1, dtype=torch.bool)
        )


def test_wrong_settings():
    message = (
        "pooling.num_heads=7 does not divide the 24 numbers of an audio frame; set it to one of 1,"
        " 2, 3, 4, 6, 8, 12"
    )
    with pytest.raises(UserError) as caught:
        TransformerPooling(24, 10, num_heads=7)
    assert str(caught.value) == message
    with pytest.raises(UserError, match="pooling.readout must be one of first, mean, found 'last'"):
        TransformerPooling(24, 10, readout="last")


def test_it_is_built_without_memory():
    with torch.device("meta"):
        module = TransformerPooling(768, 750, num_layers=2)
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
    assert (
        sum(parameter.numel() for parameter in module.parameters())
        == 2 * (12 * 768**2 + 13 * 768) + (750 + 1 + 2) * 768
    )
