"""What goes to TensorBoard: scalars, metrics, pictures of the validation, attention over time,
hyperparameters.

    tensorboard --logdir runs

Figures are matplotlib's object API drawn by Agg: no display, no state that outlives a picture.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from retrieval.base.extras import MissingExtraError, needs_extra
from retrieval.evaluation.attention import listen
from retrieval.evaluation.ranks import DIRECTIONS, rank_histogram

if TYPE_CHECKING:  # imported where a picture is drawn: it takes most of a second of every command
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

BLUE, ORANGE, GREY = "#2a6f97", "#e07a3f", "#8a8f98"
MAX_CLIPS_DRAWN = 200


class Tracker:
    """Writes to `run_dir`; with `enabled` false (all processes but the first) every call does
    nothing.

    resume_step: the first step that will be written again; what an interrupted run wrote from there
    on is hidden.
    """

    def __init__(self, run_dir: str | Path, resume_step: int | None, enabled: bool):
        self.writer = _open_writer(run_dir, resume_step) if enabled else None
        self.clips_written: set[int] = set()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One point in the curve of each name, such as train/loss."""
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def validation(self, step: int, result: Any) -> None:
        """Metrics of both directions, score matrix and rank histogram of an
        evaluation.EvaluationResult.
        """
        if self.writer is None:
            return
        for direction, metrics in result.metrics.items():
            self.scalars(
                step,
                {f"{result.split}/{direction}/{name}": value for name, value in metrics.items()},
            )
        self._figure(
            f"{result.split}/scores", score_figure(result.scores.numpy(), result.clips), step
        )
        self._figure(f"{result.split}/ranks", rank_figure(result.ranks), step)
        self.writer.flush()

    def attention_examples(
        self, step: int, model: torch.nn.Module, split: Any, num_pictures: int
    ) -> None:
        """For `num_pictures` clips spread over a ClipSplit, each with its first caption: picture,
        and once the sound.
        """
        if self.writer is None:
            return
        captioned = [clip for clip, captions in enumerate(split.captions) if captions]
        num_pictures = min(num_pictures, len(captioned))
        for clip in (
            captioned[picture * len(captioned) // num_pictures] for picture in range(num_pictures)
        ):
            waveform = torch.from_numpy(
                split.read(clip, 0, round(model.clip_seconds * model.sample_rate))
            )  # (S,)
            name = f"{split.name}_examples/{split.file_names[clip]}"
            self._figure(name, attention_figure(model, waveform, split.captions[clip][0]), step)
            # a single sample is no sound to add_audio
            if clip not in self.clips_written and len(waveform) > 1:
                self.writer.add_audio(name, waveform[None], step, sample_rate=model.sample_rate)
                self.clips_written.add(clip)
        self.writer.flush()

    def hparams(self, settings: dict[str, Any], metrics: dict[str, Any]) -> None:
        """Flat settings with final metrics (nested names are joined), for the HPARAMS page."""
        if self.writer is None:
            return
        from torch.utils.tensorboard.summary import hparams

        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in settings.items()
        }
        final = {f"final/{name}": value for name, value in _flatten(metrics).items()}
        # SummaryWriter.add_hparams would open a second run folder inside this one; the same
        # summaries do without.
        for summary in hparams(plain, final):
            self.writer.file_writer.add_summary(summary)
        self.scalars(0, final)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _figure(self, name: str, figure: "Figure", step: int) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        self.writer.add_image(
            name, np.asarray(canvas.buffer_rgba())[..., :3], step, dataformats="HWC"
        )


def _open_writer(run_dir: str | Path, resume_step: int | None) -> "SummaryWriter | None":
    """Return a writer of TensorBoard's files, or None and a note if a package is missing."""
    try:
        with needs_extra("tracking"):
            import matplotlib  # noqa: F401 (draws the pictures)
            from torch.utils.tensorboard import SummaryWriter
    except MissingExtraError as error:
        print(f"note: nothing is written for TensorBoard: {error}", file=sys.stderr)
        return None
    return SummaryWriter(str(run_dir), purge_step=resume_step)


