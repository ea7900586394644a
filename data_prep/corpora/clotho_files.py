"""Read Clotho's folder layout: audio files, captions and metadata of each clip.

    ROOT/{development,validation,evaluation}/*.wav
    ROOT/clotho_captions_<split>.csv    UTF-8: file_name, caption_1 .. caption_5, more caption_N
    ROOT/clotho_metadata_<split>.csv    file_name and METADATA_COLUMNS; UTF-8 or, as in Clotho v2.1,
                                        ISO-8859-1
    ROOT/clotho_moments_<split>.csv     times (moments_csv.py), optional: of the sample corpus;
                                        Clotho has none

The captions CSV lists the clips. The three sources are joined on a normalised name
(`normalise_name`): the real corpus has trailing and doubled blanks, HTML entities and accents that
differ from place to place. One clip is one row:

- two rows or two files of one normalised name are an error that names both; a repeated metadata row
is a note, and the first one counts;
- a clip without file or without any non-empty caption is lost: listed, and counted against the 1 %
that a build may lose;
- a file without captions is listed as unused and costs nothing; a clip without metadata row gets
empty strings and a note.
"""

from pathlib import Path

from data_prep.cache.shards import Clip
from data_prep.cache.split_plan import Skipped, SplitPlan
from data_prep.corpora.audio_files import readable_name
from data_prep.corpora.csv_files import caption_columns, one_spaced, read_csv
from data_prep.corpora.moments_csv import FileMoments, read_moments_csv
from retrieval.base.errors import UserError
from retrieval.base.sound_files import normalise_name
from retrieval.data.schema import SPLITS

CAPTION_COLUMNS = tuple(f"caption_{number}" for number in range(1, 6))
METADATA_COLUMNS = (
    "keywords",
    "sound_id",
    "sound_link",
    "start_end_samples",
    "manufacturer",
    "license",
)


def holds_clotho(root: Path) -> bool:
    """Return True if files of any split exist."""
    return any(path.exists() for split in SPLITS for path in _paths(root, split))


def read_clotho(root: Path, splits: list[str]) -> list[SplitPlan]:
    """Plan the clips of `splits`. Raises UserError for missing or contradictory files."""
    complete = [split for split in SPLITS if all(path.exists() for path in _paths(root, split))]
    for path in (path for split in splits for path in _paths(root, split)):
        if not path.exists():
            others = " ".join(split for split in splits if split in complete)
            remedy = f"leave the split out: --splits {others}" if others else "check --root"
            raise UserError(f"{path} is missing: fetch it with --download, or {remedy}")
    return [_read_split(root, split) for split in splits]


def _paths(root: Path, split: str) -> tuple[Path, Path, Path]:
    tables = (root / f"clotho_{table}_{split}.csv" for table in ("captions", "metadata"))
    return (root / split, *tables)


def _read_split(root: Path, split: str) -> SplitPlan:
    folder, captions_csv, metadata_csv = _paths(root, split)
    plan = SplitPlan(split, clips=[])
    files = _audio_files(folder)
    captions = rows_by_name(captions_csv, CAPTION_COLUMNS)
    metadata: dict[str, dict[str, str]] = {}
    columns = ("file_name", *METADATA_COLUMNS)
    # ISO-8859-1 accepts any bytes, so it comes second
    for row in read_csv(metadata_csv, columns, ["utf-8-sig", "iso-8859-1"]):
        if metadata.setdefault(normalise_name(row["file_name"]), row) is not row:
            plan.notes.append(
                f"{metadata_csv.name}: a second row for {row['file_name']!r} is not used"
            )
    moments = _read_moments(root / f"clotho_moments_{split}.csv", captions_csv, set(captions))
    for name, row in captions.items():
        texts = tuple(text for column in caption_columns(row) if (text := one_spaced(row[column])))
        if name not in files:
            reason = "named in the captions CSV, no such file"
            plan.lost.append(Skipped(split, row["file_name"], reason))
        elif not texts:
            plan.lost.append(Skipped(split, row["file_name"], "all captions are empty"))
        else:
            path, found = files[name], metadata.get(name, {})
            fields = {column: found.get(column, "").strip() for column in METADATA_COLUMNS}
            file_name = readable_name(path.name)
            queries = tuple(moments[name].queries) if name in moments else ()
            plan.clips.append(Clip(f"{split}/{name}", file_name, str(path), texts, fields, queries))
    unused = [readable_name(path.name) for name, path in files.items() if name not in captions]
    plan.unused += [Skipped(split, name, "no row in the captions CSV") for name in unused]
    if num_bare := sum(name not in metadata for name in captions):
        plan.notes.append(
            f"{split}: {num_bare} of {len(captions)} clips have no row in {metadata_csv.name};"
            " their metadata is empty"
        )
    return plan


def _read_moments(path: Path, captions_csv: Path, names: set[str]) -> dict[str, FileMoments]:
    """Return the times of each file, as the sample corpus has them; Clotho itself has none."""
    if not path.exists():
        return {}
    moments = read_moments_csv(path, normalise_name)
    for name, file in moments.items():
        if name not in names:
            raise UserError(f"{path}, line {file.line}: {name!r} is not in {captions_csv.name}")
    return moments


def _audio_files(folder: Path) -> dict[str, Path]:
    """Return the files by normalised name."""
    try:
        paths = sorted(
            path
            for path in folder.iterdir()
            if path.suffix.strip().lower() == ".wav" and path.is_file()
        )
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None
    files: dict[str, Path] = {}
    for path in paths:
        if path.name.startswith("._"):  # macOS leaves these beside the real files
            continue
        name = normalise_name(readable_name(path.name))
        if name in files:
            raise UserError(
                f"{folder}: {files[name].name!r} and {path.name!r} are one name in two spellings:"
                " remove one of them"
            )
        files[name] = path
    if not files:
        raise UserError(
            f"{folder} holds no .wav file: remove the folder and fetch it with --download"
        )
    return files


def rows_by_name(path: Path, columns: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Return the rows of a captions CSV by normalised name. Raises UserError."""
    named: dict[str, dict[str, str]] = {}
    for row in read_csv(path, ("file_name", *columns), ["utf-8-sig"]):
        name = normalise_name(row["file_name"])
        if name in named:
            raise UserError(
                f"{path}: two rows for one clip, {named[name]['file_name']!r} and"
                f" {row['file_name']!r}: keep one of them"
            )
        named[name] = row
    if not named:
        raise UserError(f"{path} has no rows")
    return named
