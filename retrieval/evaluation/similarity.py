"""Score matrix of a model and a split: encode every clip once, score it against all captions.

Clips are encoded in batches and scored at once: frames are never kept, so memory does not grow with
the number of clips. With several processes each encodes its share of the clips.

Letters: N captions, B clips, T frames, D dimensions, S samples.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch

from retrieval.base.errors import UserError
from retrieval.base.exchange import gather_columns, rank, world_size
from retrieval.base.progress import bar
from retrieval.data import make_clip_loader
from retrieval.models.inference import Autocast, eval_mode


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
    """Cosine similarities of `captions` with all clips of a ClipSplit: float32 (N, B) on the CPU,
    on every process.

    Clips longer than model.clip_seconds: their first clip_seconds. The encoders run under
    `autocast()`, scores are computed in float32. The model is a DualEncoder, not wrapped; its
    training mode is as before afterwards. Raises UserError for a model that gives NaN.
    """
    sizes = {
        "audio_batch_size": audio_batch_size,
        "text_batch_size": text_batch_size,
        "num_workers": num_workers,
    }
    matrix = torch.empty(len(captions), len(split))  # (N, B)
    for columns, scores in score_columns(model, captions, split, autocast=autocast, **sizes):
        matrix[:, columns] = scores
    return matrix


@torch.no_grad()
def score_columns(
    model: torch.nn.Module,
    captions: list[str],
    split: Any,
    *,
    audio_batch_size: int,
    text_batch_size: int,
    num_workers: int,
    autocast: Autocast,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The columns of `similarity_matrix` as they are made, on every process: clips int64 (b,) and
    their scores float32 (N, b), CPU.

    Nothing larger than the columns of one batch of every process is held.
    """
    device = next(model.parameters()).device
    shares = [
        range(process * len(split) // world_size(), (process + 1) * len(split) // world_size())
        for process in range(world_size())
    ]
    share = shares[rank()]
    encode = model.encode_frames if split.holds_frames else model.encode_audio
    max_samples = round(model.clip_seconds * model.sample_rate)
    loader = make_clip_loader(
        split, share, max_samples, audio_batch_size, num_workers, pin_memory=device.type == "cuda"
    )
    progress = bar(total=len(split), desc=f"scoring {split.name}", unit="clip", leave=False)
    with eval_mode(model), progress:
        # Captions of one length side by side: less padding. Scored at once: what a pooling makes of
        # the frames alone it makes once a call.
        order = sorted(range(len(captions)), key=lambda row: len(captions[row]))
        texts = []
        for first in range(0, len(captions), text_batch_size):
            with autocast():
                texts.append(
                    model.encode_text(
                        [captions[row] for row in order[first : first + text_batch_size]]
                    ).float()
                )  # (n, D)
        texts = torch.cat(texts)[torch.tensor(order, device=device).argsort()]  # (N, D)
        batches = iter(loader if len(share) else ())
        for first in range(0, max(map(len, shares)), audio_batch_size):
            # of a process that has no clip left
            block = torch.empty(len(captions), 0, device=device)
            for audio, lengths in islice(batches, 1):
                with autocast():
                    # (b, T, D), (b, T)
                    frames, mask = encode(audio.to(device, non_blocking=True), lengths)
                block = model.score(texts, frames.float(), mask)  # (N, b)
            scores = gather_columns(block).cpu()
            columns = torch.tensor(
                [clip for clips in shares for clip in clips[first : first + audio_batch_size]]
            )
            _check_not_nan(scores, split.name)
            progress.update(len(columns))
            yield columns, scores


def _check_not_nan(scores: torch.Tensor, split: str) -> None:
    num_nan = int(scores.isnan().sum())
    if num_nan:
        raise UserError(
            f"{num_nan} of {scores.numel()} scores on split {split!r} are NaN: the weights are not"
            " finite, or overflow in this precision; take an earlier checkpoint or another mixed"
            " precision"
        )


def captions_of(split: Any) -> tuple[list[str], list[int]]:
    """The captions of a ClipSplit clip by clip, and for each the column of its clip: the rows of
    every score matrix and score file.

    Raises UserError for a split without captions.
    """
    pairs = [
        (caption, clip) for clip, captions in enumerate(split.captions) for caption in captions
    ]
    if not pairs:
        raise UserError(
            f"split {split.name!r} has {len(split)} clips and no captions, so there is nothing to"
            " score"
        )
    return [caption for caption, _ in pairs], [clip for _, clip in pairs]
