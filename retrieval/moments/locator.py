"""Find moments in recordings of any length by a model, in a stream and in bounded memory.

A recording is heard in excerpts as long as the clips that the model was trained on, which overlap
by half. Each excerpt gives a curve of its own: a softmax over an hour would say nothing. Where
excerpts overlap, curves are averaged.

Letters: N texts, S samples, T frames of a recording, t of an excerpt, D = dim.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from retrieval.base.errors import UserError
from retrieval.models.dual_encoder import Autocast, DualEncoder, check_not_nan, eval_mode
from retrieval.moments.spans import (
    LEAST_SHARE,
    MOST_MOMENTS,
    Moment,
    peaks,
    runs,
    stretches,
    suppressed,
    with_others,
)

METHODS = ("head", "contribution", "runs")
OVERLAP_SECONDS = 5.0  # of excerpts that are one window, whose frames cannot be used twice
RUN_PROBABILITY = 0.3  # of PE-A-Frame's own rule
# Thresholds of alternatives, as shares of a curve's highest value, in the order of their worth; and
# the IoU from which two cuts are one. Both chosen as LEAST_SHARE.
LEVELS = (0.3, 0.7, 0.15, 0.85)
SAME_CUT = 0.8
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
        moments: At most MOST_MOMENTS of each of N texts, best first. Method "runs" may find none.
        curves: float32 (N, T): by method "head" and "runs" the probability that a text is heard,
            by "contribution" the part of each frame in its excerpt's score, 1 on average at a
            cosine of 1.
        frame_seconds: Length of a frame.
        seconds: Length of the recording.
    """

    moments: list[list[Moment]]
    curves: np.ndarray
    frame_seconds: float
    seconds: float


