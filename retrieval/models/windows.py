"""Cut clips into the encoder's windows, and say which frames of the joined windows are valid.

The window grid is that of a clip of full length (`clip_samples`, 30 s for Clotho), so that a clip's
frames do not depend on what else is in its batch. Letters: B clips, S samples, W windows, T frames.
"""

from dataclasses import dataclass

import torch
from torch import nn

MOST_WINDOWS = 100_000  # of a clip; a file could ask for any number


@dataclass(frozen=True)
class WindowGrid:
    """All in samples at the waveform's rate, but `frames_per_window`. A window is at most as long
    as a clip.
    """

    clip_samples: int
    window_samples: int
    hop_samples: int
    frames_per_window: int

    def __post_init__(self):
        if (
            self.hop_samples < 1
            or not 1 <= self.window_samples <= self.clip_samples
            or self.num_windows > MOST_WINDOWS
        ):
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
        """Windows of a clip of full length; the last may reach beyond it, into zeros (the reference
        leaves a rest shorter than a hop unheard).
        """
        return 1 - (self.window_samples - self.clip_samples) // self.hop_samples

    @property
    def num_frames(self) -> int:
        return self.num_windows * self.frames_per_window

    def num_valid_frames(self, lengths: torch.Tensor) -> torch.Tensor:
        """int64 (B,): the first ceil(length / span * T) frames of a clip with `length` valid
        samples, the windows spanning `span` samples.
        """
        span = (self.num_windows - 1) * self.hop_samples + self.window_samples
        return (lengths.clamp(max=self.clip_samples) * self.num_frames + span - 1) // span

    def split(self, waveform: torch.Tensor, num_windows: int) -> torch.Tensor:
        """(B, S) -> (B, num_windows, window_samples), zero-padded at the end where S is too
        short.
        """
        needed = (num_windows - 1) * self.hop_samples + self.window_samples
        if waveform.shape[1] < needed:
            waveform = nn.functional.pad(waveform, (0, needed - waveform.shape[1]))
        return waveform[:, :needed].unfold(1, self.window_samples, self.hop_samples)
