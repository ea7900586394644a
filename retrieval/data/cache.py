"""Read the Arrow cache that data_prep/build_*.py writes: one row per clip, audio as bytes.

PCM is sliced from the memory map: only the requested samples are read. FLAC is decoded from the
frame with the first of them. MP3 is decoded from the beginning of the clip: a decoder that starts
later lacks bits of earlier frames, and libmpg123 then gives other samples, off by up to full scale
at low bit rates.
"""

import hashlib
import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow

from retrieval.base.access import check_readable
from retrieval.base.errors import UserError, one_line
from retrieval.base.files import read_json
from retrieval.data.moments import MomentQuery, check_moments, read_moments
from retrieval.data.schema import (
    AUDIO,
    CAPTIONS,
    CLIP_ID,
    FILE_NAME,
    FLAC,
    MOMENTS,
    MP3,
    NUM_SAMPLES,
    PCM,
    SCHEMA,
)

FINGERPRINT_BYTES = 2048  # of each piece of a clip
BUILD = "build it with the data_prep/build_*.py of its corpus (docs/corpora.md)"
OTHER = "name another one: data.cache=DIR for train.py, --cache DIR elsewhere"


class ClipSplit:
    """The clips of one split; audio is read on demand.

    Attributes:
        captions: List of captions for each clip.
        clip_ids, file_names: Of each clip.
        num_samples: Length of each clip, int64 (len,).
        moments: Queries with their times for each clip, empty lists where the cache has none.
        sample_rate: In Hz.
    """

    holds_frames = False  # True for FrameSplit, which takes the place of this class

    def __init__(self, name: str, table: datasets.Dataset, codec: str, sample_rate: int):
        self.name = name
        self.codec = codec
        self.sample_rate = sample_rate
        self.clip_ids: list[str] = list(table[CLIP_ID])
        self.file_names: list[str] = list(table[FILE_NAME])
        self.captions: list[list[str]] = list(table[CAPTIONS])
        self.num_samples = np.asarray(table[NUM_SAMPLES], dtype=np.int64)  # (len,)
        self.moments = self._read_moments(table)
        self._table = table
        self._audio = _clip_buffers(table.data.column(AUDIO))

    def __reduce__(self) -> tuple[Any, ...]:
        # For loader processes that are not forked (Python 3.14): a table is sent as the path of its
        # files, a column as all its bytes.
        return ClipSplit, (self.name, self._table, self.codec, self.sample_rate)

    def __len__(self) -> int:
        return len(self.clip_ids)

    def _read_moments(self, table: datasets.Dataset) -> list[list[MomentQuery]]:
        column = table.data.column(MOMENTS) if MOMENTS in table.column_names else None
        # A column of text is metadata: an earlier build_hub.py --keep-columns could write it.
        if column is None or pyarrow.types.is_string(column.type):
            return [[] for _ in self.clip_ids]
        moments = read_moments(column.to_pylist())
        check_moments(moments, (self.num_samples / self.sample_rate).tolist())
        return moments

    @property
    def has_moments(self) -> bool:
        """True if any clip has queries with times."""
        return any(self.moments)

    def fingerprint(self, with_moments: bool = False) -> str:
        """Return a digest of clip ids, lengths and captions in order, not of the cache's place.

        With `with_moments` it covers queries with times too. Scores and runs of retrieval use the
        digest without them, so that they stay valid if a corpus gets times.
        """
        content = [self.clip_ids, self.num_samples.tolist(), self.captions]
        if with_moments and self.has_moments:
            content.append([[vars(query) for query in queries] for queries in self.moments])
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def column(self, name: str) -> list[Any] | None:
        """Return metadata of the corpus for each clip, such as `keywords`; None if absent."""
        return list(self._table[name]) if name in self._table.column_names else None

    def audio_fingerprint(self) -> str:
        """Return a digest of the beginning, middle and end of each clip's bytes."""
        digest = hashlib.sha256()
        for buffer in self._audio:
            last = max(0, buffer.size - FINGERPRINT_BYTES)
            pieces = [
                buffer.slice(start, min(FINGERPRINT_BYTES, buffer.size)).to_pybytes()
                for start in (0, last // 2, last)
            ]
            digest.update(buffer.size.to_bytes(8, "little") + b"".join(pieces))
        return digest.hexdigest()

    def read(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read samples of a clip.

        Args:
            index: Number of the clip.
            start: First sample.
            stop: Sample after the last one; None: to the end.

        Returns:
            float32 (stop - start,) in [-1, 1].

        Raises:
            UserError: The bytes are damaged.
        """
        return as_float(self.read_stored(index, start, stop))

    def read_stored(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read as `read` does, but PCM stays int16 in the read-only memory map."""
        num_expected = len(range(*slice(start, stop).indices(int(self.num_samples[index]))))
        try:
            samples = DECODERS[self.codec](self._audio[index], start, stop)
            if len(samples) != num_expected:
                raise ValueError(f"{len(samples)} samples in place of {num_expected}")
        except (ValueError, RuntimeError) as error:  # soundfile's errors are RuntimeErrors
            folder = Path(self._table.cache_files[0]["filename"]).parents[1]
            clip = f"clip {self.file_names[index]!r} in split {self.name!r} of cache {folder}"
            raise UserError(
                f"{clip} is damaged ({one_line(error)}); {_build_again(folder)}"
            ) from None
        return samples


def as_float(samples: np.ndarray) -> np.ndarray:
    """Convert int16 (S,) to float32 in [-1, 1], exactly; return float32 of any shape unchanged."""
    if samples.dtype == np.float32:
        return samples
    # One pass over memory: 1.5 times as fast as converting first, 3 times as fast as dividing.
    return np.multiply(samples, np.float32(1 / 32768))


def _decode_pcm(buffer: pyarrow.Buffer, start: int, stop: int | None) -> np.ndarray:
    return np.frombuffer(buffer, dtype="<i2")[start:stop]


def _decode_flac(buffer: pyarrow.Buffer, start: int, stop: int | None) -> np.ndarray:
    import soundfile

    return soundfile.read(io.BytesIO(buffer), start=start, stop=stop, dtype="float32")[0]


def _decode_mp3(buffer: pyarrow.Buffer, start: int, stop: int | None) -> np.ndarray:
    import soundfile

    samples = soundfile.read(io.BytesIO(buffer), stop=stop, dtype="float32")[0][start:]
    # the codec overshoots at full scale
    return np.clip(samples, -1, 1, out=samples)


DECODERS = {PCM: _decode_pcm, FLAC: _decode_flac, MP3: _decode_mp3}


class Cache:
    """An opened cache; see `open_cache`. `info` is the content of its cache.json."""

    def __init__(self, path: Path, info: dict[str, Any]):
        self.path = path
        self.info = info

    @property
    def sample_rate(self) -> int:
        return self.info["sample_rate"]

    @property
    def split_names(self) -> list[str]:
        return list(self.info["splits"])

    def split(self, name: str, need_captions: bool = True) -> ClipSplit:
        """Open a split.

        Args:
            name: A name of retrieval.data.schema.SPLITS.
            need_captions: Refuse a split without captions.

        Raises:
            UserError: The split is absent, empty or damaged, or has no captions.
        """
        if name not in self.info["splits"]:
            raise UserError(
                f"cache {self.path} has no split {name!r}, only: {', '.join(self.split_names)};"
                " build it again with one (build_folder.py --fractions, build_hub.py --split"
                f" {name}=NAME)"
            )
        # before loading: datasets cannot load a table without rows
        if not self.info["splits"][name]["num_clips"]:
            raise UserError(
                f"split {name!r} of cache {self.path} holds no clips; check the corpus and build"
                " the cache again"
            )
        check_readable(self.path / name, "cache")
        try:
            table = datasets.load_from_disk(str(self.path / name))
            clips = ClipSplit(name, table, self.info["codec"], self.sample_rate)
        except Exception as error:  # pyarrow and datasets raise many kinds for a damaged file
            raise UserError(
                f"split {name!r} of cache {self.path} is damaged ({one_line(error)});"
                f" {_build_again(self.path)}"
            ) from None
        if need_captions and not any(clips.captions):
            raise UserError(
                f"split {name!r} of cache {self.path} has no captions, so there is nothing to train"
                " on or to score; bring texts of your own: evaluate.py --captions FILE, --relevance"
                " FILE or --submission FORMAT FILE --queries FILE, or labels: python -m"
                " retrieval.zero_shot"
            )
        if clips.num_samples.min() < 1:
            empty = clips.file_names[int(clips.num_samples.argmin())]
            raise UserError(
                f"clip {empty!r} in split {name!r} of cache {self.path} has no samples;"
                f" {_build_again(self.path)}"
            )
        return clips


def open_cache(path: str | Path, sample_rate: int | None = None) -> Cache:
    """Open a folder that a data_prep/build_*.py wrote.

    Args:
        path: The folder.
        sample_rate: If given, the rate in Hz that the cache must have.

    Returns:
        The cache; `.split(name)` opens a split.

    Raises:
        UserError: The folder is absent or half-built, or has another schema, codec or sample rate.
    """
    path = Path(path)
    check_readable(path, "cache")
    if not (path / "cache.json").is_file():
        if path.is_dir() or Path(f"{path}.partial").exists():
            what = "the build did not finish or this is another folder"
            raise UserError(
                f"{path} is not a complete cache (no cache.json): {what}; {BUILD}, or {OTHER}"
            )
        raise UserError(f"cache {path} does not exist; {BUILD}, or {OTHER}")
    try:
        info = read_json(path / "cache.json")
        schema, codec, rate = info["schema"], info["codec"], info["sample_rate"]
        _ = [split["num_clips"] for split in info["splits"].values()]
        if not isinstance(rate, int) or rate < 1:
            raise ValueError(f"sample_rate is {rate!r}, not a number of Hz")
        if not isinstance(codec, str):
            raise ValueError("codec is not a name")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path / 'cache.json'} cannot be understood ({one_line(error)}); {BUILD} and"
            f" --overwrite, or {OTHER}"
        ) from None
    if schema != SCHEMA:
        raise UserError(
            f"cache {path} has schema {schema}, this version reads schema {SCHEMA};"
            f" {_build_again(path)}"
        )
    if codec not in DECODERS:
        raise UserError(
            f"cache {path} codes audio as {codec!r}, this version reads {', '.join(DECODERS)};"
            f" {_build_again(path)}"
        )
    if sample_rate is not None and rate != sample_rate:
        raise UserError(
            f"cache {path} is sampled at {rate} Hz, data.sample_rate is {sample_rate}; set"
            f" data.sample_rate={rate}, or build again with --sample-rate {sample_rate} --overwrite"
        )
    return Cache(path, info)


def _build_again(path: Path) -> str:
    return f"build it with the command in {path / 'cache.json'} and --overwrite"


def _clip_buffers(column: pyarrow.ChunkedArray) -> list[pyarrow.Buffer]:
    """Return the bytes of each clip in the memory map; a scalar's as_buffer() would copy them."""
    buffers = []
    for chunk in column.cast(pyarrow.large_binary()).chunks:
        _, offsets, data = chunk.buffers()
        bounds = np.frombuffer(offsets, dtype=np.int64)[chunk.offset :][: len(chunk) + 1].tolist()
        buffers += [data.slice(start, stop - start) for start, stop in pairwise(bounds)]
    return buffers
