"""EfficientAT: a MobileNetV3 over the log-mel spectrogram, distilled from PaSST.

Schmid, Koutini, Widmer: Efficient Large-Scale Audio Tagging via Transformer-to-CNN Knowledge
Distillation (ICASSP 2023), arXiv:2211.04772; Howard et al.: Searching for MobileNetV3 (2019),
arXiv:1905.02244, table 1. Names of the parameters are those of the official weights (releases of
fschmid56/EfficientAT), so that these load strictly.

Letters: W windows, S samples, C mel columns, R rows and T columns of the last feature map, F =
feature_dim.
"""

from pathlib import Path

from torch import Tensor, nn

from retrieval.base.errors import UserError
from retrieval.models.audio.encoder import AudioEncoder
from retrieval.models.audio.kaldi_mel import (
    MIN_SAMPLES,
    NUM_MEL_BINS,
    SAMPLE_RATE,
    KaldiMel,
    num_columns,
)
from retrieval.models.audio.official import load_strictly, read_official
from retrieval.models.blocks import checkpoint_block

NUM_CLASSES = 527  # of AudioSet
# MobileNetV3-Large at width 1: kernel, expanded and output channels, squeeze and excitation,
# activation, stride
BLOCKS = (
    (3, 16, 16, False, nn.ReLU, 1),
    (3, 64, 24, False, nn.ReLU, 2),
    (3, 72, 24, False, nn.ReLU, 1),
    (5, 72, 40, True, nn.ReLU, 2),
    (5, 120, 40, True, nn.ReLU, 1),
    (5, 120, 40, True, nn.ReLU, 1),
    (3, 240, 80, False, nn.Hardswish, 2),
    (3, 200, 80, False, nn.Hardswish, 1),
    (3, 184, 80, False, nn.Hardswish, 1),
    (3, 184, 80, False, nn.Hardswish, 1),
    (3, 480, 112, True, nn.Hardswish, 1),
    (3, 672, 112, True, nn.Hardswish, 1),
    (5, 672, 160, True, nn.Hardswish, 2),
    (5, 960, 160, True, nn.Hardswish, 1),
    (5, 960, 160, True, nn.Hardswish, 1),
)
STEM, LAST_EXPANSION, HIDDEN = 16, 6, 1280
NUM_HALVINGS = 5  # of rows and columns
MAX_SECONDS = 600  # of a window; the network itself has no limit


