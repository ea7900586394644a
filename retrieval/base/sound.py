"""Read any sound file as blocks of float samples: for data preparation, search and the page.

libsndfile reads the files that it can decode and seek in, and whose length it knows. FFmpeg (PyAV)
reads all others: M4A, MP4, WebM, Windows Media, AMR, AC-3, and MP3 without a Xing frame, whose
length libsndfile only estimates. The first bytes of a file decide which of the two reads it, never
its name.

A file is truncated if its container announces more than the file holds: its samples are read, then
TruncatedSound is raised. Lengths that the header leaves open, and estimated lengths, are not used
for this.

Letters: S samples (frames of all channels), C channels.
"""

import bisect
import contextlib
import copy
import io
import math
import os
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from retrieval.base import sound_kinds
from retrieval.base.sound_kinds import AUDIO_ENDINGS, Kind, kind_of, kind_of_open

__all__ = [
    "AUDIO_ENDINGS",
    "READER_VERSION",
    "SoundFacts",
    "SoundReader",
    "TruncatedSound",
    "UnreadableSound",
    "check_rate",
    "kind_of",
    "mono_blocks",
]

# Increase it when more files become readable: an index then tries its unreadable files once more.
READER_VERSION = 2
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz
MAX_CHANNELS = 64
BLOCK_FRAMES = 1 << 17  # 3 s at 44.1 kHz: 1 MB of float32 stereo
MAX_BLOCK_SAMPLES = 1 << 19  # in a block, over all channels, and also after resampling
CUT_MARGIN = 0.1  # s read beyond a cut, for the resampler's filter
# Decoders count delay and padding differently for MP3 files without a gapless header: allow four
# MPEG frames.
MAX_MISSING_MP3_FRAMES = 4 * 1152
MAX_MISSING_SECONDS = 0.1  # of other lossy files
MAX_BAD_PACKETS = 0.1  # share of the packets that may be damaged
# After a seek these decoders begin with wrong samples, and libvorbis misses places near the end. So
# decoding starts earlier.
PREROLL = 1 << 18  # frames
NEEDS_PREROLL = ("VORBIS", "OPUS", "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III")
CANNOT_SEEK = (
    *("GSM610", "DWVW_12", "DWVW_16", "DWVW_24", "G721_32", "G723_24", "G723_40"),
    *("VOX_ADPCM", "DPCM_8", "DPCM_16", "NMS_ADPCM_16", "NMS_ADPCM_24", "NMS_ADPCM_32"),
)
ENDLESS = 1 << 62  # frames
UNKNOWN_FRAMES = 1 << 62  # libsndfile announces 2^63 - 1 where a FLAC header leaves the length open
# Channels cancel if the power of their sum is 30 dB below that of independent channels.
CANCELLED = 1e-3
SOUNDING = 1e-3  # smallest peak of a second that counts; quieter ones may be noise of the recorder


class UnreadableSound(Exception):
    """The file cannot be read to its end. The message is one line with the reason."""


class TruncatedSound(UnreadableSound):
    """The file holds less than its header announces. All its samples were returned before."""


@dataclass
class SoundFacts:
    """Facts about a file, filled while `mono_blocks` reads it."""

    is_cut: bool = False  # the file is longer than max_seconds
    took_one_channel: bool = False  # its channels cancel: the first one replaces their mean


def check_rate(rate: float) -> None:
    """Raise UnreadableSound for a sample rate (Hz) outside MIN_RATE to MAX_RATE.

    Resampling from a false rate would fill the memory.
    """
    if not MIN_RATE <= rate <= MAX_RATE:
        raise UnreadableSound(
            f"has a sample rate of {rate:g} Hz: expected {MIN_RATE} to {MAX_RATE} Hz"
        )


