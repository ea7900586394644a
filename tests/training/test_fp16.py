"""fp16 with a real gradient scaler: skipped steps, clipping, resumption, two processes."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from retrieval import losses
from retrieval.base import exchange
from retrieval.base.errors import UserError
from retrieval.base.stopping import Interrupted
from retrieval.config import load_config
from retrieval.training import loop, setup
from retrieval.training.setup import Run
from retrieval.training.states import latest_state
from tests import many_processes, warm_processes

NO_DROPOUT = ["text_encoder.dropout=0", "pooling.attention_dropout=0", "evaluation.num_pictures=0"]
SCALE = 1024.0
MAKE_ACCELERATOR = setup.make_accelerator
CASES = {
    "unclipped": [],
    "clipped": ["optimizer.max_grad_norm=0.5"],
    "hardly clipped": ["optimizer.max_grad_norm=1e6"],
    "micro-batches": ["optimizer.max_grad_norm=0.5", "train.micro_batch_size=3"],
    "mean, frozen text encoder": [
        "optimizer.max_grad_norm=0.5",
        "pooling.name=mean",
        "text_encoder.frozen=true",
    ],
    "learnable temperature": ["optimizer.max_grad_norm=0.5", "loss.learnable_temperature=true"],
    "sigmoid": [
        "optimizer.max_grad_norm=0.5",
        "loss.name=sigmoid",
        "train.micro_batch_size=1",
        "loss.learnable_temperature=true",
    ],
    "checkpointing": ["optimizer.max_grad_norm=0.5", "train.activation_checkpointing=true"],
}


def with_scaler(*_arguments: Any, **_settings: Any) -> Accelerator:
    """An Accelerator of fp16 without a GPU, which Accelerate refuses to make: autocast and scaler
    are PyTorch's own for the CPU.
    """
    AcceleratorState._reset_state(reset_partial_state=False)
    accelerator = MAKE_ACCELERATOR("no")
    accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    return accelerator


@pytest.fixture
def fp16(monkeypatch) -> None:
    monkeypatch.setattr(setup, "make_accelerator", with_scaler)


def start(tiny: Path, output: Path, *overrides: str) -> Run:
    return many_processes.start(
        tiny,
        output,
        ["train.batch_size=8", *NO_DROPOUT, "optimizer.schedule.warmup_epochs=0", *overrides],
    )


def two_steps(run: Run) -> dict[str, Any]:
    """Losses, gradient norms and weights of the first two steps."""
    run.batches.start(0)
    results = []
    for _, batch in zip(range(2), run.loader):
        results.append(loop.train_step(run, batch))
        run.progress.step += 1
    weights = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    return {
        "losses": [loss for loss, _ in results],
        "norms": [norms for _, norms in results],
        "weights": weights,
    }


@pytest.mark.parametrize("case", CASES)
def test_two_steps_are_those_of_float32(tiny, tmp_path, case):
    """The first gradients to half precision's rounding, also their logged norms; Adam's steps are
    of the same size whatever the scale.
    """
    expected = two_steps(start(tiny, tmp_path / "float32", *CASES[case]))
    before = dict(start(tiny, tmp_path / "before", *CASES[case]).model.named_parameters())
    with mock.patch.object(setup, "make_accelerator", with_scaler):
        run = start(tiny, tmp_path / "fp16", *CASES[case])
        found = two_steps(run)
    assert run.accelerator.scaler.get_scale() == SCALE  # no step was skipped
    assert found["losses"] == pytest.approx(expected["losses"], rel=2e-2)
    for own, other in zip(found["norms"], expected["norms"], strict=True):
        assert own == pytest.approx(other, rel=5e-2)
    moved, same = 0.0, 0.0
    for name, weight in expected["weights"].items():
        moved += (weight - before[name]).norm().item() ** 2
        same += (found["weights"][name] - weight).norm().item() ** 2
    assert moved > 0 and same < 0.1 * moved


@pytest.mark.parametrize("micro", [[], ["train.micro_batch_size=3"]], ids=["whole", "parts"])
def test_gradients_are_unscaled_and_then_clipped(tiny, tmp_path, fp16, micro):
    def gradients_after_a_step(name: str, *overrides: str) -> torch.Tensor:
        run = start(tiny, tmp_path / name, *micro, *overrides)
        two_steps(run)
        return torch.cat(
            [
                parameter.grad.flatten()
                for parameter in run.model.parameters()
                if parameter.grad is not None
            ]
        )

    plain = gradients_after_a_step("plain", "optimizer.lr.pooling=0")
    assert 0.5 < plain.norm().item() < 0.5 * SCALE  # those that are scaled still would be above
    for limit in (0.5, 1e6):
        found = gradients_after_a_step(
            f"clipped {limit}", "optimizer.lr.pooling=0", f"optimizer.max_grad_norm={limit}"
        )
        assert found.norm().item() == pytest.approx(min(limit, plain.norm().item()), rel=0.1)


def scalars(folder: Path, name: str) -> list[float]:
    return [
        point.value
        for point in (
            EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload().Scalars(name)
        )
    ]


def scaled_by(init_scale: float, **settings: Any) -> Callable[..., Accelerator]:
    def make(*_arguments: Any, **_settings: Any) -> Accelerator:
        accelerator = with_scaler()
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, **settings)
        return accelerator

    return make


def test_steps_that_overflow_are_skipped_and_counted(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "make_accelerator", scaled_by(2.0**30))
    weights, original = [], loop.train_step

    def spy(run: Run, batch: dict[str, Any]) -> tuple[float, dict[str, float]]:
        weights.append(run.model.audio_projection.weight.detach().clone())
        return original(run, batch)

    monkeypatch.setattr(loop, "train_step", spy)
    run = tmp_path / "run"
    settings = [
        "train.epochs=5",
        "optimizer.schedule.warmup_epochs=0",
        "optimizer.max_grad_norm=1",
        "evaluation.num_pictures=0",
    ]
    loop.train(load_config(tiny / "tiny.yaml", [f"train.output={run}", *settings]))
    groups = ("audio_encoder", "text_encoder", "audio_projection", "text_projection", "pooling")
    # (groups, steps)
    norms = torch.tensor([scalars(run, f"grad_norm/{group}") for group in groups])
    skipped = ~norms.isfinite().all(dim=0)  # (steps,)
    scales = scalars(run, "train/loss_scale")
    # every step has a point, also a skipped one
    assert len(scales) == len(skipped) == 30 and 5 < skipped.sum() < 25
    assert scales[-1] == 2.0 ** (30 - int(skipped.sum()))
    for step, (before, after) in enumerate(zip(weights, weights[1:])):
        assert torch.equal(before, after) == bool(skipped[step]), step
    assert scalars(run, "lr/pooling")[0] > scalars(run, "lr/pooling")[-1]  # the schedule goes on
    assert json.loads((run / "metrics.json").read_text())["best_epoch"] > 0


def test_a_skipped_step_does_not_change_the_average(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "make_accelerator", scaled_by(2.0**20))
    run = start(tiny, tmp_path / "run", "train.ema_decay=0.9", "optimizer.max_grad_norm=1")
    scale, num_skipped, num_taken = run.accelerator.scaler.get_scale(), 0, 0
    for epoch in range(5):
        run.batches.start(epoch)
        for batch in run.loader:
            before = {name: average.clone() for name, average in run.average.averages.items()}
            loop.train_step(run, batch)
            is_skipped = run.accelerator.scaler.get_scale() < scale
            scale = run.accelerator.scaler.get_scale()
            num_skipped, num_taken = num_skipped + is_skipped, num_taken + (not is_skipped)
            same = all(torch.equal(before[name], run.average.averages[name]) for name in before)
            assert same == is_skipped
            assert run.average.num_updates == num_taken
    assert num_skipped and num_taken, (num_skipped, num_taken)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_run_that_diverges_stops(tiny, tmp_path, monkeypatch, where):
    """A loss at once, gradients when no scale helps: three steps are skipped before."""
    monkeypatch.setattr(setup, "make_accelerator", scaled_by(loop.SMALLEST_LOSS_SCALE * 8))
    original, calls = losses.LOSSES["nt_xent"], []

    def diverges(scores: torch.Tensor, positives: torch.Tensor, temperature: float) -> torch.Tensor:
        calls.append(1)
        loss = original(scores, positives, temperature)
        return (
            loss * float("nan") if where == "loss" else loss + (loss - loss.detach()).abs().sqrt()
        )

    monkeypatch.setitem(losses.LOSSES, "nt_xent", diverges)
    with pytest.raises(UserError) as caught:
        loop.train(
            load_config(
                tiny / "tiny.yaml",
                [f"train.output={tmp_path / 'run'}", "optimizer.max_grad_norm=1", *NO_DROPOUT],
            )
        )
    text = str(caught.value)
    assert len(calls) == (1 if where == "loss" else 4)
    assert ("loss is nan" if where == "loss" else "gradient norm of") in text
    # which is set already
    assert "train.mixed_precision=no" in text and "max_grad_norm" not in text


def test_resume_goes_on_with_the_scale(tiny, tmp_path, monkeypatch):
    """The scale grows after every second step, so that it is another one at every place where a run
    can stop.
    """
    monkeypatch.setattr(setup, "make_accelerator", scaled_by(16.0, growth_interval=2))
    settings = ["optimizer.max_grad_norm=1", "evaluation.num_pictures=0"]
    config = load_config(tiny / "tiny.yaml", [f"train.output={tmp_path / 'whole'}", *settings])
    loop.train(config)
    original, run = loop.train_step, tmp_path / "run"
    config = load_config(tiny / "tiny.yaml", [f"train.output={run}", *settings])

    def stopped_in_step_7(run: Run, batch: dict[str, Any]) -> tuple[float, dict[str, float]]:
        if run.progress.global_step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(run, batch)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "train_step", stopped_in_step_7)
        loop.train(config)
    torch.manual_seed(0)
    loop.train(config, resume=True)
    expected = scalars(tmp_path / "whole", "train/loss_scale")
    assert scalars(run, "train/loss_scale") == expected and len(set(expected)) > 4
    assert scalars(run, "train/loss") == scalars(tmp_path / "whole", "train/loss")


def test_a_state_without_a_scale_is_gone_on_from(tiny, tmp_path, monkeypatch):
    """As saved by a GPU with bf16, where train.mixed_precision=auto means fp16 on this one."""
    original = loop.train_step
    config = load_config(tiny / "tiny.yaml", [f"train.output={tmp_path / 'run'}", *NO_DROPOUT])
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(
            loop,
            "train_step",
            lambda run, batch: os.kill(os.getpid(), signal.SIGTERM) or original(run, batch),
        )
        loop.train(config)
    assert not (latest_state(tmp_path / "run") / "scaler.pt").exists()
    monkeypatch.setattr(setup, "make_accelerator", with_scaler)
    loop.train(config, resume=True)
    assert set(scalars(tmp_path / "run", "train/loss_scale")) == {SCALE}


# --- several processes ---


def overflows_once(rank: int, ports: list[int], tiny: Path, folder: Path) -> None:
    """Three steps, in the second of which one process has infinite gradients of its own texts. The
    third process is a group of its own.
    """
    group, num_processes = (0, 2) if rank < 2 else (1, 1)
    many_processes.join(rank % 2, num_processes, ports[group])
    original, calls = loop.batch_loss, []

    def overflowing(
        run: Run, batch: dict[str, Any], text: torch.Tensor, *arguments: torch.Tensor
    ) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2 and rank > 0:
            text.register_hook(lambda gradient: gradient * float("inf"))
        return original(run, batch, text, *arguments)

    results = []
    with (
        mock.patch.object(setup, "make_accelerator", with_scaler),
        mock.patch.object(loop, "batch_loss", overflowing),
    ):
        run = start(
            tiny,
            folder / f"run_of_{num_processes}",
            "optimizer.max_grad_norm=0.5",
            "train.micro_batch_size=2",
        )
        assert exchange.world_size() == num_processes
        run.batches.start(0)
        for batch in run.loader:
            loss, norms = loop.train_step(run, batch)
            weights = torch.cat(
                [parameter.detach().flatten() for parameter in run.model.parameters()]
            )
            results.append(
                {
                    "loss": loss,
                    "norms": norms,
                    "scale": run.accelerator.scaler.get_scale(),
                    "weights": weights,
                }
            )
    torch.save(results, folder / f"{rank}.pt")
    if num_processes > 1:
        many_processes.leave()


def test_processes_agree_on_a_skipped_step_and_on_one_process_s_numbers(tiny, tmp_path):
    """Also a group of one process, as `torchrun --nproc_per_node 1` makes it:
    DistributedDataParallel is there, too.
    """
    ports = [many_processes.free_port(), many_processes.free_port()]
    warm_processes.spawn(overflows_once, (ports, tiny, tmp_path), nprocs=3)
    first, second, alone = (torch.load(tmp_path / f"{rank}.pt") for rank in range(3))
    for own, other in zip(first, second, strict=True):
        assert (
            own["scale"] == other["scale"]
            and torch.equal(own["weights"], other["weights"])
            and own["loss"] == other["loss"]
        )
    for results in (first, alone):
        assert [step["scale"] for step in results] == [SCALE, SCALE / 2, SCALE / 2]
        weights = [step["weights"] for step in results]
        assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    for own, other in zip(first, alone, strict=True):
        assert own["loss"] == pytest.approx(other["loss"], rel=1e-2)
    assert first[0]["norms"] == pytest.approx(alone[0]["norms"], rel=5e-2)
