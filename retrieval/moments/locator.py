"""Find moments in recordings of any length by a model, in a stream and in bounded memory.

A recording is heard in excerpts as long as the clips that the model was trained on, which overlap
by half (excerpts of one window: by 5 s). Each excerpt gives a curve of its own, because a softmax
over an hour would spread its weight too thin. Where excerpts overlap, curves are averaged.

A model with one vector for a whole window (CLAP) hears windows that overlap by half. Its curve has
a frame for each half of a window, the average of the two windows that hold it.

Letters: N texts, S samples, T frames of a recording, t of an excerpt, D = dim.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from retrieval.base.errors import UserError
from retrieval.models.dual_encoder import Autocast, DualEncoder, check_not_nan, eval_mode
from retrieval.moments.running import RunningAverage, averaged, summed
from retrieval.moments.spans import (
    MOST_MOMENTS,
    Moment,
    over_threshold,
    peaks,
    runs,
    stretches,
    suppressed,
    with_others,
)

METHODS = ("head", "contribution", "runs")
OVERLAP_SECONDS = 5.0  # of excerpts that are one window, whose frames cannot be used twice
RUN_PROBABILITY = 0.3  # of PE-A-Frame's own rule
# Thresholds of alternatives, as shares of a curve's highest value, best first; and the IoU from
# which two cuts are one. Both are chosen on the sample corpus's validation split.
LEVELS = (0.3, 0.7, 0.15, 0.85)
SAME_CUT = 0.8
TEXTS_AT_ONCE = 256
SAME_MOMENT = 0.5  # IoU from which stretches of two excerpts are one


@dataclass(frozen=True)
class Heard:
    """An excerpt: samples start to stop of a recording, and frames (t, D) in the shared space."""

    start: int
    stop: int
    frames: torch.Tensor


@dataclass(frozen=True)
class Located:
    """Where texts are heard in a recording.

    Attributes:
        moments: Of each of N texts at least one, best first.
        curves: float32 (N, T): by method "head" and "runs" the probability that a text is heard.
            By "contribution" with TAP the part of each frame in its excerpt's score, 1 on average
            at a cosine of 1; with other poolings the frame's cosine, or dot product.
        frame_seconds: Length of a frame.
        seconds: Length of the recording.
    """

    moments: list[list[Moment]]
    curves: np.ndarray
    frame_seconds: float
    seconds: float


def _has_probabilities(model: DualEncoder) -> bool:
    """Whether each frame's dot product is a logit, as in PE-A-Frame."""
    pooling, has_bias = model.pooling, "bias" in model.loss_parameters
    is_dot = pooling.similarity == "dot" and not pooling.keeps_frames
    return has_bias and is_dot and not model.audio_encoder.pools_windows


def _best_method(model: DualEncoder) -> str:
    """Return the method of None."""
    if model.moment_head is not None:
        return "head"
    return "runs" if _has_probabilities(model) else "contribution"


