"""Bring an index up to date with its folder.

New and changed files are encoded, removed files are taken out, the others stay as they are.
"""

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from retrieval.base.decoder_process import DecoderDied
from retrieval.base.errors import UserError
from retrieval.base.files import sha256_of
from retrieval.base.launch import make_accelerator
from retrieval.base.progress import bar
from retrieval.base.sound import READER_VERSION, SoundFacts, UnreadableSound
from retrieval.models.dual_encoder import DualEncoder, check_finite
from retrieval.models.pretrained import exact_name
from retrieval.search.calibration import unrelated_score
from retrieval.search.encoder import ExcerptEncoder
from retrieval.search.frame_coding import FRAME_TYPES, Averaging
from retrieval.search.index_meta import IndexMeta, folder_gone
from retrieval.search.metadata import Metadata, read_metadata
from retrieval.search.model_identity import ModelIdentity, load_model
from retrieval.search.place import Place
from retrieval.search.sentences import SENTENCES
from retrieval.search.sound import Excerpt, Found, files_to_index, read_excerpts
from retrieval.search.store import Store, Writer
from retrieval.search.two_stage import OutputSizes

Result, Item = TypeVar("Result"), TypeVar("Item")
SHORTEST_HOP, SHORTEST_EXCERPT = 0.1, 0.2  # s
# share of the index's files that a folder must hold to replace the indexed one
LEAST_IN_COMMON = 0.5
# work that an interruption loses at most, beside the file that it falls into
SECONDS_BETWEEN_COMMITS = 10.0
FRAMES = (*FRAME_TYPES, "none")
GATE_QUERIES = 50  # sentences that measure the approximate search of a large index
FILES_AHEAD = 4  # read by other threads while the model computes
EXCERPTS_AHEAD = 8  # of each of these files; the rest of a long one is read from its turn on


@dataclass
class Changes:
    """Counts of an update.

    Attributes:
        added, changed, removed, unchanged: Numbers of files.
        moved: Files (also copies) whose content the index already had; not encoded again.
        unreadable: (file, reason) of the files that were left out.
        one_channel: Added or changed files whose channels cancel each other: their first channel
            was used.
        passed_over: Number of files that are not sound files, by ending.
        metadata: Metadata of --metadata.
    """

    added: int = 0
    changed: int = 0
    moved: int = 0
    removed: int = 0
    unchanged: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    one_channel: int = 0
    passed_over: Counter[str] = field(default_factory=Counter)
    metadata: Metadata | None = None

    def __str__(self) -> str:
        names = ("added", "changed", "moved", "removed", "unchanged")
        counts = [f"{getattr(self, name):,} {name}" for name in names]
        return ", ".join([*counts, f"{len(self.unreadable):,} unreadable"])


