"""Frames of a frozen audio encoder on disk: every clip is encoded once, and projections and pooling then train without the encoder.

    FRAME_CACHE/<split>-<digest>/frames.npy        float16 (all frames of all clips, feature_dim)
    FRAME_CACHE/<split>-<digest>/made_from.json    what the digest stands for

The digest is that of the encoder's weights, of windows and clip length, and of the clips. An interrupted build goes on from its last batch.
Letters: B clips, S samples, T frames, F = feature_dim.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from retrieval.data import ClipSplit, ClipsFromStart, collate_clips, leave_signals_to_main_process
from retrieval.errors import UserError
from retrieval.files import check_writable
from retrieval.models import DualEncoder

DTYPE = np.dtype(np.float16)


class FrameSplit:
    """Stands in for a ClipSplit: `read` gives frames (T, F) in place of samples (S,), and num_samples counts them."""

    def __init__(self, split: ClipSplit, path: Path, num_frames: np.ndarray):
        self.split, self.path = split, path
        self.name, self.clip_ids, self.file_names, self.captions = split.name, split.clip_ids, split.file_names, split.captions
        self.num_samples = num_frames  # (len,)
        self._ends = np.cumsum(num_frames)
        self._frames = np.load(path, mmap_mode="r")

    def __reduce__(self) -> tuple[Any, ...]:
        return FrameSplit, (self.split, self.path, self.num_samples)  # a memory map would travel as all its bytes

    def __len__(self) -> int:
        return len(self.clip_ids)

    def fingerprint(self) -> str:
        """That of the clips."""
        return self.split.fingerprint()

    def read(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Frames start..stop of clip `index`, float32 (T, F)."""
        first = self._ends[index] - self.num_samples[index]
        return self._frames[first : self._ends[index]][start:stop].astype(np.float32)


def cached_frames(
    model: DualEncoder, split: ClipSplit, folder: Path, accelerator: Accelerator, *, batch_size: int, num_workers: int
) -> FrameSplit:
    """The frames of `split` in `folder`, encoded first where they are not there yet. Every process calls this; the main one encodes.

    Raises UserError where the disk has no room for them.
    """
    clip_samples = model.windows.clip_samples
    lengths = torch.from_numpy(np.minimum(split.num_samples, clip_samples))
    num_frames = model.windows.num_valid_frames(lengths).numpy()  # (len,)
    origin = _origin(model, split)
    final = folder / f"{split.name}-{hashlib.sha256(json.dumps(origin).encode()).hexdigest()[:16]}"
    if accelerator.is_main_process and not final.exists():
        partial = final.with_name(f"{final.name}.partial")
        _make_room(partial, (int(num_frames.sum()), model.audio_encoder.feature_dim))
        loader = DataLoader(
            ClipsFromStart(split, range(_num_done(partial), len(split)), clip_samples),
            batch_size=batch_size,
            num_workers=num_workers,
            collate_fn=collate_clips,
            worker_init_fn=leave_signals_to_main_process,
            generator=torch.Generator(),
        )
        _encode(model, loader, partial, num_frames, accelerator)
        (partial / "num_done").unlink(missing_ok=True)
        (partial / "made_from.json").write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
        partial.rename(final)
    accelerator.wait_for_everyone()
    return FrameSplit(split, final / "frames.npy", num_frames)


def _origin(model: DualEncoder, split: ClipSplit) -> dict[str, str]:
    weights = hashlib.sha256()
    for name, value in model.audio_encoder.state_dict().items():
        weights.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    clips = hashlib.sha256(repr([split.clip_ids, split.num_samples.tolist()]).encode())
    return {"encoder": weights.hexdigest(), "windows": repr(model.windows), "sample_rate": str(model.sample_rate), "clips": clips.hexdigest()}


def _num_done(partial: Path) -> int:
    return int((partial / "num_done").read_text()) if (partial / "num_done").exists() else 0


def _make_room(partial: Path, shape: tuple[int, int]) -> None:
    """An empty frames.npy of its full size, or the one that is there."""
    if (partial / "num_done").exists():
        return
    check_writable(partial)
    num_bytes, free = shape[0] * shape[1] * DTYPE.itemsize, shutil.disk_usage(next(p for p in partial.absolute().parents if p.exists())).free
    if num_bytes > free:
        raise UserError(
            f"the frames of {partial.stem} take {num_bytes / 2**30:.1f} GiB, {partial.parent} has {free / 2**30:.1f} GiB left; "
            "set data.frame_cache to another disk"
        )
    partial.mkdir(parents=True, exist_ok=True)
    np.lib.format.open_memmap(partial / "frames.npy", "w+", DTYPE, shape).flush()


@torch.no_grad()
def _encode(model: DualEncoder, loader: DataLoader, partial: Path, num_frames: np.ndarray, accelerator: Accelerator) -> None:
    frames = np.lib.format.open_memmap(partial / "frames.npy", "r+")
    was_training = model.training
    model.eval()
    clip = len(num_frames) - len(loader.dataset)
    row = int(num_frames[:clip].sum())
    with tqdm(total=len(num_frames), initial=clip, desc=f"frames of {partial.stem.rsplit('-', 1)[0]}", unit=" clips") as bar:
        for waveform, lengths in loader:
            with accelerator.autocast():
                features, mask = model.audio_features(waveform.to(accelerator.device, non_blocking=True), lengths)  # (B, T, F), (B, T)
            valid = features.float()[mask].cpu().numpy()
            frames[row : row + len(valid)] = valid
            row, clip = row + len(valid), clip + len(lengths)
            frames.flush()
            _note(partial / "num_done", clip)
            bar.update(len(lengths))
    model.train(was_training)


def _note(path: Path, num_done: int) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(str(num_done))
    os.replace(temporary, path)
