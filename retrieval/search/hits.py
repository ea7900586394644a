"""Answers of a search. Letters: T frames."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from retrieval.moments.export import Stretch
from retrieval.moments.spans import Moment, over_threshold, peaks
from retrieval.search.metadata import Fields


@dataclass(frozen=True)
class IndexedFile:
    """A file of an index.

    Attributes:
        file: Path below the indexed folder, with "/" between folders.
        seconds: Length.
    """

    file: str
    seconds: float


@dataclass(frozen=True)
class Hit:
    """An answer: an excerpt of a file, and the stretches of it that fit the query.

    Times are seconds from the beginning of the file.

    Attributes:
        rank: 1 is the best.
        score: By `model.score`: a cosine or a dot product. If the query is a sound, the cosine of
            two clip vectors.
        file: Path below the indexed folder, with "/" between folders.
        start, end: The excerpt; a short file is one excerpt.
        moments: The stretches of the excerpt where the sentence is heard, best first. With a moment
            head the score of each is its highest probability; otherwise the first has the answer's
            score, and others a lower one. If the index holds no frames, and for sounds as queries,
            the only stretch is the excerpt.
        seconds: Length of the file.
        attention: TAP's weights float32 (T,), which sum to 1; None for other poolings and sounds.
        frame_seconds: Length of a frame; frame t is centred at start + (t + 0.5) * frame_seconds.
        metadata: Known values of the file by column, if the index has metadata.
        copies: Other files with the same recording, which were folded into this answer.
        is_match: False if unrelated sentences reach such a score too (AudioIndex.unrelated_score);
            True where that was not measured, and for sounds as queries. By a detector: False below
            its threshold.
        judged_score: The score that `is_match` is about, where it is not `score`: in a query with
            `without`, the mean of the sentences that should be heard. Otherwise None.
    """

    rank: int
    score: float
    file: str
    start: float
    end: float
    moments: tuple[Moment, ...]
    seconds: float
    attention: np.ndarray | None
    frame_seconds: float
    metadata: Fields = field(default_factory=dict)
    copies: tuple[str, ...] = ()
    is_match: bool = True
    judged_score: float | None = None

    @property
    def attended_from(self) -> float:
        """Start of the first stretch."""
        return self.moments[0].start

    @property
    def attended_to(self) -> float:
        """End of the first stretch."""
        return self.moments[0].end

    @property
    def is_located(self) -> bool:
        """Whether the stretches say more than the excerpt."""
        return (self.attended_from, self.attended_to) != (self.start, self.end)


@dataclass(frozen=True)
class FrameCurves:
    """Numbers of a sentence for each frame of an excerpt.

    Attributes:
        contributions: Part of each frame in the score, float32 (T,); see Pooling.contributions.
            None where there are probabilities.
        attention: TAP's weights float32 (T,), or None.
        probabilities: Of a moment head, float32 (T,), or None.
    """

    contributions: np.ndarray | None
    attention: np.ndarray | None
    probabilities: np.ndarray | None = None

    @property
    def values(self) -> np.ndarray:
        """The numbers (T,) whose stretches are the moments."""
        return self.contributions if self.probabilities is None else self.probabilities


def averaged(curves: Sequence[FrameCurves | None], weights: Sequence[float]) -> FrameCurves | None:
    """Return the weighted mean of the curves of several sentences in one excerpt.

    Args:
        curves: Curve of each sentence; None without frames.
        weights: Weight of each sentence, above 0.
    """
    if len(curves) == 1 or curves[0] is None:
        return curves[0]

    def mean(name: str) -> np.ndarray | None:
        values = [getattr(own, name) for own in curves]
        return None if values[0] is None else np.average(values, axis=0, weights=weights)

    return FrameCurves(mean("contributions"), mean("attention"), mean("probabilities"))


def make_hit(
    rank: int,
    score: float,
    file: IndexedFile,
    start: float,
    end: float,
    heard: FrameCurves | None,
    centres: np.ndarray,
    frame_length: float,
    threshold: float | None = None,
) -> Hit:
    """Make the answer with an excerpt of `file`.

    Args:
        rank: 1 is the best.
        score: Of the excerpt.
        file: Its file.
        start, end: Of the excerpt in s.
        heard: Numbers of its frames; None if the index has no frames.
        centres: Centres of the frames, float64 (T,), in s from the start of the excerpt.
        frame_length: Length of a frame in s.
        threshold: That of the moment head, if `heard` has probabilities; otherwise None.
    """
    if heard is None:
        whole = (Moment(start, end, score),)
        return Hit(rank, score, file.file, start, end, whole, file.seconds, None, end - start)
    # Frames of windows that overlap share places. Windows that overlap, or that do not divide the
    # excerpt, have frames beyond its end.
    places = (centres / frame_length + 1e-6).astype(np.int64)  # (T,)
    is_inside = places * frame_length < end - start - 1e-9
    places = places[is_inside]
    counts = np.bincount(places)
    used = np.flatnonzero(counts)  # windows may also leave gaps
    curve = np.bincount(places, heard.values[is_inside])[used] / counts[used]
    moments = []
    found = peaks(curve, score) if threshold is None else over_threshold(curve, threshold)
    for first, stop, own in found:
        begin = start + float(used[first]) * frame_length
        finish = min(start + float(used[stop - 1] + 1) * frame_length, end)
        moments.append(Moment(begin, finish, own))
    frame_seconds = (end - start) / len(heard.values)
    return Hit(
        rank,
        score,
        file.file,
        start,
        end,
        tuple(moments),
        file.seconds,
        heard.attention,
        frame_seconds,
    )


def stretches_of(query: str, hits: Sequence[Hit]) -> list[Stretch]:
    """Return the stretches of the answers to a query, in their order, to be exported."""
    return [
        Stretch(query, hit.file, hit.seconds, hit.rank, moment, hit.is_match)
        for hit in hits
        for moment in hit.moments
    ]


def detected_stretches(name: str, hits: Sequence[Hit]) -> list[Stretch]:
    """Return the best stretch of each excerpt that a detector accepts, with its probability.

    Other stretches of an excerpt are those of the sentence: the detector has not judged them.
    """
    return [
        Stretch(name, hit.file, hit.seconds, hit.rank, hit.moments[0]._replace(score=hit.score))
        for hit in hits
    ]
