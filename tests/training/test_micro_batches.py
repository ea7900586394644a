"""A batch encoded in parts: loss and gradients of the whole, in less memory, with equal dropout."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from retrieval.base import exchange
from retrieval.base.errors import UserError
from retrieval.training import micro_batches
from retrieval.training.loop import batch_loss, train_step
from retrieval.training.setup import Run
from tests import many_processes, warm_processes
from tests.models.lora_models import change_adapters

DROPOUT = ["text_encoder.dropout=0.2", "pooling.attention_dropout=0.2"]
NO_DROPOUT = ["text_encoder.dropout=0", "pooling.attention_dropout=0"]
MEAN, TAP = ["pooling.name=mean"], ["pooling.name=tap"]
LORA = [
    *("audio_encoder.lora.dropout=0", "text_encoder.lora.dropout=0"),
    *("text_encoder.lora.targets=[query, value, dense]",),
]
BATCH = 8


def start(tiny: Path, output: Path, *overrides: str, dtype: torch.dtype = torch.float64) -> Run:
    run = many_processes.start(
        tiny, output, [f"train.batch_size={BATCH}", "evaluation.num_pictures=0", *overrides], dtype
    )
    run.optimizer.step = lambda: None  # gradients are looked at, weights stay
    return run


def first_batch(run: Run, first_step: int = 0) -> dict[str, Any]:
    run.batches.start(0, first_step)
    return next(iter(run.loader))


def gradients(run: Run) -> dict[str, torch.Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in run.model.named_parameters()
        if parameter.requires_grad
    }


def step(run: Run, first_step: int = 0) -> tuple[float, dict[str, torch.Tensor]]:
    batch = first_batch(run, first_step)
    torch.manual_seed(7)
    loss, _ = train_step(run, batch)
    return loss, gradients(run)


def assert_equal(found: tuple, expected: tuple, tolerance: float = 1e-6) -> None:
    assert found[0] == pytest.approx(expected[0], abs=tolerance)
    assert found[1].keys() == expected[1].keys()
    assert largest_difference(found[1], expected[1]) < tolerance


def largest_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Relative to the largest entry of each gradient; of one that is zero but for rounding, to that
    of all.
    """
    largest = max(value.abs().max().item() for value in expected.values())
    return max(
        (found[name] - value).abs().max().item() / max(value.abs().max().item(), 1e-3 * largest)
        for name, value in expected.items()
    )


@pytest.mark.parametrize(
    "pooling",
    [MEAN, TAP, ["pooling.name=transformer", "pooling.num_heads=2", "pooling.dropout=0"]],
    ids=lambda p: p[0],
)
@pytest.mark.parametrize("size", [1, 3, 5])
def test_parts_give_loss_and_gradients_of_the_whole(tiny, tmp_path, pooling, size):
    whole = step(start(tiny, tmp_path / "whole", *NO_DROPOUT, *pooling))
    run = start(tiny, tmp_path / "parts", *NO_DROPOUT, *pooling, f"train.micro_batch_size={size}")
    assert run.micro_batch_size == size
    assert_equal(step(run), whole)


@pytest.mark.parametrize("loss", ["sigmoid", "triplet", "pmr"])
def test_what_the_loss_learns_gets_its_gradient_once(tiny, tmp_path, loss):
    settings = [*NO_DROPOUT, f"loss.name={loss}", "loss.learnable_temperature=true"]
    whole = step(start(tiny, tmp_path / "whole", *settings))
    assert whole[1]["temperature"].abs() > 0
    assert_equal(
        step(start(tiny, tmp_path / "parts", *settings, "train.micro_batch_size=3")), whole
    )


def encoded_in_parts_with_one_graph(run: Run, size: int) -> tuple[float, dict[str, torch.Tensor]]:
    """The slow reference: parts one after the other, all activations kept, one backward pass."""
    batch = first_batch(run)
    torch.manual_seed(7)
    run.optimizer.zero_grad()
    encodings = [
        run.model({name: values[first : first + size] for name, values in batch.items()})
        for first in range(0, len(batch["captions"]), size)
    ]
    most = max(frames.shape[1] for _, frames, _ in encodings)
    text = torch.cat([encoding[0] for encoding in encodings])
    frames = torch.cat(
        [
            torch.nn.functional.pad(frames, (0, 0, 0, most - frames.shape[1]))
            for _, frames, _ in encodings
        ]
    )
    mask = torch.cat(
        [torch.nn.functional.pad(mask, (0, most - mask.shape[1])) for _, _, mask in encodings]
    )
    loss = batch_loss(run, batch, text, frames, mask)
    loss.backward()
    return loss.item(), gradients(run)


@pytest.mark.parametrize("pooling", [MEAN, TAP], ids=lambda p: p[0])
def test_dropout_is_replayed(tiny, tmp_path, pooling, monkeypatch):
    run = start(tiny, tmp_path / "run", *DROPOUT, *pooling, "train.micro_batch_size=3")
    expected = encoded_in_parts_with_one_graph(run, 3)
    assert_equal(step(run), expected)
    after = torch.rand(3)
    encoded_in_parts_with_one_graph(run, 3)
    assert torch.equal(after, torch.rand(3))  # what is drawn next is the same too
    # control: another dropout in the second pass
    monkeypatch.setattr(micro_batches, "_set_random_state", lambda *_: None)
    assert largest_difference(step(run)[1], expected[1]) > 1e-2


