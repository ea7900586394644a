"""Stretches of recordings as files: labels of Audacity, tables of Raven, CSV, JSON, and WAV clips.

Formats: https://manual.audacityteam.org/man/importing_and_exporting_labels.html, and chapter 6 of
the Raven Pro 1.4 User's Manual (selection tables).
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import soundfile

from retrieval.base.decoder_process import SoundInfo, read_frames
from retrieval.base.errors import UserError
from retrieval.base.files import atomic_path, atomic_writer
from retrieval.base.folders import whole_folder
from retrieval.base.sound import UnreadableSound
from retrieval.moments.spans import Moment

COLUMNS = ("query", "file", "from", "to", "score", "rank", "file_seconds", "matches")
RAVEN_COLUMNS = ("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)")
RAVEN_COLUMNS += ("Low Freq (Hz)", "High Freq (Hz)", "Begin File", "Score", "Annotation")
# A label file is called by its recording and this ending. Audacity takes any text file; Raven's is
# the ending of the tables that it saves itself.
ENDINGS = {"audacity": ".labels.txt", "raven": ".Table.1.selections.txt"}
TABLES = ("csv", "json")  # one file for all recordings
FORMATS = (*ENDINGS, *TABLES)
LONGEST_NAME = 60  # characters of a recording's name in that of a clip
LONGEST_FILE_NAME = 200  # bytes: file systems take 255, and files have longer names while written
FRAMES_AT_ONCE = 2**18
WAV_LIMIT = 2**32 - 2**16  # bytes of sound; larger files are RF64
MISSING_SECONDS = 0.1  # of a clip: decoders count the ends of lossy files differently

PathOf = Callable[[str], Path]


@dataclass(frozen=True)
class Stretch:
    """A stretch of a recording that answers a query.

    Attributes:
        query: The sentence, or the name of the sound that was searched for.
        file: Name of the recording, with "/" between folders.
        seconds: Length of the recording.
        rank: Of the answer that it belongs to, 1 is the best.
        moment: Its times and score.
        is_match: Whether the answer matches the query, or is merely one of the nearest.
    """

    query: str
    file: str
    seconds: float
    rank: int
    moment: Moment
    is_match: bool = True


def audacity_labels(stretches: Sequence[Stretch]) -> str:
    """Return the label track of one recording: start, end and query, in order of time."""
    rows = sorted(stretches, key=lambda own: own.moment)
    return "".join(
        f"{own.moment.start:.6f}\t{own.moment.end:.6f}\t{plain(own.query)}\n" for own in rows
    )


def raven_table(stretches: Sequence[Stretch], highest: float) -> str:
    """Return the selection table of one recording, in order of time.

    Args:
        stretches: Its stretches.
        highest: Half of its sample rate, in Hz.
    """
    rows = ["\t".join(RAVEN_COLUMNS)]
    for number, own in enumerate(sorted(stretches, key=lambda own: own.moment), 1):
        name = PurePosixPath(own.file).name
        times = (f"{own.moment.start:.6f}", f"{own.moment.end:.6f}", "0.000", f"{highest:.3f}")
        words = (printed(name), f"{own.moment.score:.6f}", plain(own.query))
        # readers of tables take " for the begin of a quotation that may span lines
        words = (word.replace('"', "'") for word in words)
        rows.append("\t".join((str(number), "Spectrogram 1", "1", *times, *words)))
    return "\n".join(rows) + "\n"


def csv_table(stretches: Sequence[Stretch]) -> str:
    """Return a row for each stretch, under COLUMNS, in the order given."""
    text = io.StringIO(newline="")
    rows = [(*row[:-1], str(row[-1]).lower()) for row in map(_row, stretches)]
    csv.writer(text).writerows([COLUMNS, *rows])
    return text.getvalue()


def json_table(stretches: Sequence[Stretch]) -> str:
    """Return a list of objects with the keys COLUMNS, in the order given."""
    rows = [dict(zip(COLUMNS, _row(own), strict=True)) for own in stretches]
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def _row(own: Stretch) -> tuple:
    start, end, score = own.moment
    times = round(start, 3), round(end, 3), round(score, 6)
    return own.query, own.file, *times, own.rank, round(own.seconds, 3), own.is_match


def plain(text: str) -> str:
    """Return a text on one line, without tabs and other characters that are not printed."""
    return " ".join(printed(text).split())


def printed(text: str) -> str:
    """Return a text with spaces in place of characters that are not printed, such as tabs."""
    return "".join(one if one.isprintable() else " " for one in text)


def write_labels(
    kind: str, output: Path, stretches: Sequence[Stretch], path_of: PathOf
) -> list[Path]:
    """Write stretches as labels.

    Args:
        kind: One of FORMATS.
        output: For csv and json the file. For audacity and raven a folder: each recording gets a
            file, with its name and an ending, in sub-folders like its own. Label files of earlier
            runs are replaced.
        stretches: Of any recordings and queries.
        path_of: The path of a recording by its name: Raven's table holds its highest frequency.

    Returns:
        The files that were written.

    Raises:
        UserError: A file cannot be written, or a recording cannot be read.
    """
    if kind in TABLES:
        text = (csv_table if kind == "csv" else json_table)(stretches)
        with atomic_writer(output) as file:
            file.write(text)
        return [output]
    contents = label_files(kind, stretches, path_of)
    for name in contents:  # before the first is written
        if (output / name).is_dir():
            raise UserError(f"{output / name} is a folder: give another --output")
    for name, text in contents.items():
        with atomic_writer(output / name) as file:
            file.write(text)
    return [output / name for name in contents]


def label_files(kind: str, stretches: Sequence[Stretch], path_of: PathOf) -> dict[Path, str]:
    """Return the label files of recordings: their relative paths, and their content.

    Arguments and errors are those of `write_labels`; kind: audacity or raven.
    """
    contents = {}
    for name, own in by_file(stretches).items():
        if kind == "audacity":
            text = audacity_labels(own)
        else:
            text = raven_table(own, _read(path_of(name), 0, 0)[1].sample_rate / 2)
        contents[_label_name(name, ENDINGS[kind])] = text
    return contents


def by_file(stretches: Sequence[Stretch]) -> dict[str, list[Stretch]]:
    """Return the stretches of each recording."""
    found: dict[str, list[Stretch]] = {}
    for own in stretches:
        found.setdefault(own.file, []).append(own)
    return found


def _label_name(file: str, ending: str) -> Path:
    path = PurePosixPath(file)
    name, room = path.name, LONGEST_FILE_NAME - len(ending)  # bytes
    if len(name.encode()) > room:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = name.encode()[: room - 9].decode(errors="ignore") + "-" + digest
    return Path(*path.parent.parts, name + ending)


def _read(path: Path, first: int, num_frames: int) -> tuple[np.ndarray, SoundInfo]:
    """Read frames of a recording, and facts of it, as read_frames. Raises UserError."""
    try:
        return read_frames(path, first, num_frames)
    except UnreadableSound as error:
        raise UserError(f"{path} {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def write_clips(folder: Path, stretches: Sequence[Stretch], path_of: PathOf) -> list[Path]:
    """Write each stretch as a WAV of 24 bit, with the channels and the rate of its recording.

    Args:
        folder: Its new folder; it appears when it is complete.
        stretches: Their order is that of the numbers in the names.
        path_of: The path of a recording by its name.

    Returns:
        The files, one for each stretch: number, name of the recording, times in s.

    Raises:
        UserError: The folder exists with files in it, or cannot be written, or a recording cannot
            be read.
    """
    check_clips_folder(folder)
    digits, names = max(3, len(str(len(stretches)))), []
    with whole_folder(folder, "the clips") as new:
        for number, own in enumerate(stretches, 1):
            names.append(f"{number:0{digits}} {clip_name(own)}")
            write_clip(path_of(own.file), own.moment, new / names[-1])
    return [folder / name for name in names]


def check_clips_folder(folder: Path) -> None:
    """Raise UserError for a folder with files: none of them may be replaced."""
    if folder.name in ("", ".."):
        raise UserError(f"--clips {folder}: give the new folder by its own name")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"--clips {folder} exists and holds files, which are not replaced: give a new folder"
        )


def clip_name(own: Stretch) -> str:
    """Return the name of a stretch's clip, which every file system takes."""
    stem = PurePosixPath(own.file).stem
    safe = "".join(one if one.isalnum() or one in " -_.()" else "_" for one in stem)
    name = safe[:LONGEST_NAME].strip(" .") or "recording"
    while len(name.encode()) > 2 * LONGEST_NAME:
        name = name[:-1]
    return f"{name} {own.moment.start:.2f}-{own.moment.end:.2f}.wav"


def write_clip(path: Path, moment: Moment, output: Path) -> None:
    """Write a stretch of the recording `path` as a WAV of 24 bit.

    Raises UserError if the recording cannot be read, or does not have it; for a full disk OSError
    or LibsndfileError.
    """
    _, info = _read(path, 0, 0)
    first = round(moment.start * info.sample_rate)
    stop = max(round(moment.end * info.sample_rate), first + 1)
    num_written = 0
    sound = {"samplerate": info.sample_rate, "channels": info.channels}
    size = 3 * (stop - first) * info.channels
    form = {"format": "WAV" if size < WAV_LIMIT else "RF64", "subtype": "PCM_24"}
    with atomic_path(output) as temporary:
        with soundfile.SoundFile(temporary, "w", **sound, **form) as file:
            for place in range(first, stop, FRAMES_AT_ONCE):
                samples, _ = _read(path, place, min(FRAMES_AT_ONCE, stop - place))
                file.write(samples)  # (S, C)
                num_written += len(samples)
    if stop - first - num_written > MISSING_SECONDS * info.sample_rate or not num_written:
        output.unlink()
        raise UserError(
            f"{path} is shorter now, and ends before {moment.end:.2f} s: bring the index up to date"
        )
