"""Read the annotations of CASTELLA (Munakata et al., 2025): sentences with times in recordings.

    ANNOTATIONS/{train,val,test}.json        of line/CASTELLA, json/en or json/ja: a list of
        {yid, global_caption, duration, num_moments, moments: [{local_caption, timestamps}]}
    ANNOTATIONS/castella_{train,val,test}_release.jsonl    of lighthouse: a query a line,
        {qid, query, duration, vid, relevant_windows}

A recording is a clip; its caption is the global one, in lighthouse's files its queries. A query is
called `<yid>_<n from 1>`, as lighthouse calls it. The audio comes from YouTube, and some videos are
gone.

Faults of the data: windows without length, windows that end after the recording (in one case by
4,500 s), unsorted windows, other numbers of moments than announced, two queries of one sentence.
Windows are repaired when the sound is read (data_prep/cache/moments.py), by its length: the
annotated duration is in whole seconds, and json and jsonl often differ in it. This file counts the
other faults.
"""

import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.cache.shards import Clip
from data_prep.cache.split_plan import Skipped, SplitPlan
from data_prep.corpora.audio_files import audio_of_corpus, best_of, passed_over_note, readable_name
from data_prep.corpora.clip_ids import youtube_excerpt
from data_prep.corpora.csv_files import one_spaced
from retrieval.base.errors import UserError
from retrieval.base.files import is_unicode, parse_json
from retrieval.base.sound_files import SoundFiles, why_unreadable, without_ending
from retrieval.data.moments import MomentQuery, Window
from retrieval.data.schema import SPLITS

NAME_OF_SPLIT = dict(zip(SPLITS, ("train", "val", "test"), strict=True))
SECONDS = 300.0  # CASTELLA annotates the beginning of longer videos


@dataclass
class _Recording:
    """A recording with its annotations."""

    duration: float  # s, as annotated
    caption: str = ""
    queries: list[MomentQuery] = field(default_factory=list)


@dataclass
class _Annotations:
    """Annotations of a split."""

    path: Path
    recordings: dict[str, _Recording] = field(default_factory=dict)  # by YouTube id
    num_miscounted: int = 0  # recordings with another `num_moments` than moments


def read_castella(annotations: Path, audio: Path, splits: list[str]) -> list[SplitPlan]:
    """Plan the clips of each split.

    Args:
        annotations: Folder of the files of one kind.
        audio: Folder of the audio files, `<yid>.<ending>`.
        splits: Splits to plan.

    Raises:
        UserError: A file is missing or damaged, or there is no audio.
    """
    found_splits = {split: _read(annotations, split) for split in splits}
    split_of: dict[str, str] = {}
    for split, of_split in found_splits.items():
        for yid in of_split.recordings:
            if (other := split_of.setdefault(yid, split)) != split:
                raise UserError(
                    f"{of_split.path}: recording {yid!r} is in {found_splits[other].path.name} too;"
                    " a recording belongs to one split"
                )
    found = audio_of_corpus(audio, "--audio")
    files = _files_by_id(found)
    plans = [_plan(split, of_split, files) for split, of_split in found_splits.items()]
    if num_unknown := len(set(found.paths) - {path for y in split_of for path in files[y]}):
        plans[0].notes.append(
            f"{num_unknown} of {len(found.paths)} audio files belong to no recording of these"
            " splits"
        )
    plans[0].notes += passed_over_note(found)
    return plans


def _read(folder: Path, split: str) -> _Annotations:
    """Read the file of a split."""
    name = NAME_OF_SPLIT[split]
    json_path, jsonl_path = folder / f"{name}.json", folder / f"castella_{name}_release.jsonl"
    path = json_path if json_path.is_file() else jsonl_path
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds neither {json_path.name} of line/CASTELLA nor {jsonl_path.name} of"
            f" lighthouse: give their folder as --annotations, or leave {split} out with --splits"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"{path} cannot be read: {reason}") from None
    annotations = _of_json(path, text) if path == json_path else _of_jsonl(path, text)
    if not annotations.recordings:
        raise UserError(f"{path} holds no recording")
    return annotations


def _of_json(path: Path, text: str) -> _Annotations:
    entries, annotations = _parsed(text, str(path)), _Annotations(path)
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected a list of recordings")
    for number, entry in enumerate(entries, start=1):
        place = f"{path}, entry {number}"
        yid = _text(entry, "yid", place)
        place = f"{path}, recording {yid!r}"
        if yid in annotations.recordings:
            raise UserError(f"{place}: is there twice")
        duration = _number(_value(entry, "duration", place), f"{place}: duration")
        caption = _text(entry, "global_caption", place, may_be_empty=True)
        recording = _Recording(duration, caption)
        moments = _list(entry, "moments", place)
        for index, moment in enumerate(moments, start=1):
            where = f"{place}, moment {index}"
            windows = _windows(_list(moment, "timestamps", where), where)
            query = _text(moment, "local_caption", where)
            recording.queries.append(MomentQuery(f"{yid}_{index}", query, windows))
        annotations.num_miscounted += entry.get("num_moments", len(moments)) != len(moments)
        annotations.recordings[yid] = recording
    return annotations


