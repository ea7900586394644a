"""Other ways to learn moments, against the moment head as it is, on the sample corpus.

    python -m benchmarks.moment_variants [--checkpoint runs/sample_tap/best]    # after `make demo`
    python -m benchmarks.moment_variants --quick    # random numbers: shows that it runs

The first takes some minutes for each seed on one core. Encoders are frozen, so frames and texts are
computed once and kept in memory. Each seed trains heads by the recipe of
configs/sample_moments.yaml:

    head           as it is
    offsets        each frame also tells the seconds to the start and the end of its moment, as in
                   one-stage detectors; spans of the best frames, stretches with their ends moved,
                   or stretches as before, so that offsets only help to learn
    without times  from captions: a clip's own caption against those of other clips
    steps of 80 ms half as long, twice as many in a convolution

Other rows change how moments are found in the curves of `head`. `re-ranked` learns on the
development split to tell the IoU of a stretch, and sorts the stretches of many thresholds by it.
Validation chooses epoch and settings for each row and seed, by R1@0.7 and then mIoU (the overlap of
re-ranked stretches: by mAP). The evaluation split is scored once for each row and seed.

Letters: Q queries, B clips of a batch, P pairs of a text and a clip, T frames, D = dim, E numbers
of evidence.
"""

import argparse
import copy
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError
from retrieval.data import make_clip_loader, open_cache
from retrieval.data.moment_pairs import frame_labels
from retrieval.data.moments import Window
from retrieval.data.schema import SPLITS
from retrieval.evaluation.metrics.audio_moment_retrieval.scoring import (
    NAMES,
    first_iou,
    metric_columns,
    query_values,
)
from retrieval.losses.moments import moment_loss
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.moment_head import MomentHead
from retrieval.models.pooling import Pooling, TextAwareAttentionPooling
from retrieval.moments.locator import LEVELS, SAME_CUT
from retrieval.moments.spans import (
    MOST_MOMENTS,
    Moment,
    iou,
    over_threshold,
    peaks,
    runs,
    stretches,
    suppressed,
    with_others,
)
from retrieval.training.moments import THRESHOLDS
from retrieval.training.optim import learning_rate

ROOT = Path(__file__).resolve().parents[1]
# configs/sample_moments.yaml
HEAD = {"hidden": 48}
BATCH_SIZE, NEGATIVES, LEARNING_RATE, WEIGHT_DECAY = 32, 0.25, 2e-3, 0.01
SCHEDULE = {"shape": "cosine", "warmup_epochs": 0.5, "rampdown_start": 0.5, "min_lr": 0.0}
SCHEDULE |= {"step_epochs": 1.0, "step_factor": 1.0}
OTHER_TEXTS = 3  # of other clips, for each clip of a batch, in training without times
COARSE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # thresholds of candidates
OVERLAPS = (0.3, 0.5, 0.7)  # IoU with a better span that drops one
SHOWN = ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU", "mAP@0.5", "mAP")
GROUPS = {
    "all": lambda named, events: True,
    "one event of several": lambda named, events: named == 1 < events,
    "two events": lambda named, events: named == 2,
}


@dataclass(frozen=True)
class Clips:
    """A split in memory.

    Attributes:
        pooling: Gives the evidence.
        frame_seconds: Length of a frame.
        keys: (T, D) of each clip, of Pooling.keys.
        seconds: Length of each clip.
        text: (Q, D), encodings of queries.
        texts: Q.
        clip: Q, the clip of each query.
        windows: Q, true windows of each.
        qids: Q.
    """

    pooling: Pooling
    frame_seconds: float
    keys: list[Tensor]
    seconds: list[float]
    text: Tensor
    texts: list[str]
    clip: list[int]
    windows: list[tuple[Window, ...]]
    qids: list[str]

    @cached_property
    def queries(self) -> list[list[int]]:
        """The queries of each clip."""
        queries: list[list[int]] = [[] for _ in self.keys]
        for query, clip in enumerate(self.clip):
            queries[clip].append(query)
        return queries

    @cached_property
    def evidence(self) -> list[Tensor]:
        """Evidence of the pooling for each query and its clip, Q of (T, E)."""
        evidence = []
        for keys, queries in zip(self.keys, self.queries, strict=True):
            mask = torch.ones(1, len(keys), dtype=torch.bool)
            with torch.no_grad():
                evidence += self.pooling.evidence(self.text[queries], keys[None], mask)[:, 0]
        order = list(itertools.chain.from_iterable(self.queries))
        return [evidence[place] for place in np.argsort(order)]

    def is_foreign(self, clip: int, query: int) -> bool:
        """Return True if no caption of the clip is that query's."""
        return self.texts[query] not in {self.texts[own] for own in self.queries[clip]}

    def group(self, name: str) -> np.ndarray:
        """Bool (Q,): queries of one of GROUPS. A qid ends with <events named>of<events>."""
        counts = [map(int, qid.rsplit("_", 1)[1].split("of")) for qid in self.qids]
        return np.array([GROUPS[name](*pair) for pair in counts])