def test_parts_of_a_part_s_own_negatives_are_noticed(tiny, tmp_path):
    """Control: gradients of parts that see their own negatives alone are others."""
    run = start(tiny, tmp_path / "run", *NO_DROPOUT)
    whole = step(run)
    batch = first_batch(run)
    run.optimizer.zero_grad()
    for own in (slice(0, 4), slice(4, 8)):
        part = {name: value[own] for name, value in batch.items()}
        (batch_loss(run, part, *run.model(part)) / 2).backward()
    assert largest_difference(gradients(run), whole[1]) > 1e-2


def test_a_size_that_splits_nothing_is_the_plain_step(tiny, tmp_path):
    assert start(tiny, tmp_path / "run", f"train.micro_batch_size={BATCH}").micro_batch_size is None


# --- activation checkpointing ---


def kept_bytes(run: Run) -> int:
    """What the forward pass of the encoders keeps for the backward pass, each storage once."""
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = first_batch(run)
    weights = {parameter.untyped_storage().data_ptr() for parameter in run.model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = run.model(batch)
        kept = sum(size for pointer, size in storages.items() if pointer not in weights)
    del outputs
    return kept


@pytest.mark.parametrize("micro", [[], ["train.micro_batch_size=3"]], ids=["whole", "parts"])
def test_activation_checkpointing_changes_memory_and_nothing_else(tiny, tmp_path, micro):
    settings = [*DROPOUT, *micro, "audio_encoder.depth=3"]
    plain = start(tiny, tmp_path / "plain", *settings)
    saving = start(tiny, tmp_path / "saving", *settings, "train.activation_checkpointing=true")
    assert_equal(step(saving), step(plain))
    assert kept_bytes(saving) < 0.5 * kept_bytes(plain)


def test_checkpointed_encoders_save_and_evaluate_as_before(tiny, tmp_path):
    run = start(tiny, tmp_path / "run", "train.activation_checkpointing=true")
    plain = start(tiny, tmp_path / "plain")
    assert run.model.state_dict().keys() == plain.model.state_dict().keys()
    waveform, lengths = torch.randn(1, 32_000, dtype=torch.float64), torch.tensor([32_000])
    with torch.no_grad():
        assert torch.equal(
            run.model.eval().encode_audio(waveform, lengths)[0],
            plain.model.eval().encode_audio(waveform, lengths)[0],
        )


# --- torch.compile ---


needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="torch.compile needs a C++ compiler on a CPU",
)


@needs_compiler
def test_compiled_blocks_give_the_same(tiny, tmp_path):
    """In float32: compiled attention knows no other type on a CPU."""
    settings = [*NO_DROPOUT, *TAP, "audio_encoder.depth=2"]
    expected = step(start(tiny, tmp_path / "plain", *settings, dtype=torch.float32))
    run = start(
        tiny,
        tmp_path / "compiled",
        *settings,
        "train.compile=true",
        "train.micro_batch_size=3",
        dtype=torch.float32,
    )
    assert_equal(step(run), expected, tolerance=1e-5)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    assert (
        run.model.state_dict().keys()
        == start(tiny, tmp_path / "other", *settings).model.state_dict().keys()
    )


@needs_compiler
def test_dropout_is_replayed_by_compiled_blocks(tiny, tmp_path):
    # After 8 compilations of a block, those of other tests included, PyTorch compiles it no more,
    # and its dropout draws other numbers.
    torch.compiler.reset()
    settings = [*DROPOUT, *TAP, "train.micro_batch_size=3", "train.compile=true"]
    run = start(tiny, tmp_path / "run", *settings, dtype=torch.float32)
    assert_equal(step(run), encoded_in_parts_with_one_graph(run, 3), tolerance=1e-5)


def test_an_absent_compiler_is_named(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="train.compile.*no-such-compiler"):
        start(tiny, tmp_path / "run", "train.compile=true")
    assert not (tmp_path / "run").exists()


# --- several processes ---


CASES = {
    "mean": [*NO_DROPOUT, *MEAN],
    "tap": [*NO_DROPOUT, *TAP],
    "sigmoid": [*NO_DROPOUT, *TAP, "loss.name=sigmoid", "loss.learnable_temperature=true"],
    "checkpointing": [*NO_DROPOUT, *TAP, "train.activation_checkpointing=true"],
    "lora": [*NO_DROPOUT, *LORA, "train.activation_checkpointing=true"],
}
# of the global batch: five parts for one process, fewer for the other
SIZES = {"full": 8, "uneven": 7}


def one_of_two(rank: int, port: int, tiny: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
    }
    results = {}
    for name, settings in CASES.items():
        for kind, size in SIZES.items():
            run = start(
                tiny,
                folder / f"{name}_{kind}",
                *settings,
                f"train.batch_size={size}",
                "train.micro_batch_size=1",
            )
            change_adapters(run.model)
            assert exchange.world_size() == 2 and run.micro_batch_size == 1
            # DistributedDataParallel regroups after the first
            results[name, kind] = [step(run, first) for first in (0, 1)]
    if rank == 0:
        torch.save(results, folder / "results.pt")
    many_processes.leave()


def test_two_processes_in_parts_equal_one_process_with_the_whole(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    warm_processes.spawn(one_of_two, (many_processes.free_port(), tiny, tmp_path), nprocs=2)
    results = torch.load(tmp_path / "results.pt")
    for name, settings in CASES.items():
        for kind, size in SIZES.items():
            run = start(
                tiny, tmp_path / f"one_{name}_{kind}", *settings, f"train.batch_size={size}"
            )
            change_adapters(run.model)
            for first, found in enumerate(results[name, kind]):
                assert_equal(found, step(run, first))
