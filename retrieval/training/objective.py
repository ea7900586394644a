"""The loss of a run: functions of retrieval.losses with their settings, the model's learnable
parameters, and the targets of each batch.

Letters: N texts and B audios of a batch, over all processes; P pairs of the corpus, D numbers of a
sentence embedding.
"""

import hashlib
from typing import Any

import numpy as np
import torch

from retrieval.base.errors import UserError
from retrieval.base.exchange import replicated
from retrieval.base.progress import bar
from retrieval.config import LossConfig
from retrieval.data import JoinedSplit, PairDataset
from retrieval.evaluation.score_files import open_scores
from retrieval.losses import LEARNABLE, TARGETS, apply_loss, arguments_of
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.text import TextEncoder, text_architecture, text_readout
from retrieval.models.tokenizer import load_tokenizer

SENTENCE_BATCH = 256
MAX_SENTENCE_TOKENS = 64


class TeacherScores:
    """Mean of the score matrices of teachers; a batch reads only its own block from disk.

    Raises UserError for scores of another corpus, and for a copy of a teacher, which would count
    twice.
    """

    def __init__(self, folders: list[str], pairs: PairDataset):
        self.files = [open_scores(folder) for folder in folders]
        for file in self.files:
            file.check(pairs.split)
        whole, folder_of = hashlib.sha256(), {}
        for folder, file in zip(folders, self.files, strict=True):
            digest = hashlib.sha256()
            for clip in file.scores.T:  # a column at a time, as they lie on disk
                column = np.ascontiguousarray(clip)
                digest.update(column)
                whole.update(column)
            if (other := folder_of.setdefault(digest.hexdigest(), folder)) != folder:
                raise UserError(
                    f"loss.teachers: {folder} holds the same scores as {other}, which would count"
                    " twice; leave one of them out"
                )
        self._fingerprint = whole.hexdigest()

    def fingerprint(self) -> str:
        """Of the scores themselves."""
        return self._fingerprint

    def block(self, pairs: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
        """float32 (N, B): the captions of `pairs` (N,) with `clips` (B,)."""
        rows, columns = pairs.cpu().numpy()[:, None], clips.cpu().numpy()[None, :]
        return torch.stack(
            [torch.from_numpy(file.scores[rows, columns]) for file in self.files]
        ).mean(dim=0)


class CaptionSimilarity:
    """Cosines of the training captions, as they are written, by a pretrained sentence encoder,
    which reads each once and is then let go.
    """

    def __init__(self, name: str, captions: list[str], device: torch.device):
        try:
            architecture = text_architecture(name, dropout=0.0)
            encoder = TextEncoder(architecture, None, text_readout(name), as_written=True)
            encoder.tokenizer = load_tokenizer(name, encoder.model.config.vocab_size)
            encoder.load_pretrained(name)
        except UserError as error:
            raise UserError(
                "loss.sentence_encoder:"
                f" {str(error).replace('text_encoder.name', 'loss.sentence_encoder')}"
            ) from None
        encoder.max_tokens = min(MAX_SENTENCE_TOKENS, encoder.max_tokens or MAX_SENTENCE_TOKENS)
        self.embeddings = _embed(encoder.to(device).eval(), captions)  # (P, D), on the CPU

    def block(self, pairs: torch.Tensor) -> torch.Tensor:
        """float32 (N, N): each caption of `pairs` (N,) with the caption of each audio, which came
        with it.
        """
        embeddings = self.embeddings[pairs.cpu()]
        return embeddings @ embeddings.T


@torch.no_grad()
def _embed(encoder: TextEncoder, captions: list[str]) -> torch.Tensor:
    parts = []
    with bar(
        total=len(captions), desc="sentence embeddings", unit="caption", leave=False
    ) as progress:
        for first in range(0, len(captions), SENTENCE_BATCH):
            parts.append(
                torch.nn.functional.normalize(
                    encoder(captions[first : first + SENTENCE_BATCH]).float()
                ).cpu()
            )
            progress.update(len(parts[-1]))
    return torch.cat(parts)


class Objective:
    """Scores of a batch in, loss out. Raises UserError for teachers or a sentence encoder that are
    absent or do not fit the corpus.
    """

    def __init__(self, settings: LossConfig, pairs: PairDataset, device: torch.device):
        self.settings = settings
        self.weights = {settings.name: 1.0}
        if settings.name == "distillation":
            weights = {
                "distillation": settings.distill_weight,
                settings.supervised: settings.loss_weight,
            }
            self.weights = {name: weight for name, weight in weights.items() if weight}
        needed = {argument for name in self.weights for argument in arguments_of(name)}
        if pairs.mix_probability and needed & set(TARGETS):
            raise UserError(
                f"loss.name={settings.name} has no target for mixed clips; set"
                " augmentation.mix_probability=0"
            )
        if "teacher_scores" in needed and isinstance(pairs.split, JoinedSplit):
            raise UserError(
                "loss.name=distillation with several train.caches: teachers score one cache, so"
                " train on one, or use another loss"
            )
        self.teachers = (
            TeacherScores(settings.teachers, pairs) if "teacher_scores" in needed else None
        )
        self.captions = (
            CaptionSimilarity(settings.sentence_encoder, pairs.captions, device)
            if "caption_similarity" in needed
            else None
        )

    def __call__(
        self, model: DualEncoder, scores: torch.Tensor, clips: torch.Tensor, pairs: torch.Tensor
    ) -> torch.Tensor:
        """scores (N, B) of texts and audios in one order, their clips (N,) and pairs (N,) in
        PairDataset -> scalar.
        """
        values: dict[str, Any] = self.settings.model_dump() | {
            "temperature": replicated(model.temperature).abs()
        }  # a step may cross 0
        values |= {
            name: replicated(model.loss_parameters[name])
            for name in LEARNABLE
            if name in model.loss_parameters
        }
        if self.teachers is not None:
            values["teacher_scores"] = self.teachers.block(pairs, clips)
        if self.captions is not None:
            values["caption_similarity"] = self.captions.block(pairs)
        positives = clips[:, None] == clips[None, :]  # (N, B)
        return sum(
            weight * apply_loss(name, scores, positives, values)
            for name, weight in self.weights.items()
        )
