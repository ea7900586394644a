"""The benchmark of a training step runs in miniature, and both ways agree."""

import re
from functools import partial
from types import SimpleNamespace

import pytest

from benchmarks import plain, training_step
from tests.conftest import mistake, run_here

run = partial(run_here, training_step.main)


def test_quick_run_prints_differences_and_ratio():
    result = run("--quick", "--repeats", "2")
    assert result.returncode == 0, result.stderr[-2000:]
    assert re.search(r"losses differ by \d\.\de[-+]\d\d, gradients by \d\.\de-\d\d", result.stdout)
    assert re.search(r"^ratio \d+\.\d\d$", result.stdout, re.MULTILINE)


def test_negative_control_frames_of_padding_are_seen(monkeypatch, capsys):
    usual = plain.score
    monkeypatch.setattr(
        plain,
        "score",
        lambda pooling, text, frames, mask: usual(pooling, text, frames.roll(1, dims=1), mask),
    )
    assert training_step.main(["--quick", "--repeats", "1"]) == 1
    assert "the two ways differ by more than 1e-04" in capsys.readouterr().err


def test_on_a_cpu_each_way_has_processes_of_its_own(monkeypatch):
    commands = []

    def in_miniature(command, **settings):
        commands.append(command[3:])
        said = run("--quick", *command[3:])
        return SimpleNamespace(returncode=said.returncode, stdout=said.stdout)

    monkeypatch.setattr(training_step.subprocess, "run", in_miniature)
    arguments = SimpleNamespace(compile=False, precision="bf16", batch_size=3, repeats=2)
    seconds = training_step.seconds_in_turns(arguments)
    assert [command[1] for command in commands] == ["ours", "plain", "text", "ours", "plain"]
    assert {way: len(times) for way, times in seconds.items()} == {"ours": 4, "plain": 4, "text": 2}


@pytest.mark.parametrize(("way", "kept"), [("ours", 1), ("plain", 0)])
def test_only_ours_keeps_freed_memory(monkeypatch, way, kept):
    calls = []
    monkeypatch.setattr("retrieval.base.launch.keep_freed_memory", lambda: calls.append(way))
    assert run("--quick", "--way", way, "--repeats", "1").returncode == 0
    assert len(calls) == kept


def test_profile_names_families_passes_and_the_share_of_a_product():
    result = run("--quick", "--profile", "--precision", "bf16", "--repeats", "1")
    assert result.returncode == 0, result.stderr[-2000:]
    products = re.search(r"^matrix products +[\d.]+ +[\d.]+% +([\d.]+)", result.stdout, re.M)
    assert products and float(products[1]) > 0
    assert re.search(r"GFLOP/s, \d+% of \d+, the fastest product", result.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "1"], "--batch-size 1: must be 2 or more"),
        (["--device", "cuda"], "--device cuda needs a GPU"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    said = mistake(training_step.main, *arguments)
    assert said.startswith(f"error: {message}") and said.count("\n") == 1
