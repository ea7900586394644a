"""train.py under real launchers: as on two machines, with a process that dies, resumed by fewer."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from retrieval.config import load_config
from retrieval.training import loop
from retrieval.training.states import latest_state
from tests import warm_processes
from tests.conftest import PATIENCE, wait_for
from tests.many_processes import free_port, run_script, run_scripts
from tests.training.test_training import losses_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
NO_DROPOUT = ["text_encoder.dropout=0", "pooling.attention_dropout=0", "evaluation.num_pictures=0"]
NO_STEPS = [
    f"optimizer.lr.{group}=0"
    for group in "audio_encoder text_encoder audio_projection text_projection pooling".split()
]
MARK = "LAUNCHED_BY_TEST"  # in the environment of every process that a test here starts


def two_launchers(port: int) -> list[list[str]]:
    """Two launchers, as on two machines of one process each.

    `accelerate launch --cpu` always starts a single process; --multi_gpu starts as many as it
    should, and ACCELERATE_USE_CPU keeps them on the CPU.
    """
    accelerate = [
        str(Path(sys.executable).with_name("accelerate")),
        "launch",
        "--multi_gpu",
        "--num_machines",
        "2",
        "--num_processes",
        "2",
    ]
    place = [
        "--main_process_ip",
        "127.0.0.1",
        "--main_process_port",
        str(port),
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    return [[*accelerate, *place, "--machine_rank", str(machine), "train.py"] for machine in (0, 1)]


def torchrun(port: int) -> list[list[str]]:
    return [
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            "2",
            "--master_port",
            str(port),
            "train.py",
        ]
    ]


# What stands in for SLURM's commands: srun sets the variables that the real one sets, and starts
# all tasks here.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do [[ $1 == --ntasks=* ]] && tasks=${1#*=}; shift; done
export SLURM_STEP_ID=0 SLURM_STEPID=0 SLURM_LOCALID=0
export SLURM_STEP_NUM_TASKS=$tasks SLURM_NTASKS=$tasks SLURM_NPROCS=$tasks
for task in $(seq 0 $((tasks - 1))); do SLURM_PROCID=$task SLURM_NODEID=$task "$@" & done
code=0
for process in $(jobs -p); do wait "$process" || code=$?; done
exit $code
"""
SCONTROL = "#!/bin/bash\nprintf '127.0.0.1\\n127.0.0.2\\n'\n"  # show hostnames


def slurm_job(port: int, folder: Path) -> list[list[str]]:
    """configs/accelerate/slurm.sh as the script of a job of two nodes of one process each."""
    for name, script in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    job = {
        "JOB_ID": str(port - 10_000),
        "NNODES": "2",
        "NTASKS": "2",
        "PROCID": "0",
        "JOB_NODELIST": "node[1-2]",
    }
    # of the job's number the script makes a port
    variables = [f"SLURM_{name}={value}" for name, value in job.items()]
    return [
        [
            "env",
            f"PATH={path}",
            *variables,
            "PROCESSES_PER_NODE=1",
            "bash",
            "configs/accelerate/slurm.sh",
        ]
    ]


LAUNCHERS = {"torchrun": torchrun, "two accelerate launch": two_launchers}


@contextmanager
def launched(
    commands: list[list[str]], arguments: list[str], folder: Path
) -> Iterator[list[subprocess.Popen]]:
    """The launchers, with their output in FOLDER/log_0, ...; nothing of them is left behind."""
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        MARK: str(folder),
    }
    launchers = []
    try:
        for number, command in enumerate(commands):
            with open(folder / f"log_{number}", "w") as log:
                launchers.append(
                    subprocess.Popen(
                        [*command, *arguments], cwd=ROOT, env=environment, stdout=log, stderr=log
                    )
                )
        yield launchers
    finally:
        for process in running(folder):
            process.kill()
        for launcher in launchers:
            launcher.wait()


