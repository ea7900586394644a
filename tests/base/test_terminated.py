"""A scheduler's SIGTERM to all processes of a run, loader processes included."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, wait_for

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_sigterm_to_the_whole_group_saves_a_state(tiny, tmp_path):
    run = tmp_path / "run"
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "--config",
        str(tiny / "tiny.yaml"),
        f"train.output={run}",
        "data.num_workers=1",
    ]
    settings = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [*command, "train.epochs=2000"],
            cwd=tmp_path,
            env=settings,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(lambda: (run / "best").exists(), process)
        time.sleep(0.5)  # into the next epoch
        os.killpg(process.pid, signal.SIGTERM)
        code = process.wait(PATIENCE)
    finally:
        process.kill()
    output = (tmp_path / "log").read_text()
    assert (
        f"interrupted; continue from {run}/states/step-" in output
        and " --resume\n" in output
        and "Traceback" not in output
    ), output[-2000:]
    assert code != 0 and list((run / "states").glob("step-*"))
