"""The average of the weights against a loop written by hand; its files, and an interrupted run."""

import json
import os
import signal
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import train as script
from retrieval.base.stopping import Interrupted
from retrieval.config import load_config
from retrieval.data import open_cache
from retrieval.evaluation.result import evaluate_split
from retrieval.models.dual_encoder import DualEncoder
from retrieval.training import loop
from retrieval.training.averaging import WeightAverage
from retrieval.training.states import latest_state
from tests import many_processes
from tests.killed_runs import read_losses

DECAY = 0.4  # above the warm-up's until the fifth step, below it from then on


def train(tiny: Path, output: Path, *overrides: str, resume: bool = False) -> Path:
    settings = [f"train.output={output}", "evaluation.num_pictures=0", *overrides]
    loop.train(load_config(tiny / "tiny.yaml", settings), resume=resume)
    return output


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def averages_by_hand(weights: list[dict[str, torch.Tensor]], decay: float) -> dict:
    """The average after the last of `weights`, which lists those of the start and of each step."""
    average = {name: weight.clone() for name, weight in weights[0].items()}
    for step, current in enumerate(weights[1:], start=1):
        share = min(decay, (1 + step) / (10 + step))
        for name in average:
            average[name] = share * average[name] + (1 - share) * current[name]
    return average


@pytest.mark.parametrize("micro", [[], ["train.micro_batch_size=3"]], ids=["whole", "parts"])
def test_the_average_is_that_of_a_loop_written_by_hand(tiny, tmp_path, micro):
    settings = [f"train.ema_decay={DECAY}", "optimizer.schedule.warmup_epochs=0", *micro]
    run = many_processes.start(tiny, tmp_path / "run", settings, torch.float64)

    def current() -> dict[str, torch.Tensor]:
        return {name: weight.detach().clone() for name, weight in run.model.named_parameters()}

    weights = [current()]
    for epoch in range(2):
        run.batches.start(epoch)
        for batch in run.loader:
            loop.train_step(run, batch)
            weights.append(current())
    expected, other = averages_by_hand(weights, DECAY), averages_by_hand(weights, DECAY + 0.05)
    trained = {name for name, weight in run.model.named_parameters() if weight.requires_grad}
    assert len(weights) == 13 and run.average.averages.keys() == trained
    for name, average in run.average.averages.items():
        assert torch.allclose(average, expected[name], rtol=0, atol=1e-12)
    name = "audio_projection.weight"
    assert not torch.allclose(run.average.averages[name], other[name], rtol=0, atol=1e-6)
    with run.scored_weights():
        for name in trained:
            assert torch.allclose(current()[name], expected[name], rtol=0, atol=1e-12)
    assert all(torch.equal(current()[name], weights[-1][name]) for name in trained)


@pytest.fixture(scope="module")
def averaged(tiny, tmp_path_factory) -> Path:
    return train(tiny, tmp_path_factory.mktemp("averaged") / "run", f"train.ema_decay={DECAY}")


def test_the_average_is_validated_saved_and_tested_and_training_goes_on_without_it(
    tiny, averaged, tmp_path, monkeypatch
):
    weights, train_step = [], loop.train_step

    def spy(run, batch):
        before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
        result = train_step(run, batch)
        weights.extend([before] * (not weights))
        weights.append({name: weight.clone() for name, weight in run.model.state_dict().items()})
        return result

    monkeypatch.setattr(loop, "train_step", spy)
    plain = train(tiny, tmp_path / "plain")
    assert read_losses(averaged) == read_losses(plain)  # bit for bit
    last = weights_of(averaged / "last")
    expected = averages_by_hand(weights, DECAY)
    assert all(torch.allclose(last[name], expected[name], atol=1e-6) for name in expected)
    # negative control: those of the last step are others
    assert any(not torch.allclose(last[name], weights[-1][name], atol=1e-4) for name in expected)

    model = DualEncoder.from_pretrained(averaged / "last")
    cache = open_cache(tiny / "cache")
    assert (
        evaluate_split(model, cache.split("validation")).metrics == model.record.validation.metrics
    )
    final = json.loads((averaged / "metrics.json").read_text())
    assert evaluate_split(model, cache.split("evaluation")).metrics == final["last"]


@pytest.mark.parametrize("is_restored", [True, False], ids=["restored", "negative control"])
def test_a_resumed_run_has_the_same_average(tiny, averaged, tmp_path, monkeypatch, is_restored):
    train_step = loop.train_step

    def stopped_in_step_8(run, batch):
        if run.progress.global_step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(run, batch)

    with mock.patch.object(loop, "train_step", stopped_in_step_8), pytest.raises(Interrupted):
        train(tiny, tmp_path / "run", f"train.ema_decay={DECAY}")
    if not is_restored:
        monkeypatch.setattr(WeightAverage, "load_state_dict", lambda *_: None)
    train(tiny, tmp_path / "run", f"train.ema_decay={DECAY}", resume=True)
    found, expected = weights_of(tmp_path / "run" / "last"), weights_of(averaged / "last")
    assert all(torch.equal(found[name], expected[name]) for name in expected) == is_restored


def test_frozen_parts_are_not_copied(tiny, tmp_path):
    settings = ["train.ema_decay=0.9", "text_encoder.frozen=true"]
    run = many_processes.start(tiny, tmp_path / "run", settings)
    parts = {name.split(".")[0] for name in run.average.averages}
    assert parts == {"audio_encoder", "audio_projection", "text_projection", "pooling"}


def test_statistics_of_trained_batch_norms_are_averaged_and_constants_stay():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    model[2].requires_grad_(False)
    average = WeightAverage(model, 0.9)
    assert {"1.running_mean", "1.running_var"} < average.averages.keys()
    assert not any(name.startswith("2.") for name in average.averages)
    start = model[1].running_mean.clone()
    model(torch.randn(8, 3) + 5)
    average.update()
    own = model[1].running_mean.clone()
    with average.applied():
        assert torch.allclose(model[1].running_mean, 2 / 11 * start + 9 / 11 * own)
    assert torch.equal(model[1].running_mean, own) and not torch.equal(own, start)
    model.eval()  # as EfficientAT keeps them: the official statistics, to the last bit
    before = {name: value.clone() for name, value in average.averages.items()}
    model[1].running_mean.copy_(before["1.running_mean"])
    average.update()
    assert torch.equal(average.averages["1.running_mean"], before["1.running_mean"])


def test_dry_run_counts_the_average(capsys, tiny):
    def gib(*overrides: str) -> float:
        sizes = {"embed_dim": 768, "depth": 24, "num_heads": 12}
        large = [f"audio_encoder.{name}={size}" for name, size in sizes.items()]
        arguments = ["--config", str(tiny / "tiny.yaml"), *large, *overrides, "--dry-run"]
        assert script.main(arguments) == 0
        line = next(
            line for line in capsys.readouterr().out.splitlines() if line.startswith("memory")
        )
        assert ("their average" in line) == bool(overrides)
        return float(line.split("of it ")[1].split()[0])

    without, counted = gib(), gib("train.ema_decay=0.9")
    assert counted / without == pytest.approx(4 / 3, abs=0.05)


def test_a_state_of_another_average_is_refused(tiny, tmp_path):
    run = many_processes.start(tiny, tmp_path / "run", ["train.ema_decay=0.9"])
    with pytest.raises(ValueError, match="another model"):
        run.average.load_state_dict({"num_updates": 1, "averages": {}})
    assert latest_state(tmp_path / "run") is None