def running(folder: Path) -> list[psutil.Process]:
    """Processes that `launched` has started, whoever their parent is now.

    A launcher gives each process a session of its own.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == str(
                folder
            ):
                found.append(process)
        except psutil.Error:
            continue  # of another user, or gone by now
    return found


def training_processes(folder: Path) -> dict[int, psutil.Process]:
    """By rank, of all launchers together."""
    environments = [(process, process.environ()) for process in running(folder)]
    return {
        int(environment["RANK"]): process
        for process, environment in environments
        if "RANK" in environment
    }


@pytest.mark.parametrize("kind", ["two launchers", "SLURM"])
def test_two_launchers_train_as_one_process_does(tiny, tmp_path, capsys, kind):
    settings = [*NO_DROPOUT, "train.epochs=1"]
    loop.train(load_config(tiny / "tiny.yaml", [*settings, f"train.output={tmp_path}/one"]))
    said = [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("epoch 1: validation")
    ]
    arguments = ["--config", str(tiny / "tiny.yaml"), *settings, f"train.output={tmp_path}/two"]
    commands = (
        two_launchers(free_port()) if kind == "two launchers" else slurm_job(free_port(), tmp_path)
    )
    with launched(commands, arguments, tmp_path) as launchers:
        codes = [launcher.wait(PATIENCE) for launcher in launchers]
    log = (tmp_path / "log_0").read_text()
    assert set(codes) == {0}, log[-2000:]
    # not a line of its own: both machines of a SLURM job print it into one file
    assert "2 process(es)" in log and len(said) == 1 and said[0] in log
    one, two = tmp_path / "one", tmp_path / "two"
    assert losses_of(two) == pytest.approx(losses_of(one), rel=1e-5) and len(losses_of(one)) == 6
    assert json.loads((two / "metrics.json").read_text()) == json.loads(
        (one / "metrics.json").read_text()
    )
    expected, found = (load_file(run / "last" / "model.safetensors") for run in (one, two))
    for name, weight in expected.items():
        # A key bias drops out of the softmax: its gradient is rounding, which Adam makes steps of.
        assert (
            name.endswith("key.bias")
            or (found[name] - weight).abs().max() < 1e-4 * weight.abs().max()
        ), name


@pytest.mark.parametrize("kind", LAUNCHERS)
def test_a_process_that_is_killed_ends_the_others_with_an_error(tiny, tmp_path, kind):
    run = tmp_path / "run"
    arguments = [
        "--config",
        str(tiny / "tiny.yaml"),
        *NO_DROPOUT,
        "train.epochs=400",
        "train.save_every_steps=100000",
        f"train.output={run}",
    ]
    with launched(LAUNCHERS[kind](free_port()), arguments, tmp_path) as launchers:
        wait_for(lambda: (run / "last").exists(), launchers[0])
        processes = training_processes(tmp_path)
        assert sorted(processes) == [0, 1]
        processes[1].send_signal(signal.SIGKILL)
        wait_for(lambda: running(tmp_path) == [])
        codes = [launcher.wait() for launcher in launchers]
    logs = [(tmp_path / f"log_{number}").read_text() for number in range(len(launchers))]
    assert 0 not in codes
    assert "Signal 9 (SIGKILL)" in logs[-1]
    assert "Error" in logs[0]


def test_the_script_for_slurm_is_bash():
    assert subprocess.run(["bash", "-n", "configs/accelerate/slurm.sh"], cwd=ROOT).returncode == 0


# --- processes that Accelerate would not count ---


def refused(command: list[str], **variables: str) -> str:
    """Run `command` without a GPU and without ACCELERATE_USE_CPU; its output."""
    names = ("ACCELERATE_", "SLURM_", "WORLD_SIZE", "RANK")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | variables
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode != 0
    return ended.stderr


ACCELERATE = [str(Path(sys.executable).with_name("accelerate")), "launch", "--quiet"]


def test_processes_on_a_machine_without_a_gpu_are_refused(tiny, tmp_path):
    arguments = ["--config", str(tiny / "tiny.yaml"), f"train.output={tmp_path / 'run'}"]
    launcher = [
        *ACCELERATE,
        "--config_file",
        "configs/accelerate/multi_gpu.yaml",
        "--num_processes",
        "2",
    ]
    said = refused([*launcher, "--main_process_port", str(free_port()), "train.py", *arguments])
    lines = {line for line in said.splitlines() if line.startswith("error: ")}
    assert len(lines) == 1 and "ACCELERATE_USE_CPU=true" in lines.pop(), said
    assert 'train.py", line' not in said and not (tmp_path / "run").exists()


def test_a_default_file_that_accelerate_config_wrote_is_read(tiny, tmp_path):
    """The user answered `accelerate config` once, on another machine or for another project."""
    file = {
        "distributed_type": "FSDP",
        "num_processes": 2,
        "fsdp_config": {"fsdp_version": 1, "fsdp_state_dict_type": "FULL_STATE_DICT"},
    }
    common = {
        "compute_environment": "LOCAL_MACHINE",
        "mixed_precision": "bf16",
        "use_cpu": False,
        "debug": False,
        "same_network": True,
    }
    (tmp_path / "accelerate").mkdir()
    ClusterConfig(**file, **common).to_yaml_file(tmp_path / "accelerate" / "default_config.yaml")
    arguments = ["--config", str(tiny / "tiny.yaml"), f"train.output={tmp_path / 'run'}"]
    said = refused(
        [*ACCELERATE, "--main_process_port", str(free_port()), "train.py", *arguments],
        HF_HOME=str(tmp_path),
    )
    assert "error: ACCELERATE_USE_FSDP=true" in said and "train.micro_batch_size" in said
    assert not (tmp_path / "run").exists()


# --- going on with another number of processes ---


@pytest.fixture(scope="module")
def resumed(tiny, tmp_path_factory) -> dict[str, Any]:
    """Runs that another number of processes resumed: the output of each, and the folder of all."""
    folder = tmp_path_factory.mktemp("resumed")

    def arguments(name: str, *more: str) -> list[str]:
        return [
            "--config",
            str(tiny / "tiny.yaml"),
            *NO_DROPOUT,
            *("train.ema_decay=0.3", "train.validate_first=true"),
            "train.save_every_steps=100000",
            f"train.output={folder / name}",
            *more,
        ]

    def alone(name: str, stop: str = "", *more: str) -> str:
        return run_script(arguments(name, *more), stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        AcceleratorState._reset_state(reset_partial_state=True)
        before = signal.getsignal(signal.SIGTERM)  # ignored after an interruption
        said = {
            "undisturbed": alone("undisturbed"),
            "1 began": alone("1 to 2", "after an epoch"),
            "1 within": alone("1 within", "within an epoch"),
        }
        of_two = {
            "2 began": (arguments("2 to 1"), "after an epoch"),
            "2 within": (arguments("2 within"), "within an epoch"),
        }
        of_two |= {
            "1 to 2": (arguments("1 to 2", "--resume"), ""),
            "1 within, then 2": (arguments("1 within", "--resume"), ""),
            "patience": (
                arguments("patience", "train.patience=1", "train.epochs=9", *NO_STEPS),
                "",
            ),
        }
        states = {name: latest_state(folder / name).name for name in ("1 to 2", "1 within")}
        warm_processes.spawn(run_scripts, (free_port(), of_two, folder), nprocs=2)
        states |= {name: latest_state(folder / name).name for name in ("2 to 1", "2 within")}
        ranks = [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]
        said |= ranks[0] | {
            "2 to 1": alone("2 to 1", "", "--resume"),
            "2 within, then 1": alone("2 within", "", "--resume"),
        }
        said["1 within, then 1"] = alone("1 within", "", "--resume")
        signal.signal(signal.SIGTERM, before)
    return {"folder": folder, "said": said, "states": states, "ranks": ranks}


def test_runs_were_stopped_where_the_tests_below_say(resumed):
    assert resumed["states"] == {
        name: f"step-{step:08d}"
        for name, step in {"1 to 2": 6, "2 to 1": 6, "1 within": 3, "2 within": 3}.items()
    }
    assert {resumed["said"][name] for name in ("1 began", "2 began", "1 within", "2 within")} == {
        str(128 + signal.SIGTERM)
    }
    assert resumed["ranks"][0] == resumed["ranks"][1]


@pytest.mark.parametrize("name", ["1 to 2", "2 to 1"])
def test_after_an_epoch_a_run_goes_on_with_another_number_of_processes(resumed, name):
    """As if nothing had been: weights, optimizer and place are restored."""
    folder = resumed["folder"]
    assert resumed["said"][name] == resumed["said"]["undisturbed"] == "0"
    assert (
        losses_of(folder / name) == pytest.approx(losses_of(folder / "undisturbed"), rel=1e-4)
        and len(losses_of(folder / name)) == 12
    )
    assert (folder / name / "metrics.json").read_text() == (
        folder / "undisturbed" / "metrics.json"
    ).read_text()
    found, expected = (
        [json.loads(line) for line in (folder / run / "history.jsonl").read_text().splitlines()]
        for run in (name, "undisturbed")
    )
    assert [row["epoch"] for row in found] == [0, 1, 2]
    for row, other in zip(found, expected, strict=True):
        del row["seconds"], other["seconds"]
        absent = {name for name, value in other.items() if value is None}
        assert absent == {name for name, value in row.items() if value is None}
        for name in other.keys() - absent:
            assert row[name] == pytest.approx(other[name], rel=1e-4)


def test_processes_run_out_of_patience_together(resumed):
    """Steps of no length: the second validation is as good as the first, and not better."""
    assert [said["patience"] for said in resumed["ranks"]] == ["0", "0"]
    final = json.loads((resumed["folder"] / "patience" / "metrics.json").read_text())
    assert (final["best_epoch"], final["stopped"]["epoch"]) == (0, 1)


@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 1)])
def test_within_an_epoch_another_number_of_processes_is_refused(resumed, before, now):
    text = resumed["said"][f"{before} within, then {now}"]
    assert f"saved by {before} process(es) at step 3 of 6" in text and f"this run has {now}" in text
    assert "launch as many as before" in text and "\n" not in text
    # it is the number alone that was wrong, and the refusal spoilt nothing
    assert resumed["said"]["1 within, then 1"] == "0"