class EfficientAt(AudioEncoder):
    """MobileNetV3 at any width; 4 is mn40_as_ext, 68,427,303 parameters.

    Batch normalisation keeps its running statistics in training, too, and learns only scale and
    shift: the statistics of AudioSet are better than those of a few windows, windows do not see
    each other, and several processes compute the same as one. With random weights the statistics
    stay 0 and 1 and normalise nothing: use official weights if there are any.

    Args:
        width: Factor on all numbers of channels.
        sequence: One frame per column of the feature map, 0.32 s (the mean over its rows);
            otherwise one per window (the mean over all of it).
        mel_jitter: See KaldiMel.
    """

    sample_rate = SAMPLE_RATE
    num_mel_bins = NUM_MEL_BINS

    def __init__(self, width: float = 4.0, sequence: bool = True, mel_jitter: bool = True):
        super().__init__()
        self.width, self.sequence = width, sequence
        self.mel = KaldiMel(mel_jitter)
        num_in = _channels(STEM * width)
        layers: list[nn.Module] = [_convolution(1, num_in, 3, stride=2, activation=nn.Hardswish)]
        for kernel, expanded, num_out, excite, activation, stride in BLOCKS:
            expanded, num_out = _channels(expanded * width), _channels(num_out * width)
            layers.append(_Block(num_in, expanded, num_out, kernel, stride, excite, activation))
            num_in = num_out
        self.feature_dim = LAST_EXPANSION * num_in
        layers.append(_convolution(num_in, self.feature_dim, 1, activation=nn.Hardswish))
        self.features = nn.Sequential(*layers)
        hidden = _channels(HIDDEN * width)
        # Not used; kept so that official weights load strictly. Without gradient, for which
        # DistributedDataParallel would wait.
        first, last = nn.Linear(self.feature_dim, hidden), nn.Linear(hidden, NUM_CLASSES)
        head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), first, nn.Hardswish(), nn.Dropout(), last
        )
        self.classifier = head.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # fan_in keeps the scale from layer to layer, since nothing normalises. With
                # fan_out, which counts all channels for depthwise convolutions, outputs were 1e-9.
                nn.init.kaiming_normal_(module.weight, mode="fan_in")

    def train(self, mode: bool = True) -> "EfficientAt":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def num_frames(self, num_samples: int) -> int:
        """Return T of a window of `num_samples`, 1 without `sequence`.

        Raises UserError for windows that are too short or too long.
        """
        if not MIN_SAMPLES <= num_samples <= MAX_SECONDS * self.sample_rate:
            raise UserError(
                f"a window of {num_samples} samples ({num_samples / self.sample_rate:.3f} s at"
                f" {self.sample_rate} Hz) does not fit EfficientAT; set"
                " audio_encoder.window_seconds (and data.max_seconds, which bounds it) to 0.02 to"
                f" {MAX_SECONDS}"
            )
        return -(-num_columns(num_samples) // 2**NUM_HALVINGS) if self.sequence else 1

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Return the log-mel spectrogram float32 (W, 128, C) of waveform (W, S) at 32 kHz."""
        return self.mel(waveform)

    def encode_mel(self, log_mel: Tensor) -> Tensor:
        """Encode a spectrogram (W, 128, C) of log_mel to (W, T, F), or (W, 1, F)."""
        # (W, F, R, T) -> (W, T, F)
        frames = self.features(log_mel.unsqueeze(1)).mean(dim=2).transpose(1, 2)
        return frames if self.sequence else frames.mean(dim=1, keepdim=True)

    def checkpoint_activations(self) -> None:
        # not repeated_blocks(): they differ in shape, so one compilation would not serve them
        for block in self.features:
            checkpoint_block(block)

    def load_official(self, path: str | Path) -> None:
        """Load official weights, a plain state dict.

        Raises UserError, and changes nothing, if they do not fit.
        """
        state = read_official(path)
        last = state.get("features.16.0.weight")
        if last is not None and last.ndim == 4 and len(last) != self.feature_dim:
            found = len(last) / (LAST_EXPANSION * BLOCKS[-1][2])
            raise UserError(
                f"{path} is of width {found:g}, the encoder of width {self.width:g}; set"
                f" audio_encoder.width={found:g}"
            )
        load_strictly(
            self,
            state,
            path,
            f"EfficientAT with width {self.width:g}",
            "use its official weights, or set audio_encoder.width",
        )


class _Block(nn.Module):
    """Expansion, depthwise convolution, excitation, projection; residual if shapes allow."""

    def __init__(
        self,
        num_in: int,
        expanded: int,
        num_out: int,
        kernel: int,
        stride: int,
        excite: bool,
        activation: type[nn.Module],
    ):
        super().__init__()
        layers = []
        if expanded != num_in:
            layers.append(_convolution(num_in, expanded, 1, activation=activation))
        layers.append(
            _convolution(expanded, expanded, kernel, stride, groups=expanded, activation=activation)
        )
        if excite:
            layers.append(_Excitation(expanded))
        layers.append(_convolution(expanded, num_out, 1, activation=None))
        self.block = nn.Sequential(*layers)
        self.is_residual = stride == 1 and num_in == num_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.is_residual else self.block(x)


class _Excitation(nn.Module):
    """Squeeze and excitation over the channels, in a list as the official networks have it."""

    def __init__(self, num_channels: int):
        super().__init__()
        squeezed = _channels(num_channels // 4)
        layer = nn.ModuleDict(
            {"fc1": nn.Linear(num_channels, squeezed), "fc2": nn.Linear(squeezed, num_channels)}
        )
        self.conc_se_layers = nn.ModuleList([layer])

    def forward(self, x: Tensor) -> Tensor:
        layer = self.conc_se_layers[0]
        scale = layer["fc2"](layer["fc1"](x.mean(dim=(2, 3))).relu()).sigmoid()  # (W, channels)
        return x * scale[..., None, None]


def _convolution(
    num_in: int,
    num_out: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = None,
) -> nn.Sequential:
    layers = [
        nn.Conv2d(num_in, num_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(num_out, eps=1e-3),
    ]
    return nn.Sequential(*layers, *([activation()] if activation else []))


def _channels(wanted: float) -> int:
    """Round to a multiple of 8, but down by a tenth at most (MobileNet's rule)."""
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8
