"""Clips of a dataset of the library `datasets`: choose its columns, and turn rows into clips.

A row is a clip with one or several captions. With id columns, rows of one id are one clip; their
sounds must be the same. Validation and evaluation are read before development: a clip of
development is left out if its Freesound or YouTube id is also in validation or evaluation, or in
the lists of the --exclude options. --fractions divides the clips of development among the splits;
the dataset is then read once for each split.
"""

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

from datasets.utils.file_utils import xopen

from data_prep.cache.shards import Clip
from data_prep.cache.split_plan import Skipped
from data_prep.cache.stream import (
    Event,
    ExcludedRow,
    LostRow,
    MoreCaptions,
    NewClip,
    SplitMemory,
    count_shared,
)
from data_prep.corpora.clip_ids import freesound_id, is_unknown, youtube_id
from data_prep.corpora.csv_files import one_spaced
from data_prep.corpora.exclusions import FREESOUND_COLUMNS, YOUTUBE_COLUMNS, Exclusions
from data_prep.corpora.hub_dataset import HubDataset, empty_split, kind_of_value, value_of
from retrieval.base.errors import UserError, one_line
from retrieval.data.schema import COLUMNS as CACHE_COLUMNS
from retrieval.data.schema import DEVELOPMENT, MOMENTS, SPLITS

# Names of caption columns, the likeliest first: all columns of the first pattern that fits any.
CAPTION_NAMES = (
    r"captions?([ _-]?\d+)?",
    r"texts?([ _-]?\d+)?|txt",
    r"descriptions?([ _-]?\d+)?|sentences?([ _-]?\d+)?",
)
FREESOUND, YOUTUBE = "Freesound id", "YouTube id"
SPELLINGS = {FREESOUND: freesound_id, YOUTUBE: youtube_id}


@dataclass(frozen=True)
class Columns:
    """The columns that are read; `json.captions` is a field of the struct `json`."""

    audio: str
    captions: tuple[str, ...]
    ids: tuple[str, ...] = ()  # rows with the same values are one clip; empty: every row is one
    kept: tuple[str, ...] = ()  # metadata
    external: dict[str, str] = field(default_factory=dict)  # FREESOUND or YOUTUBE -> column
    separator: str | None = None  # between the captions of one string

    def all(self) -> set[str]:
        return {self.audio, *self.captions, *self.ids, *self.kept, *self.external.values()}


def choose_columns(
    dataset: HubDataset,
    audio: str | None,
    captions: list[str] | None,
    ids: list[str],
    kept: list[str],
    freesound: str | None,
    youtube: str | None,
    separator: str | None,
) -> Columns:
    """Check the given columns, and find those that are not given.

    Raises UserError that lists the columns there are.
    """
    kinds = dataset.columns
    there = f"its columns are {_listed(kinds)}"
    for option, column in [
        ("--audio-column", audio),
        *(("--caption-columns", column) for column in captions or []),
        *(("--id-column", column) for column in ids),
        *(("--keep-columns", column) for column in kept),
        ("--freesound-column", freesound),
        ("--youtube-column", youtube),
    ]:
        if column is not None and column not in kinds:
            raise UserError(f"{option} {column}: {dataset.name} has no such column: {there}")
    for option, names in (("--id-column", ids), ("--keep-columns", kept)):
        for column in names:
            if kinds[column] not in ("text", "number", "none"):
                raise UserError(
                    f"{option} {column} holds {kinds[column]}: expected text or numbers: {there}"
                )
    audio = audio or _find_audio(dataset.name, kinds, there)
    if kinds[audio] not in ("sound", "text", "none"):
        what = "samples as numbers" if kinds[audio] == "samples" else kinds[audio]
        raise UserError(
            f"--audio-column {audio} holds {what}, not the content of sound files: {there}"
        )
    names = tuple(captions or _find_captions(dataset.name, kinds, audio, there))
    for column in names:
        if kinds[column] not in ("text", "texts", "none"):
            nested = "nested lists or objects" if kinds[column] == "nested" else kinds[column]
            raise UserError(
                f"--caption-columns {column} holds {nested}: expected texts, or lists of texts:"
                f" {there}"
            )
    external = {}
    for kind, column, usual in (
        (FREESOUND, freesound, FREESOUND_COLUMNS),
        (YOUTUBE, youtube, YOUTUBE_COLUMNS),
    ):
        found = [name for name in kinds if name.rpartition(".")[2].lower() in usual]
        if column or found:
            external[kind] = column or found[0]
    metadata = dict.fromkeys([*ids, *external.values(), *kept])
    taken = [column for column in metadata if column in (*CACHE_COLUMNS, MOMENTS)]
    if set(taken) & set(kept):
        raise UserError(
            f"--keep-columns {taken[0]}: the cache has a column of that name of its own"
        )
    metadata = [column for column in metadata if column not in taken]
    return Columns(audio, names, tuple(ids), tuple(metadata), external, separator)


