"""Clips that must not be trained on, since another corpus tests with them: which Freesound and YouTube ids, and why.

WavCaps' FreeSound part holds clips of Clotho's validation and evaluation splits, its AudioSet part and AudioCaps' training split hold clips
that AudioCaps tests with. A model that has seen them scores too well, and nothing in the score shows it.

Clotho's metadata knows the Freesound id of most clips, the others say `Not found`. Those are told by their file name, without blanks at the
ends, case and ending: a clip that only shares the name is left out too, which costs little.
"""

from dataclasses import dataclass, field
from pathlib import Path

from audio_files import without_ending
from csv_files import read_csv
from prep_errors import UserError

CLOTHO_SPLITS = ("validation", "evaluation")
UNKNOWN_ID = "not found"


@dataclass
class Exclusions:
    """Reasons by what a clip is told by."""

    freesound_ids: dict[str, str] = field(default_factory=dict)
    freesound_names: dict[str, str] = field(default_factory=dict)  # see sound_name
    youtube_ids: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add_clotho(self, root: Path) -> None:
        """Validation and evaluation clips by ROOT/clotho_metadata_<split>.csv. Raises UserError."""
        for split in CLOTHO_SPLITS:
            path = root / f"clotho_metadata_{split}.csv"
            if not path.is_file():
                wanted = f"give Clotho's folder, with the metadata of {' and '.join(CLOTHO_SPLITS)}"
                raise UserError(f"--exclude-clotho {root}: {path} is missing; {wanted}")
            rows = read_csv(path, ("file_name", "sound_id"), ["utf-8-sig", "iso-8859-1"])
            if not rows:
                raise UserError(f"{path} has no rows: fetch it again")
            num_unknown = 0
            for row in rows:
                sound_id = row["sound_id"].strip()
                if is_known(sound_id):
                    self.freesound_ids[sound_id] = f"in Clotho's {split} split (Freesound id)"
                else:
                    num_unknown += 1
                    self.freesound_names[sound_name(row["file_name"])] = f"in Clotho's {split} split (file name, its Freesound id is not known)"
            if num_unknown:
                self.notes.append(f"{path.name}: {num_unknown} of {len(rows)} clips have no Freesound id there; they are told by their file names")

    def add_freesound_list(self, path: Path) -> None:
        """A CSV with a column sound_id. Raises UserError."""
        for sound_id in _column(path, "sound_id"):
            self.freesound_ids.setdefault(sound_id, f"in {path.name}")

    def add_audiocaps(self, path: Path) -> None:
        """A CSV with a column youtube_id, such as AudioCaps' test.csv. Raises UserError."""
        for youtube_id in _column(path, "youtube_id"):
            self.youtube_ids.setdefault(youtube_id, f"in AudioCaps' {path.name}")


def is_known(sound_id: str) -> bool:
    """False for what Clotho and DCASE write where there is no Freesound id."""
    return sound_id.lower() not in ("", UNKNOWN_ID)


def sound_name(file_name: str) -> str:
    """What two spellings of one Freesound file name have in common."""
    return " ".join(without_ending(file_name.strip()).lower().split())


def _column(path: Path, column: str) -> list[str]:
    ids = [text for row in read_csv(path, (column,), ["utf-8-sig"]) if is_known(text := row[column].strip())]
    if not ids:
        raise UserError(f"{path} holds no id in its column {column}")
    return ids
