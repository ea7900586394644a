"""Audio for the browser: any part of any file as 16-bit WAV, and spectrograms of excerpts.

No recording is decoded whole: WaveFile makes the header and any range of bytes on request. Another
process decodes (retrieval.base.decoder_process) and keeps files open, with seek points.

Letters: S samples, C channels.
"""

import io
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torchaudio
from matplotlib import image

from retrieval.base.decoder_process import SoundInfo, mono_blocks, read_frames
from retrieval.base.errors import UserError
from retrieval.base.sound import CANCELLED, TruncatedSound, UnreadableSound

MAX_COLUMNS, NUM_MELS, DYNAMIC_RANGE = 600, 64, 70.0  # of pictures; dB
RIFF_LIMIT = 2**32 - 1
FRAMES_AT_ONCE = 2**18  # read at once: an excerpt may have many channels
# Of pictures of whole files: Hz, windows of 32 ms, and how many of them a column averages at most.
OVERVIEW_RATE, OVERVIEW_WINDOW, WINDOWS_A_COLUMN = 16_000, 512, 8
OVERVIEW_COLUMNS = 1200
OVERVIEWS_KEPT = 64  # of 200 kB


class WaveFile:
    """A recording as 16-bit WAV, made on demand: one or two channels; more are averaged to one.

    Args:
        path: The recording.
        seconds: Its length in the index, used if the header does not tell it.

    Raises:
        UserError: The recording cannot be read.
    """

    def __init__(self, path: Path, seconds: float):
        self.path = path
        _, info = read(path, 0, 0)
        is_known = info.num_frames is not None
        num_frames = info.num_frames if is_known else round(seconds * info.sample_rate)
        channels = info.channels if info.channels <= 2 else 1
        self.sample_rate, self.channels = info.sample_rate, channels
        self.width = 2 * channels  # bytes of a frame
        self.header = wave_header(num_frames, channels, info.sample_rate)
        self.size = len(self.header) + num_frames * self.width

    def read(self, first: int, stop: int) -> bytes:
        """Return bytes `first` to `stop` (exclusive); silence after the end. Raises UserError."""
        offset = len(self.header)
        head = self.header[first:stop]
        if stop <= offset:
            return head
        begin, end = max(first - offset, 0), stop - offset
        first_frame, stop_frame = begin // self.width, -(-end // self.width)
        samples, _ = read(self.path, first_frame, stop_frame - first_frame)  # (S, C)
        if samples.shape[1] > 2:
            samples = samples.mean(axis=1, keepdims=True)
        data = (samples.clip(-1, 1) * 32767).round().astype("<i2").tobytes()
        data = data.ljust((stop_frame - first_frame) * self.width, b"\0")
        return head + data[begin - first_frame * self.width :][: end - begin]


def read_clip(path: Path, seconds: float, start: float, end: float) -> bytes:
    """Return `start` to `end` (s) of a recording as a WAV, as WaveFile. Raises UserError."""
    wave = WaveFile(path, seconds)
    first = round(start * wave.sample_rate)
    stop = max(round(end * wave.sample_rate), first + 1)
    if not len(read(path, first, 1)[0]):  # the file is shorter now
        raise UserError(f"{path.name} has no sound between {start:.1f} and {end:.1f} s")
    header = wave_header(stop - first, wave.channels, wave.sample_rate)
    places = (len(wave.header) + frame * wave.width for frame in (first, stop))
    return header + wave.read(*places)


def wave_header(frames: int, channels: int, rate: int) -> bytes:
    """Return a RIFF header, or RF64 if the sizes need more than 32 bits (EBU Tech 3306)."""
    form = struct.pack(
        "<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * 2 * channels, 2 * channels, 16
    )
    size = frames * 2 * channels
    if size + 36 <= RIFF_LIMIT:
        riff = struct.pack("<4sI4s", b"RIFF", size + 36, b"WAVE")
        return riff + form + struct.pack("<4sI", b"data", size)
    riff = struct.pack("<4sI4s", b"RF64", RIFF_LIMIT, b"WAVE")
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, size + 72, size, frames, 0)
    return riff + sizes + form + struct.pack("<4sI", b"data", RIFF_LIMIT)


