"""ATST-Frame: a transformer over the log-mel spectrogram, one frame every 40 ms.

Li, Shao, Li: Self-supervised Audio Teacher-Student Transformer for Both Clip-level and Frame-level
Tasks (2023), arXiv:2306.04186. Names of the parameters are those of the official checkpoints
(Audio-WestlakeU/audiossl), so that these load strictly.

Letters: W windows, S samples, C mel columns, T frames (patches of 4 columns), E = embed_dim.
"""

from pathlib import Path

import torch
import torchaudio.functional
from torch import Tensor, nn

from retrieval.base.errors import UserError
from retrieval.models.audio.encoder import AudioEncoder
from retrieval.models.audio.official import first_names, load_strictly, read_official

NUM_FFT = 1024  # samples, 64 ms; also the length of the Hann window
HOP = 160  # samples, 10 ms
PATCH_COLUMNS = 4
MAX_FRAMES = 250  # 10 s
TABLE_ROWS = MAX_FRAMES + 1  # row 0 of the position table belonged to a class token
LOWEST_DB, HIGHEST_DB = -79.6482, 50.6842  # mapped to -1 and 1
# Of the encoder's keys in official checkpoints; the first that is found counts.
PREFIXES = (
    "model.teacher.encoder.",  # self-supervised
    "encoder.encoder.frame_encoder.",  # distilled from a clip and a frame teacher, fine-tuned
    "encoder.encoder.",  # fine-tuned on AudioSet: atstframe_base_as2M.ckpt
)


