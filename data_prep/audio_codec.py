"""One audio file -> the bytes of the cache's `audio` column: mono, resampled, 16 bit.

Reads whatever libsndfile reads, block by block, so that memory is the size of the 16-bit result. A file that would give wrong or no audio
raises UnusableAudio with the reason. Float samples become round(32768 x), so that a 16-bit file at the cache's rate is kept bit for bit.
"""

import io
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr

BLOCK_FRAMES = 1 << 17  # 3 s at 44.1 kHz: 1 MB of float32 stereo
# Programs that write to a pipe do not know the length: ffmpeg leaves 0xFFFFFFFF, sox 0x7FFFF000 or more.
UNKNOWN_WAV_LENGTH = 0x7FFFF000


class UnusableAudio(Exception):
    """The clip must be left out; the message is the reason, as listed in the build's report."""


@dataclass(frozen=True)
class EncodedClip:
    audio: bytes
    num_samples: int  # at the cache's sample rate
    num_clipped: int  # samples beyond [-1, 1], cut


def encode_clip(path: str, sample_rate: int, codec: str) -> EncodedClip:
    """Decode `path`, average the channels, resample to `sample_rate` (Hz) and encode with `codec`, a key of CODECS."""
    try:
        _check_wav_is_whole(path)
        with soundfile.SoundFile(path) as file:
            blocks = [_quantise(block) for block in _resampled_blocks(file, sample_rate)]
    except soundfile.LibsndfileError as error:
        reason = error.error_string.removeprefix("Error : ").rstrip(".") or f"libsndfile error {error.code}"
        raise UnusableAudio(f"cannot be decoded: {reason}") from None
    except OSError as error:
        raise UnusableAudio(f"cannot be read: {error.strerror}") from None
    samples = np.concatenate([samples for samples, _ in blocks]) if blocks else np.zeros(0, np.int16)  # (S,)
    if samples.size == 0:
        raise UnusableAudio("no samples")
    return EncodedClip(CODECS[codec](samples, sample_rate), samples.size, sum(num_clipped for _, num_clipped in blocks))


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


def _resampled_blocks(file: soundfile.SoundFile, sample_rate: int) -> Iterator[np.ndarray]:
    # Blockwise soxr gives the same samples as one call on the whole clip.
    resampler = None
    if file.samplerate != sample_rate:
        resampler = soxr.ResampleStream(file.samplerate, sample_rate, 1, dtype="float32", quality="VHQ")
    num_frames = 0
    for block in file.blocks(BLOCK_FRAMES, dtype="float32", always_2d=True):  # (frames, channels)
        num_frames += len(block)
        mono = block.mean(axis=1)
        if not np.isfinite(mono).all():
            raise UnusableAudio("holds samples that are NaN or infinite")
        yield resampler.resample_chunk(mono) if resampler else mono
    if num_frames < file.frames:
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


CODECS: dict[str, Callable[[np.ndarray, int], bytes]] = {"pcm_s16le": _to_pcm, "flac": _to_flac}
