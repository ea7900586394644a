"""Read WavCaps' layout (Mei et al., 2023, arXiv 2303.17395): file and caption of each clip.

    ROOT/json_files/<source>/*.json     {"data": [{"id": ..., "caption": ...}, ...]}
    AUDIO/<source>/.../<id>.flac        or <source>_flac; other endings, sub-folders, and Y before a
                                        YouTube id are found too

All clips belong to `development`: WavCaps has no test split. An id that occurs twice, in any
spelling (clip_ids.py), counts once (fsd_final_2s.json repeats most of fsd_final.json); the first
caption is kept. An entry of FreeSound or AudioSet_SL with an invalid id is lost: it cannot be
compared with the test clips of other corpora.
"""

from pathlib import Path
from typing import Any

from data_prep.cache.shards import Clip
from data_prep.cache.split_plan import Skipped, SplitPlan
from data_prep.corpora.audio_files import audio_of_corpus, best_of, passed_over_note, readable_name
from data_prep.corpora.clip_ids import freesound_id, youtube_id
from data_prep.corpora.csv_files import one_spaced
from data_prep.corpora.exclusions import Exclusions
from retrieval.base.errors import UserError
from retrieval.base.files import read_json
from retrieval.base.sound_files import why_unreadable, without_ending
from retrieval.data.schema import DEVELOPMENT

SOURCES = ("FreeSound", "BBC_Sound_Effects", "SoundBible", "AudioSet_SL")
WANTED = ("caption", "file_name")  # Freesound's descriptions are ten times as long
WARNINGS = {
    "FreeSound": (
        "FreeSound holds clips of Clotho's validation and evaluation splits; exclude them with"
        " --exclude-clotho ROOT or --exclude-ids FILE, or scores on Clotho mean nothing"
    ),
    "AudioSet_SL": (
        "AudioSet_SL holds clips that AudioCaps tests with; exclude them with --exclude-audiocaps"
        " test.csv val.csv, or scores on AudioCaps mean nothing"
    ),
}


def read_wavcaps(root: Path, audio: Path, sources: list[str], exclusions: Exclusions) -> SplitPlan:
    """Plan the clips of all `sources`. Raises UserError for missing or damaged files."""
    plan = SplitPlan(DEVELOPMENT, clips=[], notes=[*exclusions.notes])
    for source in sources:
        before = [len(items) for items in (plan.clips, plan.lost, plan.excluded)]
        _read_source(plan, source, root, audio, exclusions)
        after = [len(items) for items in (plan.clips, plan.lost, plan.excluded)]
        num_clips, num_lost, num_excluded = (b - a for a, b in zip(before, after, strict=True))
        plan.notes.append(
            f"{source}: {num_clips} clips to read, {num_lost} without file or caption,"
            f" {num_excluded} excluded"
        )
    return plan


def leak_warnings(sources: list[str], exclusions: Exclusions) -> list[str]:
    """Return a warning for each source whose test clips are not excluded."""
    covered = {"FreeSound": exclusions.has_freesound, "AudioSet_SL": exclusions.has_youtube}
    return [WARNINGS[source] for source in WARNINGS if source in sources and not covered[source]]


