"""From a configuration to the parts of a training run.

What can go wrong for a reason of the user's goes wrong here, before the run folder is touched.
"""

import os
import shutil
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, TextIO

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
from retrieval.data import (
    Cache,
    ClipSplit,
    EpochBatches,
    JoinedSplit,
    PairDataset,
    check_batch_size,
    make_loader,
    num_steps_per_epoch,
    open_cache,
    shared_memory_warnings,
    usable_workers,
)
from retrieval.data.augmentation import waveform_augmentation
from retrieval.data.schema import SPLITS
from retrieval.evaluation.result import few_clips_warning
from retrieval.models.build import build_model, warnings_of
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.frame_cache import FrameSplit, cached_captions, cached_frames
from retrieval.models.mel_augmentation import mel_augmentation
from retrieval.training import checkpoint
from retrieval.training.checkpoint import Progress
from retrieval.training.facts import describe_split, described
from retrieval.training.objective import Objective
from retrieval.training.optim import parameter_groups
from retrieval.training.tracking import Tracker

TRAINING, VALIDATION, TEST = SPLITS


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
    objective: Objective
    validation: ClipSplit | FrameSplit
    pictured: ClipSplit  # the validation split with its sounds
    test: ClipSplit | FrameSplit | None
    steps_per_epoch: int
    tracker: Tracker
    # of data and settings, for the model card; main process only
    about: dict[str, Any] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    lock: TextIO | None = None  # of the run folder, on the main process

    @property
    def micro_batch_size(self) -> int | None:
        """Pairs of this process that are encoded at once; None for all. The same on every process,
        also for a smaller last batch.
        """
        size = self.config.train.micro_batch_size
        return None if size is None or size * world_size() >= self.config.train.batch_size else size

    @property
    def out_of_steps(self) -> bool:
        limit = self.config.train.max_steps
        return limit is not None and self.progress.global_step >= limit


@dataclass(frozen=True)
class Splits:
    """What a run trains on and what it is scored on."""

    training: list[ClipSplit | FrameSplit]
    validation: ClipSplit | FrameSplit
    test: ClipSplit | FrameSplit | None
    caches: list[Cache]  # of the training corpora, and that of the other two splits
    warnings: list[str] = field(default_factory=list)  # about clips that occur twice

    @property
    def sizes(self) -> list[int]:
        """(clip, caption) pairs of each training corpus."""
        return [sum(map(len, split.captions)) for split in self.training]

    @property
    def scored(self) -> list[ClipSplit | FrameSplit]:
        return [split for split in (self.validation, self.test) if split is not None]

    @property
    def few_clips(self) -> list[str]:
        """A warning for each scored split that is too small for R@10."""
        return [
            f"{split.name} has {warning}"
            for split in self.scored
            if (warning := few_clips_warning(len(split)))
        ]

    def check_copies(self) -> list[str]:
        """Return warnings for clips in two training corpora, and for clips that are both trained on
        and scored.

        Raises UserError if whole splits are equal: a copy of a cache. Clips are equal if file name,
        number of samples and captions are.
        """
        *sources, cache = self.caches
        trained = [
            (f"{TRAINING} of {source.path}", _clips_of(split))
            for source, split in zip(sources, self.training, strict=True)
        ]
        scored = [(f"{split.name} of {cache.path}", _clips_of(split)) for split in self.scored]
        twice = "these clips would count twice and be their own negatives"
        pairs = [(*first, *second, twice) for first, second in combinations(trained, 2)]
        leaked = "the model would be trained on what it is scored on"
        others = [
            split
            for source, split in zip(sources, trained, strict=True)
            if source.path.resolve() != cache.path.resolve()
        ]
        pairs += [(*first, *second, leaked) for first in others for second in scored]
        warnings = []
        for first, first_clips, second, second_clips, consequence in pairs:
            num_shared = len(first_clips & second_clips)
            if num_shared and first_clips == second_clips:
                raise UserError(
                    f"train.caches: {first} and {second} hold the same clips: {consequence}; leave"
                    " one of them out"
                )
            if num_shared:
                warnings.append(
                    f"train.caches: {num_shared} clips of {second} are in {first}, too:"
                    f" {consequence}"
                )
        return warnings

    @property
    def all_captions(self) -> list[str]:
        return [
            caption
            for split in (*self.training, *self.scored)
            for captions in split.captions
            for caption in captions
        ]

    def described(self) -> list[dict[str, Any]]:
        """For the model card; of splits that are not yet frames."""
        *sources, cache = self.caches
        return [
            describe_split(*pair)
            for pair in [*zip(sources, self.training), *((cache, split) for split in self.scored)]
        ]

    def of_frames(self, model: DualEncoder, config: Config, accelerator: Accelerator) -> "Splits":
        """The same with the frames of the frozen audio encoder in place of the sounds."""
        settings = {
            "batch_size": config.evaluation.audio_batch_size,
            "num_workers": usable_workers(config.data.num_workers),
        }

        def frames(split: ClipSplit) -> FrameSplit:
            return cached_frames(
                model, split, Path(config.data.frame_cache), accelerator, **settings
            )

        test = None if self.test is None else frames(self.test)
        return replace(
            self,
            training=[frames(split) for split in self.training],
            validation=frames(self.validation),
            test=test,
        )


