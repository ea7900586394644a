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
    """Encodes excerpts with a model's audio encoder.

    Attributes:
        model: The model.
        autocast: Context of the encoder.
        batch_size: Excerpts encoded at once.
        with_frames: Return frames too.
    """

    model: DualEncoder
    autocast: Autocast
    batch_size: int
    with_frames: bool = False

    @torch.no_grad()
    def encode(self, excerpts: list[Excerpt]) -> tuple[np.ndarray, list[np.ndarray] | None]:
        """Encode excerpts into the numbers that an index holds.

        Returns:
            Vectors float32 (B, D) for the first stage: pooling.directions of the excerpts.
            With frames the valid frames float32 (T, D) of each excerpt: after TAP's norm, else by
            pooling.directions; otherwise None.

        Raises:
            UserError: A number overflows in this precision.
        """
        pooling, vectors, keys, num_frames = self.model.pooling, [], [], []
        with eval_mode(self.model):
            for first in range(0, len(excerpts), self.batch_size):
                waveform, lengths = collate(excerpts[first : first + self.batch_size])
                waveform = waveform.to(self.model.temperature.device, non_blocking=True)
                with self.autocast():
                    features, valid = self.model.audio_features(waveform, lengths)
                    frames, mask = self.model.encode_frames(features, valid.sum(dim=1))
                    if self.with_frames and not pooling.keeps_frames:
                        all_frames = self.model.audio_projection(features)  # (b, T, D)
                frames = frames.float()  # (b, T, D), or (b, 1, D)
                pooled = pooling.clip_vectors(frames, mask)  # (b, D)
                vectors.append(pooling.directions(pooled).cpu())
                if self.with_frames:
                    if pooling.keeps_frames:
                        own = pooling.norm(frames)
                    else:
                        own = pooling.directions(all_frames.float())
                    keys.append(own[valid].float().cpu())  # (valid frames, D)
                    num_frames += valid.sum(dim=1).tolist()
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
