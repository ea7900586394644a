"""Score files: what a teacher leaves behind for distillation, and what anyone else may want to compare or to average.

    FOLDER/scores.npy    float32 (N, B): rows are the captions of a split clip by clip (evaluation.captions_of), columns its clips
    FOLDER/scores.json   split, checkpoints, ClipSplit.fingerprint(), shape, git commit

The array lies column by column on disk (Fortran order), as it is made: what was written is not touched again. scores.json is written last,
so that a folder without it is not complete.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval.errors import UserError, one_line
from retrieval.files import atomic_writer

if TYPE_CHECKING:
    import torch

ARRAY, ABOUT = "scores.npy", "scores.json"
REMEDY = "write it with: python evaluate.py --checkpoint MODEL --split SPLIT --save-scores"


@dataclass(frozen=True)
class ScoreFile:
    """An opened score file."""

    folder: Path
    scores: np.ndarray  # float32 (N, B), a memory map; changes to it stay in memory
    split: str
    fingerprint: str  # ClipSplit.fingerprint() of the split that was scored

    def check(self, split: Any) -> None:
        """Raises UserError where the scores are not those of `split`: other clips, lengths, captions or order."""
        shape = (sum(map(len, split.captions)), len(split))
        if self.fingerprint != split.fingerprint() or self.scores.shape != shape:
            raise UserError(
                f"{self.folder / ARRAY} holds scores of another corpus: {self.scores.shape[0]} captions x {self.scores.shape[1]} clips of "
                f"split {self.split!r}, wanted are {shape[0]} x {shape[1]}; score the checkpoint on the very cache that the scores are used with"
            )


def write_scores(folder: Path, columns: Iterable[tuple["torch.Tensor", "torch.Tensor"]], split: Any, about: dict[str, Any]) -> ScoreFile:
    """Write the (clips (b,), scores (N, b)) of `evaluation.score_columns` as they come; `about` is JSON that goes into scores.json.

    The files appear under their names when all is written. Raises UserError for a disk that is full.
    """
    shape = (sum(map(len, split.captions)), len(split))
    path = folder / ARRAY
    temporary = path.with_name(f".{ARRAY}.{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            scores = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape, fortran_order=True)
            with open(temporary, "rb+") as file:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(temporary))  # a full disk would kill a process that writes to a memory map
            for clips, block in columns:
                scores[:, clips.numpy()] = block.numpy()
            scores.flush()
            (folder / ABOUT).unlink(missing_ok=True)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another output folder or make room") from None
    with atomic_writer(folder / ABOUT) as file:
        json.dump({"split": split.name, "fingerprint": split.fingerprint(), "shape": shape} | about, file, indent=2, ensure_ascii=False)
        file.write("\n")
    return open_scores(folder)


def open_scores(folder: str | Path) -> ScoreFile:
    """Raises UserError for a folder without a complete score file, and for a damaged one."""
    folder = Path(folder)
    for name in (ARRAY, ABOUT):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; {REMEDY}")
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        split, fingerprint, shape = str(about["split"]), str(about["fingerprint"]), tuple(about["shape"])
        # Copy on write: torch.from_numpy wants an array that may be written to.
        scores = np.load(folder / ARRAY, mmap_mode="c", allow_pickle=False)
        if scores.shape != shape or scores.dtype != np.float32 or scores.ndim != 2:
            raise ValueError(f"{ARRAY} is {scores.dtype} {scores.shape}, {ABOUT} says float32 {shape}")
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(f"the scores in {folder} cannot be read ({one_line(error)}); {REMEDY}") from None
    return ScoreFile(folder, scores, split, fingerprint)
