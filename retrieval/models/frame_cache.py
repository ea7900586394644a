"""Disk cache of frozen-encoder outputs: projections and pooling train without the encoders.

    FRAME_CACHE/<split>-<digest>/frames.npy      float16 (all frames of all clips, feature_dim)
    FRAME_CACHE/captions-<digest>/features.npy   float32 (captions, feature_dim), with a frozen text
                                                 encoder
    FRAME_CACHE/*/made_from.json                 the content of the digest

The digest covers everything the numbers depend on: the encoder's settings, weights and precision;
windows, clip length and the sounds, or the captions' tokens. An interrupted build continues after
its last batch. If two runs need the same cache, the second waits for the first.

Letters: B clips, S samples, T frames, N captions, F = feature_dim.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from retrieval.base.access import check_readable
from retrieval.base.errors import UserError, one_line
from retrieval.base.files import (
    allocate,
    atomic_path,
    check_writable,
    disk_errors,
    nearest_existing,
)
from retrieval.base.folders import MADE_FROM, swap_folder
from retrieval.base.locks import locked
from retrieval.base.progress import bar
from retrieval.data import ClipSplit, make_clip_loader
from retrieval.models.dual_encoder import DualEncoder

# Takes the number of the first item; yields the rows of one batch of items after the other.
Encode = Callable[[int], Iterator[np.ndarray]]


class FrameSplit:
    """A ClipSplit of stored frames: `read` gives (T, F), and num_samples counts frames."""

    holds_frames = True

    def __init__(self, split: ClipSplit, path: Path, num_frames: np.ndarray):
        self.split, self.path = split, path
        self.name, self.captions = split.name, split.captions
        self.clip_ids, self.file_names = split.clip_ids, split.file_names
        self.moments, self.has_moments = split.moments, split.has_moments
        self.num_samples = num_frames  # (len,)
        self._ends = np.cumsum(num_frames)
        self._frames = _opened(path, int(num_frames.sum()))

    def __reduce__(self) -> tuple[Any, ...]:
        # to loader processes: a memory map would be sent as all its bytes
        return FrameSplit, (self.split, self.path, self.num_samples)

    def __len__(self) -> int:
        return len(self.clip_ids)

    def fingerprint(self, with_moments: bool = False) -> str:
        """Return the fingerprint of the clips."""
        return self.split.fingerprint(with_moments)

    def read(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read frames start..stop of clip `index`, float32 (T, F)."""
        first = self._ends[index] - self.num_samples[index]
        return self._frames[first : self._ends[index]][start:stop].astype(np.float32)

    read_stored = read


class CaptionFeatures:
    """Precomputed text-encoder outputs by caption."""

    def __init__(self, captions: list[str], path: Path):
        self._rows = {caption: row for row, caption in enumerate(captions)}
        self._features = _opened(path, len(captions))

    def __contains__(self, caption: str) -> bool:
        return caption in self._rows

    def __call__(self, captions: list[str]) -> torch.Tensor:
        """Return the outputs of captions, float32 (N, F), on the CPU."""
        return torch.from_numpy(self._features[[self._rows[caption] for caption in captions]])


def cached_frames(
    model: DualEncoder,
    split: ClipSplit,
    folder: Path,
    accelerator: Accelerator,
    *,
    batch_size: int,
    num_workers: int,
) -> FrameSplit:
    """Return the frames of `split` from `folder`, and encode them first if they are missing.

    Every process calls this; one on each machine encodes.

    Args:
        model: Its audio encoder is used.
        split: The clips.
        folder: The frame cache.
        accelerator: Of the run.
        batch_size: Clips that are encoded at once.
        num_workers: Loader processes.

    Raises:
        UserError: The disk has no room, or a file is damaged.
    """
    clip_samples = model.windows.clip_samples
    lengths = torch.from_numpy(np.minimum(split.num_samples, clip_samples))
    num_frames = model.windows.num_valid_frames(lengths).numpy()  # (len,)
    origin = _origin(model, "audio_encoder", accelerator) | {
        "windows": repr(model.windows),
        "sample_rate": model.sample_rate,
        "clips": _digest(repr([split.clip_ids, split.num_samples.tolist()])),
        "audio": split.audio_fingerprint(),
    }

    def encode(first: int) -> Iterator[np.ndarray]:
        for waveform, lengths in make_clip_loader(
            split, range(first, len(split)), clip_samples, batch_size, num_workers
        ):
            features, mask = model.audio_features(
                waveform.to(accelerator.device, non_blocking=True), lengths
            )  # (B, T, F), (B, T)
            yield features.float()[mask].cpu().numpy()

    path = _folder_of(folder, split.name, origin) / "frames.npy"
    width = model.audio_encoder.feature_dim
    _provide(model, path, origin, num_frames, width, np.float16, encode, accelerator)
    return FrameSplit(split, path, num_frames)


