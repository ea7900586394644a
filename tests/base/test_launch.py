"""The environment of a launch: honoured or refused, as the table in docs/distributed.md says."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path

import accelerate
import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from retrieval.base import launch
from retrieval.base.errors import UserError
from retrieval.base.launch import (
    Launch,
    check_environment,
    count_processes,
    ignored_settings,
    make_accelerator,
    read_launch,
)
from retrieval.evaluation import zero_shot
from retrieval.evaluation.score_matrix import Scorer
from retrieval.search.__main__ import main as search
from retrieval.sharing.export.command import main as export
from retrieval.training import pretraining
from tests.conftest import PATIENCE, wait_for
from tests.many_processes import free_port

ROOT = Path(__file__).resolve().parents[2]
SETTING_NAMES = re.compile(r"`([A-Za-z_0-9*]+)`")
VARIABLE = re.compile(r"\b(?:ACCELERATE|FSDP|PARALLELISM_CONFIG|MEGATRON_LM)_[A-Z0-9_]*[A-Z0-9]\b")
PREFIX, PREFIXED = re.compile(r'prefix = "([A-Z0-9_]+_)"'), re.compile(r'prefix \+ "([A-Z0-9_]+)"')
# Constants of Accelerate's source that are spelt like variables.
CONSTANTS = {"FSDP_MODEL_NAME", "FSDP_PYTORCH_VERSION", "ACCELERATE_DYNAMO", "ACCELERATE_FP8"}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """Without what this test run was itself started with."""
    for name in [
        name
        for name in os.environ
        if name.startswith(("ACCELERATE_", "SLURM_", "OMPI_", "PMI_", "FSDP_"))
    ]:
        monkeypatch.delenv(name)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


# --- the table ---


def table(heading: str) -> dict[str, str]:
    """What docs/distributed.md says of each setting under `heading`."""
    text = (
        (ROOT / "docs" / "distributed.md")
        .read_text(encoding="utf-8")
        .split(f"## {heading}")[1]
        .split("\n## ")[0]
    )
    rows = [line.strip("|").split("|", 1) for line in text.splitlines() if line.startswith("| `")]
    return {
        name: outcome.strip() for names, outcome in rows for name in SETTING_NAMES.findall(names)
    }


SETTINGS, VARIABLES = (
    table("Every setting of `accelerate config`"),
    table("Every variable that Accelerate reads"),
)


def variables_of_accelerate() -> set[str]:
    package = Path(accelerate.__file__).parent
    names, prefix = set(), ""
    for path in package.rglob("*.py"):
        for line in (
            path.read_text(encoding="utf-8").splitlines() if "test_utils" not in path.parts else ()
        ):
            names |= set(VARIABLE.findall(line))
            prefix = assigned[1] if (assigned := PREFIX.search(line)) else prefix
            names |= {prefix + rest for rest in PREFIXED.findall(line)}
    return {name for name in names if VARIABLE.fullmatch(name)} - CONSTANTS


def test_every_setting_that_accelerate_config_writes_is_in_the_table():
    assert set(SETTINGS) == {field.name for field in fields(ClusterConfig)}


def test_every_variable_that_accelerate_reads_is_in_the_table():
    found = variables_of_accelerate()
    assert len(found) > 100
    assert (
        sorted(name for name in found if not any(fnmatchcase(name, row) for row in VARIABLES)) == []
    )
    assert [row for row in VARIABLES if not any(fnmatchcase(name, row) for name in found)] == []


def test_every_row_says_honoured_refused_or_without_effect():
    outcomes = [*SETTINGS.values(), *VARIABLES.values()]
    assert [
        outcome for outcome in outcomes if not re.search("honoured|refused|no effect", outcome)
    ] == []


REFUSED = [
    name
    for name in sorted(variables_of_accelerate())
    if any(fnmatchcase(name, row) and VARIABLES[row] == "refused" for row in VARIABLES)
]


@pytest.mark.parametrize("name", REFUSED)
def test_refused_variables_are_refused(monkeypatch, name):
    monkeypatch.setenv(name, "true")
    with pytest.raises(
        UserError, match=rf"{name}=true.*train\.micro_batch_size.*train\.activation_checkpointing"
    ):
        check_environment()


def test_refused_are_all_strategies():
    assert {*launch.STRATEGIES} <= {*REFUSED} and len(REFUSED) > 80


@pytest.mark.parametrize("name", launch.STRATEGIES)
@pytest.mark.parametrize(
    ("value", "refused"),
    [("1", True), ("Yes", True), ("maybe", True), ("", True), ("false", False), ("0", False)],
)
def test_a_strategy_may_be_switched_off(monkeypatch, name, value, refused):
    """Accelerate itself takes `1` for false in some places and for true in others."""
    monkeypatch.setenv(name, value)
    if refused:
        pytest.raises(UserError, check_environment).match(name)
    else:
        assert check_environment() == 1


# --- the launcher's file, as the launcher reads it ---

FSDP = {
    "fsdp_version": 1,
    "fsdp_sharding_strategy": "FULL_SHARD",
    "fsdp_auto_wrap_policy": "NO_WRAP",
    "fsdp_state_dict_type": "FULL_STATE_DICT",
}
FSDP_2 = {
    "fsdp_version": 2,
    "fsdp_reshard_after_forward": True,
    "fsdp_state_dict_type": "SHARDED_STATE_DICT",
    "fsdp_offload_params": False,
}
MEGATRON = {
    "megatron_lm_tp_degree": 2,
    "megatron_lm_pp_degree": 1,
    "megatron_lm_gradient_clipping": 1.0,
}
FILES = {
    "FSDP 1": {"distributed_type": "FSDP", "fsdp_config": FSDP},
    "FSDP 2": {"distributed_type": "FSDP", "fsdp_config": FSDP_2},
    "Megatron-LM": {"distributed_type": "MEGATRON_LM", "megatron_lm_config": MEGATRON},
    "context parallel": {
        "distributed_type": "FSDP",
        "fsdp_config": FSDP_2,
        "parallelism_config": {"parallelism_config_cp_size": 2},
    },
    "parallel without FSDP": {
        "distributed_type": "MULTI_GPU",
        "parallelism_config": {"parallelism_config_tp_size": 2},
    },
}


def launched_environment(folder: Path, settings: dict, *options: str) -> dict[str, str]:
    """The environment that `accelerate launch` gives to a process, with a file of settings."""
    common = {
        "compute_environment": "LOCAL_MACHINE",
        "mixed_precision": "no",
        "use_cpu": False,
        "debug": False,
        "num_processes": 2,
    }
    ClusterConfig(**(common | settings)).to_yaml_file(folder / "launcher.yaml")
    arguments = launch_command_parser().parse_args(
        [
            "--config_file",
            str(folder / "launcher.yaml"),
            "--main_process_port",
            "0",
            *options,
            "train.py",
        ]
    )
    arguments, *_ = _validate_launch_command(arguments)
    if arguments.use_fsdp or arguments.use_megatron_lm or arguments.multi_gpu:
        # torchrun, which it calls, adds these.
        own = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "GROUP_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
        }
        return prepare_multi_gpu_env(arguments) | own
    return prepare_simple_launcher_cmd_env(arguments)[1]


@pytest.mark.parametrize("kind", FILES)
def test_files_with_other_strategies_are_refused(monkeypatch, tmp_path, kind):
    for name, value in launched_environment(tmp_path, FILES[kind]).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        UserError, match=r"not supported.*train\.micro_batch_size.*train\.activation_checkpointing"
    ):
        check_environment()


def test_a_file_of_several_gpus_is_honoured(tmp_path):
    environment = launched_environment(tmp_path, {"distributed_type": "MULTI_GPU"})
    launch.check_settings(environment)
    assert count_processes(environment) == 2
    assert read_launch(environment | {"RANK": "1", "LOCAL_RANK": "1"}, 2, num_gpus=2).rank == 1


def test_a_file_of_several_cpus_starts_one_process_which_is_refused(tmp_path):
    environment = launched_environment(tmp_path, {"distributed_type": "MULTI_CPU", "use_cpu": True})
    pytest.raises(UserError, count_processes, environment).match("--num_processes 1")


def test_a_main_address_of_the_user_s_own_is_no_sign_of_several_processes(monkeypatch, tmp_path):
    environment = launched_environment(tmp_path, {"distributed_type": "NO", "num_processes": 1}) | {
        "MASTER_ADDR": "node7"
    }
    monkeypatch.setattr(launch, "environment_of", lambda process: {"MASTER_ADDR": "node7"})
    assert count_processes(environment) == 1


def test_a_variable_that_the_launcher_replaces_is_not_lost(monkeypatch, tmp_path):
    """The launcher of one process writes ACCELERATE_USE_CPU=False over what the user has set."""
    environment = launched_environment(tmp_path, {"distributed_type": "NO", "num_processes": 1})
    assert environment["ACCELERATE_USE_CPU"] == "False"
    monkeypatch.setattr(launch, "environment_of", lambda process: {"ACCELERATE_USE_CPU": "true"})
    pytest.raises(UserError, read_launch, environment, 1, num_gpus=1).match(
        "ACCELERATE_USE_CPU.*--cpu"
    )
    assert read_launch(environment, 1, num_gpus=0) == Launch()
    assert read_launch(environment | {"ACCELERATE_USE_CPU": "True"}, 1, num_gpus=1) == Launch(
        on_cpu=True
    )


def test_a_file_of_another_precision_and_dynamo_is_said_to_have_no_effect(tmp_path):
    """Of shared use: what is read is what the launcher writes."""
    dynamo = {
        "dynamo_backend": "INDUCTOR",
        "dynamo_mode": "default",
        "dynamo_use_dynamic": True,
        "dynamo_use_fullgraph": True,
    }
    file = {
        "distributed_type": "NO",
        "num_processes": 1,
        "mixed_precision": "bf16",
        "dynamo_config": dynamo,
    }
    environment = launched_environment(tmp_path, file)
    launch.check_settings(environment)
    precision, compiled = ignored_settings(environment, "no")
    assert (
        "train.mixed_precision" in precision and "bf16" in precision and "train.compile" in compiled
    )
    assert ignored_settings(environment | {"ACCELERATE_DYNAMO_BACKEND": "NO"}, "bf16") == []


def test_what_the_launcher_says_by_itself_warns_of_nothing(tmp_path):
    environment = launched_environment(tmp_path, {"distributed_type": "NO", "num_processes": 1})
    assert ignored_settings(environment, "bf16") == []


def test_fp8_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    pytest.raises(UserError, check_environment).match("fp8.*train.micro_batch_size")


# --- the Accelerator ---


def test_the_environment_changes_neither_accumulation_nor_compilation_nor_precision(
    monkeypatch, capsys
):
    settings = {
        "GRADIENT_ACCUMULATION_STEPS": "4",
        "GRADIENT_CLIPPING": "1",
        "DYNAMO_BACKEND": "INDUCTOR",
        "DYNAMO_USE_FULLGRAPH": "junk",
    }
    for name, value in (settings | {"MIXED_PRECISION": "bf16"}).items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    accelerator = make_accelerator("no")
    weight = torch.ones(1, requires_grad=True)
    accelerator.backward(3 * weight.sum())
    assert weight.grad.item() == 3
    assert (accelerator.gradient_accumulation_steps, accelerator.mixed_precision) == (1, "no")
    assert accelerator.state.dynamo_plugin.backend == "NO"
    said = capsys.readouterr().err
    assert all(
        name in said
        for name in (
            "train.micro_batch_size",
            "optimizer.max_grad_norm",
            "train.compile",
            "train.mixed_precision",
        )
    )
    assert said.count("warning: ") == 4


def test_on_the_cpu_auto_is_float32_also_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert launch.choose_precision("auto") == "bf16"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    accelerator = make_accelerator("auto")
    assert (accelerator.device.type, accelerator.mixed_precision) == ("cpu", "no")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("ACCELERATE_USE_CPU", value) for value in ("maybe", "", "2")),
        ("ACCELERATE_DEBUG_MODE", "loud"),
        ("ACCELERATE_CPU_AFFINITY", "numa"),
        ("USE_TORCH_XLA", "perhaps"),
        ("ACCELERATE_TORCH_DEVICE", "gpu"),
        ("ACCELERATE_TORCH_DEVICE", "meta"),
        ("ACCELERATE_TORCH_DEVICE", "cuda:63"),
        ("WORLD_SIZE", "two"),
        ("SLURM_NTASKS", "2(x2)"),
    ],
)
def test_values_without_meaning_are_refused(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=name):
        make_accelerator("no")


def test_what_accelerate_itself_refuses_is_one_line(monkeypatch):
    """As on RTX 4000 cards without NCCL_P2P_DISABLE, or with CPU affinity and without pynvml."""
    monkeypatch.setattr(
        accelerate,
        "Accelerator",
        lambda **settings: exec("raise NotImplementedError('RTX 4000\\nNCCL_P2P_DISABLE=1')"),
    )
    with pytest.raises(UserError, match="NCCL_P2P_DISABLE") as caught:
        make_accelerator("no")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flag", ["ACCELERATE_DEBUG_MODE", "ACCELERATE_CPU_AFFINITY"])
def test_honoured_flags_do_no_harm(monkeypatch, flag):
    monkeypatch.setenv(flag, "1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "yes")
    assert make_accelerator("no").num_processes == 1


@pytest.mark.parametrize(
    "variables", [{}, {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}], ids=len
)
@pytest.mark.parametrize("cpu", ["true", "false"])
def test_one_process_meets_nobody_at_an_address_that_was_left_behind(monkeypatch, variables, cpu):
    """As in a notebook or a container. Accelerate would wait there for itself, deaf to signals."""
    settings = variables | {
        "LOCAL_RANK": "0",
        "MASTER_PORT": str(free_port()),
        "ACCELERATE_USE_CPU": cpu,
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert make_accelerator("no").num_processes == 1
    assert not torch.distributed.is_initialized()


def test_xla_is_refused(monkeypatch):
    """Where torch_xla is installed Accelerate takes it, whatever the devices."""
    monkeypatch.setattr(accelerate.utils, "is_torch_xla_available", lambda: True)
    pytest.raises(UserError, make_accelerator, "no").match("USE_TORCH_XLA=0")


# --- how many processes ---

BY_TORCHRUN = {
    "WORLD_SIZE": "2",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
}
BY_MPIRUN = {
    f"OMPI_COMM_WORLD_{name}": value
    for name, value in {"SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_SIZE": "2"}.items()
}
JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_NNODES": "1",
    "SLURM_NTASKS": "2",
    "SLURM_NPROCS": "2",
    "SLURM_TASKS_PER_NODE": "2",
}
IN_SCRIPT = JOB | {
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_GTIDS": "0",
}  # of sbatch
BY_SRUN = IN_SCRIPT | {
    "SLURM_STEP_ID": "0",
    "SLURM_STEPID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2",
}
ONE_TASK = IN_SCRIPT | {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_NTASKS": "1",
    "SLURM_NPROCS": "1",
}  # srun --ntasks=1
AT_TERMINAL = BY_SRUN | {
    "SLURM_PTY_PORT": "34889",
    "SLURM_PTY_WIN_COL": "236",
    "SLURM_PTY_WIN_ROW": "64",
}  # srun --ntasks=2 --pty bash
SALLOC = JOB | {
    "SLURM_STEP_ID": "4294967290",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_PTY_PORT": "34889",
    "SLURM_PROCID": "0",
}  # interactive step
BY_ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no"}  # one process


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 1),
        (BY_TORCHRUN, 2),
        (BY_TORCHRUN | IN_SCRIPT, 2),
        (BY_TORCHRUN | {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"} | IN_SCRIPT, 8),
        (BY_TORCHRUN | {"WORLD_SIZE": "8"} | AT_TERMINAL, 8),
        (BY_TORCHRUN | {"WORLD_SIZE": "8"} | ONE_TASK, 8),
        # a launcher a task
        (BY_TORCHRUN | {"WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2"} | BY_SRUN, 8),
        (BY_ACCELERATE | IN_SCRIPT, 1),
        (BY_ACCELERATE | ONE_TASK, 1),
        (BY_MPIRUN, 2),
        (BY_MPIRUN | IN_SCRIPT, 2),
        (BY_MPIRUN | ONE_TASK, 2),  # mpirun starts its own helpers by srun, one a node
        # by hand, from SLURM's variables
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"} | BY_SRUN, 2),
        (BY_SRUN | {"PMI_SIZE": "2", "PMI_RANK": "0"}, 2),  # srun --mpi=pmi2
        (ONE_TASK, 1),
        (AT_TERMINAL, 1),
        (SALLOC, 1),
    ],
)
def test_sources_that_agree(environment, count):
    assert count_processes(environment) == count


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"SLURM_NTASKS": "2"}, "SLURM_NTASKS=2"),
        (JOB, "SLURM_NTASKS=2"),
        (IN_SCRIPT, "SLURM_NTASKS=2"),
        (BY_SRUN, "SLURM_STEP_NUM_TASKS=2.*slurm.sh"),
        (BY_SRUN | {"SLURM_PROCID": "1"}, "SLURM_STEP_NUM_TASKS=2.*srun --ntasks=1"),
        # a launcher of one process in each task
        (BY_SRUN | BY_ACCELERATE, "SLURM_STEP_NUM_TASKS=2"),
        (BY_SRUN | BY_TORCHRUN, "SLURM_STEP_NUM_TASKS=2.*GROUP_WORLD_SIZE"),
        (BY_SRUN | {"WORLD_SIZE": "4", "RANK": "0"}, "SLURM_STEP_NUM_TASKS=2.*WORLD_SIZE=4"),
        (BY_MPIRUN | {"WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE=2.*WORLD_SIZE=4"),
        (BY_MPIRUN | BY_TORCHRUN, "OMPI_COMM_WORLD_SIZE=2.*GROUP_WORLD_SIZE"),
    ],
)
def test_sources_that_disagree_are_refused(environment, named):
    with pytest.raises(UserError, match=named):
        count_processes(environment)


def test_a_shell_of_srun_is_told_from_the_tasks_that_srun_starts_in_it():
    """Both have SLURM_PTY_PORT; the shell, whose number is SLURM_TASK_PID, has a terminal."""
    main, terminal = pty.openpty()
    prints = "import os; print(os.getpid(), flush=True); input()"
    arguments = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "text": True,
        "start_new_session": True,
    }
    take = f"import fcntl, termios; fcntl.ioctl({terminal}, termios.TIOCSCTTY, 0); {prints}"
    shell = subprocess.Popen([sys.executable, "-c", take], pass_fds=[terminal], **arguments)
    task = subprocess.Popen([sys.executable, "-c", prints], **arguments)
    try:
        in_shell, in_task = (
            AT_TERMINAL | {"SLURM_TASK_PID": process.stdout.readline()} for process in (shell, task)
        )
        assert launch.slurm_task_count(in_shell) == ("", 1)
        assert launch.slurm_task_count(in_task) == ("SLURM_STEP_NUM_TASKS", 2)
        # of another machine
        assert launch.slurm_task_count(AT_TERMINAL | {"SLURM_TASK_PID": str(2**22 + 1)})[1] == 2
    finally:
        for process in (shell, task):
            process.communicate("\n")
        os.close(main)
        os.close(terminal)


@pytest.mark.parametrize(
    "name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"]
)
def test_commands_of_one_process_refuse_to_be_one_of_several(monkeypatch, name):
    monkeypatch.setenv(name, "2")
    pytest.raises(UserError, check_environment, several=False).match(f"{name}=2")


def test_commands_of_one_process_run_in_a_job_of_several_tasks(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert check_environment(several=False) == 1


# --- where the others are ---


@pytest.mark.parametrize(
    ("environment", "num_gpus", "named"),
    [
        (BY_TORCHRUN, 0, "no GPU is visible.*ACCELERATE_USE_CPU=true"),
        (BY_MPIRUN, 0, "OMPI_COMM_WORLD_SIZE=2.*ACCELERATE_USE_CPU=true"),
        (BY_MPIRUN, 2, "LOCAL_RANK"),  # Accelerate looks at MPI's variables on CPUs only
        (BY_TORCHRUN, 1, r"1 GPU\(s\)"),
        (BY_TORCHRUN | {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}, 2, r"2 GPU\(s\)"),
        (BY_TORCHRUN | {"RANK": "2"}, 2, "RANK=2"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a"}, 2, "RANK"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, 2, "MASTER_ADDR"),
        (BY_TORCHRUN | {"MASTER_PORT": "http"}, 2, "MASTER_PORT"),
        (BY_TORCHRUN | {"MASTER_PORT": "0"}, 2, "MASTER_PORT"),
        (BY_TORCHRUN | {"MASTER_PORT": "99999"}, 2, "MASTER_PORT"),
        (BY_TORCHRUN | {"ACCELERATE_TORCH_DEVICE": "cpu"}, 2, "ACCELERATE_TORCH_DEVICE"),
    ],
)
def test_processes_that_could_not_meet_are_refused(environment, num_gpus, named):
    with pytest.raises(UserError, match=named):
        read_launch(
            environment,
            2 if "WORLD_SIZE" not in environment else int(environment["WORLD_SIZE"]),
            num_gpus,
        )


def test_places():
    port = {"MASTER_PORT": "1234"}
    assert read_launch(BY_TORCHRUN | port, 2, num_gpus=2) == Launch(
        2, 0, 0, "127.0.0.1", 1234, on_cpu=False
    )
    on_cpu = {"ACCELERATE_USE_CPU": "true"}
    assert read_launch(BY_MPIRUN | on_cpu, 2, num_gpus=0) == Launch(
        2, 0, 0, "127.0.0.1", 29500, on_cpu=True
    )
    assert read_launch(on_cpu, 1, num_gpus=1) == Launch(on_cpu=True)
    # srun --gpus-per-task=1: each process sees a GPU of its own.
    by_hand = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "3", "MASTER_ADDR": "node1"}
    assert read_launch(by_hand, 4, num_gpus=1) == Launch(4, 3, 3, "node1", 29500)
    assert read_launch({"ACCELERATE_TORCH_DEVICE": "cpu"}, 1, num_gpus=1).on_cpu


# --- the commands ---


@pytest.mark.parametrize(
    "variables",
    [{"SLURM_NTASKS": "2"}, {"ACCELERATE_USE_FSDP": "true"}],
    ids=lambda variables: "".join(variables),
)
@pytest.mark.parametrize("command", ["train.py", "evaluate.py"])
def test_scripts_refuse_before_they_write(monkeypatch, tiny, tmp_path, command, variables):
    output = tmp_path / "run"
    arguments = {
        "train.py": ["--config", str(tiny / "tiny.yaml"), f"train.output={output}"],
        "evaluate.py": [
            "--checkpoint",
            str(tiny),
            "--cache",
            str(tiny / "cache"),
            "--output",
            str(output),
        ],
    }
    environment = os.environ | variables
    ended = subprocess.run(
        [sys.executable, command, *arguments[command]],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (2, ""), ended
    assert ended.stderr.startswith("error: " + "".join(variables)) and ended.stderr.count("\n") == 1
    assert not output.exists()


def test_other_commands_refuse_before_they_write(monkeypatch, tiny, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("dog\ncat\n")
    (tmp_path / "checkpoint").mkdir()
    zero = [
        "--checkpoint",
        str(tmp_path / "checkpoint"),
        "--cache",
        str(tiny / "cache"),
        "--labels",
        str(labels),
        "--output",
        str(tmp_path / "out.csv"),
    ]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    before = sorted(tmp_path.rglob("*"))
    pytest.raises(UserError, zero_shot.main, zero).match("ACCELERATE_USE_FSDP")
    index = [
        "index",
        str(tmp_path),
        "--checkpoint",
        str(tmp_path / "checkpoint"),
        "--index",
        str(tmp_path / "index"),
    ]
    pytest.raises(UserError, search, index).match("ACCELERATE_USE_FSDP")
    pretrain = [
        "--cache",
        str(tiny / "cache"),
        "--text-encoder",
        str(tiny / "text_encoder"),
        "--output",
        str(tmp_path / "weights"),
    ]
    pytest.raises(UserError, pretraining.main, pretrain).match("ACCELERATE_USE_FSDP")
    onnx = [
        "--checkpoint",
        str(tmp_path / "checkpoint"),
        "--onnx",
        "--output",
        str(tmp_path / "onnx"),
    ]
    pytest.raises(UserError, export, onnx).match("ACCELERATE_USE_FSDP")
    assert sorted(tmp_path.rglob("*")) == before


def test_processes_without_a_gpu_are_refused_before_a_model_is_loaded(monkeypatch, tmp_path):
    for name, value in BY_TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pytest.raises(UserError, Scorer, [tmp_path / "absent"]).match("ACCELERATE_USE_CPU=true")


# --- waiting ---

WAITS = """
import sys
from retrieval.base import rendezvous
from retrieval.base.launch import Launch
rendezvous.FIRST_NOTICE = 0.3
print("begins", flush=True)
rendezvous.join(Launch(2, int(sys.argv[1]), 0, "127.0.0.1", int(sys.argv[2]), on_cpu=True))
print("together", flush=True)
"""


def waiting(rank: int, port: int, log: Path) -> subprocess.Popen:
    with open(log, "w") as file:
        return subprocess.Popen(
            [sys.executable, "-c", WAITS, str(rank), str(port)], cwd=ROOT, stdout=file, stderr=file
        )


@pytest.mark.parametrize(("rank", "missing"), [(0, "rank 1"), (1, "process 0")])
def test_a_process_says_for_whom_it_waits_and_where_and_ends_on_a_signal(tmp_path, rank, missing):
    port, log = free_port(), tmp_path / "log"
    process = waiting(rank, port, log)
    try:
        wait_for(lambda: "has waited" in log.read_text(), process)
        said = log.read_text()
        assert f"process {rank} of 2" in said and f"127.0.0.1:{port}" in said and missing in said
        # unlike SIGTERM it needs Python's handler, which C++ would hold up
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)
        assert "KeyboardInterrupt" in log.read_text() and "together" not in log.read_text()
    finally:
        process.kill()
        process.wait()


def test_a_process_that_comes_late_is_waited_for(tmp_path):
    port, logs = free_port(), [tmp_path / "0", tmp_path / "1"]
    processes = [waiting(1, port, logs[1])]
    try:
        wait_for(lambda: "has waited" in logs[1].read_text(), processes[0])
        processes.append(waiting(0, port, logs[0]))
        assert [process.wait(PATIENCE) for process in processes] == [0, 0]
        assert all("together" in log.read_text() for log in logs)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_after_the_longest_wait_the_process_ends_in_one_line(monkeypatch):
    from retrieval.base import rendezvous

    monkeypatch.setattr(rendezvous, "LONGEST_WAIT", 0.5)
    started = time.monotonic()
    with pytest.raises(UserError, match="process 0 of 2.*rank 1"):
        rendezvous.join(Launch(2, 0, 0, "127.0.0.1", free_port(), on_cpu=True))
    assert time.monotonic() - started >= 0.5


# --- the command that goes on ---

ASKS = (
    "import retrieval.base.stopping; print('again:', retrieval.base.stopping.resume_command(),"
    " flush=True)"
)


def test_the_command_that_goes_on_is_the_launcher_s_with_its_variables(tmp_path):
    (tmp_path / "ask.py").write_text(ASKS)
    launcher = [
        str(Path(sys.executable).with_name("accelerate")),
        "launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    ]
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "UNRELATED": "1",
    }
    command = [*launcher, "ask.py", "--overwrite", "train.output=a b"]
    said = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True
    ).stdout
    launched = "accelerate launch --multi_gpu --num_processes 2 --main_process_port 0"
    again = f"ACCELERATE_USE_CPU=true {launched} ask.py 'train.output=a b' --resume"
    assert said.splitlines() == [f"again: {again}"] * 2


@pytest.mark.parametrize("wrapper", [["nice"], ["env"], ["timeout", "60"]])
def test_the_command_that_goes_on_keeps_what_stands_in_front(tmp_path, wrapper):
    (tmp_path / "ask.py").write_text(ASKS)
    by_hand = {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "node 7",
        "MASTER_PORT": "29500",
    }
    environment = os.environ | by_hand | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [*wrapper, sys.executable, "ask.py", "--resume"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    variables = (
        "ACCELERATE_USE_CPU=true LOCAL_RANK=1 MASTER_ADDR='node 7' MASTER_PORT=29500 RANK=1"
        " WORLD_SIZE=2"
    )
    kept = "timeout 60 " + sys.executable if wrapper[0] == "timeout" else Path(sys.executable).name
    assert ended.stdout == f"again: {variables} {kept} ask.py --resume\n"
