"""Curves, metrics, pictures and hyperparameters of a run, in TensorBoard and other trackers.

    tensorboard --logdir runs

TensorBoard gets all of it. The others (services.py) get curves, settings and final metrics, and
pictures where Accelerate's tracker takes them.

Figures use matplotlib's object API and Agg: no display, no state that outlives a picture.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.tracking import TensorBoardTracker

from retrieval.base.extras import MissingExtraError, needs_extra
from retrieval.config.text import flatten
from retrieval.data import MomentQuery
from retrieval.evaluation.attention import listen, spectrogram
from retrieval.evaluation.metrics.text_audio_retrieval.ranking import (
    DIRECTIONS,
    rank_histogram,
)
from retrieval.moments.locator import Locator
from retrieval.training.services import SERVICES, open_services

if TYPE_CHECKING:  # imported where a picture is drawn: it takes most of a second of every command
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

BLUE, ORANGE, GREY = "#2a6f97", "#e07a3f", "#8a8f98"
MAX_CLIPS_DRAWN = 200


class Tracker:
    """Writer of a run's curves, metrics and pictures.

    Args:
        run_dir: Folder of the run.
        resume_step: First step that is written again; points from there on, which an interrupted
            run wrote, are hidden in TensorBoard. None for a new run.
        enabled: False makes every call do nothing: on all processes but the first.
        names: Of the trackers, as in train.tracker.
        settings: Of the run, by flat name, such as train.epochs.

    Raises:
        UserError: A tracker does not start.
    """

    def __init__(
        self,
        run_dir: str | Path,
        resume_step: int | None,
        enabled: bool,
        names: Sequence[str],
        settings: dict[str, Any],
    ):
        self.settings = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in settings.items()
        }
        self.writer, self.services = None, []
        if enabled and "tensorboard" in names:
            self.writer = _open_writer(run_dir, resume_step)
        if enabled and set(names) & SERVICES.keys():
            is_resumed = resume_step is not None
            self.services = open_services(list(names), Path(run_dir), is_resumed, self.settings)
        self.clips_written: set[int] = set()
        self.last_step = 0

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write one point in the curve of each name, such as train/loss."""
        self.last_step = step
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
        for service in self.services:
            service.scalars(step, values)

    def validation(self, step: int, result: Any) -> None:
        """Write metrics of both directions, score matrix and rank histogram.

        Args:
            step: Steps done.
            result: evaluation.EvaluationResult of the validation split.
        """
        if self.writer is None and not self.services:
            return
        split = result.split
        self.scalars(step, result.curves)
        if self._takes_pictures:
            self._figure(f"{split}/scores", score_figure(result.scores.numpy(), result.clips), step)
            self._figure(f"{split}/ranks", rank_figure(result.ranks), step)
        if self.writer is not None:
            self.writer.flush()

    def attention_examples(
        self, step: int, model: torch.nn.Module, split: Any, num_pictures: int
    ) -> None:
        """Write attention pictures, and once the sounds, of clips with their first captions.

        Sounds go to TensorBoard.

        Args:
            step: Steps done.
            model: A DualEncoder.
            split: A ClipSplit.
            num_pictures: Clips, spread evenly over the split.
        """
        if not self._takes_pictures:
            return
        captioned = [clip for clip, captions in enumerate(split.captions) if captions]
        num_pictures = min(num_pictures, len(captioned))
        num_samples = round(model.clip_seconds * model.sample_rate)
        for picture in range(num_pictures):
            clip = captioned[picture * len(captioned) // num_pictures]
            waveform = torch.from_numpy(split.read(clip, 0, num_samples))  # (S,)
            name = f"{split.name}_examples/{split.file_names[clip]}"
            self._figure(name, attention_figure(model, waveform, split.captions[clip][0]), step)
            # add_audio fails on a single sample
            is_new = clip not in self.clips_written and len(waveform) > 1
            if is_new and self.writer is not None:
                self.writer.add_audio(name, waveform[None], step, sample_rate=model.sample_rate)
                self.clips_written.add(clip)
        if self.writer is not None:
            self.writer.flush()

    def moment_examples(
        self, step: int, model: torch.nn.Module, split: Any, num_pictures: int
    ) -> None:
        """Write pictures of spectrogram, true times and answers, of clips with their first queries.

        Arguments as for `attention_examples`; the split has moments, the model a moment head.
        """
        if not self._takes_pictures:
            return
        asked = [clip for clip, queries in enumerate(split.moments) if queries]
        num_pictures = min(num_pictures, len(asked))
        for picture in range(num_pictures):
            clip = asked[picture * len(asked) // num_pictures]
            waveform = torch.from_numpy(split.read(clip))  # (S,)
            name = f"{split.name}_moments/{split.file_names[clip]}"
            self._figure(name, moment_figure(model, waveform, split.moments[clip][0]), step)
        if self.writer is not None:
            self.writer.flush()

    def final(self, metrics: dict[str, Any]) -> None:
        """Write the final metrics, and the settings for TensorBoard's HPARAMS page.

        Args:
            metrics: Nested; the names of the levels are joined.
        """
        flat = flatten(metrics)
        curves = {f"final/{name.replace('.', '/')}": value for name, value in flat.items()}
        if self.writer is not None:
            from torch.utils.tensorboard.summary import hparams

            # Not SummaryWriter.add_hparams, nor Accelerate's store_init_configuration, which would
            # open a second run folder inside this one.
            for summary in hparams(self.settings, curves):
                self.writer.file_writer.add_summary(summary)
            for name, value in curves.items():
                self.writer.add_scalar(name, value, 0)
        for service in self.services:
            service.scalars(self.last_step, curves)  # wandb takes no earlier step
            service.table(self.last_step, "final", flat)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        for service in self.services:
            service.close()

    @property
    def _takes_pictures(self) -> bool:
        return self.writer is not None or any(service.takes_pictures for service in self.services)

    def _figure(self, name: str, figure: "Figure", step: int) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        if self.writer is not None:
            self.writer.add_image(name, pixels, step, dataformats="HWC")
        for service in self.services:
            service.picture(step, name, pixels)


def _open_writer(run_dir: str | Path, resume_step: int | None) -> "SummaryWriter | None":
    """Return a writer of TensorBoard's files, or None and a note if a package is missing."""
    try:
        with needs_extra("tracking"):
            import matplotlib  # noqa: F401 (draws the pictures)
            import torch.utils.tensorboard  # noqa: F401 (without it Accelerate tries tensorboardX)
    except MissingExtraError as error:
        print(f"note: nothing is written for TensorBoard: {error}", file=sys.stderr)
        return None
    # no name of its own: files lie in the run folder, not in a folder below it
    tracker = TensorBoardTracker("", str(run_dir), purge_step=resume_step)
    tracker.start()
    return tracker.writer


def attention_figure(model: torch.nn.Module, waveform: torch.Tensor, *captions: str) -> "Figure":
    """Draw the log-mel spectrogram of a clip, and under it each caption's attention over time.

    A weight of 1 is the uniform one, that of mean pooling; a model with mean pooling gets the
    spectrogram only.

    Args:
        model: A DualEncoder in any mode.
        waveform: float32 (S,) at model.sample_rate Hz.
        captions: A curve each.
    """
    log_mel, weights, seconds = listen(model, waveform, list(captions))
    curves = [] if weights is None else weights  # (T,) of the valid frames each
    figure = _new_figure(figsize=(8.0, 2.9 + 1.25 * len(curves)), dpi=100)
    heights = [2.0] + [1.0] * len(curves)
    rows = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
    top, *below = rows[:, 0]
    _draw_log_mel(top, log_mel, seconds)
    for axis, curve in zip(below, curves, strict=True):
        edges = np.linspace(0, seconds, len(curve) + 1)  # the frames share the time evenly
        relative = curve * len(curve)
        axis.stairs(relative, edges, fill=True, color=ORANGE, alpha=0.35)
        axis.stairs(relative, edges, color=ORANGE, linewidth=1.0, baseline=None)
        axis.axhline(1, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        axis.set_ylim(0, max(2.0, 1.08 * float(relative.max())))
        axis.set_xlim(0, seconds)
        axis.set_ylabel("attention\n(1 = uniform)", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    # One caption is the picture's title; of several each stands above its own curve.
    titled = below if len(below) > 1 else [top]
    for axis, caption in zip(titled, captions, strict=False):
        axis.set_title(caption, fontsize=10, loc="left", wrap=True, parse_math=False)
    rows[-1, 0].set_xlabel("time (s)")
    return figure


def moment_figure(model: torch.nn.Module, waveform: torch.Tensor, query: MomentQuery) -> "Figure":
    """Draw a clip's spectrogram with the true windows, and the curve with the answers below it.

    Args:
        model: A DualEncoder that locates moments, in any mode.
        waveform: float32 (S,) at model.sample_rate Hz, of any length.
        query: The sentence and its windows.
    """
    locator = Locator(model)
    located = locator.locate(locator.encode_text([query.query]), locator.hear([waveform.numpy()]))
    heard = waveform[: round(model.clip_seconds * model.sample_rate)]
    figure = _new_figure(figsize=(8.0, 4.2), dpi=100)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2.0, 1.0])
    _draw_log_mel(above, spectrogram(model, heard), len(heard) / model.sample_rate)
    above.set_title(query.query, fontsize=10, loc="left", wrap=True, parse_math=False)
    for start, end in query.windows:
        for axis in (above, below):
            axis.axvspan(start, end, color=BLUE, alpha=0.25, label="truth")
    curve = located.curves[0]
    times = (np.arange(len(curve)) + 0.5) * located.frame_seconds
    below.plot(times, curve, color=ORANGE, linewidth=1.0)
    top = max(1.0, float(curve.max()))
    for place, moment in enumerate(located.moments[0]):
        weight = 3.0 if place == 0 else 1.0
        below.hlines(1.05 * top, moment.start, moment.end, color=ORANGE, linewidth=weight)
    below.set_xlim(0, located.seconds)
    below.set_ylabel("heard, blue: truth", fontsize=9)
    below.set_xlabel("time (s)")
    below.spines[["top", "right"]].set_visible(False)
    return figure


def score_figure(scores: np.ndarray, clips: list[int]) -> "Figure":
    """Draw the score matrix with the right pairs on the diagonal.

    Of many clips every k-th is drawn: the diagonal of a thousand would be thinner than a pixel.

    Args:
        scores: float (captions, clips).
        clips: The clip of each caption; captions are drawn in this order.
    """
    num_clips = scores.shape[1]
    num_drawn = min(num_clips, MAX_CLIPS_DRAWN)
    drawn = np.arange(num_drawn) * num_clips // num_drawn
    order = np.argsort(clips, kind="stable")
    scores = scores[order[np.isin(np.asarray(clips)[order], drawn)]][:, drawn]
    figure = _new_figure(figsize=(6.4, 5.6), dpi=120)
    axis = figure.subplots()
    # Without limits a few extreme scores would leave all others in one shade.
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
    """Draw the share of queries by the rank of their best right answer, for both directions.

    Args:
        ranks: By direction, the ranks of the relevant candidates of each query, from 1 on.
    """
    from matplotlib import ticker

    bars, counts, medians = rank_histogram(ranks)
    figure = _new_figure(figsize=(7.2, 3.6), dpi=100)
    axis = figure.subplots()
    for offset, color, direction in zip((-0.2, 0.2), (BLUE, ORANGE), ranks, strict=True):
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
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_log_mel(axis: "Axes", log_mel: np.ndarray, seconds: float) -> None:
    """Draw a spectrogram (mels, columns) of a sound of some seconds."""
    # The zero padding of short clips and other digital silence would take up most of the colours.
    low, high = np.percentile(log_mel, [5, 99.8])
    extent = (0, seconds, 0, len(log_mel))
    colours = {"cmap": "magma", "vmin": low, "vmax": high}
    axis.imshow(log_mel, origin="lower", aspect="auto", extent=extent, **colours)
    axis.set_ylabel("mel band")


def _new_figure(**settings: Any) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(layout="constrained", **settings)