def build_index(
    folder: Path,
    checkpoint: str | Path | None,
    place: Place,
    *,
    text_encoder: str | Path | None,
    excerpt_seconds: float | None,
    hop_seconds: float | None,
    frames: str | None,
    frames_per_second: float | None,
    batch_size: int,
    mixed_precision: str,
    overwrite: bool,
    metadata: Path | None,
) -> tuple[DualEncoder, Store, Changes]:
    """Make the index at `place` or bring it up to date; arguments as for AudioIndex.build.

    All settings are checked before a model is loaded or anything is written.
    """
    if not folder.is_dir():
        raise UserError(
            f"folder {folder} is absent or not a folder: expected the one with the recordings"
        )
    if str(folder.resolve()).encode("utf-8", "replace").decode() != str(folder.resolve()):
        raise UserError(f"the name of folder {os.fsencode(folder)!r} is not UTF-8: rename it")
    index = place.name
    place.check_target()
    before = None if overwrite else place.read_meta()
    if before is None and checkpoint is None:
        found = "is made anew" if overwrite else "does not exist yet"
        raise UserError(
            f"index {index} {found}: add --checkpoint MODEL, such as runs/tap/best or"
            " laion/clap-htsat-unfused"
        )
    found, _, _ = files_to_index(folder)
    table = metadata and read_metadata(metadata, [file.file for file in found])
    checkpoint = exact_name(checkpoint or before.model.path)
    text_encoder = text_encoder or (before and before.model.text_encoder)
    identity = ModelIdentity.of(checkpoint, text_encoder, before and before.model)
    if before:
        before.model.check_same(identity, index)
    model = load_model(checkpoint, text_encoder)
    check_finite(model, checkpoint, "index with")
    model.pooling.check_searchable()
    if excerpt_seconds is None:
        longest = min(model.clip_seconds, model.pooling.longest_excerpt)
        excerpt_seconds = before.clip_seconds if before else longest
    if not SHORTEST_EXCERPT <= excerpt_seconds <= model.clip_seconds:
        raise UserError(
            f"--excerpt-seconds must be {SHORTEST_EXCERPT} to {model.clip_seconds:g}, the"
            f" clip_seconds of the model, found {excerpt_seconds:g}"
        )
    if hop_seconds is None:
        hop_seconds = before.hop_seconds if before else excerpt_seconds / 2
    if not SHORTEST_HOP <= hop_seconds <= excerpt_seconds:
        raise UserError(
            f"--hop-seconds must be {SHORTEST_HOP} to {excerpt_seconds:g}, the length of an"
            f" excerpt, found {hop_seconds:g}"
        )
    if batch_size < 1:
        raise UserError(f"batch_size must be 1 or more, found {batch_size}")
    meta = IndexMeta(
        folder=str(folder.resolve()),
        model=identity,
        hop_seconds=hop_seconds,
        clip_seconds=excerpt_seconds,
        dim=model.dim,
        has_frames=keeps_frames(model, frames, before),
        frame_type=frame_type_of(frames, before),
        averaging=averaging_of(model, frames_per_second, before),
    )
    if frames_per_second is not None and not meta.has_frames:
        raise UserError(
            f"--frames-per-second {frames_per_second:g}: this index keeps no frames; leave it out"
        )
    autocast = make_accelerator(mixed_precision, several=False).autocast
    with place.writer(meta, overwrite) as writer:
        meta.check_as_before(writer.meta, index)
        writer.meta.model = meta.model  # its path may be new
        encoder = ExcerptEncoder(model, autocast, batch_size, meta.has_frames)
        changes = update_index(writer, folder, encoder, table)
        store = _measured(writer, place, model)
    return model, store, changes


def keeps_frames(model: DualEncoder, frames: str | None, before: IndexMeta | None) -> bool:
    """Return whether an index keeps all frames of its excerpts.

    Args:
        model: The model.
        frames: One of FRAMES, or None: as `before`, or float16 if the model has frames.
        before: Record of the existing index.

    Raises:
        UserError: The model needs its frames, or has none.
    """
    pooling = model.pooling
    has_some = pooling.compares_frames and not model.audio_encoder.pools_windows
    if frames is not None and frames not in FRAMES:
        raise UserError(f"--frames must be {' or '.join(FRAMES)}, found {frames!r}")
    if frames == "none" and pooling.keeps_frames:
        raise UserError(
            "--frames none: this model compares a sentence with all frames (TAP), so its index"
            " needs them; leave the option out"
        )
    if frames in FRAME_TYPES and not (has_some or pooling.keeps_frames):
        raise UserError(
            f"--frames {frames}: this model makes one vector of a window, and has no frames to"
            " keep; leave the option out"
        )
    if frames is not None:
        return frames != "none"
    return before.has_frames if before else has_some or pooling.keeps_frames


def frame_type_of(frames: str | None, before: IndexMeta | None) -> str:
    """Return the type of an index's frames; without frames the default of IndexMeta."""
    if frames in FRAME_TYPES:
        return frames
    is_kept = frames is None and before is not None
    return before.frame_type if is_kept else IndexMeta.model_fields["frame_type"].default


def averaging_of(
    model: DualEncoder, frames_per_second: float | None, before: IndexMeta | None
) -> Averaging | None:
    """Return the averaging of an index; frames_per_second None: as before. Raises UserError."""
    if frames_per_second is None:
        return before and before.averaging
    window_seconds = model.windows.window_samples / model.sample_rate
    return Averaging.of(frames_per_second, model.windows.frames_per_window, window_seconds)


