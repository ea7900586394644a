"""Open a dataset of the library `datasets`: its splits, its columns, and its rows in order.

Sources: a name on the Hugging Face hub, a folder (Parquet, audiofolder, WebDataset tars, JSON, CSV,
or written by `save_to_disk`), or a builder of `datasets` with files and URLs. Nothing is decoded
here, so torchcodec is not needed, and no code of a dataset runs. Rows are read one after the other,
also of local files, so that memory holds a few rows and nothing is copied to a cache of `datasets`.

`datasets` resolves names, configurations and splits to files. Two kinds of files are read here:
Parquet, of which `datasets` holds a whole row group in memory, and tars, which it refuses if the
first samples have different members. Other files are read by `datasets`.
"""

import bz2
import copy
import gzip
import io
import lzma
import os
import re
import tarfile
from collections.abc import Callable, Collection, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.utils.file_utils import xopen  # open() for URLs and parts of archives, with retries
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub import logging as hub_logging
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from retrieval.base.errors import UserError, one_line
from retrieval.base.files import parse_json, read_json
from retrieval.base.sound_kinds import AUDIO_ENDINGS
from retrieval.data.schema import DEVELOPMENT, EVALUATION, SPLITS, VALIDATION

# builders of `datasets` that --data-files may be read with; also by the endings of the files
BUILDERS = ("parquet", "webdataset", "audiofolder", "json", "csv", "arrow")
BUILDER_OF_ENDING = {
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".arrow": "arrow",
}
USUAL_NAMES = {
    DEVELOPMENT: ("train", "training", "development"),
    VALIDATION: ("validation", "valid", "val", "dev"),
    EVALUATION: ("test", "testing", "eval", "evaluation"),
}
TIMEOUT = 15.0  # s, for the hub's first answer
BATCH_ROWS = 16  # rows of a Parquet file in memory; row groups may have gigabytes
BUFFER_BYTES = 2**22  # of each column that is read
PEEKED_ROWS = 16  # to see the columns of files without a schema
TAR_BLOCK = 512  # bytes
DECOMPRESSORS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
SAMPLE = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)  # key and field of a tar's member
SOUND = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}


@dataclass
class HubDataset:
    """A dataset that can be read in order."""

    name: str  # as messages name it
    kind: str  # parquet, webdataset, ...
    origin: Any  # JSON that changes with the files
    files: dict[str, list[str]]  # split -> its files, or URLs
    root: str  # folder or URL, without which no file of it can be named
    is_remote: bool
    _splits: dict[str, "datasets.IterableDataset | _Files"]
    columns: dict[str, str] = field(default_factory=dict)  # name -> kind, see kind_of_value

    def select(self, columns: set[str]) -> None:
        """Read only these columns, and the others no more."""
        if self.kind == "parquet":
            self._splits = {
                split: _Files(_parquet_rows, paths, columns=columns)
                for split, paths in self.files.items()
            }
        for split, rows in self._splits.items():
            if rows.features is None:
                continue
            rows = rows.select_columns([name for name in rows.features if _is_in(name, columns)])
            for name, feature in rows.features.items():
                if isinstance(feature, datasets.Audio):
                    plain = datasets.Value("string") if self.kind == "audiofolder" else SOUND
                    rows = rows.cast_column(name, plain)
            self._splits[split] = rows

    def rows(self, split: str, place: dict[str, Any] | None) -> Iterator[tuple[dict, "Place"]]:
        """Yield the rows of a split from a place on, and the place behind each.

        Raises UserError, also for a connection that breaks off again and again.
        """
        # a copy: --fractions reads a split several times, and each reading keeps its own place
        rows, num_rows = copy.deepcopy(self._splits[split]), place["row"] if place else 0
        if place and place["version"] == _version(rows):
            rows.load_state_dict(place["state"])
        elif place:  # other versions may count otherwise: read the rows again
            rows = rows.skip(num_rows)
        here = Place(rows, num_rows)
        try:
            for row in rows:
                here.row += 1
                yield row, here
        except UserError:
            raise
        except Exception as error:  # of pyarrow, tarfile, fsspec, aiohttp, httpx, ...
            raise self._unreadable(split, here, error) from None

    def _unreadable(self, split: str, here: "Place", error: Exception) -> UserError:
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        number = _file_number(here.rows)
        files = [file for file in self.files.get(split, []) if not _is_sound_file(file)]
        name = files[number] if number is not None and number < len(files) else self.name
        advice = "is it damaged, or are its columns others than those of the first file?"
        if self.is_remote:
            advice = "run the same command again to go on from the last finished part"
        return UserError(
            f"{name} (split {split}) cannot be read after {here.row:,} rows"
            f" ({one_line(cause, longest=300)}): {advice}"
        )


