"""Score matrices of one model, or the mean of several: all captions against all clips of a split.

Clips are encoded in batches and scored at once: frames are never kept, so memory does not grow with
the number of clips. With several processes each encodes its share of the clips.

Letters: N captions, B clips, b clips of a batch, T frames, D dimensions.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import torch

from retrieval.base.errors import UserError
from retrieval.base.exchange import gather_columns, rank, world_size
from retrieval.base.launch import make_accelerator
from retrieval.base.progress import bar
from retrieval.config import Config, read_config
from retrieval.data import Cache, ClipSplit, make_clip_loader, open_cache, usable_workers
from retrieval.models.build import bound_memory
from retrieval.models.dual_encoder import Autocast, DualEncoder, check_not_nan, eval_mode
from retrieval.models.pretrained import load_pretrained

CLIPS_AT_ONCE = 256  # columns of a mean that are computed at once
Columns = tuple[torch.Tensor, torch.Tensor]  # clips int64 (b,), scores float32 (N, b), on the CPU


def similarity_matrix(
    model: torch.nn.Module,
    captions: list[str],
    split: ClipSplit,
    *,
    audio_batch_size: int = 16,
    text_batch_size: int = 256,
    num_workers: int = 0,
    autocast: Autocast = nullcontext,
    bf16_scores: bool = False,
) -> torch.Tensor:
    """Score all captions against all clips of a split.

    Only the first model.clip_seconds of a longer clip are scored.

    Args:
        model: A DualEncoder, not wrapped. Its training mode is restored afterwards.
        captions: N texts; they need not be captions of the split.
        split: B clips.
        audio_batch_size: Clips encoded at once.
        text_batch_size: Captions encoded at once.
        num_workers: Processes that read clips; 0 reads in this one.
        autocast: Context of the encoders only.
        bf16_scores: Compute scores in bf16; False: in float32.

    Returns:
        Cosine similarities, float32 (N, B) on the CPU, on every process.

    Raises:
        UserError: A score is NaN.
    """
    columns = score_columns(
        model,
        captions,
        split,
        audio_batch_size=audio_batch_size,
        text_batch_size=text_batch_size,
        num_workers=num_workers,
        autocast=autocast,
        bf16_scores=bf16_scores,
    )
    return join_columns(columns, captions, split)


def join_columns(
    columns: Iterable[Columns], captions: Sequence[str], split: ClipSplit
) -> torch.Tensor:
    """Put columns that come in any order into one matrix, float32 (N, B)."""
    matrix = torch.empty(len(captions), len(split))
    for clips, scores in columns:
        matrix[:, clips] = scores
    return matrix


@torch.no_grad()
def score_columns(
    model: torch.nn.Module,
    captions: list[str],
    split: ClipSplit,
    *,
    audio_batch_size: int,
    text_batch_size: int,
    num_workers: int,
    autocast: Autocast,
    bf16_scores: bool = False,
) -> Iterator[Columns]:
    """Yield the columns of `similarity_matrix` as they are made, on every process.

    Nothing larger than the columns of one batch of every process is held in memory.
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
    # Equal captions are scored once, so that their scores are tied to the last bit. Captions of
    # similar length side by side need less padding.
    different = sorted(dict.fromkeys(captions), key=len)  # n of N
    row_of = {caption: row for row, caption in enumerate(different)}
    rows = torch.tensor([row_of[caption] for caption in captions])  # (N,)
    with eval_mode(model), progress:
        texts = []
        for first in range(0, len(different), text_batch_size):
            with autocast():
                text = model.encode_text(different[first : first + text_batch_size])
            texts.append(text.float())
        texts = torch.cat(texts)  # (n, D)
        batches = iter(loader if len(share) else ())
        for first in range(0, max(map(len, shares)), audio_batch_size):
            # Stays empty on a process whose share is finished: all take part in the exchange.
            block = torch.empty(len(different), 0, device=device)
            for stored, lengths in islice(batches, 1):
                stored = stored.to(device, non_blocking=True)
                with autocast():
                    frames, mask = encode(stored, lengths)  # (b, T, D), (b, T)
                # All texts in one call: a pooling prepares the frames once per call.
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16_scores):
                    block = model.score(texts, frames.float(), mask).float()  # (n, b)
            scores = gather_columns(block).cpu()[rows]  # (N, b of all processes)
            check_not_nan(scores, f" on split {split.name!r}")
            columns = [clip for clips in shares for clip in clips[first : first + audio_batch_size]]
            progress.update(len(columns))
            yield torch.tensor(columns), scores


