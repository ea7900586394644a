"""Search, page and settings without the modules and calls of Linux: see other_platform."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from retrieval.config import load_config
from retrieval.models import build_model
from tests.conftest import PATIENCE, ROOT

ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "base" / "other_platform"), str(ROOT)])
}
# Named as `python -m` names the commands, so that the absence holds in these lines too.
IS_ABSENT = "import signal; assert not hasattr(signal, 'SIGALRM'); "


def run(*words: str | Path, folder: Path) -> str:
    process = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout


@pytest.mark.parametrize(
    "module", ["retrieval.search.__main__", "retrieval.search.page.command", "retrieval.config"]
)
def test_it_imports(tmp_path: Path, module: str):
    imports = f"from {module.rpartition('.')[0]} import {module.rpartition('.')[2]}"
    run("-c", f"{IS_ABSENT}{imports}", folder=tmp_path)


def test_a_folder_is_indexed_and_searched(tiny: Path, tmp_path: Path):
    torch.manual_seed(0)
    build_model(load_config(tiny / "tiny.yaml")).eval().save_pretrained(tmp_path / "model")
    (tmp_path / "sounds").mkdir()
    for name, hertz in (("low", 220), ("high", 1760)):
        sound = 0.5 * np.sin(2 * np.pi * hertz * np.arange(48_000) / 16_000)
        for ending in ("wav", "mp3"):
            soundfile.write(tmp_path / "sounds" / f"{name}.{ending}", sound, 16_000)
    (tmp_path / "sounds" / "broken.wav").write_bytes(b"RIFF")
    search = ("-m", "retrieval.search")
    index = ("--index", "index")
    run(*search, "index", "sounds", "--checkpoint", "model", *index, "--quiet", folder=tmp_path)
    unreadable = (tmp_path / "index" / "unreadable.csv").read_text()
    assert len(unreadable.splitlines()) == 2 and "broken.wav" in unreadable
    answer = run(*search, "query", *index, "someone plays a tone", folder=tmp_path)
    assert all(
        f"{name}.{ending}" in answer for name in ("low", "high") for ending in ("wav", "mp3")
    )
