"""Make the Accelerator, after every launch setting in the environment was honoured or refused.

`accelerate launch` passes its settings on as environment variables. Accelerate obeys some of them
silently, others partly. So they are checked here first. docs/distributed.md lists all of them:
honoured, refused, or without effect.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retrieval.base.errors import UserError, one_line
from retrieval.base.processes import environment_of, has_terminal, keep_freed_memory

if TYPE_CHECKING:
    from accelerate import Accelerator

MEMORY = "to save memory set train.micro_batch_size and train.activation_checkpointing=true"
# Switches of strategies that shard the model: the loss over all processes (retrieval.base.exchange)
# needs it whole.
STRATEGIES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context or sequence parallelism",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker's data parallelism",
}
# Settings of these strategies. Without the switch above Accelerate ignores them and trains without
# the strategy.
STRATEGY_PREFIXES = {
    "FSDP_": "FSDP",
    "ACCELERATE_DEEPSPEED_": "DeepSpeed",
    "MEGATRON_LM_": "Megatron-LM",
    "PARALLELISM_CONFIG_": "tensor, context or sequence parallelism",
    "ACCELERATE_FP8_": "fp8",
}
FLAGS = (
    *("ACCELERATE_USE_CPU", "ACCELERATE_DEBUG_MODE", "ACCELERATE_CPU_AFFINITY"),
    *("ACCELERATE_ENABLE_RICH", "FORK_LAUNCHED", "USE_TORCH_XLA"),
)
# as Accelerate reads flags
TRUE, FALSE = {"y", "yes", "t", "true", "on", "1"}, {"n", "no", "f", "false", "off", "0"}

# In the order in which Accelerate looks for them.
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
LOCAL_SIZES = (
    "LOCAL_WORLD_SIZE",
    "MPI_LOCALNRANKS",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MV2_COMM_WORLD_LOCAL_SIZE",
)
LOCAL_RANKS = (
    "LOCAL_RANK",
    "MPI_LOCALRANKID",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MV2_COMM_WORLD_LOCAL_RANK",
)
DEFAULT_PORT = 29500

ON_CPU = "to use the CPU set ACCELERATE_USE_CPU=true"
ONE_TASK = (
    "for one process use srun --ntasks=1, for independent runs unset SLURM_NTASKS, SLURM_NPROCS and"
    " SLURM_STEP_NUM_TASKS"
)
BY_LAUNCHER = (
    "for several start accelerate launch in each task, as configs/accelerate/slurm.sh does"
)


@dataclass(frozen=True)
class Launch:
    """Place of this process among the processes of a launch.

    Args:
        num_processes: Number of processes on all machines.
        rank: 0 to num_processes - 1.
        local_rank: Rank among the processes of this machine.
        address: Name or IP address of the machine of rank 0; empty for one process.
        port: Port where rank 0, or its launcher, listens.
        on_cpu: Use the CPU even if there is a GPU.
    """

    num_processes: int = 1
    rank: int = 0
    local_rank: int = 0
    address: str = ""
    port: int = DEFAULT_PORT
    on_cpu: bool = False


def make_accelerator(
    mixed_precision: str, cpu: bool = False, several: bool = True
) -> "Accelerator":
    """Make the Accelerator of this process; with several processes, wait for the others first.

    The environment decides on processes and devices, the configuration on everything else.

    Args:
        mixed_precision: `auto`, `bf16`, `fp16` or `no`; the environment does not change it.
        cpu: Use the CPU, as ACCELERATE_USE_CPU=true does.
        several: Accept several processes that share the work; False requires one.

    Raises:
        UserError: The environment has a setting that Accelerate would obey partly or not at all.
    """
    num_processes = check_environment(several)
    import torch
    from accelerate import Accelerator
    from accelerate.utils import (
        DistributedDataParallelKwargs,
        GradientAccumulationPlugin,
        TorchDynamoPlugin,
        is_torch_xla_available,
    )

    from retrieval.base import rendezvous

    if is_torch_xla_available():
        raise UserError(
            "torch_xla is installed, and Accelerate would train on XLA; set USE_TORCH_XLA=0"
        )
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    launch = read_launch(os.environ, num_processes, num_gpus, cpu)
    precision = choose_precision(mixed_precision, launch.on_cpu)
    if launch.on_cpu or not num_gpus:
        keep_freed_memory()
    if launch.rank == 0:
        for warning in ignored_settings(os.environ, precision):
            print(f"warning: {warning}", file=sys.stderr)
    if launch.num_processes > 1:
        rendezvous.join(launch)
    else:
        # With LOCAL_RANK Accelerate would make a process group of one, at a MASTER_ADDR left behind
        # by a notebook or a container.
        os.environ.pop("LOCAL_RANK", None)
    # With every field given, TorchDynamoPlugin reads no variable of the environment.
    never_compile = {
        "backend": "no",
        "mode": "default",
        "fullgraph": False,
        "dynamic": False,
        "use_regional_compilation": False,
    }
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            cpu=launch.on_cpu,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_plugin=TorchDynamoPlugin(**never_compile),
            # No buffer changes in training: filters, mel banks and statistics need not be sent at
            # every step.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    except (ValueError, ImportError, NotImplementedError, RuntimeError) as error:
        # ACCELERATE_CPU_AFFINITY without pynvml, RTX 4000 cards without NCCL_P2P_DISABLE, a GPU
        # that is taken, ...
        raise UserError(f"Accelerate does not start here: {one_line(error, 400)}") from None
    counts = {
        "accelerator.num_processes": accelerator.num_processes,
        "the process group": rendezvous.group_size(),
    }
    if set(counts.values()) != {launch.num_processes}:
        found = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise UserError(
            f"{launch.num_processes} process(es) were started, but {found}; use accelerate launch"
            " or torchrun"
        )
    return accelerator


def check_environment(several: bool = True) -> int:
    """Return how many processes were started together, without importing torch.

    Commands call this before imports that take seconds.

    Args:
        several: Accept several processes that share the work; False requires one.

    Raises:
        UserError: The environment has a setting that Accelerate would obey partly or not at all.
    """
    check_settings(os.environ)
    return count_processes(os.environ) if several else check_one_process(os.environ)


def check_settings(environment: Mapping[str, str]) -> None:
    """Raise UserError for unsupported strategies, and flags that are neither true nor false."""
    for name, strategy in STRATEGIES.items():
        if environment.get(name, "false").lower() not in FALSE:
            raise UserError(f"{name}={environment[name]}: {_unsupported(strategy)}")
    for name in sorted(environment):
        for prefix, strategy in STRATEGY_PREFIXES.items():
            if name.startswith(prefix):
                raise UserError(f"{name}={environment[name]}: {_unsupported(strategy)}")
    if environment.get("ACCELERATE_MIXED_PRECISION", "no").lower() == "fp8":
        raise UserError(f"ACCELERATE_MIXED_PRECISION=fp8: {_unsupported('fp8')}")
    for name in FLAGS:
        _flag(environment, name)


def _unsupported(strategy: str) -> str:
    remedy = (
        "set mixed_precision no" if strategy == "fp8" else "set distributed_type MULTI_GPU or NO"
    )
    return (
        f"{strategy} is not supported; {remedy} in the launcher's settings and unset this variable;"
        f" {MEMORY}"
    )


def ignored_settings(environment: Mapping[str, str], precision: str) -> list[str]:
    """Return a warning for each variable without effect, given the precision in use."""
    no_effect = []
    launcher = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if launcher not in ("no", precision):  # accelerate launch says "no" unless it is told otherwise
        decides = f"train.mixed_precision (or --mixed-precision) decides: {precision}"
        no_effect.append(("ACCELERATE_MIXED_PRECISION", decides))
    if environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") != "1":
        decides = "train.micro_batch_size bounds memory and keeps the gradients"
        no_effect.append(("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", decides))
    if "ACCELERATE_GRADIENT_CLIPPING" in environment:
        no_effect.append(("ACCELERATE_GRADIENT_CLIPPING", "optimizer.max_grad_norm decides"))
    if environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        no_effect.append(("ACCELERATE_DYNAMO_BACKEND", "train.compile decides"))
    return [f"{name}={environment[name]} has no effect; {decides}" for name, decides in no_effect]


def choose_precision(setting: str, on_cpu: bool = False) -> str:
    """Return the precision to train or score in.

    Args:
        setting: `auto` is bf16 where the GPU computes it, fp16 on older GPUs, `no` on the CPU.
        on_cpu: Use the CPU even if there is a GPU.

    Raises:
        UserError: fp16 without a GPU.
    """
    import torch

    has_gpu = torch.cuda.is_available() and not on_cpu
    if setting == "fp16" and not has_gpu:
        raise UserError(
            "train.mixed_precision=fp16 needs a GPU, and none is visible or used here; use auto,"
            " bf16 or no"
        )
    if setting != "auto":
        return setting
    if not has_gpu:
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def read_launch(
    environment: Mapping[str, str], num_processes: int, num_gpus: int, cpu: bool = False
) -> Launch:
    """Read this process's rank, and the address where the processes meet, from the environment.

    Args:
        environment: Variables, as os.environ.
        num_processes: Result of `count_processes`.
        num_gpus: Number of GPUs that this process sees.
        cpu: Use the CPU regardless of the environment.

    Raises:
        UserError: A variable is missing, or Accelerate would see another number of processes.
    """
    device = _checked_device(environment, num_processes)
    on_cpu = cpu or _flag(environment, "ACCELERATE_USE_CPU") or device == "cpu"
    if num_processes == 1:
        if (
            num_gpus
            and not on_cpu
            and _flag(_environment_of_launcher(environment), "ACCELERATE_USE_CPU")
        ):
            raise UserError(
                "accelerate launch replaces ACCELERATE_USE_CPU=true, and a GPU would be used; add"
                " --cpu to it"
            )
        return Launch(on_cpu=on_cpu)
    size_name = next(name for name in SIZES if name in environment)
    if not on_cpu and num_gpus == 0:
        raise UserError(
            f"{num_processes} processes were started ({size_name}={environment[size_name]}) and no"
            f" GPU is visible: Accelerate would treat each as the only one; {ON_CPU}"
        )
    rank, local_rank = (_first_number(environment, names) for names in (RANKS, LOCAL_RANKS))
    local_size = _first_number(environment, LOCAL_SIZES) or 1
    if rank is None or not on_cpu and "LOCAL_RANK" not in environment:
        absent = "RANK" if rank is None else "LOCAL_RANK"
        raise UserError(
            f"{size_name}={num_processes}, but {absent} is not set; use accelerate launch or"
            " torchrun"
        )
    if rank >= num_processes:
        raise UserError(
            f"RANK={rank} with {size_name}={num_processes}: ranks are 0 to {num_processes - 1};"
            " correct it"
        )
    if not on_cpu and "GROUP_WORLD_SIZE" in environment and local_size > num_gpus:
        # Processes of a launcher see the same GPUs; others may each see a GPU of their own.
        raise UserError(
            f"{local_size} processes on this machine, but {num_gpus} GPU(s) visible; start one"
            " process per GPU: --num_processes of accelerate launch, --nproc_per_node of torchrun"
        )
    address = environment.get("MASTER_ADDR", "127.0.0.1" if local_size == num_processes else "")
    if not address:
        raise UserError(
            f"{size_name}={num_processes}, but MASTER_ADDR is not set; set it to the machine of"
            " rank 0"
        )
    port = _number(environment, "MASTER_PORT") if "MASTER_PORT" in environment else DEFAULT_PORT
    if not 0 < port < 2**16:
        raise UserError(f"MASTER_PORT={port}: ports are 1 to 65535; correct it")
    return Launch(num_processes, rank, local_rank or 0, address, port, on_cpu)


def count_processes(environment: Mapping[str, str]) -> int:
    """Return how many processes were started to work together.

    torchrun, and accelerate launch for several processes, set WORLD_SIZE and GROUP_WORLD_SIZE, the
    number of launchers. Raises UserError if two sources disagree.
    """
    for name in SIZES:
        if name in environment:
            _number(environment, name)
    world_size = _first_number(environment, SIZES[:1])
    mpi_name = next((name for name in SIZES[1:] if name in environment), "")
    mpi_tasks = _number(environment, mpi_name) if mpi_name else 1
    slurm_name, slurm_tasks = slurm_task_count(environment)
    has_launcher = "ACCELERATE_MIXED_PRECISION" in environment or "GROUP_WORLD_SIZE" in environment
    if has_launcher and slurm_name != "SLURM_STEP_NUM_TASKS":
        # the count is the job's; a launcher in its script may start any number of processes
        slurm_tasks = 1
    by_mpi = mpi_tasks > 1 and mpi_tasks != slurm_tasks  # srun may set PMI_SIZE as well
    tasks_name, tasks = (mpi_name, mpi_tasks) if by_mpi else (slurm_name, slurm_tasks)
    by_slurm = tasks_name == slurm_name
    remedy = f"{ONE_TASK}; {BY_LAUNCHER}" if by_slurm else "start one launcher, or none"
    if "GROUP_WORLD_SIZE" in environment:
        launchers = _number(environment, "GROUP_WORLD_SIZE")
        if tasks > 1 and tasks != launchers:
            raise UserError(
                f"{tasks_name}={tasks} tasks, but launchers in groups of {launchers}"
                f" (GROUP_WORLD_SIZE); {remedy}"
            )
        return world_size or 1
    num_processes = world_size or mpi_tasks
    if tasks > 1 and tasks != num_processes:
        found = f"WORLD_SIZE={num_processes}"
        if num_processes == 1:
            found = "each would take itself for the only process"
        raise UserError(f"{tasks_name}={tasks} tasks, but {found}; {remedy}")
    # accelerate launch sets MASTER_ADDR for several processes, even if it starts only one
    launcher, address = _environment_of_launcher(environment), environment.get("MASTER_ADDR")
    if num_processes == 1 and launcher and address and launcher.get("MASTER_ADDR") != address:
        raise UserError(
            "accelerate launch was asked for several processes and has started one; add --multi_gpu"
            " (on the CPU: ACCELERATE_USE_CPU=true accelerate launch --multi_gpu), or set"
            " --num_processes 1"
        )
    return num_processes


def slurm_task_count(environment: Mapping[str, str]) -> tuple[str, int]:
    """Return the name of SLURM's variable and its number of tasks; 1 outside SLURM.

    srun sets SLURM_STEP_NUM_TASKS; SLURM_NTASKS may belong to the whole job. The shell of `srun
    --pty` always runs in one task. Another srun in that shell passes SLURM_PTY_PORT on, but its
    tasks have no terminal.
    """
    if "SLURM_PTY_PORT" in environment:
        has_task = "SLURM_TASK_PID" in environment
        if not has_task or has_terminal(_number(environment, "SLURM_TASK_PID")):
            return "", 1
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"):
        if name in environment:
            return name, _number(environment, name)
    return "", 1


def _environment_of_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of accelerate launch; empty for processes that it did not start."""
    return environment_of(os.getppid()) if "ACCELERATE_MIXED_PRECISION" in environment else {}


