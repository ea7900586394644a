"""Files of a run; a kill at any moment loses nothing that was there before.

RUN/config.yaml        resolved settings
RUN/environment.json   command, git commit, library versions, hardware
RUN/states/step-N/     newest resumable state: weights, optimizer, RNG, progress
RUN/best/, RUN/last/   models in Hugging Face form
RUN/trackers.json      ids of the run in wandb, trackio and mlflow
RUN/history.jsonl      metrics and losses of each epoch; history.csv is the same as a table
RUN/.lock              held by the process that trains here
"""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import extract_model_from_parallel, load, set_seed

from retrieval.base.errors import UserError, one_line
from retrieval.base.files import atomic_writer, disk_errors, write_json
from retrieval.base.folders import recover_folder, swap_folder, whole_folder
from retrieval.base.locks import LOCK, take_lock
from retrieval.base.versions import environment
from retrieval.config import Config
from retrieval.models.dual_encoder import WEIGHTS, DualEncoder
from retrieval.models.record import TrainingRecord
from retrieval.models.weights import read_weights, write_weights
from retrieval.training.states import changed_settings, latest_state

RESUME = "and continue with --resume: the newest state and model are kept"


@dataclass
class Progress:
    """Position of a run, saved with its state."""

    epoch: int = 0  # counted from 0
    step: int = 0  # optimizer steps done in `epoch`
    global_step: int = 0  # in all epochs
    # validation mAP@10 of `best_epoch`, for moments R1@0.7; -1 before the first validation
    best_map: float = -1.0
    best_epoch: int = -1  # -1: the weights before training, with train.validate_first
    loss_sum: float = 0.0  # over the first `num_losses` steps of `epoch`
    num_losses: int = 0
    before_training: dict[str, dict[str, float]] = field(default_factory=dict)  # metrics
    corpus: str = ""  # ClipSplit.fingerprint() of the development split
    teachers: str = ""  # TeacherScores.fingerprint

    @property
    def has_best(self) -> bool:
        """True once a model was validated."""
        return self.best_map >= 0

    @property
    def epochs_without_gain(self) -> int:
        """Validated epochs since the best one, between two epochs."""
        return self.epoch - 1 - self.best_epoch

    def add_loss(self, loss: float) -> None:
        """Count an optimizer step and its loss."""
        self.step, self.global_step = self.step + 1, self.global_step + 1
        self.loss_sum, self.num_losses = self.loss_sum + loss, self.num_losses + 1

    def next_epoch(self) -> None:
        """Go to the start of the next epoch."""
        self.epoch, self.step, self.loss_sum, self.num_losses = self.epoch + 1, 0, 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved position; raises UserError if corpus or teachers have changed."""
        if self.corpus and state.get("corpus", self.corpus) != self.corpus:
            raise UserError(
                "--resume with another corpus: the cache's development clips or captions have"
                " changed; set data.cache to the run's own"
            )
        if state.get("teachers", self.teachers) != self.teachers:
            raise UserError(
                "--resume with other teachers: the scores in loss.teachers have changed; put the"
                " run's own there, or start anew"
            )
        for name, value in state.items():
            setattr(self, name, value)


def check_run(run: Path, config: Config, resume: bool, overwrite: bool) -> None:
    """Check that a run may start or go on in the folder `run`; reads only.

    Raises:
        UserError: `run` holds another run, or with `resume` none that goes on with `config`.
    """
    if not resume:
        if (run / "config.yaml").exists() and not overwrite:
            raise UserError(
                f"{run} holds a run already; continue it with --resume, replace it with"
                " --overwrite, or set train.output"
            )
        if (run / "config.yaml").exists() and not (run / "environment.json").exists():
            raise UserError(
                f"{run} has a config.yaml, but no environment.json: not a run, so --overwrite does"
                " not delete it; set train.output"
            )
        if Path.cwd().is_relative_to(run.resolve()):
            raise UserError(f"run folder {run} is the current folder or above it; set train.output")
        return
    if latest_state(run) is None:
        raise UserError(
            f"--resume: {run} holds no saved state ({run}/states/step-*); start without --resume"
        )
    check_unchanged(run, config)


def check_unchanged(run: Path, config: Config) -> None:
    """Raise a UserError that names every setting in which `run` and `config` differ."""
    if changed := changed_settings(run, config):
        raise UserError(
            f"--resume with a changed configuration: {'; '.join(changed)}; undo that, or start a"
            " new run with train.output=..."
        )


def open_run(run: Path, config: Config, resume: bool, overwrite: bool) -> TextIO:
    """Make the run folder and lock it; main process only.

    With `overwrite` the files of an earlier run are deleted; with `resume` a model folder is
    repaired that was being replaced when the run was killed.

    Returns:
        The lock, to be closed when the run ends.

    Raises:
        UserError: Another process trains here, or has trained here since check_run.
    """
    try:
        lock = take_lock(run / LOCK)
        check_run(run, config, resume, overwrite)
        if resume:
            for name in ("best", "last"):
                recover_folder(run / name)
            return lock
        if (run / "config.yaml").exists():
            for path in run.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != LOCK:
                    path.unlink()
    except OSError as error:
        raise UserError(
            f"run folder {run} cannot be written ({error.strerror}); set train.output"
        ) from None
    write_json(run / "environment.json", environment())
    with atomic_writer(run / "config.yaml") as file:
        yaml.safe_dump(config.model_dump(), file, sort_keys=False)
    return lock


def forget_run(run: Path) -> None:
    """Undo `open_run` of a new run that does not begin: the next one is not refused."""
    for name in ("config.yaml", "environment.json"):
        (run / name).unlink(missing_ok=True)


def save_state(accelerator: Accelerator, run: Path, progress: Progress) -> None:
    """Save a resumable state; it replaces the one before only when it is complete.

    Args:
        accelerator: Of the run; every process calls this.
        run: Run folder.
        progress: Its global_step names the state.

    Raises:
        UserError: The disk is full or not writable.
    """
    folder = run / "states" / f"step-{progress.global_step:08d}"
    partial = folder.with_suffix(".partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    errors = disk_errors(f"state {folder}", RESUME)
    with errors, accelerator.register_save_state_pre_hook(_write_weights):
        accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with disk_errors(f"state {folder}", RESUME):
            swap_folder(partial, folder)
        for other in folder.parent.iterdir():
            if other != folder:
                shutil.rmtree(other)
    accelerator.wait_for_everyone()


def _write_weights(
    models: list[torch.nn.Module], weights: list[dict[str, Any]], folder: str
) -> None:
    """Write the weights in place of Accelerate.

    Of tensors that share memory Accelerate keeps only one, even if they differ.
    """
    weights.clear()
    if PartialState().is_main_process:
        write_weights(extract_model_from_parallel(models[0]), Path(folder) / WEIGHTS)


def _read_weights(models: list[torch.nn.Module], folder: str) -> None:
    read_weights(extract_model_from_parallel(models.pop()), Path(folder) / WEIGHTS)


def load_state(
    accelerator: Accelerator, run: Path, progress: Progress, steps_per_epoch: int, seed: int
) -> None:
    """Load weights, optimizer, random numbers and progress of the newest state.

    Another number of processes can go on at the end of an epoch, with random numbers from `seed`
    and the step. Within an epoch it cannot: the batches were drawn for the old number.

    Args:
        accelerator: Of the run; every process calls this.
        run: Run folder.
        progress: Registered with `accelerator`; filled.
        steps_per_epoch: Of the run.
        seed: Of the run.

    Raises:
        UserError: The state is damaged, of another corpus or of another number of processes, or
            RUN/best is missing.
    """
    folder = latest_state(run)
    num_saved = len(list(folder.glob("random_states_*.pkl")))
    try:
        for path in folder.glob("custom_checkpoint_*.pkl"):
            load(path)  # refuses anything but plain values; Accelerate would run code in them
        if num_saved == accelerator.num_processes:
            # Accelerate ignores a damaged file
            load(folder / f"random_states_{accelerator.process_index}.pkl")
        else:
            # Progress is registered first
            step = load(folder / "custom_checkpoint_0.pkl")["step"]
            if step < steps_per_epoch or not num_saved:
                raise UserError(
                    f"state {folder} was saved by {num_saved} process(es) at step {step} of"
                    f" {steps_per_epoch} of an epoch, this run has {accelerator.num_processes};"
                    " launch as many as before until the epoch has ended, then go on with any"
                    " number"
                )
        scaler = accelerator.scaler
        # A state saved with bf16 (train.mixed_precision=auto) has no scale: fp16 begins a new one.
        if not (folder / "scaler.pt").is_file():
            accelerator.scaler = None
        with accelerator.register_load_state_pre_hook(_read_weights):
            accelerator.load_state(str(folder))
        accelerator.scaler = scaler
        if num_saved != accelerator.num_processes:
            set_seed(seed + progress.global_step, device_specific=True)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"saved state {folder} does not load ({one_line(error)}); start again with --overwrite"
        ) from None
    best = run / "best" / WEIGHTS
    if progress.has_best and not best.is_file():
        # If no later epoch is better, the end of the run has no best model to score.
        epoch = progress.best_epoch + 1
        raise UserError(
            f"--resume: {best}, the best model so far (epoch {epoch}), is missing; put it back from"
            " a copy, or start again with --overwrite"
        )


def save_model(model: DualEncoder, folder: Path, record: TrainingRecord) -> None:
    """Write `folder` in Hugging Face form, with `record` in its model card.

    A reader finds the old model or the new one, never half of one.
    """
    model.record = record
    with whole_folder(folder, "model", RESUME) as new:
        model.save_pretrained(new)
