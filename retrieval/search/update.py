"""Bring an index up to date with its folder: new and changed files are encoded, files that are gone
are taken out, the others stay as they are.

Letters: B excerpts of a batch, S samples, T frames, D = dim.
"""

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from retrieval.base.decoder_process import DecoderDied
from retrieval.base.errors import UserError
from retrieval.base.files import sha256_of
from retrieval.base.progress import bar
from retrieval.base.sound import READER_VERSION, SoundFacts, UnreadableSound
from retrieval.data.pairs import collate_clips
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.inference import Autocast, eval_mode
from retrieval.search.sound import Excerpt, Found, files_to_index, read_excerpts
from retrieval.search.writer import IndexWriter

Taken = TypeVar("Taken")
# share of the index's files that a folder must hold to replace the indexed one
LEAST_IN_COMMON = 0.5
# what an interruption costs at most, beside the file that it falls into
SECONDS_BETWEEN_COMMITS = 10.0
FILES_AHEAD = 4  # read by other threads while the model computes
EXCERPTS_AHEAD = 8  # of each of these files; the rest of a long one is read when its turn comes


@dataclass
class Changes:
    """Counts of an update. `moved` files (also copies) were not encoded again.

    `one_channel` counts added or changed files whose channels cancel each other: their first
    channel was used. `passed_over` counts files that are no sound.
    """

    added: int = 0
    changed: int = 0
    moved: int = 0
    removed: int = 0
    unchanged: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # file, reason
    one_channel: int = 0
    passed_over: Counter[str] = field(default_factory=Counter)  # by ending

    def __str__(self) -> str:
        names = "added", "changed", "moved", "removed", "unchanged"
        return (
            ", ".join(f"{getattr(self, name):,} {name}" for name in names)
            + f", {len(self.unreadable):,} unreadable"
        )


@dataclass
class _Read:
    """A file that has been hashed, and opened where its content is new. `error`: why it could not
    be read.
    """

    sha256: str = ""
    excerpts: Iterator[Excerpt] | None = None
    facts: SoundFacts = field(default_factory=SoundFacts)
    error: Exception | None = None


@dataclass
class ExcerptEncoder:
    """Excerpts -> what the index keeps of them."""

    model: DualEncoder
    autocast: Autocast
    batch_size: int

    @torch.no_grad()
    def encode(self, excerpts: list[Excerpt]) -> tuple[np.ndarray, list[np.ndarray] | None]:
        """Vectors float32 (B, D) of length 1 for the first stage, and for TAP the normalised valid
        frames float16 (T, D) of each.
        """
        vectors, keys, num_frames = [], [], []
        with eval_mode(self.model):
            for first in range(0, len(excerpts), self.batch_size):
                waveform, lengths = collate_clips(
                    [excerpt.samples for excerpt in excerpts[first : first + self.batch_size]]
                )
                with self.autocast():
                    frames, mask = self.model.encode_audio(
                        waveform.to(self.model.temperature.device, non_blocking=True), lengths
                    )
                frames = frames.float()  # (b, T, D)
                vectors.append(
                    torch.nn.functional.normalize(
                        self.model.pooling.clip_vectors(frames, mask), eps=1e-12
                    ).cpu()
                )
                if self.model.pooling.keeps_frames:
                    # (valid frames, D)
                    keys.append(self.model.pooling.norm(frames)[mask].half().cpu())
                    num_frames += mask.sum(dim=1).tolist()
        if not all(bool(numbers.isfinite().all()) for numbers in vectors + keys):
            raise UserError(
                "the model gives vectors that are not finite: they overflow in this precision; take"
                " another --mixed-precision"
            )
        return torch.cat(vectors).numpy(), (
            [own.numpy() for own in torch.cat(keys).split(num_frames)] if keys else None
        )


def check_any_audio(
    folder: Path, num_known: int
) -> tuple[list[Found], dict[str, str], Counter[str]]:
    """Return files_to_index(folder). Raises UserError if it finds no file."""
    found, left_out, passed_over = files_to_index(folder)
    if not found and num_known:
        raise UserError(
            f"folder {folder} holds no audio file any more, the index has {num_known}; nothing is"
            " changed: is a disk missing?"
        )
    if not found:
        others = f"; its {passed_over.total():,} files are no sound" if passed_over else ""
        reason = f"; first {next(iter(left_out.items()))}" if left_out else ""
        raise UserError(f"folder {folder} holds no audio file{others}{reason}")
    return found, left_out, passed_over