@dataclass
class Place:
    """A place in a split, behind the row that was read last."""

    rows: "datasets.IterableDataset | _Files"
    row: int  # rows before it

    def content(self) -> dict[str, Any]:
        """Return it as JSON, for HubDataset.rows."""
        return {
            "row": self.row,
            "version": _version(self.rows),
            "state": self.rows.state_dict(),
        }


def open_dataset(
    name: str,
    config: str | None = None,
    revision: str | None = None,
    data_files: list[str] | None = None,
    splits: list[str] | None = None,
    streaming: bool = False,
) -> tuple[HubDataset, dict[str, list[str]]]:
    """Open a dataset and choose its splits.

    Args:
        name: Folder, name on the hub, or one of BUILDERS with `data_files`.
        config: Configuration of the dataset.
        revision: Branch, tag or commit of a dataset on the hub.
        data_files: Files or URLs, each perhaps with `SPLIT=` before it.
        splits: `development=train` and so on; None maps the usual names.
        streaming: Read a dataset of the hub over the network, in place of a download.

    Returns:
        The dataset, and for each split of the cache the splits of the dataset.

    Raises:
        UserError: It cannot be opened, or lacks a split.
    """
    # one line of our own instead of their log and bars
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    hub_logging.set_verbosity(hub_logging.CRITICAL)
    folder = Path(name)
    if not name.strip():
        raise UserError("--dataset is empty: expected a folder, or a name on the Hugging Face hub")
    if data_files or name in BUILDERS or _builder_of(name):
        if not data_files and name in BUILDERS and not folder.is_dir():
            raise UserError(f"--dataset {name} needs --data-files: give its files or URLs")
        if data_files or _builder_of(name):
            if config or revision:
                raise UserError("--config and --revision have no effect on files and URLs")
            return _open_files(name, data_files, splits)
    if folder.is_dir():
        if revision:
            raise UserError("--revision belongs to a dataset on the hub, --dataset is a folder")
        if (folder / "cache.json").is_file():
            raise UserError(
                f"--dataset {name} is an Arrow cache of this project already: give it as data.cache"
            )
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            return _open_saved(folder, config, splits)
        if re.search(r"[*?\[]", str(folder.absolute())):
            raise UserError(
                f"--dataset {name}: `datasets` takes the signs * ? [ in a path for a pattern: give"
                " the folder another name"
            )
        builder = _builder(name, name, name=config)
        chosen = choose_splits(name, list(builder.config.data_files), splits)
        files = {split: [*builder.config.data_files[split]] for split in _flat(chosen)}
        origin = {split: [_stamp(file) for file in files[split]] for split in files}
        return _streamed(name, builder, files, origin, str(folder.absolute()), False), chosen
    return _open_hub(name, config, revision, splits, streaming)