def open_splits(config: Config) -> Splits:
    """Open all splits of a run. Raises UserError for caches that are absent, damaged, of another
    sample rate or copies of each other.
    """
    cache = open_cache(config.data.cache, config.data.sample_rate)
    sources = [open_cache(path, config.data.sample_rate) for path in config.train.caches] or [cache]
    test = cache.split(TEST) if TEST in cache.split_names else None
    splits = Splits(
        [source.split(TRAINING) for source in sources],
        cache.split(VALIDATION),
        test,
        [*sources, cache],
    )
    return replace(splits, warnings=splits.check_copies() if config.train.caches else [])


def _clips_of(split: ClipSplit) -> set[int]:
    """Return hashes of (file name, number of samples, captions); hundreds of thousands of clips
    take megabytes.
    """
    return {
        hash(clip)
        for clip in zip(
            split.file_names, split.num_samples.tolist(), map(tuple, split.captions), strict=True
        )
    }


def make_pairs(splits: Splits, config: Config) -> PairDataset:
    """The training items, with the augmentation of waveforms."""
    joined = splits.training[0] if len(splits.training) == 1 else JoinedSplit(splits.training)
    settings = config.augmentation
    max_samples = round(config.data.max_seconds * config.data.sample_rate)
    augment = waveform_augmentation(config.data.sample_rate, **settings.waveform)
    return PairDataset(joined, max_samples, config.seed, augment, settings.mix_probability)


def make_optimizer(model: DualEncoder, settings: OptimizerConfig) -> torch.optim.AdamW:
    """Fused: one pass over the weights, gradients and moments."""
    groups = parameter_groups(model, settings.lr.model_dump())
    betas = settings.beta1, settings.beta2
    return torch.optim.AdamW(
        groups, betas=betas, eps=settings.eps, weight_decay=settings.weight_decay, fused=True
    )


def set_up_blocks(model: DualEncoder, settings: TrainConfig, device: torch.device) -> None:
    """What `settings` say of the encoders' blocks. Raises UserError where the compiler is missing
    that torch.compile calls at the first step.
    """
    if settings.activation_checkpointing:
        model.checkpoint_activations()
    if settings.compile:
        # C++ for a CPU, C for a GPU.
        compilers = (
            [os.environ.get("CXX", "g++")]
            if device.type == "cpu"
            else [os.environ["CC"]]
            if "CC" in os.environ
            else ["gcc", "clang"]
        )
        if not any(map(shutil.which, compilers)):
            raise UserError(
                f"train.compile needs the compiler {' or '.join(compilers)}; install it, or set"
                " train.compile=false"
            )
        model.compile_blocks()


def set_up_augmentation(model: DualEncoder, config: Config) -> None:
    """That of spectrograms. Raises UserError for an encoder that has none."""
    model.augment_mel = mel_augmentation(**config.augmentation.mel)
    if model.augment_mel is not None and not model.audio_encoder.num_mel_bins:
        raise UserError(
            f"augmentation of spectrograms has no effect, since {config.audio_encoder.checkpoint}"
            " hears waveforms; switch it off"
        )


