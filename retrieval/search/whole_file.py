"""The curve of a sentence over a whole file, from the excerpts that an index holds of it.

Letters: T frames of the file, t of an excerpt.
"""

import math

import numpy as np

from retrieval.models.dual_encoder import DualEncoder
from retrieval.moments.locator import SAME_MOMENT, Located
from retrieval.moments.running import RunningAverage, summed
from retrieval.moments.spans import MOST_MOMENTS, Moment, over_threshold, suppressed
from retrieval.search.hits import FrameCurves, IndexedFile, make_hit

NO_OVERLAP = 1e-9  # IoU


class WholeFile:
    """Puts the excerpts of a file together.

    Args:
        file: The file.
        model: That of the index.
        hop_seconds: From one excerpt of a long file to the next.
    """

    def __init__(self, file: IndexedFile, model: DualEncoder, hop_seconds: float):
        self.file, self.model, self.hop_seconds = file, model, hop_seconds
        head = model.moment_head
        self.threshold = None if head is None else float(head.threshold)
        self._curve, self._moments = RunningAverage(1), []
        self._has_frames = False

    def add(self, start: float, end: float, heard: FrameCurves | None, score: float) -> None:
        """Add an excerpt.

        Args:
            start, end: In s.
            heard: Numbers of its frames; None if the index has no frames.
            score: Of the excerpt; not used with probabilities.
        """
        if heard is None:
            first, stop = round(start / self.hop_seconds), math.ceil(end / self.hop_seconds - 1e-6)
            places = np.arange(first, max(stop, first + 1))
            self._curve.add(*summed(places, np.full((1, len(places)), score)))
            self._moments.append(Moment(start, end, score))
            return
        self._has_frames, seconds = True, self.model.frame_seconds
        centres = self.model.windows.frame_centres(len(heard.values))
        centres = centres / self.model.sample_rate  # (t,), s
        places = round(start / seconds) + (centres / seconds + 1e-6).astype(np.int64)
        if heard.probabilities is None:
            values = heard.contributions * (
                len(heard.contributions) if self.model.pooling.keeps_frames else 1
            )
            frames = centres, seconds, None
            hit = make_hit(1, score, self.file, start, end, heard, *frames)
            self._moments += hit.moments
        else:  # logits are averaged, as a Locator does
            likely = heard.probabilities.clip(1e-7, 1 - 1e-7)
            values = np.log(likely / (1 - likely))
        is_inside = places * seconds < end
        self._curve.add(*summed(places[is_inside], values[None, is_inside]))

    def located(self) -> Located:
        """Return curve and moments of all excerpts."""
        seconds = self.model.frame_seconds if self._has_frames else self.hop_seconds
        num_frames = max(1, math.ceil(self.file.seconds / seconds - 1e-6))
        curves = self._curve.curves(num_frames)
        if self.threshold is not None and self._has_frames:
            curves = 1 / (1 + np.exp(-curves))
            moments = [
                Moment(first * seconds, min(stop * seconds, self.file.seconds), score)
                for first, stop, score in over_threshold(curves[0], self.threshold)
            ]
        else:
            overlap = SAME_MOMENT if self._has_frames else NO_OVERLAP
            moments = suppressed(self._moments, overlap, MOST_MOMENTS)
        return Located([moments], curves, seconds, self.file.seconds)
