"""The interface of an audio encoder: the rest of the project uses nothing else of it.

Letters: W windows, S samples, M mel bands, C mel columns, T frames.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from retrieval.models.blocks import checkpoint_block


class AudioEncoder(nn.Module):
    """Windows of sound in, frames out. A subclass is one file and one line in AUDIO_ENCODERS.

    The arguments of its constructor are settings (retrieval.config.AudioEncoderConfig), found by
    name. It has the attributes below, `num_frames`, `log_mel`, `encode_mel` and `load_official`;
    the other methods fit most encoders.

    Attributes:
        sample_rate: Of the waveform that it takes, in Hz.
        feature_dim: Size of a frame.
        num_mel_bins: Bands of its spectrogram; 0 if it takes the waveform itself.
        takes_lengths: True if `forward` has a third argument, the valid samples (W,) of each
            window; T may then be that of the longest window.
        rounds_frames: True if the number of valid frames is rounded to the nearest (at least 1),
            False if up.
        pools_windows: True if the frames of a window are one vector, once or repeated.
        takes_any_rate: True if a model with it may score sounds of another sample rate than in
            training; they are resampled.
    """

    sample_rate: int
    feature_dim: int
    num_mel_bins: int
    takes_lengths = False
    rounds_frames = False
    pools_windows = False
    takes_any_rate = False

    @classmethod
    def constructor_arguments(
        cls, checkpoint: str | None, settings: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the constructor's arguments for the settings that a configuration gives."""
        return settings

    def num_frames(self, num_samples: int) -> int:
        """Return T of a window of `num_samples`; raise UserError if it is too short or long."""
        raise NotImplementedError

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Return the log-mel spectrogram (W, M, C) of waveform (W, S), also to look at."""
        raise NotImplementedError

    def encode_mel(self, log_mel: Tensor) -> Tensor:
        """Return frames (W, T, feature_dim) of a spectrogram (W, M, C) that log_mel gave."""
        raise NotImplementedError

    def forward(
        self, waveform: Tensor, augment: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Encode windows.

        Args:
            waveform: (W, S) at `sample_rate`, in [-1, 1].
            augment: Changes the log-mel spectrogram and keeps its shape.

        Returns:
            Frames (W, T, feature_dim), T = num_frames(S).

        Raises:
            UserError: The window is too short or too long.
        """
        self.num_frames(waveform.shape[-1])
        log_mel = self.log_mel(waveform)
        return self.encode_mel(log_mel if augment is None else augment(log_mel))

    def load_official(self, path: str | Path) -> None:
        """Load published weights. Raises UserError, and changes nothing, if they do not fit."""
        raise NotImplementedError

    def repeated_blocks(self) -> Sequence[nn.Module]:
        """Return its equal transformer blocks of feature_dim channels, or nothing."""
        return ()

    def checkpoint_activations(self) -> None:
        """Keep only the inputs of blocks for the backward pass, which computes the rest again."""
        for block in self.repeated_blocks():
            checkpoint_block(block)

    def compile_blocks(self) -> None:
        """Call torch.compile for each repeated block: one compilation serves equal blocks."""
        for block in self.repeated_blocks():
            block.compile(dynamic=True)
