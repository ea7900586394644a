"""One audio file -> the bytes of the cache's `audio` column: mono, resampled, 16 bit.

Reads whatever libsndfile reads, block by block, so that memory is the size of the 16-bit result. A file that would give wrong or no audio
raises UnusableAudio with the reason. Float samples become round(32768 x), so that a 16-bit file at the cache's rate is kept bit for bit.
A clip that is cut is read no further than that: the first minute of a recording of ten hours costs a minute.

MP3 is written with LAME's best variable bit rate (V0) and its gapless header, from which a decoder knows delay and padding: it gives back
as many samples as went in, none of them shifted.
"""

import io
import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr

BLOCK_FRAMES = 1 << 17  # 3 s at 44.1 kHz: 1 MB of float32 stereo
CUT_MARGIN = 0.1  # s read beyond a cut, so that the resampler's filter sees what follows
# Decoders count an MP3 file's delay and padding differently where it has no gapless header: four blocks of 1152 samples.
MAX_MISSING_MP3_FRAMES = 4 * 1152
# Programs that write to a pipe do not know the length: ffmpeg leaves 0xFFFFFFFF, sox 0x7FFFF000 or more.
UNKNOWN_WAV_LENGTH = 0x7FFFF000


class UnusableAudio(Exception):
    """The clip must be left out; the message is the reason, as listed in the build's report."""


@dataclass(frozen=True)
class EncodedClip:
    audio: bytes
    num_samples: int  # at the cache's sample rate
    num_clipped: int  # samples beyond [-1, 1], brought back to it
    is_cut: bool  # the file is longer than max_seconds


class _ForwardFile(soundfile.SoundFile):
    """Read from start to end. After every block soundfile seeks to where it already is, which an MP3 decoder answers with a wrong second block."""

    def seekable(self) -> bool:
        return False


def encode_clip(path: str, sample_rate: int, codec: str, max_seconds: float | None = None) -> EncodedClip:
    """Decode `path`, average the channels, resample to `sample_rate` (Hz), cut after `max_seconds` and encode with `codec`, a key of CODECS."""
    try:
        _check_wav_is_whole(path)
        with _ForwardFile(os.fsencode(path)) as file:  # soundfile would encode a name that is not UTF-8 anew, and fail
            is_cut = max_seconds is not None and file.frames > max_seconds * file.samplerate
            blocks = [_quantise(block) for block in _resampled_blocks(file, sample_rate, max_seconds if is_cut else None)]
    except soundfile.LibsndfileError as error:
        reason = error.error_string.removeprefix("Error : ").rstrip(".") or f"libsndfile error {error.code}"
        raise UnusableAudio(f"cannot be decoded: {reason}") from None
    except OSError as error:
        raise UnusableAudio(f"cannot be read: {error.strerror}") from None
    samples = np.concatenate([samples for samples, _ in blocks]) if blocks else np.zeros(0, np.int16)  # (S,)
    if is_cut:
        samples = samples[: round(max_seconds * sample_rate)]
    if samples.size == 0:
        raise UnusableAudio("no samples")
    return EncodedClip(CODECS[codec](samples, sample_rate), samples.size, sum(num_clipped for _, num_clipped in blocks), is_cut)


def _check_wav_is_whole(path: str) -> None:
    # libsndfile shortens a cut-off WAV silently to what is there.
    size = os.path.getsize(path)
    if size == 0:
        raise UnusableAudio("empty file (0 bytes)")
    with open(path, "rb") as file:
        header = file.read(12)
        if header[:4] != b"RIFF" or header[8:] != b"WAVE":
            return
        while len(chunk := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", chunk)
            if name == b"data":
                present = size - file.tell()
                if present < length < UNKNOWN_WAV_LENGTH:
                    raise UnusableAudio(f"truncated: the header promises {length} bytes of audio, the file holds {present}")
                return
            file.seek(length + length % 2, os.SEEK_CUR)  # chunks start at even offsets


def _resampled_blocks(file: soundfile.SoundFile, sample_rate: int, max_seconds: float | None) -> Iterator[np.ndarray]:
    # Blockwise soxr gives the same samples as one call on the whole clip.
    resampler = None
    if file.samplerate != sample_rate:
        resampler = soxr.ResampleStream(file.samplerate, sample_rate, 1, dtype="float32", quality="VHQ")
    num_wanted = file.frames if max_seconds is None else math.ceil((max_seconds + CUT_MARGIN) * file.samplerate)
    num_frames = 0
    while num_frames < num_wanted and len(block := file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):  # (frames, channels)
        num_frames += len(block)
        mono = block.mean(axis=1) if block.shape[1] > 1 else block[:, 0]  # same numbers; a twelfth of a clip's time saved
        if not np.isfinite(mono).all():
            raise UnusableAudio("holds samples that are NaN or infinite")
        yield resampler.resample_chunk(mono) if resampler else mono
    allowed = MAX_MISSING_MP3_FRAMES if file.format == "MP3" else 0
    if num_frames < min(num_wanted, file.frames) - allowed:
        raise UnusableAudio(f"truncated: {file.frames} frames announced, {num_frames} decoded")
    if resampler:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _quantise(samples: np.ndarray) -> tuple[np.ndarray, int]:
    scaled = np.rint(samples * np.float32(32768))
    # +1.0 itself is full scale and one step above int16: not worth counting.
    num_clipped = int(np.count_nonzero(np.abs(scaled) > 32768))
    return np.clip(scaled, -32768, 32767).astype(np.int16), num_clipped


def _to_pcm(samples: np.ndarray, sample_rate: int) -> bytes:
    return samples.astype("<i2", copy=False).tobytes()


def _to_flac(samples: np.ndarray, sample_rate: int) -> bytes:
    target = io.BytesIO()
    soundfile.write(target, samples, sample_rate, format="FLAC", subtype="PCM_16")
    return target.getvalue()


def _to_mp3(samples: np.ndarray, sample_rate: int) -> bytes:
    target = io.BytesIO()
    best = {"compression_level": 0.0, "bitrate_mode": "VARIABLE"}
    soundfile.write(target, samples, sample_rate, format="MP3", subtype="MPEG_LAYER_III", **best)
    num_readable = soundfile.info(io.BytesIO(target.getvalue())).frames
    assert num_readable == samples.size, f"{samples.size} samples written as MP3, {num_readable} announced"
    return target.getvalue()


CODECS: dict[str, Callable[[np.ndarray, int], bytes]] = {"pcm_s16le": _to_pcm, "flac": _to_flac, "mp3": _to_mp3}
RATES_OF_CODEC = {"mp3": (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)}  # Hz; the others take any
