"""Audio files below a folder, and what is heard of each: mono excerpts at the model's sample rate, read as a stream.

A file of any length is cut into excerpts of at most `clip_samples`, a new one every `hop_samples`; the last one ends where the file ends.
Letters: S samples.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from retrieval.errors import one_line

READABLE = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif")
NOT_DECODED = (".m4a", ".mp4", ".aac", ".webm", ".mkv", ".wma")  # sound, but not for libsndfile
BLOCK_FRAMES = 1 << 17  # 3 s at 44.1 kHz
LOUDEST = 1e6  # full scale is 1: beyond it the encoders' sums may overflow
MOST_CHANNELS = 64
LATEST = 2**63 - 1  # ns, what SQLite holds


class UnreadableAudio(Exception):
    """The message is the reason, as it stands in the list of unreadable files."""


@dataclass(frozen=True)
class Found:
    """A file below the folder; `file` is its path in there, "/" between folders."""

    file: str
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True)
class Excerpt:
    """samples float32 (S,), the first of them `start` samples into the sound (at the model's rate)."""

    start: int
    samples: np.ndarray


class _ForwardFile(soundfile.SoundFile):
    """Read from start to end: soundfile seeks after every block, and an MP3 decoder then gives other samples."""

    def seekable(self) -> bool:
        return False


def find_audio(folder: Path) -> tuple[list[Found], dict[str, str]]:
    """Audio files below `folder` in order of name, and why others are left out: files, and folders (which end in "/") that cannot be read.

    Hidden ones are passed over; links are not followed out of it.
    """
    found, left_out, inside = [], {}, folder.resolve()

    def closed(error: OSError) -> None:
        file = Path(error.filename).relative_to(folder).as_posix()
        left_out[os.fsencode(f"{file}/").decode("utf-8", "replace")] = f"the folder cannot be read: {error.strerror}"

    for parent, folders, names in os.walk(folder, onerror=closed):
        linked = [name for name in folders if Path(parent, name).is_symlink()]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in linked)
        for name in sorted([*names, *linked]):
            path = Path(parent, name)
            file, ending = path.relative_to(folder).as_posix(), path.suffix.lower()
            if name.startswith(".") or (name not in linked and ending not in READABLE + NOT_DECODED):
                continue
            try:
                reason = _why_left_out(path, file, inside, name in linked)
                status = None if reason else path.stat()
            except FileNotFoundError:
                continue  # gone since
            except OSError as error:
                reason = f"cannot be read: {error.strerror}"
            if reason:
                left_out[os.fsencode(file).decode("utf-8", "replace")] = reason
            else:
                found.append(Found(file, status.st_size, min(status.st_mtime_ns, LATEST)))
    return found, left_out


def _why_left_out(path: Path, file: str, inside: Path, is_linked_folder: bool) -> str | None:
    if is_linked_folder:
        return "a link to a folder: give that folder an index of its own"
    try:
        file.encode("utf-8")
    except UnicodeEncodeError:
        return "its name, or that of its folder, is not UTF-8: rename it"
    if (ending := path.suffix.lower()) in NOT_DECODED:
        return f"{ending} cannot be decoded: convert it, for example: ffmpeg -i NAME{ending} NAME.flac"
    try:
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            return "a link that leads out of the folder"
    except RuntimeError:
        return "a link that leads back to itself"
    return None if path.is_file() else "not a file"


def read_excerpts(path: Path, sample_rate: int, clip_samples: int, hop_samples: int) -> Iterator[Excerpt]:
    """Excerpts of the file at `sample_rate` (Hz), channels averaged. Raises UnreadableAudio, also after the first ones, and FileNotFoundError."""
    kept, first, is_any = np.zeros(0, np.float32), 0, False  # (S,) samples from number `first` on
    start = 0  # of the next excerpt
    for block in _blocks(path, sample_rate):
        kept, is_any = np.concatenate([kept, block]), is_any or len(block) > 0
        while first + len(kept) > start + clip_samples:  # more to come after it
            yield Excerpt(start, kept[start - first : start - first + clip_samples])
            start += hop_samples
        # The last excerpt may begin before `start`, since it ends with the file, and the file does not end before here.
        spare = max(0, min(start, first + len(kept) - clip_samples) - first)
        kept, first = kept[spare:], first + spare
    if not is_any:
        raise UnreadableAudio("holds no samples")
    last = max(0, first + len(kept) - clip_samples)
    yield Excerpt(last, kept[last - first :])


def _blocks(path: Path, sample_rate: int) -> Iterator[np.ndarray]:
    """Float32 (S,) after (S,), resampled."""
    if not path.stat().st_size:
        raise UnreadableAudio("empty file (0 bytes)")
    try:
        with _ForwardFile(os.fspath(path)) as file:
            resampler = soxr.ResampleStream(file.samplerate, sample_rate, 1, dtype="float32") if file.samplerate != sample_rate else None
            while len(block := file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
                mono = check_finite(block.mean(axis=1))  # (S,)
                yield resampler.resample_chunk(mono) if resampler else mono
            if resampler:
                yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
    except soundfile.LibsndfileError as error:
        raise UnreadableAudio(f"cannot be decoded: {error.error_string.removeprefix('Error : ').rstrip('.')}") from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableAudio(f"cannot be read: {error.strerror}") from None
    except (ValueError, RuntimeError) as error:  # soxr
        raise UnreadableAudio(f"cannot be resampled: {one_line(error)}") from None


def check_finite(samples: np.ndarray) -> np.ndarray:
    """`samples`. Raises UnreadableAudio for NaN, infinity, and what is no sound any more."""
    if not np.isfinite(samples).all():
        raise UnreadableAudio("holds samples that are NaN or infinite")
    if np.abs(samples).max(initial=0.0) > LOUDEST:
        raise UnreadableAudio(f"holds samples beyond {LOUDEST:g}, where 1 is full scale")
    return samples


def cut(samples: np.ndarray, rate: int, sample_rate: int, clip_samples: int, hop_samples: int) -> list[Excerpt]:
    """Excerpts of samples (S,) or (S, channels) at `rate` Hz that are in memory: floats in [-1, 1], or integers of a WAV. Raises UnreadableAudio."""
    samples = np.asarray(samples)
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and samples.shape[1] > MOST_CHANNELS):
        raise UnreadableAudio(f"has shape {samples.shape}: expected (samples,) or (samples, channels)")
    if rate <= 0:
        raise UnreadableAudio(f"has a rate of {rate} Hz")
    scale = -float(np.iinfo(samples.dtype).min) if np.issubdtype(samples.dtype, np.signedinteger) else 1.0
    mono = samples.astype(np.float32) / np.float32(scale)
    mono = check_finite(mono.mean(axis=1) if mono.ndim == 2 else mono)
    if not mono.size:
        raise UnreadableAudio("holds no samples")
    mono = soxr.resample(mono, rate, sample_rate) if rate != sample_rate else mono
    last = max(0, len(mono) - clip_samples)
    return [Excerpt(start, mono[start : start + clip_samples]) for start in [*range(0, last, hop_samples), last]]
