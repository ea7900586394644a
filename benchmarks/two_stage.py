"""Two-stage search against full TAP: mAP@10 and time for K candidates per text.

    python -m benchmarks.two_stage [--checkpoint runs/sample_tap/best]    # after `make demo`
    python -m benchmarks.two_stage --quick    # random numbers: shows that it runs

The first takes 2 GB and two minutes, and draws docs/two_stage.png. It measures the search's own
path: FAISS picks candidates by one vector per clip, and retrieval.search.two_stage scores them. Two
such vectors are tried: TAP's output if every frame had the same weight (the one that an index
holds), and the mean of the frames. A text whose right clip is not among its candidates counts 0.
Full TAP is `pooling.score`, all frames in memory.

Seconds are processor seconds of one thread, which other programs do not lengthen much. Two stages
include the product of TAP's matrices; no time includes the encoders. The scores of all candidates
must be those of the full matrix to 1e-6, else the exit code is 1.

Clotho's sizes: 5,225 texts, D 1024, D_p 2048, 64 clips of 375 to 750 random frames in place of
1,045. Time is then given against the share of clips that are candidates: 2 % for 20 of 1,045.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from benchmarks.pictures import check_picture
from benchmarks.timing import alternate
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError
from retrieval.data import make_clip_loader, open_cache
from retrieval.evaluation.metrics.text_audio_retrieval.ranking import metrics_of_ranks
from retrieval.evaluation.score_matrix import captions_of
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.pooling import TextAwareAttentionPooling
from retrieval.search.local.clips import IndexedClips
from retrieval.search.two_stage import TwoStage

ROOT = Path(__file__).resolve().parents[1]
CANDIDATES = (1, 2, 5, 10, 20, 30)  # and all
TEXTS_AT_ONCE, CLIPS_AT_ONCE = 256, 16
LARGEST_DIFFERENCE = 1e-6
FIRST_STAGES = ("even attention", "mean of frames")


@dataclass(frozen=True)
class Task:
    """Texts (N, D), clips of frames (T, D), and the right clip of each text, int64 (N,)."""

    pooling: TextAwareAttentionPooling
    text: Tensor
    frames: list[Tensor]
    right: Tensor

    @cached_property
    def padded(self) -> tuple[Tensor, Tensor]:
        """Frames (B, T, D) and mask bool (B, T)."""
        num_frames = torch.tensor([len(clip) for clip in self.frames])  # (B,)
        mask = torch.arange(int(num_frames.max())) < num_frames[:, None]
        return pad_sequence(self.frames, batch_first=True), mask

    @torch.no_grad()
    def full(self) -> Tensor:
        """TAP's scores (N, B) of all pairs."""
        return self.pooling.score(self.text, *self.padded)

    @torch.no_grad()
    def indexed(self, first_stage: str, dtype: torch.dtype = torch.float32) -> IndexedClips:
        """The clips as an index holds them, with vectors of one of FIRST_STAGES."""
        if first_stage == "mean of frames":
            vectors = torch.stack([clip.mean(dim=0) for clip in self.frames])
        else:
            vectors = self.pooling.clip_vectors(*self.padded)
        num_frames = np.array([len(clip) for clip in self.frames])
        return IndexedClips(
            functional.normalize(vectors).numpy(),
            self.pooling.norm(torch.cat(self.frames)).to(dtype),
            num_frames.cumsum() - num_frames,
            num_frames,
        )


def sample_task(checkpoint: Path, cache: Path, split_name: str) -> Task:
    if not checkpoint.is_dir():
        raise UserError(
            f"--checkpoint {checkpoint} is not a folder; `make demo` trains runs/sample_tap/best"
        )
    model = DualEncoder.from_pretrained(checkpoint)
    if not model.pooling.keeps_frames:
        raise UserError(
            f"--checkpoint {checkpoint} does not pool by TAP, and needs no second stage; give a TAP"
            " model"
        )
    split = open_cache(cache, model.sample_rate).split(split_name)
    captions, right = captions_of(split)
    frames = []
    with torch.no_grad():
        parts = [
            model.encode_text(captions[first : first + TEXTS_AT_ONCE])
            for first in range(0, len(captions), TEXTS_AT_ONCE)
        ]
        for waveform, lengths in make_clip_loader(
            split, range(len(split)), model.windows.clip_samples, CLIPS_AT_ONCE, num_workers=0
        ):
            encoded, mask = model.encode_audio(waveform, lengths)
            frames += [clip[valid] for clip, valid in zip(encoded, mask, strict=True)]
    return Task(model.pooling, torch.cat(parts), frames, torch.tensor(right))


