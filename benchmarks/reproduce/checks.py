"""Check disk, memory and GPU before anything starts."""

import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.reproduce.gpus import Gpu
from benchmarks.reproduce.plan import Training
from benchmarks.reproduce.weights import AUDIO_WEIGHTS, downloaded_revision
from data_prep.corpora.clotho_download import ARCHIVES_GB, WAV_GB
from retrieval.base.errors import UserError, counted
from retrieval.base.files import nearest_existing
from retrieval.config import Config

CACHE_GB = 9.0  # of Clotho: 32 kHz, 16 bit
ROBERTA_GB = 1.42  # model.safetensors of roberta-large, as the hub says
WEIGHT_BYTES = 4  # float32
STATE_BYTES = 3 * WEIGHT_BYTES  # weights and AdamW's two moments
GIB = 2**30
# Of a process beside the weights. Loading tap.yaml's model took 3.7 GiB in all, 3.4 GiB are twice
# its weights (2 cores of an AMD EPYC, random weights); CUDA's libraries come on top.
LOADING_BYTES = 2 * GIB
# 7.3 to 10.5 s for a batch of 4 on 2 cores (benchmarks/README.md), so 29 to 42 s for one of 16;
# 1,200 steps in each of 20 epochs
CPU_DAYS = "8 to 12"


@dataclass(frozen=True)
class DiskNeed:
    """Disk space that a folder needs."""

    what: str
    folder: Path
    gigabytes: float


@dataclass(frozen=True)
class ModelSize:
    """Parameters and memory of a training, computed from shapes."""

    num_parameters: int
    step_bytes: float  # of a process, on its GPU or its CPU
    host_bytes: float  # of a process, in this machine's memory


def model_size(config: Config, num_processes: int, on_gpu: bool) -> ModelSize:
    """Count weights and memory of a training, without loading any weights. Raises UserError."""
    from retrieval.models.build import build_model_without_weights
    from retrieval.training.step_memory import step_memory

    model = build_model_without_weights(config)
    num_parameters = sum(weight.numel() for weight in model.parameters())
    share = -(-config.train.batch_size // num_processes)
    train = config.train.model_copy(update={"batch_size": share})
    precision = "bf16" if on_gpu else "no"  # fp16 takes the same
    shared = config.model_copy(update={"train": train})
    step_bytes = step_memory(shared, model, precision, on_gpu=on_gpu).peak
    weights = 2 * WEIGHT_BYTES * num_parameters  # of the model, and of the files meanwhile
    host_bytes = LOADING_BYTES + (weights if on_gpu else step_bytes)
    return ModelSize(num_parameters, step_bytes, host_bytes)


def is_built(root: Path) -> bool:
    """Return True if the cache of Clotho's folder is complete."""
    return (root / "cache" / "cache.json").is_file()


def disk_needs(
    trainings: Sequence[Training], num_parameters: int, root: Path, output: Path
) -> list[DiskNeed]:
    """List the disk space of everything that is not written yet.

    Args:
        trainings: Runs that are not finished.
        num_parameters: Of the largest model.
        root: Clotho's folder.
        output: Folder of the run folders.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    needs = []
    if not is_built(root):
        whole = ARCHIVES_GB + sum(WAV_GB.values()) + CACHE_GB
        needs.append(DiskNeed("Clotho", root, max(0.0, whole - size_gb(root))))
    configs = [training.config for training in trainings]
    for name in {config.audio_encoder.name for config in configs}:
        weights = AUDIO_WEIGHTS[name]
        path = Path(
            next(c.audio_encoder.checkpoint for c in configs if c.audio_encoder.name == name)
        )
        if not path.is_file():
            needs.append(DiskNeed(path.name, path.parent, weights.gigabytes))
    for name in {config.text_encoder.name for config in configs}:
        if not Path(name).is_dir() and downloaded_revision(name) is None:
            needs.append(DiskNeed(name, Path(HF_HUB_CACHE), ROBERTA_GB))
    if trainings:
        model = WEIGHT_BYTES * num_parameters / 1e9
        # best and last stay; during a run two states, and the next model beside them
        peak = 2 * STATE_BYTES * num_parameters / 1e9 + model
        there = sum(size_gb(training.folder) for training in trainings)
        gigabytes = max(0.0, 2 * model * len(trainings) + peak - there)
        needs.append(DiskNeed(counted(len(trainings), "run"), output, gigabytes))
    return needs


def check_disk(needs: Sequence[DiskNeed]) -> str:
    """Return a line about the free space of each disk. Raises UserError if one has too little."""
    by_disk: dict[int, list[DiskNeed]] = defaultdict(list)
    for need in needs:
        by_disk[os.stat(nearest_existing(need.folder)).st_dev].append(need)
    lines = []
    for disk in by_disk.values():
        free = shutil.disk_usage(nearest_existing(disk[0].folder)).free / 1e9
        parts = [f"{need.what} {need.gigabytes:.1f} GB in {need.folder}" for need in disk]
        total = sum(need.gigabytes for need in disk)
        if free < total:
            raise UserError(
                f"too little disk: {total:.1f} GB are needed ({', '.join(parts)}), and {free:.1f}"
                " GB are free: make room, or choose another disk by --root, --output or HF_HOME"
            )
        lines.append(f"{', '.join(parts)}; {free:.0f} GB are free")
    return "disk: " + ("; ".join(lines) or "nothing to write")


def check_memory(need_bytes: float) -> str:
    """Return a line about this machine's memory. Raises UserError if it is too small."""
    free = available_memory()
    if free < need_bytes:
        raise UserError(
            f"too little memory: the training needs about {need_bytes / GIB:.1f} GiB, and"
            f" {free / GIB:.1f} GiB are free: end other programs, or take another machine"
        )
    return f"memory: about {need_bytes / GIB:.1f} GiB are needed, {free / GIB:.1f} GiB are free"


def check_gpus(gpus: Sequence[Gpu], num_processes: int) -> str:
    """Return a line with the GPUs. Raises UserError if there are too few."""
    if not gpus:
        raise UserError(
            f"PyTorch sees no GPU here, and on a CPU of 2 cores an experiment takes {CPU_DAYS}"
            " days (computed from benchmarks/README.md): start this on a machine with an NVIDIA"
            " GPU, or give --cpu"
        )
    if len(gpus) < num_processes:
        raise UserError(
            f"--num-processes {num_processes} needs as many GPUs, and PyTorch sees {len(gpus)}:"
            f" give --num-processes {len(gpus)}"
        )
    return f"GPU: {', '.join(gpu.name for gpu in gpus)}"


def check_gpu_memory(gpu: Gpu, need_bytes: float) -> str:
    """Return a line about a GPU's memory. Raises UserError if it is too small."""
    need, total = need_bytes / GIB, gpu.total_bytes / GIB
    if total < need:
        raise UserError(
            f"too little memory on the GPU: the training needs about {need:.1f} GiB, and {gpu.name}"
            f" has {total:.1f} GiB: give --set train.micro_batch_size=4, which computes the same in"
            " smaller parts"
        )
    return f"GPU memory: about {need:.1f} GiB are needed, {gpu.name} has {total:.1f} GiB"


def available_memory() -> float:
    """Return the available memory in bytes; infinite if it is unknown."""
    free = float("inf")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines() if ":" in line)
        free = float(fields["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdecimal():  # a container's
        free = min(free, float(text))
    return free


def size_gb(folder: Path) -> float:
    """Return the size of all files in a folder, which need not exist."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9
