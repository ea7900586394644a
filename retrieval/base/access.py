"""Who may read and write files: no permission is told from absent and damaged, and new files follow the umask."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from retrieval.base.errors import UserError

try:
    from pwd import getpwuid
except ImportError:  # not on Windows
    getpwuid = None

# As a set-user-ID program would be asked, where the system knows the difference.
EFFECTIVE = {"effective_ids": os.access in os.supports_effective_ids}


def check_readable(path: str | Path, what: str) -> None:
    """Refuse a file, or a folder with a file in it, that is there but may not be read. Says nothing of what is absent.

    Libraries report a missing permission as absence or damage; call this before them.

    Args:
        path: File or folder.
        what: What it is, for the message: "checkpoint", "index".

    Raises:
        UserError: This user may not read it, or may not enter a folder above it.
    """
    place = next((place for place in _places(Path(path)) if not _may_read(place)), None)
    if place is not None:
        raise UserError(f"{what} {path}: no permission to read {_described(place)}; ask its owner for it (chmod a+rX), or take a copy")


def _places(path: Path) -> Iterator[Path]:
    """The folders above, each only after the one above it was found to be open; `path`; and all within."""
    yield from reversed(path.absolute().parents)
    yield path
    for folder, subfolders, names in os.walk(path):
        yield from (Path(folder, name) for name in (*subfolders, *names))


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


def follow_umask(folder: Path) -> None:
    """Give each file and folder below `folder`, and itself, the mode that open() and mkdir() give here.

    Some libraries write through mkstemp (safetensors) or mkdtemp, with mode 0600 or 0700 whatever the umask says.
    """
    probe = folder / ".mode"
    with open(probe, "wb") as file:
        file_mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    probe.unlink()
    probe.mkdir()
    folder_mode = stat.S_IMODE(probe.stat().st_mode)
    probe.rmdir()
    for place, _subfolders, names in os.walk(folder):
        os.chmod(place, folder_mode)
        for name in names:
            path = Path(place, name)
            if not path.is_symlink():
                path.chmod(file_mode)
