"""Augmentation of waveforms in training: gain, noise, rotation in time, pitch, speed.

Pitch and speed are changed in one pass, by torchaudio's phase vocoder and soxr's resampling: 0.05 s
for 30 s at 32 kHz on one core.
"""

import math

import numpy as np
import soxr
import torch
import torchaudio.functional

NUM_FFT, HOP = 1024, 256  # samples, of the phase vocoder
NOISE_RANGE_DB = 30.0
SHORTEST = NUM_FFT  # samples; shorter clips keep pitch and speed


class WaveformAugmentation:
    """Change waveforms; each change has a probability and an amount of its own, drawn evenly.

    Args:
        sample_rate: Of the waveforms, in Hz.
        probability: Of each change.
        gain_db: Most that a clip gets louder or softer.
        noise_snr_db: Lowest signal-to-noise ratio of white noise; the highest is 30 dB above. None:
            no noise.
        shift_seconds: Longest rotation, earlier or later.
        pitch_semitones: Most that the pitch moves, up or down.
        stretch: Largest fraction by which a clip gets faster or slower.
    """

    def __init__(
        self,
        sample_rate: int,
        probability: float,
        gain_db: float,
        noise_snr_db: float | None,
        shift_seconds: float,
        pitch_semitones: float,
        stretch: float,
    ):
        self.sample_rate, self.probability = sample_rate, probability
        self.gain_db, self.noise_snr_db, self.shift_seconds = gain_db, noise_snr_db, shift_seconds
        self.pitch_semitones, self.stretch = pitch_semitones, stretch

    def __call__(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Change a waveform float32 (S,) in [-1, 1] to (S',); S' is S unless `stretch` is on."""
        semitones = self._drawn(self.pitch_semitones, rng)
        speed = 1.0 + self._drawn(self.stretch, rng)
        shift = round(self._drawn(self.shift_seconds, rng) * self.sample_rate)
        gain_db = self._drawn(self.gain_db, rng)
        if semitones or speed != 1.0:
            waveform = _at_speed_and_pitch(waveform, speed, 2.0 ** (semitones / 12.0))
        if shift:
            waveform = np.roll(waveform, shift)
        if self.noise_snr_db is not None and rng.random() < self.probability:
            snr_db = rng.uniform(self.noise_snr_db, self.noise_snr_db + NOISE_RANGE_DB)
            noise = rng.standard_normal(len(waveform), dtype=np.float32)
            power = float(np.mean(np.square(waveform, dtype=np.float64)))
            # relative to the signal: silence stays silent
            waveform = waveform + noise * np.float32(math.sqrt(power) * 10.0 ** (-snr_db / 20.0))
        if gain_db:
            waveform = waveform * np.float32(10.0 ** (gain_db / 20.0))
        # Scaled as a whole: clipping would add overtones that are not in the recording.
        return waveform / max(np.float32(1.0), np.abs(waveform).max())

    def _drawn(self, most: float, rng: np.random.Generator) -> float:
        """Draw an amount, or 0; a change that is off draws nothing, and so affects no other."""
        return float(rng.uniform(-most, most)) if most and rng.random() < self.probability else 0.0


def waveform_augmentation(
    sample_rate: int,
    probability: float,
    gain_db: float,
    noise_snr_db: float | None,
    shift_seconds: float,
    pitch_semitones: float,
    stretch: float,
) -> WaveformAugmentation | None:
    """Return the WaveformAugmentation of these settings; None if all are off."""
    if (
        not probability
        or noise_snr_db is None
        and not any((gain_db, shift_seconds, pitch_semitones, stretch))
    ):
        return None
    return WaveformAugmentation(
        sample_rate, probability, gain_db, noise_snr_db, shift_seconds, pitch_semitones, stretch
    )


def _at_speed_and_pitch(waveform: np.ndarray, speed: float, ratio: float) -> np.ndarray:
    """Return a clip `speed` times as fast and `ratio` times as high.

    It is stretched at its pitch, then resampled, which changes both.
    """
    if len(waveform) < SHORTEST:
        return waveform
    rate, window = speed / ratio, torch.hann_window(NUM_FFT)
    spectrum = torch.stft(
        torch.from_numpy(waveform), NUM_FFT, HOP, window=window, return_complex=True
    )  # (513, columns)
    advance = torch.linspace(0, math.pi * HOP, NUM_FFT // 2 + 1)[:, None]
    stretched = torchaudio.functional.phase_vocoder(spectrum, rate, advance)
    stretched = torch.istft(
        stretched, NUM_FFT, HOP, window=window, length=max(1, round(len(waveform) / rate))
    ).numpy()
    return stretched if ratio == 1.0 else soxr.resample(stretched, ratio, 1.0)
