"""The two towers and the score as modules that torch.onnx can write.

No loop and no branch depends on the numbers in the inputs. The modules compute the same as
DualEncoder, but in a batch all clips get the windows of the longest: a short clip beside a long one
costs as much. Sizes of batches, clips, captions and frame sequences are free.

Letters: B clips, S samples, W windows, T frames, N captions, L tokens, D = dim.
"""

import copy

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional

from retrieval.base.errors import UserError
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.pooling import Pooling


class AudioTower(nn.Module):
    """DualEncoder.encode_audio: waveform (B, S), lengths (B,) -> frames (B, T, D), mask (B, T).

    Waveforms are float32, lengths int64, masks bool. S is that of the longest clip; samples after
    clip_seconds are ignored. Raises UserError for an encoder that cannot be a graph.
    """

    def __init__(self, model: DualEncoder):
        super().__init__()
        self.encoder, self.pooling = model.audio_encoder, model.pooling
        self.projection = model.audio_projection
        if not model.audio_encoder.is_exportable:
            kind = model.architecture["audio_encoder"]["name"]
            raise UserError(
                f"the audio encoder ({kind}) computes its spectrogram outside of PyTorch, so that"
                " it cannot be written as ONNX; take atst_frame, another encoder of this project,"
                " or of huggingface one that takes a waveform, such as wavlm"
            )
        self.windows = model.windows
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
        padded = functional.pad(waveform, (0, needed))[:, :needed]
        # (B W, window_samples)
        windows = padded[:, starts[:, None] + torch.arange(grid.window_samples)].flatten(0, 1)
        encoded = self.encoder(self.resample(windows))  # (B W, frames_per_window, feature_dim)
        num_valid = grid.num_valid_frames(lengths)  # (B,)
        first_frames = torch.arange(num_windows) * grid.frames_per_window
        # (B, W); encode_audio leaves zeros where a window has no valid frame
        used = first_frames < num_valid[:, None]
        features = encoded.unflatten(0, (waveform.shape[0], num_windows))
        features = features * used[..., None, None].to(encoded.dtype)
        features = features.flatten(1, 2)  # (B, T, feature_dim)
        mask = torch.arange(num_windows * grid.frames_per_window) < num_valid[:, None]  # (B, T)
        if not self.pooling.keeps_frames:
            features, mask = self.pooling(features, mask).unsqueeze(1), mask[:, :1]
        return self.projection(features), mask

    def _num_windows(self, num_samples: int) -> int:
        """Count the windows with valid frames, as in DualEncoder.audio_features."""
        grid = self.windows
        if grid.num_windows == 1:
            return 1
        span = (grid.num_windows - 1) * grid.hop_samples + grid.window_samples
        num_heard = torch.sym_min(num_samples, grid.clip_samples)
        num_valid = (num_heard * grid.num_frames + span - 1) // span
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
        self.keeps_frames = pooling.keeps_frames
        if self.keeps_frames:
            names = "query_weight", "query_bias", "value_weight", "value_bias"
            maps = copy.deepcopy(pooling).double().folded_maps()
            self.norm = pooling.norm
            for name, folded in zip(names, maps, strict=True):
                self.register_buffer(name, folded.float().contiguous())

    def forward(self, text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
        direction = functional.normalize(text, eps=1e-12)  # (N, D)
        if not self.keeps_frames:
            return direction @ functional.normalize(frames[:, 0], eps=1e-12).T
        keys = self.norm(frames)  # (B, T, D)
        queries = functional.linear(self.norm(text), self.query_weight, self.query_bias)  # (N, D)
        logits = queries @ keys.transpose(1, 2)  # (B, N, T)
        logits = logits.masked_fill(~mask[:, None], torch.finfo(logits.dtype).min)
        values = functional.linear(keys, self.value_weight)  # (B, T, D)
        pooled = self.norm(logits.softmax(dim=-1) @ values + self.value_bias)  # (B, N, D)
        return (direction * functional.normalize(pooled, dim=-1, eps=1e-12)).sum(dim=-1).T