def choose_splits(name: str, found: list[str], wanted: list[str] | None) -> dict[str, list[str]]:
    """Return the splits of the dataset for each split of the cache, in the order of SPLITS.

    Args:
        name: Of the dataset, for messages.
        found: Its splits.
        wanted: `development=train`, ...; None maps USUAL_NAMES.

    Raises:
        UserError: A split is unknown, or none has a usual name.
    """
    found = [str(split) for split in found]
    chosen: dict[str, list[str]] = {split: [] for split in SPLITS}
    there = f"its splits are {', '.join(found)}"
    for text in wanted or []:
        ours, sign, theirs = text.partition("=")
        if not sign or ours not in SPLITS:
            raise UserError(
                f"--split {text}: expected one of {', '.join(SPLITS)}, then = and a split of"
                f" {name}: {there}"
            )
        if theirs not in found:
            raise UserError(f"--split {text}: {name} has no split {theirs!r}: {there}")
        if any(theirs in others for others in chosen.values()):
            raise UserError(f"--split {text}: {theirs} is given twice")
        chosen[ours].append(theirs)
    if not wanted:
        for ours, names in USUAL_NAMES.items():
            chosen[ours] = [split for split in found if split.lower() in names]
    chosen = {ours: theirs for ours, theirs in chosen.items() if theirs}
    if not chosen:
        raise UserError(
            f"{name}: {there}, and none of them has a usual name: say which is which with --split,"
            f" such as development={found[0] if found else 'train'}"
        )
    return chosen


def _flat(chosen: dict[str, list[str]]) -> list[str]:
    return [split for theirs in chosen.values() for split in theirs]


def _builder_of(name: str) -> str | None:
    """Return the builder for a file or URL by its ending; None for a folder or a name."""
    if Path(name).is_dir():
        return None
    return BUILDER_OF_ENDING.get(os.path.splitext(name.partition("?")[0])[1].lower())


def _open_files(
    name: str, data_files: list[str] | None, splits: list[str] | None
) -> tuple[HubDataset, dict[str, list[str]]]:
    if data_files and name not in BUILDERS:
        raise UserError(
            f"--data-files needs the kind of the files as --dataset, one of {', '.join(BUILDERS)};"
            f" found {name}"
        )
    kind = name if data_files else _builder_of(name)
    files: dict[str, list[str]] = {}
    for text in data_files or [name]:
        found = re.fullmatch(r"(\w[\w.-]*)=(.+)", text)
        split, file = (found[1], found[2]) if found and not Path(text).exists() else ("train", text)
        if "://" not in file:
            if not Path(file).is_file():
                raise UserError(f"--data-files {file} is not a file")
            file = str(Path(file).absolute())
        elif not file.startswith(("http://", "https://", "hf://")):
            raise UserError(f"--data-files {file}: expected a file, or http://, https:// or hf://")
        files.setdefault(split, []).append(file)
    chosen = choose_splits(name, list(files), splits)
    files = {split: files[split] for split in _flat(chosen)}
    label = name if not data_files else next(iter(files.values()))[0]
    builder = _builder(label, kind, data_files=files)
    stamps = _stamps_of_builder(builder)
    is_remote = any("://" in file for group in files.values() for file in group)
    origin = {
        split: [[*stamps[split][number], *_stamp(file)] for number, file in enumerate(group)]
        for split, group in files.items()
    }
    root = (
        ""
        if is_remote
        else os.path.commonpath(
            [os.path.dirname(file) for group in files.values() for file in group]
        )
    )
    return _streamed(label, builder, files, origin, root, is_remote), chosen


def _stamps_of_builder(builder: datasets.DatasetBuilder) -> dict[str, list[tuple]]:
    """ETags and the like of the files, as `datasets` found them."""
    return {
        str(split): [*getattr(files, "origin_metadata", [])] + [()] * len(files)
        for split, files in builder.config.data_files.items()
    }


def _stamp(file: str) -> list[Any]:
    """Return name, size and time of a local file; the address of another."""
    if "://" in file:
        return [file]
    status = os.stat(file)
    return [os.path.basename(file), status.st_size, status.st_mtime_ns]


def _builder(label: str, path: str, **arguments: Any) -> datasets.DatasetBuilder:
    try:
        builder = datasets.load_dataset_builder(path, **arguments)
    except RuntimeError as error:
        if "scripts" not in str(error):
            raise
        raise UserError(
            f"{label} is loaded by a script of its own, and code of a dataset is not run: take"
            " another dataset, or --revision refs/convert/parquet, where the hub has converted it"
        ) from None
    except Exception as error:  # ValueError, FileNotFoundError, of httpx, of YAML, ...
        text = " ".join(str(error).split())
        if "BuilderConfig" in text or "Config name is missing" in text:
            found = re.search(r"\[[^\]]*\]", text)
            names = found[0].strip("[]").replace("'", "") if found else text[:200]
            raise UserError(f"{label}: choose a configuration with --config: {names}") from None
        raise UserError(f"{label} cannot be opened ({one_line(error, longest=300)})") from None
    if not builder.config.data_files:
        raise UserError(f"{label} holds no data files that `datasets` can read")
    return builder