def add_to_index(
    place: Place, meta: IndexMeta, model: DualEncoder, batch_size: int, mixed_precision: str
) -> tuple[Store, Changes]:
    """Bring an index that was opened as `meta` up to date with its folder. Raises UserError."""
    autocast = make_accelerator(mixed_precision, several=False).autocast
    if place.read_meta() is None:
        raise UserError(f"index {place.name} is gone; make it again")
    with place.writer(meta, overwrite=False) as writer:
        meta.check_as_before(writer.meta, place.name)
        folder = Path(writer.meta.folder)  # another process may have changed it
        if not folder.is_dir():
            raise folder_gone(folder, place.name)
        encoder = ExcerptEncoder(model, autocast, batch_size, meta.has_frames)
        changes = update_index(writer, folder, encoder)
        store = _measured(writer, place, model)
    return store, changes


def _measured(writer: Writer, place: Place, model: DualEncoder) -> Store:
    """Open an index; first measure the score of unrelated sentences on it, if it is complete."""
    store = place.open()
    if store.meta.complete and store.meta.unrelated_score is None:
        writer.commit(unrelated_score=unrelated_score(model, store))
        store = place.open()
    return store


def update_index(
    writer: Writer, folder: Path, encoder: ExcerptEncoder, metadata: Metadata | None = None
) -> Changes:
    """Bring an index up to date with `folder`, which may be the indexed one after a move.

    Metadata replaces that of the index in the last transaction; None keeps it.

    After an interruption the files that were encoded before stay in the index, and the next update
    continues from there. Raises UserError.
    """
    found, left_out, passed_over = files_to_index(folder, len(writer.files()))
    # Keep the entries of folders that cannot be read.
    closed = tuple(name for name in left_out if name.endswith("/"))
    found = [file for file in found if writer.share.holds(file.file)]
    left_out = {file: reason for file, reason in left_out.items() if writer.share.holds(file)}
    is_moved = writer.meta.folder != str(folder.resolve())
    moved = _take_over(writer, folder, found) if is_moved else set()
    known, unreadable = writer.files(), writer.unreadable()
    # a newer reader may read more files
    is_same_reader = writer.meta.reader == READER_VERSION
    changes = Changes(moved=len(moved), passed_over=passed_over, metadata=metadata)
    work = []
    for file in found:
        as_before = (file.size, file.mtime_ns)
        if known.get(file.file) == as_before:
            changes.unchanged += file.file not in moved
        elif not is_same_reader or unreadable.get(file.file) != as_before:
            work.append(file)
    if writer.meta.complete and work:
        writer.commit(complete=False, unrelated_score=None)
    _Update(writer, folder, encoder, changes, known).run(work)
    present = {file.file for file in found}
    for file in known.keys() - present:
        if not file.startswith(closed):
            writer.remove(file)
            changes.removed += 1
    for file in unreadable.keys() - present - left_out.keys():
        writer.remove(file)
    for file, reason in left_out.items():
        writer.add_unreadable(file, reason)
    if metadata is not None:
        writer.replace_metadata(metadata)
    # measured again by the caller, after changes
    is_same = not (changes.added or changes.changed or changes.moved or changes.removed)
    unrelated = writer.meta.unrelated_score if is_same else None
    writer.commit(complete=True, reader=READER_VERSION, unrelated_score=unrelated)
    writer.finish(lambda: _text_vectors(encoder.model))
    changes.unreadable = writer.listed_unreadable()
    return changes


