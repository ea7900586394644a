"""Freesound and YouTube clips to keep out of training, since another corpus tests with them.

WavCaps' FreeSound part holds clips of Clotho's validation and evaluation splits, its AudioSet part
and AudioCaps' training split hold clips that AudioCaps tests with. A model that has seen them
scores too well, and nothing in the score shows it.

Ids are compared in one spelling (clip_ids.py). Clotho's metadata has the Freesound id of most
clips, and `Not found` for the others. Those are recognised by their file name, ignoring outer
blanks, case and ending. Another clip of the same name is left out too, which costs little.
"""

import html
import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from data_prep.corpora.clip_ids import freesound_id, is_unknown, youtube_id
from data_prep.corpora.csv_files import read_numbered_csv
from retrieval.base.errors import UserError
from retrieval.base.sound_files import without_ending
from retrieval.data.schema import EVALUATION, VALIDATION

CLOTHO_SPLITS = (VALIDATION, EVALUATION)
FREESOUND_COLUMNS = ("sound_id", "freesound_id")
YOUTUBE_COLUMNS = ("youtube_id", "ytid", "video_id")


@dataclass
class _Entries:
    """Ids or names from one source, and how many clips matched them."""

    origin: str  # option and file
    kind: str
    reasons: dict[str, str] = field(default_factory=dict)  # by id or name
    num_found: int = 0


