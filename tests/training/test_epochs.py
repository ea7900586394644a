"""Validation before training, early stopping, and the history of epochs in the run folder."""

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from retrieval.base.errors import UserError
from retrieval.base.stopping import Interrupted
from retrieval.config import load_config
from retrieval.data import open_cache
from retrieval.evaluation.result import evaluate_split
from retrieval.models.build import build_model
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.record import read_record
from retrieval.training import loop
from retrieval.training.history import History
from tests.killed_runs import read_losses, read_results
from tests.training.test_training import read_events


def train(tiny: Path, output: Path, *overrides: str, resume: bool = False) -> Path:
    settings = [f"train.output={output}", "evaluation.num_pictures=0", *overrides]
    loop.train(load_config(tiny / "tiny.yaml", settings), resume=resume)
    return output


def history_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def final_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


@pytest.fixture
def scripted(monkeypatch):
    """Give the validations of a run these mAP@10, in turn."""

    def script(*maps: float) -> None:
        values = iter(maps)

        def evaluate(model, split, **settings):
            result = evaluate_split(model, split, **settings)
            if split.name == "validation":
                result.metrics["text_to_audio"]["mAP@10"] = next(values)
            return result

        monkeypatch.setattr(loop, "evaluate_split", evaluate)

    return script


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> Path:
    return train(tiny, tmp_path_factory.mktemp("epochs") / "run", "train.validate_first=true")


# --- before training ---


def test_the_start_is_validated_as_epoch_0(tiny, finished, tmp_path):
    torch.manual_seed(123)
    config = load_config(tiny / "tiny.yaml", [f"train.output={tmp_path}"])
    validation = open_cache(tiny / "cache").split("validation")
    expected = evaluate_split(build_model(config), validation).metrics
    assert final_of(finished)["validation_before_training"] == expected
    points = read_events(finished).Scalars("validation/text_to_audio/mAP@10")
    assert [point.step for point in points] == [0, 6, 12]
    assert points[0].value == pytest.approx(expected["text_to_audio"]["mAP@10"])
    first, *others = history_of(finished)
    assert (first["epoch"], first["global_step"], first["train/mean_loss"]) == (0, 0, None)
    assert [first[f"validation/{name}/R@5"] for name in expected] == [
        metrics["R@5"] for metrics in expected.values()
    ]
    assert [row["epoch"] for row in others] == [1, 2]


def test_training_does_not_depend_on_it(tiny, finished, tmp_path):
    plain = train(tiny, tmp_path / "plain")
    assert read_losses(plain) == read_losses(finished)
    assert (plain / "last" / "model.safetensors").read_bytes() == (
        finished / "last" / "model.safetensors"
    ).read_bytes()
    assert "validation_before_training" not in final_of(plain)
    assert [row["epoch"] for row in history_of(plain)] == [1, 2]


def test_the_start_may_be_the_best_model(tiny, tmp_path, scripted, capsys):
    scripted(0.9, 0.2, 0.3)
    run = train(tiny, tmp_path / "run", "train.validate_first=true")
    said = capsys.readouterr().out
    assert "epoch 0 (before training): validation mAP@10 90.00 %" in said
    assert "best of epoch 0" in said
    assert (final_of(run)["best_epoch"], final_of(run)["validation_mAP@10"]) == (0, 0.9)
    torch.manual_seed(123)
    start = build_model(load_config(tiny / "tiny.yaml")).state_dict()
    best = load_file(run / "best" / "model.safetensors")
    assert all(torch.equal(best[name], start[name]) for name in best)
    assert read_record(run / "best").validation.epoch == 0
    assert "before training" in (run / "best" / "README.md").read_text()
    DualEncoder.from_pretrained(run / "best")


