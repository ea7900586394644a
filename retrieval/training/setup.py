"""From a configuration to the parts of a training run.

Mistakes of the user are found here, before the run folder is touched.
"""

import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from retrieval.base.errors import UserError
from retrieval.base.exchange import rank, world_size
from retrieval.base.launch import make_accelerator
from retrieval.base.locks import LOCK, check_unlocked
from retrieval.base.versions import git_commit
from retrieval.config import Config, OptimizerConfig, TrainConfig
from retrieval.config.text import flatten
from retrieval.data import (
    ClipSplit,
    EpochBatches,
    JoinedSplit,
    PairDataset,
    check_batch_size,
    make_loader,
    num_steps_per_epoch,
    shared_memory_warnings,
    usable_workers,
)
from retrieval.data.augmentation import waveform_augmentation
from retrieval.data.moment_pairs import MomentDataset
from retrieval.evaluation.result import few_clips_warning
from retrieval.models.build import build_model, warnings_of
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.frame_cache import FrameSplit, cached_captions, cached_frames
from retrieval.models.mel_augmentation import mel_augmentation
from retrieval.models.record import TrainingRecord, without_folders
from retrieval.training import checkpoint
from retrieval.training.averaging import WeightAverage
from retrieval.training.checkpoint import Progress
from retrieval.training.history import History
from retrieval.training.objective import Objective
from retrieval.training.optim import parameter_groups
from retrieval.training.services import check_services
from retrieval.training.splits import Splits, open_splits
from retrieval.training.tracking import Tracker


@dataclass
class Run:
    """The parts of one training run on this process."""

    config: Config
    folder: Path
    accelerator: Accelerator
    model: DualEncoder
    # the model as Accelerate wraps it: autocast, gradients averaged over processes
    wrapped: torch.nn.Module
    optimizer: torch.optim.Optimizer
    batches: EpochBatches
    loader: DataLoader
    objective: Objective | None  # of retrieval; None for moments
    validation: ClipSplit | FrameSplit
    pictured: ClipSplit  # the validation split with its sounds
    test: ClipSplit | FrameSplit | None
    steps_per_epoch: int
    tracker: Tracker
    history: History
    record: TrainingRecord = TrainingRecord()  # for the model card; main process only
    progress: Progress = field(default_factory=Progress)
    average: WeightAverage | None = None  # of the weights, with train.ema_decay
    lock: TextIO | None = None  # of the run folder, on the main process
    # Pairs of this process that are encoded at once, None for all: the same on every process, also
    # for a smaller last batch.
    micro_batch_size: int | None = None

    @property
    def out_of_steps(self) -> bool:
        """True once train.max_steps steps are done."""
        limit = self.config.train.max_steps
        return limit is not None and self.progress.global_step >= limit

    @property
    def out_of_patience(self) -> bool:
        """True after train.patience epochs without a better model; asked between two epochs."""
        patience = self.config.train.patience
        return patience is not None and self.progress.epochs_without_gain >= patience

    def scored_weights(self) -> AbstractContextManager[None]:
        """Return a context in which the model has the weights that are validated and saved."""
        return nullcontext() if self.average is None else self.average.applied()