def _streamed(
    name: str,
    builder: datasets.DatasetBuilder,
    files: dict[str, list[str]],
    origin: Any,
    root: str,
    is_remote: bool,
) -> HubDataset:
    """Open the chosen splits of a builder. Reads schemas only."""
    kind = type(builder).__module__.rpartition(".")[2]
    config = builder.config
    config.data_files = files
    try:
        if kind == "webdataset":
            rows = {split: _Files(_tar_rows, paths) for split, paths in files.items()}
        elif kind == "parquet":
            rows = {
                split: _Files(_parquet_rows, paths, columns=None) for split, paths in files.items()
            }
        else:
            rows = builder.as_streaming_dataset()
    except UserError:
        raise
    except StopIteration:  # raised for a JSON file without lines
        raise UserError(f"{name} cannot be opened: its first file is empty") from None
    except Exception as error:
        raise UserError(f"{name} cannot be opened ({one_line(error, longest=300)})") from None
    dataset = HubDataset(name, kind, origin, files, root, is_remote, dict(rows))
    dataset.columns = _columns(dataset)
    return dataset


def _open_saved(
    folder: Path, config: str | None, splits: list[str] | None
) -> tuple[HubDataset, dict[str, list[str]]]:
    if config:
        raise UserError(f"--config has no effect on {folder}, which save_to_disk has written")
    loaded: dict[str, datasets.Dataset] = {}
    try:
        if (folder / "dataset_dict.json").is_file():
            names = read_json(folder / "dataset_dict.json")["splits"]
            folders = {split: folder / split for split in names}
        else:
            folders = {str(read_json(folder / "state.json").get("_split") or "train"): folder}
        chosen = choose_splits(str(folder), list(folders), splits)
        for split in _flat(chosen):
            # `datasets` cannot load a split without rows
            if not read_json(folders[split] / "state.json")["_data_files"]:
                raise empty_split(str(folder), split)
            loaded[split] = datasets.Dataset.load_from_disk(str(folders[split]))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{folder} cannot be opened ({one_line(error, longest=300)})") from None
    files = {
        split: [entry["filename"] for entry in found.cache_files] for split, found in loaded.items()
    }
    origin = {split: [_stamp(file) for file in files[split]] for split in files}
    rows = {split: found.to_iterable_dataset() for split, found in loaded.items()}
    dataset = HubDataset(str(folder), "saved", origin, files, str(folder.absolute()), False, rows)
    dataset.columns = _columns(dataset)
    return dataset, chosen


def _open_hub(
    name: str,
    config: str | None,
    revision: str | None,
    splits: list[str] | None,
    streaming: bool,
) -> tuple[HubDataset, dict[str, list[str]]]:
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    try:
        validate_repo_id(name)
    except HFValidationError:
        looks_like_path = True
    if looks_like_path:
        raise UserError(
            f"--dataset {name} is not a folder, and not a name on the Hugging Face hub, which is"
            " user/name"
        )
    sha = _commit(name, revision)
    builder = _builder(name, name, name=config, revision=sha)
    chosen = choose_splits(name, list(builder.config.data_files), splits)
    files = {split: [*builder.config.data_files[split]] for split in _flat(chosen)}
    root = f"hf://datasets/{name}@{sha}/"
    origin = {split: [file.removeprefix(root) for file in files[split]] for split in files}
    origin = {"commit": sha, "files": origin}
    label = f"{name}@{sha[:7]}"
    if streaming:
        return _streamed(label, builder, files, origin, root, True), chosen
    local = _downloaded(name, sha, [path for split in files for path in origin["files"][split]])
    files = {
        split: [os.path.join(local, path) for path in origin["files"][split]] for split in files
    }
    return _streamed(label, builder, files, origin, local, False), chosen


