"""Paths as a user writes them, in options and settings."""

import os


def expand_home(path: str) -> str:
    """Return `path` with the home folder in place of a leading `~` or `~user`; every other text, such as a hub name, as it is.

    A shell does this where `~` begins a word, so not in `train.output=~/runs/x`. Raises ValueError for a user who is not known.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~") and not os.path.lexists(path):
        raise ValueError(f"{path}: {expanded.split(os.sep)[0]} is no user's home folder here; a folder of that name is ./{path}")
    return expanded
