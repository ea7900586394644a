"""Cut clips into windows for the audio encoder, and count the valid frames of each clip.

The grid of windows is that of a clip of full length (`clip_samples`, 30 s for Clotho), so that a
clip's frames do not depend on its batch. Letters: B clips, S samples, W windows, T frames.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torchaudio
from torch import nn

MOST_WINDOWS = 100_000  # of a clip; a config.json could ask for any number


def resampled(num_samples: Any, rate: int, new_rate: int) -> Any:
    """Return a number of samples, or a tensor of numbers, at another rate in Hz, rounded up."""
    # not -(-a // b): ONNX divides sizes towards zero
    return (num_samples * new_rate + rate - 1) // rate


def resample(windows: torch.Tensor, rate: int, new_rate: int) -> torch.Tensor:
    """Resample windows (..., S) in float32, also under autocast.

    In half precision the rounding noise, at -50 dB, would cover the quiet bins of the log-mel.
    TF32, cuDNN's default, is off: it rounds float32 to 10 bits.
    """
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with torch.autocast(windows.device.type, enabled=False), exact:
        return torchaudio.functional.resample(windows, rate, new_rate)


@dataclass(frozen=True)
class WindowGrid:
    """Windows of a clip of full length, in samples at the waveform's rate.

    Args:
        clip_samples: Of a clip of full length.
        window_samples: Of a window.
        hop_samples: From the start of one window to the next.
        frames_per_window: T of the audio encoder.
        nearest: Round the number of valid frames to the nearest (at least 1), not up.

    Raises:
        ValueError: The hop is below 1, a window is longer than a clip, or there are too many.
    """

    clip_samples: int
    window_samples: int
    hop_samples: int
    frames_per_window: int
    # not in the text that names frame caches: settings of the encoder decide it
    nearest: bool = field(default=False, repr=False)

    def __post_init__(self):
        fits = self.hop_samples >= 1 and 1 <= self.window_samples <= self.clip_samples
        if not fits or self.num_windows > MOST_WINDOWS:
            found = (
                f"windows of {self.window_samples} samples, one every {self.hop_samples}, of clips"
                f" of {self.clip_samples}"
            )
            raise ValueError(
                f"{found[:200]}: expected a hop of 1 sample or more, and at most {MOST_WINDOWS:,}"
                " windows"
            )

    @property
    def num_windows(self) -> int:
        """Windows of a clip of full length; the last may reach beyond it, into zeros.

        The reference ignores a rest that is shorter than a hop.
        """
        return 1 - (self.window_samples - self.clip_samples) // self.hop_samples

    @property
    def num_frames(self) -> int:
        """Frames of a clip of full length."""
        return self.num_windows * self.frames_per_window

    @property
    def frame_samples(self) -> float:
        """Length of a frame, in samples."""
        return self.window_samples / self.frames_per_window

    def frame_centres(self, num_frames: int) -> np.ndarray:
        """Return the centres of the first frames of a clip, float64 (num_frames,), in samples."""
        windows, places = np.divmod(np.arange(num_frames), self.frames_per_window)
        return windows * self.hop_samples + (places + 0.5) * self.frame_samples

    def num_valid_frames(self, lengths: torch.Tensor) -> torch.Tensor:
        """Return the valid frames int64 (B,) of clips with `lengths` int64 (B,) valid samples.

        They are the first ceil(length / span * T), where all windows together span `span` samples.
        """
        span = (self.num_windows - 1) * self.hop_samples + self.window_samples
        num_parts = lengths.clamp(max=self.clip_samples) * self.num_frames  # in units of 1 / span
        if self.nearest:
            return ((2 * num_parts + span) // (2 * span)).clamp(min=1)
        return (num_parts + span - 1) // span

    def window_lengths(self, lengths: torch.Tensor, num_windows: int) -> torch.Tensor:
        """Return the valid samples int64 (B, num_windows) of windows, for clip lengths (B,)."""
        starts = torch.arange(num_windows) * self.hop_samples
        return (lengths[:, None] - starts).clamp(min=0, max=self.window_samples)

    def split(self, waveform: torch.Tensor, num_windows: int) -> torch.Tensor:
        """Cut waveform (B, S), zero-padded if short, to (B, num_windows, window_samples)."""
        needed = (num_windows - 1) * self.hop_samples + self.window_samples
        if waveform.shape[1] < needed:
            waveform = nn.functional.pad(waveform, (0, needed - waveform.shape[1]))
        return waveform[:, :needed].unfold(1, self.window_samples, self.hop_samples)
