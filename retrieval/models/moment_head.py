"""MomentHead: when in a clip a text is heard, learnt from true times.

Letters: P pairs of a text and a clip, T frames, L steps (averages of neighbouring frames), D = dim,
H = hidden, E numbers of evidence.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from retrieval.base.errors import UserError

THRESHOLD = 0.5  # until validation has chosen one


class MomentHead(nn.Module):
    """One logit per frame: whether the text is heard there.

    Frames are averaged to steps. A step's input is a(frame) * t(text) + g(text) + W evidence; the
    evidence is that of the pooling for text and frame (Pooling.evidence). Two temporal convolutions
    follow. Logits of frames are interpolated between the centres of the steps.

    Args:
        dim: D.
        num_evidence: E, of the pooling.
        frame_seconds: Length of a frame in s.
        hidden: H.
        kernel: Steps that a convolution sees; the second one sees every second step.
        step_seconds: Length of a step in s, rounded to whole frames, at least one.
        dropout: Dropout after each convolution, in training only.

    Raises:
        UserError: A size is impossible.
    """

    def __init__(
        self,
        dim: int,
        num_evidence: int,
        frame_seconds: float,
        hidden: int = 64,
        kernel: int = 9,
        step_seconds: float = 0.16,
        dropout: float = 0.1,
    ):
        super().__init__()
        if kernel % 2 == 0:
            raise UserError(f"moment_head.kernel must be odd, found {kernel}")
        self.frames_per_step = max(1, round(step_seconds / frame_seconds))
        self.norm_frames, self.norm_text = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.frames = nn.Linear(dim, hidden)
        self.scale, self.shift = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.evidence = nn.Linear(num_evidence, hidden)
        self.near = nn.Conv1d(hidden, hidden, kernel, padding=kernel // 2)
        self.far = nn.Conv1d(hidden, hidden, kernel, padding=kernel - 1, dilation=2)
        self.logit = nn.Linear(hidden, 1)
        self.dropout = dropout
        # Frames above this share of a recording's highest probability belong to a moment; chosen on
        # the validation split.
        self.register_buffer("threshold", torch.tensor(THRESHOLD))

    def forward(self, text: Tensor, frames: Tensor, mask: Tensor, evidence: Tensor) -> Tensor:
        """Return the logits of pairs.

        Args:
            text: (P, D), of encode_text.
            frames: (P, T, D), keys of the pooling.
            mask: bool (P, T), True = valid, valid frames first.
            evidence: (P, T, E), of the pooling.

        Returns:
            float32 (P, T); logits of padding mean nothing.
        """
        num_frames = frames.shape[1]
        steps, valid = self._steps(frames, mask)  # (P, L, D), (P, L)
        # dot products and sums of weights may be large: asinh is linear near 0, then a logarithm
        evidence, _ = self._steps(evidence.asinh(), mask)  # (P, L, E)
        text = self.norm_text(text)[:, None]  # (P, 1, D)
        hidden = self.frames(self.norm_frames(steps)) * self.scale(text) + self.shift(text)
        hidden = functional.gelu(hidden + self.evidence(evidence))  # (P, L, H)
        for convolution in (self.near, self.far):
            # zeros beyond the end, as before the beginning: padding changes nothing
            heard = hidden.masked_fill(~valid[..., None], 0.0).transpose(1, 2)  # (P, H, L)
            change = functional.gelu(convolution(heard)).transpose(1, 2)
            hidden = hidden + functional.dropout(change, self.dropout, self.training)
        logits = self.logit(hidden).squeeze(-1).float()  # (P, L)
        return self._interpolated(logits, valid.sum(dim=1), num_frames)

    def _steps(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Average the valid frames of each step: values (P, T, N) to (P, L, N), and mask (P, L)."""
        size = self.frames_per_step
        missing = -values.shape[1] % size
        values = functional.pad(values.masked_fill(~mask[..., None], 0.0), (0, 0, 0, missing))
        counts = functional.pad(mask, (0, missing)).unflatten(1, (-1, size)).sum(dim=2)  # (P, L)
        sums = values.unflatten(1, (-1, size)).sum(dim=2)  # (P, L, N)
        return sums / counts.clamp_min(1)[..., None], counts > 0

    def _interpolated(self, logits: Tensor, num_steps: Tensor, num_frames: int) -> Tensor:
        """Interpolate logits of steps (P, L), num_steps (P,) valid ones, to (P, num_frames)."""
        size = self.frames_per_step
        places = (torch.arange(num_frames, device=logits.device) + 0.5) / size - 0.5  # (T,)
        last = (num_steps - 1).clamp_min(0)[:, None]  # (P, 1)
        before = places.floor().long().clamp_min(0).expand(len(logits), -1)  # (P, T)
        share = (places - places.floor()).where(places > 0, 0.0)  # (T,)
        after = torch.minimum(before + 1, last)
        before = torch.minimum(before, last)
        return torch.lerp(
            logits.gather(1, before), logits.gather(1, after), share.expand_as(before)
        )
