"""Read AudioCaps (Kim et al., 2019): CSV files, and audio files under various names.

    ROOT/{train,val,test}.csv     audiocap_id,youtube_id,start_time,caption
                                  rows of one (youtube_id, start_time) are one clip

AudioCaps is distributed without audio: the 10 s excerpts come from YouTube, and some of the videos
are gone. Known file names, in any sub-folder, with or without `Y` before the id: `ID`, `ID_START`,
`ID_START_END`; START in seconds (30, 30.000, 000030) or milliseconds (30000). A file named by the
video only is used if the CSV files have one clip of that video.
"""

import math
from collections import Counter, defaultdict
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
# YouTube id -> files, each with the start in its name (None: not named); "" for other names
FilesOfVideo = dict[str, list[tuple[float | None, Path]]]


@dataclass
class _Rows:
    """The rows of one clip: a caption and an AudioCaps id each."""

    captions: list[str] = field(default_factory=list)
    audiocap_ids: list[str] = field(default_factory=list)


def read_audiocaps(
    root: Path, audio: Path, splits: list[str], exclusions: Exclusions
) -> list[SplitPlan]:
    """Plan the clips of each split.

    Args:
        root: Folder of the CSV files.
        audio: Folder of the audio files.
        splits: Splits to plan.
        exclusions: Videos to keep out of development. The videos of val.csv and test.csv are added.

    Raises:
        UserError: A CSV file is missing or damaged, or there is no audio.
    """
    for split in splits:
        if not (root / CSV_OF_SPLIT[split]).is_file():
            raise UserError(
                f"{root / CSV_OF_SPLIT[split]} is missing: fetch it from AudioCaps, or leave"
                f" {split} out with --splits"
            )
    paths = {split: root / name for split, name in CSV_OF_SPLIT.items()}
    rows_of_split = {split: _read_rows(path) for split, path in paths.items() if path.is_file()}
    for split in (EVALUATION, VALIDATION):
        if split in rows_of_split:
            exclusions.add_audiocaps(paths[split], option="")
    found = audio_of_corpus(audio, "--audio")
    files: FilesOfVideo = defaultdict(list)
    for path in found.paths:
        excerpt = youtube_excerpt(readable_name(path.name))
        video, start = (excerpt.video, excerpt.start) if excerpt else ("", None)
        files[video].append((start, path))
    num_clips = Counter(
        video for video, _ in {key for rows in rows_of_split.values() for key in rows}
    )
    plans = [_plan(split, rows_of_split[split], files, num_clips, exclusions) for split in splits]
    num_unknown = sum(len(files[video]) for video in files.keys() - num_clips.keys())
    if num_unknown:
        plans[0].notes.append(
            f"{num_unknown} of {len(found.paths)} audio files belong to no clip of the CSV files,"
            " or have names that tell no video"
        )
    plans[0].notes += passed_over_note(found)
    return plans


def _read_rows(path: Path) -> dict[ClipKey, _Rows]:
    clips: dict[ClipKey, _Rows] = {}
    for row in read_csv(path, COLUMNS, ["utf-8-sig"]):
        video, start = youtube_id(row["youtube_id"]), _seconds(row["start_time"])
        if video is None or start is None:
            raise UserError(
                f"{path}, audiocap_id {row['audiocap_id']!r}: youtube_id {row['youtube_id']!r},"
                f" start_time {row['start_time']!r}; expected the 11 characters of a YouTube id,"
                " and seconds"
            )
        clip = clips.setdefault((video, start), _Rows())
        # a repeated caption too: in the test set it is a query of its own
        if caption := one_spaced(row["caption"]):
            clip.captions.append(caption)
            clip.audiocap_ids.append(row["audiocap_id"].strip())
    if not clips:
        raise UserError(f"{path} has no rows")
    return clips


def _plan(
    split: str,
    rows: dict[ClipKey, _Rows],
    files: FilesOfVideo,
    num_clips: Counter[str],
    exclusions: Exclusions,
) -> SplitPlan:
    """Plan a split; `num_clips` counts the clips of a video in all splits."""
    plan = SplitPlan(split, clips=[])
    for (video, start), clip in rows.items():
        time = str(start).removesuffix(".0")
        name = f"{video}_{time}"
        if split == DEVELOPMENT and (reason := exclusions.why_youtube(video)):
            plan.excluded.append(Skipped(split, name, reason))
            continue
        # names in seconds come before names in milliseconds, and before names without a start
        starts = [start, 1000 * start, *([None] if num_clips[video] == 1 else [])]
        named = files.get(video, [])
        found = [[path for in_name, path in named if in_name == wanted] for wanted in starts]
        paths = next(filter(None, found), [])
        if not paths:
            other_times = "its video's files are of other times, or do not tell"
            reason = other_times if video in files else "no such audio file"
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
            file_name, captions = readable_name(path.name), tuple(clip.captions)
            plan.clips.append(Clip(f"{split}/{name}", file_name, str(path), captions, metadata))
    return plan


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None
