"""Search your own recordings, with words or with a sound.

On the command line:

    python -m retrieval.search index recordings --checkpoint runs/tap/best --index recordings.index
    python -m retrieval.search query "a dog barks twice" --index recordings.index

In Python:

    from retrieval.search import AudioIndex, Mark, find_moments

    # Once, and whenever the recordings have changed.
    index = AudioIndex.build("recordings", "runs/tap/best", "recordings.index")
    index = AudioIndex.open("recordings.index")
    for hit in index.search("a dog barks twice", k=5):
        for moment in hit.moments:
            print(f"{hit.score:.3f}  {hit.file}  {moment.start:.1f}-{moment.end:.1f} s")
    index.search_audio("recordings/dog.wav")  # more like this

    # Mark answers right or wrong, and search by these marks.
    hits = index.search("a wren")
    wren = index.refine("a wren", [Mark.of(hits[0], right=True), Mark.of(hits[1], right=False)])
    index.search(wren)

    find_moments("meeting.wav", ["a phone rings"], "runs/tap/best").moments  # without an index

Each name is loaded at its first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "feedback.detectors": ["Detector", "Mark"],
        "hits": ["Hit", "IndexedFile"],
        "index": ["AudioIndex"],
        "queries": ["Query"],
        "one_file": ["FoundInFile", "find_moments"],
        "update": ["Changes"],
    },
)
