"""Frames of an index on this machine: what is announced is read from the disk at once."""

import mmap

import pytest

from retrieval.search.local import store as module
from retrieval.search.local.store import LocalStore

PLACES = []


class Recorded(mmap.mmap):
    def madvise(self, advice: int, start: int, length: int) -> None:
        super().madvise(advice, start, length)  # the system refuses a wrong place
        PLACES.append((advice, start, start + length))


@pytest.mark.skipif(not hasattr(mmap, "MADV_WILLNEED"), reason="the system has no such advice")
def test_announced_frames_are_read_at_once_up_to_a_limit(indexed, monkeypatch):
    monkeypatch.setattr(mmap, "mmap", Recorded)
    store = LocalStore(indexed)
    num_bytes = 2 * store.meta.dim
    clips = [5, 0, 7]
    PLACES.clear()
    store.prefetch(clips)
    assert [advice for advice, *_ in PLACES] == [mmap.MADV_WILLNEED] * 3
    for clip, (_, start, stop) in zip(clips, PLACES, strict=True):
        first, count = int(store._first_frames[clip]), int(store._num_frames[clip])
        assert start % mmap.PAGESIZE == 0 and 0 <= first * num_bytes - start < mmap.PAGESIZE
        assert stop == (first + count) * num_bytes
    PLACES.clear()
    size = sum(int(store._num_frames[clip]) for clip in clips[:2]) * num_bytes
    monkeypatch.setattr(module, "MOST_PREFETCHED", size)
    store.prefetch(clips)
    assert len(PLACES) == 2
    store._coded_frames = None  # an index without frames
    store.prefetch(clips)
    assert len(PLACES) == 2