def prepare(config: Config, folder: Path, resume: bool, overwrite: bool) -> Run:
    """Everything that can go wrong for a reason of the user's goes wrong here, before the run
    folder is touched.
    """
    accelerator = make_accelerator(config.train.mixed_precision)
    if accelerator.is_main_process:  # which alone will hold the lock
        check_unlocked(folder / LOCK)
    checkpoint.check_run(folder, config, resume, overwrite)
    set_seed(config.seed)
    splits = open_splits(config)
    batches = EpochBatches(
        splits.sizes,
        config.train.batch_size,
        config.seed,
        rank(),
        world_size(),
        config.train.cache_weights,
    )
    check_batch_size(batches.num_pairs, config.train.batch_size, world_size())
    model = build_model(config).to(accelerator.device)
    for warning in [*warnings_of(config), *splits.warnings, *splits.few_clips]:
        accelerator.print(f"warning: {warning}")
    set_up_blocks(model, config.train, accelerator.device)
    set_up_augmentation(model, config)
    opened = splits  # with the sounds
    if config.data.frame_cache is not None:
        splits = splits.of_frames(model, config, accelerator)
        if config.text_encoder.frozen:
            settings = {
                "folder": Path(config.data.frame_cache),
                "batch_size": config.evaluation.text_batch_size,
            }
            model.caption_features = cached_captions(
                model, splits.all_captions, accelerator=accelerator, **settings
            )
    pairs = make_pairs(splits, config)
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    share = -(-config.train.batch_size // world_size())
    for warning in shared_memory_warnings(pairs, share, config.data.num_workers, num_processes):
        accelerator.print(f"warning: {warning}")
    objective = Objective(config.loss, pairs, accelerator.device)
    wrapped, optimizer = accelerator.prepare(model, make_optimizer(model, config.optimizer))
    if rank():
        # the weights are the same everywhere, the dropout is each process's own
        set_seed(config.seed + rank())

    accelerator.wait_for_everyone()
    lock = (
        checkpoint.open_run(folder, config, resume, overwrite)
        if accelerator.is_main_process
        else None
    )
    accelerator.wait_for_everyone()
    progress = Progress(
        corpus=pairs.split.fingerprint(),
        teachers=objective.teachers.fingerprint() if objective.teachers else "",
    )
    accelerator.register_for_checkpointing(progress)
    steps_per_epoch = num_steps_per_epoch(batches.num_pairs, config.train.batch_size)
    if resume:
        try:
            checkpoint.load_state(accelerator, folder, progress, steps_per_epoch, config.seed)
        except BaseException:
            if lock is not None:
                lock.close()  # a notebook keeps the frames of an exception, and may try again
            raise
    accelerator.print(
        f"{folder}: {batches.num_pairs} pairs, {steps_per_epoch} steps an epoch,"
        f" {accelerator.num_processes} process(es) of {torch.get_num_threads()} thread(s) on"
        f" {accelerator.device}, mixed precision {accelerator.mixed_precision}"
        + (
            f", resumed in epoch {progress.epoch + 1} of {config.train.epochs} after step"
            f" {progress.step}"
            if resume
            else ""
        )
    )
    return Run(
        config=config,
        folder=folder,
        accelerator=accelerator,
        model=accelerator.unwrap_model(wrapped),
        wrapped=wrapped,
        optimizer=optimizer,
        batches=batches,
        loader=make_loader(pairs, batches, config.data.num_workers),
        objective=objective,
        validation=splits.validation,
        pictured=opened.validation,
        test=splits.test,
        steps_per_epoch=steps_per_epoch,
        about=(
            described(config, opened.described(), git_commit())
            if accelerator.is_main_process
            else {}
        ),
        tracker=Tracker(
            folder,
            resume_step=progress.global_step + 1 if resume else None,
            enabled=accelerator.is_main_process,
        ),
        progress=progress,
        lock=lock,
    )
