"""How other processes of this user were started, as far as the system tells (Linux)."""

from pathlib import Path


def words_of(process: int) -> list[str]:
    """Return the command line of a process; empty where the system does not tell."""
    return _entries(process, "cmdline")


def environment_of(process: int) -> dict[str, str]:
    """Return the environment that a process was started with; empty where the system does not tell."""
    return dict(entry.split("=", 1) for entry in _entries(process, "environ") if "=" in entry)


def parent_of(process: int) -> int:
    """Return the number of the parent process; 0 where the system does not tell."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(status.rpartition(")")[2].split()[1])  # the name, in parentheses, may hold anything


def _entries(process: int, file: str) -> list[str]:
    try:
        return Path(f"/proc/{process}/{file}").read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
    except OSError:
        return []
