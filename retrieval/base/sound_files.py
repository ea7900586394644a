"""Find the sound files below a folder, by their endings and by their first bytes."""

import html
import os
import stat
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from retrieval.base.sound_kinds import AUDIO_ENDINGS, kind_of

# Files that mark an Arrow cache and an index. Both may lie below the folder that they were made
# from.
MARKS = {"cache.json", "index.sqlite"}


@dataclass
class SoundFiles:
    """Result of `find_audio`."""

    # sorted by name; also broken links, pipes and devices with an audio ending
    paths: list[Path] = field(default_factory=list)
    # links to folders that were not followed
    linked_folders: list[Path] = field(default_factory=list)
    closed_folders: dict[Path, str] = field(default_factory=dict)  # folder -> why it cannot be read
    # ending -> number of files that are not sound files
    passed_over: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """Return the counts of `passed_over`, the most frequent endings first."""
        return ", ".join(
            f"{number:,} {name or 'without ending'}"
            for name, number in self.passed_over.most_common(10)
        )


def find_audio(folder: Path, follow_links: bool) -> SoundFiles:
    """Find the sound files in `folder` and its sub-folders.

    Hidden files (macOS leaves `._name.wav`), Arrow caches and indexes are skipped and not counted.

    Args:
        folder: The folder to search.
        follow_links: Follow links to folders, but not in circles: corpora are often put together
            from links. A link to a file with an audio ending is found either way.

    Returns:
        The files, and the folders and files that were left out.
    """
    found = SoundFiles()

    def closed(error: OSError) -> None:
        found.closed_folders[Path(error.filename)] = error.strerror

    for parent, folders, names in os.walk(folder, onerror=closed, followlinks=follow_links):
        here = Path(parent)
        if MARKS & set(names):
            folders.clear()
            continue
        links = [
            name for name in folders if not name.startswith(".") and (here / name).is_symlink()
        ]
        if follow_links:
            # a link to a folder above itself, also through other links, would lead in circles
            unwanted = {
                name
                for name in links
                for parent in (here / name).parents
                if parent.resolve().is_relative_to((here / name).resolve())
            }
        else:
            unwanted = set(links)
            found.linked_folders += [here / name for name in links]
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name not in unwanted
        )
        for name in sorted(names):
            if name.startswith("."):
                continue
            if ending(name) in AUDIO_ENDINGS or _is_sound(here / name, follow_links):
                found.paths.append(here / name)
            else:
                found.passed_over[ending(name)] += 1
    return found


def _is_sound(path: Path, follow_links: bool) -> bool:
    """Check the first bytes of a regular file. Opening a pipe would wait for a writer."""
    try:
        status = path.stat() if follow_links else path.lstat()
        return stat.S_ISREG(status.st_mode) and status.st_size > 0 and kind_of(path) is not None
    except OSError:
        return False


def why_unreadable(path: Path, inside: Path | None = None) -> str | None:
    """Return the reason why a found file cannot be opened; None if it can.

    Args:
        path: One of `SoundFiles.paths`.
        inside: A resolved folder that a link must not leave: the search page serves the files.
    """
    try:
        if inside and path.is_symlink() and not path.resolve().is_relative_to(inside):
            return "a link that leads out of the folder"
        if path.is_file():
            return None
        return "is a link that leads nowhere" if path.is_symlink() else "is not a file"
    except RuntimeError:  # before Python 3.13
        return "a link that leads back to itself"
    except OSError as error:  # its folder may be listed but not entered
        return f"cannot be read: {error.strerror}"


def ending(name: str) -> str:
    """Return the ending in lower case: `.wav` for `Name.WAV`."""
    return os.path.splitext(name)[1].lower()


def without_ending(name: str) -> str:
    """Return `name` without its audio ending; other dots belong to the name."""
    return name[: -len(ending(name))] if ending(name) in AUDIO_ENDINGS else name


def normalise_name(name: str) -> str:
    """Return one spelling of a file name: `Café no. 1.wav` for ` Caf&eacute;  no. 1 .WAV`."""
    stem, dot, suffix = unicodedata.normalize("NFC", html.unescape(name)).strip().rpartition(".")
    return " ".join(stem.split()) + dot + suffix.lower()
