"""Search your own recordings, with words or with a sound.

On the command line:

    python -m retrieval.search index recordings --checkpoint runs/tap/best --index recordings.index
    python -m retrieval.search query "a dog barks twice" --index recordings.index

In Python:

    from retrieval.search import AudioIndex

    # Once, and whenever the recordings have changed.
    index = AudioIndex.build("recordings", "runs/tap/best", "recordings.index")
    index = AudioIndex.open("recordings.index")
    for hit in index.search("a dog barks twice", k=5):
        print(f"{hit.score:.3f}  {hit.file}  {hit.attended_from:.1f}-{hit.attended_to:.1f} s")
    index.search_audio("recordings/dog.wav")  # more like this

`AudioIndex`, `Changes`, `Hit` and `IndexedFile` are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.search.hits import Hit, IndexedFile
    from retrieval.search.index import AudioIndex
    from retrieval.search.update import Changes

_MODULES = {"AudioIndex": "index", "Changes": "update", "Hit": "hits", "IndexedFile": "hits"}
__all__ = ["AudioIndex", "Changes", "Hit", "IndexedFile"]


def __getattr__(name: str) -> Any:
    """Loaded when it is asked for: `python -m retrieval.search --help` need not wait for torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