@dataclass(frozen=True)
class Batch:
    """Pairs of texts and clips.

    Attributes:
        text: (P, D).
        keys, mask, evidence: (P, T, D), (P, T), (P, T, E).
        is_own: bool (P,), the text is the clip's own query.
        labels: (P, T), 1 where it is heard.
        sides: (P, T, 2), seconds from a frame's centre to the ends of the window that holds it; 0
            outside.
    """

    text: Tensor
    keys: Tensor
    mask: Tensor
    evidence: Tensor
    is_own: Tensor
    labels: Tensor
    sides: Tensor


def make_batch(clips: Clips, pairs: Sequence[tuple[int, int]]) -> Batch:
    """Make a batch of the clip of one query with the text of another, of the same, or several."""
    rows = sorted({clips.clip[query] for query, _ in pairs})
    names = sorted({text for _, text in pairs})
    row = [rows.index(clips.clip[query]) for query, _ in pairs]
    num_frames = torch.tensor([len(clips.keys[clip]) for clip in rows])
    keys = pad_sequence([clips.keys[clip] for clip in rows], batch_first=True)  # (B, T, D)
    mask = torch.arange(keys.shape[1]) < num_frames[:, None]
    with torch.no_grad():
        evidence = clips.pooling.evidence(clips.text[names], keys, mask)  # (N, B, T, E)
    is_own = torch.tensor([query == text for query, text in pairs])
    centres = (torch.arange(keys.shape[1]) + 0.5) * clips.frame_seconds
    labels = torch.zeros(len(pairs), len(centres))
    sides = torch.zeros(len(pairs), len(centres), 2)
    for place in is_own.nonzero()[:, 0].tolist():
        windows = clips.windows[pairs[place][0]]
        for start, end in windows:
            inside = (centres >= start) & (centres < end)
            sides[place, inside] = torch.stack([centres - start, end - centres], -1)[inside]
        labels[place] = frame_labels(torch.tensor([windows]), centres, clips.frame_seconds)[0]
    return Batch(
        clips.text[[text for _, text in pairs]],
        keys[row],
        mask[row],
        evidence[[names.index(text) for _, text in pairs], row],
        is_own,
        labels,
        sides,
    )


# --- heads and losses ---


class OffsetHead(MomentHead):
    """A moment head that tells two more numbers of a frame, see `sides_of`."""

    def __init__(self, *sizes: Any, **settings: Any):
        super().__init__(*sizes, **settings)
        self.logit = nn.Linear(self.logit.in_features, 3)

    def _interpolated(self, logits: Tensor, num_steps: Tensor, num_frames: int) -> Tensor:
        between = super()._interpolated
        parts = [between(part, num_steps, num_frames) for part in logits.unbind(-1)]
        return torch.stack(parts, -1)  # (P, T, 3)


def sides_of(outputs: Tensor) -> Tensor:
    """Return the seconds to the start and the end (..., 2) of an OffsetHead's outputs (..., 3)."""
    return functional.softplus(outputs[..., 1:])


def head_loss(outputs: Tensor, batch: Batch) -> Tensor:
    """The loss of the head as it is."""
    return moment_loss(outputs, batch.labels, batch.mask).mean()


