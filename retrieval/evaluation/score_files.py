"""Score files: score matrices on disk, for distillation, comparison and averaging.

    FOLDER/scores.npy    float32 (N, B): rows are the captions of a split clip by clip
                         (score_matrix.captions_of), columns its clips
    FOLDER/scores.json   origin of the scores, fingerprint of clips and captions, shape, git commit

The array is stored column by column (Fortran order), as it is computed, so each part is written
once. scores.json is written last: a folder without it is incomplete.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retrieval.base.errors import UserError, one_line
from retrieval.base.files import (
    ANOTHER_FOLDER,
    allocate,
    atomic_path,
    disk_errors,
    read_json,
    write_json,
)
from retrieval.base.versions import git_commit
from retrieval.evaluation.outputs import SCORES, SCORES_RECORD, ScoringRecord

if TYPE_CHECKING:
    from retrieval.data import ClipSplit
    from retrieval.evaluation.score_matrix import Columns

REMEDY = "write it with: python evaluate.py --checkpoint MODEL --split SPLIT --save-scores"


@dataclass(frozen=True)
class ScoreFile:
    """An opened score file."""

    folder: Path
    scores: np.ndarray  # float32 (N, B), a memory map; changes to it stay in memory
    split: str
    captions_fingerprint: str  # of the split that was scored

    def check(self, split: "ClipSplit") -> None:
        """Raise UserError if `split` has other clips or captions, or another order of them.

        Its sample rate may differ.
        """
        shape = (sum(map(len, split.captions)), len(split))
        if self.captions_fingerprint != captions_fingerprint(split) or self.scores.shape != shape:
            raise UserError(
                f"{self.folder / SCORES} holds scores of other clips or captions, or in another"
                f" order: {self.scores.shape[0]} captions x {self.scores.shape[1]} clips of split"
                f" {self.split!r}; the run trains on the {shape[0]} x {shape[1]} of {split.name!r}:"
                " score the checkpoint on a cache that was built from the same files and captions"
            )


def captions_fingerprint(split: "ClipSplit") -> str:
    """Hash clip ids and captions.

    Lengths in samples are left out: a teacher may have another sample rate than the student.
    """
    return hashlib.sha256(repr([split.clip_ids, split.captions]).encode()).hexdigest()


def write_scores(
    folder: Path, columns: Iterable["Columns"], split: "ClipSplit", record: ScoringRecord
) -> ScoreFile:
    """Write a score file column by column; the files get their names when all is written.

    Args:
        folder: Made if absent.
        columns: Those of `score_columns`, in any order.
        split: The split that is scored.
        record: Origin of the scores.

    Returns:
        The written file, opened.

    Raises:
        UserError: The disk is full or read-only.
    """
    shape = (sum(map(len, split.captions)), len(split))
    path = folder / SCORES
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
            (folder / SCORES_RECORD).unlink(missing_ok=True)
    content = {
        **record.to_json(),
        "git_commit": git_commit(),
        "split": split.name,
        "captions_fingerprint": captions_fingerprint(split),
        "shape": shape,
    }
    write_json(folder / SCORES_RECORD, content)
    return open_scores(folder)


def _remove_leftovers(folder: Path) -> None:
    """Remove the files of processes that were killed while they wrote: hundreds of MB each."""
    for path in folder.glob(f".{SCORES}.*.tmp"):
        try:
            os.kill(int(path.name.split(".")[-2]), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (PermissionError, ValueError):
            pass  # another user's process is alive, or another program's file


def open_scores(folder: str | Path) -> ScoreFile:
    """Open a score file. Raises UserError if it is incomplete or damaged."""
    folder = Path(folder)
    for name in (SCORES, SCORES_RECORD):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; {REMEDY}")
    try:
        content = read_json(folder / SCORES_RECORD)
        split, fingerprint = str(content["split"]), str(content["captions_fingerprint"])
        shape = tuple(content["shape"])
        # Copy on write: torch.from_numpy needs a writable array.
        scores = np.load(folder / SCORES, mmap_mode="c", allow_pickle=False)
        if scores.shape != shape or scores.dtype != np.float32 or scores.ndim != 2:
            raise ValueError(
                f"{SCORES} is {scores.dtype} {scores.shape}, {SCORES_RECORD} says float32 {shape}"
            )
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(
            f"the scores in {folder} cannot be read ({one_line(error)}); {REMEDY}"
        ) from None
    return ScoreFile(folder, scores, split, fingerprint)
