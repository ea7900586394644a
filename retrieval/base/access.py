"""File permissions: report a missing permission as such, and let new files follow the umask."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from retrieval.base.errors import UserError

try:
    from pwd import getpwuid
except ImportError:  # not on Windows
    getpwuid = None

# os.access checks the real user id by default; opening a file checks the effective one.
EFFECTIVE = {"effective_ids": os.access in os.supports_effective_ids}


def check_readable(path: str | Path, what: str) -> None:
    """Raise UserError for a file, or a folder with a file in it, that exists but may not be read.
    Accept absent paths.

    Libraries report a missing permission as an absent or damaged file, so call this before them.
    Sub-folders are not checked: they may hold files that are not needed, such as another user's
    results.

    Args:
        path: File or folder.
        what: Name of its kind in the message, such as "checkpoint".

    Raises:
        UserError: The user may not read it, or may not enter a folder above it.
    """
    place = next((place for place in _places(Path(path)) if not _may_read(place)), None)
    if place is not None:
        raise UserError(
            f"{what} {path}: no permission to read {_described(place)}; ask its owner for it (chmod"
            " a+rX), or take a copy"
        )


def _places(path: Path) -> Iterator[Path]:
    """Yield the folders above `path` from the root down, `path` itself, and the files in it."""
    yield from reversed(path.absolute().parents)
    yield path
    _, _, names = next(os.walk(path), (path, [], []))
    yield from (path / name for name in names if not name.startswith("."))


def _may_read(path: Path) -> bool:
    try:
        mode = os.stat(path).st_mode
    except PermissionError:
        return False
    except OSError:  # absent
        return True
    return os.access(path, os.X_OK if stat.S_ISDIR(mode) else os.R_OK, **EFFECTIVE)


def _described(path: Path) -> str:
    """Path, mode and owner."""
    try:
        status = os.stat(path)
    except OSError:
        return str(path)
    try:
        owner = getpwuid(status.st_uid).pw_name
    except (KeyError, TypeError):  # an owner without a name
        owner = str(status.st_uid)
    return f"{path} ({stat.filemode(status.st_mode)}, owner {owner})"


def follow_umask(path: Path) -> None:
    """Set a new file, or a new folder with all its content, to the modes that open() and mkdir()
    give.

    Some libraries write through mkstemp (safetensors) or mkdtemp, which ignore the umask (modes
    0600 and 0700), and archives bring their own modes. Links are not changed.

    Args:
        path: File or folder.

    Raises:
        OSError: The folder cannot be written.
    """
    folder = path if path.is_dir() else path.parent
    # the umask itself can only be read by changing it, under all threads
    probe = folder / f".mode.{os.getpid()}"
    with open(probe, "wb") as file:
        file_mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    probe.unlink()
    probe.mkdir()
    folder_mode = stat.S_IMODE(probe.stat().st_mode)
    probe.rmdir()
    if path != folder:
        path.chmod(file_mode)
        return
    for place, _subfolders, names in os.walk(folder):
        os.chmod(place, folder_mode)
        for name in names:
            file = Path(place, name)
            if not file.is_symlink():
                file.chmod(file_mode)
