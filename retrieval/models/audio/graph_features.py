"""Feature extractors of transformers in PyTorch, batched and without a loop, for ONNX graphs.

transformers computes them in numpy or window by window. tests/models/audio/test_graph_features.py
compares the numbers.

Letters: W windows, S samples, M mel bands, C columns.
"""

import torch
import torchaudio.compliance.kaldi
from torch import Tensor
from torch.nn import functional
from transformers import ASTFeatureExtractor, ClapFeatureExtractor, WhisperFeatureExtractor


def clap_features(windows: Tensor, lengths: Tensor, extractor: ClapFeatureExtractor) -> Tensor:
    """Return the log-mel spectrogram (W, M, C) in dB of ClapFeatureExtractor.

    In float64, as the extractor: in float32 a loud tone would cover silent bands with noise.

    Args:
        windows: (W, S), at most nb_max_samples.
        lengths: Valid samples int64 (W,), at least 1; the extractor repeats these, or adds zeros.
        extractor: Gives the sizes.
    """
    total, repeated = extractor.nb_max_samples, lengths[:, None]
    times = torch.arange(total)
    if extractor.padding == "repeat":
        filled = torch.ones_like(times, dtype=torch.bool)
    elif extractor.padding == "repeatpad":  # whole repetitions
        filled = (times // repeated + 1) * repeated <= total
    else:
        filled = times < repeated
    sound = windows.gather(1, times % repeated) * filled  # (W, nb_max_samples)
    bank = extractor.mel_filters
    if extractor.truncation != "fusion":
        bank = extractor.mel_filters_slaney
    size = extractor.fft_window_size
    power = _power(sound.double(), size, extractor.hop_length)  # (W, size // 2 + 1, C)
    mel = torch.from_numpy(bank.T) @ power
    return (10.0 * mel.clamp_min(1e-10).log10()).float()


def whisper_features(windows: Tensor, extractor: WhisperFeatureExtractor) -> Tensor:
    """Return the log-mel spectrogram (W, M, C) of WhisperFeatureExtractor, of windows (W, S)."""
    sound = functional.pad(windows, (0, extractor.n_samples - windows.shape[1]))
    power = _power(sound, extractor.n_fft, extractor.hop_length)[..., :-1]
    mel = torch.from_numpy(extractor.mel_filters.T).float() @ power
    levels = mel.clamp_min(1e-10).log10()  # (W, M, C)
    return (torch.maximum(levels, levels.amax(dim=(1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


def ast_features(windows: Tensor, extractor: ASTFeatureExtractor) -> Tensor:
    """Return the log-mel spectrogram (W, M, C) of ASTFeatureExtractor, of windows (W, S).

    Kaldi's: 25 ms every 10 ms, without their mean, with pre-emphasis.
    """
    rate = extractor.sampling_rate
    size, hop = rate // 40, rate // 100
    num_fft = 1 << (size - 1).bit_length()
    frames = windows.unfold(1, size, hop)  # (W, C, size)
    frames = frames - frames.mean(dim=2, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
    # periodic=False, which ONNX does not have
    window = functional.pad(torch.hann_window(size - 1), (0, 1))
    shaped = (frames - 0.97 * before) * window
    spectrum = torch.view_as_real(torch.fft.rfft(shaped, num_fft))  # (W, C, num_fft // 2 + 1, 2)
    power = spectrum.square().sum(dim=-1)
    bank, _ = torchaudio.compliance.kaldi.get_mel_banks(
        extractor.num_mel_bins, num_fft, rate, 20.0, 0.0, 100.0, -500.0, 1.0
    )
    # Kaldi leaves the last frequency out
    mel = power @ functional.pad(bank, (0, 1)).T  # (W, C, M)
    levels = mel.clamp_min(torch.finfo(torch.float32).eps).log()
    levels = functional.pad(levels, (0, 0, 0, extractor.max_length - levels.shape[1]))
    if extractor.do_normalize:
        levels = (levels - extractor.mean) / (2 * extractor.std)
    return levels.transpose(1, 2)


def pe_audio_features(windows: Tensor, lengths: Tensor, hop_length: int) -> Tensor:
    """Fill windows up to whole frames as PeAudioFeatureExtractor does: (W, 1, S).

    A window's rest is a reflection, as often as it takes; then come zeros.

    Args:
        windows: (W, S).
        lengths: Valid samples int64 (W,), at least 1.
        hop_length: Samples of a frame.
    """
    # No -(-a // b): ONNX divides sizes towards zero, also negative ones.
    times = torch.arange((windows.shape[1] + hop_length - 1) // hop_length * hop_length)
    period = (2 * lengths[:, None] - 2).clamp_min(1)  # (W, 1)
    phase = times % period
    filled = times < (lengths[:, None] + hop_length - 1) // hop_length * hop_length
    return (windows.gather(1, torch.minimum(phase, period - phase)) * filled)[:, None]


def _power(sound: Tensor, size: int, hop: int) -> Tensor:
    """Return the power spectrum (W, size // 2 + 1, C) of sound (W, S), ends reflected."""
    window = torch.hann_window(size, dtype=sound.dtype)
    spectrum = torch.stft(sound, size, hop, window=window, return_complex=True)
    return torch.view_as_real(spectrum).square().sum(dim=-1)
