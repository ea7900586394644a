"""Training items: one (clip, caption) pair each, shuffled anew every epoch, batched the same way at any number of processes.

Order and crops depend on (seed, epoch, item) alone, never on worker processes or on where a run was resumed.

Letters: B clips of a batch, S samples.
"""

import math
import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from retrieval.data.cache import ClipSplit
from retrieval.errors import UserError

GRACE_SECONDS = 60  # that a loader process outlives a SIGTERM


class PairDataset(Dataset):
    """All (clip, caption) pairs of a split; an item is asked for as (epoch, index)."""

    def __init__(self, split: ClipSplit, max_samples: int, seed: int):
        self.split = split
        self.max_samples = max_samples
        self.seed = seed
        self.pairs = [(clip, caption) for clip, captions in enumerate(split.captions) for caption in range(len(captions))]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        """A clip longer than max_samples is cut at a random place."""
        epoch, index = item
        clip, caption = self.pairs[index]
        spare = int(self.split.num_samples[clip]) - self.max_samples
        start = int(np.random.default_rng([self.seed, epoch, index]).integers(spare + 1)) if spare > 0 else 0
        return {
            "waveform": self.split.read(clip, start, start + self.max_samples),  # (S,)
            "caption": self.split.captions[clip][caption],
            "clip": clip,
        }


class EpochBatches(Sampler):
    """Batches of (epoch, index) for this process; `start(epoch, step)` says where the next iteration begins.

    A batch of `batch_size` pairs is dealt out over the processes, so an epoch has as many steps at any number of
    processes. The last, partial batch is kept.
    """

    def __init__(self, num_pairs: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        self.num_pairs, self.batch_size, self.seed = num_pairs, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self.first_step = 0

    def start(self, epoch: int, step: int = 0) -> None:
        self.epoch, self.first_step = epoch, step

    def __len__(self) -> int:
        return num_steps_per_epoch(self.num_pairs, self.batch_size) - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_pairs)
        for first in range(self.first_step * self.batch_size, self.num_pairs, self.batch_size):
            batch = order[first : first + self.batch_size]
            yield [(self.epoch, int(index)) for index in batch[self.rank :: self.world_size]]


def num_steps_per_epoch(num_pairs: int, batch_size: int) -> int:
    """Optimizer steps of one epoch; `batch_size` is that of all processes together."""
    return math.ceil(num_pairs / batch_size)


def check_batch_size(num_pairs: int, batch_size: int, world_size: int = 1) -> None:
    """Raises UserError where an epoch has no full batch, or a last one with nothing for some process."""
    if batch_size > num_pairs:
        raise UserError(f"train.batch_size {batch_size} is larger than the corpus: {num_pairs} (clip, caption) pairs; lower train.batch_size")
    num_last = num_pairs % batch_size or batch_size
    if num_last < world_size:
        raise UserError(f"the last batch of an epoch has {num_last} pairs for {world_size} processes; choose another train.batch_size")


def collate_clips(waveforms: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Zero-pad at the end: float32 (B, S) with S the longest clip's samples, and the valid samples int64 (B,)."""
    lengths = torch.tensor([len(waveform) for waveform in waveforms], dtype=torch.int64)  # (B,)
    padded = torch.zeros(len(waveforms), int(lengths.max()))  # (B, S)
    for row, waveform in zip(padded, waveforms, strict=True):
        row[: len(waveform)] = torch.from_numpy(waveform)
    return padded, lengths


def collate_pairs(items: list[dict[str, Any]]) -> dict[str, Any]:
    """waveform (B, S), lengths (B,), captions list of B, clips int64 (B,): which clip each pair belongs to."""
    waveform, lengths = collate_clips([item["waveform"] for item in items])
    return {
        "waveform": waveform,
        "lengths": lengths,
        "captions": [item["caption"] for item in items],
        "clips": torch.tensor([item["clip"] for item in items]),
    }


def make_loader(pairs: PairDataset, batches: EpochBatches, num_workers: int) -> DataLoader:
    """Batches of `collate_pairs`; one loader serves all epochs, its processes stay.

    Its own generator: the loader's draw of worker seeds must not move the random state that dropout uses.
    """
    num_workers = usable_workers(num_workers)
    return DataLoader(
        pairs,
        batch_sampler=batches,
        collate_fn=collate_pairs,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
        worker_init_fn=_leave_signals_to_main_process,
    )


def _leave_signals_to_main_process(_worker: int) -> None:
    """For loader processes: Ctrl-C, and the SIGTERM of many schedulers, reach the whole process group, and the main process decides.

    After a SIGTERM a loader process goes on until the main process has had time to finish its step and to save.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))


def usable_workers(num_workers: int) -> int:
    """At most one loader process a core this process may use: more of them only take turns, and torch warns."""
    return min(num_workers, len(os.sched_getaffinity(0)))
