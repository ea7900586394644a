"""Scores by one checkpoint, or by several together: the mean of their score matrices. One model is
in memory at a time.

Letters: N captions, B clips; b clips of a batch.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from retrieval.base.errors import UserError
from retrieval.base.launch import make_accelerator
from retrieval.config import Config, read_config
from retrieval.data import Cache, ClipSplit, open_cache, usable_workers
from retrieval.evaluation.similarity import score_columns
from retrieval.models.build import bound_memory
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.pretrained import load_pretrained

CLIPS_AT_ONCE = 256  # columns of a mean


def check_sample_rate(cache: Cache, checkpoint: Path, rate: int) -> None:
    """Raises UserError where `cache` is not what the model of `checkpoint`, at `rate` Hz, can
    hear.
    """
    if rate != cache.sample_rate:
        raise UserError(
            f"cache {cache.path} is sampled at {cache.sample_rate} Hz, checkpoint {checkpoint}"
            f" needs {rate} Hz; give another --cache, or build one with --sample-rate {rate}"
        )


class Scorer:
    """Checkpoints that have been loaded once, on a cache that fits all of them. Raises UserError
    for those that do not load or fit.

    Batch sizes, precision and cache are those of the first checkpoint's run (RUN/config.yaml)
    unless given.
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
        run = self.checkpoints[0].resolve().parent
        has_config = self.checkpoints[0].is_dir() and (run / "config.yaml").is_file()
        config = read_config(run) if has_config else Config()
        self.config = config
        self.accelerator = make_accelerator(mixed_precision or config.train.mixed_precision)
        rates = {
            checkpoint: load_pretrained(checkpoint, text_encoder).sample_rate
            for checkpoint in self.checkpoints[1:]
        }
        self._first: DualEncoder | None = load_pretrained(self.checkpoints[0], text_encoder)
        if cache is None and not has_config:
            raise UserError(
                f"{run} has no config.yaml that says which cache to score: add --cache DIR"
            )
        self.cache: Cache = open_cache(cache or config.data.cache)
        self.is_other_cache = (
            has_config and self.cache.path.resolve() != Path(config.data.cache).resolve()
        )  # than that of the run
        for checkpoint, rate in ({self.checkpoints[0]: self._first.sample_rate} | rates).items():
            check_sample_rate(self.cache, checkpoint, rate)
        self.settings = {
            "audio_batch_size": audio_batch_size or config.evaluation.audio_batch_size,
            "text_batch_size": text_batch_size or config.evaluation.text_batch_size,
            "num_workers": usable_workers(config.data.num_workers),
            "autocast": self.accelerator.autocast,
        }

    def columns(
        self, captions: list[str], split: ClipSplit
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Clips (b,) and their scores float32 (N, b), every clip once, on every process. Means are
        taken in float64. Raises UserError for NaN.
        """
        if len(self.checkpoints) == 1:
            yield from self._columns(self.checkpoints[0], captions, split)
            return
        total = torch.zeros(len(captions), len(split), dtype=torch.float64)  # (N, B)
        for checkpoint in self.checkpoints:
            self.accelerator.print(f"{checkpoint} ...")
            for clips, scores in self._columns(checkpoint, captions, split):
                total[:, clips] += scores
        for clips in torch.arange(len(split)).split(CLIPS_AT_ONCE):
            yield clips, (total[:, clips] / len(self.checkpoints)).float()

    def matrix(self, captions: list[str], split: ClipSplit) -> torch.Tensor:
        """float32 (N, B) on every process."""
        matrix = torch.empty(len(captions), len(split))
        for clips, scores in self.columns(captions, split):
            matrix[:, clips] = scores
        return matrix

    def _columns(
        self, checkpoint: Path, captions: list[str], split: ClipSplit
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        model = (
            self._first
            if checkpoint == self.checkpoints[0] and self._first is not None
            else load_pretrained(checkpoint, self.text_encoder)
        )
        self._first = None  # so that it leaves the memory before the next one is loaded
        bound_memory(model, self.config)
        yield from score_columns(
            model.to(self.accelerator.device), captions, split, **self.settings
        )