def _listed(kinds: dict[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items())[:600] or "none"


def _find_audio(name: str, kinds: dict[str, str], there: str) -> str:
    found = [column for column, kind in kinds.items() if kind == "sound"]
    named = [column for column in found if column.lower() == "audio"]
    if len(found) == 1 or named:
        return (named or found)[0]
    if not found:
        hint = ""
        if "text" in kinds.values():
            hint = "; if a column names files of the dataset, give it as --audio-column"
        raise UserError(f"{name} has no column of sounds: {there}{hint}")
    raise UserError(
        f"{name} has several columns of sounds, choose one with --audio-column: {there}"
    )


def _find_captions(name: str, kinds: dict[str, str], audio: str, there: str) -> list[str]:
    for pattern in CAPTION_NAMES:
        named = [
            column
            for column in kinds
            if column != audio and re.fullmatch(pattern, column.rpartition(".")[2].lower())
        ]
        found = [column for column in named if kinds[column] in ("text", "texts", "nested", "none")]
        if found:
            return sorted(found, key=_number_in)
    raise UserError(
        f"{name} has no column of captions by its name, choose it with --caption-columns: {there}"
    )


def _number_in(column: str) -> int:
    found = re.search(r"\d+$", column)
    return int(found[0]) if found else -1


@dataclass(frozen=True)
class Deal:
    """Random division of the clips of development among the splits, by --fractions.

    The id of a clip decides its split. Without id columns its sound does, so that equal sounds are
    in one split. Other clips have no influence, so the shares are met roughly.
    """

    shares: dict[str, float]  # of all SPLITS, their sum is 1
    seed: int

    def splits(self, name: str, found: dict[str, list[str]]) -> dict[str, list[str]]:
        """Return the dataset's splits from which each of our splits takes its clips.

        Args:
            name: Name of the dataset, for errors.
            found: The dataset's splits of each of our splits, as without --fractions.

        Raises:
            UserError: There is no development split, or a split with a share has its own clips.
        """
        if DEVELOPMENT not in found:
            raise UserError(
                f"--fractions: no split of {name} becomes development: choose one with --split"
            )
        for split, share in self.shares.items():
            if share and split != DEVELOPMENT and split in found:
                raise UserError(
                    f"--fractions: {name} has a split for {split}, {found[split][0]}: give 0 as"
                    f" the share of {split}, or leave that split out with --split"
                )
        dealt = {split: found[DEVELOPMENT] for split, share in self.shares.items() if share}
        others = {split: own for split, own in found.items() if split != DEVELOPMENT}
        return {split: (dealt | others)[split] for split in SPLITS if split in dealt | others}

    def split_of(self, key: str) -> str:
        """Return the split of a clip with this id."""
        digest = blake2b(f"{self.seed}\n{key}".encode(), digest_size=8).digest()
        place, end = int.from_bytes(digest, "big") / 2**64, 0.0
        for split, share in self.shares.items():
            end += share
            if place < end:
                return split
        return max(self.shares, key=self.shares.get)  # rounding: the sum may be just below 1


class HubClips:
    """The clips of a dataset, for build_from_stream."""

    def __init__(
        self,
        dataset: HubDataset,
        splits: dict[str, list[str]],
        columns: Columns,
        exclusions: Exclusions,
        deal: Deal | None = None,
    ):
        self.dataset, self.columns, self.exclusions = dataset, columns, exclusions
        self.theirs, self.deal = splits, deal
        # development last: the ids of the others are known then
        self.splits = [split for split in reversed(SPLITS) if split in splits]
        self.metadata_columns = [name.replace(".", "_") for name in columns.kept]
        dataset.select(columns.all())

    def digest(self) -> str:
        columns = [getattr(self.columns, name) for name in self.columns.__dataclass_fields__]
        content = [self.dataset.origin, self.theirs, columns, self.exclusions.digest()]
        # nothing is added without --fractions, so that caches of earlier versions stay valid
        return json.dumps(content + ([asdict(self.deal)] if self.deal else []))

    def events(
        self, memories: dict[str, SplitMemory], split: str, place: dict[str, Any] | None
    ) -> Iterator[tuple[Event, "HubPlace"]]:
        memory = memories[split]
        if place:  # count the exclusions of an earlier run too
            for row in memory.excluded.values():
                self._why_excluded(memories, row.ids, row.item.file_name)
        num_before = place["num_before"] if place else 0
        for part, theirs in enumerate(self.theirs[split]):
            if place and part < place["part"]:
                continue
            inner = place["inner"] if place and part == place["part"] else None
            here = None
            for row, here in self.dataset.rows(theirs, inner):
                event = self._event(memories, split, row, num_before + here.row - 1)
                if event is not None:
                    yield event, HubPlace(part, num_before, here)
            if here is None and inner is None:
                raise empty_split(self.dataset.name, theirs)
            num_before += here.row if here else inner["row"]
        if self._is_dealt(split) and not (memory.num_clips or memory.lost or memory.excluded):
            raise UserError(
                f"--fractions: {self.deal.shares[split]:g} of {num_before} rows gives no clip for"
                f" {split}; give a larger share"
            )

    def notes(self, memories: dict[str, SplitMemory]) -> dict[str, list[str]]:
        notes: dict[str, list[str]] = {split: [] for split in memories}
        if DEVELOPMENT in memories:
            notes[DEVELOPMENT] += self.exclusions.notes
            notes[DEVELOPMENT] += [f"warning: {text}" for text in self.exclusions.unmatched()]
            memory = memories[DEVELOPMENT]
            for kind, column in self.columns.external.items():
                if number := memory.num_clips - memory.num_with_id[kind]:
                    notes[DEVELOPMENT].append(
                        f"{number} clips of development have no {kind} in the column {column}: they"
                        " are not compared with test clips"
                    )
        if self.columns.ids:
            for (first, second), number in count_shared(memories).items():
                if number:
                    notes[first].append(
                        f"warning: {number} ids are in {first} and in {second}: if an id names the"
                        " same recording in both, scores mean nothing"
                    )
        return notes

    def _event(
        self, memories: dict[str, SplitMemory], split: str, row: dict[str, Any], number: int
    ) -> Event | None:
        """Return the event of a row, None if it tells nothing new."""
        memory, columns = memories[split], self.columns
        key, captions = self._key(row, number), self._captions(row, split, number)
        place = f"row {number}"
        if key is None:
            return LostRow(f"\0{number}", Skipped(split, place, "has no id"), ())
        if key in memory.excluded:
            return None
        name, sound, digest, reason = self._sound(value_of(row, columns.audio))
        if self._is_dealt(split) and split != self.deal.split_of(
            key if columns.ids else self._identity(sound, digest, key)
        ):
            return None
        if key in memory.clip_ids:
            if digest and digest != memory.digests[key]:
                raise UserError(
                    f"{self.dataset.name}, split {split}: rows of the id {key[:80]!r} have"
                    f" different sounds (row {number}): --id-column {' '.join(columns.ids)} does"
                    " not tell recordings apart, name the columns that do"
                )
            return MoreCaptions(memory.clip_ids[key], captions) if captions else None
        if key in memory.lost:
            captions = memory.lost[key].captions + captions
        ids = {}
        for kind, column in columns.external.items():
            text = _as_text(value_of(row, column))
            found = SPELLINGS[kind](text) if text and not is_unknown(text) else None
            if found:
                ids[kind] = found
        label = _printable(name or (key if columns.ids else place))
        if split == DEVELOPMENT and (why := self._why_excluded(memories, ids, name)):
            return ExcludedRow(key, Skipped(split, label, why), ids)
        if reason or not captions:
            why = reason or "has no caption"
            return LostRow(key, Skipped(split, label, why), captions)
        file_name = self._file_name(name, key, number, memory)
        metadata = {
            title: _as_text(value_of(row, column)) or ""
            for title, column in zip(self.metadata_columns, columns.kept, strict=True)
        }
        clip_id = f"{split}/{key if columns.ids else file_name}"
        clip = Clip(clip_id, file_name, "", captions, metadata)
        return NewClip(clip, sound, digest, key, ids)

    def _is_dealt(self, split: str) -> bool:
        return self.deal is not None and self.deal.shares[split] > 0

    def _identity(self, sound: bytes | Path, digest: str, key: str) -> str:
        """Return a text that is equal for equal sounds, on any machine; the key without a sound."""
        if isinstance(sound, Path):
            return os.path.relpath(sound, self.dataset.root)
        return digest or key

    def _key(self, row: dict[str, Any], number: int) -> str | None:
        if not self.columns.ids:
            return str(number)
        parts = [_as_text(value_of(row, column)) for column in self.columns.ids]
        return None if not all(parts) else "_".join(parts)

    def _captions(self, row: dict[str, Any], split: str, number: int) -> tuple[str, ...]:
        texts: list[str] = []
        for column in self.columns.captions:
            value = value_of(row, column)
            kind = kind_of_value(value)
            if kind == "text":
                texts += value.split(self.columns.separator) if self.columns.separator else [value]
            elif kind == "texts":
                texts += [text for text in value if text is not None]
            elif kind != "none" and not (isinstance(value, float) and math.isnan(value)):
                what = "nested lists or objects" if kind in ("nested", "struct") else kind
                raise UserError(
                    f"{self.dataset.name}, split {split}, row {number}: the caption column {column}"
                    f" holds {what} ({str(value)[:60]!r}): expected texts, or lists of texts"
                )
        return tuple(text for caption in texts if (text := one_spaced(_valid(caption))))

    def _why_excluded(
        self, memories: dict[str, SplitMemory], ids: dict[str, str], name: str
    ) -> str | None:
        why = None
        if FREESOUND in ids or self.exclusions.has_freesound:
            why = self.exclusions.why_freesound(ids.get(FREESOUND, ""), name)
        if YOUTUBE in ids:
            why = why or self.exclusions.why_youtube(ids[YOUTUBE])
        for kind, text in ids.items():
            for split, memory in memories.items():
                if split != DEVELOPMENT and text in memory.ids.get(kind, ()):
                    why = why or f"in this dataset's split {split} too ({kind})"
        return why

    def _sound(self, value: Any) -> tuple[str, bytes | Path, str, str | None]:
        """Return file name, sound, its digest, and why there is none."""
        path, content = "", None
        if isinstance(value, dict):
            path, content = value.get("path") or "", value.get("bytes")
        elif isinstance(value, (bytes, bytearray)):
            content = bytes(value)
        elif isinstance(value, str):
            path = value
        elif value is not None:
            return "", b"", "", f"holds {kind_of_value(value)} in place of a sound"
        name = PurePosixPath(_valid(path.partition("::")[0]).replace("\\", "/")).name
        if content is None and not path:
            return name, b"", "", "has no sound"
        if content is None:
            content, why = self._file(path)
            if why:
                return name, b"", "", why
        if isinstance(content, Path):
            status = content.stat()
            text = f"{content}\n{status.st_size}\n{status.st_mtime_ns}".encode()
            return name, content, blake2b(text, digest_size=8).hexdigest(), None
        if not content:
            return name, b"", "", "has no sound (0 bytes)"
        return name, content, blake2b(content, digest_size=8).hexdigest(), None

    def _file(self, path: str) -> tuple[bytes | Path, str | None]:
        """Return a file that a row names, or its content, and why it cannot be had.

        Only files of the dataset itself: it comes from others, and could name any file or server.
        """
        root = self.dataset.root
        shown = _printable(path)
        outer = path.rpartition("::")[2]  # of zip://member::archive
        is_own_archive = outer != path and any(
            outer in files for files in self.dataset.files.values()
        )
        is_of_repository = root.startswith("hf://") and outer.startswith(root)
        if "://" in outer and not is_own_archive and not is_of_repository:
            return b"", f"names a file outside of the dataset, in place of a sound: {shown}"
        if "://" in path:
            if "://" not in outer and not _is_below(outer, root):
                return b"", f"names a file outside of the dataset, in place of a sound: {shown}"
            try:
                with xopen(path, "rb") as file:
                    return file.read(), None
            except (FileNotFoundError, KeyError):  # KeyError: not in the archive
                return b"", f"names a file that is not there, in place of a sound: {shown}"
            except Exception as error:  # of fsspec, aiohttp, httpx, zipfile, ...
                raise UserError(
                    f"{shown} cannot be read ({one_line(error)}): run the same command again to go"
                    " on from the last finished part"
                ) from None
        if not root or root.startswith("hf://"):
            return b"", f"names a file of another machine, in place of a sound: {shown}"
        whole = os.path.normpath(os.path.join(root, path))
        if "\0" in path or not os.path.isfile(whole):
            return b"", f"names a file that is not there, in place of a sound: {shown}"
        if not _is_below(whole, root):
            return b"", f"names a file outside of the dataset, in place of a sound: {shown}"
        return Path(whole), None

    def _file_name(self, name: str, key: str, number: int, memory: SplitMemory) -> str:
        """Return a name that no other clip of the split has: that of its file, or its id."""
        if not name:
            name = re.sub(r"[/\\]", "_", key) if self.columns.ids else f"{number:07d}"
        name = _printable(name)
        return name if name not in memory.file_names else f"{number:07d}_{name}"


@dataclass
class HubPlace:
    """A place in a split of the cache, which may hold several splits of the dataset."""

    part: int
    num_before: int  # rows of the parts before
    here: Any  # hub_dataset.Place

    def content(self) -> dict[str, Any]:
        return {"part": self.part, "num_before": self.num_before, "inner": self.here.content()}


def _is_below(path: str, root: str) -> bool:
    """Compare names only: the hub's cache links each file to another folder."""
    return os.path.commonpath([os.path.abspath(path), os.path.abspath(root)]) == os.path.abspath(
        root
    )


def _as_text(value: Any) -> str | None:
    """Return an id or a piece of metadata as text; None if absent."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():  # pandas' integers beside missing ones
        value = int(value)
    return _valid(str(value)).strip() or None


def _printable(name: str) -> str:
    """Return a name that no terminal takes for a command, of at most 200 characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)[:200]


def _valid(text: str) -> str:
    """Return text without half surrogate pairs (JSON may hold them), which Arrow refuses."""
    return text.encode("utf-8", "replace").decode()
