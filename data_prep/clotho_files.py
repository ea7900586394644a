"""Reads Clotho's folder layout: which clip has which file, captions and metadata.

    ROOT/{development,validation,evaluation}/*.wav
    ROOT/clotho_captions_<split>.csv    UTF-8: file_name, caption_1 .. caption_5 (further caption_N are read too)
    ROOT/clotho_metadata_<split>.csv    UTF-8 or, as in Clotho v2.1, ISO-8859-1: file_name and METADATA_COLUMNS

The captions CSV says which clips there are. The three sources are joined on a normalised name (`normalise_name`), since the real corpus has
trailing and doubled blanks, HTML entities and accents that differ from place to place. One clip is one row:

- two rows or two files of one normalised name are an error that names both; a repeated metadata row is a note, and the first one counts;
- a clip without file or without any non-empty caption is lost: listed, and counted against the 1 % that a build may lose;
- a file without captions is listed as unused and costs nothing; a clip without metadata row gets empty strings and a note.
"""

import csv
import html
import io
import os
import re
import unicodedata
from pathlib import Path

from arrow_cache import Skipped, SplitPlan
from cache_shards import Clip
from prep_errors import UserError

SPLITS = ("development", "validation", "evaluation")
CAPTION_COLUMNS = tuple(f"caption_{number}" for number in range(1, 6))
METADATA_COLUMNS = ("keywords", "sound_id", "sound_link", "start_end_samples", "manufacturer", "license")


def normalise_name(name: str) -> str:
    """The same name for ` Caf&eacute;  no. 1 .WAV`, with é as one character or two, and `Café no. 1.wav`."""
    stem, dot, suffix = unicodedata.normalize("NFC", html.unescape(name)).strip().rpartition(".")
    return " ".join(stem.split()) + dot + suffix.lower()


def read_clotho(root: Path, splits: list[str]) -> list[SplitPlan]:
    """Plans of `splits`; UserError for whatever is missing or contradictory."""
    if not root.is_dir():
        raise UserError(f"--root {root} is not a folder; add --download to fetch Clotho into it")
    complete = [split for split in SPLITS if all(path.exists() for path in _paths(root, split))]
    for path in (path for split in splits for path in _paths(root, split)):
        if not path.exists():
            others = [split for split in splits if split in complete]
            leave_out = f", or leave the split out: --splits {' '.join(others)}" if others else ", or check --root"
            raise UserError(f"{path} is missing: fetch it with --download{leave_out}")
    return [_read_split(root, split) for split in splits]


def _paths(root: Path, split: str) -> tuple[Path, Path, Path]:
    return root / split, root / f"clotho_captions_{split}.csv", root / f"clotho_metadata_{split}.csv"


def _read_split(root: Path, split: str) -> SplitPlan:
    folder, captions_csv, metadata_csv = _paths(root, split)
    files = _audio_files(folder)
    captions = _by_name(captions_csv, _read_csv(captions_csv, CAPTION_COLUMNS, ["utf-8-sig"]))
    plan = SplitPlan(split, clips=[])
    metadata = _metadata(metadata_csv, plan)
    for name, row in captions.items():
        texts = tuple(text for column in _caption_columns(row) if (text := " ".join(row[column].split())))
        if name not in files:
            plan.lost.append(Skipped(split, row["file_name"], "named in the captions CSV, no such file"))
        elif not texts:
            plan.lost.append(Skipped(split, row["file_name"], "all captions are empty"))
        else:
            path = files[name]
            fields = {column: metadata.get(name, {}).get(column, "").strip() for column in METADATA_COLUMNS}
            plan.clips.append(Clip(f"{split}/{name}", _readable(path.name), str(path), texts, fields))
    unused = [path for name, path in files.items() if name not in captions]
    plan.unused += [Skipped(split, _readable(path.name), "no row in the captions CSV") for path in unused]
    num_bare = sum(name not in metadata for name in captions)
    if num_bare:
        plan.notes.append(f"{split}: {num_bare} of {len(captions)} clips have no row in {metadata_csv.name}; their metadata is empty")
    return plan


def _caption_columns(row: dict[str, str]) -> list[str]:
    return sorted((column for column in row if re.fullmatch(r"caption_\d+", column)), key=lambda column: int(column[8:]))


def _audio_files(folder: Path) -> dict[str, Path]:
    """Normalised name -> file."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.strip().lower() == ".wav" and path.is_file())
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None
    files: dict[str, Path] = {}
    for path in paths:
        if path.name.startswith("._"):  # macOS leaves these beside the real files
            continue
        name = normalise_name(_readable(path.name))
        if name in files:
            raise UserError(f"{folder}: {files[name].name!r} and {path.name!r} are one name in two spellings: remove one of them")
        files[name] = path
    if not files:
        raise UserError(f"{folder} holds no .wav file: remove the folder and fetch it with --download")
    return files


def _readable(name: str) -> str:
    # A name that is not UTF-8 on disk holds surrogates, which Arrow and the terminal refuse.
    raw = os.fsencode(name)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("iso-8859-1")


def _by_name(path: Path, rows: list[dict[str, str]]) -> dict[str, dict[str, str]]:
    named: dict[str, dict[str, str]] = {}
    for row in rows:
        name = normalise_name(row["file_name"])
        if name in named:
            raise UserError(f"{path}: two rows for one clip, {named[name]['file_name']!r} and {row['file_name']!r}: keep one of them")
        named[name] = row
    if not named:
        raise UserError(f"{path} has no rows")
    return named


def _metadata(path: Path, plan: SplitPlan) -> dict[str, dict[str, str]]:
    named: dict[str, dict[str, str]] = {}
    # ISO-8859-1 accepts any bytes, so it comes second.
    for row in _read_csv(path, METADATA_COLUMNS, ["utf-8-sig", "iso-8859-1"]):
        if named.setdefault(normalise_name(row["file_name"]), row) is not row:
            plan.notes.append(f"{path.name}: a second row for {row['file_name']!r} is not used")
    return named


def _read_csv(path: Path, columns: tuple[str, ...], encodings: list[str]) -> list[dict[str, str]]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    reader = csv.reader(io.StringIO(_decode(path, raw, encodings), newline=""))
    try:
        header = [column.strip() for column in next(reader, [])]
        for column in ("file_name", *columns):
            if header.count(column) != 1:
                raise UserError(f"{path}: column {column} must occur once in its first line, found: {', '.join(header) or 'nothing'}")
        rows = []
        for row in reader:
            if len(row) not in (0, len(header)):
                found = f"{len(row)} fields, expected {len(header)}"
                raise UserError(f"{path}, line {reader.line_num}: {found}; is a quote missing or the file cut off?")
            if row:
                rows.append(dict(zip(header, row, strict=True)))
        return rows
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from None


def _decode(path: Path, raw: bytes, encodings: list[str]) -> str:
    for encoding in encodings:
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError as error:
            reason = error
    raise UserError(f"{path} is not UTF-8: {reason.reason} at byte {reason.start}; save it as UTF-8")