class Locator:
    """Finds the moments of recordings that texts describe.

    Args:
        model: The model; it is used in eval mode.
        method: "head": maximum-sum stretches of the moment head's probabilities over its threshold,
            a share of the recording's highest probability. Scores: highest probabilities.
            "contribution": maximum-sum stretches of the frames' parts in the score, over their
            mean. Scores: those of the excerpts; if `is_local`, mean similarities.
            "runs": runs of frames whose probability is above 0.3, PE-A-Frame's own rule. Scores:
            mean probabilities. If there is no run, the answer is the most probable frame with its
            neighbours above half of its probability; its score is 0.3 or less.
            None: head if the model has one; else runs if its frames have probabilities; else
            contribution.
        autocast: Context of the encoders.
        alternatives: Fill up the head's answers with narrower and wider cuts of the same places.
            mAP counts them; a person who searches has no use for them.
        most: Largest number of moments of a text.

    Attributes:
        frame_seconds: Length of a frame of the curves.

    Raises:
        UserError: The model cannot find moments by this method.
    """

    def __init__(
        self,
        model: DualEncoder,
        method: str | None = None,
        autocast: Autocast = nullcontext,
        alternatives: bool = False,
        most: int = MOST_MOMENTS,
    ):
        self.model, self.autocast, self.alternatives = model, autocast, alternatives
        self.method, self.most = method or _best_method(model), most
        if self.method not in METHODS:
            raise UserError(f"method {method!r} is unknown; there is: {', '.join(METHODS)}")
        if not model.pooling.compares_frames:
            raise UserError(
                f"a model with {type(model.pooling).__name__} makes one vector of a clip before it"
                " is compared with a text, and so cannot say when; use another model"
            )
        if self.method == "head" and model.moment_head is None:
            raise UserError(
                "the model has no moment head; train one (configs/sample_moments.yaml), or find"
                " moments by method contribution"
            )
        if self.method == "runs" and not _has_probabilities(model):
            raise UserError(
                "method runs needs a model whose frames have probabilities, as PE-A-Frame; use"
                " method contribution"
            )
        grid, pooling = model.windows, model.pooling
        self.samples_per_frame = grid.frame_samples
        # If windows do not overlap, and an excerpt has several, each window is encoded once.
        per_excerpt = grid.clip_samples // grid.window_samples
        # Poolings with a longest_excerpt (CLAP, PE-Audio): the score of a longer excerpt would hide
        # short sounds, so stretches are found in the curve of the recording, and scored by it.
        longest = min(pooling.longest_excerpt * model.sample_rate, grid.clip_samples)
        self.is_local = self.method == "contribution" and longest < grid.clip_samples
        self.has_one_vector = (
            model.audio_encoder.pools_windows
            and self.method == "contribution"
            and not pooling.keeps_frames
        )
        self.shares_windows = (
            per_excerpt > 1 and grid.hop_samples == grid.window_samples and not self.has_one_vector
        )
        if self.has_one_vector:
            self.is_local = True
            self.hop_samples = max(1, int(min(longest, grid.window_samples)) // 2)
            self.excerpt_samples = 2 * self.hop_samples
            self.samples_per_frame = self.hop_samples
        elif self.shares_windows:
            self.excerpt_samples = per_excerpt * grid.window_samples
            self.hop_samples = max(1, per_excerpt // 2) * grid.window_samples
        else:
            self.excerpt_samples = grid.clip_samples
            overlap = min(grid.clip_samples // 2, round(OVERLAP_SECONDS * model.sample_rate))
            # whole frames, so that those of two excerpts lie at the same places
            num_frames = int((grid.clip_samples - overlap) / grid.frame_samples)
            self.hop_samples = max(1, round(max(1, num_frames) * grid.frame_samples))
        self.frame_seconds = self.samples_per_frame / model.sample_rate

    def hear(self, blocks: Iterable[np.ndarray]) -> Iterator[Heard]:
        """Encode a recording, excerpt by excerpt.

        Args:
            blocks: Its samples in order, float32 (S,) each, at model.sample_rate.

        Yields:
            Excerpts of `excerpt_samples`, one every `hop_samples`. The last one begins where the
            next one would, and ends with the recording.

        Raises:
            UserError: The recording has no samples.
        """
        if not self.shares_windows:
            for start, samples in _cut(blocks, self.excerpt_samples, self.hop_samples):
                yield Heard(start, start + len(samples), self._encode(samples))
            return
        size = self.hop_samples
        if self.excerpt_samples % size:
            size = self.model.windows.window_samples
        per_excerpt, per_hop = self.excerpt_samples // size, self.hop_samples // size
        parts: list[torch.Tensor] = []  # of the excerpt at hand
        start = stop = 0
        for place, samples in _cut(blocks, size, size):
            if len(parts) == per_excerpt:
                parts, start = parts[per_hop:], start + self.hop_samples
            parts.append(self._encode(samples))
            stop = place + len(samples)
            if len(parts) == per_excerpt:
                yield Heard(start, stop, torch.cat(parts))
        if len(parts) < per_excerpt:
            yield Heard(start, stop, torch.cat(parts))

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Return texts in the shared space, float32 (N, D)."""
        with self.listening():
            parts = [
                self.model.encode_text(list(texts[first : first + TEXTS_AT_ONCE])).float()
                for first in range(0, len(texts), TEXTS_AT_ONCE)
            ]
        return torch.cat(parts)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep the model in eval mode, without gradients, in the encoders' precision."""
        with torch.no_grad(), eval_mode(self.model), self.autocast():
            yield

    def _encode(self, samples: np.ndarray) -> torch.Tensor:
        """Return the valid frames float32 (t, D) of samples (S,)."""
        waveform = torch.from_numpy(samples)[None].to(self.model.temperature.device)
        lengths = torch.tensor([len(samples)])
        with self.listening():
            if self.has_one_vector:
                vector = self.model.encode_audio(waveform, lengths)[0][0]  # (1, D)
                return vector.expand(-(-len(samples) // self.hop_samples), -1).float()
            frames, mask = self.model.frame_vectors(waveform, lengths)
        return frames[0, mask[0]].float()

    @torch.no_grad()
    def locate(self, text: torch.Tensor, heard: Iterable[Heard]) -> Located:
        """Find texts in a recording.

        Args:
            text: float32 (N, D), of encode_text.
            heard: Its excerpts, of `hear`; they are not kept.

        Raises:
            UserError: A number is NaN.
        """
        whole, stop = RunningAverage(len(text)), 0
        candidates: list[list[Moment]] = [[] for _ in text]
        with eval_mode(self.model):
            for excerpt in heard:
                frames = excerpt.frames.to(text.device).float()[None]  # (1, t, D)
                curves = self._curves(text, frames)  # (N, t)
                check_not_nan(curves, " of moments")
                stop = excerpt.stop
                places, is_inside = self._places(excerpt, frames.shape[1])
                first, sums, counts = summed(places, curves.cpu().numpy()[:, is_inside])
                whole.add(first, sums, counts)
                if self.method == "contribution" and not self.is_local:
                    scores = self._scores(text, frames).tolist()
                    own = averaged(sums, counts)
                    for curve, score, found in zip(own, scores, candidates, strict=True):
                        found += self._peaks(curve, score, first, stop)
        # Where windows overlap, the last frames may be valid in none of them: curves() fills them.
        curves = whole.curves(max(1, math.ceil(stop / self.samples_per_frame - 1e-6)))
        if self.method == "head":
            curves = torch.from_numpy(curves).sigmoid().numpy()
            moments = [self.stretches(curve, stop) for curve in curves]
        elif self.method == "runs":
            curves = torch.from_numpy(curves).sigmoid().numpy()
            moments = [self._runs(curve, stop) for curve in curves]
        else:
            if self.is_local:
                candidates = [self._local_peaks(curve, stop) for curve in curves]
            moments = [suppressed(found, SAME_MOMENT, self.most) for found in candidates]
        moments = [found[: self.most] for found in moments]
        return Located(moments, curves, self.frame_seconds, stop / self.model.sample_rate)

    def _curves(self, text: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """Return logits, or contributions times t, float32 (N, t) of frames (1, t, D)."""
        model = self.model
        mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
        if self.method == "head":
            return model.moment_logits(text, frames, mask)
        contributions = model.pooling.contributions(text, frames, mask)[:, 0]
        if self.method == "contribution":
            return contributions * (frames.shape[1] if model.pooling.keeps_frames else 1)
        return contributions / model.temperature.abs() + model.loss_parameters["bias"]

    def _scores(self, text: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """Return the scores (N,) of texts (N, D) with an excerpt's frames (1, t, D)."""
        pooling = self.model.pooling
        mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
        if not pooling.keeps_frames:
            frames, mask = pooling(frames, mask)[:, None], mask[:, :1]
        return pooling.score(text, frames, mask)[:, 0]

    def _places(self, excerpt: Heard, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
        """Place the frames of an excerpt among the recording's.

        Windows that overlap, or that do not divide the excerpt, have frames beyond its end. They
        are left out.

        Returns:
            Places int64 (n,) of the n frames that begin within the excerpt; bool (num_frames,),
            True for those n.
        """
        size = self.samples_per_frame
        if self.has_one_vector:
            own = np.arange(num_frames)
        else:
            # in frames; the tiny share keeps a centre at a border on one side
            own = (self.model.windows.frame_centres(num_frames) / size + 1e-6).astype(np.int64)
        places = round(excerpt.start / size) + own
        is_inside = places * size < excerpt.stop
        return places[is_inside], is_inside

    def _peaks(self, curve: np.ndarray, score: float, first: int, stop: int) -> list[Moment]:
        """Return the stretches of an excerpt's contributions (t,), scored by the excerpt.

        first: place of its first frame; stop: its end in samples.
        """
        return [
            self._moment(first + begin, first + end, own, stop)
            for begin, end, own in peaks(curve, score)
        ]

    def _local_peaks(self, curve: np.ndarray, stop: int) -> list[Moment]:
        """Return the stretches of similarities (T,) over the mean of the minute around them.

        A stretch's score is its mean. The surroundings are as long as the model's longest clip.
        """
        around = max(2, round(self.model.windows.clip_samples / self.samples_per_frame))
        last = max(0, len(curve) - around)
        found = []
        for start in sorted({*range(0, last, around // 2), last}):
            part = curve[start : start + around]
            for begin, end, _ in peaks(part, 0.0):
                score = float(part[begin:end].mean())
                found.append(self._moment(start + begin, start + end, score, stop))
        return found

    def stretches(
        self, curve: np.ndarray, stop: int, threshold: float | None = None
    ) -> list[Moment]:
        """Return the stretches of a head's probabilities (T,), best first.

        A stretch's score is its highest probability.

        Args:
            curve: (T,).
            stop: Samples of the recording.
            threshold: As a share of the highest probability; None: the head's own.
        """
        if threshold is None:
            threshold = float(self.model.moment_head.threshold)
        cuts = over_threshold(curve, threshold, max(self.most, MOST_MOMENTS))
        found = [self._moment(*own, stop) for own in cuts]
        if self.alternatives:
            top = float(curve.max())
            others = [
                self._moment(*own, float(curve[slice(*own)].max()), stop)
                for level in (threshold, *LEVELS)
                for *own, _ in stretches(curve - level * top, self.most, 0.0)
            ]
            found = with_others(found, others, SAME_CUT)[: self.most]
            # R1 reads the order of the list and mAP the scores: both must give one order
            scores = np.minimum.accumulate([moment.score for moment in found]).tolist()
            found = [own._replace(score=score) for own, score in zip(found, scores, strict=True)]
        return found

    def _runs(self, curve: np.ndarray, stop: int) -> list[Moment]:
        """Return the runs of probabilities (T,) above RUN_PROBABILITY, or the one of the highest.

        That one holds the most probable frame, and those beside it above half of its probability.
        """
        found = runs(curve, RUN_PROBABILITY)
        if not found:
            highest = int(curve.argmax())
            near = runs(curve, curve[highest] / 2) or [(highest, highest + 1)]
            found = [(begin, end) for begin, end in near if begin <= highest < end]
        return self._by_mean(curve, found, stop)

    def _by_mean(self, curve: np.ndarray, found: list[tuple[int, int]], stop: int) -> list[Moment]:
        """Return the moments of stretches, scored by their mean, best first."""
        moments = [
            self._moment(begin, end, float(curve[begin:end].mean()), stop) for begin, end in found
        ]
        return sorted(moments, key=lambda moment: -moment.score)

    def _moment(self, begin: int, end: int, score: float, stop: int) -> Moment:
        """Return the moment of the frames begin to end; stop: end of the sound in samples."""
        rate, size = self.model.sample_rate, self.samples_per_frame
        return Moment(begin * size / rate, min(end * size, stop) / rate, score)


def _cut(blocks: Iterable[np.ndarray], size: int, hop: int) -> Iterator[tuple[int, np.ndarray]]:
    """Cut a stream into pieces of `size` samples, one every `hop`; yield (first sample, piece).

    The last piece begins where the next one would and ends with the stream.
    """
    kept, start, is_new = np.zeros(0, np.float32), 0, False
    for block in blocks:
        kept = np.concatenate([kept, block])
        is_new = is_new or len(block) > 0
        while len(kept) >= size:
            yield start, kept[:size]
            kept, start = kept[hop:], start + hop
            is_new = len(kept) > size - hop
    if not start and not len(kept):
        raise UserError("the recording holds no samples")
    if is_new:
        yield start, kept