def offset_loss(outputs: Tensor, batch: Batch) -> Tensor:
    """The head's loss, and 1 - IoU of the spans of frames in a moment, the mean of each pair.

    Source: as FCOS in one dimension (Tian et al., 2019, arXiv 1904.01355).
    """
    inside = (batch.sides > 0).all(-1)  # (P, T)
    told, true = sides_of(outputs), batch.sides
    shared = torch.minimum(told, true).sum(-1)
    loss = 1 - shared / torch.maximum(told, true).sum(-1).clamp_min(1e-6)
    spans = (loss * inside).sum(dim=1) / inside.sum(dim=1).clamp_min(1)  # (P,)
    return head_loss(outputs[..., 0], batch) + spans.mean()


def caption_loss(outputs: Tensor, batch: Batch, *, pool: str) -> Tensor:
    """Binary cross-entropy of clips' probabilities: is a caption the clip's own? No times.

    Args:
        outputs: (P, T).
        batch: With texts of other clips, which weigh as much as the own ones together.
        pool: From frames to a clip. "linear softmax": frames weigh as much as their probability
            (Wang et al., 2019, arXiv 1810.09050). "top": mean logit of the highest tenth.
    """
    if pool == "linear softmax":
        heard = outputs.sigmoid() * batch.mask  # (P, T)
        clip = heard.square().sum(dim=1) / heard.sum(dim=1).clamp_min(1e-6)  # (P,)
        clip = torch.logit(clip, eps=1e-4)
    else:
        counts = (batch.mask.sum(dim=1, keepdim=True) / 10).ceil()  # (P, 1)
        highest = outputs.masked_fill(~batch.mask, -torch.inf).sort(dim=1, descending=True).values
        is_counted = torch.arange(outputs.shape[1]) < counts
        clip = highest.where(is_counted, 0.0).sum(dim=1) / counts[:, 0]
    loss = functional.binary_cross_entropy_with_logits(clip, batch.is_own.float(), reduction="none")
    return loss[batch.is_own].mean() + loss[~batch.is_own].mean()


def timed_pairs(
    clips: Clips, queries: list[int], rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Pair each clip with its own text, or, for a share NEGATIVES, with that of another clip."""
    pairs = []
    for query in queries:
        text = query
        if rng.random() < NEGATIVES:
            while not clips.is_foreign(clips.clip[query], text):
                text = int(rng.integers(len(clips.texts)))
        pairs.append((query, text))
    return pairs


def caption_pairs(
    clips: Clips, queries: list[int], rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Pair each clip with its own text and with OTHER_TEXTS of other clips of the batch."""
    pairs = [(query, query) for query in queries]
    for shift in range(1, OTHER_TEXTS + 1):
        pairs += zip(queries, queries[shift:] + queries[:shift])
    return [
        (query, text)
        for query, text in pairs
        if query == text or clips.is_foreign(clips.clip[query], text)
    ]


@dataclass(frozen=True)
class Recipe:
    """A head and its training."""

    head: type[MomentHead] = MomentHead
    settings: dict[str, Any] = field(default_factory=dict)
    loss: Callable[[Tensor, Batch], Tensor] = head_loss
    pairs: Callable[..., list[tuple[int, int]]] = timed_pairs


RECIPES = {
    "head": Recipe(),
    "offsets": Recipe(OffsetHead, loss=offset_loss),
    "without times, linear softmax": Recipe(
        loss=partial(caption_loss, pool="linear softmax"), pairs=caption_pairs
    ),
    "without times, top tenth": Recipe(loss=partial(caption_loss, pool="top"), pairs=caption_pairs),
    "steps of 80 ms": Recipe(settings={"step_seconds": 0.08, "kernel": 17}),
}


def train(clips: Clips, recipe: Recipe, seed: int, epochs: int) -> list[MomentHead]:
    """Train a head; return it as it was after each epoch, in eval mode."""
    torch.manual_seed(seed)
    head = recipe.head(
        clips.text.shape[1],
        clips.pooling.num_evidence,
        clips.frame_seconds,
        **HEAD | recipe.settings,
    )
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )
    num_steps = -(-len(clips.texts) // BATCH_SIZE)
    heads = []
    for epoch in range(epochs):
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(clips.texts)).tolist()
        for step in range(num_steps):
            queries = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
            batch = make_batch(clips, recipe.pairs(clips, queries, rng))
            for group in optimizer.param_groups:
                done = epoch + step / num_steps
                group["lr"] = learning_rate(done, LEARNING_RATE, rampdown_stop=epochs, **SCHEDULE)
            outputs = head(batch.text, batch.keys, batch.mask, batch.evidence)
            optimizer.zero_grad()
            recipe.loss(outputs, batch).backward()
            optimizer.step()
        heads.append(copy.deepcopy(head).eval())
    return heads


