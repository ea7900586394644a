"""Copies among answers: files with the same recording, folded into one answer.

Copies are files of one length with the same sound at the same times: identical files, and the same
recording as MP3, Ogg or Opus, louder or quieter, at another sample rate, or without its first
milliseconds. Vectors of excerpts do not distinguish copies from similar recordings; frames do. Over
time the frames of copies rise and fall together, also at another level. Frames of different
recordings do not (measured: benchmarks/copies.py).

Letters: T frames of an excerpt, L steps of it, D = dim.
"""

import numpy as np

from retrieval.search.hits import IndexedFile
from retrieval.search.store import IndexedExcerpt, Store

SAME_LENGTH = 0.25  # s; MP3 and Opus add up to a tenth
# Correlation of frames from which two recordings are copies. On the sample corpus 1 to 0.9 for
# other formats and levels, 0.4 without the first 20 ms; different recordings reached 0.36.
LEAST_CORRELATION = 0.8
SHORTEST = 3.0  # s; shorter sounds have too few steps for a correlation
STEP_SECONDS = 0.16  # frames are averaged over two steps, so that a shift of half a frame is small
LEAST_COSINE = 0.5  # of the vectors, below which frames are not compared, to save time
LEAST_COSINE_ALONE = 0.999  # of the vectors, in an index without frames
# The last answers, with which an excerpt is compared: copies have similar scores. With all answers
# 1,000 of one length took 10 s, now 0.4 s, and the time grew with the square of their number.
MOST_COMPARED = 100
LOOK_AHEAD = 10  # excerpts behind the last answer that may still be copies of an answer


class Chooser:
    """Chooses answers among ranked excerpts: the best of overlapping ones, and of copies.

    Args:
        store: The index.
        fold: Fold copies; False: each copy is an answer.

    Attributes:
        files: File of each answer.
        copies: Names of the files that were folded into each answer, in order of rank.
    """

    def __init__(self, store: Store, fold: bool):
        self._store, self._fold = store, fold
        self.files: list[IndexedFile] = []
        self.copies: list[list[str]] = []
        self._original: dict[str, str] = {}  # of each file seen; its own name if it is no copy
        # by original: start, end and number of its answers
        self._spans: dict[str, list[tuple[float, float, int]]] = {}
        self._excerpts: dict[str, list[IndexedExcerpt]] = {}  # of originals
        self._vectors: dict[int, tuple[np.ndarray, float]] = {}  # of clips
        self._steps: dict[int, np.ndarray | None] = {}  # of clips

    def add(self, excerpt: IndexedExcerpt, is_full: bool = False) -> bool:
        """Take the next excerpt; return True if it is an answer.

        is_full: There are enough answers: it is only checked whether it is a copy of one.
        """
        name = excerpt.file.file
        if name not in self._original:
            self._original[name] = (self._fold and self._find_original(excerpt)) or name
        spans = self._spans.setdefault(self._original[name], [])
        for start, end, number in spans:
            if excerpt.start < end and start < excerpt.end:
                if name != self.files[number].file and name not in self.copies[number]:
                    self.copies[number].append(name)
                return False
        if is_full:
            return False
        spans.append((excerpt.start, excerpt.end, len(self.files)))
        self.files.append(excerpt.file)
        self.copies.append([])
        return True

    def _find_original(self, excerpt: IndexedExcerpt) -> str | None:
        """Return the answer's file that an excerpt's file is a copy of; None if there is none."""
        for file in self.files[-MOST_COMPARED:]:
            is_original = self._original[file.file] == file.file
            if is_original and abs(file.seconds - excerpt.file.seconds) <= SAME_LENGTH:
                if file.file not in self._excerpts:
                    own = self._store.excerpts(self._store.clips_of(file.file))
                    self._excerpts[file.file] = own
                for other in self._excerpts[file.file]:
                    if abs(other.start - excerpt.start) <= SAME_LENGTH:
                        if self._are_copies(excerpt, other):
                            return file.file
                        break
        return None

    def _are_copies(self, first: IndexedExcerpt, second: IndexedExcerpt) -> bool:
        (one, length), (other, other_length) = map(self._vector, (first.clip, second.clip))
        seconds = [own.end - own.start for own in (first, second)]
        if seconds[0] == seconds[1] and length == other_length and (one == other).all():
            return True  # the same content
        cosine = float(one @ other) / (length * other_length)
        if min(seconds) < SHORTEST:
            return False
        if not self._store.has_frames:
            return cosine >= LEAST_COSINE_ALONE
        return cosine >= LEAST_COSINE and self._correlation(first, second) >= LEAST_CORRELATION

    def _vector(self, clip: int) -> tuple[np.ndarray, float]:
        """Return the vector (D,) of a clip and its length, read once."""
        if clip not in self._vectors:
            vector = self._store.vectors([clip])[0]
            self._vectors[clip] = vector, max(float(np.linalg.norm(vector)), 1e-12)
        return self._vectors[clip]

    def _correlation(self, first: IndexedExcerpt, second: IndexedExcerpt) -> float:
        steps = []
        for own in (first, second):
            if own.clip not in self._steps:
                frames = self._store.frames(own.clip).float().cpu().numpy()
                self._steps[own.clip] = steps_of(frames, own.end - own.start)
            steps.append(self._steps[own.clip])
        return correlation(*steps)


def steps_of(frames: np.ndarray, seconds: float) -> np.ndarray:
    """Average frames (T, D) over windows of two steps; one window starts at each step: (L, D)."""
    size = max(1, round(STEP_SECONDS * len(frames) / seconds))  # frames
    num_steps = len(frames) // size
    steps = frames[: num_steps * size].reshape(num_steps, size, -1).mean(axis=1)
    return (steps[1:] + steps[:-1]) / 2


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return the correlation over time of two sounds in steps (L, D), over all dimensions.

    The longer one is cut. NaN if one does not change.
    """
    num_steps = min(len(first), len(second))
    first, second = (own[:num_steps] - own[:num_steps].mean(axis=0) for own in (first, second))
    with np.errstate(invalid="ignore", divide="ignore"):
        return float((first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum()))
