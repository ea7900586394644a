"""The two towers and the score as modules that torch.onnx can write.

No loop and no branch depends on the numbers in the inputs. The modules compute the same as
DualEncoder, but in a batch all clips get the windows of the longest: a short clip beside a long one
costs as much. Sizes of batches, clips, captions and frame sequences are free.

Letters: B clips, S samples, W windows, T frames, N captions, L tokens, D = dim.
"""

import copy
from typing import Any

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional

from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.pooling import Pooling
from retrieval.models.windows import resampled


class AudioTower(nn.Module):
    """DualEncoder.encode_audio: waveform (B, S), lengths (B,) -> frames (B, T, D), mask (B, T).

    Waveforms are float32, lengths int64, masks bool. S is that of the longest clip; samples after
    clip_seconds are ignored.
    """

    def __init__(self, model: DualEncoder):
        super().__init__()
        self.encoder, self.pooling = model.audio_encoder, model.pooling
        self.projection = model.audio_projection
        self.windows, self.sample_rate = model.windows, model.sample_rate
        self.resample: nn.Module = nn.Identity()
        if model.sample_rate != model.audio_encoder.sample_rate:
            # The filter as encode_audio makes it, in float32.
            self.resample = torchaudio.transforms.Resample(
                model.sample_rate, model.audio_encoder.sample_rate, dtype=torch.float32
            )

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        grid = self.windows
        num_windows = self._num_windows(waveform.shape[1])
        needed = (num_windows - 1) * grid.hop_samples + grid.window_samples
        starts = torch.arange(num_windows) * grid.hop_samples
        lengths = lengths.clamp(max=grid.clip_samples)
        padded = functional.pad(waveform, (0, needed))[:, :needed]
        # (B W, window_samples)
        windows = padded[:, starts[:, None] + torch.arange(grid.window_samples)].flatten(0, 1)
        encoded = self._encode(windows, waveform.shape[1], lengths, num_windows)
        num_valid = grid.num_valid_frames(lengths)  # (B,)
        num_frames = encoded.shape[1]  # of a window
        # (B, W); encode_audio leaves zeros where a window has no valid frame
        used = torch.arange(num_windows) * grid.frames_per_window < num_valid[:, None]
        features = encoded.unflatten(0, (waveform.shape[0], num_windows))
        features = features * used[..., None, None].to(encoded.dtype)
        features = features.flatten(1, 2)  # (B, T, feature_dim)
        mask = torch.arange(num_windows * num_frames) < num_valid[:, None]  # (B, T)
        if self.pooling.pools_projected:
            return self.pooling(self.projection(features), mask).unsqueeze(1), mask[:, :1]
        if not self.pooling.keeps_frames:
            features, mask = self.pooling(features, mask).unsqueeze(1), mask[:, :1]
        return self.projection(features), mask

    def _encode(
        self, windows: Tensor, num_samples: int, lengths: Tensor, num_windows: int
    ) -> Tensor:
        """Encode windows (B W, window_samples) to (B W, frames of a window, feature_dim).

        An encoder that takes lengths gets no more than the samples of the longest window.
        """
        grid, windows = self.windows, self.resample(windows)
        if not self.encoder.takes_lengths:
            return self.encoder(windows)
        longest = self._resampled(torch.sym_min(num_samples, grid.window_samples))
        valid = grid.window_lengths(lengths, num_windows).flatten()  # (B W,)
        # a window without sound is not used, but must not give NaN
        valid = self._resampled(valid).clamp_min(1)
        return self.encoder(windows[:, :longest], None, valid)

    def _resampled(self, num_samples: Any) -> Any:
        """Return the samples at the encoder's rate, of a number or a tensor of numbers."""
        return resampled(num_samples, self.sample_rate, self.encoder.sample_rate)

    def _num_windows(self, num_samples: int) -> int:
        """Count the windows with valid frames, as in DualEncoder.audio_features."""
        grid = self.windows
        if grid.num_windows == 1:
            return 1
        span = (grid.num_windows - 1) * grid.hop_samples + grid.window_samples
        num_parts = torch.sym_min(num_samples, grid.clip_samples) * grid.num_frames
        num_valid = (num_parts + span - 1) // span
        if grid.nearest:
            num_valid = torch.sym_max((2 * num_parts + span) // (2 * span), 1)
        return (num_valid + grid.frames_per_window - 1) // grid.frames_per_window


class TextTower(nn.Module):
    """DualEncoder.encode_text after its tokenizer: input_ids, attention_mask (N, L) -> text (N, D).

    The inputs are int64, padded on the right.
    """

    def __init__(self, model: DualEncoder):
        super().__init__()
        self.encoder, self.projection = model.text_encoder, model.text_projection

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.projection(self.encoder.encode_tokens(input_ids, attention_mask))


class Score(nn.Module):
    """DualEncoder.score: text (N, D), frames (B, T, D), mask bool (B, T) -> scores (N, B).

    TAP needs memory for (B, N, D) and (B, N, T). Its two linear maps before the softmax and its two
    after it are each one matrix here, since a graph is not trained.
    """

    @torch.no_grad()
    def __init__(self, pooling: Pooling):
        super().__init__()
        self.keeps_frames, self.directions = pooling.keeps_frames, pooling.directions
        if self.keeps_frames:
            names = "query_weight", "query_bias", "value_weight", "value_bias"
            maps = copy.deepcopy(pooling).double().folded_maps()
            self.norm = pooling.norm
            for name, folded in zip(names, maps, strict=True):
                self.register_buffer(name, folded.float().contiguous())

    def forward(self, text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
        direction = self.directions(text)  # (N, D)
        if not self.keeps_frames:
            return direction @ self.directions(frames[:, 0]).T
        keys = self.norm(frames)  # (B, T, D)
        queries = functional.linear(self.norm(text), self.query_weight, self.query_bias)  # (N, D)
        logits = queries @ keys.transpose(1, 2)  # (B, N, T)
        logits = logits.masked_fill(~mask[:, None], torch.finfo(logits.dtype).min)
        values = functional.linear(keys, self.value_weight)  # (B, T, D)
        pooled = self.norm(logits.softmax(dim=-1) @ values + self.value_bias)  # (B, N, D)
        return (direction * functional.normalize(pooled, dim=-1, eps=1e-12)).sum(dim=-1).T
