"""Learn detectors from marks on an index, and find excerpts by them.

Letters: M marks, S excerpts of the sample, K clips, D = dim.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from retrieval.base.errors import UserError
from retrieval.search.feedback.detectors import Detector, Mark, numbers
from retrieval.search.feedback.fit import SAMPLE, Background, approximate, fit
from retrieval.search.store import IndexedExcerpt, Store
from retrieval.search.two_stage import TwoStage

SAMPLES_KEPT = 4  # of sentences with TAP, whose features are its output for the sentence
ROUNDED = 0.05  # s, by which a printed start may lie before its excerpt


class Refinement:
    """Learns from marks on one state of an index.

    Args:
        store: The index.
        two_stage: Scores texts against the index.
    """

    def __init__(self, store: Store, two_stage: TwoStage):
        self._store, self._two_stage, self._pooling = store, two_stage, two_stage.pooling
        self._sampled: list[int] | None = None
        self._first_stage: Background | None = None
        self._of_texts: dict[bytes, Background] = {}

    def refine(self, query: str, text: torch.Tensor, marks: Sequence[Mark]) -> Detector:
        """Learn a detector.

        Args:
            query: The sentence.
            text: float32 (D,), of encode_text.
            marks: Of several marks on one excerpt the last counts.

        Raises:
            UserError: The index does not have a file or time of a mark, or has no excerpts.
        """
        marked = {self.excerpt_of(mark).clip: mark for mark in marks}
        if not self._sample():
            raise UserError("the index is empty: there is nothing to learn from")
        clips, right = list(marked), np.array([mark.right for mark in marked.values()], bool)
        background = self._background(text)
        features = self._features(text, clips)  # (M, D)
        direction = self._pooling.directions(text).cpu().numpy()  # (D,)
        found, coarse = fit(features, right, direction, background), None
        if self._pooling.keeps_frames:
            coarse = direction
            if clips:
                vectors, sample = self._store.vectors(clips), self._vectors_of_sample()
                in_text = background.features.astype(np.float32)
                coarse = approximate(found, features, vectors, sample, in_text)
        identity = self._store.meta.model
        return Detector(
            query=query,
            model=identity.digests,
            model_path=identity.path,
            marks=tuple(marked.values()),
            text=numbers(text.cpu().numpy()),
            vector=numbers(found.vector),
            bias=found.bias,
            coarse=None if coarse is None else numbers(coarse),
            threshold=found.threshold,
        )

    def probabilities(
        self, detector: Detector, num_candidates: int, selection: Any
    ) -> tuple[list[int], list[float]]:
        """Return the best excerpts of a selection, by the first stage, with their probabilities.

        Args:
            detector: Of the index's model.
            num_candidates: K, 1 or more; all excerpts if there are not as many.
            selection: Of the store; None: all.

        Returns:
            Clips and probabilities, best first; of equal ones the clip of the lower number first.
        """
        found, _ = self._store.nearest(detector.first_stage[None], num_candidates, selection)
        clips = np.sort(found[0])
        features = self._features(torch.tensor(detector.text), clips.tolist())
        likely = detector.probabilities(features)  # (K,)
        order = np.argsort(-likely, kind="stable")
        return clips[order].tolist(), likely[order].tolist()

    def excerpt_of(self, mark: Mark) -> IndexedExcerpt:
        """Return the excerpt that a mark belongs to. Raises UserError if there is none."""
        excerpts = self._store.excerpts(self._store.clips_of(mark.file))
        if not excerpts:
            raise UserError(f"{mark.file!r} is not a file of the index, so it cannot be marked")
        start, end, seconds = mark.start, mark.end, excerpts[0].file.seconds
        if start is None:
            if len(excerpts) > 1:
                raise UserError(
                    f"{mark.file!r} has {len(excerpts)} excerpts: mark one of them by a time"
                    f" within it, such as {mark.file}@{excerpts[1].start:g}"
                )
            return excerpts[0]
        if start >= seconds:
            raise UserError(f"{mark}: the recording ends at {seconds:.2f} s")
        if end is not None and end <= start:
            raise UserError(f"{mark}: the end is not after the start")
        if end is None:  # the last excerpt that has begun
            begun = [own for own in excerpts if own.start <= start + ROUNDED]
            return begun[-1] if begun else excerpts[0]
        return max(excerpts, key=lambda own: min(own.end, end) - max(own.start, start))

    def _features(self, text: torch.Tensor, clips: Sequence[int]) -> np.ndarray:
        """Return float32 (K, D); their products with the text's direction are its scores."""
        if not self._pooling.keeps_frames:
            return self._store.vectors(clips)
        return self._two_stage.pooled(text, clips)

    def _background(self, text: torch.Tensor) -> Background:
        if not self._pooling.keeps_frames:
            return self._vectors_of_sample()
        key = text.cpu().numpy().tobytes()
        if key not in self._of_texts:
            while len(self._of_texts) >= SAMPLES_KEPT:
                self._of_texts.pop(next(iter(self._of_texts)))
            self._of_texts[key] = Background(self._features(text, self._sample()))
        return self._of_texts[key]

    def _vectors_of_sample(self) -> Background:
        if self._first_stage is None:
            self._first_stage = Background(self._store.vectors(self._sample()))
        return self._first_stage

    def _sample(self) -> list[int]:
        """Return the excerpts that stand for the index."""
        if self._sampled is None:
            self._sampled = self._store.sample(SAMPLE)
        return self._sampled