class Locator:
    """Finds the moments of recordings that texts describe.

    Args:
        model: The model; it is used in eval mode.
        method: "head": maximum-sum stretches of the moment head's probabilities over its threshold,
            a share of the recording's highest probability.
            "contribution": maximum-sum stretches of what frames add to the score, over their mean.
            "runs": runs of frames whose probability is above 0.3, PE-A-Frame's own rule.
            None: head if the model has one, else contribution.
        autocast: Context of the encoders.
        alternatives: Fill up the head's answers with other cuts of the same places, narrower and
            wider ones. mAP counts them; a person who searches has no use for them.

    Raises:
        UserError: The model cannot find moments by this method.
    """

    def __init__(
        self,
        model: DualEncoder,
        method: str | None = None,
        autocast: Autocast = nullcontext,
        alternatives: bool = False,
    ):
        self.model, self.autocast, self.alternatives = model, autocast, alternatives
        self.method = method or ("head" if model.moment_head is not None else "contribution")
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
        if self.method == "runs" and "bias" not in model.loss_parameters:
            raise UserError(
                "method runs needs a model whose frames have probabilities, as PE-A-Frame; use"
                " method contribution"
            )
        grid = model.windows
        self.samples_per_frame = grid.frame_samples
        # windows of several to an excerpt, without overlap, are encoded once for all excerpts
        per_excerpt = grid.clip_samples // grid.window_samples
        self.shares_windows = per_excerpt > 1 and grid.hop_samples == grid.window_samples
        if self.shares_windows:
            self.excerpt_samples = per_excerpt * grid.window_samples
            self.hop_samples = max(1, per_excerpt // 2) * grid.window_samples
        else:
            self.excerpt_samples = grid.clip_samples
            overlap = min(grid.clip_samples // 2, round(OVERLAP_SECONDS * model.sample_rate))
            self.hop_samples = grid.clip_samples - overlap

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

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep the model in eval mode, without gradients, in the encoders' precision."""
        with torch.no_grad(), eval_mode(self.model), self.autocast():
            yield

    def _encode(self, samples: np.ndarray) -> torch.Tensor:
        """Return the valid frames float32 (t, D) of samples (S,)."""
        waveform = torch.from_numpy(samples)[None].to(self.model.temperature.device)
        with self.listening():
            frames, mask = self.model.frame_vectors(waveform, torch.tensor([len(samples)]))
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
        places, values, stop = [], [], 0
        candidates: list[list[Moment]] = [[] for _ in text]
        with eval_mode(self.model):
            for excerpt in heard:
                frames = excerpt.frames.to(text.device).float()[None]  # (1, t, D)
                curves = self._curves(text, frames)  # (N, t)
                check_not_nan(curves, " of moments")
                places.append(self._places(excerpt.start, frames.shape[1]))
                values.append(curves.cpu().numpy())
                stop = excerpt.stop
                if self.method == "contribution":
                    first, own = averaged(places[-1], values[-1])
                    scores = self._scores(text, frames).tolist()
                    for curve, score, found in zip(own, scores, candidates, strict=True):
                        found += self._peaks(curve, score, first, stop)
        _, curves = averaged(np.concatenate(places), np.concatenate(values, axis=1))
        if self.method == "contribution":
            moments = [suppressed(found, SAME_MOMENT)[:MOST_MOMENTS] for found in candidates]
        else:
            curves = 1 / (1 + np.exp(-curves))
            find = self._runs if self.method == "runs" else self.stretches
            moments = [find(curve, stop) for curve in curves]
        return Located(moments, curves, self.model.frame_seconds, stop / self.model.sample_rate)

    def _curves(self, text: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """Return logits, or contributions times t, float32 (N, t) of frames (1, t, D)."""
        model = self.model
        mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
        if self.method == "head":
            return model.moment_logits(text, frames, mask)
        contributions = model.pooling.contributions(text, frames, mask)[:, 0]
        if self.method == "contribution":
            return contributions * frames.shape[1]
        return contributions / model.temperature.abs() + model.loss_parameters["bias"]

    def _scores(self, text: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """Return the scores (N,) of texts (N, D) with an excerpt's frames (1, t, D)."""
        pooling = self.model.pooling
        mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
        if not pooling.keeps_frames:
            frames, mask = pooling(frames, mask)[:, None], mask[:, :1]
        return pooling.score(text, frames, mask)[:, 0]

    def _places(self, start: int, num_frames: int) -> np.ndarray:
        """Return the places (t,) of an excerpt's frames among the recording's."""
        centres = start + self.model.windows.frame_centres(num_frames)
        return (centres / self.samples_per_frame).astype(np.int64)

    def _peaks(self, curve: np.ndarray, score: float, first: int, stop: int) -> list[Moment]:
        """Return the stretches of an excerpt's contributions (t,), scored by the excerpt.

        first: place of its first frame; stop: its end in samples.
        """
        return [
            self._moment(first + begin, first + end, own, stop)
            for begin, end, own in peaks(curve, score)
        ]

    def stretches(
        self, curve: np.ndarray, stop: int, threshold: float | None = None
    ) -> list[Moment]:
        """Return the stretches of a head's probabilities (T,), best first.

        The first one's score is its mean probability; that of others is lower by their share of its
        sum over the threshold.

        Args:
            curve: (T,).
            stop: Samples of the recording.
            threshold: As a share of the highest probability; None: the head's own.
        """
        if threshold is None:
            threshold = float(self.model.moment_head.threshold)
        top = float(curve.max())
        least = 0.0 if self.alternatives else LEAST_SHARE
        cuts = stretches(curve - threshold * top, MOST_MOMENTS, least)
        first, last, _ = cuts[0]
        score = float(curve[first:last].mean())
        found = [self._moment(*own, score * share, stop) for *own, share in cuts]
        if self.alternatives:
            others = [
                self._moment(*own, min(float(curve[slice(*own)].mean()), found[-1].score), stop)
                for level in LEVELS
                for *own, _ in stretches(curve - level * top, MOST_MOMENTS, 0.0)
            ]
            found = with_others(found, others, SAME_CUT)[:MOST_MOMENTS]
        return found

    def _runs(self, curve: np.ndarray, stop: int) -> list[Moment]:
        """Return the runs of probabilities (T,) above RUN_PROBABILITY."""
        found = [
            self._moment(begin, end, float(curve[begin:end].mean()), stop)
            for begin, end in runs(curve, RUN_PROBABILITY)
        ]
        return sorted(found, key=lambda moment: -moment.score)

    def _moment(self, begin: int, end: int, score: float, stop: int) -> Moment:
        """Return the moment of the frames begin to end; stop: end of the sound in samples."""
        rate, size = self.model.sample_rate, self.samples_per_frame
        return Moment(begin * size / rate, min(end * size, stop) / rate, score)


def averaged(places: np.ndarray, values: np.ndarray) -> tuple[int, np.ndarray]:
    """Average the values of equal places.

    Args:
        places: int64 (n,); every place from the lowest to the highest is there.
        values: float32 (N, n).

    Returns:
        The lowest place; float32 (N, highest - lowest + 1).
    """
    first, offsets = int(places.min()), places - places.min()
    counts = np.bincount(offsets)
    sums = np.stack([np.bincount(offsets, row) for row in values])
    return first, (sums / counts).astype(np.float32)


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
