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

    Libraries report a missing permission as absence or damage; call this before them. Folders within a folder are not
    looked into: some hold what nobody needs here, such as another user's results.

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
    """The folders above, each only after the one above it was found to be open; `path`; and the files in it."""
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
    """Give a new file, or a new folder and all within, the modes that open() and mkdir() give here.

    Some libraries write through mkstemp (safetensors) or mkdtemp, with modes 0600 and 0700 whatever the umask says, and
    archives bring modes of their own. Links are left alone.
    """
    folder = path if path.is_dir() else path.parent
    probe = folder / f".mode.{os.getpid()}"  # the umask itself can only be read by changing it, under all threads
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
