"""The training loop: logs, saved files, refusals, and killed runs that go on as if nothing was."""

import json
import multiprocessing
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from retrieval import losses
from retrieval.base import stopping
from retrieval.base.errors import UserError
from retrieval.base.locks import LOCK
from retrieval.config import load_config, read_config
from retrieval.models.dual_encoder import DualEncoder
from retrieval.training import loop, setup
from retrieval.training.optim import learning_rate
from retrieval.training.states import latest_state
from tests.conftest import PATIENCE, digests, run_here, wait_for, write_cache

ROOT = Path(__file__).resolve().parents[2]
FAST = ["evaluation.num_pictures=0"]


def configure(tiny: Path, output: Path, *overrides: str):
    return load_config(tiny / "tiny.yaml", [f"train.output={output}", *FAST, *overrides])


def read_events(folder: Path) -> EventAccumulator:
    return EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "images": 0, "audio": 0}
    ).Reload()


def losses_of(folder: Path) -> dict[int, float]:
    return {point.step: point.value for point in read_events(folder).Scalars("train/loss")}


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> Path:
    """A run of two epochs with everything that is logged."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("finished") / "run"
    loop.train(load_config(tiny / "tiny.yaml", [f"train.output={folder}"]))
    return folder


def test_a_run_leaves_config_models_and_metrics_and_no_state(finished):
    names = {path.name for path in finished.iterdir() if "tfevents" not in path.name}
    assert names == {
        *(".lock", "config.yaml", "environment.json", "metrics.json", "best", "last"),
        *("history.jsonl", "history.csv"),
    }
    final = json.loads((finished / "metrics.json").read_text())
    assert set(final) == {"best_epoch", "validation_mAP@10", "best", "last", "chance"}
    assert set(final["best"]["text_to_audio"]) == {"mAP@10", "R@1", "R@5", "R@10"}
    assert read_config(finished).train.output == str(finished)
    assert set(json.loads((finished / "environment.json").read_text())) >= {
        "command",
        "git_commit",
        "libraries",
        "devices",
    }


def test_only_validation_scores_in_bf16(tiny, tmp_path, monkeypatch):
    seen, usual = [], loop.evaluate_split

    def evaluate(model, split, **settings):
        seen.append((split.name, settings["bf16_scores"]))
        return usual(model, split, **settings)

    monkeypatch.setattr(loop, "evaluate_split", evaluate)
    loop.train(
        configure(tiny, tmp_path / "run", "evaluation.bf16_validation=true", "train.epochs=1")
    )
    assert set(seen) == {("validation", True), ("evaluation", False)}


def test_tensorboard_holds_what_the_readme_promises(finished):
    events = read_events(finished)
    groups = ("audio_encoder", "text_encoder", "audio_projection", "text_projection", "pooling")
    expected = {"train/loss", "train/temperature", "train/clips_per_second", "train/memory_gib"}
    expected |= {f"{kind}/{group}" for kind in ("lr", "grad_norm") for group in groups}
    expected |= {
        f"validation/{direction}/{name}"
        for direction in ("text_to_audio", "audio_to_text")
        for name in ("mAP@10", "R@1", "R@5", "R@10")
    }
    assert expected <= set(events.Tags()["scalars"])
    assert {"validation/scores", "validation/ranks"} <= set(events.Tags()["images"])
    assert len(events.Tags()["audio"]) == 1  # evaluation.num_pictures of tiny.yaml
    assert [point.step for point in events.Scalars("train/loss")] == list(range(1, 13))
    assert [point.step for point in events.Scalars("validation/text_to_audio/mAP@10")] == [6, 12]


def test_learning_rates_follow_the_schedule_at_every_step(finished):
    settings = read_config(finished).optimizer
    for step, point in enumerate(read_events(finished).Scalars("lr/pooling")):
        assert point.value == pytest.approx(
            learning_rate(step / 6, settings.lr.pooling, **settings.schedule.model_dump()), rel=1e-6
        )


def test_the_loss_falls(tiny, tmp_path):
    """Without dropout, at a milder temperature than in the experiments and with a slow audio
    encoder: so small a model learns in 60 steps.
    """
    settings = [
        "pooling.name=mean",
        "loss.temperature=0.2",
        "text_encoder.dropout=0",
        "optimizer.lr.audio_encoder=2e-4",
        "train.epochs=10",
    ]
    loop.train(configure(tiny, tmp_path / "run", *settings))
    losses = losses_of(tmp_path / "run")
    first, last = [losses[step] for step in range(1, 7)], [losses[step] for step in range(55, 61)]
    assert sum(last) < 0.6 * sum(first)


@pytest.mark.parametrize(
    "maps", [[0.3, 0.6, 0.5], [0.3, 0.6, 0.6]], ids=["highest", "first of equal ones"]
)
def test_best_is_the_first_epoch_of_the_highest_validation_map(tiny, tmp_path, monkeypatch, maps):
    maps, weights = iter(maps), []
    original = loop.evaluate_split

    def scripted(model, split, **settings):
        result = original(model, split, **settings)
        if split.name == "validation":
            result.metrics["text_to_audio"]["mAP@10"] = next(maps)
            weights.append(model.audio_projection.weight.detach().clone())
        return result

    monkeypatch.setattr(loop, "evaluate_split", scripted)
    loop.train(configure(tiny, tmp_path / "run", "train.epochs=3"))
    final = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (final["best_epoch"], final["validation_mAP@10"]) == (2, 0.6)
    for name, epoch in (("best", 1), ("last", 2)):
        assert torch.equal(
            load_file(tmp_path / "run" / name / "model.safetensors")["audio_projection.weight"],
            weights[epoch],
        )


def test_two_captions_of_one_clip_are_not_negatives(tiny, tmp_path, monkeypatch):
    seen = []
    original = losses.LOSSES["nt_xent"]

    def spy(scores, positives, temperature):
        seen.append(positives)
        return original(scores, positives, temperature)

    monkeypatch.setitem(losses.LOSSES, "nt_xent", spy)
    loop.train(configure(tiny, tmp_path / "run", "train.epochs=1", "train.batch_size=24"))
    # all 24 pairs of 12 clips in one batch: each caption has its own clip twice
    (positives,) = seen
    assert (
        positives.shape == (24, 24)
        and (positives.sum(dim=1) == 2).all()
        and torch.equal(positives, positives.T)
    )


@pytest.mark.parametrize("pooling", ["mean", "tap"])
def test_every_parameter_is_trained(tiny, tmp_path, pooling):
    """Also the learnable temperature, in bf16 and with clipped gradients."""
    settings = [
        f"pooling.name={pooling}",
        "loss.learnable_temperature=true",
        "train.mixed_precision=bf16",
        "optimizer.max_grad_norm=1",
    ]
    # the first step has learning rate 0
    loop.train(configure(tiny, tmp_path / "start", *settings, "train.max_steps=1"))
    loop.train(configure(tiny, tmp_path / "run", *settings, "train.max_steps=4"))
    before, after = (
        load_file(tmp_path / name / "last" / "model.safetensors") for name in ("start", "run")
    )
    same = {name for name in before if torch.equal(before[name], after[name])}
    # The key bias drops out of the softmax; masked patches belong to self-supervised training; the
    # padding row stays zero.
    assert same <= {"pooling.key.bias", "audio_encoder.mask_embed"}, same


def test_max_steps_ends_a_run_early(tiny, tmp_path):
    loop.train(configure(tiny, tmp_path / "run", "train.max_steps=8"))
    assert max(losses_of(tmp_path / "run")) == 8
    assert (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_non_finite_step_stops_the_run_and_spoils_nothing(tiny, tmp_path, monkeypatch, where):
    calls = []
    original = losses.LOSSES["nt_xent"]

    def breaks_at_step_9(scores, positives, temperature):
        calls.append(1)
        loss = original(scores, positives, temperature)
        if len(calls) != 9:
            return loss
        # sqrt at 0 has a finite value and an infinite gradient
        return (
            loss * float("nan") if where == "loss" else loss + (loss - loss.detach()).abs().sqrt()
        )

    monkeypatch.setitem(losses.LOSSES, "nt_xent", breaks_at_step_9)
    run = tmp_path / "run"
    with pytest.raises(UserError) as caught:
        loop.train(configure(tiny, run))
    text = str(caught.value)
    assert (
        "epoch 2, step 3" in text
        and "best" in text
        and "step-00000008" in text
        and "\n" not in text
    )
    assert all(
        tensor.isfinite().all()
        for tensor in load_file(run / "states" / "step-00000008" / "model.safetensors").values()
    )
    DualEncoder.from_pretrained(run / "best")


@pytest.mark.slow
def test_sigkill_anywhere_and_resume_equals_an_undisturbed_run_bit_for_bit(tiny, tmp_path):
    """At ten places, and at two with an average of the weights and epoch 0."""
    command = [
        sys.executable,
        str(ROOT / "tests" / "killed_runs.py"),
        str(tiny / "tiny.yaml"),
        str(tmp_path),
    ]
    output = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT)
    assert output.returncode == 0, output.stderr[-2000:]
    reports = [json.loads(line) for line in output.stdout.splitlines()]
    assert len(reports) == 10 + 2
    assert all(all(report.values()) for report in reports), reports


def test_another_seed_gives_other_losses(tiny, tmp_path, finished):
    """The negative control of the comparison above."""
    loop.train(configure(tiny, tmp_path / "run", "seed=7"))
    assert losses_of(tmp_path / "run") != losses_of(finished)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM to the launcher", "Ctrl-C in the terminal"])
def test_an_interrupted_launch_saves_and_resume_goes_on(tiny, tmp_path, how):
    """The launcher passes no signal on: the training must notice that it is gone, and must not take
    that for a second Ctrl-C.
    """
    run = tmp_path / "run"
    launch = [
        str(Path(sys.executable).with_name("accelerate")),
        "launch",
        "--config_file",
        "configs/accelerate/cpu.yaml",
        "train.py",
    ]
    command = [
        *launch,
        "--config",
        str(tiny / "tiny.yaml"),
        f"train.output={run}",
        "train.epochs=400",
        "train.save_every_steps=100000",
        *FAST,
    ]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        wait_for(lambda: (run / "last").exists(), process)
        if how.startswith("SIGTERM"):
            process.send_signal(signal.SIGTERM)
        else:
            os.killpg(process.pid, signal.SIGINT)
        process.wait(PATIENCE)
        wait_for(lambda: "interrupted; " in (tmp_path / "log").read_text())
    state = latest_state(run)
    again = (
        f"interrupted; continue from {state}:"
        f" {shlex.join(['accelerate', *command[1:], '--resume'])}\n"
    )
    assert state is not None and again in (tmp_path / "log").read_text()
    steps = int(state.name.removeprefix("step-"))
    more = ["--resume", f"train.max_steps={steps + 3}"]
    if how.startswith("SIGTERM"):
        resumed = subprocess.run(
            [*command, *more], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
        )
    else:  # the same without a launcher
        import train as script

        resumed = run_here(script.main, *command[command.index("--config") :], *more)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert (
        f"resumed in epoch {(steps - 1) // 6 + 1} of 400 after step {(steps - 1) % 6 + 1}"
        in resumed.stdout
    )
    assert max(losses_of(run)) == steps + 3


def test_a_second_signal_counts_only_if_it_is_a_second_ctrl_c(capfd, monkeypatch):
    stop = stopping.StopRequest(at_once=False)
    stop(signal.SIGINT, None)
    assert "a second Ctrl-C ends at once" in capfd.readouterr().err
    monkeypatch.setattr(os, "write", Mock(side_effect=BrokenPipeError))  # 2>&1 | tee, which ended
    stopping.StopRequest(at_once=False)(signal.SIGINT, None)
    stop(signal.SIGTERM, None)
    with pytest.raises(stopping.Interrupted):
        stop(signal.SIGINT, None)


class SignalsItselfWhenDeleted:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("place", ["fork", "finaliser", "plain"])
def test_a_signal_where_python_drops_exceptions_is_noted(monkeypatch, place):
    """Raised there, the interruption would be lost and its traceback printed; `plain` is the
    negative control.
    """
    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)
    fork = os.fork

    def interrupted_fork() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return fork()

    monkeypatch.setattr(os, "fork", interrupted_fork)
    with stopping.stop_on_signals() as stop:
        if place == "fork":
            process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0,))
            process.start()
            process.join()
        elif place == "finaliser":
            SignalsItselfWhenDeleted()
        else:
            with pytest.raises(stopping.Interrupted):
                os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signum == signal.SIGTERM and dropped == []


def test_a_loader_process_leaves_signals_to_its_parent():
    """Also before it has set its own handlers."""
    with stopping.stop_on_signals() as stop:
        process = multiprocessing.get_context("fork").Process(target=signals_itself, args=(stop,))
        process.start()
        process.join(PATIENCE)
    assert process.exitcode == 0 and stop.signum == 0


def signals_itself(stop: stopping.StopRequest) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signum == 0


def test_within_another_the_request_is_the_same():
    with stopping.stop_on_signals() as outer:
        with stopping.stop_on_signals() as inner:
            assert inner is outer
        assert signal.getsignal(signal.SIGTERM) is outer


@pytest.mark.parametrize(
    "place",
    [
        "datasets.load_from_disk",
        "transformers.AutoTokenizer.from_pretrained",
        "retrieval.models.text._build",
        "retrieval.training.checkpoint.load",
    ],
)
def test_a_signal_while_a_file_is_loaded_is_not_called_a_damaged_file(
    tiny, tmp_path, monkeypatch, capsys, place
):
    import train as script

    settings = [
        "--config",
        str(tiny / "tiny.yaml"),
        f"train.output={tmp_path / 'run'}",
        "train.epochs=2",
        *FAST,
    ]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", lambda _run: os.kill(os.getpid(), signal.SIGINT))
        assert script.main(settings) == 130
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    state = latest_state(tmp_path / "run")
    monkeypatch.setattr(place, lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    capsys.readouterr()
    assert script.main([*settings, "--resume"]) == 143
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("interrupted") and last.endswith(stopping.resume_command())
    assert str(state) in last


def test_ctrl_c_saves_after_the_step_and_exits_with_130(tiny, tmp_path, monkeypatch, capsys):
    import train as script

    original = loop.train_step

    def interrupted_at_step_4(run, batch):
        if run.progress.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(run, batch)

    monkeypatch.setattr(loop, "train_step", interrupted_at_step_4)
    code = script.main(
        ["--config", str(tiny / "tiny.yaml"), f"train.output={tmp_path / 'run'}", *FAST]
    )
    assert code == 130
    assert "step-00000004" in capsys.readouterr().err
    assert latest_state(tmp_path / "run").name == "step-00000004"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


SWAP_KILLED_BETWEEN_ITS_RENAMES = """
import os, sys
from pathlib import Path
from unittest.mock import Mock
from retrieval.base.folders import swap_folder

