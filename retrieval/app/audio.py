"""Recordings as a browser takes them: any part of any file as 16-bit WAV, decoded when it is asked for, and pictures of excerpts.

A recording of an hour is never decoded whole: its WAV exists only as a header and the bytes between any two places.
Letters: S samples, C channels.
"""

import io
import struct
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from matplotlib import image

from retrieval.errors import UserError

MAX_COLUMNS, NUM_MELS, DYNAMIC_RANGE = 600, 64, 70.0  # of pictures; dB
RIFF_LIMIT = 2**32 - 1


class WaveFile:
    """The 16-bit WAV that a recording would be: one or two channels, more are averaged to one. Raises UserError for what cannot be read."""

    def __init__(self, path: Path):
        self.path = path
        with open_audio(path) as file:
            rate, frames, channels = file.samplerate, file.frames, file.channels if file.channels <= 2 else 1
        self.width = 2 * channels  # bytes of a frame
        self.header = wave_header(frames, channels, rate)
        self.size = len(self.header) + frames * self.width

    def read(self, first: int, stop: int) -> bytes:
        """Bytes `first` to `stop`. What a truncated recording lacks is silence."""
        offset = len(self.header)
        head = self.header[first:stop]
        if stop <= offset:
            return head
        begin, end = max(first - offset, 0), stop - offset
        first_frame, stop_frame = begin // self.width, -(-end // self.width)
        with open_audio(self.path) as file:
            samples = read_frames(file, first_frame, stop_frame - first_frame)  # (S, C)
        if samples.shape[1] > 2:
            samples = samples.mean(axis=1, keepdims=True)
        data = (samples.clip(-1, 1) * 32767).round().astype("<i2").tobytes()
        data = data.ljust((stop_frame - first_frame) * self.width, b"\0")
        return head + data[begin - first_frame * self.width :][: end - begin]


def wave_header(frames: int, channels: int, rate: int) -> bytes:
    """RIFF, or RF64 where the sizes need more than 32 bits (EBU Tech 3306)."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * 2 * channels, 2 * channels, 16)
    size = frames * 2 * channels
    if size + 36 <= RIFF_LIMIT:
        return struct.pack("<4sI4s", b"RIFF", size + 36, b"WAVE") + form + struct.pack("<4sI", b"data", size)
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, size + 72, size, frames, 0)
    return struct.pack("<4sI4s", b"RF64", RIFF_LIMIT, b"WAVE") + sizes + form + struct.pack("<4sI", b"data", RIFF_LIMIT)


def open_audio(path: Path) -> soundfile.SoundFile:
    """Raises UserError naming the file."""
    try:
        return soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        raise UserError(f"{path.name} cannot be read as audio ({error.error_string.removeprefix('Error : ').rstrip('.')})") from None


def read_frames(file: soundfile.SoundFile, first: int, frames: int) -> np.ndarray:
    """float32 (S, C), S <= frames; nothing from a place that a broken file does not have."""
    try:
        file.seek(first)
        return file.read(frames, dtype="float32", always_2d=True)
    except soundfile.SoundFileError:
        return np.zeros((0, file.channels), dtype=np.float32)


def read_excerpt(path: Path, start: float, end: float) -> tuple[np.ndarray, int]:
    """Samples float32 (S, C) of `start` to `end` s, and their rate in Hz. Raises UserError."""
    with open_audio(path) as file:
        first = round(start * file.samplerate)
        samples, rate = read_frames(file, first, round(end * file.samplerate) - first), file.samplerate
    if not len(samples):
        raise UserError(f"{path.name} has nothing to hear between {start:.1f} and {end:.1f} s")
    return samples, rate


def draw_spectrogram(samples: np.ndarray, rate: int) -> bytes:
    """PNG of the mel spectrogram of samples (S, C), of the loudest value and 70 dB below it; time to the right, low tones at the bottom."""
    waveform = torch.from_numpy(samples.mean(axis=1))  # (S,)
    window = 2 ** round(np.log2(0.046 * rate))  # some 46 ms
    hop = max(window // 4, -(-len(waveform) // MAX_COLUMNS))
    mel = torchaudio.transforms.MelSpectrogram(rate, n_fft=window, hop_length=hop, n_mels=NUM_MELS, f_min=20.0)(waveform)  # (mels, columns)
    level = 10 * mel.clamp_min(1e-10).log10()
    top = float(level.max())
    file = io.BytesIO()
    image.imsave(file, level.numpy(), vmin=top - DYNAMIC_RANGE, vmax=top, cmap="magma", origin="lower", format="png")
    return file.getvalue()
