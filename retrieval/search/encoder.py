"""Encode excerpts of sounds for an index, or as queries.

Letters: B excerpts, b of a batch, S samples, T frames, D = dim.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from retrieval.base.errors import UserError
from retrieval.models.dual_encoder import Autocast, DualEncoder, eval_mode
from retrieval.search.sound import Excerpt


@dataclass
class ExcerptEncoder:
    """Encodes excerpts with a model's audio encoder, `batch_size` at once, under `autocast`."""

    model: DualEncoder
    autocast: Autocast
    batch_size: int

    @torch.no_grad()
    def encode(self, excerpts: list[Excerpt]) -> tuple[np.ndarray, list[np.ndarray] | None]:
        """Encode excerpts into the numbers that an index holds.

        Returns:
            Vectors float32 (B, D) for the first stage: pooling.directions of the excerpts.
            For TAP the valid frames float16 (T, D) of each excerpt, after TAP's norm; else None.

        Raises:
            UserError: A number overflows in this precision.
        """
        pooling, vectors, keys, num_frames = self.model.pooling, [], [], []
        with eval_mode(self.model):
            for first in range(0, len(excerpts), self.batch_size):
                waveform, lengths = collate(excerpts[first : first + self.batch_size])
                waveform = waveform.to(self.model.temperature.device, non_blocking=True)
                with self.autocast():
                    frames, mask = self.model.encode_audio(waveform, lengths)
                frames = frames.float()  # (b, T, D)
                pooled = pooling.clip_vectors(frames, mask)  # (b, D)
                vectors.append(pooling.directions(pooled).cpu())
                if pooling.keeps_frames:
                    keys.append(pooling.norm(frames)[mask].half().cpu())  # (valid frames, D)
                    num_frames += mask.sum(dim=1).tolist()
        if not all(bool(numbers.isfinite().all()) for numbers in vectors + keys):
            raise UserError(
                "the model gives vectors that are not finite: they overflow in this precision; take"
                " another --mixed-precision"
            )
        split = [own.numpy() for own in torch.cat(keys).split(num_frames)] if keys else None
        return torch.cat(vectors).numpy(), split


def collate(excerpts: list[Excerpt]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad excerpts with zeros: waveform float32 (B, S), lengths int64 (B,) in samples."""
    samples = [torch.from_numpy(excerpt.samples) for excerpt in excerpts]
    return pad_sequence(samples, batch_first=True), torch.tensor([len(own) for own in samples])