def read(path: Path, first: int, num_frames: int) -> tuple[np.ndarray, SoundInfo]:
    """Read `num_frames` frames from `first` on.

    Returns:
        Samples float32 (S, C); S is less than num_frames at the end of the file.
        Sample rate, channels and length of the file.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        return read_frames(path, first, num_frames)
    except UnreadableSound as error:
        raise UserError(f"{path.name} {error}") from None
    except OSError as error:
        raise UserError(f"{path.name} cannot be read: {error.strerror}") from None


def read_excerpt(path: Path, start: float, end: float) -> tuple[np.ndarray, int]:
    """Read `start` to `end` (s) as one channel float32 (S,) at the rate in Hz. Raises UserError."""
    _, info = read(path, 0, 0)
    first = round(start * info.sample_rate)
    stop = max(round(end * info.sample_rate), first + 1)
    pieces = []
    for place in range(first, stop, FRAMES_AT_ONCE):
        samples, _ = read(path, place, min(FRAMES_AT_ONCE, stop - place))
        pieces.append(one_channel(samples))
    samples = np.concatenate(pieces)
    if not len(samples):
        raise UserError(f"{path.name} has no sound between {start:.1f} and {end:.1f} s")
    return samples, info.sample_rate


def one_channel(samples: np.ndarray) -> np.ndarray:
    """Return the mean (S,) of channels (S, C), or the first that sounds if they cancel out."""
    powers = np.square(samples, dtype=np.float64).sum(axis=0)  # (C,)
    if np.square(samples.sum(axis=1, dtype=np.float64)).sum() <= CANCELLED * powers.sum():
        return samples[:, int(np.argmax(powers >= powers.max() / 2))]
    return samples.mean(axis=1)


def draw_spectrogram(samples: np.ndarray, rate: int) -> bytes:
    """Draw the mel spectrogram of one channel (S,) as PNG: the loudest value and 70 dB below it.

    Time goes to the right; low tones are at the bottom.
    """
    waveform = torch.from_numpy(samples)
    window = 2 ** round(np.log2(0.046 * rate))  # about 46 ms
    # MelSpectrogram mirrors half a window at the edges, so shorter sounds get silence at their end.
    waveform = torch.nn.functional.pad(waveform, (0, max(0, window - len(waveform))))
    hop = max(window // 4, -(-len(waveform) // MAX_COLUMNS))
    # at low rates 64 bands would be narrower than a frequency bin
    num_mels = min(NUM_MELS, window // 8)
    transform = torchaudio.transforms.MelSpectrogram(
        rate, n_fft=window, hop_length=hop, n_mels=num_mels, f_min=20.0
    )
    return _png(10 * transform(waveform).clamp_min(1e-10).log10())  # (mels, columns)


def _png(level: torch.Tensor) -> bytes:
    """Draw levels (mels, columns) in dB."""
    top = float(level.max())
    file, colours = io.BytesIO(), {"vmin": top - DYNAMIC_RANGE, "vmax": top, "cmap": "magma"}
    image.imsave(file, level.numpy(), origin="lower", format="png", **colours)
    return file.getvalue()


def draw_overview(path: Path, seconds: float) -> bytes:
    """Draw the mel spectrogram of a whole file as PNG, like draw_spectrogram, up to 8 kHz.

    The file is read as a stream. A column averages windows that lie evenly in it: all of them in a
    file of some minutes, a sample in a longer one.

    Args:
        path: The recording.
        seconds: Its length in the index.

    Raises:
        UserError: The recording cannot be read.
    """
    total = max(1, round(seconds * OVERVIEW_RATE))
    columns = max(1, min(OVERVIEW_COLUMNS, total // OVERVIEW_WINDOW))
    parts = max(1, min(WINDOWS_A_COLUMN, total // columns // OVERVIEW_WINDOW))
    starts = np.arange(columns * parts) * (total / (columns * parts))
    starts = starts.astype(np.int64)  # first samples of the windows
    powers = torch.zeros(columns, OVERVIEW_WINDOW // 2 + 1)
    counts = torch.zeros(columns)
    shape, taken, kept, first = torch.hann_window(OVERVIEW_WINDOW), 0, np.zeros(0, np.float32), 0
    try:
        for block in mono_blocks(path, OVERVIEW_RATE, quality="LQ"):
            kept = np.concatenate([kept, block])
            ends = np.searchsorted(starts, first + len(kept) - OVERVIEW_WINDOW, side="right")
            places = starts[taken:ends] - first
            if len(places):
                windows = np.lib.stride_tricks.sliding_window_view(kept, OVERVIEW_WINDOW)[places]
                own = torch.from_numpy(windows).mul(shape)  # a copy: the view is read-only
                own = torch.fft.rfft(own).abs().square()  # (windows, bins)
                column = torch.arange(taken, taken + len(places)) // parts
                powers.index_add_(0, column, own)
                counts.index_add_(0, column, torch.ones(len(places)))
            taken = max(taken, int(ends))
            spare = max(0, len(kept) - OVERVIEW_WINDOW)
            spare = min(spare, int(starts[taken]) - first) if taken < len(starts) else spare
            kept, first = kept[spare:], first + spare
    except TruncatedSound:
        pass  # the rest of the picture is dark, as it is silent in the player
    except UnreadableSound as error:
        raise UserError(f"{path.name} {error}") from None
    except OSError as error:
        raise UserError(f"{path.name} cannot be read: {error.strerror}") from None
    bank = torchaudio.functional.melscale_fbanks(
        OVERVIEW_WINDOW // 2 + 1, 20.0, OVERVIEW_RATE / 2, NUM_MELS, OVERVIEW_RATE
    )
    mels = (powers / counts.clamp_min(1)[:, None]) @ bank  # (columns, mels)
    return _png(10 * mels.T.clamp_min(1e-10).log10())


class Overviews:
    """Pictures of whole files; the last OVERVIEWS_KEPT are kept, until their file changes."""

    def __init__(self):
        self._kept: OrderedDict[tuple[Path, int, int], bytes] = OrderedDict()

    def __call__(self, path: Path, seconds: float) -> bytes:
        """Return draw_overview(path, seconds). Raises UserError."""
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"{path.name} cannot be read: {error.strerror}") from None
        key = path, status.st_size, status.st_mtime_ns
        picture = self._kept.pop(key, None) or draw_overview(path, seconds)
        self._kept[key] = picture
        while len(self._kept) > OVERVIEWS_KEPT:
            self._kept.popitem(last=False)
        return picture