def _commit(name: str, revision: str | None) -> str:
    """Return the commit of a dataset on the hub. Raises UserError."""
    advice = (
        f"download it where there is internet (hf download {name} --repo-type dataset --local-dir"
        f" data/{name.rpartition('/')[2]}), and give that folder as --dataset"
    )
    gated = (
        f"dataset {name} is gated: ask for access on its page on the hub, log in with `hf auth"
        " login` or set HF_TOKEN, and run again"
    )
    try:
        api = HfApi()
        info = api.dataset_info(name, revision=revision, timeout=TIMEOUT)
        if info.gated:
            api.auth_check(name, repo_type="dataset")
    except GatedRepoError:
        raise UserError(gated) from None
    except RevisionNotFoundError:
        raise UserError(f"dataset {name} has no revision {revision!r} on the hub") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"--dataset {name} is not a folder here, and the Hugging Face hub knows no dataset of"
            " that name (or a private one: log in with `hf auth login`)"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "unknown"
        raise UserError(
            f"the Hugging Face hub does not give {name} (status {status}): try again later, or"
            f" {advice}"
        ) from None
    except Exception:  # of httpx or httpx2, or OfflineModeIsEnabled
        raise UserError(
            f"--dataset {name} is not a folder here, and the Hugging Face hub is out of reach:"
            f" {advice}"
        ) from None
    return info.sha


def _downloaded(name: str, sha: str, paths: list[str]) -> str:
    """Download files of a dataset, or find them in the hub's cache; return their folder."""
    patterns = [_literal(path) for path in paths]
    try:
        folder = snapshot_download(name, repo_type="dataset", revision=sha, allow_patterns=patterns)
    except GatedRepoError:
        raise UserError(f"dataset {name} is gated: ask for access on its page on the hub") from None
    except Exception as error:
        raise UserError(
            f"the download of {name} broke off ({one_line(error, longest=300)}): run the same"
            " command again to go on"
        ) from None
    missing = [path for path in paths if not os.path.isfile(os.path.join(folder, path))]
    if missing:
        raise UserError(
            f"{len(missing)} files of {name} were not downloaded, first {missing[0]}: run the same"
            " command again to go on"
        )
    return folder


def _literal(path: str) -> str:
    """Escape the signs of a pattern in a file's name."""
    return re.sub(r"([*?[])", r"[\1]", path)


# --- files that are read here ---


class _Files:
    """Rows of files that are read here, with the part of IterableDataset that is needed."""

    features = None  # unknown before a row is read
    place_version = "1"

    def __init__(self, read: Callable[..., Iterator[dict[str, Any]]], paths: list[str], **options):
        self._read, self._paths, self._options = read, paths, options
        self._start = self._file, self._row = 0, 0

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._start = state["shard_idx"], state["shard_example_idx"]

    def state_dict(self) -> dict[str, int]:
        """Return the place behind the row that was read last, under the names of `datasets`."""
        return {"shard_idx": self._file, "shard_example_idx": self._row}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._file, self._row = self._start
        while self._file < len(self._paths):
            for row in self._read(self._paths[self._file], self._row, **self._options):
                self._row += 1
                yield row
            self._file, self._row = self._file + 1, 0