def update_index(writer: IndexWriter, folder: Path, encoder: ExcerptEncoder) -> Changes:
    """Whatever is interrupted, the files that were encoded before stay in the index, and the next
    update goes on from there. Raises UserError.

    `folder` may be another one than before, to which the recordings were moved.
    """
    found, left_out, passed_over = check_any_audio(folder, len(writer.files()))
    moved = (
        _take_over(writer, folder, found)
        if writer.meta["folder"] != str(folder.resolve())
        else set()
    )
    known, unreadable = writer.files(), writer.unreadable()
    # a newer reader may read more files
    is_same_reader = writer.meta.get("reader") == READER_VERSION
    changes = Changes(moved=len(moved), passed_over=passed_over)
    work = []
    for file in found:
        as_before = (file.size, file.mtime_ns)
        if known.get(file.file) == as_before:
            changes.unchanged += file.file not in moved
        elif not is_same_reader or unreadable.get(file.file) != as_before:
            work.append(file)
    if writer.meta["complete"] and work:
        writer.commit(complete=False)
    with bar(total=len(work), desc="indexing", unit="file") as progress:
        _Update(writer, folder, encoder, changes, known).run(work, progress)
    present = {file.file for file in found}
    # Of a folder that cannot be read nobody knows what is in there: what the index has of it stays.
    closed = tuple(name for name in left_out if name.endswith("/"))
    for file in known.keys() - present:
        if not file.startswith(closed):
            writer.remove(file)
            changes.removed += 1
    for file in unreadable.keys() - present - left_out.keys():
        writer.remove(file)
    for file, reason in left_out.items():
        writer.add_unreadable(file, reason)
    writer.commit(complete=True, reader=READER_VERSION)
    writer.finish()
    changes.unreadable = writer.listed_unreadable()
    return changes


def _take_over(writer: IndexWriter, folder: Path, files: list[Found]) -> set[str]:
    """Replace the indexed folder by `folder`, if it holds at least LEAST_IN_COMMON of the indexed
    recordings.

    A folder of other recordings, given by mistake, would empty the index: it is refused. So is a
    folder within the indexed one, unless it holds all recordings. Names and times are no evidence
    here, since copies and archives may give the same ones to other content.

    Args:
        writer: Writer of the index.
        folder: The new folder.
        files: The files in it.

    Returns:
        Names of the files that were recognised by their content.

    Raises:
        UserError: The folder holds too few of the recordings.
    """
    digests, sizes = writer.digests(), {size for size, _ in writer.files().values()}
    contents, recognised = set(digests.values()), []
    candidates = [file for file in files if file.size in sizes]
    with (
        bar(total=len(candidates), desc="comparing", unit="file") as progress,
        _reading_ahead() as pool,
    ):
        for file, digest in _ahead(
            pool, candidates, lambda file: _digest_or_none(folder / file.file)
        ):
            if digest in contents:
                recognised.append((file, digest))
            progress.update()
    there = {digest for _, digest in recognised}
    num_there = sum(digest in there for digest in digests.values())
    before = writer.meta["folder"]
    # the others still lie beside it: they were not moved
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


def _digest_or_none(path: Path) -> str | None:
    try:
        return sha256_of(path)
    except OSError:  # the update that follows lists it
        return None