@torch.no_grad()
def _text_vectors(model: DualEncoder) -> np.ndarray:
    """Return vectors float32 (GATE_QUERIES, D) of sentences, as searches compare them."""
    sentences = SENTENCES[:: len(SENTENCES) // GATE_QUERIES][:GATE_QUERIES]
    return model.pooling.directions(model.encode_text(list(sentences)).float()).cpu().numpy()


def _take_over(writer: Writer, folder: Path, files: list[Found]) -> set[str]:
    """Replace the indexed folder by `folder`, if it holds at least LEAST_IN_COMMON of its files.

    A folder of other recordings, given by mistake, would empty the index: it is refused. So is a
    folder within the indexed one, unless it holds all recordings. Files are compared by content:
    copies and archives may give the same name and time to another content.

    Args:
        writer: Writer of the index.
        folder: The new folder.
        files: The files in it.

    Returns:
        Names of the files that were recognised by their content.

    Raises:
        UserError: The folder holds too few of the recordings.
    """
    if not writer.share.is_all:
        raise UserError(
            f"index {writer.folder} is of folder {writer.meta.folder}, found {folder}; all machines"
            " must see the recordings under one path; after a move, first run the command once"
            " without --shard"
        )
    digests, sizes = writer.digests(), {size for size, _ in writer.files().values()}

    def digest_or_none(file: Found) -> str | None:
        try:
            return sha256_of(folder / file.file)
        except OSError:  # the update that follows lists it
            return None

    contents, recognised = set(digests.values()), []
    candidates = [file for file in files if file.size in sizes]
    with (
        bar(total=len(candidates), desc="comparing", unit="file") as progress,
        closing(read_ahead(candidates, digest_or_none)) as compared,
    ):
        for file, digest in compared:
            if digest in contents:
                recognised.append((file, digest))
            progress.update()
    there = {digest for _, digest in recognised}
    num_there = sum(digest in there for digest in digests.values())
    before = writer.meta.folder
    # a part of the folder was not moved: the other files still lie beside it
    is_part = folder.resolve().is_relative_to(before)
    if num_there < (1.0 if is_part else LEAST_IN_COMMON) * len(digests):
        raise UserError(
            f"index {writer.folder} is of folder {before}; {folder} holds {num_there:,} of its"
            f" {len(digests):,} recordings: give the folder that they were moved to, another"
            " --index, or --overwrite to make the index anew"
        )
    writer.move_folder(folder, recognised)
    found_there = f"{num_there:,} of its {len(digests):,} recordings are in {folder}"
    print(f"note: index {writer.folder} was of folder {before}; {found_there}", file=sys.stderr)
    return {file.file for file, _ in recognised}


@dataclass
class _File:
    """A file on its way into the index: hashed, opened if its content is new, encoded, added."""

    found: Found
    sha256: str = ""
    error: Exception | None = None  # why it cannot be read
    excerpts: Iterator[Excerpt] | None = None  # None: the index has this content
    facts: SoundFacts = field(default_factory=SoundFacts)
    num_excerpts: int = 0
    num_samples: int = 0
    is_read: bool = False  # to its end
    # of each encoded excerpt: start and stop in s, row, first frame, number of frames
    places: list[tuple[float, float, int, int, int]] = field(default_factory=list)


class _Update:
    """Reads, encodes and adds files; counts them in `changes`. known: files that the index has."""

    def __init__(
        self,
        writer: Writer,
        folder: Path,
        encoder: ExcerptEncoder,
        changes: Changes,
        known: dict[str, tuple[int, int | None]],
    ):
        self.writer, self.folder, self.encoder = writer, folder, encoder
        self.changes, self.known = changes, known
        self.rate = encoder.model.sample_rate
        pooling = encoder.model.pooling
        self.sizes = OutputSizes.of(pooling) if pooling.keeps_frames else None
        self.digests = set(writer.digests().values())
        # excerpts that wait for a full batch, with the file that each belongs to
        self.waiting: list[tuple[_File, Excerpt]] = []
        self.last_commit = time.monotonic()

    def run(self, work: list[Found]) -> None:
        with (
            bar(total=len(work), desc="indexing", unit="file") as progress,
            closing(read_ahead(work, self._read)) as files,
        ):
            for _, file in files:
                try:
                    self._add(file)
                except FileNotFoundError:
                    pass  # removed since the folder was listed; the next update removes its entry
                except (UnreadableSound, OSError) as error:
                    self.waiting = [pair for pair in self.waiting if pair[0] is not file]
                    is_sound_error = isinstance(error, UnreadableSound)
                    reason = str(error) if is_sound_error else f"cannot be read: {error.strerror}"
                    # Permissions, memory and libraries may change although the file does not: try
                    # it again next time.
                    is_final = is_sound_error and not isinstance(error, DecoderDied)
                    found = file.found
                    self.writer.add_unreadable(found.file, reason, found if is_final else None)
                progress.update()
            self._encode(at_least=1)

    def _read(self, found: Found) -> _File:
        """Hash a file and read its first excerpts.

        Runs in another thread: numpy, soundfile, PyAV and soxr release Python's lock.
        """
        file = _File(found)
        try:
            file.sha256 = sha256_of(self.folder / found.file)
            if file.sha256 not in self.digests:
                self._open(file)
        except (UnreadableSound, OSError) as error:
            file.error = error
        return file

    def _open(self, file: _File) -> None:
        clip_samples = round(self.writer.meta.clip_seconds * self.rate)
        hop_samples = round(self.writer.meta.hop_seconds * self.rate)
        path = self.folder / file.found.file
        excerpts = read_excerpts(path, self.rate, clip_samples, hop_samples, file.facts)
        file.excerpts = chain(list(islice(excerpts, EXCERPTS_AHEAD)), excerpts)

    def _add(self, file: _File) -> None:
        if file.error is not None:
            raise file.error
        if file.excerpts is None:
            if name := self.writer.add_known(file.found, file.sha256):
                self.changes.unchanged += name == file.found.file
                self.changes.moved += name != file.found.file
                return
            self._open(file)  # the other file with this content has changed meanwhile
        # Read a batch ahead: the model then does not wait for the rest of a long file.
        with closing(in_thread(file.excerpts, self.encoder.batch_size)) as excerpts:
            self._add_excerpts(file, excerpts)
        file.is_read = True
        self._add_if_encoded(file)

    def _add_excerpts(self, file: _File, excerpts: Iterator[Excerpt]) -> None:
        for excerpt in excerpts:
            file.num_excerpts += 1
            file.num_samples = max(file.num_samples, excerpt.start + len(excerpt.samples))
            self.waiting.append((file, excerpt))
            self._encode(at_least=self.encoder.batch_size)

    def _encode(self, at_least: int) -> None:
        """Encode batches while at least so many excerpts wait; commit from time to time."""
        while len(self.waiting) >= at_least:
            size = self.encoder.batch_size
            batch, self.waiting = self.waiting[:size], self.waiting[size:]
            vectors, frames = self.encoder.encode([excerpt for _, excerpt in batch])
            places = self.writer.append(vectors, frames, self.sizes)
            for (file, excerpt), place in zip(batch, places, strict=True):
                stop = excerpt.start + len(excerpt.samples)
                file.places.append((excerpt.start / self.rate, stop / self.rate, *place))
                self._add_if_encoded(file)
        if time.monotonic() - self.last_commit > SECONDS_BETWEEN_COMMITS:
            self.writer.commit()
            self.last_commit = time.monotonic()

    def _add_if_encoded(self, file: _File) -> None:
        if file.is_read and len(file.places) == file.num_excerpts:
            seconds = file.num_samples / self.rate
            self.writer.add_file(file.found, file.sha256, seconds, file.places)
            self.changes.changed += file.found.file in self.known
            self.changes.added += file.found.file not in self.known
            self.changes.one_channel += file.facts.took_one_channel


def read_ahead(
    work: list[Found], read: Callable[[Found], Result]
) -> Iterator[tuple[Found, Result]]:
    """Yield each file with `read` of it, in order; threads read FILES_AHEAD of them ahead.

    Close it, so that reads that have not begun are cancelled.
    """
    queue: deque[tuple[Found, Future]] = deque()
    with ThreadPoolExecutor(FILES_AHEAD) as pool:
        try:
            for found in chain(work, [None] * FILES_AHEAD):
                if found is not None:
                    queue.append((found, pool.submit(read, found)))
                if queue and (len(queue) > FILES_AHEAD or found is None):
                    first, future = queue.popleft()
                    yield first, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def in_thread(items: Iterator[Item], num: int) -> Iterator[Item]:
    """Yield `items` in order, while another thread reads up to `num` of them ahead.

    An error of `items` is raised here, after the items before it. Close the iterator if it is not
    read to its end: closing waits for the item in work.
    """
    end = object()
    with ThreadPoolExecutor(1) as pool:
        queue = deque(pool.submit(next, items, end) for _ in range(num))
        try:
            while (item := queue.popleft().result()) is not end:
                queue.append(pool.submit(next, items, end))
                yield item
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
