"""The command that measures a GPU: its order, limits and files; some steps rehearsed on the CPU."""

import json
import math
import os
import signal
import threading
from functools import partial
from pathlib import Path

import pytest
import torch

import benchmarks.gpu.__main__ as gpu
from benchmarks import step_trace
from benchmarks.gpu import trace
from benchmarks.gpu.report import MARKDOWN, RESULTS
from benchmarks.gpu.steps import STEPS
from tests.benchmarks import gpu_steps
from tests.conftest import mistake, run_here, run_module, wait_for

run = partial(run_here, gpu.main)
REHEARSED = "parity,tap,trace,fp16,processes,scores"


@pytest.fixture
def own_steps(monkeypatch, tmp_path):
    """Call with functions of gpu_steps, which become the steps; returns the folder of results."""
    monkeypatch.setattr(gpu, "PRELOAD", [])
    monkeypatch.setattr(gpu, "git_commit", lambda: "abc")

    def use(*functions) -> Path:
        own = {function.__name__: gpu_steps.step(function) for function in functions}
        monkeypatch.setattr(gpu, "STEPS", own)
        return tmp_path / "results"

    return use


def results_of(folder: Path) -> dict:
    return json.loads((folder / RESULTS).read_text())


def states_of(folder: Path) -> dict[str, str]:
    return {name: step["state"] for name, step in results_of(folder)["steps"].items()}


# --- order, limits, files ---


def test_a_step_that_fails_loses_nothing_of_the_others(own_steps, monkeypatch):
    names = ("fails", "crashes", "hangs", "lacks", "cannot", "works")
    folder = own_steps(*(getattr(gpu_steps, name) for name in names))
    monkeypatch.setattr(gpu, "REHEARSAL_SECONDS", 8.0)
    ended = run("--rehearse", "--output", str(folder))
    assert ended.returncode == 1 and ended.stdout.count("\n") == 1 + len(names)
    steps = results_of(folder)["steps"]
    assert states_of(folder) == {
        **{"fails": "failed", "crashes": "failed", "hangs": "over its time"},
        **{"lacks": "not run", "cannot": "not run", "works": "done"},
    }
    assert [len(steps[name]["rows"]) for name in names] == [1, 1, 1, 0, 0, 2]
    assert "three | four" in steps["fails"]["why"] and "exit code -9" in steps["crashes"]["why"]
    assert steps["lacks"]["why"] == "package no_such_package is missing"
    assert (folder / "logs" / "works.log").read_text() == "printed by the step\n"
    text = (folder / MARKDOWN).read_text()
    assert "three \\| four" in text and "| number | more |" in text
    assert text.index("`fails`") < text.index("`works`")


