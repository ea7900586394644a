"""Download Clotho v2.1 from Zenodo: names, sizes and checksums of its files.

Record 4783391: CC BY 4.0, and the clips' own Freesound licences.
"""

from pathlib import Path

from data_prep.corpora.resumable_download import extract_wav_folder, fetch_file
from retrieval.base.errors import UserError
from retrieval.base.files import FINISHED_PARTS_ARE_KEPT, disk_errors
from retrieval.data.schema import DEVELOPMENT, EVALUATION, VALIDATION

ZENODO_URL = "https://zenodo.org/record/4783391/files"

# WAV files: documentation of aac-datasets 0.7; archives: dcase-repo.github.io/dcase_datalist
WAV_GB = {DEVELOPMENT: 7.1, VALIDATION: 2.0, EVALUATION: 2.0}
ARCHIVES_GB = 6.5
MAX_UNPACKED_BYTES = 2e9 * max(WAV_GB.values())

# as Zenodo states them
MD5 = {
    "clotho_audio_development.7z": "c8b05bc7acdb13895bb3c6a29608667e",
    "clotho_captions_development.csv": "d4090b39ce9f2491908eebf4d5b09bae",
    "clotho_metadata_development.csv": "170d20935ecfdf161ce1bb154118cda5",
    "clotho_audio_validation.7z": "7dba730be08bada48bd15dc4e668df59",
    "clotho_captions_validation.csv": "5879e023032b22a2c930aaa0528bead4",
    "clotho_metadata_validation.csv": "2e010427c56b1ce6008b0f03f41048ce",
    "clotho_audio_evaluation.7z": "4569624ccadf96223f19cb59fe4f849f",
    "clotho_captions_evaluation.csv": "1b16b9e57cf7bdb7f13a13802aeb57e2",
    "clotho_metadata_evaluation.csv": "13946f054d4e1bf48079813aac61bf77",
}


def download_clotho(root: Path, splits: list[str], base_url: str, checksums: Path | None) -> None:
    """Fetch and unpack the files of `splits` that are not in `root`.

    Args:
        root: Clotho's folder. A split folder that exists is used as it is.
        splits: Splits to fetch.
        base_url: Zenodo, or a mirror.
        checksums: md5sum file of a mirror whose files differ from Zenodo's.

    Raises:
        UserError: A file cannot be fetched, is not the expected one, or cannot be unpacked.
    """
    md5 = read_checksums(checksums) if checksums else MD5
    with disk_errors(root, FINISHED_PARTS_ARE_KEPT):
        root.mkdir(parents=True, exist_ok=True)
    for split in splits:
        names = [f"clotho_captions_{split}.csv", f"clotho_metadata_{split}.csv"]
        archive = f"clotho_audio_{split}.7z"
        if (root / split).exists():
            print(f"{split}/: already there")
        else:
            names.append(archive)
        for name in names:
            if name not in md5:
                raise UserError(f"{checksums} has no line for {name}")
            fetch_file(f"{base_url.rstrip('/')}/{name}?download=1", root / name, md5[name])
        if archive in names:
            extract_wav_folder(root / archive, root / split, MAX_UNPACKED_BYTES)
            print(f"{split}/: unpacked; {archive} may be removed")


def describe_download(splits: list[str]) -> str:
    """Describe the download: files, size and source."""
    unpacked = sum(WAV_GB[split] for split in splits)
    archives = ARCHIVES_GB * unpacked / sum(WAV_GB.values())
    size = f"some {archives:.1f} GB of archives, {unpacked:.1f} GB of WAV files unpacked"
    return f"Clotho v2.1 ({', '.join(splits)}: {size}) from {ZENODO_URL}"


def read_checksums(path: Path) -> dict[str, str]:
    """Read a file of md5sum as a dict from name to md5."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--checksums {path} cannot be read: {error}") from None
    pairs = [line.split(maxsplit=1) for line in lines if line.strip() and not line.startswith("#")]
    if not all(len(pair) == 2 and len(pair[0]) == 32 for pair in pairs):
        raise UserError(
            f"--checksums {path}: expected lines of md5 and name, as md5sum writes them"
        )
    return {name.lstrip("*"): md5.lower() for md5, name in pairs}
