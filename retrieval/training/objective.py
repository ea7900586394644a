"""The loss of a run.

It joins functions of retrieval.losses with their settings, the model's learnable parameters, and
the targets of each batch.

Letters: N texts and B audios of a batch, over all processes; P pairs of the corpus, D numbers of a
sentence embedding.
"""

import hashlib
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from retrieval.base.errors import UserError
from retrieval.base.exchange import replicated
from retrieval.base.progress import bar
from retrieval.config import LossConfig
from retrieval.data import JoinedSplit, PairDataset
from retrieval.evaluation.score_files import open_scores
from retrieval.losses import LEARNABLE, LOSSES, TARGETS, arguments_of
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.text import TextEncoder, load_tokenizer, text_architecture, text_readout

SENTENCE_BATCH = 256
MAX_SENTENCE_TOKENS = 64


class TeacherScores:
    """Mean of the teachers' score matrices; a batch reads only its own block from disk.

    Args:
        folders: Score folders, one per teacher, that evaluate.py wrote.
        pairs: Training pairs; the scores must be of the same captions and clips.

    Raises:
        UserError: Scores are of another corpus, or two teachers are the same.
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
        self.fingerprint = whole.hexdigest()  # of the scores of all teachers

    def block(self, pairs: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
        """Return float32 (N, B): scores of the captions of `pairs` (N,) with `clips` (B,)."""
        rows, columns = pairs.cpu().numpy()[:, None], clips.cpu().numpy()[None, :]
        blocks = [torch.from_numpy(file.scores[rows, columns]) for file in self.files]
        return torch.stack(blocks).mean(dim=0)


class CaptionSimilarity:
    """Cosines of the training captions by a pretrained sentence encoder.

    The encoder reads each caption once, as it is written, and is not kept.

    Args:
        name: Folder or hub name of the sentence encoder.
        captions: One of each training pair, P in all.
        device: Where the encoder runs; the embeddings are kept on the CPU.

    Raises:
        UserError: The sentence encoder cannot be loaded.
    """

    def __init__(self, name: str, captions: list[str], device: torch.device):
        try:
            architecture = text_architecture(name, dropout=0.0)
            encoder = TextEncoder(architecture, None, text_readout(name), as_written=True)
            encoder.tokenizer = load_tokenizer(name, encoder.model.config.vocab_size)
            encoder.load_pretrained(name)
        except UserError as error:
            reason = str(error).replace("text_encoder.name", "loss.sentence_encoder")
            raise UserError(f"loss.sentence_encoder: {reason}") from None
        encoder.max_tokens = min(MAX_SENTENCE_TOKENS, encoder.max_tokens or MAX_SENTENCE_TOKENS)
        encoder.to(device).eval()
        parts, size = [], len(captions)
        shown = bar(total=size, desc="sentence embeddings", unit="caption", leave=False)
        with torch.no_grad(), shown as progress:
            for first in range(0, size, SENTENCE_BATCH):
                embeddings = encoder(captions[first : first + SENTENCE_BATCH]).float()
                parts.append(functional.normalize(embeddings).cpu())
                progress.update(len(embeddings))
        self.embeddings = torch.cat(parts)  # (P, D)

    def block(self, pairs: torch.Tensor) -> torch.Tensor:
        """Return float32 (N, N): cosines of the captions of `pairs` (N,) with each other.

        Audio i of a batch came with caption i, so columns stand for audios.
        """
        embeddings = self.embeddings[pairs.cpu()]
        return embeddings @ embeddings.T


class Objective:
    """The loss of a batch of scores, or the weighted sum of losses for loss.name=distillation.

    Args:
        settings: Section `loss` of the configuration.
        pairs: Training pairs, which teachers and sentence encoder must fit.
        device: Where a sentence encoder runs.

    Raises:
        UserError: Teachers or sentence encoder are absent or do not fit the corpus.
    """

    def __init__(self, settings: LossConfig, pairs: PairDataset, device: torch.device):
        self.settings = settings
        weights = {settings.name: 1.0}
        if settings.name == "distillation":
            weights = {settings.name: settings.distill_weight}
            weights |= {settings.supervised: settings.loss_weight}
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.arguments = {name: arguments_of(name) for name in self.weights}
        needed = set().union(*self.arguments.values())
        if pairs.mix_probability and needed & set(TARGETS):
            raise UserError(
                f"loss.name={settings.name} has no target for mixed clips; set"
                " augmentation.mix_probability=0"
            )
        self.teachers = self.captions = None
        if "teacher_scores" in needed:
            if isinstance(pairs.split, JoinedSplit):
                raise UserError(
                    "loss.name=distillation with several train.caches: teachers score one cache, so"
                    " train on one, or use another loss"
                )
            self.teachers = TeacherScores(settings.teachers, pairs)
        if "caption_similarity" in needed:
            self.captions = CaptionSimilarity(settings.sentence_encoder, pairs.captions, device)

    def __call__(
        self, model: DualEncoder, scores: torch.Tensor, clips: torch.Tensor, pairs: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of a batch.

        Args:
            model: Holds the temperature and the other parameters that the loss learns.
            scores: float (N, B), texts and audios in one order.
            clips: int64 (N,), the clip of each pair; equal clips are positives.
            pairs: int64 (N,), the number of each pair in PairDataset.

        Returns:
            A scalar.
        """
        values: dict[str, Any] = self.settings.model_dump()
        values["temperature"] = replicated(model.temperature).abs()  # a step may cross 0
        for name in LEARNABLE:
            if name in model.loss_parameters:
                values[name] = replicated(model.loss_parameters[name])
        if self.teachers is not None:
            values["teacher_scores"] = self.teachers.block(pairs, clips)
        if self.captions is not None:
            values["caption_similarity"] = self.captions.block(pairs)
        positives = clips[:, None] == clips[None, :]  # (N, B)
        loss = 0.0
        for name, weight in self.weights.items():
            arguments = {argument: values[argument] for argument in self.arguments[name]}
            loss = loss + weight * LOSSES[name](scores, positives, **arguments)
        return loss