def test_an_interrupted_command_goes_on(own_steps, monkeypatch, tmp_path):
    folder = own_steps(gpu_steps.works, gpu_steps.hangs, gpu_steps.fails)
    measure = gpu.measure

    def interrupted(step, place, *more):
        if step.title == "hangs":

            def interrupt() -> None:
                wait_for(lambda: gpu.read_rows(place.folder / gpu.ROWS)["rows"])
                os.kill(os.getpid(), signal.SIGINT)

            threading.Thread(target=interrupt).start()
        return measure(step, place, *more)

    monkeypatch.setattr(gpu, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gpu.main(["--rehearse", "--output", str(folder)])
    monkeypatch.setattr(gpu, "measure", measure)
    assert states_of(folder) == {"works": "done", "hangs": "interrupted"}
    assert results_of(folder)["steps"]["hangs"]["rows"] == [{"number": 1}]
    first = results_of(folder)["steps"]["works"]

    own_steps(gpu_steps.works, gpu_steps.fails)
    run("--rehearse", "--output", str(folder))
    assert results_of(folder)["steps"]["works"] == first  # kept
    assert states_of(folder) == {"works": "done", "fails": "failed"}

    run("--rehearse", "--output", str(folder), "--only", "works")  # anew
    again = results_of(folder)["steps"]["works"]
    assert again["state"] == "done" and (folder / "logs" / "works.log").exists()
    run("--rehearse", "--output", str(folder), "--only", "works", "--minutes", "0.1")
    assert results_of(folder)["steps"]["works"] == again  # no time to measure it anew

    def interrupted_at_once(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "measure", interrupted_at_once)
    with pytest.raises(KeyboardInterrupt):
        gpu.main(["--rehearse", "--output", str(folder), "--only", "works"])
    assert results_of(folder)["steps"]["works"] == again
    monkeypatch.setattr(gpu, "measure", measure)
    monkeypatch.setattr(gpu, "git_commit", lambda: "another commit")
    own_steps(gpu_steps.works)
    run("--rehearse", "--output", str(folder), "--minutes", "0.1")
    assert states_of(folder) == {"works": "not run"}  # of another commit, and no time


def test_where_time_runs_out_the_last_steps_are_left_out(own_steps):
    folder = own_steps(gpu_steps.works, gpu_steps.fails)
    assert run("--rehearse", "--output", str(folder), "--minutes", "0.001").returncode == 0
    steps = results_of(folder)["steps"].values()
    assert [(step["state"], step["why"]) for step in steps] == [("not run", "no time left")] * 2
    assert "not run: no time left" in (folder / MARKDOWN).read_text()


def test_mistakes_are_one_line(own_steps, monkeypatch, tmp_path):
    own_steps(gpu_steps.works)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = mistake(gpu.main, "--output", str(tmp_path / "new"))
    assert "--rehearse" in said and said.count("\n") == 1 and not (tmp_path / "new").exists()
    assert "there is: works" in mistake(
        gpu.main, "--rehearse", "--only", "other", "--output", str(tmp_path / "new")
    )
    assert "--minutes" in mistake(gpu.main, "--rehearse", "--minutes", "0")
    (tmp_path / RESULTS).write_text("{}")
    assert RESULTS in mistake(gpu.main, "--rehearse", "--output", str(tmp_path))
    content = {"place": {"rehearsal": False}, "steps": {}}
    (tmp_path / RESULTS).write_text(json.dumps(content))
    assert "results of a GPU" in mistake(gpu.main, "--rehearse", "--output", str(tmp_path))


def test_damaged_results_and_names_that_are_taken_are_refused_at_once(own_steps, tmp_path):
    own_steps(gpu_steps.works)
    words = ("--rehearse", "--output", str(tmp_path))
    damaged = [3, {}, {"state": "done", "rows": 3}, {"state": "done", "rows": [3]}]
    for steps in [[], *({"works": step} for step in damaged)]:
        content = {"place": gpu.describe_place(rehearse=True), "steps": steps}
        (tmp_path / RESULTS).write_text(json.dumps(content))
        assert RESULTS in mistake(gpu.main, *words)
    (tmp_path / RESULTS).unlink()
    (tmp_path / "logs").touch()
    assert "logs is not a folder" in mistake(gpu.main, *words)
    (tmp_path / "logs").unlink()
    (tmp_path / MARKDOWN).mkdir()
    assert MARKDOWN in mistake(gpu.main, *words)


def test_a_step_starts_anew_where_a_fork_cannot_use_the_gpu(tmp_path):
    """As child.forked_step starts it where CUDA was initialised before the fork."""
    rows, log = tmp_path / gpu.ROWS, tmp_path / "log"
    words = [gpu_steps.step(gpu_steps.works).function, tmp_path, tmp_path, 60, rows, log]
    assert run_module("benchmarks.gpu", "--step", *map(str, words)).returncode == 0
    assert gpu.read_rows(rows)["state"] == "done" and log.read_text() == "printed by the step\n"


def test_every_step_is_there():
    from importlib import import_module

    for step in STEPS.values():
        module, _, name = step.function.partition(":")
        assert callable(getattr(import_module(module), name))


# --- steps on the CPU ---


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("rehearsal")
    # not in this process, whose server for forks may be started, and has imported nothing
    ended = run_module("benchmarks.gpu", "--rehearse", "--only", REHEARSED, "--output", str(folder))
    logs = {path.name: path.read_text()[-500:] for path in (folder / "logs").iterdir()}
    assert ended.returncode == 0, (ended.stdout, ended.stderr, logs)
    assert states_of(folder) == dict.fromkeys(REHEARSED.split(","), "done")
    return {"folder": folder} | results_of(folder)["steps"]


@pytest.mark.slow
def test_figures_are_finite_and_come_from_their_own_seconds(rehearsal):
    numbers = [
        value
        for name in REHEARSED.split(",")
        for row in rehearsal[name]["rows"]
        for value in row.values()
        if isinstance(value, float)
    ]
    assert len(numbers) > 100 and all(map(math.isfinite, numbers))
    rows = [row for row in rehearsal["tap"]["rows"] if "batch" in row]
    assert [row["batch"] for row in rows] == [2, 4]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["plain s"] / row["s"])
        assert row["TFLOP/s"] == pytest.approx(row["TFLOP"] / row["s"])
        assert row["pairs/s"] == pytest.approx(row["batch"] / row["s"])
    assert rows[1]["TFLOP"] > 1.5 * rows[0]["TFLOP"]  # counted, not a constant
    losses = [row["losses"] for row in rehearsal["processes"]["rows"]]
    assert len(losses) == 3 and len(set(losses[0].split(", "))) == 3  # they learn
    assert rehearsal["fp16"]["rows"][1]["steps skipped"] > 0


@pytest.mark.slow
def test_the_saved_trace_is_read(rehearsal):
    path = rehearsal["folder"] / trace.FILE
    rows = {row["family"]: row for row in step_trace.read(path)}
    assert rows == {row["family"]: row for row in rehearsal["trace"]["rows"]}
    parts = sum(row["ms"] for name, row in rows.items() if name != "whole step")
    assert parts == pytest.approx(rows["whole step"]["ms"], rel=0.05)
    assert rows["matrix products"]["events"] > 50 and rows["attention"]["events"] > 0
