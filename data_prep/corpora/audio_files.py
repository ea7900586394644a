"""The audio files of a corpus: find them, choose among them, report those that are left out."""

import os
from pathlib import Path

from retrieval.base.errors import UserError
from retrieval.base.sound_files import SoundFiles, ending, find_audio
from retrieval.base.sound_kinds import AUDIO_ENDINGS


def audio_of_corpus(folder: Path, option: str) -> SoundFiles:
    """Find the audio files below a folder; links to folders are followed.

    Args:
        folder: The folder.
        option: The option that named it, for messages.

    Raises:
        UserError: The folder is absent, not readable, or holds no audio file.
    """
    if not folder.is_dir():
        raise UserError(
            f"{option} {folder} is not a folder: expected the folder with the audio files"
        )
    found = find_audio(folder, follow_links=True)
    if not found.paths and found.closed_folders:
        closed, reason = next(iter(found.closed_folders.items()))
        raise UserError(f"{option} {folder}: {closed} cannot be read: {reason}")
    if not found.paths:
        num_others = found.passed_over.total()
        others = f"; its {num_others} files are not sound files: {found}" if num_others else ""
        raise UserError(f"{option} {folder} holds no audio file{others}")
    return found


def passed_over_note(found: SoundFiles) -> list[str]:
    """Return notes on unreadable sub-folders, and on files that are not sound files."""
    notes = [
        f"left out: {folder}/ cannot be read: {reason}"
        for folder, reason in found.closed_folders.items()
    ]
    return notes + (
        [f"passed over, since they are not sound files: {found}"] if found.passed_over else []
    )


def best_of(paths: list[Path]) -> Path:
    """Return the file to read if a clip has several: the first in the order of AUDIO_ENDINGS."""
    order = {name: number for number, name in enumerate(AUDIO_ENDINGS)}
    return min(paths, key=lambda path: order.get(ending(path.name), len(order)))


def readable_name(name: str) -> str:
    """Return a file's name as text without surrogates, which Arrow and terminals refuse.

    A name that is not UTF-8 on disk is read as ISO-8859-1.
    """
    raw = os.fsencode(name)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("iso-8859-1")
