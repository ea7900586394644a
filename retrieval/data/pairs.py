"""Training items: (clip, caption) pairs, shuffled anew every epoch, in batches.

Order and crops depend only on (seed, epoch, item), and not on loader processes, the number of
training processes, or where a run was resumed.

Letters: B clips of a batch, S samples, T frames of F numbers from a frame cache.
"""

import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from retrieval.base.errors import UserError, one_line
from retrieval.base.processes import usable_cores
from retrieval.data.cache import ClipSplit, as_float
from retrieval.data.joined import JoinedSplit

GRACE_SECONDS = 60  # that a loader process outlives the SIGTERM of another process
SHARED_MEMORY = "/dev/shm"
SHARED_MEMORY_ERRORS = (
    "unable to allocate shared memory",
    "unable to open shared memory",
    "unable to write to file </torch_",
    "unable to mmap",
    "killed by signal: Bus error",  # on systems that allocate shared memory only at its first use
)
MORE_SHARED_MEMORY = (
    "give the container more (docker run --shm-size=8g, or --ipc=host), or load without processes:"
    " data.num_workers=0"
)
LEAST_SHARED_MEMORY = 2**19  # bytes, for the queues and small batches
PREFETCHED = 2  # batches that each loader process makes ahead (DataLoader's default)

Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class PairDataset(Dataset):
    """All (clip, caption) pairs of a split, clip by clip; the index of an item is (epoch, number).

    Args:
        split: Clips, or frames of a frame cache.
        max_samples: Longer clips are cut at a random place; counts frames for a frame cache.
        seed: Of crops, augmentation and mixing.
        augment: Changes a waveform (S,) by a generator's draws; the length may change.
        mix_probability: How often an item is mixed with another one, and their captions joined
            (Kim et al., 2022). The mix counts as a clip of its own.
    """

    def __init__(
        self,
        split: ClipSplit | JoinedSplit,
        max_samples: int,
        seed: int,
        augment: Augment | None = None,
        mix_probability: float = 0.0,
    ):
        self.split = split
        self.max_samples = max_samples
        self.seed = seed
        self.augment = augment
        self.mix_probability = mix_probability
        self.pairs = [
            (clip, caption)
            for clip, captions in enumerate(split.captions)
            for caption in range(len(captions))
        ]

    def __len__(self) -> int:
        return len(self.pairs)

    @staticmethod
    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch; see `collate_pairs`."""
        return collate_pairs(items)

    @property
    def captions(self) -> list[str]:
        """The caption of each pair."""
        return [self.split.captions[clip][caption] for clip, caption in self.pairs]

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        """Return audio ("waveform" or "frames"), "caption", "clip" and "pair" of an item."""
        epoch, index = item
        rng = np.random.default_rng([self.seed, epoch, index])
        audio, caption, clip = self._pair(index, rng)
        if self.mix_probability and rng.random() < self.mix_probability:
            other, other_caption, _ = self._pair(int(rng.integers(len(self))), rng)
            audio = _mix(as_float(audio), as_float(other))
            caption = f"{caption.strip().rstrip('.!')} and {other_caption.strip()}"
            # neither of the two clips: their other captions describe only a part of the mix
            clip = len(self.split) + index
        name = "frames" if self.split.holds_frames else "waveform"
        return {name: audio, "caption": caption, "clip": clip, "pair": index}

    def _pair(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, str, int]:
        clip, caption = self.pairs[index]
        spare = int(self.split.num_samples[clip]) - self.max_samples
        start = int(rng.integers(spare + 1)) if spare > 0 else 0
        # (S,), or frames (T, F)
        waveform = self.split.read_stored(clip, start, start + self.max_samples)
        if self.augment is not None:
            waveform = self.augment(as_float(waveform), rng)[: self.max_samples]
        return waveform, self.split.captions[clip][caption], clip


def _mix(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Add two waveforms at equal power, scaled down if the sum would leave [-1, 1]."""
    mixed = np.zeros(max(len(first), len(second)), np.float32)
    for waveform in (first, second):
        power = float(np.sqrt(np.mean(np.square(waveform))))
        mixed[: len(waveform)] += waveform * np.float32(0.1 / max(power, 1e-4))
    return mixed / max(1.0, float(np.abs(mixed).max()))