class AtstFrame(AudioEncoder):
    """ATST-Frame of any size; the defaults are the base model, 85,419,264 parameters.

    Windows do not see each other: the 80 dB range of the mel counts from the maximum of each
    window, not of the batch.

    Args:
        embed_dim: Size of a frame.
        depth: Number of transformer blocks.
        num_heads: Attention heads; must divide embed_dim.
    """

    sample_rate = 16_000  # Hz
    num_mel_bins = 64

    def __init__(self, embed_dim: int = 768, depth: int = 12, num_heads: int = 12):
        super().__init__()
        if embed_dim % num_heads:
            raise UserError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        self.feature_dim = embed_dim
        # torchaudio inspects the values, which fails on the meta device
        with torch.device("cpu"):
            window = torch.hann_window(NUM_FFT)
            mel_bank = torchaudio.functional.melscale_fbanks(
                NUM_FFT // 2 + 1, 60.0, 7800.0, self.num_mel_bins, self.sample_rate
            )
        self.register_buffer("window", window, persistent=False)  # (1024,)
        self.register_buffer("mel_bank", mel_bank, persistent=False)  # (513, 64)
        # For self-supervised training only; kept so that official weights load strictly. Without
        # gradient, for which DistributedDataParallel would wait.
        self.mask_embed = nn.Parameter(torch.zeros(1, 1, embed_dim), requires_grad=False)
        self.pos_embed = nn.Parameter(torch.zeros(1, TABLE_ROWS, embed_dim))
        self.patch_embed = PatchEmbedding(self.num_mel_bins, embed_dim)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads) for _ in range(depth))
        self.norm_frame = nn.LayerNorm(embed_dim, eps=1e-6)
        for table in (self.mask_embed, self.pos_embed):
            nn.init.trunc_normal_(table, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def num_frames(self, num_samples: int) -> int:
        """Return the frames of a window of `num_samples`, one every 40 ms.

        Raises UserError for windows that are too short or longer than the position table.
        """
        num_frames = (num_samples // HOP + 1) // PATCH_COLUMNS
        if num_samples <= NUM_FFT // 2 or num_frames > MAX_FRAMES:
            most = (MAX_FRAMES + 1) * PATCH_COLUMNS * HOP - HOP - 1
            raise UserError(
                f"a window of {num_samples} samples ({num_samples / self.sample_rate:.3f} s at"
                f" {self.sample_rate} Hz) does not fit ATST-Frame, which takes {NUM_FFT // 2 + 1}"
                f" to {most} samples; set audio_encoder.window_seconds (and data.max_seconds, which"
                " bounds it) to 0.04 to 10"
            )
        return num_frames

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Return the log-mel spectrogram (W, 64, C) of waveform (W, S) at 16 kHz.

        -1 is -79.6 dB, 1 is 50.7 dB. It is computed in float32 also under autocast: a power
        spectrum exceeds the range of half precision.
        """
        # On a CPU one window at a time: its spectrogram stays in the cache, 2.4 times faster than
        # 48 windows at once. An exported graph serves any number of windows, so it has no loop.
        one_by_one = waveform.device.type == "cpu" and not torch.compiler.is_exporting()
        parts = waveform.split(1) if one_by_one else (waveform,)
        with torch.autocast(waveform.device.type, enabled=False):
            return torch.cat([self._log_mel(part.float()) for part in parts])

    def _log_mel(self, waveform: Tensor) -> Tensor:
        # centred, reflected at the ends
        spectrum = torch.stft(waveform, NUM_FFT, HOP, window=self.window, return_complex=True)
        # (W, 513, C)
        power = spectrum.real.square() + spectrum.imag.square()
        mel = (power.transpose(1, 2) @ self.mel_bank).transpose(1, 2)  # (W, 64, C)
        # The channel axis makes each window an item of its own: top_db counts from its maximum.
        decibel = torchaudio.functional.amplitude_to_DB(
            mel.unsqueeze(1), 10.0, amin=1e-10, db_multiplier=0.0, top_db=80.0
        ).squeeze(1)
        return (decibel.clamp(-50.0, 80.0) - LOWEST_DB) / (HIGHEST_DB - LOWEST_DB) * 2.0 - 1.0

    def encode_mel(self, log_mel: Tensor) -> Tensor:
        """Encode a spectrogram (W, 64, C) of log_mel to frames (W, T, E)."""
        x = self.patch_embed(log_mel)  # (W, T, E)
        x = x + self.pos_embed[:, 1 : x.shape[1] + 1]
        for block in self.blocks:
            x = block(x)
        return self.norm_frame(x)

    def repeated_blocks(self) -> nn.ModuleList:
        return self.blocks

    def load_official(self, path: str | Path) -> None:
        """Load an official checkpoint in any of its three layouts.

        Raises UserError, and changes nothing, if it does not fit.
        """
        state = read_official(path)
        prefixes = [prefix for prefix in PREFIXES if any(key.startswith(prefix) for key in state)]
        if not prefixes:
            raise UserError(
                f"{path} has no key that begins with {', '.join(PREFIXES)} (found"
                f" {first_names(list(state))}); use an official ATST-Frame checkpoint"
            )
        state = {
            key.removeprefix(prefixes[0]): value
            for key, value in state.items()
            if key.startswith(prefixes[0])
        }
        if "norm_frame.weight" not in state:  # the name in self-supervised checkpoints is "norm"
            state = {
                f"norm_frame.{key[5:]}" if key.startswith("norm.") else key: value
                for key, value in state.items()
            }
        # Heads and leftovers are ignored; additional blocks are another architecture.
        own = self.state_dict()
        state = {
            key: value
            for key, value in state.items()
            if key in own or key.startswith(("blocks.", "patch_embed."))
        }
        size = f"ATST-Frame with embed_dim {self.feature_dim}, depth {len(self.blocks)}"
        remedy = (
            "use an official frame checkpoint, or set audio_encoder.embed_dim and"
            " audio_encoder.depth to the checkpoint's"
        )
        load_strictly(self, state, path, size, remedy)


class PatchEmbedding(nn.Module):
    """Embed patches of all mel bins by 4 columns, flattened bin by bin; a rest is dropped."""

    def __init__(self, num_mel_bins: int, embed_dim: int):
        super().__init__()
        self.patch_embed = nn.Linear(num_mel_bins * PATCH_COLUMNS, embed_dim)

    def patches(self, log_mel: Tensor) -> Tensor:
        """Cut (W, 64, C) into (W, T, 256)."""
        return log_mel.unfold(2, PATCH_COLUMNS, PATCH_COLUMNS).transpose(1, 2).flatten(2)

    def forward(self, log_mel: Tensor) -> Tensor:
        return self.patch_embed(self.patches(log_mel))


class Block(nn.Module):
    """Pre-norm transformer block of a ViT on (W, T, E), without dropout."""

    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool = False):
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attn = Attention(embed_dim, num_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp = Mlp(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        # each (W, heads, T, E / heads)
        query, key, value = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, embed_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, 4 * embed_dim)
        self.fc2 = nn.Linear(4 * embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))