def check_one_process(environment: Mapping[str, str]) -> int:
    """Return 1. Raises UserError if several processes were started: each would do the same work."""
    counts = [(name, _number(environment, name)) for name in SIZES if name in environment]
    slurm_name, slurm_tasks = slurm_task_count(environment)
    counts += [(slurm_name, slurm_tasks)] if slurm_name == "SLURM_STEP_NUM_TASKS" else []
    for name, count in counts:
        if count > 1:
            raise UserError(
                f"{name}={count}: several processes were started, but this command runs as one;"
                " start it once"
            )
    return 1


def _checked_device(environment: Mapping[str, str], num_processes: int) -> str:
    """Return the kind of device that ACCELERATE_TORCH_DEVICE names, empty without it.

    Raises UserError if the device cannot be used.
    """
    import torch

    name = environment.get("ACCELERATE_TORCH_DEVICE")
    if name is None:
        return ""
    if num_processes > 1:
        raise UserError(
            f"ACCELERATE_TORCH_DEVICE={name} would put {num_processes} processes on one device;"
            " unset it"
        )
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"ACCELERATE_TORCH_DEVICE={name} cannot be used here ({one_line(error)}); unset it"
        ) from None
    return torch.device(name).type


def _flag(environment: Mapping[str, str], name: str) -> bool:
    value = environment.get(name, "false").lower()
    if value not in TRUE | FALSE:
        raise UserError(
            f"{name}={environment[name]!r} is neither true nor false; set it to one of them, or"
            " unset it"
        )
    return value in TRUE


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment[name]
    if not value.strip().isdecimal():
        raise UserError(f"{name}={value!r} is not a number; correct it, or unset it")
    return int(value)


def _first_number(environment: Mapping[str, str], names: Sequence[str]) -> int | None:
    return next((_number(environment, name) for name in names if name in environment), None)
