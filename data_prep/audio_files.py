"""Finds the audio files below a folder, whatever its sub-folders, and says which of them can be read."""

import os
from pathlib import Path

from prep_errors import UserError

READABLE = (".wav", ".flac", ".ogg", ".opus", ".aiff", ".aif", ".mp3")  # the first of them is used where a clip is there in several
UNREADABLE = (".m4a", ".mp4", ".aac", ".webm", ".mkv", ".wma")  # audio, but not for libsndfile


def find_audio(folder: Path, option: str) -> list[Path]:
    """Files with an audio ending below `folder`, in order of name, those that cannot be read too.

    Raises UserError naming `option` where the folder is absent or holds none.
    """
    if not folder.is_dir():
        raise UserError(f"{option} {folder} is not a folder: expected the folder with the audio files")
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not _leads_back(Path(parent, name)))
        # macOS leaves `._name.wav` beside the real files.
        found += [Path(parent, name) for name in sorted(names) if ending(name) in READABLE + UNREADABLE and not name.startswith(".")]
    if not found:
        raise UserError(f"{option} {folder} holds no audio file ({' '.join(READABLE)})")
    return found


def _leads_back(folder: Path) -> bool:
    """A link to a folder that it lies in, also by way of other links."""
    return folder.is_symlink() and any(parent.resolve().is_relative_to(folder.resolve()) for parent in folder.parents)


def ending(name: str) -> str:
    """`.wav` of `Name.WAV`."""
    return os.path.splitext(name)[1].lower()


def without_ending(name: str) -> str:
    """`name` without an audio ending; other dots belong to the name."""
    return name[: -len(ending(name))] if ending(name) in READABLE + UNREADABLE else name


def best_of(paths: list[Path]) -> Path:
    """The one to read of several files of one clip."""
    return min(paths, key=lambda path: (READABLE + UNREADABLE).index(ending(path.name)))


def why_unreadable(path: Path) -> str | None:
    """Reason to leave out a file that is none, or of a kind that libsndfile does not know."""
    if ending(path.name) in UNREADABLE:
        return f"{ending(path.name)} cannot be read: convert it, for example: ffmpeg -i NAME{ending(path.name)} NAME.wav"
    if not path.is_file():
        return "is a link that leads nowhere" if path.is_symlink() else "is not a file"
    return None


def readable_name(name: str) -> str:
    """`name` as text: one that is not UTF-8 on disk holds surrogates, which Arrow and the terminal refuse."""
    raw = os.fsencode(name)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("iso-8859-1")
