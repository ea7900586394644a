"""Score files: what a teacher leaves behind for distillation, and what anyone else may want to
compare or to average.

    FOLDER/scores.npy    float32 (N, B): rows are the captions of a split clip by clip (evaluation.captions_of), columns its clips
    FOLDER/scores.json   split, checkpoints, fingerprint of clips and captions, shape, git commit

The array lies column by column on disk (Fortran order), as it is made: what was written is not
touched again. scores.json is written last, so that a folder without it is not complete.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval.base.disk import disk_errors
from retrieval.base.errors import UserError, one_line
from retrieval.base.files import ANOTHER_FOLDER, allocate, atomic_path, atomic_writer
from retrieval.base.json_files import read_json

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
    captions_fingerprint: str  # of the split that was scored

    def check(self, split: Any) -> None:
        """Raises UserError where the scores are not those of `split`: other clips, captions or
        order. Another sample rate is no difference.
        """
        shape = (sum(map(len, split.captions)), len(split))
        if self.captions_fingerprint != captions_fingerprint(split) or self.scores.shape != shape:
            raise UserError(
                f"{self.folder / ARRAY} holds scores of other clips or captions, or in another"
                f" order: {self.scores.shape[0]} captions x {self.scores.shape[1]} clips of split"
                f" {self.split!r}, wanted are the {shape[0]} x {shape[1]} of {split.name!r} that"
                " the run trains on; score the checkpoint on a cache that was built from the same"
                " files and captions"
            )


def captions_fingerprint(split: Any) -> str:
    """What rows and columns stand for. Not lengths in samples: teachers may hear another sample
    rate than the student.
    """
    return hashlib.sha256(repr([split.clip_ids, split.captions]).encode()).hexdigest()


def write_scores(
    folder: Path,
    columns: Iterable[tuple["torch.Tensor", "torch.Tensor"]],
    split: Any,
    about: dict[str, Any],
) -> ScoreFile:
    """Write the (clips (b,), scores (N, b)) of `evaluation.score_columns` as they come; `about` is
    JSON that goes into scores.json.

    The files appear under their names when all is written. Raises UserError for a disk that is
    full.
    """
    shape = (sum(map(len, split.captions)), len(split))
    path = folder / ARRAY
    with disk_errors(path, ANOTHER_FOLDER):
        _remove_leftovers(folder)
        with atomic_path(path) as temporary:
            scores = np.lib.format.open_memmap(
                temporary, mode="w+", dtype=np.float32, shape=shape, fortran_order=True
            )
            allocate(temporary)
            for clips, block in columns:
                scores[:, clips.numpy()] = block.numpy()
            scores.flush()
            (folder / ABOUT).unlink(missing_ok=True)
    with atomic_writer(folder / ABOUT) as file:
        json.dump(
            about
            | {
                "split": split.name,
                "captions_fingerprint": captions_fingerprint(split),
                "shape": shape,
            },
            file,
            indent=2,
        )
        file.write("\n")
    return open_scores(folder)


def _remove_leftovers(folder: Path) -> None:
    """Of processes that were killed while they wrote: hundreds of megabytes each."""
    for path in folder.glob(f".{ARRAY}.*.tmp"):
        try:
            os.kill(int(path.name.split(".")[-2]), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (PermissionError, ValueError):
            pass  # alive, or not of ours


def open_scores(folder: str | Path) -> ScoreFile:
    """Raises UserError for a folder without a complete score file, and for a damaged one."""
    folder = Path(folder)
    for name in (ARRAY, ABOUT):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; {REMEDY}")
    try:
        about = read_json(folder / ABOUT)
        split, fingerprint, shape = (
            str(about["split"]),
            str(about["captions_fingerprint"]),
            tuple(about["shape"]),
        )
        # Copy on write: torch.from_numpy wants an array that may be written to.
        scores = np.load(folder / ARRAY, mmap_mode="c", allow_pickle=False)
        if scores.shape != shape or scores.dtype != np.float32 or scores.ndim != 2:
            raise ValueError(
                f"{ARRAY} is {scores.dtype} {scores.shape}, {ABOUT} says float32 {shape}"
            )
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(
            f"the scores in {folder} cannot be read ({one_line(error)}); {REMEDY}"
        ) from None
    return ScoreFile(folder, scores, split, fingerprint)
