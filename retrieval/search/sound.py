"""Find the audio files of a folder, and cut them into excerpts at the model's sample rate.

A file of any length becomes excerpts of at most `clip_samples`, a new one every `hop_samples`; the
last one ends with the file. Files are read as a stream, channels become one. Letters: S samples.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from retrieval.base.decoder_process import mono_blocks
from retrieval.base.errors import UserError
from retrieval.base.sound import MAX_CHANNELS, SoundFacts, UnreadableSound, check_rate
from retrieval.base.sound_files import find_audio, why_unreadable

LOUDEST = 1e6  # full scale is 1: beyond it the encoders' sums may overflow
LATEST = 2**63 - 1  # ns, the largest integer of SQLite


@dataclass(frozen=True)
class Found:
    """A file below the folder; `file` is its relative path with "/" between folders."""

    file: str
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True)
class Excerpt:
    """Samples float32 (S,) from number `start` of the sound on, at the model's rate."""

    start: int
    samples: np.ndarray


def files_to_index(
    folder: Path, num_known: int = 0
) -> tuple[list[Found], dict[str, str], Counter[str]]:
    """Find the audio files of `folder`.

    Hidden files are skipped; links out of the folder are not followed.

    Args:
        folder: The folder to search, with its sub-folders.
        num_known: Number of files in its index.

    Returns:
        Files in order of name.
        Reasons for left-out files and folders, by name; names of folders end in "/".
        Number of files that are not sound files, by ending.

    Raises:
        UserError: There is no audio file.
    """

    def shown(path: Path) -> str:
        name = path.relative_to(folder).as_posix()
        return os.fsencode(name).decode("utf-8", "replace")

    sounds, inside = find_audio(folder, follow_links=False), folder.resolve()
    found, left_out = [], {}
    for closed, reason in sounds.closed_folders.items():
        left_out[f"{shown(closed)}/"] = f"the folder cannot be read: {reason}"
    for linked in sounds.linked_folders:
        left_out[shown(linked)] = "a link to a folder: give that folder an index of its own"
    for path in sounds.paths:
        file = path.relative_to(folder).as_posix()
        reason = why_unreadable(path, inside)
        if shown(path) != file:
            reason = "its name, or that of its folder, is not UTF-8: rename it"
        if reason:
            left_out[shown(path)] = reason
            continue
        with suppress(FileNotFoundError):  # removed meanwhile
            status = path.stat()
            found.append(Found(file, status.st_size, min(status.st_mtime_ns, LATEST)))
    if not found and num_known:
        raise UserError(
            f"folder {folder} holds no audio file any more, the index has {num_known}; nothing is"
            " changed: is a disk missing?"
        )
    if not found:
        others = sounds.passed_over.total()
        others = f"; its {others:,} files are not sound files" if others else ""
        reason = f"; first {next(iter(left_out.items()))}" if left_out else ""
        raise UserError(f"folder {folder} holds no audio file{others}{reason}")
    return found, left_out, sounds.passed_over


def read_excerpts(
    path: Path,
    sample_rate: int,
    clip_samples: int,
    hop_samples: int,
    facts: SoundFacts | None = None,
) -> Iterator[Excerpt]:
    """Read a file as excerpts.

    Args:
        path: The file.
        sample_rate: Hz of the excerpts; channels are averaged, see `mono_blocks`.
        clip_samples: Longest excerpt.
        hop_samples: Distance between the starts of two excerpts.
        facts: Filled before the first excerpt.

    Yields:
        Excerpts in order; the last one ends with the file.

    Raises:
        UnreadableSound: The file cannot be decoded; may come after some excerpts.
        FileNotFoundError, PermissionError: As the system raises them.
    """
    kept, first = np.zeros(0, np.float32), 0  # (S,) samples from number `first` on
    start = 0  # of the next excerpt
    for block in mono_blocks(path, sample_rate, facts=facts):
        kept = np.concatenate([kept, check_finite(block)])
        while first + len(kept) > start + clip_samples:  # more to come after it
            yield Excerpt(start, kept[start - first : start - first + clip_samples])
            start += hop_samples
        # Keep enough for the last excerpt, which ends with the file and so may begin before
        # `start`.
        spare = max(0, min(start, first + len(kept) - clip_samples) - first)
        kept, first = kept[spare:], first + spare
    last = max(0, first + len(kept) - clip_samples)
    yield Excerpt(last, kept[last - first :])


def check_finite(samples: np.ndarray) -> np.ndarray:
    """Return `samples`. Raises UnreadableSound for NaN, infinity and values beyond LOUDEST."""
    if not np.isfinite(samples).all():
        raise UnreadableSound("holds samples that are NaN or infinite")
    if np.abs(samples).max(initial=0.0) > LOUDEST:
        raise UnreadableSound(f"holds samples beyond {LOUDEST:g}, where 1 is full scale")
    return samples


def cut(
    samples: np.ndarray, rate: int, sample_rate: int, clip_samples: int, hop_samples: int
) -> list[Excerpt]:
    """Cut a sound in memory into excerpts.

    Args:
        samples: (S,) or (S, channels); floats in [-1, 1], or integers as in a WAV.
        rate: Their rate in Hz.
        sample_rate: Hz of the excerpts.
        clip_samples: Longest excerpt.
        hop_samples: Distance between the starts of two excerpts.

    Raises:
        UnreadableSound: No samples, another shape, values that are not finite.
    """
    samples = np.asarray(samples)
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and samples.shape[1] > MAX_CHANNELS):
        raise UnreadableSound(
            f"has shape {samples.shape}: expected (samples,) or (samples, channels)"
        )
    check_rate(rate)
    is_integer = np.issubdtype(samples.dtype, np.signedinteger)
    full_scale = -float(np.iinfo(samples.dtype).min) if is_integer else 1.0
    mono = samples.astype(np.float32) / np.float32(full_scale)
    mono = check_finite(mono.mean(axis=1) if mono.ndim == 2 else mono)
    if not mono.size:
        raise UnreadableSound("holds no samples")
    mono = soxr.resample(mono, rate, sample_rate) if rate != sample_rate else mono
    last = max(0, len(mono) - clip_samples)
    starts = [*range(0, last, hop_samples), last]
    return [Excerpt(start, mono[start : start + clip_samples]) for start in starts]