def random_task(
    num_texts: int, num_clips: int, max_frames: int, dim: int, attention_dim: int
) -> Task:
    """Make clips of up to `max_frames` random frames; a text is near a frame of its right clip."""
    torch.manual_seed(0)
    pooling = TextAwareAttentionPooling(dim, attention_dim, init="identity").eval()
    num_frames = torch.linspace(max_frames / 2, max_frames, num_clips).ceil().long()  # (B,)
    frames = [torch.randn(num, dim) for num in num_frames.tolist()]
    right = torch.arange(num_texts) % num_clips  # (N,)
    text = torch.stack([frames[clip][0] for clip in right]) + torch.randn(num_texts, dim)
    return Task(pooling, text, frames, right)


def quality(candidates: Tensor, scores: Tensor, right: Tensor) -> tuple[float, float]:
    """Return mAP@10 and the share of found right clips, of candidates and scores (N, K)."""
    is_right = candidates == right[:, None]  # (N, K), at most one per row
    found = is_right.any(dim=1)
    right_scores = scores.masked_fill(~is_right, -torch.inf).amax(dim=1, keepdim=True)
    # As everywhere in the project, a clip with the right one's score stands before it; a right clip
    # that is not a candidate has no rank.
    ranks = (scores >= right_scores).sum(dim=1).double().masked_fill(~found, torch.inf).numpy()
    metrics = metrics_of_ranks([np.array([rank]) for rank in ranks])
    return metrics["mAP@10"], found.double().mean().item()


def measure(
    ways: dict[Any, Callable[[], Any]], repeats: int
) -> tuple[dict[Any, float], dict[Any, Any]]:
    """Return median processor seconds and result of each way; the ways take turns."""
    seconds, results = alternate(ways, repeats, clock=time.process_time)
    return {name: statistics.median(values) for name, values in seconds.items()}, results


def timed(
    task: Task, counts: Iterable[int], repeats: int
) -> tuple[dict[int, float], float, dict[int, tuple[Tensor, Tensor]], float]:
    """Return seconds for each K and for full TAP, clips and scores for each K, largest difference.

    The difference is that of a score from its entry in the full matrix.
    """
    clips = task.indexed(FIRST_STAGES[0])
    ways = {
        count: lambda count=count: TwoStage(task.pooling, clips).scores(task.text, count)
        for count in counts
    }
    seconds, results = measure(ways | {"full": task.full}, repeats)
    full = results.pop("full")
    difference = max(
        (full.gather(1, candidates) - scores).abs().max().item()
        for candidates, scores in results.values()
    )
    complete = results.get(len(task.frames))
    if complete is not None:  # the same order as well
        difference = max(
            difference, (full.sort(dim=1, descending=True).values - complete[1]).abs().max().item()
        )
    return seconds, seconds.pop("full"), results, difference


def curve(
    task: Task, repeats: int
) -> tuple[dict[str, dict[int, float]], dict[int, float], float, float]:
    """Print the table of a task.

    Returns:
        mAP@10 for each first stage and K; seconds for each K and of full TAP; largest difference.
    """
    num_clips = len(task.frames)
    counts = [count for count in CANDIDATES if count < num_clips] + [num_clips]
    seconds, full_seconds, results, difference = timed(task, counts, repeats)
    other = TwoStage(task.pooling, task.indexed(FIRST_STAGES[1]))
    found = {FIRST_STAGES[0]: {}, FIRST_STAGES[1]: {}}
    print(
        f"{len(task.text)} texts x {num_clips} clips, {sum(map(len, task.frames)) / num_clips:.0f}"
        f" frames per clip, D {task.text.shape[1]}"
    )
    print(f"{'':12s}{FIRST_STAGES[0]:>26s}{FIRST_STAGES[1]:>26s}")
    print(
        f"{'candidates':12s}"
        + f"{'mAP@10 %':>13s}{'among K %':>13s}" * 2
        + f"{'seconds':>12s}{'full / this':>13s}"
    )
    for count in counts:
        line = f"{count:<12d}"
        for name, result in zip(FIRST_STAGES, (results[count], other.scores(task.text, count))):
            found[name][count], among = quality(*result, task.right)
            line += f"{100 * found[name][count]:13.2f}{100 * among:13.1f}"
        print(f"{line}{seconds[count]:12.4f}{full_seconds / seconds[count]:13.2f}")
    print(f"full TAP: {full_seconds:.4f} s; largest difference of a score {difference:.1e}")
    in_half = task.indexed(FIRST_STAGES[0], torch.float16)
    half = TwoStage(task.pooling, in_half).scores(task.text, num_clips)
    shift = (task.full().gather(1, half[0]) - half[1]).abs().max()
    print(
        "frames kept in float16, all clips candidates: mAP@10"
        f" {100 * quality(*half, task.right)[0]:.2f} %, largest difference {shift:.1e}"
    )
    return found, seconds, full_seconds, difference