@torch.no_grad()
def outputs_of(head: MomentHead, clips: Clips) -> list[np.ndarray]:
    """Return probabilities (T,) of each query, or (T, 3) with the sides of an OffsetHead."""
    outputs: list[np.ndarray] = [np.empty(0)] * len(clips.texts)
    for keys, queries in zip(clips.keys, clips.queries, strict=True):
        mask = torch.ones(len(queries), len(keys), dtype=torch.bool)
        evidence = torch.stack([clips.evidence[query] for query in queries])
        found = head(clips.text[queries], keys.expand(len(queries), -1, -1), mask, evidence)
        if found.ndim == 3:
            found = torch.cat([found[..., :1].sigmoid(), sides_of(found)], -1)
        else:
            found = found.sigmoid()
        for query, values in zip(queries, found.numpy(), strict=True):
            outputs[query] = values
    return outputs


# --- from curves to moments: (outputs (T,) or (T, 3), s of a frame, s of the clip, setting) ---


def as_moments(
    found: Iterable[tuple[int, int, float]], frame: float, seconds: float
) -> list[Moment]:
    """Return stretches of frames in seconds."""
    return [Moment(begin * frame, min(stop * frame, seconds), s) for begin, stop, s in found]


def as_it_is(curve: np.ndarray, frame: float, seconds: float, threshold: float) -> list[Moment]:
    """Locator.stretches: highest sums over a share of the highest probability."""
    return as_moments(over_threshold(curve, threshold), frame, seconds)


