"""Build the Arrow cache of a corpus that is read in order, row by row, and known only at its end.

The reader of the corpus gives events: a new clip with its sound, further captions of a clip, a row
that is left out. New clips fill shards of SHARD_CLIPS clips or SHARD_BYTES bytes, whichever comes
first, for any --num-proc. The sounds of the shards at work lie in a spool folder, so that memory
holds one sound, and the disk a few shards:

    <output>.partial/cache/<split>/data-00000.arrow      becomes <output>/<split>/data-00000.arrow
    <output>.partial/reports/<split>-00000.json          report of a shard, with its journal
    <output>.partial/spool/<split>-00000/                sounds of a shard that is not written yet

The journal of a shard holds the events since the shard before it, and the place in the corpus after
them. An interrupted build replays the journals and reads on from the last place. Shards behind that
place that are finished already are recognised by their digest, and not decoded again.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from data_prep.cache.arrow_cache import (
    CacheSettings,
    check_rate_of_codec,
    finished_cache,
    lay_out,
    partial_folder,
)
from data_prep.cache.shards import COUNTS, Clip, ShardJob, finished_report, run_stream
from data_prep.cache.split_plan import Skipped, SplitPlan, check_losses, none_usable
from retrieval.base.errors import UserError
from retrieval.base.files import FINISHED_PARTS_ARE_KEPT, atomic_path, disk_errors, read_json
from retrieval.base.folders import swap_folder
from retrieval.base.locks import LOCK, locked
from retrieval.data.schema import CAPTIONS, CLIP_ID, SPLITS

SHARD_CLIPS = 64
# A shard ends before SHARD_CLIPS if its sounds take more: hours-long recordings fill a disk.
SHARD_BYTES = 2**28
MOST_LOST_AT_FIRST = 100  # rows without any clip before them: the whole split is unusable


@dataclass(frozen=True)
class NewClip:
    """A clip of the corpus that was not there before."""

    clip: Clip  # its `path` is set here
    sound: bytes | Path  # content of a sound file, or a file that stays where it is
    digest: str  # of the sound
    key: str  # what further rows of the clip have in common
    ids: dict[str, str] = field(default_factory=dict)  # kind -> id, for the exclusions


@dataclass(frozen=True)
class MoreCaptions:
    """Captions of a clip that was read before."""

    clip_id: str
    captions: tuple[str, ...]


@dataclass(frozen=True)
class LostRow:
    """A row without usable sound or captions; a later row of its key may replace it."""

    key: str
    item: Skipped
    captions: tuple[str, ...]


@dataclass(frozen=True)
class ExcludedRow:
    """A row that other corpora test with."""

    key: str
    item: Skipped
    ids: dict[str, str]


Event = NewClip | MoreCaptions | LostRow | ExcludedRow


@dataclass
class SplitMemory:
    """State of a split after the rows read so far."""

    split: str
    num_clips: int = 0
    clip_ids: dict[str, str] = field(default_factory=dict)  # key -> clip_id
    digests: dict[str, str] = field(default_factory=dict)  # key -> of its sound
    file_names: set[str] = field(default_factory=set)
    lost: dict[str, LostRow] = field(default_factory=dict)  # by key
    excluded: dict[str, ExcludedRow] = field(default_factory=dict)  # by key
    ids: dict[str, set[str]] = field(default_factory=dict)  # kind -> ids of its clips
    num_with_id: Counter[str] = field(default_factory=Counter)  # kind -> clips that have one
    more: dict[str, list[str]] = field(default_factory=dict)  # clip_id -> captions after its shard

    def apply(self, event: Event) -> None:
        if isinstance(event, NewClip):
            self._add(event.key, event.clip.clip_id, event.digest, event.clip.file_name, event.ids)
        elif isinstance(event, LostRow):
            self.lost[event.key] = event
        elif isinstance(event, ExcludedRow):
            self.excluded[event.key] = event

    def replay(self, journal: dict[str, Any]) -> None:
        """Apply the events of a journal."""
        for clip in journal["clips"]:
            self._add(*clip)
        for clip_id, captions in journal["more"]:
            self.more.setdefault(clip_id, []).extend(captions)
        for key, file_name, reason, captions in journal["lost"]:
            item = Skipped(self.split, file_name, reason)
            if key not in self.clip_ids:
                self.apply(LostRow(key, item, tuple(captions)))
        for key, file_name, reason, ids in journal["excluded"]:
            self.apply(ExcludedRow(key, Skipped(self.split, file_name, reason), ids))

    def _add(
        self, key: str, clip_id: str, digest: str, file_name: str, ids: dict[str, str]
    ) -> None:
        self.num_clips += 1
        self.clip_ids[key] = clip_id
        self.digests[key] = digest
        self.file_names.add(file_name)
        self.lost.pop(key, None)
        for kind, text in ids.items():
            self.ids.setdefault(kind, set()).add(text)
            self.num_with_id[kind] += 1


class PlaceInCorpus(Protocol):
    """A place behind a row."""

    def content(self) -> dict[str, Any]:
        """Return it as JSON. Called before the next row is read."""


class Corpus(Protocol):
    """A corpus that is read in order."""

    splits: list[str]  # in the order in which they are read
    metadata_columns: list[str]

    def digest(self) -> str:
        """Return a digest of its files and of all options that change what is read."""

    def events(
        self, memories: dict[str, SplitMemory], split: str, place: dict[str, Any] | None
    ) -> Iterator[tuple[Event, "PlaceInCorpus"]]:
        """Yield the events of a split from `place` on (None: all), and the place behind each.

        `memories` holds the events so far: those of the splits before, and of this one.
        """

    def notes(self, memories: dict[str, SplitMemory]) -> dict[str, list[str]]:
        """Return what to say of each split after the build."""


def build_from_stream(
    output: Path,
    settings: CacheSettings,
    corpus: Corpus,
    num_proc: int,
    max_lost: float,
    overwrite: bool,
) -> tuple[dict[str, Any], list[SplitPlan]]:
    """Build `output`, or find it finished with the same settings and sources.

    Args:
        output: Folder of the cache.
        settings: How to build it.
        corpus: The corpus.
        num_proc: Number of worker processes that decode; this one reads.
        max_lost: Largest fraction of a split that may be lost.
        overwrite: Replace a cache of other settings or sources.

    Returns:
        The content of cache.json, and a plan of each split for the report, without its clips.

    Raises:
        UserError: `output` is something else, too many clips are lost, or the disk fails.
    """
    check_rate_of_codec(settings)
    content = json.dumps([settings.content(), corpus.digest()], sort_keys=True)
    source = sha256(content.encode()).hexdigest()[:16]
    names = [split for split in SPLITS if split in corpus.splits]
    sources = dict.fromkeys(names, source)
    plans = {split: SplitPlan(split, clips=[]) for split in names}
    existing = finished_cache(output, settings, sources, list(plans.values()), overwrite)
    if existing is not None:
        return existing, list(plans.values())
    partial = partial_folder(output)
    with disk_errors(partial, FINISHED_PARTS_ARE_KEPT), locked(partial / LOCK), _tidy(partial):
        writer = _Writer(partial, settings, corpus, source, max_lost)
        writer.remove_leftovers()
        written: dict[Path, dict[str, Any]] = {}
        # closing: the workers end before the lock is released, also after an error here
        with closing(run_stream(writer.jobs(), num_proc)) as stream:
            for job, report in stream:
                written[job.report_path] = _without_journal(report)
                shutil.rmtree(writer.spool_of(job), ignore_errors=True)
        shards = [
            (split, arrow_path, report or written[report_path])
            for split, arrow_path, report_path, report in writer.shards
        ]
        for plan in plans.values():
            memory = writer.memories[plan.name]
            plan.num_streamed = memory.num_clips
            plan.lost = [row.item for row in memory.lost.values()]
            plan.excluded = [row.item for row in memory.excluded.values()]
            plan.notes = corpus.notes(writer.memories).get(plan.name, [])
        skipped = [item for _, _, report in shards for item in report["skipped"]]
        check_losses(list(plans.values()), skipped, max_lost)
        shards = [
            (split, path, _with_more(path, report, writer.memories[split], partial))
            for split, path, report in shards
        ]
        columns = corpus.metadata_columns
        _remove_others(partial, {path for _, path, _ in shards})
        info = lay_out(partial, settings, list(plans.values()), shards, columns, sources)
        swap_folder(partial / "cache", output)
        shutil.rmtree(partial)
    return info, list(plans.values())


@contextmanager
def _tidy(partial: Path) -> Iterator[None]:
    """Leave finished shards only behind after an error, or nothing."""
    try:
        yield
    except BaseException:
        shutil.rmtree(partial / "spool", ignore_errors=True)
        if not any(_num_clips(path) for path in (partial / "reports").glob("*.json")):
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _num_clips(report_path: Path) -> int:
    try:
        return read_json(report_path)["num_clips"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0


class _Writer:
    """Makes shards of a corpus, and remembers all of it that later rows may refer to."""

    def __init__(
        self, partial: Path, settings: CacheSettings, corpus: Corpus, source: str, max_lost: float
    ):
        self.partial, self.settings, self.corpus, self.source = partial, settings, corpus, source
        self.max_lost = max_lost
        self.memories = {split: SplitMemory(split) for split in corpus.splits}
        # split, Arrow file, report file, and the report if an earlier run wrote it
        self.shards: list[tuple[str, Path, Path, dict[str, Any] | None]] = []

    def remove_leftovers(self) -> None:
        """Remove sounds of an interrupted run, and shards of another source or other settings."""
        shutil.rmtree(self.partial / "spool", ignore_errors=True)
        for path in (self.partial / "reports").glob("*.json"):
            split, _, number = path.stem.rpartition("-")
            arrow_path = self.partial / "cache" / split / f"data-{number}.arrow"
            if self._report_at(arrow_path, path) is None:
                path.unlink()
        for path in (self.partial / "cache").rglob("*"):
            report_path = (
                self.partial
                / "reports"
                / f"{path.parent.name}-{path.stem.removeprefix('data-')}.json"
            )
            if path.is_file() and not report_path.exists():
                path.unlink()

    def spool_of(self, job: ShardJob) -> Path:
        return self.partial / "spool" / job.report_path.stem

    def jobs(self) -> Iterator[ShardJob]:
        """Yield the shards that are not written yet."""
        for split in self.corpus.splits:
            yield from self._jobs_of(split)

    def _paths(self, split: str, number: int) -> tuple[Path, Path]:
        name = f"{number:05d}"
        arrow_path = self.partial / "cache" / split / f"data-{name}.arrow"
        return arrow_path, self.partial / "reports" / f"{split}-{name}.json"

    def _resume(self, split: str) -> tuple[int, Any]:
        """Replay the shards of an earlier run; return their number, and the place behind them."""
        memory, number, place = self.memories[split], 0, None
        while report := self._report_at(*self._paths(split, number)):
            memory.replay(report["journal"])
            place = report["journal"]["place"]
            self.shards.append((split, *self._paths(split, number), _without_journal(report)))
            number += 1
        if number:
            print(
                f"going on with an interrupted build: {memory.num_clips} clips of {split} are ready"
            )
        return number, place

    def _report_at(self, arrow_path: Path, report_path: Path) -> dict[str, Any] | None:
        try:
            report = read_json(report_path)
            is_whole = report["num_bytes"] == arrow_path.stat().st_size
            is_same = report["journal"]["source"] == self.source and report.keys() >= set(COUNTS)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return report if is_whole and is_same else None

    def _jobs_of(self, split: str) -> Iterator[ShardJob]:
        memory = self.memories[split]
        number, start = self._resume(split)
        shard, place = _Shard(self, split, number), None
        for event, place in self.corpus.events(self.memories, split, start):
            if isinstance(event, MoreCaptions) and not shard.add_captions(event):
                memory.more.setdefault(event.clip_id, []).extend(event.captions)
            memory.apply(event)
            shard.add(event)
            is_hopeless = memory.num_clips == 0 and len(memory.lost) >= MOST_LOST_AT_FIRST
            if is_hopeless and self.max_lost < 1:
                raise UserError(self._none_usable(memory))
            if shard.is_full():
                yield from shard.jobs(place)
                shard = _Shard(self, split, shard.number + 1)
        if shard.clips:
            yield from shard.jobs(place)
        if memory.num_clips == 0:
            raise UserError(self._none_usable(memory))

    def _none_usable(self, memory: SplitMemory) -> str:
        excluded = [row.item for row in memory.excluded.values()]
        lost = [vars(row.item) for row in memory.lost.values()]
        return none_usable(SplitPlan(memory.split, clips=[], excluded=excluded), lost)


class _Shard:
    """A shard that is being filled."""

    def __init__(self, writer: _Writer, split: str, number: int):
        self.writer, self.split, self.number = writer, split, number
        self.arrow_path, self.report_path = writer._paths(split, number)
        self.spool = writer.partial / "spool" / self.report_path.stem
        self.clips: dict[str, Clip] = {}
        self.digests: list[str] = []
        self.num_bytes = 0
        self.journal: dict[str, Any] = {"clips": [], "more": [], "lost": [], "excluded": []}

    def add_captions(self, event: MoreCaptions) -> bool:
        """Give captions to a clip of this shard; return False if it is not in it."""
        clip = self.clips.get(event.clip_id)
        if clip is None:
            self.journal["more"].append([event.clip_id, list(event.captions)])
            return False
        self.clips[event.clip_id] = replace(clip, captions=clip.captions + event.captions)
        return True

    def add(self, event: Event) -> None:
        if isinstance(event, NewClip):
            clip, path = event.clip, event.sound
            if isinstance(path, bytes):
                path = self.spool / f"{len(self.clips):05d}"  # an id may be any text, `../x` too
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(event.sound)
                self.num_bytes += len(event.sound)
            self.clips[clip.clip_id] = replace(clip, path=str(path))
            self.digests.append(event.digest)
            self.journal["clips"].append(
                [event.key, clip.clip_id, event.digest, clip.file_name, event.ids]
            )
        elif isinstance(event, LostRow):
            item = event.item
            self.journal["lost"].append(
                [event.key, item.file_name, item.reason, list(event.captions)]
            )
        elif isinstance(event, ExcludedRow):
            item = event.item
            self.journal["excluded"].append([event.key, item.file_name, item.reason, event.ids])

    def is_full(self) -> bool:
        return len(self.clips) >= SHARD_CLIPS or self.num_bytes >= SHARD_BYTES

    def jobs(self, place: PlaceInCorpus) -> Iterator[ShardJob]:
        """Yield the job of this shard, unless an earlier run has written it."""
        clips, settings = tuple(self.clips.values()), self.writer.settings
        rows = [[clip.clip_id, clip.file_name, clip.captions, clip.metadata] for clip in clips]
        content = json.dumps([self.writer.source, rows, self.digests, self.journal])
        num_captions = {clip.clip_id: len(clip.captions) for clip in clips}
        journal = {
            "source": self.writer.source,
            "place": place.content(),
            "num_captions": num_captions,
            **self.journal,
        }
        job = ShardJob(
            self.split,
            clips,
            settings.codec,
            settings.sample_rate,
            settings.max_seconds,
            self.arrow_path,
            self.report_path,
            sha256(content.encode()).hexdigest(),
            journal,
        )
        report = finished_report(job)
        if report:
            shutil.rmtree(self.spool, ignore_errors=True)
        paths = self.arrow_path, self.report_path
        self.writer.shards.append((self.split, *paths, report and _without_journal(report)))
        if not report:
            yield job


def _without_journal(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report with the part of its journal that the end of the build needs."""
    journal = report["journal"]
    return report | {"journal": {"num_captions": journal["num_captions"]}}


