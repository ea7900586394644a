"""The estimate of a step's memory against steps that are really taken on the CPU.

The reference counts tensors that autograd saves (torch.autograd.graph.saved_tensors_hooks), and the
storages that live, on real tensors.
"""

from pathlib import Path

import pytest
import torch

from retrieval.config import load_config
from retrieval.models.build import build_model, build_model_without_weights
from retrieval.training import step_memory as module
from retrieval.training.setup import set_up_blocks
from retrieval.training.step_memory import _Live, step_memory

BATCH, TOKENS = 6, 9
SIZES = [
    *("dim=96", "pooling.attention_dim=128", "train.batch_size=6", "train.mixed_precision=no"),
    *("audio_encoder.embed_dim=192", "audio_encoder.depth=8", "audio_encoder.num_heads=4"),
    *("data.max_seconds=3.0", "audio_encoder.window_seconds=3.0"),
    "audio_encoder.hop_seconds=3.0",
]


def config_of(tiny: Path, *overrides: str):
    return load_config(str(tiny / "tiny.yaml"), [*SIZES, *overrides])


def estimate(tiny: Path, *overrides: str, on_gpu: bool = False, precision: str = "no", **sizes):
    config = config_of(tiny, *overrides)
    model = build_model_without_weights(config)
    return step_memory(config, model, precision, on_gpu=on_gpu, num_tokens=TOKENS, **sizes)


def real_scores(model) -> torch.Tensor:
    """Scores of clips of full length, with a graph."""
    length = model.windows.clip_samples
    frames, mask = model.encode_audio(torch.randn(BATCH, length), torch.full((BATCH,), length))
    tokens = torch.ones(BATCH, TOKENS, dtype=torch.int64)
    tokens[1:, -1] = 0
    text = model.text_projection(model.text_encoder.encode_tokens(tokens, tokens.clamp(max=1)))
    return model.score(text, frames, mask)


def saved_bytes(model) -> int:
    """Bytes of the storages that the graph keeps, without the weights."""
    kept = {}
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes(), tensor  # the tensor keeps the address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        scores = real_scores(model)
    total = sum(size for size, _ in kept.values())
    del scores
    return total


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["pooling.name=mean"],
        ["text_encoder.frozen=true"],
        ["audio_encoder.lora={rank: 4}"],
    ],
    ids=["tap", "mean", "frozen", "lora"],
)
def test_activations_are_those_that_autograd_saves(tiny, overrides):
    config = config_of(tiny, *overrides)
    model = build_model(config).train()
    saved = saved_bytes(model)
    found = estimate(tiny, *overrides)
    assert saved <= found.activations <= 1.1 * saved + 2**20
    trained = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
    weights = sum(weight.nbytes for weight in model.parameters())
    assert abs(found.kept - weights - 2 * trained) < 2**20
    # negative control: another depth is another number
    assert (
        not saved
        <= estimate(tiny, *overrides, "audio_encoder.depth=10").activations
        <= (1.1 * saved + 2**20)
    )


@pytest.mark.parametrize(
    "overrides", [[], ["train.activation_checkpointing=true"]], ids=["plain", "checkpointing"]
)
def test_the_peak_is_that_of_the_real_tensors(tiny, monkeypatch, overrides):
    """Forward and backward pass of the real model on the CPU, its live storages counted.

    All spectrograms at once, as on a GPU.
    """
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    config = config_of(tiny, *overrides)
    model = build_model(config).train()
    set_up_blocks(model, config.train, torch.device("cpu"))
    trained = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
    with _Live() as live:
        for weight in model.parameters():
            live._add(weight.untyped_storage())
        real_scores(model).sum().backward()
    found = estimate(tiny, *overrides)
    assert found.peak == pytest.approx(live.peak + 2 * trained, rel=0.03)


def test_settings_that_save_memory_save_it(tiny):
    whole = estimate(tiny).peak
    parts = estimate(tiny, "train.micro_batch_size=2").peak
    again = estimate(tiny, "train.activation_checkpointing=true").peak
    both = estimate(tiny, "train.micro_batch_size=2", "train.activation_checkpointing=true").peak
    assert both < parts < whole and again < whole
    average = estimate(tiny, "train.ema_decay=0.9")
    assert average.kept > estimate(tiny).kept


def test_clips_that_are_shorter_take_less(tiny):
    overrides = ["audio_encoder.window_seconds=1.0", "audio_encoder.hop_seconds=1.0"]
    shorter = estimate(tiny, *overrides, num_windows=9).activations
    whole = estimate(tiny, *overrides).activations
    assert 0.45 * whole < shorter < 0.8 * whole


def test_half_precision_on_a_gpu_keeps_less_than_float32(tiny):
    float32 = estimate(tiny, on_gpu=True).activations
    half = estimate(tiny, on_gpu=True, precision="bf16").activations
    assert 0.5 * float32 < half < 0.85 * float32
    assert estimate(tiny, on_gpu=True, precision="fp16").activations == half


def test_the_fused_kernels_keep_inputs_output_and_a_number_a_row():
    """What a GPU's attention keeps, counted from the shapes; softmax matrices are not there."""
    shape = 2, 4, 128, 16
    with module.FakeTensorMode(), _Live() as live, module._kernels_of_cuda():
        inputs = [torch.empty(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
        before = live.now
        result = torch.nn.functional.scaled_dot_product_attention(*inputs)
        kept = live.now - before
    row, output = 2 * 4 * 128 * 4, result.numel() * 2
    assert output + row <= kept <= output + 2 * row + 4 * module.ALIGNMENT


def test_functions_of_torch_are_as_before(tiny):
    before = torch.get_rng_state, torch.randint, torch.softmax, torch.Tensor.sum
    estimate(tiny, on_gpu=True, precision="bf16")
    assert before == (torch.get_rng_state, torch.randint, torch.softmax, torch.Tensor.sum)
    assert torch.rand(2).numel() == 2