def _read_source(
    plan: SplitPlan, source: str, root: Path, audio: Path, exclusions: Exclusions
) -> None:
    """Add the clips of a source to the plan."""
    entries = _entries(root / "json_files" / source, source, plan)
    files = _audio_files(audio, source, plan)
    for clip_id, entry in entries.items():
        name = f"{source}/{clip_id}"
        caption = one_spaced(_text(entry["caption"]))
        why_excluded = None
        if source == "AudioSet_SL":
            why_excluded = exclusions.why_youtube(clip_id)
        elif source == "FreeSound":
            why_excluded = exclusions.why_freesound(clip_id, str(entry["file_name"] or ""))
        if why_excluded:
            plan.excluded.append(Skipped(DEVELOPMENT, name, why_excluded))
        elif not caption:
            plan.lost.append(Skipped(DEVELOPMENT, name, "has no caption"))
        elif clip_id not in files:
            reason = "named in the JSON file, no such audio file"
            plan.lost.append(Skipped(DEVELOPMENT, name, reason))
        elif reason := why_unreadable(path := best_of(files[clip_id])):
            plan.lost.append(Skipped(DEVELOPMENT, name, reason))
        else:
            metadata = {"source": source, "sound_id": clip_id}
            file_name = f"{source}/{readable_name(path.name)}"
            plan.clips.append(
                Clip(f"{DEVELOPMENT}/{name}", file_name, str(path), (caption,), metadata)
            )
    for path in (path for clip_id in files if clip_id not in entries for path in files[clip_id]):
        name = f"{source}/{readable_name(path.name)}"
        plan.unused.append(Skipped(DEVELOPMENT, name, "no entry in the JSON files"))


def _entries(folder: Path, source: str, plan: SplitPlan) -> dict[str, dict[str, Any]]:
    """Return the entries of all JSON files of a source by id; add bad ones to the plan."""
    try:  # glob would find nothing in a folder that may not be read
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    except (FileNotFoundError, NotADirectoryError):
        paths = []
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None
    paths = [path for path in paths if not path.name.startswith(".")]
    if not paths:
        raise UserError(
            f"{folder} holds no .json file: fetch it from WavCaps, or leave the source out with"
            " --sources"
        )
    entries: dict[str, dict[str, Any]] = {}
    num_repeated = 0
    for path in paths:
        for number, entry in enumerate(_data(path), 1):
            found = entry.get("id") if isinstance(entry, dict) else None
            text = _text(str(found) if isinstance(found, (int, float)) else found)
            clip_id = _clip_id(text, source)
            if not clip_id:
                fault = f": {text[:80]!r} is not an id of {source}" if text else " has no id"
                name = f"{source}/{path.name}"
                plan.lost.append(Skipped(DEVELOPMENT, name, f"entry {number}{fault}"))
            elif clip_id in entries:
                num_repeated += 1
            else:
                entries[clip_id] = {key: entry.get(key) for key in WANTED}
    if num_repeated:
        plan.notes.append(
            f"{source}: {num_repeated} entries repeat the id of an earlier one and are not used"
        )
    return entries


def _data(path: Path) -> list[Any]:
    try:
        content = read_json(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        raise UserError(
            f"{path} cannot be understood ({' '.join(str(error).split())[:100]}): is it cut off?"
            " fetch it again"
        ) from None
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, list) or not data:
        raise UserError(
            f'{path}: expected {{"data": [{{"id": ..., "caption": ...}}, ...]}}, with one entry or'
            " more"
        )
    return data


def _audio_files(audio: Path, source: str, plan: SplitPlan) -> dict[str, list[Path]]:
    """Return the files of each id; note the others in the plan."""
    folders = [audio / source, audio / f"{source}_flac"]
    folder = next(filter(Path.is_dir, folders), None)
    if folder is None:
        raise UserError(
            f"{audio / source} is not a folder: unpack the audio of {source} there, or leave the"
            " source out with --sources"
        )
    files: dict[str, list[Path]] = {}
    found = audio_of_corpus(folder, "--audio")
    plan.notes += [f"{source}: {note}" for note in passed_over_note(found)]
    for path in found.paths:
        files.setdefault(_clip_id(path.name, source), []).append(path)
    return files


def _text(value: Any) -> str:
    """Return a string of JSON, empty for other values.

    Half a surrogate pair, which Arrow and terminals refuse, becomes `?`.
    """
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _clip_id(name: str, source: str) -> str:
    """Return the id in one spelling: b0RFKhbpFJA for `Yb0RFKhbpFJA.wav`; empty if it is none."""
    name = readable_name(name).strip()
    if source == "AudioSet_SL":
        return youtube_id(name) or ""
    if source == "FreeSound":
        return freesound_id(name) or ""
    return without_ending(name)