class SoundReader:
    """An open sound file.

    Attributes:
        kind: Kind of file, by its first bytes.
        sample_rate: Hz.
        channels: 1 to MAX_CHANNELS.

    Raises:
        UnreadableSound: The file is not a sound file, or cannot be decoded.
        FileNotFoundError, PermissionError: As the system raises them.
    """

    def __init__(self, path: Path | str | bytes):
        # libsndfile would re-encode a name that is not UTF-8, and fail
        self.path = os.fsencode(path)
        with _one_kind_of_error(), open(self.path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UnreadableSound("is not a file")
            if not os.fstat(file.fileno()).st_size:
                raise UnreadableSound("empty file (0 bytes)")
            kind = kind_of_open(file)
            if kind is None:
                file.seek(0)
                raise UnreadableSound(sound_kinds.why_no_sound(file.read(64)))
            self.kind = kind
            self._why_truncated = sound_kinds.why_truncated(file, kind)
            try:
                self._source = _open_source(self.path, file, kind)
            except UnreadableSound:
                if self._why_truncated:  # the missing end holds data that decoding needs
                    raise TruncatedSound(self._why_truncated) from None
                raise
        try:
            self.sample_rate, self.channels = self._source.sample_rate, self._source.channels
            self._num_frames = self._source.announced_frames
            check_rate(self.sample_rate)
            if not 1 <= self.channels <= MAX_CHANNELS:
                raise UnreadableSound(f"has {self.channels} channels: expected 1 to {MAX_CHANNELS}")
        except UnreadableSound:
            self.close()
            raise

    def __enter__(self) -> "SoundReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._source.close()

    @property
    def announced_frames(self) -> int | None:
        """Number of frames according to the header; None if the header leaves it open."""
        return self._source.announced_frames

    @property
    def num_frames(self) -> int:
        """Number of frames; the file is decoded once if its header leaves it open.

        Raises UnreadableSound.
        """
        if self._num_frames is None:
            with _one_kind_of_error():
                self._num_frames = self._source.count_frames()
        return self._num_frames

    def seek(self, frame: int) -> None:
        """Let the next `read` begin at `frame`, or at the end of a shorter file.

        Raises UnreadableSound.
        """
        with _one_kind_of_error():
            self._source.seek(frame)

    def read(self, num_frames: int) -> np.ndarray:
        """Read the next frames.

        Args:
            num_frames: Largest number of frames to return, at least 1.

        Returns:
            float32 (S, C), 1 <= S <= num_frames, at most MAX_BLOCK_SAMPLES samples; S = 0 at the
            end of the file.

        Raises:
            TruncatedSound: At the end, if the header announces more.
            UnreadableSound: The data are damaged.
        """
        with _one_kind_of_error():
            block = self._source.read(min(num_frames, max(1, MAX_BLOCK_SAMPLES // self.channels)))
            if not len(block) and (reason := self._why_truncated or self._source.why_truncated()):
                raise TruncatedSound(reason)
            return block

    def blocks(self, num_frames: int) -> Iterator[np.ndarray]:
        """Yield blocks float32 (S, C), S <= num_frames, to the end. Raises as `read` does."""
        while len(block := self.read(num_frames)):
            yield block


def mono_blocks(
    path: Path | str | bytes,
    sample_rate: int,
    max_seconds: float | None = None,
    facts: SoundFacts | None = None,
    quality: str = "HQ",
) -> Iterator[np.ndarray]:
    """Read a file as mono sound at one rate: the mean of its channels, or one if they cancel.

    Channels cancel (a cable with swapped wires, a stereo pair of opposite sign) if they do so in
    every second of the file, or of its first max_seconds, in which one of them sounds. This is
    decided before the first block, for all blocks.

    Args:
        path: The file.
        sample_rate: Hz of the result.
        max_seconds: Stop reading there; None reads the whole file.
        facts: Filled while blocks are read.
        quality: Quality of the resampler, see soxr.

    Yields:
        float32 (S,), S <= MAX_BLOCK_SAMPLES, at least one block, in [-1, 1] unless the file
        overshoots.

    Raises:
        UnreadableSound: The file cannot be decoded; may come after some blocks. TruncatedSound
            comes after the last one.
        FileNotFoundError, PermissionError: As the system raises them.
    """
    facts = SoundFacts() if facts is None else facts
    with SoundReader(path) as reader:
        rate = reader.sample_rate
        announced = reader.announced_frames
        may_be_cut = max_seconds is not None and (
            announced is None or announced > max_seconds * rate
        )
        num_read = math.ceil((max_seconds + CUT_MARGIN) * rate) if may_be_cut else ENDLESS
        num_left = round(max_seconds * sample_rate) if may_be_cut else ENDLESS
        channel, held = _one_channel(reader, num_read)
        facts.took_one_channel = channel is not None
        block_frames = max(
            1, min(BLOCK_FRAMES, MAX_BLOCK_SAMPLES * rate // max(rate, sample_rate) // 2)
        )
        num_frames, is_any = 0, False

        def mono() -> Iterator[np.ndarray]:
            nonlocal num_frames
            for block in _bounded(reader, held, num_read, block_frames):  # (S, C)
                num_frames += len(block)
                if channel is None and reader.channels == 2:
                    # gives the same numbers as `mean` in a fiftieth of its time, which was most of
                    # the time to read a WAV
                    block = (block[:, 0] + block[:, 1]) / np.float32(2)  # (S,)
                elif channel is None and reader.channels > 1:
                    block = block.mean(axis=1)  # (S,)
                else:
                    block = block[:, channel or 0]
                if not np.isfinite(block).all():
                    raise UnreadableSound("holds samples that are NaN or infinite")
                yield block

        for block in _at_rate(mono(), rate, sample_rate, quality):
            block = block[:num_left]
            num_left -= len(block)
            if len(block):
                is_any = True
                yield block
        facts.is_cut = may_be_cut and num_frames > max_seconds * rate
    if not is_any:
        raise UnreadableSound("holds no samples")


def _bounded(
    reader: SoundReader, held: deque[np.ndarray], num_read: int, block_frames: int
) -> Iterator[np.ndarray]:
    """Yield the blocks in `held`, then read on: blocks (S, C), `num_read` frames in total."""
    while held:
        block = held.popleft()
        num_read -= len(block)
        for start in range(0, len(block), block_frames):
            yield block[start : start + block_frames]
    while num_read > 0 and len(block := reader.read(min(block_frames, num_read))):
        num_read -= len(block)
        yield block


def _at_rate(
    blocks: Iterator[np.ndarray], rate: int, sample_rate: int, quality: str
) -> Iterator[np.ndarray]:
    """Resample block by block. soxr gives the same samples as in one call on the whole clip."""
    if rate == sample_rate:
        yield from blocks
        return
    try:
        resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality=quality)
        for block in blocks:
            yield resampler.resample_chunk(block)
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UnreadableSound(f"cannot be resampled: {reason}") from None


def _one_channel(reader: SoundReader, num_read: int) -> tuple[int | None, deque[np.ndarray]]:
    """Choose the channel to use if the channels cancel.

    Seconds are checked one by one until the channels do not cancel in one of them: usually the
    first. Blocks read so far are kept if they fit into memory; otherwise the reader is rewound.

    Returns:
        The channel, None for the mean of all; the blocks (S, C) that were read and kept.
    """
    held: deque[np.ndarray] = deque()
    if reader.channels == 1:
        return None, held
    powers = np.zeros(reader.channels)
    num_held, cancels, is_rewound, is_end = 0, True, False, False
    try:
        while cancels and not is_end and num_read > 0:
            num_missing = min(reader.sample_rate, num_read)
            peak, own, together = 0.0, np.zeros(reader.channels), 0.0
            while num_missing and not is_end:
                block = reader.read(num_missing)
                is_end = not len(block)
                num_missing -= len(block)
                num_read -= len(block)
                if not is_rewound:
                    held.append(block)
                    num_held += block.size
                if num_held > 2 * MAX_BLOCK_SAMPLES:
                    held.clear()
                    num_held, is_rewound = 0, True
                peak = max(peak, float(np.abs(block).max(initial=0)))
                own += np.square(block, dtype=np.float64).sum(axis=0)
                together += float(np.square(block.sum(axis=1, dtype=np.float64)).sum())
            if peak >= SOUNDING:
                powers += own
                cancels = together <= CANCELLED * own.sum()
    except UnreadableSound:
        held.clear()
        is_rewound = True  # reading again raises the same error, after the samples before it
    if is_rewound:
        reader.seek(0)
    if not cancels or not powers.any():
        return None, held
    return int(np.argmax(powers >= powers.max() / 2)), held


# --- sources ---


def _open_source(path: bytes, file: Any, kind: Kind) -> "_Libsndfile | _Chain | _Ffmpeg":
    """Open the file with the decoder that reads it to its end."""
    mpeg, part = None, None
    if kind is sound_kinds.MP3:
        mpeg = sound_kinds.mpeg_layout(file)
        part = mpeg.start, mpeg.end
    elif (start := sound_kinds.start_after_tags(file)) or kind in sound_kinds.MAY_END_IN_TAGS:
        if kind is sound_kinds.AAC:
            file.seek(start)
            start += sound_kinds.adts_start(file.read(sound_kinds.MP3_SEARCHED)) or 0
        part = start, sound_kinds.end_before_tags(file)
    if part == (0, os.fstat(file.fileno()).st_size):
        part = None
    by_libsndfile, links = kind.by_libsndfile, []
    if kind is sound_kinds.OGG:
        links = sound_kinds.ogg_links(file)
        by_libsndfile = all(
            len(link.codecs) == 1 and link.codecs[0].startswith((b"\x01vorbis", b"OpusHead"))
            for link in links
        )
    if kind is sound_kinds.WAV:
        is_wrapped = sound_kinds.wrapped_wav_length(file) is not None
        by_libsndfile = not is_wrapped and not sound_kinds.wav_was_not_closed(file)
    if mpeg:
        # The Xing frame must count the whole file: it may belong to the first of several joined
        # files. mpg123 warns on stderr where its number of bytes is wrong by 1 % or more.
        num_bytes = mpeg.end - mpeg.start
        by_libsndfile = bool(
            mpeg.num_frames
            and mpeg.num_bytes
            and abs(num_bytes - mpeg.num_bytes) <= min(1024, mpeg.num_bytes / 100)
        )
    reason = ""
    if by_libsndfile:
        try:
            source = _Chain(path, links) if len(links) > 1 else _Libsndfile(path, part)
            # libsndfile estimates the length of MPEG in a WAV
            if kind is not sound_kinds.WAV or not source.is_mpeg:
                return source
            source.close()
        except soundfile.LibsndfileError as error:
            reason = _reason(error)
    if kind.demuxer is None:
        raise UnreadableSound(f"cannot be decoded: {reason}")
    try:
        source = _Ffmpeg(path, kind, part)
    except UnreadableSound as error:
        raise UnreadableSound(f"cannot be decoded: {reason}" if reason else str(error)) from None
    # Times restart in each link; those of Speex are not exact in a recording that was broken off.
    source.can_jump = len(links) <= 1 and not any(b"Speex   " in link.codecs for link in links)
    if mpeg and mpeg.num_frames:
        source.least_frames = mpeg.num_frames * mpeg.samples_of_frame, MAX_MISSING_MP3_FRAMES
    return source


def _without_waiting(path: bytes, flags: int) -> int:
    # Opening a pipe would wait for a writer. Windows has no pipes in folders.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


class _one_kind_of_error:
    """Turn the errors of the two libraries, and those of reading a file, into UnreadableSound."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, soundfile.SoundFileError):
            raise UnreadableSound(f"cannot be decoded: {_reason(error)}") from None
        as_they_are = (FileNotFoundError, PermissionError)
        if isinstance(error, OSError) and not isinstance(error, as_they_are):
            raise UnreadableSound(f"cannot be read: {error.strerror}") from None


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or str(error)
    return (
        " ".join(text.removeprefix("Error : ").split()).rstrip(".")
        or f"libsndfile error {getattr(error, 'code', '')}"
    )


class _ForwardFile(soundfile.SoundFile):
    """A file that is read without seeking.

    soundfile seeks to the current place after each block, which spoils the next MP3 block.
    """

    def seekable(self) -> bool:
        return False


class _Libsndfile:
    """A file, or a part of one, read by libsndfile."""

    def __init__(self, path: bytes, part: tuple[int, int] | None = None):
        self._path, self._part = path, part
        self._open()
        self.sample_rate, self.channels = self._file.samplerate, self._file.channels
        self.announced_frames = self._file.frames if self._file.frames < UNKNOWN_FRAMES else None

    @property
    def is_mpeg(self) -> bool:
        return self._file.subtype.startswith("MPEG")

    def _open(self) -> None:
        self._position = 0
        self._part_file = _Part(self._path, *self._part) if self._part else None
        self._file = _ForwardFile(self._part_file or self._path)

    def close(self) -> None:
        self._file.close()
        if self._part_file:
            self._part_file.close()

    def read(self, num_frames: int) -> np.ndarray:
        block = self._file.read(num_frames, dtype="float32", always_2d=True)
        self._position += len(block)
        return block

    def seek(self, frame: int) -> None:
        if self.announced_frames is not None:
            frame = min(frame, self.announced_frames)
        subtype = self._file.subtype
        preroll = PREROLL if subtype in NEEDS_PREROLL else 0
        is_near = 0 <= frame - self._position <= preroll
        if subtype in CANNOT_SEEK or self.announced_frames is None:
            if frame < self._position:
                self.close()
                self._open()
        elif not is_near:
            self._position = self._file.seek(max(0, frame - preroll))
        while self._position < frame and len(self.read(min(BLOCK_FRAMES, frame - self._position))):
            pass

    def count_frames(self) -> int:
        other = _Libsndfile(self._path, self._part)
        while len(other.read(BLOCK_FRAMES)):
            pass
        other.close()
        self.announced_frames = None
        return other._position

    def why_truncated(self) -> str | None:
        allowed = MAX_MISSING_MP3_FRAMES if self._file.format == "MP3" else 0
        if self.announced_frames is None or self._position >= self.announced_frames - allowed:
            return None
        return f"truncated: {self.announced_frames} frames announced, {self._position} decoded"


class _Part(io.RawIOBase):
    """Bytes `start` to `end` of a file as a file object."""

    def __init__(self, path: bytes, start: int, end: int, zeroed: int | None = None):
        self._file = open(path, "rb")
        # zeroed: place of a wrong length of 4 bytes, which is read as zeros
        self._start, self._end, self._zeroed = start, end, zeroed
        self._file.seek(start)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        place = self._file.tell()
        data = self._file.read(max(0, min(len(buffer), self._end - place)))
        if self._zeroed is not None:
            first, stop = max(0, self._zeroed - place), min(len(data), self._zeroed + 4 - place)
            if first < stop:
                data = data[:first] + bytes(stop - first) + data[stop:]
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        here = self._file.tell()
        bases = {os.SEEK_SET: self._start, os.SEEK_CUR: here, os.SEEK_END: self._end}
        place = min(max(self._start, bases[whence] + offset), self._end)
        return self._file.seek(place) - self._start

    def tell(self) -> int:
        return self._file.tell() - self._start

    def close(self) -> None:
        self._file.close()
        super().close()


class _Stream:
    """Joins decoded pieces; all get the sample rate and the channels of the first piece."""

    announced_frames: int | None = None

    def __init__(self) -> None:
        self._restart()
        first = next(self._pieces, None)
        if first is None:
            self.close()
            raise UnreadableSound("holds no samples")
        samples, self.sample_rate = first
        self.channels = samples.shape[1]
        self._pending.append(samples)

    def _decode(self) -> Iterator[tuple[np.ndarray, int]]:
        """Yield the pieces from the start of the file on: float32 (S, C), Hz."""
        raise NotImplementedError

    def _restart(self) -> None:
        self._pieces: Iterator[tuple[np.ndarray, int]] = self._decode()
        self._pending: deque[np.ndarray] = deque()
        self._position = 0  # of the next frame that `read` gives
        self._resampler, self._foreign_rate = None, 0

    def read(self, num_frames: int) -> np.ndarray:
        blocks, num_missing = [], num_frames
        while num_missing and (self._pending or self._fill()):
            block = self._pending.popleft()
            if len(block) > num_missing:
                self._pending.appendleft(block[num_missing:])
                block = block[:num_missing]
            blocks.append(block)
            num_missing -= len(block)
        self._position += num_frames - num_missing
        return np.concatenate(blocks) if blocks else np.zeros((0, self.channels), np.float32)

    def _fill(self) -> bool:
        """Put the next piece into `_pending`; return False at the end."""
        for samples, rate in self._pieces:
            if rate != self._foreign_rate:
                self._end_of_resampling()
            if samples.shape[1] != self.channels:
                samples = np.repeat(samples.mean(axis=1, keepdims=True), self.channels, axis=1)
            if rate != self.sample_rate:
                check_rate(rate)
                if self._resampler is None:
                    self._resampler = soxr.ResampleStream(
                        rate, self.sample_rate, self.channels, dtype="float32", quality="VHQ"
                    )
                    self._foreign_rate = rate
                # Resample in bounded parts: a packet may be large, and 1 kHz may become 768 kHz.
                step = max(1, MAX_BLOCK_SAMPLES * rate // self.sample_rate // self.channels)
                for start in range(0, len(samples), step):
                    part = np.ascontiguousarray(samples[start : start + step])
                    self._pending.append(self._resampler.resample_chunk(part))
            else:
                self._pending.append(samples)
            return True
        self._end_of_resampling()
        return bool(self._pending)

    def _end_of_resampling(self) -> None:
        if self._resampler is not None:
            empty = np.zeros((0, self.channels), np.float32)
            self._pending.append(self._resampler.resample_chunk(empty, last=True))
            self._resampler, self._foreign_rate = None, 0

    def seek(self, frame: int) -> None:
        if frame < self._position:
            self._restart()
        self._discard(frame - self._position)

    def _discard(self, num_frames: int) -> None:
        while num_frames > 0 and len(block := self.read(min(BLOCK_FRAMES, num_frames))):
            num_frames -= len(block)

    def count_frames(self) -> int:
        other, num_frames = copy.copy(self), 0
        other._restart()
        while len(block := other.read(BLOCK_FRAMES)):
            num_frames += len(block)
        return num_frames

    def why_truncated(self) -> str | None:
        return None

    def close(self) -> None:
        self._pieces.close()


class _Chain(_Stream):
    """The links of a chained Ogg file, read by libsndfile one after the other."""

    def __init__(self, path: bytes, links: list[sound_kinds.OggLink]):
        self._path, self._parts = path, [(link.start, link.end) for link in links]
        super().__init__()

    def _decode(self) -> Iterator[tuple[np.ndarray, int]]:
        for part in self._parts:
            link = _Libsndfile(self._path, part)
            try:
                while len(block := link.read(BLOCK_FRAMES)):
                    yield block, link.sample_rate
            finally:
                link.close()


class _Ffmpeg(_Stream):
    """A file, or a part of one, read by FFmpeg without its log messages."""

    # announced number of frames, and how many of them may be missing
    least_frames: tuple[int, int] | None = None
    can_jump = True  # times increase from the start to the end of the file

    def __init__(self, path: bytes, kind: Kind, part: tuple[int, int] | None):
        self._path, self._kind, self._part = path, kind, part or (0, os.path.getsize(path))
        with open(path, "rb") as file:
            self._zeroed = sound_kinds.wrapped_wav_length(file) if kind is sound_kinds.WAV else None
        # one per decoded second: frame, time in FFmpeg's units
        self._seek_points: list[tuple[int, int]] = []
        super().__init__()
        if kind.name in sound_kinds.WITH_EXACT_LENGTH and self._announced_seconds:
            self.least_frames = (
                round(self._announced_seconds * self.sample_rate),
                round(MAX_MISSING_SECONDS * self.sample_rate),
            )

    def _decode(self) -> Iterator[tuple[np.ndarray, int]]:
        return self._noted(self._decoded_frames(), 0)

    def _noted(self, frames: Iterator[Any], position: int) -> Iterator[tuple[np.ndarray, int]]:
        """Yield samples and rate of FFmpeg's frames; keep a seek point for each new second."""
        # After a change of the rate, positions count resampled frames. Times that restart (chained
        # Ogg) are ambiguous.
        rate, is_one_rate = 0, True
        for frame in frames:
            rate = rate or frame.sample_rate
            is_one_rate = is_one_rate and frame.sample_rate == rate
            if frame.pts is not None and self._seek_points and position > self._seek_points[-1][0]:
                self.can_jump = self.can_jump and frame.pts > self._seek_points[-1][1]
            if is_one_rate and frame.pts is not None and position >= len(self._seek_points) * rate:
                self._seek_points.append((position, frame.pts))
            position += frame.samples
            yield _samples_of(frame), frame.sample_rate

    def _decoded_frames(self, seek_to: int | None = None) -> Iterator[Any]:
        """Yield FFmpeg's frames from the start, or from a packet before the time `seek_to`."""
        import av  # slow to import, and most files need no FFmpeg

        self._num_packets = self._num_bad = 0
        self._is_last_bad = False
        self._announced_seconds = None
        av.logging.set_level(None)
        with contextlib.closing(_Part(self._path, *self._part, self._zeroed)) as file:
            try:
                # Not `options`: PyAV reads past the end of that array if streams appear after the
                # header (FLV, VOC).
                limits = {"protocol_whitelist": "none"}
                demuxer = self._kind.demuxer
                with av.open(
                    file, format=demuxer, container_options=limits, metadata_errors="replace"
                ) as container:
                    stream = container.streams.best("audio")
                    if stream is None:
                        raise UnreadableSound(f"is {self._kind.name} without sound")
                    if stream.codec_context is None:
                        raise UnreadableSound("cannot be decoded: its coding is not known")
                    if stream.duration:
                        self._announced_seconds = float(stream.duration * stream.time_base)
                    for other in container.streams:
                        # newer PyAV can skip reading pictures
                        if other is not stream and hasattr(other, "discard"):
                            other.discard = type(other.discard).all
                    if seek_to is not None:
                        container.seek(seek_to, stream=stream)
                    yield from self._frames_of(container, stream)
            except av.error.FFmpegError as error:
                raise UnreadableSound(f"cannot be decoded: {error.strerror}") from None
            except IndexError:  # PyAV counts the streams once, at the start of the file
                raise UnreadableSound("cannot be decoded: a stream begins in its middle") from None

    def _frames_of(self, container: Any, stream: Any) -> Iterator[Any]:
        import av

        first_error = ""
        for packet in container.demux(stream):
            self._num_packets += 1
            try:
                frames = packet.decode()
            except av.error.EOFError:
                return
            except av.error.FFmpegError as error:
                first_error = first_error or error.strerror
                self._num_bad += 1
                self._is_last_bad = True
                continue
            if packet.size:
                self._is_last_bad = False
            yield from (frame for frame in frames if frame.samples)
        if self._num_bad > max(1, MAX_BAD_PACKETS * self._num_packets):
            raise UnreadableSound(
                f"cannot be decoded: {self._num_bad} of its {self._num_packets} packets are damaged"
                f" ({first_error})"
            )

    def seek(self, frame: int) -> None:
        number = bisect.bisect_right(self._seek_points, (frame, math.inf)) - 1
        is_near = 0 <= frame - self._position <= PREROLL
        leads_on = number >= 2 and (
            frame < self._position or self._seek_points[number][0] > self._position
        )
        may_jump = leads_on and not is_near and self._kind.has_exact_times and self.can_jump
        if may_jump and self._jump(self._seek_points[number - 1][1], *self._seek_points[number]):
            self._discard(frame - self._position)
        else:
            super().seek(frame)

    def _jump(self, earlier: int, position: int, pts: int) -> bool:
        """Continue with the frame of time `pts`; decode from the time `earlier`.

        Returns False if FFmpeg does not find the frame.
        """
        self._restart()
        self._pieces = self._noted(self._frames_from(earlier, pts), position)
        first = next(self._pieces, None)
        if first is None:
            self._restart()
            return False
        self._pending.append(first[0])
        self._position = position
        return True

    def _frames_from(self, earlier: int, pts: int) -> Iterator[Any]:
        is_found = False
        for frame in self._decoded_frames(earlier):
            if not is_found and (frame.pts is None or frame.pts > pts):
                return
            is_found = is_found or frame.pts == pts
            if is_found:
                yield frame

    def why_truncated(self) -> str | None:
        if self._kind is sound_kinds.FLAC and self._is_last_bad:
            return "truncated: the last frame is cut off"
        if self.least_frames and self._position < self.least_frames[0] - self.least_frames[1]:
            return f"truncated: {self.least_frames[0]} frames announced, {self._position} decoded"
        return None


def _samples_of(frame: Any) -> np.ndarray:
    """Return the samples of one FFmpeg frame, float32 (S, C), full scale 1."""
    data = frame.to_ndarray()  # (C, S), or (1, S * C)
    data = data.T if frame.format.is_planar else data.reshape(frame.samples, -1)
    if data.dtype == np.uint8:
        return (data.astype(np.float32) - 128) / 128
    if np.issubdtype(data.dtype, np.integer):
        return data.astype(np.float32) / np.float32(-float(np.iinfo(data.dtype).min))
    return data.astype(np.float32, copy=False)