def cached_captions(
    model: DualEncoder,
    captions: list[str],
    folder: Path,
    accelerator: Accelerator,
    *,
    batch_size: int,
) -> CaptionFeatures:
    """Return the text encoder's outputs for `captions`; see `cached_frames`."""
    captions = list(dict.fromkeys(captions))
    encoder = model.text_encoder

    def batches(first: int = 0) -> Iterator[list[str]]:
        for start in range(first, len(captions), batch_size):
            yield captions[start : start + batch_size]

    def encode(first: int) -> Iterator[np.ndarray]:
        for batch in batches(first):
            yield encoder(batch).float().cpu().numpy()

    tokens = [encoder.tokens(batch)["input_ids"].tolist() for batch in batches()]
    origin = _origin(model, "text_encoder", accelerator)
    origin |= {"readout": encoder.readout, "tokens": _digest(repr(tokens))}
    path = _folder_of(folder, "captions", origin) / "features.npy"
    num_rows, width = np.ones(len(captions), np.int64), encoder.feature_dim
    _provide(model, path, origin, num_rows, width, np.float32, encode, accelerator)
    return CaptionFeatures(captions, path)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _origin(model: DualEncoder, part: str, accelerator: Accelerator) -> dict[str, Any]:
    """Return settings, digest of weights, and precision of an encoder."""
    # not weights_digest: other bytes would make all caches on disk invalid
    weights = hashlib.sha256()
    for name, value in getattr(model, part).state_dict().items():
        weights.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return {
        "encoder": model.architecture[part],
        "weights": weights.hexdigest(),
        "mixed_precision": accelerator.mixed_precision,
    }


def _folder_of(folder: Path, name: str, origin: dict[str, Any]) -> Path:
    return folder / f"{name}-{_digest(json.dumps(origin, sort_keys=True))[:16]}"


def _opened(path: Path, num_rows: int) -> np.ndarray:
    check_readable(path, "frame cache")
    try:
        array = np.load(path, mmap_mode="r")
        if len(array) != num_rows:
            raise ValueError(f"{len(array)} rows in place of {num_rows}")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} is damaged ({one_line(error)}); delete {path.parent}, and its content is"
            " encoded again"
        ) from None
    return array


def _provide(
    model: DualEncoder,
    path: Path,
    origin: dict[str, Any],
    num_rows: np.ndarray,
    width: int,
    dtype: Any,
    encode: Encode,
    accelerator: Accelerator,
) -> None:
    """Write `path`, and made_from.json beside it, unless they exist.

    Args:
        model: The model that `encode` uses.
        path: frames.npy or features.npy, an array (all rows, width) of `dtype`.
        origin: Content of made_from.json.
        num_rows: Rows of each item, (items,).
        width: Size of a row.
        dtype: Of the array.
        encode: Encodes the items from a number on.
        accelerator: Of the run.
    """
    final, shape = path.parent, (int(num_rows.sum()), width)
    if accelerator.is_local_main_process and not final.exists():
        partial = final.with_name(f"{final.name}.partial")
        check_writable(partial)
        free = shutil.disk_usage(nearest_existing(partial.absolute().parent)).free
        num_bytes = shape[0] * width * np.dtype(dtype).itemsize
        if num_bytes > free and not partial.exists():
            raise UserError(
                f"{partial.stem} takes {num_bytes / 2**30:.1f} GiB, {partial.parent} has"
                f" {free / 2**30:.1f} GiB left; set data.frame_cache to another disk"
            )
        lock = final.with_name(f".{final.name}.lock")
        advice = "or set data.frame_cache; the rows so far are kept"
        with disk_errors(partial, advice), locked(lock, wait=True):
            if not final.exists():
                partial.mkdir(exist_ok=True)
                array = partial / path.name
                num_done = _num_done(array, shape, len(num_rows))
                if not num_done:
                    np.lib.format.open_memmap(array, "w+", dtype, shape).flush()
                allocate(array)
                _encode(model, array, num_rows, num_done, encode, accelerator)
                (partial / "num_done").unlink(missing_ok=True)
                text = json.dumps(origin, indent=2) + "\n"
                (partial / MADE_FROM).write_text(text, encoding="utf-8")
                swap_folder(partial, final)
            with suppress(PermissionError):  # Windows keeps open files
                lock.unlink()
    while not final.exists():  # not a collective, which has a time limit
        time.sleep(0.5)
    accelerator.wait_for_everyone()


def _num_done(path: Path, shape: tuple[int, int], num_items: int) -> int:
    """Return the items that an interrupted build has encoded, 0 if its files cannot be used."""
    try:
        num_done = int(path.with_name("num_done").read_text())
        fits = 0 <= num_done <= num_items and np.load(path, mmap_mode="r").shape == shape
    except (OSError, ValueError, EOFError):
        return 0
    return num_done if fits else 0


@torch.no_grad()
def _encode(
    model: DualEncoder,
    path: Path,
    num_rows: np.ndarray,
    num_done: int,
    encode: Encode,
    accelerator: Accelerator,
) -> None:
    """Write the rows of the items from `num_done` on, and note the number of items done."""
    array = np.lib.format.open_memmap(path, "r+")
    ends, first_row = np.cumsum(num_rows), int(num_rows[:num_done].sum())
    was_training = model.training
    model.eval()
    label = f"encoding {path.parent.name.rsplit('-', 1)[0]}"
    progress = bar(total=len(num_rows), initial=num_done, desc=label, unit="item")
    with progress, accelerator.autocast():
        for rows in encode(num_done):
            array[first_row : first_row + len(rows)] = rows
            array.flush()
            first_row += len(rows)
            num_done = int(np.searchsorted(ends, first_row, side="right"))
            with atomic_path(path.with_name("num_done")) as note:
                note.write_text(str(num_done))
            progress.update(num_done - progress.n)
    model.train(was_training)