def _of_jsonl(path: Path, text: str) -> _Annotations:
    annotations, qids = _Annotations(path), set()
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        entry = _parsed(line, place)
        vid, qid = _text(entry, "vid", place), _text(entry, "qid", place)
        if qid in qids:
            raise UserError(f"{place}: qid {qid!r} is there twice")
        qids.add(qid)
        duration = _number(_value(entry, "duration", place), f"{place}: duration")
        recording = annotations.recordings.setdefault(vid, _Recording(duration))
        recording.duration = max(recording.duration, duration)
        windows = _windows(_list(entry, "relevant_windows", place), place)
        recording.queries.append(MomentQuery(qid, _text(entry, "query", place), windows))
    return annotations


def _plan(split: str, annotations: _Annotations, files: dict[str, list[Path]]) -> SplitPlan:
    plan = SplitPlan(split, clips=[])
    for yid, recording in annotations.recordings.items():
        texts = dict.fromkeys(query.query for query in recording.queries)
        captions = (recording.caption,) if recording.caption else tuple(texts)
        if not files[yid]:
            plan.lost.append(Skipped(split, yid, "no such audio file"))
        elif reason := why_unreadable(path := best_of(files[yid])):
            plan.lost.append(Skipped(split, readable_name(path.name), reason))
        else:
            metadata = {"youtube_id": yid, "duration": f"{recording.duration:g}"}
            names = f"{split}/{yid}", readable_name(path.name), str(path)
            plan.clips.append(Clip(*names, captions, metadata, tuple(recording.queries)))
    plan.notes += _fault_notes(split, annotations)
    return plan


def _fault_notes(split: str, annotations: _Annotations) -> list[str]:
    """Return a line for each kind of fault in the annotations, also of lost recordings."""
    recordings = annotations.recordings.values()
    late = [
        (query.qid, end)
        for recording in recordings
        for query in recording.queries
        for _, end in query.windows
        if end > recording.duration
    ]
    num_empty = sum(s == e for r in recordings for q in r.queries for s, e in q.windows)
    num_queries = sum(len(recording.queries) for recording in recordings)
    num_texts = sum(len({query.query for query in r.queries}) for r in recordings)
    num_bare = sum(not recording.queries for recording in recordings)
    latest = max(late, key=lambda item: item[1], default=("", 0.0))
    faults = {
        "recordings have no moments: they have a caption only": num_bare,
        "recordings announce another number of moments than they have": annotations.num_miscounted,
        "windows have no length": num_empty,
        f"windows end after the annotated duration, the last at {latest[1]:g} s in {latest[0]}:"
        " the sound decides": len(late),
        "queries have the sentence of another one of their recording: all are kept": (
            num_queries - num_texts
        ),
    }
    name = annotations.path.name
    return [f"{split}: {name}: {number} {text}" for text, number in faults.items() if number]


def _files_by_id(found: SoundFiles) -> dict[str, list[Path]]:
    """Return the files by the YouTube id in their names: ID, or ID_0_300 of an excerpt from 0."""
    files: dict[str, list[Path]] = defaultdict(list)
    for path in found.paths:
        name = readable_name(path.name)
        excerpt = youtube_excerpt(name)
        ids = {without_ending(name)}
        if excerpt and not excerpt.start:
            ids.add(excerpt.video)
        for yid in ids:
            files[yid].append(path)
    return files


def _parsed(text: str, place: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"{place} cannot be understood ({reason}): is it cut off? fetch it again"
        ) from None


def _value(entry: Any, key: str, place: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise UserError(f"{place}: has no {key}")
    return entry[key]


def _text(entry: Any, key: str, place: str, may_be_empty: bool = False) -> str:
    value = _value(entry, key, place)
    text = one_spaced(value) if isinstance(value, str) else None
    if text is None or not (text or may_be_empty):
        raise UserError(f"{place}: {key} is {value!r}, expected a text")
    if not is_unicode(text):
        raise UserError(f"{place}: {key} is {value!r}: half a character is no text")
    return text


def _list(entry: Any, key: str, place: str) -> list[Any]:
    value = _value(entry, key, place)
    if not isinstance(value, list):
        raise UserError(f"{place}: {key} is not a list")
    return value


def _number(value: Any, where: str) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= sys.float_info.max:  # nor NaN
        raise UserError(f"{where} is {value!r}, expected seconds")
    return float(value)


def _windows(values: list[Any], where: str) -> tuple[Window, ...]:
    windows = []
    for value in values:
        if not isinstance(value, list) or len(value) != 2:
            raise UserError(f"{where}: window {value!r}, expected [start, end]")
        start, end = (_number(time, f"{where}: window {value!r}: {time!r}") for time in value)
        if end < start:
            raise UserError(f"{where}: window {value!r} ends before it starts")
        windows.append((start, end))
    return tuple(windows)
