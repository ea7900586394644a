"""File permissions: report a missing permission as such, and let new files follow the umask."""

import os
import stat
from pathlib import Path

from retrieval.base.errors import UserError

try:
    from pwd import getpwuid
except ImportError:  # not on Windows
    getpwuid = None

# os.access checks the real user id by default; opening a file checks the effective one.
EFFECTIVE = {"effective_ids": os.access in os.supports_effective_ids}


def check_readable(path: str | Path, kind: str) -> None:
    """Raise UserError if a file, or a file in a folder, exists and may not be read.

    Libraries report a missing permission as an absent or damaged file, so call this before them.
    Sub-folders are not checked: they may hold files that are not needed, such as another user's
    results.

    Args:
        path: File or folder; it may be absent.
        kind: Name of its kind in the message, such as "checkpoint".

    Raises:
        UserError: The user may not read it, or may not enter a folder above it.
    """
    path = Path(path)
    _, _, names = next(os.walk(path), (path, [], []))
    files = [path / name for name in names if not name.startswith(".")]
    for place in (*reversed(path.absolute().parents), path, *files):
        described = str(place)
        try:
            status = os.stat(place)
            needed = os.X_OK if stat.S_ISDIR(status.st_mode) else os.R_OK
            if os.access(place, needed, **EFFECTIVE):
                continue
            try:
                owner = getpwuid(status.st_uid).pw_name
            except (KeyError, TypeError):  # an owner without a name
                owner = str(status.st_uid)
            described += f" ({stat.filemode(status.st_mode)}, owner {owner})"
        except PermissionError:
            pass
        except OSError:  # absent
            continue
        raise UserError(
            f"{kind} {path}: no permission to read {described}; ask its owner for it (chmod a+rX),"
            " or use a copy of your own"
        )


def follow_umask(path: Path) -> None:
    """Give a new file, or a folder and its content, the modes that open() and mkdir() give.

    Some libraries write through mkstemp (safetensors) or mkdtemp, which ignore the umask (modes
    0600 and 0700), and archives bring their own modes. Links are not changed.

    Args:
        path: File or folder.

    Raises:
        OSError: The folder cannot be written.
    """
    folder = path if path.is_dir() else path.parent
    # reading the umask itself would change it for all threads
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