def captions_of(split: ClipSplit) -> tuple[list[str], list[int]]:
    """List the captions of a split clip by clip: the rows of every score matrix and score file.

    Returns:
        N captions, and for each the column of its clip.

    Raises:
        UserError: The split has no captions.
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


def cache_rate(model: DualEncoder) -> int | None:
    """Return the sample rate in Hz that a cache for `model` must have; None if it takes any."""
    return None if model.audio_encoder.takes_any_rate else model.sample_rate


def check_sample_rate(cache: Cache, checkpoint: Path, rate: int | None) -> None:
    """Raise UserError if the model of `checkpoint` needs another sample rate (Hz) than `cache`."""
    if rate not in (None, cache.sample_rate):
        raise UserError(
            f"cache {cache.path} is sampled at {cache.sample_rate} Hz, checkpoint {checkpoint}"
            f" needs {rate} Hz; give another --cache, or build one with --sample-rate {rate}"
        )


def hear_cache(model: DualEncoder, cache: Cache) -> None:
    """Let a model that takes sounds of any sample rate take those of `cache`."""
    if model.audio_encoder.takes_any_rate:
        model.hear_at(cache.sample_rate)


class Scorer:
    """Score the clips of a cache by one checkpoint, or by the weighted mean of several.

    All checkpoints are loaded once before anything is scored, to check that they fit the cache. One
    model is in memory at a time.

    Args:
        checkpoints: Of any kind; see retrieval.models.pretrained.load_pretrained.
        cache: Folder of the Arrow cache. This and the following arguments default to the settings
            of the first checkpoint's run (RUN/config.yaml).
        text_encoder: Tokenizer of a .ckpt, a folder or hub name; None: roberta-large.
        mixed_precision: "no", "bf16", "fp16" or "auto".
        audio_batch_size: Clips encoded at once.
        text_batch_size: Captions encoded at once.

    Attributes:
        weights: Of the checkpoints in the mean of several, which is divided by their sum. Equal
            unless they are set.

    Raises:
        UserError: A checkpoint does not load, or needs another sample rate; or there is no cache.
    """

    def __init__(
        self,
        checkpoints: Sequence[Path],
        cache: Path | None = None,
        text_encoder: Path | None = None,
        mixed_precision: str | None = None,
        audio_batch_size: int | None = None,
        text_batch_size: int | None = None,
    ):
        self.checkpoints, self.text_encoder = list(checkpoints), text_encoder
        self.weights: Sequence[float] = [1.0] * len(self.checkpoints)
        run = self.checkpoints[0].resolve().parent
        has_config = self.checkpoints[0].is_dir() and (run / "config.yaml").is_file()
        self.config = config = read_config(run) if has_config else Config()
        self.accelerator = make_accelerator(mixed_precision or config.train.mixed_precision)
        rates, similarities = {}, set()
        for checkpoint in reversed(self.checkpoints):  # the first one stays in memory
            model = None  # frees it before the next one is loaded
            model = load_pretrained(checkpoint, text_encoder)
            rates[checkpoint] = cache_rate(model)
            similarities.add(model.pooling.similarity)
        self._first: DualEncoder | None = model
        if len(similarities) > 1:
            raise UserError(
                "--checkpoint: some of the models score by dot products and others by cosines,"
                " whose mean means nothing; score them one by one"
            )
        if cache is None and not has_config:
            raise UserError(
                f"checkpoint {self.checkpoints[0]} has no run with a config.yaml beside it that"
                " says which cache to score: add --cache DIR"
            )
        self.cache: Cache = open_cache(cache or config.data.cache)
        run_cache = Path(config.data.cache).resolve()
        self.is_other_cache = has_config and self.cache.path.resolve() != run_cache
        for checkpoint, rate in reversed(rates.items()):
            check_sample_rate(self.cache, checkpoint, rate)
        hear_cache(self._first, self.cache)
        self.settings = {
            "audio_batch_size": audio_batch_size or config.evaluation.audio_batch_size,
            "text_batch_size": text_batch_size or config.evaluation.text_batch_size,
            "num_workers": usable_workers(config.data.num_workers),
            "autocast": self.accelerator.autocast,
        }

    def load(self, checkpoint: Path) -> DualEncoder:
        """Load a checkpoint, for the sounds of the cache."""
        model = load_pretrained(checkpoint, self.text_encoder)
        hear_cache(model, self.cache)
        return model

    def take(self, checkpoint: Path) -> DualEncoder:
        """Return a checkpoint on the device; the first one, which is in memory, is not kept."""
        is_loaded = checkpoint == self.checkpoints[0] and self._first is not None
        model = self._first if is_loaded else self.load(checkpoint)
        self._first = None  # frees it before the next one is loaded
        bound_memory(model, self.config)
        return model.to(self.accelerator.device)

    def matrix(self, captions: list[str], split: ClipSplit) -> torch.Tensor:
        """Score all captions against all clips: float32 (N, B) on every process."""
        return join_columns(self.columns(captions, split), captions, split)

    def matrices(self, captions: list[str], split: ClipSplit) -> list[torch.Tensor]:
        """Score by each checkpoint: float32 (N, B) on every process."""
        found = []
        for checkpoint in self.checkpoints:
            self.accelerator.print(f"{checkpoint} on {split.name} ...")
            columns = self._columns(checkpoint, captions, split)
            found.append(join_columns(columns, captions, split))
        return found

    def columns(self, captions: list[str], split: ClipSplit) -> Iterator[Columns]:
        """Yield the columns of `matrix`, every clip once, on every process.

        The mean of several checkpoints is taken in float64. Raises UserError for NaN.
        """
        # the mean of ensemble.weighted_mean, with one score matrix in memory and not one per model
        if len(self.checkpoints) == 1:
            yield from self._columns(self.checkpoints[0], captions, split)
            return
        total = torch.zeros(len(captions), len(split), dtype=torch.float64)  # (N, B)
        for checkpoint, weight in zip(self.checkpoints, self.weights, strict=True):
            self.accelerator.print(f"{checkpoint} ...")
            for clips, scores in self._columns(checkpoint, captions, split):
                total[:, clips] += weight * scores.double()
        for clips in torch.arange(len(split)).split(CLIPS_AT_ONCE):
            yield clips, (total[:, clips] / math.fsum(self.weights)).float()

    def _columns(
        self, checkpoint: Path, captions: list[str], split: ClipSplit
    ) -> Iterator[Columns]:
        yield from score_columns(self.take(checkpoint), captions, split, **self.settings)
