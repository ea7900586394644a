"""The log-mel spectrogram of PaSST and EfficientAT: 128 Kaldi mels, 100 columns a second.

Koutini, Schlüter, Eghbal-zadeh, Widmer: Efficient Training of Audio Transformers with Patchout
(Interspeech 2022), arXiv:2110.05069.

Letters: W windows, S samples, C mel columns.
"""

import torch
import torchaudio.compliance.kaldi
from torch import Tensor, nn

SAMPLE_RATE = 32_000  # Hz
NUM_MEL_BINS = 128
NUM_FFT = 1024  # samples, 32 ms
WINDOW = 800  # samples, 25 ms
HOP = 320  # samples, 10 ms
# pre-emphasis takes one, and the reflected ends are as long as half an FFT
MIN_SAMPLES = NUM_FFT // 2 + 2
PRE_EMPHASIS = 0.97
LOWEST_HZ, HIGHEST_HZ = 0, 15_000


class KaldiMel(nn.Module):
    """Log-mel spectrogram (W, 128, C) of waveform (W, S) at 32 kHz; silence is -1.4.

    C is num_columns(S), and S at least MIN_SAMPLES.

    Args:
        jitter: In training, draw the range of the mel bank at each call, for all windows: the
            lowest frequency from 0..9 Hz, the highest from 14001..16000 Hz.
    """

    def __init__(self, jitter: bool):
        super().__init__()
        self.jitter = jitter
        with torch.device("cpu"):  # values also where the model is built on the meta device
            window = torch.hann_window(WINDOW, periodic=False)
            mel_bank = _mel_bank(LOWEST_HZ, HIGHEST_HZ)
        self.register_buffer("window", window, persistent=False)  # (800,)
        self.register_buffer("mel_bank", mel_bank, persistent=False)  # (513, 128)

    def forward(self, waveform: Tensor) -> Tensor:
        mel_bank = self._jittered_bank() if self.jitter and self.training else self.mel_bank
        # On a CPU one window at a time: its spectrogram stays in the cache, 3.3 times faster than
        # 16 windows at once. An exported graph serves any number of windows, so it has no loop.
        one_by_one = waveform.device.type == "cpu" and not torch.compiler.is_exporting()
        parts = waveform.split(1) if one_by_one else (waveform,)
        # float32 also under autocast: a power spectrum exceeds the range of half precision
        with torch.autocast(waveform.device.type, enabled=False):
            return torch.cat([self._log_mel(part.float(), mel_bank) for part in parts])

    def _log_mel(self, waveform: Tensor, mel_bank: Tensor) -> Tensor:
        emphasised = waveform[:, 1:] - PRE_EMPHASIS * waveform[:, :-1]  # (W, S - 1)
        spectrum = torch.stft(
            emphasised, NUM_FFT, HOP, WINDOW, window=self.window, return_complex=True
        )  # (W, 513, C), ends reflected
        power = spectrum.real.square() + spectrum.imag.square()
        mel = (power.transpose(1, 2) @ mel_bank).transpose(1, 2)  # (W, 128, C)
        return ((mel + 1e-5).log() + 4.5) / 5.0

    def _jittered_bank(self) -> Tensor:
        lowest = torch.randint(LOWEST_HZ, LOWEST_HZ + 10, (), device="cpu").item()
        highest = torch.randint(HIGHEST_HZ - 999, HIGHEST_HZ + 1001, (), device="cpu").item()
        # torchaudio takes no device; made where it is used, nothing waits for a copy
        with self.mel_bank.device:
            return _mel_bank(lowest, highest)


def num_columns(num_samples: int) -> int:
    """Return the columns of the spectrogram of `num_samples`: 1000 for 10 s."""
    return (num_samples - 1) // HOP + 1


def _mel_bank(lowest: float, highest: float) -> Tensor:
    """Return (513, 128): triangles of equal height on the mel scale, `lowest` to `highest` Hz."""
    bank, _ = torchaudio.compliance.kaldi.get_mel_banks(
        NUM_MEL_BINS, NUM_FFT, SAMPLE_RATE, lowest, highest, 100.0, -500.0, 1.0
    )
    # Kaldi leaves the last frequency, 16 kHz, out
    return nn.functional.pad(bank, (0, 1)).T.contiguous()
