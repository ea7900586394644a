"""Kill a tiny training run with SIGKILL at many places, resume it, and report whether anything
differs from an undisturbed run.

    python tests/killed_runs.py CONFIG FOLDER

Every run is a forked child of this process, so that a place costs a second and not the import of
torch. One thread: a fork after threads have worked would hang. Prints one JSON line a place:
{"place", "killed", "same_losses", "same_weights", "same_results"}. With OVERRIDES, a few places.
"""

import csv
import json
import os
import shutil
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from retrieval.config import load_config
from retrieval.training import checkpoint, loop
from retrieval.training.states import latest_state

PLACES = [
    *("step 1", "step 2", "step 3", "step 7", "step 12"),
    *("state 8", "model 1", "model 4", "validation 1", "test split"),
]
OVERRIDES = ("train.ema_decay=0.3", "train.validate_first=true", "train.patience=9")
FEW_PLACES = ["step 9", "validation 3"]  # with train.validate_first: that of epoch 2


def main(config_path: str, folder: Path) -> None:
    torch.set_num_threads(1)
    for overrides, places in (((), PLACES), (OVERRIDES, FEW_PLACES)):
        below = folder / ("overrides" if overrides else "default")
        below.mkdir()
        report(config_path, below, overrides, places)


def report(config_path: str, folder: Path, overrides: tuple[str, ...], places: list[str]) -> None:
    reference = folder / "reference"
    assert run(config_path, reference, overrides=overrides) == 0
    losses, weights, results = (
        read(reference) for read in (read_losses, read_weights, read_results)
    )
    assert sorted(losses) == list(range(1, 13))
    for place in places:
        disturbed = folder / place.replace(" ", "-")
        killed = run(config_path, disturbed, place, overrides=overrides) == signal.SIGKILL
        if killed and latest_state(disturbed) is None:
            # died before the first state
            resumed = run(config_path, disturbed, overwrite=True, overrides=overrides)
        else:
            # Other workers than before: neither order, crops nor dropout may depend on them.
            workers = ("data.num_workers=1",) if place == "step 3" else ()
            resumed = run(config_path, disturbed, resume=True, overrides=(*overrides, *workers))
        assert resumed == 0, place
        found = {
            "place": place,
            "killed": killed,
            "same_losses": read_losses(disturbed) == losses,
            "same_weights": read_weights(disturbed) == weights,
            "same_results": read_results(disturbed) == results,
        }
        print(json.dumps(found), flush=True)
        shutil.rmtree(disturbed)


def run(
    config_path: str,
    output: Path,
    place: str = "",
    resume: bool = False,
    overwrite: bool = False,
    overrides: tuple[str, ...] = (),
) -> int:
    """Train in a child; its exit code, or the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with open(output.with_suffix(".log"), "a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            kill_at(place)
            config = load_config(
                config_path, [f"train.output={output}", "evaluation.num_pictures=0", *overrides]
            )
            loop.train(config, resume=resume, overwrite=overwrite)
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def kill_at(place: str) -> None:
    """Arrange for this process to kill itself there: after an optimizer step, or half way through
    something on disk.
    """
    kind, _, number = place.rpartition(" ")
    if kind == "step":
        after(loop, "train_step", int(number))
    elif kind == "state":  # the state is written under its temporary name
        before_swap(f"step-{int(number):08d}.partial")
    elif kind == "model":  # the new model is complete, the old one not yet replaced, or moved away
        after(
            Path,
            "rename",
            int(number),
            only=lambda path, *_: path.name in ("best", ".best.partial", "last", ".last.partial"),
        )
    elif kind == "validation":
        after(loop, "evaluate_split", int(number))
    elif place == "test split":
        after(loop, "evaluate_split", 3)


def after(owner, name: str, count: int, only=lambda *_: True) -> None:
    original, calls = getattr(owner, name), [0]

    def replacement(*args, **kwargs):
        result = original(*args, **kwargs)
        calls[0] += bool(only(*args))
        if calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, replacement)


def before_swap(folder_name: str) -> None:
    swap = checkpoint.swap_folder

    def replacement(new: Path, target: Path) -> None:
        if new.name == folder_name:
            os.kill(os.getpid(), signal.SIGKILL)
        swap(new, target)

    checkpoint.swap_folder = replacement


def read_losses(run_folder: Path) -> dict[int, float]:
    """Loss of each step; where a step was run twice TensorBoard shows the later one."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_folder), size_guidance={"scalars": 0})
    events.Reload()
    return {point.step: point.value for point in events.Scalars("train/loss")}


def read_weights(run_folder: Path) -> bytes:
    return (run_folder / "last" / "model.safetensors").read_bytes() + (
        run_folder / "best" / "model.safetensors"
    ).read_bytes()


def read_results(run_folder: Path) -> tuple[str, list[dict], list[dict]]:
    """metrics.json and both histories, whose seconds differ from run to run."""
    with open(run_folder / "history.csv", newline="") as file:
        table = list(csv.DictReader(file))
    lines = (run_folder / "history.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in [*rows, *table]:
        del row["seconds"]
    return (run_folder / "metrics.json").read_text(), rows, table


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