def smoothed(
    curve: np.ndarray, frame: float, seconds: float, setting: tuple[float, float]
) -> list[Moment]:
    """Stretches of a moving average."""
    threshold, width = setting
    size = 2 * round(width / frame / 2) + 1
    padded = np.pad(curve, size // 2, mode="edge")
    return as_it_is(
        np.convolve(padded, np.full(size, 1 / size), "valid"), frame, seconds, threshold
    )


def of_runs(
    curve: np.ndarray, frame: float, seconds: float, setting: tuple[float, float, str]
) -> list[Moment]:
    """Runs above a share of the highest probability that reach a higher share.

    Args:
        curve: (T,), probabilities.
        frame: Length of a frame in seconds.
        seconds: Length of the clip.
        setting: Both shares; and whether a run's score is its "max" or its "mean", or its part in
            the "sum" of all over the lower share.
    """
    low, high, order = setting
    top = float(curve.max())
    found = [run for run in runs(curve, low * top) if curve[slice(*run)].max() >= high * top]
    if order == "sum":
        sums = [float((curve[slice(*run)] - low * top).sum()) for run in found]
        scores = [own / sum(sums) for own in sums]
    else:
        scores = [float(getattr(curve[slice(*run)], order)()) for run in found]
    moments = as_moments([(*run, own) for run, own in zip(found, scores)], frame, seconds)
    return sorted(moments, key=lambda moment: -moment.score)[:MOST_MOMENTS]


def filled(
    moments: list[Moment], curve: np.ndarray, frame: float, seconds: float, threshold: float
) -> list[Moment]:
    """Add other cuts, as Locator does where ten answers are scored."""
    top = float(curve.max())
    others = [
        (begin, stop, float(curve[begin:stop].max()))
        for level in (threshold, *LEVELS)
        for begin, stop, _ in stretches(curve - level * top, MOST_MOMENTS, 0.0)
    ]
    found = with_others(moments, as_moments(others, frame, seconds), SAME_CUT)[:MOST_MOMENTS]
    scores = np.minimum.accumulate([moment.score for moment in found]).tolist()
    return [own._replace(score=score) for own, score in zip(found, scores, strict=True)]


def by_offsets(outputs: np.ndarray, frame: float, seconds: float, overlap: float) -> list[Moment]:
    """Each frame's own span, the best frames first, without those that overlap a better one."""
    centres = (np.arange(len(outputs)) + 0.5) * frame
    best = np.argsort(-outputs[:, 0], kind="stable")[:200]
    # the centre of the last frame may lie beyond the end
    starts = np.clip(centres - outputs[:, 1], 0.0, seconds - frame / 4)
    ends = np.clip(centres + outputs[:, 2], starts + frame / 4, seconds)
    spans = [Moment(*map(float, (starts[i], ends[i], outputs[i, 0]))) for i in best]
    return suppressed(spans, overlap)[:MOST_MOMENTS]


def refined(
    outputs: np.ndarray, frame: float, seconds: float, setting: tuple[float, float]
) -> list[Moment]:
    """Stretches as they are, their ends moved a part of the way to those that frames tell."""
    threshold, part = setting
    centres = (np.arange(len(outputs)) + 0.5) * frame
    curve, moments = outputs[:, 0], []
    for begin, stop, score in over_threshold(curve, threshold):
        weights = curve[begin:stop] / curve[begin:stop].sum()
        start = float(weights @ (centres - outputs[:, 1])[begin:stop])
        end = float(weights @ (centres + outputs[:, 2])[begin:stop])
        start = (1 - part) * begin * frame + part * min(max(start, 0.0), seconds - frame / 4)
        end = (1 - part) * min(stop * frame, seconds) + part * min(end, seconds)
        moments.append(Moment(start, max(end, start + frame / 4), score))
    return moments


def contribution(curve: np.ndarray, frame: float, seconds: float, _: None) -> list[Moment]:
    """Locator's method without training: parts of frames in the score, over their mean."""
    return as_moments(peaks(curve, 1.0), frame, seconds)


Way = Callable[[np.ndarray, float, float, Any], list[Moment]]
PAIRS = itertools.product
SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
ONE_SHARE = [(low, 0.0, order) for order in ("max", "sum", "mean") for low in SHARES]
TWO_SHARES = [(low, high, "max") for low in SHARES for high in (0.6, 0.8, 0.9) if low < high]
# of the head's curves: how moments are found, and the settings
TRICKS: dict[str, tuple[Way, Sequence[Any]]] = {
    "smoothed": (smoothed, list(PAIRS(THRESHOLDS, (0.28, 0.52, 1.0)))),
    "runs": (of_runs, ONE_SHARE),
    "runs that reach a second threshold": (of_runs, TWO_SHARES),
}


def answers(
    clips: Clips, outputs: list[np.ndarray], way: Way, setting: Any, fill: bool = False
) -> list[list[Moment]]:
    """Find the moments of all queries; fill: add other cuts of probabilities (T,)."""
    found = []
    for values, clip in zip(outputs, clips.clip, strict=True):
        moments = way(values, clips.frame_seconds, clips.seconds[clip], setting)
        if fill:
            curve = values if values.ndim == 1 else values[:, 0]
            share = setting[0] if isinstance(setting, tuple) else setting
            moments = filled(moments, curve, clips.frame_seconds, clips.seconds[clip], share)
        found.append(moments)
    return found


def first_order(clips: Clips, found: list[list[Moment]]) -> tuple[float, float]:
    """Return R1@0.7 and mIoU."""
    values = np.array(
        [
            first_iou(np.array(moments[:1]).reshape(-1, 3), np.array(windows))
            for moments, windows in zip(found, clips.windows, strict=True)
        ]
    )
    return float((values >= 0.7).mean()), float(values.mean())


def columns_of(clips: Clips, found: list[list[Moment]]) -> np.ndarray:
    """Return each query's share of each metric, float64 (Q, 7)."""
    return metric_columns(*query_values(found, clips.windows))


def map_order(clips: Clips, found: list[list[Moment]]) -> tuple[float, float]:
    """Return mAP, and mAP@0.5."""
    columns = columns_of(clips, found).mean(axis=0)
    return columns[NAMES.index("mAP")], columns[NAMES.index("mAP@0.5")]


# --- re-ranking ---


def candidates(curve: np.ndarray) -> list[tuple[int, int]]:
    """Return maximum-sum stretches and runs by several thresholds, each once."""
    found = set()
    for threshold in COARSE:
        found |= {row[:2] for row in stretches(curve - threshold, MOST_MOMENTS, 0.0)}
        found |= set(runs(curve, threshold))
    return sorted(found)


def features(
    curve: np.ndarray, adds: np.ndarray, begin: int, stop: int, frame: float
) -> list[float]:
    """Describe a candidate.

    Args:
        curve: (T,), probabilities.
        adds: (T,), the part of each frame in the score, times T.
        begin: First frame.
        stop: Frame after the last.
        frame: Its length in seconds.
    """
    inside, size = curve[begin:stop], round(0.5 / frame)
    before, after = curve[max(0, begin - size) : begin], curve[stop : stop + size]
    return [
        inside.mean(),
        inside.max(),
        inside.min(),
        before.mean() if len(before) else 0.0,
        after.mean() if len(after) else 0.0,
        np.log((stop - begin) * frame),
        (stop - begin) / len(curve),
        adds[begin:stop].mean(),
        adds[begin:stop].sum() / len(curve),
        curve.max(),
        curve.mean(),
        inside.sum() / curve.sum(),
        begin == 0,
        stop == len(curve),
    ]


@dataclass(frozen=True)
class Candidates:
    """Candidates of all queries of a split: stretches of frames, features (N, F), query (N,)."""

    clips: Clips
    spans: list[tuple[int, int]]
    features: Tensor
    query: np.ndarray

    @classmethod
    def of(cls, clips: Clips, outputs: list[np.ndarray]) -> "Candidates":
        spans, rows, query = [], [], []
        for number, curve in enumerate(outputs):
            adds = clips.evidence[number][:, -1].numpy()
            for begin, stop in candidates(curve):
                spans.append((begin, stop))
                rows.append(features(curve, adds, begin, stop, clips.frame_seconds))
                query.append(number)
        return cls(clips, spans, torch.tensor(np.array(rows, np.float32)), np.array(query))

    def moments(self, scores: np.ndarray) -> list[list[Moment]]:
        """Return the candidates of each query."""
        found: list[list[Moment]] = [[] for _ in self.clips.texts]
        for query, (begin, stop), score in zip(self.query, self.spans, scores, strict=True):
            frame, seconds = self.clips.frame_seconds, self.clips.seconds[self.clips.clip[query]]
            found[query].append(Moment(begin * frame, min(stop * frame, seconds), float(score)))
        return found


def train_ranker(known: Candidates, seed: int, linear: bool, epochs: int = 20) -> nn.Module:
    """Learn a candidate's IoU with the best true window from its features."""
    torch.manual_seed(seed)
    target = torch.tensor(
        [
            max(iou(moment, window) for window in windows)
            for moments, windows in zip(
                known.moments(np.zeros(len(known.spans))), known.clips.windows, strict=True
            )
            for moment in moments
        ]
    )
    num_features = known.features.shape[1]
    standard = nn.BatchNorm1d(num_features, affine=False, momentum=None)  # means over all batches
    if linear:
        layers = [nn.Linear(num_features, 1)]
    else:
        layers = [nn.Linear(num_features, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU()]
        layers.append(nn.Linear(32, 1))
    ranker = nn.Sequential(standard, *layers)
    optimizer = torch.optim.AdamW(ranker.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(target)).split(256):
            if len(rows) > 1:
                told = ranker(known.features[rows])[:, 0]
                optimizer.zero_grad()
                functional.binary_cross_entropy_with_logits(told, target[rows]).backward()
                optimizer.step()
        schedule.step()
    return ranker.eval()


# --- rows ---


# of each row, each query's share of each metric: validation (Q, 7) and evaluation (Q, 7)
Rows = dict[str, tuple[np.ndarray, np.ndarray]]


def told(name: str, setting: Any, pair: tuple[np.ndarray, np.ndarray]) -> None:
    """Print the main numbers of a row."""
    cells = [
        " ".join(f"{100 * columns[:, NAMES.index(metric)].mean():5.1f}" for metric in SHOWN)
        for columns in pair
    ]
    print(f"{name:34s} validation {cells[0]}  evaluation {cells[1]}  {setting}", flush=True)


def show(splits: Sequence[Clips], found: list[Rows]) -> None:
    """Print mean and range over seeds, in percent."""
    for name in ("validation", *GROUPS):
        part = int(name != "validation")
        clips = splits[1 + part]
        chosen = clips.group(name if part else "all")
        title = f"evaluation, {name}" if part else "validation, all"
        print(f"\n{title}: {chosen.sum()} queries, mean (lowest-highest) over seeds, %")
        print("| way | " + " | ".join(SHOWN) + " |\n" + "| --- " * (len(SHOWN) + 1) + "|")
        for row in found[0]:
            values = 100 * np.array([rows[row][part][chosen].mean(axis=0) for rows in found])
            cells = [
                f"{column.mean():.1f} ({column.min():.1f}-{column.max():.1f})"
                for column in (values[:, NAMES.index(metric)] for metric in SHOWN)
            ]
            print(f"| {row} | " + " | ".join(cells) + " |", flush=True)


def best_of(
    clips: Clips, outputs: list[list[np.ndarray]], way: Way, settings: Iterable[Any]
) -> tuple[int, Any]:
    """Choose the epoch and the setting on validation; of equal ones the first."""
    tried = itertools.product(range(len(outputs)), settings)
    return max(
        tried, key=lambda pair: first_order(clips, answers(clips, outputs[pair[0]], way, pair[1]))
    )


def run_seed(seed: int, splits: Sequence[Clips], epochs: int) -> Rows:
    """Train all heads of a seed, and score all ways; print rows as they come."""
    torch.set_num_threads(1)
    development, validation, evaluation = splits
    rows: Rows = {}

    def add(name: str, setting: Any, *found: list[list[Moment]]) -> None:
        rows[name] = columns_of(validation, found[0]), columns_of(evaluation, found[1])
        told(f"{seed} {name}", setting, rows[name])

    def add_head(
        name: str, heads: list[MomentHead], way: Way, settings: Iterable[Any]
    ) -> MomentHead:
        """Add a row of a trained head; return the head of the best epoch."""
        heard = [outputs_of(head, validation) for head in heads]
        epoch, setting = best_of(validation, heard, way, settings)
        outputs = heard[epoch], outputs_of(heads[epoch], evaluation)
        pairs = zip(splits[1:], outputs, strict=True)
        shown = f"epoch {epoch + 1}, {setting}"
        add(name, shown, *[answers(*pair, way, setting, fill=True) for pair in pairs])
        return heads[epoch]

    def add_after(head: MomentHead) -> None:
        """Add the rows that use the curves of a trained head."""
        outputs = [outputs_of(head, clips) for clips in splits]

        for name, (way, settings) in TRICKS.items():
            _, setting = best_of(validation, [outputs[1]], way, settings)
            pairs = zip(splits[1:], outputs[1:], strict=True)
            add(name, setting, *[answers(*pair, way, setting, fill=True) for pair in pairs])
        known = [Candidates.of(*pair) for pair in zip(splits, outputs, strict=True)]
        for name, linear in (("re-ranked", False), ("re-ranked, linear", True)):
            ranker, ranked = train_ranker(known[0], seed, linear), []
            for part in known[1:]:
                with torch.no_grad():
                    ranked.append(part.moments(ranker(part.features)[:, 0].sigmoid().numpy()))
            kept = {
                overlap: [[suppressed(row, overlap) for row in part] for part in ranked]
                for overlap in OVERLAPS
            }
            best = max(OVERLAPS, key=lambda overlap: map_order(validation, kept[overlap][0]))
            add(name, best, *kept[best])

    evidence = [[values[:, -1].numpy() for values in clips.evidence] for clips in splits[1:]]
    pairs = zip(splits[1:], evidence, strict=True)
    add("contribution, not trained", "", *[answers(*pair, contribution, None) for pair in pairs])
    for name, recipe in RECIPES.items():
        start = time.perf_counter()
        heads = train(development, recipe, seed, epochs)
        print(f"{seed} {name}: trained in {time.perf_counter() - start:.0f} s", flush=True)
        if recipe.head is OffsetHead:
            add_head(f"{name}, frames' own spans", heads, by_offsets, OVERLAPS[:2])
            moved = list(PAIRS(THRESHOLDS, (0.5, 1.0)))
            add_head(f"{name}, ends moved", heads, refined, moved)
            add_head(f"{name}, not used", heads, only_curve(as_it_is), THRESHOLDS)
            add_head(f"{name}, not used, runs", heads, only_curve(of_runs), ONE_SHARE)
            continue
        best = add_head(name, heads, as_it_is, THRESHOLDS)
        if name == "head":
            add_after(best)
        else:
            add_head(f"{name}, runs", heads, of_runs, ONE_SHARE)
    return rows


def only_curve(way: Way) -> Way:
    """Find moments by the probabilities of an OffsetHead's outputs."""
    return lambda outputs, *rest: way(outputs[:, 0], *rest)


# --- clips ---


@torch.no_grad()
def sample_clips(checkpoint: Path, cache: Path) -> list[Clips]:
    """Encode the three splits. Raises UserError."""
    if not checkpoint.is_dir():
        raise UserError(
            f"--checkpoint {checkpoint} is not a folder; `make demo` trains runs/sample_tap/best"
        )
    model = DualEncoder.from_pretrained(checkpoint)
    opened, splits = open_cache(cache, model.sample_rate), []
    for name in SPLITS:
        split = opened.split(name)
        if not split.has_moments:
            raise UserError(f"--cache {cache} has no moments; build it anew with `make demo`")
        if split.num_samples.max() > model.windows.clip_samples:
            raise UserError(f"--cache {cache} has clips longer than {model.clip_seconds:g} s")
        keys = []
        for waveform, lengths in make_clip_loader(
            split, range(len(split)), model.windows.clip_samples, 16, num_workers=0
        ):
            encoded, mask = model.frame_vectors(waveform, lengths)
            keys += [model.pooling.keys(clip[valid]) for clip, valid in zip(encoded, mask)]
        asked = [(clip, query) for clip, row in enumerate(split.moments) for query in row]
        texts = [query.query for _, query in asked]
        parts = [
            model.encode_text(texts[first : first + 256]) for first in range(0, len(texts), 256)
        ]
        splits.append(
            Clips(
                model.pooling,
                model.frame_seconds,
                keys,
                (split.num_samples / split.sample_rate).tolist(),
                torch.cat(parts),
                texts,
                [clip for clip, _ in asked],
                [query.windows for _, query in asked],
                [query.qid for _, query in asked],
            )
        )
    return splits


def random_clips(num_clips: int, dim: int) -> list[Clips]:
    """Make three splits of random frames; those within a query's windows are near its text."""
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    pooling = TextAwareAttentionPooling(dim, 2 * dim, init="identity").eval()
    splits = []
    for _ in SPLITS:
        text, frames, windows = torch.randn(2 * num_clips, dim, generator=rng), [], []
        for clip in range(num_clips):
            num_frames = int(torch.randint(60, 100, (), generator=rng))
            noise = torch.randn(num_frames, dim, generator=rng)
            for query in (2 * clip, 2 * clip + 1):
                first = int(torch.randint(0, num_frames - 25, (), generator=rng))
                noise[first : first + 20] += text[query]
                windows.append(((first * 0.04, (first + 20) * 0.04),))
            frames.append(pooling.keys(noise).detach())
        number = range(2 * num_clips)
        splits.append(
            Clips(
                pooling,
                0.04,
                frames,
                [0.04 * len(clip) for clip in frames],
                text,
                [f"sound {query}" for query in number],
                [query // 2 for query in number],
                windows,
                [f"random_{query}_{1 + query % 2}of2" for query in number],
            )
        )
    return splits


def main() -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=ROOT / "runs/sample_tap/best",
        metavar="DIR",
        help="TAP model (default: runs/sample_tap/best)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=ROOT / "data/sample/cache",
        metavar="DIR",
        help="the sample corpus with times (default: data/sample/cache)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="SEED")
    parser.add_argument("--epochs", type=int, default=4, help="of each head (default: 4)")
    parser.add_argument("--num-proc", type=int, default=1, metavar="N", help="seeds at once")
    parser.add_argument(
        "--quick", action="store_true", help="random numbers and small sizes, no checkpoint"
    )
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        raise UserError(f"--epochs {arguments.epochs}: must be 1 or more")
    seeds, epochs = arguments.seeds, arguments.epochs
    if arguments.quick:
        splits, seeds, epochs = random_clips(num_clips=6, dim=16), [1], 1
    else:
        splits = sample_clips(arguments.checkpoint, arguments.cache)
    seed_rows = partial(run_seed, splits=splits, epochs=epochs)
    if arguments.num_proc == 1:
        found = list(map(seed_rows, seeds))
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.num_proc, context) as pool:
            found = list(pool.map(seed_rows, seeds))
    show(splits, found)
    return 0


if __name__ == "__main__":
    run_main(main)
