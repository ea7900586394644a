"""PaSST: a transformer over overlapping 16 x 16 patches of the log-mel spectrogram.

Koutini, Schlüter, Eghbal-zadeh, Widmer: Efficient Training of Audio Transformers with Patchout
(Interspeech 2022), arXiv:2110.05069. Names of the parameters are those of the official weights
(releases of kkoutini/PaSST), so that these load strictly.

Letters: W windows, S samples, C mel columns, R rows and T columns of the patch grid, N tokens, E =
embed_dim.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from retrieval.base.errors import UserError
from retrieval.models.audio.atst import Block
from retrieval.models.audio.encoder import AudioEncoder
from retrieval.models.audio.kaldi_mel import HOP, NUM_MEL_BINS, SAMPLE_RATE, KaldiMel, num_columns
from retrieval.models.audio.official import load_strictly, read_official

PATCH = 16  # mel bins and mel columns
NUM_CLASSES = 527  # of AudioSet
PREFIX = "net."  # of keys in checkpoints of a training run; the released files have none


class Passt(AudioEncoder):
    """PaSST with patches 16 columns apart, 86,122,270 parameters.

    Weights: passt-s-f128-p16-s16-ap.468.pt.

    Patchout keeps the number of frames: a column that was left out takes the frame of the last kept
    column before it, or of the first kept one. So frame t belongs to time t in training, too, and
    masks and positions mean the same as in evaluation. It is not an average of both neighbours,
    because padding, which follows the sound, must not get into valid frames.

    Args:
        embed_dim: Size of a frame; other values fit no official weights.
        depth: Number of blocks; other values fit no official weights.
        num_heads: Attention heads; must divide embed_dim.
        sequence: One frame per column of patches (the mean over its rows); otherwise one per window
            (the mean of class and distillation token).
        patchout_time: Columns of the patch grid that training leaves out, drawn at each call for
            all windows together.
        patchout_frequency: Rows that training leaves out, in the same way.
        mel_jitter: See KaldiMel.

    Raises:
        UserError: Sizes do not fit together.
    """

    sample_rate = SAMPLE_RATE
    num_mel_bins = NUM_MEL_BINS
    name = "passt"  # in AUDIO_ENCODERS
    stride = 16  # between patches, in mel bins and in mel columns
    table_frames = 62  # of the time position table, 10 s
    official_depth = 12

    def __init__(
        self,
        embed_dim: int = 768,
        depth: int | None = None,
        num_heads: int = 12,
        sequence: bool = True,
        patchout_time: int = 15,
        patchout_frequency: int = 2,
        mel_jitter: bool = True,
    ):
        super().__init__()
        if embed_dim % num_heads:
            raise UserError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        num_rows = (NUM_MEL_BINS - PATCH) // self.stride + 1
        if patchout_frequency >= num_rows:
            raise UserError(
                f"audio_encoder.patchout_frequency={patchout_frequency} leaves nothing of"
                f" {num_rows} rows of patches; set it lower"
            )
        self.feature_dim = embed_dim
        self.sequence = sequence
        self.patchout_time, self.patchout_frequency = patchout_time, patchout_frequency
        self.mel = KaldiMel(mel_jitter)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.new_pos_embed = nn.Parameter(torch.zeros(1, 2, embed_dim))  # of these two tokens
        self.freq_new_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, num_rows, 1))
        self.time_new_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, 1, self.table_frames))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(1, embed_dim, PATCH, self.stride)})
        depth = self.official_depth if depth is None else depth
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, qkv_bias=True) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        # Not used; kept so that official weights load strictly. Without gradient, for which
        # DistributedDataParallel would wait.
        self.head = nn.Sequential(
            nn.LayerNorm(embed_dim), nn.Linear(embed_dim, NUM_CLASSES)
        ).requires_grad_(False)
        self.head_dist = nn.Linear(embed_dim, NUM_CLASSES).requires_grad_(False)
        tables = self.new_pos_embed, self.freq_new_pos_embed, self.time_new_pos_embed
        for table in (self.cls_token, self.dist_token, *tables):
            nn.init.trunc_normal_(table, std=0.02)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def num_frames(self, num_samples: int) -> int:
        """Return T of a window of `num_samples`, 1 without `sequence`.

        Raises UserError for windows that are too short, for a patch or for patchout, or longer than
        the position table.
        """
        num_patches = self._num_patches(num_columns(num_samples))
        seconds = (
            f"a window of {num_samples} samples ({num_samples / self.sample_rate:.3f} s at"
            f" {self.sample_rate} Hz)"
        )
        if not 1 <= num_patches <= self.table_frames:
            least, most = (PATCH - 1) * HOP + 1, (PATCH + self.table_frames * self.stride - 1) * HOP
            raise UserError(
                f"{seconds} does not fit {self.name}, which takes {least} to {most} samples; set"
                " audio_encoder.window_seconds (and data.max_seconds, which bounds it) to 0.16 to"
                f" {most // self.sample_rate}"
            )
        if self.patchout_time >= num_patches:
            raise UserError(
                f"audio_encoder.patchout_time={self.patchout_time} leaves nothing of {seconds},"
                f" {num_patches} columns of patches; set it below {num_patches}, or"
                " audio_encoder.window_seconds higher"
            )
        return num_patches if self.sequence else 1

    def _num_patches(self, columns: int) -> int:
        return (columns - PATCH) // self.stride + 1

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Return the log-mel spectrogram float32 (W, 128, C) of waveform (W, S) at 32 kHz."""
        return self.mel(waveform)

    def encode_mel(self, log_mel: Tensor) -> Tensor:
        """Encode a spectrogram (W, 128, C) of log_mel to (W, T, E), or (W, 1, E)."""
        grid = self.patch_embed["proj"](log_mel.unsqueeze(1))  # (W, E, R, T)
        num_frames = grid.shape[3]
        # Windows shorter than the table take its first positions, in training a random part.
        start = 0
        if self.training:
            start = torch.randint(self.table_frames - num_frames + 1, (), device="cpu").item()
        times = self.time_new_pos_embed[..., start : start + num_frames]
        grid = grid + self.freq_new_pos_embed + times
        if self.training:
            rows = _kept(grid.shape[2], self.patchout_frequency, grid)
            columns = _kept(num_frames, self.patchout_time, grid)
            grid = grid[:, :, rows][..., columns]
        num_windows, _, num_rows, _ = grid.shape
        # (1, 2, E)
        special = torch.cat([self.cls_token, self.dist_token], dim=1) + self.new_pos_embed
        # (W, N, E), row by row
        x = torch.cat([special.expand(num_windows, -1, -1), grid.flatten(2).transpose(1, 2)], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if not self.sequence:
            return x[:, :2].mean(dim=1, keepdim=True)
        frames = x[:, 2:].unflatten(1, (num_rows, -1)).mean(dim=1)
        return frames[:, _last_kept(columns, num_frames)] if self.training else frames

    def repeated_blocks(self) -> nn.ModuleList:
        return self.blocks

    def load_official(self, path: str | Path) -> None:
        """Load official weights, or the keys "net.*" of a training run's checkpoint.

        Raises UserError, and changes nothing, if they do not fit.
        """
        state = read_official(path)
        if any(key.startswith(PREFIX) for key in state):
            state = {
                key.removeprefix(PREFIX): value
                for key, value in state.items()
                if key.startswith(PREFIX)
            }
        self._check_variant(state, path)
        size = f"{self.name} with embed_dim {self.feature_dim}, depth {len(self.blocks)}"
        remedy = (
            "use its official weights, or set audio_encoder.embed_dim and audio_encoder.depth to"
            " the checkpoint's"
        )
        load_strictly(self, state, path, size, remedy)

    def _check_variant(self, state: dict[str, Tensor], path: str | Path) -> None:
        """Raise UserError with the setting to change if the weights are of another variant."""
        table = state.get("time_new_pos_embed")
        if table is None or table.dim() != 4:
            return
        frames = table.shape[3]
        depth = sum(key.startswith("blocks.") and key.endswith(".norm1.weight") for key in state)
        if (frames, depth) == (self.table_frames, len(self.blocks)):
            return
        same_table = [variant for variant in VARIANTS if variant.table_frames == frames]
        fitting = [
            variant for variant in same_table if variant.official_depth == depth
        ] or same_table
        if type(self) in fitting:
            return
        found = (
            f"{path} has a position table of {frames} frames and depth {depth}; {self.name} has"
            f" {self.table_frames} and {len(self.blocks)}"
        )
        if not fitting:
            raise UserError(
                f"{found}, and no variant here has such a table: use official weights of"
                f" {', '.join(v.name for v in VARIANTS)}"
            )
        raise UserError(
            f"{found}: set audio_encoder.name={' or '.join(variant.name for variant in fitting)}"
        )


class PasstS(Passt):
    """Patches 10 columns apart; 86,153,758 parameters. Weights: passt-s-kd-ap.486.pt."""

    name = "passt_s"
    stride = 10
    table_frames = 99


class Passt20(PasstS):
    """PasstS for windows of up to 20 s; 86,231,326 parameters.

    Weights: passt-s-f128-20sec-p16-s10-ap.474-swa.pt.
    """

    name = "passt_20"
    table_frames = 200


class PasstL(PasstS):
    """PasstS with 7 blocks; 50,714,398 parameters. Weights: passt-l-kd-ap.47.pt."""

    name = "passt_l"
    official_depth = 7


VARIANTS = (Passt, PasstS, Passt20, PasstL)


def _kept(number: int, num_dropped: int, like: Tensor) -> Tensor:
    """Draw `number - num_dropped` of the indices 0..number-1, in order, on the device of `like`."""
    return torch.randperm(number, device="cpu")[num_dropped:].sort().values.to(like.device)


def _last_kept(kept: Tensor, number: int) -> Tensor:
    """Return (number,): for each index the place in `kept` of the last kept one up to it, or 0."""
    indices = torch.arange(number, device=kept.device)
    return torch.searchsorted(kept, indices, right=True).sub(1).clamp(min=0)
