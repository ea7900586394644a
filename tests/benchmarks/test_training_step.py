"""The benchmark of a training step runs in miniature, and both ways agree."""

import re
from functools import partial

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "1"], "--batch-size 1: must be 2 or more"),
        (["--precision", "bf16"], "--precision bf16 is for a GPU"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    said = mistake(training_step.main, *arguments)
    assert said.startswith(f"error: {message}") and said.count("\n") == 1