def _parquet_rows(
    path: str, start: int, columns: Collection[str] | None
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file from row `start` on; row groups before it are not read."""
    with _open_parquet(path) as file:
        groups = []
        for number in range(file.num_row_groups):
            num_rows = file.metadata.row_group(number).num_rows
            if groups or start < num_rows:
                groups.append(number)
            else:
                start -= num_rows
        names = [name for name in file.schema_arrow.names if _is_in(name, columns)]
        batches = file.iter_batches(BATCH_ROWS, groups, names, use_threads=False)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from islice(rows, start, None)


@contextmanager
def _open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    # pre_buffer would read a whole row group, maybe gigabytes; checksums count if the file has any
    options = {"pre_buffer": False, "page_checksum_verification": True}
    with (
        xopen(path, "rb") as opened,
        pq.ParquetFile(opened, buffer_size=BUFFER_BYTES, **options) as file,
    ):
        yield file


def _tar_rows(path: str, start: int) -> Iterator[dict[str, Any]]:
    return islice(_tar_samples(path), start, None)


def _tar_samples(path: str) -> Iterator[dict[str, Any]]:
    """Yield the samples of a WebDataset tar: consecutive members of one key.

    A sample has `__key__`, its sound as `audio` and under its ending, texts (`txt`) and parsed
    `json`. Other members are not kept.
    """
    with (
        xopen(path, "rb") as opened,
        tarfile.open(fileobj=(file := _Watched(_decompressed(opened))), mode="r|") as archive,
    ):
        sample: dict[str, Any] = {}
        for member in archive:
            archive.members = []  # or it remembers them all
            found = SAMPLE.fullmatch(member.name)
            if not member.isfile() or not found:
                continue
            key, name = found[1], found[2]
            if sample and sample["__key__"] != key:
                yield sample
                sample = {}
            if name in sample:
                raise ValueError(f"the sample {key!r} has two members named {name!r}")
            sample["__key__"] = key
            ending = "." + name.rpartition(".")[2].lower()
            if ending in AUDIO_ENDINGS:
                content = archive.extractfile(member).read()
                sample[name] = {"bytes": content, "path": member.name}
                sample.setdefault("audio", sample[name])
            elif ending in (".txt", ".json"):
                text = archive.extractfile(member).read().decode("utf-8", "replace")
                sample[name] = _parsed(text) if ending == ".json" else text
        file.check_end()
        if sample:
            yield sample


def _decompressed(file: BinaryIO) -> BinaryIO:
    """Decompress a file of gzip, bzip2 or xz; return any other file as it is.

    Reading raises EOFError if a compressed file is cut off. tarfile could decompress too, but would
    take the cut for the end of the archive.
    """
    buffered = io.BufferedReader(_Unseekable(file), BUFFER_BYTES)
    first = buffered.peek(max(map(len, DECOMPRESSORS)))
    for mark, opened in DECOMPRESSORS.items():
        if first.startswith(mark):
            return opened(buffered)
    return buffered


class _Unseekable(io.RawIOBase):
    """Read a local or remote file from its first byte to its last, without seeking."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:
        content = self._file.read(len(target))
        target[: len(content)] = content
        return len(content)


class _Watched:
    """A tar that knows whether it has been read to its end mark.

    Python's tarfile takes a tar that is cut off between two members for a shorter one.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._is_tar, self._num_bytes, self._last = False, 0, b""

    def read(self, size: int) -> bytes:
        content = self._file.read(size)
        if not self._num_bytes:
            self._is_tar = content[257:262] == b"ustar"
        self._num_bytes += len(content)
        self._last = (self._last + content)[-TAR_BLOCK:]
        return content

    def check_end(self) -> None:
        """Read on to the end, and raise ValueError if the file does not end in zeros."""
        while self.read(BUFFER_BYTES):
            pass
        if self._is_tar and (self._num_bytes % TAR_BLOCK or any(self._last)):
            raise ValueError("it is cut off: a tar ends with blocks of zeros")


def _parsed(text: str) -> Any:
    try:
        return parse_json(text.removeprefix("\ufeff"))
    except ValueError:
        return None  # a sample without caption, then


# --- columns ---


def empty_split(name: str, split: str) -> UserError:
    """Return the error for a split of a dataset without rows."""
    return UserError(f"{name}: the split {split} is empty: leave it out, with --split")


def kind_of_value(value: Any) -> str:
    """Return the kind of a value.

    Returns:
        "sound" (bytes, or a struct of bytes and path), "samples" (a struct with `array`), "struct",
        "text", "texts" (a list of texts), "nested" (another list), "number", "none" for None, or
        the name of another type.
    """
    if value is None:
        return "none"
    if isinstance(value, (bytes, bytearray)):
        return "sound"
    if isinstance(value, dict):
        if _is_sound_struct(value.keys()):
            return "sound"
        return "samples" if "array" in value else "struct"
    if isinstance(value, str):
        return "text"
    if isinstance(value, (list, tuple)):
        return "texts" if all(item is None or isinstance(item, str) for item in value) else "nested"
    return "number" if isinstance(value, (bool, int, float)) else type(value).__name__


def _is_sound_struct(names: Set[str]) -> bool:
    """Return True for the fields of an encoded sound, as `datasets` keeps it undecoded."""
    return bool(names & {"bytes", "path"}) and names <= {"bytes", "path", "sampling_rate"}


def _kind_of_feature(feature: Any) -> str:
    if isinstance(feature, datasets.Audio):
        return "sound"
    if isinstance(feature, dict):
        if _is_sound_struct(feature.keys()):
            return "sound"
        return "samples" if "array" in feature else "struct"
    if isinstance(feature, (list, datasets.List, datasets.LargeList)):
        inner = feature[0] if isinstance(feature, list) else feature.feature
        return "texts" if _kind_of_feature(inner) in ("text", "none") else "nested"
    if isinstance(feature, datasets.Value):
        if feature.dtype in ("string", "large_string", "string_view"):
            return "text"
        if feature.dtype in ("binary", "large_binary", "binary_view"):
            return "sound"
        if feature.dtype == "null":
            return "none"
        return "number" if re.match(r"u?int|float|bool|double", feature.dtype) else feature.dtype
    if isinstance(feature, datasets.ClassLabel):
        return "number"
    return type(feature).__name__


def _columns(dataset: HubDataset) -> dict[str, str]:
    """Return the kind of each column, and of each field of a struct as `column.field`."""
    columns: dict[str, str] = {}
    split, rows = next(iter(dataset._splits.items()))
    if dataset.kind == "parquet":
        path = dataset.files[split][0]
        try:
            with _open_parquet(path) as file:
                schema = file.schema_arrow
        except Exception as error:  # of pyarrow, fsspec, aiohttp, ...
            raise UserError(f"{path} cannot be read ({one_line(error, longest=300)})") from None
        for arrow_field in schema:
            try:
                feature = datasets.Features.from_arrow_schema(pa.schema([arrow_field]))
            except ValueError:  # `datasets` has no name for maps and the like
                columns[arrow_field.name] = str(arrow_field.type)
            else:
                _add_fields(columns, arrow_field.name, *feature.values(), _kind_of_feature)
        return columns
    if rows.features is not None:
        for name, feature in rows.features.items():
            _add_fields(columns, name, feature, _kind_of_feature)
        return columns
    for number, (row, _) in enumerate(dataset.rows(split, None)):
        if number == PEEKED_ROWS:
            break
        for name, value in row.items():
            _add_fields(columns, name, value, kind_of_value)
    if not columns:
        raise empty_split(dataset.name, split)
    return columns


def _add_fields(columns: dict[str, str], name: str, item: Any, kind_of: Any) -> None:
    kind = kind_of(item)
    if kind == "struct":
        for field_name, inner in item.items():
            _add_fields(columns, f"{name}.{field_name}", inner, kind_of)
    elif columns.get(name, "none") == "none":
        columns[name] = kind


def value_of(row: dict[str, Any], column: str) -> Any:
    """Return a column of a row, or the field of a struct as `column.field`; None if absent."""
    if column in row or "." not in column:
        return row.get(column)
    # a name may have dots itself, as `seg.txt` of a tar
    for end in [place for place, letter in enumerate(column) if letter == "."]:
        inner = row.get(column[:end])
        if isinstance(inner, dict):
            return value_of(inner, column[end + 1 :])
    return None


def _is_in(name: str, columns: Collection[str] | None) -> bool:
    """Return True for a column that is wanted, or that has a field that is; None wants all."""
    return columns is None or any(
        column == name or column.startswith(f"{name}.") for column in columns
    )


def _is_sound_file(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in AUDIO_ENDINGS


def _version(rows: "datasets.IterableDataset | _Files") -> str:
    return getattr(rows, "place_version", datasets.__version__)


def _file_number(rows: "datasets.IterableDataset | _Files") -> int | None:
    """Return the number of the file that is being read, if `datasets` tells it."""
    state = getattr(rows, "state_dict", dict)()
    while isinstance(state, dict):
        if "shard_idx" in state:
            return state["shard_idx"]
        state = state.get("examples_iterable")
    return None