class EpochBatches(Sampler):
    """Batches of (epoch, number) for this process; `start` sets where the next iteration begins.

    A batch is divided over the processes, so that an epoch has the same steps with any number of
    processes. The last, partial batch is kept.

    Args:
        num_pairs: Pairs of the corpus, or of each corpus in order.
        batch_size: Pairs of a batch of all processes together.
        seed: Of the order.
        rank: Number of this process.
        world_size: Number of processes.
        weights: How often an epoch goes through each corpus; for a fraction, another share is
            drawn every epoch. None: once each.
    """

    def __init__(
        self,
        num_pairs: int | Sequence[int],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        weights: Sequence[float] = (),
    ):
        self.sizes = [num_pairs] if isinstance(num_pairs, int) else list(num_pairs)
        self.num_drawn = [
            max(1, round(weight * size))
            for weight, size in zip(weights or [1.0] * len(self.sizes), self.sizes, strict=True)
        ]
        self.batch_size, self.seed = batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self.first_step = 0

    @property
    def num_pairs(self) -> int:
        """Number of pairs of one epoch."""
        return sum(self.num_drawn)

    def start(self, epoch: int, step: int = 0) -> None:
        """Let the next iteration give the batches of `epoch` from `step` on."""
        self.epoch, self.first_step = epoch, step

    def __len__(self) -> int:
        return num_steps_per_epoch(self.num_pairs, self.batch_size) - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        drawn, offset = [], 0
        for size, num_drawn in zip(self.sizes, self.num_drawn, strict=True):
            rest = rng.permutation(size)[: num_drawn % size] if num_drawn % size else []
            whole = np.arange(num_drawn // size * size) % size
            drawn += [offset + whole, offset + np.asarray(rest, dtype=np.int64)]
            offset += size
        order = rng.permutation(np.concatenate(drawn))
        for first in range(self.first_step * self.batch_size, len(order), self.batch_size):
            batch = order[first : first + self.batch_size]
            yield [(self.epoch, int(index)) for index in batch[self.rank :: self.world_size]]


def num_steps_per_epoch(num_pairs: int, batch_size: int) -> int:
    """Return the optimizer steps of one epoch; `batch_size` is of all processes together."""
    return math.ceil(num_pairs / batch_size)


def check_batch_size(num_pairs: int, batch_size: int, world_size: int = 1) -> None:
    """Raise UserError if an epoch has no full batch, or a process nothing in the last one."""
    if batch_size > num_pairs:
        raise UserError(
            f"train.batch_size {batch_size} is larger than the corpus: {num_pairs} (clip, caption)"
            " pairs; lower train.batch_size"
        )
    num_last = num_pairs % batch_size or batch_size
    if num_last < world_size:
        raise UserError(
            f"the last batch of an epoch has {num_last} pairs for {world_size} processes; choose"
            " another train.batch_size"
        )


class ClipsFromStart(Dataset):
    """Waveforms of the clips `indices` of a split, from their start, at most max_samples long."""

    def __init__(self, split: Any, indices: range, max_samples: int):
        self.split, self.indices, self.max_samples = split, indices, max_samples

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> np.ndarray:
        index = self.indices[item]
        return self.split.read_stored(
            index, 0, min(self.max_samples, int(self.split.num_samples[index]))
        )  # (S,)


def collate_clips(waveforms: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad clips with zeros at the end to one batch.

    Args:
        waveforms: (S,) or (T, F) each, of ClipSplit.read_stored.

    Returns:
        (B, S) or (B, T, F), as long as the longest, and valid samples or frames int64 (B,). int16
        if all clips are, which halves the bytes to the model; otherwise float32.
    """
    lengths = torch.tensor([len(waveform) for waveform in waveforms], dtype=torch.int64)  # (B,)
    pcm = all(waveform.dtype == np.int16 for waveform in waveforms)
    padded = _empty(
        (len(waveforms), int(lengths.max()), *waveforms[0].shape[1:]),
        torch.int16 if pcm else torch.float32,
    )  # (B, S)
    for row, waveform in zip(padded.numpy(), waveforms, strict=True):
        row[: len(waveform)] = waveform if pcm else as_float(waveform)
        row[len(waveform) :] = 0
    return padded, _shared(lengths)


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return an uninitialised tensor; in a loader process it lies in shared memory.

    Otherwise torch moves it there in a thread whose errors are lost: with a full /dev/shm the
    training process would wait forever.
    """
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape)


def _shared(values: torch.Tensor) -> torch.Tensor:
    """Move a small tensor to shared memory in a loader process, for the reason in `_empty`."""
    return values if get_worker_info() is None else values.share_memory_()


def collate_pairs(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a batch of PairDataset's items, for DualEncoder.forward.

    Returns:
        "waveform" (B, S), or "frames" (B, T, F) of a frame cache; "lengths" int64 (B,), valid
        samples or frames; "captions", a list of B; "clips" int64 (B,), the clip of each pair;
        "pairs" int64 (B,), its number in PairDataset.
    """
    name = "frames" if "frames" in items[0] else "waveform"
    audio, lengths = collate_clips([item[name] for item in items])
    return {
        name: audio,
        "lengths": lengths,
        "captions": [item["caption"] for item in items],
        "clips": _shared(torch.tensor([item["clip"] for item in items])),
        "pairs": _shared(torch.tensor([item["pair"] for item in items])),
    }


class Loader(DataLoader):
    """DataLoader that turns the errors of its processes into a UserError.

    Examples: a damaged clip, or too little shared memory.
    """

    def __iter__(self) -> Iterator[Any]:
        if self.num_workers and sys.platform == "linux":
            # Without room for the processes' queues torch fails with a half-made iterator.
            exists = os.path.isdir(SHARED_MEMORY)
            if not exists or shutil.disk_usage(SHARED_MEMORY).free < LEAST_SHARED_MEMORY:
                raise self._too_little_shared_memory()
        batches = super().__iter__()
        try:
            yield from batches
        except Exception as error:
            explained = self._explained(error)
            if self.num_workers:
                # Shut down now: torch's exception keeps its frames, and so the processes, alive.
                batches._shutdown_workers()
                self._iterator = None
            if explained is None:
                raise
            raise explained from None

    def _explained(self, error: Exception) -> UserError | None:
        reason = f"{error} {error.__cause__}"  # if a process has died, the cause names the signal
        if any(text in reason for text in SHARED_MEMORY_ERRORS):
            return self._too_little_shared_memory()
        if "DataLoader worker (pid" in reason:
            return UserError(
                f"a loader process has died ({one_line(error.__cause__ or error)}); if memory ran"
                " out, lower data.num_workers, or set it to 0"
            )
        # "Caught UserError in DataLoader worker process 0.", a traceback, and then the message
        if isinstance(error, UserError):
            return UserError(str(error).rpartition("UserError: ")[2].strip())
        return None

    def _too_little_shared_memory(self) -> UserError:
        return UserError(
            f"the {self.num_workers} loader processes have too little shared memory,"
            f" {_shared_memory()}; {MORE_SHARED_MEMORY}, or make batches smaller"
        )


def _shared_memory() -> str:
    try:
        total, _, free = shutil.disk_usage(SHARED_MEMORY)
    except OSError as error:
        return f"{SHARED_MEMORY}: {error.strerror}"
    return f"{free / 1e6:,.1f} of {total / 1e6:,.1f} MB in {SHARED_MEMORY} are free"


def shared_memory_warnings(
    pairs: PairDataset, batch_size: int, num_workers: int, num_processes: int
) -> list[str]:
    """Return a warning if the batches of all loader processes may exceed the free shared memory.

    Args:
        pairs: The training pairs.
        batch_size: Pairs a batch of one training process.
        num_workers: Loader processes of each training process.
        num_processes: Training processes on this machine.
    """
    num_workers = usable_workers(num_workers)
    if not num_workers or not os.path.isdir(SHARED_MEMORY):
        return []
    longest = min(pairs.max_samples, int(pairs.split.num_samples.max()))
    batch_bytes = batch_size * longest * pairs.split.read_stored(0, 0, 1)[0].nbytes
    needed = num_processes * (PREFETCHED * num_workers + 1) * batch_bytes
    if needed <= shutil.disk_usage(SHARED_MEMORY).free:
        return []
    return [
        f"loader processes may need {needed / 1e6:,.0f} MB of shared memory, and"
        f" {_shared_memory()}; {MORE_SHARED_MEMORY}"
    ]


def make_loader(pairs: Any, batches: EpochBatches, num_workers: int) -> DataLoader:
    """Return a loader of batches for all epochs, whose processes stay.

    Args:
        pairs: PairDataset or MomentDataset; its `collate` makes the batches.
        batches: The items of each batch.
        num_workers: Loader processes.

    It has a generator of its own: drawing seeds for its processes must not change the random state
    that dropout uses.
    """
    num_workers = usable_workers(num_workers)
    return Loader(
        pairs,
        batch_sampler=batches,
        collate_fn=pairs.collate,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
        worker_init_fn=_leave_signals_to_main_process,
    )


def make_clip_loader(
    split: Any,
    indices: range,
    max_samples: int,
    batch_size: int,
    num_workers: int,
    pin_memory: bool = False,
) -> DataLoader:
    """Return a loader of `collate_clips` batches, for clips of a split from their start, in order.

    Args:
        split: ClipSplit or FrameSplit.
        indices: Numbers of the clips.
        max_samples: Longest clip.
        batch_size: Clips of a batch.
        num_workers: Loader processes; 0 loads in this one.
        pin_memory: Put batches into page-locked memory, for a GPU.
    """
    return Loader(
        ClipsFromStart(split, indices, max_samples),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate_clips,
        pin_memory=pin_memory,
        generator=torch.Generator(),
        worker_init_fn=_leave_signals_to_main_process,
    )


def _leave_signals_to_main_process(_worker: int) -> None:
    """Let a loader process ignore Ctrl-C, and outlive a SIGTERM that its parent did not send.

    Both often reach the whole process group. The main process needs its batches then, to finish a
    step and to save. It ends its loader processes by a SIGTERM of its own.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # elsewhere torch's own handler stays
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_at_sigterm, daemon=True).start()


def _end_at_sigterm() -> None:
    """End this process when its parent says so, or GRACE_SECONDS after another's SIGTERM."""
    parent = multiprocessing.parent_process().pid  # os.getppid() may be a fork server
    received = signal.sigwaitinfo({signal.SIGTERM})
    end = time.monotonic() + GRACE_SECONDS
    # A launcher may send more of them: only the parent's ends this process before its time.
    while received is not None and received.si_pid != parent:
        received = signal.sigtimedwait({signal.SIGTERM}, max(0.0, end - time.monotonic()))
    os._exit(1 if received is None else 0)


def usable_workers(num_workers: int) -> int:
    """Limit loader processes to one per core: more only take turns, and torch warns."""
    return min(num_workers, usable_cores())