@dataclass
class Exclusions:
    """The clips to leave out, by id and by name."""

    notes: list[str] = field(default_factory=list)
    _freesound: list[_Entries] = field(default_factory=list)
    _names: list[_Entries] = field(default_factory=list)
    _youtube: list[_Entries] = field(default_factory=list)

    @property
    def has_freesound(self) -> bool:
        return bool(self._freesound)

    @property
    def has_youtube(self) -> bool:
        return bool(self._youtube)

    def add_clotho(self, root: Path) -> None:
        """Add the clips of ROOT/clotho_metadata_{validation,evaluation}.csv. Raises UserError."""
        ids = _Entries(f"--exclude-clotho {root}", "Freesound id")
        names = _Entries(ids.origin, "file name")
        for split in CLOTHO_SPLITS:
            path = root / f"clotho_metadata_{split}.csv"
            if not path.is_file():
                wanted = f"give Clotho's folder, with the metadata of {' and '.join(CLOTHO_SPLITS)}"
                raise UserError(f"--exclude-clotho {root}: {path} is missing; {wanted}")
            rows = read_numbered_csv(path, ("file_name", "sound_id"), ["utf-8-sig", "iso-8859-1"])
            if not rows:
                raise UserError(f"{path} has no rows: fetch it again")
            num_unknown = 0
            for line, row in rows:
                if is_unknown(row["sound_id"]):
                    num_unknown += 1
                    reason = "file name, its Freesound id is not known"
                    name = sound_name(row["file_name"])
                    names.reasons[name] = f"in Clotho's {split} split ({reason})"
                else:
                    place = f"{path}, line {line}", "sound_id"
                    sound_id = _checked(freesound_id, row["sound_id"], *place, ids.kind)
                    ids.reasons[sound_id] = f"in Clotho's {split} split (Freesound id)"
            if num_unknown:
                self.notes.append(
                    f"{path.name}: {num_unknown} of {len(rows)} clips have no Freesound id there;"
                    " they are recognised by their file names"
                )
        self._freesound.append(ids)
        self._names.append(names)

    def add_freesound_list(self, path: Path) -> None:
        """Add the clips of a CSV with a column sound_id. Raises UserError."""
        entries = _Entries(f"--exclude-ids {path}", "Freesound id")
        self._fill(entries, path, FREESOUND_COLUMNS, freesound_id, f"in {path.name}")
        self._freesound.append(entries)

    def add_audiocaps(self, path: Path, option: str = "--exclude-audiocaps") -> None:
        """Add the videos of a CSV with a column youtube_id, such as AudioCaps' test.csv.

        Args:
            path: The CSV.
            option: The option that named it; empty for the corpus's own, which may match no clip.

        Raises:
            UserError: The CSV is damaged, or an id is none.
        """
        entries = _Entries(f"{option} {path}" if option else str(path), "YouTube id")
        self._fill(entries, path, YOUTUBE_COLUMNS, youtube_id, f"in AudioCaps' {path.name}")
        self._youtube.append(entries)

    def why_freesound(self, sound_id: str, file_name: str) -> str | None:
        """Return the reason to leave out a Freesound clip, None if there is none.

        `sound_id` is spelled as clip_ids.py does; `file_name` may be empty.
        """
        name = sound_name(file_name)
        return _why(self._freesound, sound_id) or (_why(self._names, name) if name else None)

    def why_youtube(self, video: str) -> str | None:
        """Return the reason to leave out the clips of a video, None if there is none."""
        return _why(self._youtube, video)

    def digest(self) -> str:
        """Return a digest of all ids and names."""
        lists = self._freesound + self._names + self._youtube
        content = [[entries.kind, sorted(entries.reasons.items())] for entries in lists]
        return sha256(json.dumps(content).encode()).hexdigest()

    def unmatched(self) -> list[str]:
        """Return a warning for each given list that matched no clip.

        Call it after all clips were looked up.
        """
        lists = self._freesound + self._names + self._youtube
        found = {entries.origin for entries in lists if entries.num_found}
        numbers: dict[str, list[str]] = {}
        for entries in lists:
            if entries.origin.startswith("--") and entries.origin not in found and entries.reasons:
                numbers.setdefault(entries.origin, []).append(
                    f"{len(entries.reasons):,} {entries.kind}s"
                )
        return [
            f"{origin} leaves nothing out: none of its {' and '.join(counts)} is in this corpus; is"
            " it the right list?"
            for origin, counts in numbers.items()
        ]

    def _fill(
        self,
        entries: _Entries,
        path: Path,
        columns: tuple[str, ...],
        spelling: Callable[[str], str | None],
        reason: str,
    ) -> None:
        """Add the ids of a CSV to `entries`, from the column with one of the names `columns`."""
        rows = read_numbered_csv(path, (), ["utf-8-sig"])
        header = list(rows[0][1]) if rows else []
        # other programs write the names with capitals, or after a "#"
        found = [name for name in header if name.strip().lower().lstrip("# ") in columns]
        if len(found) != 1:
            raise UserError(
                f"{path}: expected a column {columns[0]} in its first line, and one only; found:"
                f" {', '.join(header)[:200] or 'no rows'}"
            )
        column, num_unknown = found[0], 0
        for line, row in rows:
            if is_unknown(row[column]):
                num_unknown += 1
            else:
                place = f"{path}, line {line}", column
                entries.reasons[_checked(spelling, row[column], *place, entries.kind)] = reason
        if not entries.reasons:
            raise UserError(f"{path} holds no id in its column {column}")
        if num_unknown:
            note = f"{path.name}: {num_unknown} of {len(rows)} rows have no {entries.kind}"
            note += " and leave nothing out"
            if entries.kind == "Freesound id":
                note += "; --exclude-clotho recognises Clotho's clips by their file names"
            self.notes.append(note)


def _why(lists: list[_Entries], key: str) -> str | None:
    """Return the first list's reason, and count the clip in each list that has it."""
    found = [entries for entries in lists if key in entries.reasons]
    for entries in found:
        entries.num_found += 1
    return found[0].reasons[key] if found else None


def _checked(
    spelling: Callable[[str], str | None], text: str, place: str, column: str, kind: str
) -> str:
    found = spelling(text)
    if found is None:
        is_rounded = "E+" in text.upper()
        remedy = "; a spreadsheet has rounded it: save the column as text" if is_rounded else ""
        raise UserError(f"{place}: {text[:80]!r} in column {column} is no {kind}{remedy}")
    return found


def sound_name(file_name: str) -> str:
    """Return one spelling of a Freesound file name.

    Corpora differ in HTML entities, accents, case, blanks and endings.
    """
    text = unicodedata.normalize("NFC", html.unescape(file_name))
    return " ".join(without_ending(text.strip()).casefold().split())