def _with_more(
    path: Path, report: dict[str, Any], memory: SplitMemory, partial: Path
) -> dict[str, Any]:
    """Add the captions that were read after a shard was made; return its report.

    The sounds are copied, one at a time, and not decoded. Doing it twice changes nothing.
    """
    counts = report["journal"]["num_captions"]
    if not any(clip_id in memory.more for clip_id in counts):
        return report
    num_captions = 0
    with (
        pa.memory_map(str(path)) as source,
        pa.ipc.open_stream(source) as stream,
        atomic_path(path) as temporary,
    ):
        column = stream.schema.get_field_index(CAPTIONS)
        with open(temporary, "wb") as sink, pa.ipc.new_stream(sink, stream.schema) as copy:
            for batch in stream:
                clip_id = batch[CLIP_ID][0].as_py()
                captions = batch[CAPTIONS][0].as_py()[: counts[clip_id]]
                captions += memory.more.get(clip_id, [])
                num_captions += len(captions)
                texts = pa.array([captions], stream.schema.field(column).type)
                copy.write_batch(batch.set_column(column, CAPTIONS, texts))
    report = report | {"num_captions": num_captions, "num_bytes": path.stat().st_size}
    report_path = partial / "reports" / f"{path.parent.name}-{path.stem[5:]}.json"
    whole = read_json(report_path) | {key: report[key] for key in ("num_captions", "num_bytes")}
    with atomic_path(report_path) as temporary:
        temporary.write_text(json.dumps(whole), encoding="utf-8")
    return report


def _remove_others(partial: Path, paths: set[Path]) -> None:
    """Remove files of earlier builds with other settings from the folder of the cache."""
    for path in (partial / "cache").rglob("*"):
        if path.is_file() and path not in paths:
            path.unlink()


def count_shared(memories: dict[str, SplitMemory]) -> Counter[tuple[str, str]]:
    """Count the keys that two splits share."""
    names = [split for split in SPLITS if split in memories]
    return Counter(
        {
            (first, second): len(memories[first].clip_ids.keys() & memories[second].clip_ids.keys())
            for number, first in enumerate(names)
            for second in names[number + 1 :]
        }
    )