class _Update:
    def __init__(
        self,
        writer: IndexWriter,
        folder: Path,
        encoder: ExcerptEncoder,
        changes: Changes,
        known: dict[str, tuple[int, int]],
    ):
        self.writer, self.folder, self.encoder, self.changes, self.known = (
            writer,
            folder,
            encoder,
            changes,
            known,
        )
        self.rate = encoder.model.sample_rate
        self.digests = set(writer.digests().values())
        # Excerpts that wait for a full batch, with the file that each belongs to.
        self.waiting: list[tuple[_Open, Excerpt]] = []
        self.last_commit = time.monotonic()

    def run(self, work: list[Found], progress) -> None:
        with _reading_ahead() as pool:
            for found, read in _ahead(pool, work, self._read):
                self._take(found, read)
                progress.update()
            self._encode(everything=True)

    def _read(self, found: Found) -> _Read:
        """In another thread: what numpy, soundfile, PyAV and soxr do there does not hold Python's
        lock.
        """
        path = self.folder / found.file
        try:
            digest = sha256_of(path)
            if digest in self.digests:
                return _Read(digest)
            return self._opened(path, digest)
        except (UnreadableSound, OSError) as error:
            return _Read(error=error)

    def _opened(self, path: Path, digest: str) -> _Read:
        facts, windows = SoundFacts(), self.encoder.model.windows
        excerpts = read_excerpts(
            path,
            self.rate,
            windows.clip_samples,
            round(self.writer.meta["hop_seconds"] * self.rate),
            facts,
        )
        return _Read(digest, chain(list(islice(excerpts, EXCERPTS_AHEAD)), excerpts), facts)

    def _take(self, found: Found, read: _Read) -> None:
        error = read.error
        try:
            if error is not None:
                raise error
            if read.excerpts is None:
                if name := self.writer.add_known(found, read.sha256):
                    self._count("unchanged" if name == found.file else "moved")
                    return
                # the other file with this content has changed meanwhile
                read = self._opened(self.folder / found.file, read.sha256)
            opened = _Open(found, read.sha256, read.facts)
            for excerpt in read.excerpts:
                opened.num_excerpts += 1
                opened.num_samples = max(opened.num_samples, excerpt.start + len(excerpt.samples))
                self.waiting.append((opened, excerpt))
                self._encode(everything=False)
            opened.is_read = True
            self._close(opened)
        except FileNotFoundError:
            # gone since the folder was listed; what the index has of it goes at the end of the next
            # update
            return
        except (UnreadableSound, OSError) as error:
            self.waiting = [
                (opened, excerpt) for opened, excerpt in self.waiting if opened.found is not found
            ]
            reason = (
                str(error)
                if isinstance(error, UnreadableSound)
                else f"cannot be read: {error.strerror}"
            )
            # Permissions, memory and libraries may change although the file does not: try it again
            # next time.
            is_final = isinstance(error, UnreadableSound) and not isinstance(error, DecoderDied)
            self.writer.add_unreadable(found.file, reason, found if is_final else None)

    def _encode(self, everything: bool) -> None:
        size = self.encoder.batch_size
        while len(self.waiting) >= (1 if everything else size):
            batch, self.waiting = self.waiting[:size], self.waiting[size:]
            vectors, frames = self.encoder.encode([excerpt for _, excerpt in batch])
            for (opened, excerpt), place in zip(batch, self.writer.append(vectors, frames)):
                opened.places.append(
                    (
                        excerpt.start / self.rate,
                        (excerpt.start + len(excerpt.samples)) / self.rate,
                        *place,
                    )
                )
                self._close(opened)
        if time.monotonic() - self.last_commit > SECONDS_BETWEEN_COMMITS:
            self.writer.commit()
            self.last_commit = time.monotonic()

    def _close(self, opened: "_Open") -> None:
        """Add a file to the index when all of its excerpts are written."""
        if opened.is_read and len(opened.places) == opened.num_excerpts:
            self.writer.add_file(
                opened.found, opened.sha256, opened.num_samples / self.rate, opened.places
            )
            self._count("changed" if opened.found.file in self.known else "added")
            self.changes.one_channel += opened.facts.took_one_channel

    def _count(self, what: str) -> None:
        setattr(self.changes, what, getattr(self.changes, what) + 1)


class _Open:
    """A file on its way into the index."""

    def __init__(self, found: Found, sha256: str, facts: SoundFacts):
        self.found, self.sha256, self.facts = found, sha256, facts
        self.num_excerpts = self.num_samples = 0
        self.is_read = False
        self.places: list[tuple[float, float, int, int, int]] = []


@contextmanager
def _reading_ahead() -> Iterator[ThreadPoolExecutor]:
    """Start threads for `_ahead`. At the end, or after an exception, reads that have not begun are
    cancelled.
    """
    with ThreadPoolExecutor(FILES_AHEAD) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _ahead(
    pool: ThreadPoolExecutor, work: list[Found], read: Callable[[Found], Taken]
) -> Iterator[tuple[Found, Taken]]:
    """In order, with some read before their turn."""
    queue: deque[tuple[Found, Future]] = deque()
    files = iter(work)
    for found in chain(files, [None] * FILES_AHEAD):
        if found is not None:
            queue.append((found, pool.submit(read, found)))
        if queue and (len(queue) > FILES_AHEAD or found is None):
            first, future = queue.popleft()
            yield first, future.result()
