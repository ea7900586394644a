"""Search your own recordings, with words or with a sound.

    python -m retrieval.search index recordings --checkpoint runs/tap/best --index recordings.index
    python -m retrieval.search query "a dog barks twice" --index recordings.index

    from retrieval.search import AudioIndex
    index = AudioIndex.build("recordings", "runs/tap/best", "recordings.index")    # once, and whenever the recordings have changed
    index = AudioIndex.open("recordings.index")
    for hit in index.search("a dog barks twice", k=5):
        print(f"{hit.score:.3f}  {hit.file}  {hit.attended_from:.1f}-{hit.attended_to:.1f} s")
    index.search_audio("recordings/dog.wav")     # more like this
"""

from retrieval.search.hits import Hit, IndexedFile
from retrieval.search.index import AudioIndex
from retrieval.search.update import Changes

__all__ = ["AudioIndex", "Changes", "Hit", "IndexedFile"]