def test_a_resumed_run_does_not_validate_again_before_its_first_step(
    tiny, tmp_path, scripted, capsys
):
    scripted(0.9, 0.2, 0.3)
    train_step, settings = loop.train_step, ["train.validate_first=true"]

    def stopped(run, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return train_step(run, batch)

    with mock.patch.object(loop, "train_step", stopped), pytest.raises(Interrupted):
        train(tiny, tmp_path / "run", *settings)
    assert "epoch 0" in capsys.readouterr().out
    train(tiny, tmp_path / "run", *settings, resume=True)
    said = capsys.readouterr().out
    assert "epoch 0 (before" not in said and "best of epoch 0" in said
    assert [row["epoch"] for row in history_of(tmp_path / "run")] == [0, 1, 2]
    before = final_of(tmp_path / "run")["validation_before_training"]
    assert before["text_to_audio"]["mAP@10"] == 0.9


# --- early stopping ---

ONE_STEP_EACH = ["train.epochs=6", "train.batch_size=24"]


@pytest.mark.parametrize(
    ("patience", "maps", "stopped", "best"),
    [
        (1, [0.3, 0.5, 0.5], 3, 2),  # an equal one is no better
        (2, [0.3, 0.5, 0.4, 0.6, 0.1, 0.2], 6, 4),
        (3, [0.3, 0.2, 0.1, 0.4, 0.3, 0.2], None, 4),  # negative control: never three in a row
        (None, [0.6, 0.5, 0.4, 0.3, 0.2, 0.1], None, 1),
    ],
)
def test_a_run_stops_after_so_many_epochs_without_a_better_one(
    tiny, tmp_path, scripted, capsys, patience, maps, stopped, best
):
    scripted(*maps)
    settings = [f"train.patience={patience}"] if patience else []
    run = train(tiny, tmp_path / "run", *ONE_STEP_EACH, *settings)
    final = final_of(run)
    assert [row["epoch"] for row in history_of(run)] == list(range(1, len(maps) + 1))
    assert final["best_epoch"] == best and set(final) >= {"best", "last"}
    has_ended_early = stopped is not None and stopped < 6
    assert ("stopped" in final) == has_ended_early
    assert ("no better validation" in capsys.readouterr().out) == has_ended_early
    if has_ended_early:
        assert final["stopped"]["epoch"] == stopped and "patience" in final["stopped"]["reason"]


@pytest.mark.parametrize("killed_in", ["training", "validation"])
def test_a_resumed_run_stops_where_it_would_have(tiny, tmp_path, scripted, killed_in):
    """Interrupted in its third epoch, whose validation exhausts the patience."""
    settings = [*ONE_STEP_EACH, "train.patience=2"]
    train_step, validate = loop.train_step, loop.validate

    def stopped(run, *arguments):
        if run.progress.global_step == (2 if killed_in == "training" else 3):
            os.kill(os.getpid(), signal.SIGTERM)
        return (train_step if killed_in == "training" else validate)(run, *arguments)

    name = "train_step" if killed_in == "training" else "validate"
    scripted(0.5, 0.4)
    with mock.patch.object(loop, name, stopped), pytest.raises(Interrupted):
        train(tiny, tmp_path / "run", *settings)
    scripted(0.3)
    run = train(tiny, tmp_path / "run", *settings, resume=True)
    assert final_of(run)["stopped"]["epoch"] == 3
    assert [row["epoch"] for row in history_of(run)] == [1, 2, 3]


# --- history ---


def test_both_files_hold_losses_rates_and_metrics_of_every_epoch(finished):
    rows = history_of(finished)
    losses = read_losses(finished)
    for epoch, row in enumerate(rows[1:], start=1):
        steps = range(6 * epoch - 5, 6 * epoch + 1)
        mean = sum(losses[step] for step in steps) / 6
        assert row["global_step"] == steps[-1] and row["seconds"] > 0
        assert row["train/mean_loss"] == pytest.approx(mean, rel=1e-6)
        rates = read_events(finished).Scalars("lr/pooling")
        assert row["lr/pooling"] == pytest.approx(rates[steps[-1] - 1].value, rel=1e-6)
    assert rows[1]["train/mean_loss"] != rows[2]["train/mean_loss"]
    last = read_record(finished / "last").validation
    for direction, metrics in last.metrics.items():
        for name, value in metrics.items():
            assert rows[-1][f"validation/{direction}/{name}"] == value
    with open(finished / "history.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [list(row) for row in table] == [list(row) for row in rows]
    for row, line in zip(table, rows, strict=True):
        assert {name: float(text) if text else None for name, text in row.items()} == line


def test_an_epoch_that_is_validated_again_has_one_line(tmp_path):
    history = History(tmp_path, enabled=True)
    for epoch, value in ((1, 0.1), (2, 0.2), (3, 0.3)):
        history.add(epoch, 10 * epoch, {"loss": value})
    resumed = History(tmp_path, enabled=True)
    resumed.read()
    resumed.add(2, 20, {"loss": 0.25})
    assert [(row["epoch"], row["loss"]) for row in history_of(tmp_path)] == [(1, 0.1), (2, 0.25)]
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 3


def test_a_kill_between_the_two_files_leaves_each_epoch_once(tiny, finished, tmp_path, monkeypatch):
    """The table misses the epoch until the resumed run has validated it again."""
    writer = History.add.__globals__["atomic_writer"]

    def killed(path: Path):
        if path.suffix == ".csv":
            raise KeyboardInterrupt
        return writer(path)

    with mock.patch("retrieval.training.history.atomic_writer", killed):
        with pytest.raises(KeyboardInterrupt):
            train(tiny, tmp_path / "run", "train.validate_first=false")
    assert len(history_of(tmp_path / "run")) == 1 and not (tmp_path / "run/history.csv").exists()
    run = train(tiny, tmp_path / "run", "train.validate_first=false", resume=True)
    _, rows, table = read_results(run)
    assert rows == read_results(finished)[1][1:]
    assert [row["epoch"] for row in table] == ["1", "2"]


def test_other_processes_write_no_history(tmp_path):
    History(tmp_path, enabled=False).add(1, 6, {"loss": 1.0})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["{", "[1]", "{}", '{"epoch": "one"}', "1"])
def test_a_damaged_history_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "history.jsonl").write_text(content + "\n")
    with pytest.raises(UserError, match="history.jsonl") as caught:
        History(tmp_path, enabled=True).read()
    assert "\n" not in str(caught.value)
