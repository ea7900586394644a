"""Clips that must not be trained on, since another corpus tests with them: which Freesound and
YouTube ids, and why.

WavCaps' FreeSound part holds clips of Clotho's validation and evaluation splits, its AudioSet part
and AudioCaps' training split hold clips that AudioCaps tests with. A model that has seen them
scores too well, and nothing in the score shows it.

Ids are compared in one spelling (clip_ids.py). Clotho's metadata has the Freesound id of most
clips, and `Not found` for the others. Those are recognised by their file name, ignoring outer
blanks, case and ending. Another clip of the same name is left out too, which costs little.
"""

import html
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
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
    reasons: dict[str, str] = field(default_factory=dict)  # id or name -> why its clip is left out
    num_found: int = 0


@dataclass
class Exclusions:
    """All clips to leave out."""

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
        """Validation and evaluation clips by ROOT/clotho_metadata_<split>.csv. Raises UserError."""
        ids, names = (
            _Entries(f"--exclude-clotho {root}", kind) for kind in ("Freesound id", "file name")
        )
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
                    names.reasons[sound_name(row["file_name"])] = (
                        f"in Clotho's {split} split (file name, its Freesound id is not known)"
                    )
                else:
                    sound_id = _checked(
                        freesound_id, row["sound_id"], path, line, "sound_id", "Freesound id"
                    )
                    ids.reasons[sound_id] = f"in Clotho's {split} split (Freesound id)"
            if num_unknown:
                self.notes.append(
                    f"{path.name}: {num_unknown} of {len(rows)} clips have no Freesound id there;"
                    " they are recognised by their file names"
                )
        self._freesound.append(ids)
        self._names.append(names)

    def add_freesound_list(self, path: Path) -> None:
        """A CSV with a column sound_id. Raises UserError."""
        self._freesound.append(
            self._read_list(
                "--exclude-ids",
                path,
                FREESOUND_COLUMNS,
                freesound_id,
                "Freesound id",
                f"in {path.name}",
            )
        )

    def add_audiocaps(self, path: Path, option: str = "--exclude-audiocaps") -> None:
        """A CSV with a column youtube_id, such as AudioCaps' test.csv. Raises UserError."""
        self._youtube.append(
            self._read_list(
                option,
                path,
                YOUTUBE_COLUMNS,
                youtube_id,
                "YouTube id",
                f"in AudioCaps' {path.name}",
            )
        )

    def why_freesound(self, sound_id: str, file_name: str) -> str | None:
        """Return why a Freesound clip is left out, None if it is not; `sound_id` in the spelling of
        clip_ids, `file_name` may be empty.
        """
        name = sound_name(file_name)
        return _why(self._freesound, sound_id) or (_why(self._names, name) if name else None)

    def why_youtube(self, video: str) -> str | None:
        """Return why a clip of a video is left out, None if it is not; `video` in the spelling of
        clip_ids.
        """
        return _why(self._youtube, video)

    def unmatched(self) -> list[str]:
        """Return a warning for each given list that matched no clip. Call it after all clips were
        looked up.
        """
        found = {entries.origin for entries in self._entries if entries.num_found}
        numbers: dict[str, list[str]] = {}
        for entries in self._entries:
            if entries.origin.startswith("--") and entries.origin not in found and entries.reasons:
                numbers.setdefault(entries.origin, []).append(
                    f"{len(entries.reasons):,} {entries.kind}s"
                )
        return [
            f"{origin} leaves nothing out: none of its {' and '.join(what)} is in this corpus; is"
            " it the right list?"
            for origin, what in numbers.items()
        ]

    @property
    def _entries(self) -> list[_Entries]:
        return self._freesound + self._names + self._youtube

    def _read_list(
        self,
        option: str,
        path: Path,
        columns: tuple[str, ...],
        spelling: Callable[[str], str | None],
        kind: str,
        reason: str,
    ) -> _Entries:
        rows = read_numbered_csv(path, (), ["utf-8-sig"])
        # Tables of other programs use other names for the column, and capitals.
        found = [
            name
            for name in (rows[0][1] if rows else ())
            if name.strip().lower().lstrip("# ") in columns
        ]
        if len(found) != 1:
            there = ", ".join(rows[0][1])[:200] if rows else "no rows"
            raise UserError(
                f"{path}: expected a column {columns[0]} in its first line, and one only; found:"
                f" {there}"
            )
        (column,) = found
        entries = _Entries(f"{option} {path}" if option else str(path), kind)
        num_unknown = 0
        for line, row in rows:
            if is_unknown(row[column]):
                num_unknown += 1
            else:
                entries.reasons[_checked(spelling, row[column], path, line, column, kind)] = reason
        if not entries.reasons:
            raise UserError(f"{path} holds no id in its column {column}")
        if num_unknown:
            remedy = (
                "; --exclude-clotho recognises Clotho's clips by their file names"
                if kind == "Freesound id"
                else ""
            )
            self.notes.append(
                f"{path.name}: {num_unknown} of {len(rows)} rows have no {kind} and leave nothing"
                f" out{remedy}"
            )
        return entries


def _why(places: list[_Entries], key: str) -> str | None:
    reasons = []
    for entries in places:
        if key in entries.reasons:
            entries.num_found += 1
            reasons.append(entries.reasons[key])
    return reasons[0] if reasons else None


def _checked(
    spelling: Callable[[str], str | None], text: str, path: Path, line: int, column: str, kind: str
) -> str:
    found = spelling(text)
    if found is None:
        lost = (
            "; a spreadsheet has rounded it: save the column as text"
            if "E+" in text.upper()
            else ""
        )
        raise UserError(f"{path}, line {line}: {text[:80]!r} in column {column} is no {kind}{lost}")
    return found


def sound_name(file_name: str) -> str:
    """Return one spelling of a Freesound file name: corpora differ in HTML entities, accents, case
    and blanks.
    """
    text = unicodedata.normalize("NFC", html.unescape(file_name))
    return " ".join(without_ending(text.strip()).casefold().split())
