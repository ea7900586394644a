"""Reads AudioCaps (Kim et al., 2019): its CSV files, and audio files under whatever names a
download gave them.

    ROOT/{train,val,test}.csv     audiocap_id,youtube_id,start_time,caption; rows of one (youtube_id, start_time) are one clip

AudioCaps is distributed without audio: the 10 s excerpts come from YouTube, and a part of the
videos is gone, which is normal. Known names, in any sub-folder, with or without `Y` before the id:
`ID`, `ID_START`, `ID_START_END`; START in seconds (30, 30.000, 000030) or milliseconds (30000). A
file named by the video alone is used where the CSV files have one clip of that video only.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.cache.shards import Clip
from data_prep.cache.split_plan import Skipped, SplitPlan
from data_prep.corpora.audio_files import audio_of_corpus, best_of, passed_over_note, readable_name
from data_prep.corpora.clip_ids import youtube_excerpt, youtube_id
from data_prep.corpora.csv_files import one_spaced, read_csv
from data_prep.corpora.exclusions import Exclusions
from retrieval.base.errors import UserError
from retrieval.base.sound_files import why_unreadable
from retrieval.data.schema import DEVELOPMENT, EVALUATION, SPLITS, VALIDATION

CSV_OF_SPLIT = dict(zip(SPLITS, ("train.csv", "val.csv", "test.csv"), strict=True))
COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")

ClipKey = tuple[str, float]  # YouTube id, start in s


@dataclass
class _Rows:
    """The rows of one clip."""

    captions: list[str] = field(default_factory=list)
    audiocap_ids: list[str] = field(default_factory=list)  # one a caption


def read_audiocaps(
    root: Path, audio: Path, splits: list[str], exclusions: Exclusions
) -> list[SplitPlan]:
    """Plans of `splits`; videos of `exclusions`, and those of val.csv and test.csv, stay out of
    development. Raises UserError.
    """
    for split in splits:
        if not (root / CSV_OF_SPLIT[split]).is_file():
            raise UserError(
                f"{root / CSV_OF_SPLIT[split]} is missing: fetch it from AudioCaps, or leave"
                f" {split} out with --splits"
            )
    rows_of_split = {
        split: _read_rows(root / name)
        for split, name in CSV_OF_SPLIT.items()
        if (root / name).is_file()
    }
    for split in (EVALUATION, VALIDATION):
        if split in rows_of_split:
            exclusions.add_audiocaps(root / CSV_OF_SPLIT[split], option="")
    found = audio_of_corpus(audio, "--audio")
    videos = _audio_files(found.paths)
    clips_of_video = defaultdict(set)
    for key in (key for rows in rows_of_split.values() for key in rows):
        clips_of_video[key[0]].add(key)
    plans = [
        _plan(split, rows_of_split[split], videos, clips_of_video, exclusions) for split in splits
    ]
    num_files = sum(len(files) for files in videos.values())
    num_unknown = sum(len(files) for video, files in videos.items() if video not in clips_of_video)
    if num_unknown:
        plans[0].notes.append(
            f"{num_unknown} of {num_files} audio files belong to no clip of the CSV files, or have"
            " names that tell no video"
        )
    plans[0].notes += passed_over_note(found)
    return plans


def _read_rows(path: Path) -> dict[ClipKey, _Rows]:
    clips: dict[ClipKey, _Rows] = {}
    for row in read_csv(path, COLUMNS, ["utf-8-sig"]):
        video, start = youtube_id(row["youtube_id"]), _seconds(row["start_time"])
        if start is None or video is None:
            found = f"youtube_id {row['youtube_id']!r}, start_time {row['start_time']!r}"
            raise UserError(
                f"{path}, audiocap_id {row['audiocap_id']!r}: {found}; expected the 11 characters"
                " of a YouTube id, and seconds"
            )
        clip = clips.setdefault((video, start), _Rows())
        # one that is repeated too: in the test set it is a query of its own
        if caption := one_spaced(row["caption"]):
            clip.captions.append(caption)
            clip.audiocap_ids.append(row["audiocap_id"].strip())
    if not clips:
        raise UserError(f"{path} has no rows")
    return clips


def _plan(
    split: str,
    rows: dict[ClipKey, _Rows],
    videos: dict[str, list[tuple[float | None, Path]]],
    clips_of_video: dict[str, set[ClipKey]],
    exclusions: Exclusions,
) -> SplitPlan:
    plan = SplitPlan(split, clips=[])
    for (video, start), clip in rows.items():
        time = str(start).removesuffix(".0")
        name = f"{video}_{time}"
        if split == DEVELOPMENT and (reason := exclusions.why_youtube(video)):
            plan.excluded.append(Skipped(split, name, reason))
            continue
        paths = _files_of(start, videos.get(video, []), len(clips_of_video[video]) == 1)
        if not paths:
            reason = (
                "its video's files are of other times, or do not tell"
                if video in videos
                else "no such audio file"
            )
            plan.lost.append(Skipped(split, name, reason))
        elif not clip.captions:
            plan.lost.append(Skipped(split, name, "all captions are empty"))
        elif reason := why_unreadable(path := best_of(paths)):
            plan.lost.append(Skipped(split, name, reason))
        else:
            metadata = {
                "youtube_id": video,
                "start_time": time,
                "audiocap_ids": " ".join(clip.audiocap_ids),
            }
            plan.clips.append(
                Clip(
                    f"{split}/{name}",
                    readable_name(path.name),
                    str(path),
                    tuple(clip.captions),
                    metadata,
                )
            )
    return plan


def _files_of(
    start: float, files: list[tuple[float | None, Path]], is_only_clip: bool
) -> list[Path]:
    """Those of a video's files that hold the clip at `start`; names that say so before names that
    say nothing.
    """
    seconds = [path for found, path in files if found == start]
    milliseconds = [path for found, path in files if found == 1000 * start]
    unnamed = [path for found, path in files if found is None and is_only_clip]
    return seconds or milliseconds or unnamed


def _audio_files(paths: list[Path]) -> dict[str, list[tuple[float | None, Path]]]:
    """YouTube id -> (start in the name, None where it has none; file); names that tell no id under
    the empty one.
    """
    videos: dict[str, list[tuple[float | None, Path]]] = defaultdict(list)
    for path in paths:
        excerpt = youtube_excerpt(readable_name(path.name))
        videos[excerpt.video if excerpt else ""].append((excerpt.start if excerpt else None, path))
    return dict(videos)


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None
