"""Paths as a user writes them, in options and settings."""

import os


def expand_home(path: str) -> str:
    """Replace a leading `~` or `~user` by the home folder; leave other text, such as a hub name.

    A shell does this only at the start of a word, not in `train.output=~/runs/x`. Raises ValueError
    for an unknown user.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~") and not os.path.lexists(path):
        raise ValueError(
            f"{path}: {expanded.split(os.sep)[0]} is no user's home folder here; a folder of that"
            f" name is ./{path}"
        )
    return expanded
