"""Command, git commit, library versions and hardware: what a result depends on beside settings."""

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("torch", "torchaudio", "accelerate", "transformers", "datasets", "evaluate", "numpy")


def environment() -> dict[str, Any]:
    """What a result depends on beside the settings."""
    return {
        "command": [sys.executable, *sys.argv],
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "devices": (
            [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
            or [f"CPU, {os.cpu_count()} cores"]
        ),
    }


def git_commit() -> str | None:
    """Commit of the source tree, with `-dirty` when it has changes; None outside git."""
    root = Path(__file__).resolve().parents[2]
    try:
        command = [
            "git",
            "-C",
            str(root),
            "describe",
            "--always",
            "--dirty",
            "--abbrev=40",
            "--exclude=*",
        ]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
