"""The form in which captions reach a text encoder."""

import string

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_caption(caption: str) -> str:
    """Return `caption` in lower case, without ASCII punctuation, as in the published runs."""
    return caption.lower().translate(_DELETE_PUNCTUATION)
