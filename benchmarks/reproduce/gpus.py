"""The GPUs that PyTorch sees, and the energy that their driver counts.

    python -m benchmarks.reproduce.gpus    # prints them as JSON

A separate process asks PyTorch: in this one the CUDA context would hold GPU memory for days.
"""

import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from retrieval.base.command import run_main
from retrieval.base.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Gpu:
    """A GPU that PyTorch may use."""

    name: str
    total_bytes: int
    uuid: str  # GPU-..., as the driver names it


def main() -> int:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = [torch.cuda.get_device_properties(index) for index in range(count)]
    gpus = [Gpu(one.name, one.total_memory, f"GPU-{one.uuid}") for one in found]
    print(json.dumps([asdict(gpu) for gpu in gpus]))
    return 0


def visible_gpus() -> list[Gpu]:
    """Ask PyTorch in a separate process. Raises UserError if it fails."""
    command = [sys.executable, "-m", "benchmarks.reproduce.gpus"]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if asked.returncode:
        lines = asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"]
        raise UserError(f"PyTorch cannot be asked for GPUs: {lines[-1]}")
    return [Gpu(**one) for one in json.loads(asked.stdout)]


def energy_joules(gpus: Sequence[Gpu]) -> float | None:
    """Return the energy that these GPUs have used since their driver was loaded.

    NVML counts it on GPUs from Volta on, for all programs together. None if it does not.
    """
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    if not gpus or nvml.nvmlInit_v2():
        return None
    millijoules = 0
    try:
        for gpu in gpus:
            handle, counted = ctypes.c_void_p(), ctypes.c_ulonglong()
            if nvml.nvmlDeviceGetHandleByUUID(gpu.uuid.encode(), ctypes.byref(handle)):
                return None
            if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(counted)):
                return None
            millijoules += counted.value
    finally:
        nvml.nvmlShutdown()
    return millijoules / 1000


if __name__ == "__main__":
    run_main(main)