def time_of_shares(task: Task) -> float:
    """Print seconds against the share of candidates; return the largest difference of a score."""
    num_clips = len(task.frames)
    counts = [2**power for power in range(num_clips.bit_length()) if 2**power <= num_clips]
    seconds, full_seconds, _, difference = timed(task, counts, repeats=1)
    print(
        f"\n{len(task.text)} texts x {num_clips} clips of random numbers, D {task.text.shape[1]},"
        f" D_p {task.pooling.key.out_features}"
    )
    for count in counts:
        print(
            f"{100 * count / num_clips:6.1f} % candidates {seconds[count]:9.3f}"
            f" s{full_seconds / seconds[count]:8.2f} x full TAP's speed"
        )
    print(
        f" full TAP           {full_seconds:9.3f} s; largest difference of a score {difference:.1e}"
    )
    search = TwoStage(task.pooling, task.indexed(FIRST_STAGES[0]))
    text = task.text[:1]
    count = max(1, num_clips // 3)
    alone, _ = measure(
        {"full": replace(task, text=text).full, "two": lambda: search.scores(text, count)},
        repeats=5,
    )
    print(
        f"one text: {count} candidates {1000 * alone['two']:.1f} ms, full TAP"
        f" {1000 * alone['full']:.1f} ms"
    )
    return difference


def draw(
    path: Path, found: dict[str, dict[int, float]], seconds: dict[int, float], full_seconds: float
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from retrieval.training.tracking import BLUE, GREY, ORANGE

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for (name, values), colour in zip(found.items(), (BLUE, ORANGE)):
        left.plot(
            list(values),
            [100 * value for value in values.values()],
            "o-",
            color=colour,
            label=f"first stage: {name}",
        )
    left.axhline(
        100 * found[FIRST_STAGES[0]][max(seconds)], color=GREY, linestyle="--", label="full TAP"
    )
    left.set(ylabel="mAP@10 (%)", title="text to audio")
    right.plot(
        list(seconds),
        [1000 * value for value in seconds.values()],
        "o-",
        color=BLUE,
        label="two stages",
    )
    right.axhline(1000 * full_seconds, color=GREY, linestyle="--", label="full TAP")
    right.set(ylabel="milliseconds (one thread, all texts)", title="time to score")
    for axis in (left, right):
        axis.set(
            xlabel="candidates per text, K",
            xscale="log",
            ylim=(0, None),
            xticks=list(seconds),
            xticklabels=list(seconds),
        )
        axis.minorticks_off()
        axis.legend(frameon=False, loc="lower right")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    print(f"drawn: {path}")


def main() -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "runs/sample_tap/best")
    parser.add_argument("--cache", type=Path, default=ROOT / "data/sample/cache")
    parser.add_argument("--split", default="evaluation")
    parser.add_argument(
        "--output",
        type=Path,
        help="picture to write (default: docs/two_stage.png, and none with --quick)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="random numbers and small sizes, no checkpoint"
    )
    arguments = parser.parse_args()
    output = arguments.output or (None if arguments.quick else ROOT / "docs/two_stage.png")
    if output is not None:
        check_picture(output)
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    if arguments.quick:
        task, large, repeats = random_task(60, 15, 12, 16, 32), random_task(50, 6, 20, 16, 32), 1
    else:
        task, large, repeats = (
            sample_task(arguments.checkpoint, arguments.cache, arguments.split),
            None,
            7,
        )
    found, seconds, full_seconds, difference = curve(task, repeats)
    if output is not None:
        draw(output, found, seconds, full_seconds)
    difference = max(difference, time_of_shares(large or random_task(5225, 64, 750, 1024, 2048)))
    if difference > LARGEST_DIFFERENCE:
        print(
            f"error: scores differ from the full matrix by {difference:.1e}, more than"
            f" {LARGEST_DIFFERENCE:.0e}",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    run_main(main)
