"""From a model and a split to the score matrix, ranks and metrics of both directions.

Every clip is encoded once, in batches, and scored at once against all captions: frames are never kept, so memory does
not grow with the number of clips. With several processes each encodes its share of the clips.

Letters: N captions, B clips, T frames, D dimensions, S samples.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from retrieval.data import collate_clips
from retrieval.distributed import gather_columns, rank, world_size
from retrieval.errors import UserError
from retrieval.files import atomic_writer
from retrieval.metrics.text_audio_retrieval.ranking import all_ranks, chance_metrics, metrics_of_ranks, ranks_of_both_directions

NUM_TOP = 10  # file names listed for each query in ranks.csv
Autocast = Callable[[], AbstractContextManager]


def retrieval_metrics(scores: torch.Tensor | np.ndarray, relevant: Sequence[Sequence[int]]) -> dict[str, float]:
    """mAP@10, R@1, R@5 and R@10 of the queries in the rows of scores (N, B), as fractions.

    relevant[n] are the columns that are right for query n. Ties count against the query. With ten candidates or fewer
    R@10 is 1 whatever the model does (`few_clips_warning`). Raises ValueError for NaN scores and for impossible indices.
    """
    return metrics_of_ranks(all_ranks(_to_numpy(scores), relevant))


@dataclass(frozen=True)
class EvaluationResult:
    """A scored split. Rows of `scores` are captions, columns clips."""

    split: str
    scores: torch.Tensor  # float32 (N, B), CPU
    captions: list[str]  # N
    clips: list[int]  # N, the column of the clip that the caption was written for
    clip_ids: list[str]  # B
    file_names: list[str]  # B
    ranks: dict[str, list[np.ndarray]] = field(init=False)  # direction -> ranks of each query's relevant candidates
    metrics: dict[str, dict[str, float]] = field(init=False)  # direction -> {"mAP@10", "R@1", "R@5", "R@10"}, fractions

    def __post_init__(self) -> None:
        ranks = ranks_of_both_directions(_to_numpy(self.scores), self.relevant)
        object.__setattr__(self, "ranks", ranks)
        object.__setattr__(self, "metrics", {direction: metrics_of_ranks(queries) for direction, queries in ranks.items()})

    @property
    def relevant(self) -> list[list[int]]:
        """For each caption all columns with the clip id of its own clip."""
        columns: dict[str, list[int]] = {}
        for column, clip_id in enumerate(self.clip_ids):
            columns.setdefault(clip_id, []).append(column)
        return [columns[self.clip_ids[clip]] for clip in self.clips]

    @property
    def chance(self) -> dict[str, dict[str, float]]:
        """The metrics that a random order is expected to get."""
        num_candidates = {"text_to_audio": len(self.clip_ids), "audio_to_text": len(self.captions)}
        return {name: chance_metrics(num_candidates[name], [len(query) for query in queries]) for name, queries in self.ranks.items()}


def evaluate_split(model: torch.nn.Module, split: Any, **settings: Any) -> EvaluationResult:
    """Score all captions of a ClipSplit against all its clips; `settings` are those of `similarity_matrix`.

    Raises UserError for a split without captions and for a model that gives NaN.
    """
    pairs = [(caption, clip) for clip, captions in enumerate(split.captions) for caption in captions]
    if not pairs:
        raise UserError(f"split {split.name!r} has {len(split)} clips and no captions, so there is nothing to score")
    captions = [caption for caption, _ in pairs]
    scores = similarity_matrix(model, captions, split, **settings)
    num_nan = int(scores.isnan().sum())
    if num_nan:
        raise UserError(
            f"{num_nan} of {scores.numel()} scores on split {split.name!r} are NaN: the weights are not finite, or overflow in "
            "this precision; take an earlier checkpoint or another mixed precision"
        )
    return EvaluationResult(split.name, scores, captions, [clip for _, clip in pairs], list(split.clip_ids), list(split.file_names))


@torch.no_grad()
def similarity_matrix(
    model: torch.nn.Module,
    captions: list[str],
    split: Any,
    *,
    audio_batch_size: int = 16,
    text_batch_size: int = 256,
    num_workers: int = 0,
    autocast: Autocast = nullcontext,
) -> torch.Tensor:
    """Cosine similarities of `captions` with all clips of a ClipSplit: float32 (N, B) on the CPU, on every process.

    Clips longer than model.clip_seconds: their first clip_seconds. The encoders run under `autocast()`, scores are
    computed in float32. The model is a DualEncoder, not wrapped; its training mode is as before afterwards.
    """
    device = next(model.parameters()).device
    # Contiguous shares: gather_columns puts the blocks of the processes side by side in order of rank.
    share = range(rank() * len(split) // world_size(), (rank() + 1) * len(split) // world_size())
    clips = _Clips(split, share, max_samples=round(model.clip_seconds * model.sample_rate))
    loader = DataLoader(
        clips,
        batch_size=audio_batch_size,
        num_workers=num_workers,
        collate_fn=collate_clips,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the loader draws a seed for its workers: not from the training's random state
    )
    block = torch.empty(len(captions), len(share))  # (N, b)
    progress = tqdm(total=len(share), desc=f"scoring {split.name}", unit=" clips", delay=3, leave=False, disable=rank() != 0)
    with _eval_mode(model), progress:
        texts = []
        for first in range(0, len(captions), text_batch_size):
            with autocast():
                texts.append(model.encode_text(captions[first : first + text_batch_size]).float())  # (n, D)
        column = 0
        for waveform, lengths in loader if len(share) else ():
            with autocast():
                frames, mask = model.encode_audio(waveform.to(device, non_blocking=True), lengths)  # (b, T, D), (b, T)
            scores = torch.cat([model.score(text, frames.float(), mask) for text in texts])  # (N, b)
            block[:, column : column + len(lengths)] = scores
            column += len(lengths)
            progress.update(len(lengths))
    return gather_columns(block.to(device)).cpu()


def few_clips_warning(num_clips: int) -> str | None:
    """What to tell the user of a split with too few clips for R@10, or None."""
    return f"only {num_clips} clips, all of them in every top 10: R@10 says nothing" if num_clips <= 10 else None


def format_table(result: EvaluationResult) -> str:
    """Both directions and their chance levels in percent, as text."""
    rows = {name.replace("_", " "): values for name, values in result.metrics.items()}
    rows |= {f"chance, {name.replace('_', ' ')}": values for name, values in result.chance.items()}
    names = list(result.metrics["text_to_audio"])
    header = f"{len(result.clip_ids)} clips, {len(result.captions)} captions, %"
    width = max(len(title) for title in [header, *rows])
    lines = [f"{header:<{width}}" + "".join(f"{name:>8}" for name in names)]
    lines += [f"{title:<{width}}" + "".join(f"{100 * values[name]:8.2f}" for name in names) for title, values in rows.items()]
    return "\n".join(lines)


def write_metrics(path: str | Path, results: dict[str, Any], environment: dict[str, Any]) -> None:
    """JSON of `results`, of the environment (checkpoint.environment()) and of what evaluate.save adds, under its names."""
    provenance = {
        "_timestamp": datetime.now().isoformat(),
        "_git_commit_hash": environment["git_commit"],
        "_evaluate_version": environment["libraries"]["evaluate"],
        "_python_version": sys.version,
        "_interpreter_path": sys.executable,
    }
    with atomic_writer(Path(path)) as file:
        json.dump(results | {"environment": environment} | provenance, file, indent=2, ensure_ascii=False)
        file.write("\n")


def write_ranks(path: str | Path, result: EvaluationResult) -> None:
    """CSV, a row a caption: query, clip (the right one), its rank and score, and the ten best file names.

    As in the metrics, tied clips stand before the right one.
    """
    scores, relevant = _to_numpy(result.scores), result.relevant
    with atomic_writer(Path(path)) as file:
        writer = csv.writer(file)
        writer.writerow(["query", "clip", "rank", "score", *(f"top_{place}" for place in range(1, NUM_TOP + 1))])
        for row, (query, clip) in enumerate(zip(result.captions, result.clips, strict=True)):
            is_relevant = np.isin(np.arange(scores.shape[1]), relevant[row])
            best = np.lexsort((is_relevant, -scores[row]))[:NUM_TOP]  # by score, then the right clip last
            names = [result.file_names[index] for index in best] + [""] * (NUM_TOP - len(best))
            rank_of_clip = result.ranks["text_to_audio"][row][0]
            writer.writerow([query, result.file_names[clip], rank_of_clip, f"{scores[row, clip]:.6f}", *names])


class _Clips(Dataset):
    """Waveforms of some clips of a split, each from its start and at most max_samples long."""

    def __init__(self, split: Any, indices: range, max_samples: int):
        self.split, self.indices, self.max_samples = split, indices, max_samples

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> np.ndarray:
        index = self.indices[item]
        return self.split.read(index, 0, min(self.max_samples, int(self.split.num_samples[index])))  # (S,)


@contextmanager
def _eval_mode(model: torch.nn.Module) -> Iterator[None]:
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in was_training:
            module.training = True


def _to_numpy(scores: torch.Tensor | np.ndarray) -> np.ndarray:
    return scores.detach().double().cpu().numpy() if isinstance(scores, torch.Tensor) else np.asarray(scores)