rename = Path.rename
Path.rename = lambda path, target: (rename(path, target), os._exit(9))
state = Path(sys.argv[1])
swap_folder(state.with_suffix(".partial"), state)
"""


def test_a_kill_between_the_renames_of_a_state_keeps_the_one_before(tmp_path):
    state = tmp_path / "states" / "step-00000006"  # saved again where an interrupted epoch ends
    state.mkdir(parents=True)
    (state / "model.safetensors").write_text("before")
    state.with_suffix(".partial").mkdir()
    command = [sys.executable, "-c", SWAP_KILLED_BETWEEN_ITS_RENAMES, str(state)]
    assert subprocess.run(command, cwd=ROOT).returncode == 9
    assert not state.exists()
    assert (latest_state(tmp_path) / "model.safetensors").read_text() == "before"
    state.mkdir()
    assert latest_state(tmp_path) == state


def user_error(call, *arguments, **settings) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_existing_run_is_neither_overwritten_nor_resumed_by_accident(tiny, finished):
    before = sorted((path, path.stat().st_mtime_ns) for path in finished.rglob("*"))
    assert "--resume" in user_error(loop.train, configure(tiny, finished))
    assert sorted((path, path.stat().st_mtime_ns) for path in finished.rglob("*")) == before


def test_overwrite_starts_anew(tiny, tmp_path):
    loop.train(configure(tiny, tmp_path / "run", "train.max_steps=2"))
    (tmp_path / "run" / "leftover").touch()
    loop.train(configure(tiny, tmp_path / "run", "train.max_steps=1"), overwrite=True)
    assert max(losses_of(tmp_path / "run")) == 1 and not (tmp_path / "run" / "leftover").exists()


def holder_of(folder: Path) -> subprocess.Popen:
    """Another process that trains in `folder`, as far as its lock goes."""
    folder.mkdir(parents=True, exist_ok=True)
    code = (
        "import pathlib, sys; from retrieval.base import locks; held ="
        " locks.take_lock(pathlib.Path(sys.argv[1])); print('held', flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / LOCK)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_two_processes_do_not_train_in_one_folder(tiny, interrupted, monkeypatch):
    run, before = interrupted, digests(interrupted)
    with monkeypatch.context() as patch:
        # it is noticed before that takes its time
        patch.setattr("retrieval.training.setup.build_model", lambda *_: 1 / 0)
        for how in ({"resume": True}, {"overwrite": True}):
            holder = holder_of(run)
            said = user_error(loop.train, configure(tiny, run), **how)
            assert f"process {holder.pid} on {socket.gethostname()}" in said and str(run) in said
            holder.kill()
            holder.communicate()
    assert digests(run) | {".lock": ""} == before | {".lock": ""}
    loop.train(configure(tiny, run), resume=True)  # a lock ends with the process
    assert (run / "metrics.json").exists()
    holder = holder_of(run)  # and with the training
    holder.communicate("\n")


def test_a_run_that_begins_while_another_is_prepared_is_not_overwritten(
    tiny, tmp_path, monkeypatch
):
    run, build = tmp_path / "run", setup.build_model

    def still_there(config):
        holders.append(holder_of(run))
        return build(config)

    def gone(config):
        holders.pop().communicate("\n")
        (run / "config.yaml").touch()
        return build(config)

    holders = []
    monkeypatch.setattr(setup, "build_model", still_there)
    assert "is at work in" in user_error(loop.train, configure(tiny, run))
    monkeypatch.setattr(setup, "check_unlocked", lambda folder: None)
    monkeypatch.setattr(setup, "build_model", gone)
    assert "holds a run already" in user_error(loop.train, configure(tiny, run))
    assert {path.name for path in run.iterdir()} == {".lock", "config.yaml"}


def test_resume_without_a_state(tiny, tmp_path):
    assert "no saved state" in user_error(
        loop.train, configure(tiny, tmp_path / "absent"), resume=True
    )
    assert not (tmp_path / "absent").exists()


def test_resume_of_a_finished_run_says_so(tiny, finished, capsys):
    loop.train(configure(tiny, finished), resume=True)
    assert "is finished" in capsys.readouterr().out
    assert "train.epochs: 2 -> 3" in user_error(
        loop.train, configure(tiny, finished, "train.epochs=3"), resume=True
    )


def test_overwrite_deletes_nothing_but_a_run(tiny, tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text("mine: 1")
    assert "not a run" in user_error(loop.train, configure(tiny, tmp_path), overwrite=True)
    (tmp_path / "environment.json").touch()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert "current folder" in user_error(loop.train, configure(tiny, tmp_path), overwrite=True)
    assert (tmp_path / "config.yaml").read_text() == "mine: 1"


@pytest.fixture
def interrupted(tiny, tmp_path, monkeypatch) -> Path:
    """A run stopped after 3 of 12 steps."""
    original = loop.train_step
    with monkeypatch.context() as patch:
        patch.setattr(
            loop,
            "train_step",
            lambda run, batch: os.kill(os.getpid(), signal.SIGTERM) or original(run, batch),
        )
        with pytest.raises(stopping.Interrupted):
            loop.train(configure(tiny, tmp_path / "run"))
    return tmp_path / "run"


def test_resume_with_changed_settings_names_them(tiny, interrupted):
    text = user_error(
        loop.train,
        configure(tiny, interrupted, "optimizer.lr.pooling=0.5", "seed=9"),
        resume=True,
    )
    assert "optimizer.lr.pooling: 0.002 -> 0.5" in text and "seed: 123 -> 9" in text


def test_resume_with_changed_harmless_settings(tiny, interrupted):
    loop.train(
        configure(tiny, interrupted, "train.save_every_steps=1", "evaluation.audio_batch_size=3"),
        resume=True,
    )
    assert (interrupted / "metrics.json").exists()


def test_resume_with_a_moved_cache_and_with_another_one(tiny, interrupted, tmp_path):
    other = write_cache(
        tmp_path / "other", {"development": 12, "validation": 8, "evaluation": 8}, seed=1
    )
    assert "another corpus" in user_error(
        loop.train, configure(tiny, interrupted, f"data.cache={other}"), resume=True
    )
    shutil.copytree(tiny / "cache", tmp_path / "moved")
    loop.train(configure(tiny, interrupted, f"data.cache={tmp_path}/moved"), resume=True)
    assert (interrupted / "metrics.json").exists()


def test_resume_from_a_damaged_state(tiny, interrupted):
    state = latest_state(interrupted)
    random = (state / "random_states_0.pkl").read_bytes()
    (state / "random_states_0.pkl").write_bytes(random[: len(random) // 2])
    assert "does not load" in user_error(loop.train, configure(tiny, interrupted), resume=True)
    (state / "random_states_0.pkl").write_bytes(random)
    (state / "optimizer.bin").write_bytes(b"damaged")
    assert "does not load" in user_error(loop.train, configure(tiny, interrupted), resume=True)
    (state / "random_states_0.pkl").unlink()
    assert "saved by 0 process" in user_error(loop.train, configure(tiny, interrupted), resume=True)


def test_resume_without_the_best_model_says_so_before_the_next_step(tiny, tmp_path, monkeypatch):
    original, run = loop.train_step, tmp_path / "run"

    def interrupted_in_the_second_epoch(run, batch):
        if run.progress.global_step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(run, batch)

    monkeypatch.setattr(loop, "train_step", interrupted_in_the_second_epoch)
    with pytest.raises(stopping.Interrupted):
        loop.train(configure(tiny, run))
    (run / "best").rename(tmp_path / "best")
    monkeypatch.setattr(loop, "train_step", lambda *_: 1 / 0)
    text = user_error(loop.train, configure(tiny, run), resume=True)
    assert (
        f"{run / 'best' / 'model.safetensors'}, the best model so far (epoch 1), is missing; put it"
        " back" in text
    )
    (tmp_path / "best").rename(run / "best")
    with pytest.raises(ZeroDivisionError):  # negative control: put back, it goes on
        loop.train(configure(tiny, run), resume=True)


@pytest.mark.parametrize("content", ["", "# nothing\n", "{}"])
def test_resume_with_an_empty_config(tiny, interrupted, content):
    (interrupted / "config.yaml").write_text(content)
    assert "config.yaml cannot be read" in user_error(
        loop.train, configure(tiny, interrupted), resume=True
    )


def test_a_full_disk_keeps_the_state_before(tiny, interrupted, monkeypatch):
    from accelerate import Accelerator

    def full(self, folder):
        Path(folder).mkdir()
        raise OSError(28, "No space left on device")

    state = latest_state(interrupted)
    monkeypatch.setattr(Accelerator, "save_state", full)
    assert "No space left" in user_error(loop.train, configure(tiny, interrupted), resume=True)
    assert latest_state(interrupted) == state


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.batch_size=25", "larger than the corpus: 24"),
        ("loss.name=nt_xnet", "there is: nt_xent"),
        ("audio_encoder.name=atst", "there is: atst_frame"),
        ("audio_encoder.checkpoint=weights/absent.ckpt", "weights/absent.ckpt"),
        ("text_encoder.pretrained=true", "text encoder"),
        ("data.cache=absent", "does not exist"),
        ("data.sample_rate=32000", "16000 Hz"),
        ("pooling.attention_dim=16", "attention_dim"),
        ("text_encoder.max_tokens=39", "positions for 38 tokens"),
        pytest.param(
            "train.mixed_precision=fp16",
            "needs a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU"),
        ),
    ],
)
def test_mistakes_are_found_before_the_run_folder_is_made(tiny, tmp_path, override, expected):
    assert expected in user_error(loop.train, configure(tiny, tmp_path / "run", override))
    assert not (tmp_path / "run").exists()


def test_the_run_folder_may_be_impossible(tiny, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be written" in user_error(loop.train, configure(tiny, tmp_path / "file" / "run"))
