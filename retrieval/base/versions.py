"""Command, git commit, library versions and hardware: a result depends on them too."""

import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

from retrieval.base.extras import DISTRIBUTION

# benchmarks.reproduce writes them between two trainings.
RESULTS = ":(exclude)docs/results.*"
LIBRARIES = ("torch", "torchaudio", "accelerate", "transformers", "datasets", "evaluate", "numpy")


def environment() -> dict[str, Any]:
    """Return command, git commit, versions and hardware of this process, as JSON values."""
    import torch  # takes seconds

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
    """Return the commit of this package.

    Returns:
        The commit of the source tree, with `-dirty` if it has changes beside docs/results.*, or
        the one that pip installed the package from; None if neither is known. A repository around
        the package, such as one that holds the environment in `.venv`, is ignored.
    """
    root = Path(__file__).resolve().parents[2]
    try:
        if Path(_git(root, "rev-parse", "--show-toplevel")).resolve() == root:
            commit = _git(root, "describe", "--always", "--abbrev=40", "--exclude=*")
            changed = ("status", "--porcelain", "--untracked-files=no", "--", ".", RESULTS)
            return f"{commit}-dirty" if _git(root, *changed) else commit
    except (OSError, subprocess.SubprocessError):
        pass  # not in git, or git is not installed
    for installed in distributions(name=DISTRIBUTION, path=[str(root)]):
        try:
            # of `pip install git+URL`: PEP 610
            origin = json.loads(installed.read_text("direct_url.json") or "{}")
            return origin["vcs_info"]["commit_id"]
        except (KeyError, ValueError):
            pass  # installed from an archive, a folder or an index
    return None


def _git(folder: Path, *arguments: str) -> str:
    # git sets these for its hooks: they would name another repository.
    outer = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    environment = {name: text for name, text in os.environ.items() if name not in outer}
    return subprocess.run(
        ["git", "-C", str(folder), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    ).stdout.strip()