def prepare(config: Config, folder: Path, resume: bool, overwrite: bool) -> Run:
    """Make all parts of a run, then its folder.

    Args:
        config: Settings of the run.
        folder: Run folder.
        resume: Continue from the newest state in `folder`.
        overwrite: Delete a run that `folder` holds.

    Raises:
        UserError: Settings and files do not fit, or the folder holds another run; nothing in the
            folder was changed then.
    """
    accelerator = make_accelerator(config.train.mixed_precision)
    if accelerator.is_main_process:  # the one that will hold the lock
        check_unlocked(folder / LOCK)
    checkpoint.check_run(folder, config, resume, overwrite)
    if accelerator.is_main_process:
        check_services(config.train.tracker)
    set_seed(config.seed)

    # splits and model
    splits = open_splits(config)
    batch_size = config.train.batch_size
    batches = EpochBatches(
        splits.sizes, batch_size, config.seed, rank(), world_size(), config.train.cache_weights
    )
    check_batch_size(batches.num_pairs, batch_size, world_size())
    steps_per_epoch = num_steps_per_epoch(batches.num_pairs, batch_size)
    record, pictured = TrainingRecord(), splits.validation
    if accelerator.is_main_process:
        settings = without_folders(config.model_dump())
        record = TrainingRecord(data=splits.records(), settings=settings, git_commit=git_commit())
    model = build_model(config).to(accelerator.device)
    small = [(split.name, few_clips_warning(len(split))) for split in splits.scored]
    small_splits = [f"{name} has {warning}" for name, warning in small if warning]
    for warning in [*warnings_of(config), *splits.warnings, *small_splits]:
        accelerator.print(f"warning: {warning}")
    set_up_blocks(model, config.train, accelerator.device)
    model.augment_mel = mel_augmentation(**config.augmentation.mel)
    if model.augment_mel is not None and not model.audio_encoder.num_mel_bins:
        raise UserError(
            f"augmentation of spectrograms has no effect, since {config.audio_encoder.checkpoint}"
            " hears waveforms; switch it off"
        )

    # outputs of frozen encoders take the place of sounds and captions
    if config.data.frame_cache is not None:
        splits.check_lengths(config.data.max_seconds)
        frame_cache, sizes = Path(config.data.frame_cache), config.evaluation
        splits = splits.with_frames(
            lambda split: cached_frames(
                model,
                split,
                frame_cache,
                accelerator,
                batch_size=sizes.audio_batch_size,
                num_workers=usable_workers(config.data.num_workers),
            )
        )
        if config.text_encoder.frozen:
            model.caption_features = cached_captions(
                model,
                splits.all_captions,
                frame_cache,
                accelerator=accelerator,
                batch_size=sizes.text_batch_size,
            )

    # training items, loss, optimizer
    pairs = make_pairs(splits, config)
    share = -(-batch_size // world_size())
    num_local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    num_workers = config.data.num_workers
    for warning in shared_memory_warnings(pairs, share, num_workers, num_local_processes):
        accelerator.print(f"warning: {warning}")
    objective = None
    if isinstance(pairs, PairDataset):
        objective = Objective(config.loss, pairs, accelerator.device)
    wrapped, optimizer = accelerator.prepare(model, make_optimizer(model, config.optimizer))
    if rank():
        # the weights are the same everywhere, the dropout is each process's own
        set_seed(config.seed + rank())

    # the run folder
    lock = None
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        lock = checkpoint.open_run(folder, config, resume, overwrite)
    accelerator.wait_for_everyone()
    teachers = objective.teachers.fingerprint if objective and objective.teachers else ""
    corpus = pairs.split.fingerprint(with_moments=config.moment_head is not None)
    progress = Progress(corpus=corpus, teachers=teachers)
    accelerator.register_for_checkpointing(progress)
    average, decay = None, config.train.ema_decay
    if decay is not None:
        average = WeightAverage(accelerator.unwrap_model(wrapped), decay)
        accelerator.register_for_checkpointing(average)
    history, resumed = History(folder, enabled=accelerator.is_main_process), ""
    try:
        if resume:
            checkpoint.load_state(accelerator, folder, progress, steps_per_epoch, config.seed)
            history.read()
        tracker = Tracker(
            folder,
            resume_step=progress.global_step + 1 if resume else None,
            enabled=accelerator.is_main_process,
            names=config.train.tracker,
            settings=flatten(config.model_dump()),
        )
    except BaseException:
        if lock is not None:
            if not resume:
                checkpoint.forget_run(folder)
            lock.close()  # a notebook keeps the frames of an exception, and may try again
        raise
    if resume:
        epoch = f"{progress.epoch + 1} of {config.train.epochs}"
        resumed = f", resumed in epoch {epoch} after step {progress.step}"
    accelerator.print(
        f"{folder}: {batches.num_pairs} pairs, {steps_per_epoch} steps per epoch,"
        f" {accelerator.num_processes} process(es) of {torch.get_num_threads()} thread(s) on"
        f" {accelerator.device}, mixed precision {accelerator.mixed_precision}{resumed}"
    )
    micro = config.train.micro_batch_size
    return Run(
        config=config,
        folder=folder,
        accelerator=accelerator,
        model=accelerator.unwrap_model(wrapped),
        wrapped=wrapped,
        optimizer=optimizer,
        batches=batches,
        loader=make_loader(pairs, batches, num_workers),
        objective=objective,
        validation=splits.validation,
        pictured=pictured,
        test=splits.test,
        steps_per_epoch=steps_per_epoch,
        tracker=tracker,
        history=history,
        record=record,
        progress=progress,
        average=average,
        lock=lock,
        micro_batch_size=micro if micro is not None and micro < share else None,
    )


def make_pairs(splits: Splits, config: Config) -> PairDataset | MomentDataset:
    """Return the training items, with the augmentation of waveforms."""
    joined = splits.training[0] if len(splits.training) == 1 else JoinedSplit(splits.training)
    max_samples = round(config.data.max_seconds * config.data.sample_rate)
    augment = waveform_augmentation(config.data.sample_rate, **config.augmentation.waveform)
    if config.moment_head is not None:
        rate, negatives = config.data.sample_rate, config.moment_head.negatives
        return MomentDataset(joined, max_samples, config.seed, rate, negatives, augment)
    mix_probability = config.augmentation.mix_probability
    return PairDataset(joined, max_samples, config.seed, augment, mix_probability)


def make_optimizer(model: DualEncoder, settings: OptimizerConfig) -> torch.optim.AdamW:
    """Fused AdamW: one pass over the weights, gradients and moments."""
    groups = parameter_groups(model, settings.lr.model_dump())
    betas = settings.beta1, settings.beta2
    return torch.optim.AdamW(
        groups, betas=betas, eps=settings.eps, weight_decay=settings.weight_decay, fused=True
    )


def set_up_blocks(model: DualEncoder, settings: TrainConfig, device: torch.device) -> None:
    """Switch on activation checkpointing and torch.compile for the blocks of both encoders.

    Raises:
        UserError: The compiler is missing that torch.compile calls at the first step.
    """
    if settings.activation_checkpointing:
        model.checkpoint_activations()
    if settings.compile:
        if device.type == "cpu":
            compilers = [os.environ.get("CXX", "g++")]
        else:  # Triton compiles C
            compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
        if not any(map(shutil.which, compilers)):
            raise UserError(
                f"train.compile needs the compiler {' or '.join(compilers)}; install it, or set"
                " train.compile=false"
            )
        model.compile_blocks()