def attention_figure(model: torch.nn.Module, waveform: torch.Tensor, *captions: str) -> "Figure":
    """Log-mel spectrogram of a clip and under it what each caption listens to; arguments as of
    `listen`.

    A weight of 1 is the uniform one, that of mean pooling; with mean pooling there is only the
    spectrogram.
    """
    log_mel, weights, seconds = listen(model, waveform, list(captions))
    num_curves = 0 if weights is None else len(captions)
    figure = _new_figure(figsize=(8.0, 2.9 + 1.25 * num_curves), dpi=100)
    axes = figure.subplots(
        1 + num_curves, 1, sharex=True, squeeze=False, height_ratios=[2.0] + [1.0] * num_curves
    )[:, 0]
    _draw_log_mel(axes[0], log_mel, seconds)
    for axis, curve in zip(axes[1:], [] if weights is None else weights):
        _draw_attention(axis, curve, seconds)
    # One caption is the picture's title; of several each stands above its own curve.
    for axis, caption in zip(axes[1:] if num_curves > 1 else axes, captions):
        axis.set_title(caption, fontsize=10, loc="left", wrap=True, parse_math=False)
    axes[-1].set_xlabel("time (s)")
    return figure


def score_figure(scores: np.ndarray, clips: list[int]) -> "Figure":
    """The matrix (captions x clips), captions ordered by clip, so that the right pairs lie on the
    diagonal.

    Of many clips an even choice is drawn: the diagonal of a thousand would be thinner than a pixel.
    """
    num_clips = scores.shape[1]
    num_drawn = min(num_clips, MAX_CLIPS_DRAWN)
    drawn = np.arange(num_drawn) * num_clips // num_drawn
    order = np.argsort(clips, kind="stable")
    scores = scores[order[np.isin(np.asarray(clips)[order], drawn)]][:, drawn]
    figure = _new_figure(figsize=(6.4, 5.6), dpi=120)
    axis = figure.subplots()
    # A few extreme scores would otherwise leave the whole rest in one shade.
    low, high = np.percentile(scores, [1, 99.9])
    image = axis.imshow(
        scores, aspect="auto", cmap="magma", vmin=low, vmax=high, interpolation="nearest"
    )
    axis.set_xlabel("clip")
    axis.set_ylabel("caption, in the order of the clips")
    axis.set_title(
        f"cosine of captions with clips, {num_drawn} of {num_clips} clips", fontsize=11, loc="left"
    )
    figure.colorbar(image, ax=axis, shrink=0.8, pad=0.02).outline.set_visible(False)
    return figure


def rank_figure(ranks: dict[str, list[np.ndarray]]) -> "Figure":
    """Share of queries by the rank of their best relevant candidate, both directions side by
    side.
    """
    from matplotlib import ticker

    bars, counts, medians = rank_histogram(ranks)
    figure = _new_figure(figsize=(7.2, 3.6), dpi=100)
    axis = figure.subplots()
    for offset, color, direction in zip((-0.2, 0.2), (BLUE, ORANGE), ranks):
        title = f"{DIRECTIONS[direction]}, median rank {medians[direction]:g}"
        axis.bar(
            np.arange(len(bars)) + offset,
            counts[direction] / len(ranks[direction]),
            width=0.4,
            color=color,
            label=title,
        )
    axis.set_xticks(range(len(bars)), bars, fontsize=9)
    axis.yaxis.set_major_formatter(ticker.PercentFormatter(xmax=1, decimals=0))
    axis.set_xlabel("rank of the best right answer")
    axis.set_ylabel("share of queries")
    axis.legend(frameon=False)
    _plain_frame(axis)
    return figure


def _new_figure(**settings: Any) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(layout="constrained", **settings)


def _draw_log_mel(axis: "Axes", log_mel: np.ndarray, seconds: float) -> None:
    # The zero padding of short clips and other digital silence would take up most of the colours.
    low, high = np.percentile(log_mel, [5, 99.8])
    axis.imshow(
        log_mel,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=low,
        vmax=high,
        extent=(0, seconds, 0, len(log_mel)),
    )
    axis.set_ylabel("mel band")


def _draw_attention(axis: "Axes", weights: np.ndarray, seconds: float) -> None:
    """weights (T,) of the valid frames, which share the clip's time evenly."""
    edges = np.linspace(0, seconds, len(weights) + 1)
    relative = weights * len(weights)
    axis.stairs(relative, edges, fill=True, color=ORANGE, alpha=0.35)
    axis.stairs(relative, edges, color=ORANGE, linewidth=1.0, baseline=None)
    axis.axhline(1, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    axis.set_ylim(0, max(2.0, 1.08 * float(relative.max())))
    axis.set_xlim(0, seconds)
    axis.set_ylabel("attention\n(1 = uniform)", fontsize=9)
    _plain_frame(axis)


def _plain_frame(axis: "Axes") -> None:
    axis.spines[["top", "right"]].set_visible(False)


def _flatten(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        flat.update(
            _flatten(value, f"{prefix}{name}/")
            if isinstance(value, dict)
            else {prefix + name: value}
        )
    return flat
