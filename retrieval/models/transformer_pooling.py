"""Transformer pooling: from the frames of a clip to one vector, by a small transformer.

Letters: N texts, B clips, T frames, F = feature_dim, D the size of the shared space, H heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from retrieval.base.errors import UserError
from retrieval.models.pooling import MeanPooling, Pooling

READOUTS = ("first", "mean")


class TransformerPooling(Pooling):
    """Pre-norm transformer layers over the frames, read from a learned token or the mean.

    It works on the audio encoder's own frames, before the audio projection. Padding frames are
    neither attended to nor averaged. It has the parts of salsa's, but is not the same network:
    positions are learned (there: sines), the token is the same for all clips (there: the mean of
    the frames is added), the MLP has 4 F units (there: 2048), and a LayerNorm comes last.

    Args:
        feature_dim: F, size of an audio encoder's frame.
        max_frames: Most frames of a clip, each with a learned position.
        num_layers: Number of layers.
        num_heads: Attention heads of a layer; must divide feature_dim.
        readout: "first" reads a learned token in front of the frames, "mean" averages them.
        dropout: Dropout within the layers, in training only.

    Raises:
        UserError: num_heads or readout is impossible.
    """

    compares_frames = False  # the projection has learnt from clips, not from frames

    def __init__(
        self,
        feature_dim: int,
        max_frames: int,
        num_layers: int = 1,
        num_heads: int = 8,
        readout: str = "first",
        dropout: float = 0.1,
    ):
        super().__init__()
        if readout not in READOUTS:
            raise UserError(
                f"pooling.readout must be one of {', '.join(READOUTS)}, found {readout!r}"
            )
        if feature_dim % num_heads:
            dividing = [str(number) for number in range(1, 17) if feature_dim % number == 0]
            raise UserError(
                f"pooling.num_heads={num_heads} does not divide the {feature_dim} numbers of an"
                f" audio frame; set it to one of {', '.join(dividing)}"
            )
        self.positions = nn.Parameter(torch.empty(max_frames, feature_dim))
        self.token = nn.Parameter(torch.empty(feature_dim)) if readout == "first" else None
        self.layers = nn.ModuleList(
            _Layer(feature_dim, num_heads, dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(feature_dim)
        self.mean = MeanPooling()
        for parameter in (self.positions, self.token):
            if parameter is not None:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Pool frames (B, T, F) under mask bool (B, T), True = valid, to (B, F).

        A clip without a valid frame gives zeros with "mean", and with "first" an output of the
        token only. Raises ValueError for more than max_frames frames.
        """
        num_frames = frames.shape[1]
        if num_frames > len(self.positions):
            raise ValueError(
                f"the transformer pooling has positions for {len(self.positions)} frames, found"
                f" {num_frames}"
            )
        # Padding may hold infinity or NaN, which a weight of zero does not remove.
        # (B, T, F)
        hidden = frames.masked_fill(~mask[..., None], 0.0) + self.positions[:num_frames]
        if self.token is None:
            # A softmax over nothing is NaN in some kernels: a clip of padding attends to its zeros.
            attended = mask | ~mask.any(dim=1, keepdim=True)  # (B, T)
        else:
            # shape[0], not len(): an exported graph serves any number of clips.
            # (B, 1 + T, F)
            hidden = torch.cat([self.token.expand(hidden.shape[0], 1, -1), hidden], dim=1)
            attended = torch.cat([mask.new_ones(mask.shape[0], 1), mask], dim=1)  # (B, 1 + T)
        for layer in self.layers:
            hidden = layer(hidden, attended)
        return self.mean(self.norm(hidden), mask) if self.token is None else self.norm(hidden[:, 0])


class _Layer(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)), MLP of 4 F and GELU.

    As nn.TransformerEncoderLayer with norm_first. That class has a fast path without gradients,
    which differs from training for clips without a valid frame, and in dtype under autocast.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.attention_dropout = dropout
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * dim, dim)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Return (B, L, F) of hidden (B, L, F), attending to positions `attended` bool (B, L)."""
        query, key, value = (
            self.qkv(self.norm1(hidden))
            .unflatten(-1, (3, self.num_heads, -1))
            .permute(2, 0, 3, 1, 4)
        )  # each (B, H, L, F / H)
        rate = self.attention_dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attended[:, None, None], dropout_p=rate
        )  # (B, H, L, F / H)
        hidden = hidden + self.dropout(self.proj(mixed.transpose(1, 2).flatten(2)))
        return hidden + self.dropout(self.mlp(self.norm2(hidden)))
