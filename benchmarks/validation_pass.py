"""A validation pass at full size against the plain way: the same scores, several times faster.

    # CPU, 8 clips x 40 captions, some minutes; exits with 1 below 5x
    python -m benchmarks.validation_pass [--precision bf16]
    # tiny sizes, the ratio is not judged
    python -m benchmarks.validation_pass --quick

The model of configs/tap.yaml with random weights; clips of noise with lengths spread evenly over 15
to 30 s, as in Clotho, five captions each. Ours is retrieval.evaluation.similarity_matrix, with its
batch sizes: each clip is encoded once and scored at once. Plain goes through the (clip, caption)
pairs as a training epoch does, 16 per batch, so that it encodes each clip five times, with all its
windows (benchmarks/plain.py). Then it scores all captions clip by clip with TAP's formula. Both
alternate in one process, after a pass of ours to warm up; scores must agree to 1e-5. On all 1,045
clips scoring takes a larger share of the time: each caption meets each clip.

--precision bf16 adds a third way: ours with encoders in bf16, as in evaluate.py --mixed-precision
bf16. Its scores differ more, and are not judged.
"""

import argparse
import statistics
import sys
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from benchmarks import plain
from benchmarks.full_size import CAPTIONS_A_CLIP, hardware
from benchmarks.timing import alternate, is_too_slow
from benchmarks.training_step import make_captions, make_clips, make_model, report
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError
from retrieval.data import collate_clips
from retrieval.evaluation.score_matrix import similarity_matrix
from retrieval.models.dual_encoder import DualEncoder

LEAST_RATIO = 5.0
TOLERANCE = 1e-5
PAIRS_AT_ONCE = 16  # as in the ancestor's training
TEXTS_AT_ONCE = 8  # captions of one length meet, as they do in batches of 256 of all 5,225


@dataclass(frozen=True)
class NoiseSplit:
    """A ClipSplit in memory, with the parts that similarity_matrix reads."""

    waveforms: list[np.ndarray]  # float32 (S,) each
    name: str = "noise"
    holds_frames: bool = False

    @property
    def num_samples(self) -> list[int]:
        return [len(waveform) for waveform in self.waveforms]

    def __len__(self) -> int:
        return len(self.waveforms)

    def read_stored(self, index: int, start: int, stop: int) -> np.ndarray:
        return self.waveforms[index][start:stop]


@torch.no_grad()
def plain_matrix(model: DualEncoder, captions: list[str], split: NoiseSplit) -> torch.Tensor:
    """Score (N, B) in the plain way; caption n was written for clip n // CAPTIONS_A_CLIP."""
    texts, frames, masks = [], [], []
    for first in range(0, len(captions), PAIRS_AT_ONCE):
        pairs = range(first, min(first + PAIRS_AT_ONCE, len(captions)))
        waveform, lengths = collate_clips(
            [split.waveforms[pair // CAPTIONS_A_CLIP] for pair in pairs]
        )
        waveform = waveform.to(model.temperature.device)
        encoded, mask = plain.encode_audio(model, waveform, lengths)
        # A clip's frames come five times; plain keeps and scores one of them.
        kept = [place for place, pair in enumerate(pairs) if pair % CAPTIONS_A_CLIP == 0]
        frames.append(encoded[kept])
        masks.append(mask[kept])
        texts.append(plain.encode_text(model, captions[first : pairs.stop]))
    # (N, D), (B, T, D), (B, T)
    text, frames, mask = torch.cat(texts), torch.cat(frames), torch.cat(masks)
    columns = [
        plain.score(model.pooling, text, frames[clip : clip + 1], mask[clip : clip + 1])
        for clip in range(len(split))
    ]
    return torch.cat(columns, dim=1)


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny model; the ratio is not judged")
    parser.add_argument(
        "--num-clips", type=int, default=8, help="with five captions each (default: 8)"
    )
    parser.add_argument(
        "--repeats", type=int, default=1, help="timed passes of each way (default: 1)"
    )
    parser.add_argument(
        "--precision",
        choices=("no", "bf16"),
        default="no",
        help="bf16: also time ours with encoders in bf16 (default: no)",
    )
    arguments = parser.parse_args(argv)
    for name in ("num_clips", "repeats"):
        if getattr(arguments, name) < 1:
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(arguments, name)}: must be 1 or more"
            )
    model, config = make_model(arguments.quick)
    model.eval()
    split = NoiseSplit(make_clips(arguments.num_clips, model.sample_rate))
    captions = make_captions(arguments.num_clips * CAPTIONS_A_CLIP)
    print(
        f"{len(split)} clips x {len(captions)} captions of Clotho's 1,045 x 5,225;"
        f" {torch.get_num_threads()} threads; {hardware()}",
        flush=True,
    )
    sizes = {
        "audio_batch_size": config.evaluation.audio_batch_size,
        "text_batch_size": TEXTS_AT_ONCE,
    }
    ways = {
        "ours": lambda: similarity_matrix(model, captions, split, **sizes),
        "plain": lambda: plain_matrix(model, captions, split),
    }
    if arguments.precision == "bf16":
        autocast = partial(torch.autocast, "cpu", torch.bfloat16)
        ways["bf16"] = lambda: similarity_matrix(model, captions, split, **sizes, autocast=autocast)
        ways["bf16"]()
    ways["ours"]()
    seconds, scores = alternate(ways, arguments.repeats)
    difference = (scores["ours"] - scores["plain"]).abs().max().item()
    print(f"largest difference of a score {difference:.1e}")
    ratio = report(seconds)
    if "bf16" in ways:
        of_bf16 = (scores["bf16"] - scores["plain"]).abs().max().item()
        quicker = statistics.median(seconds["plain"]) / statistics.median(seconds["bf16"])
        print(f"ratio of bf16 {quicker:.2f}, scores differ by up to {of_bf16:.1e}")
    if not difference <= TOLERANCE:
        print(f"error: scores differ by more than {TOLERANCE:.0e}", file=sys.stderr)
        return 1
    return int(not arguments.quick and is_too_slow(ratio, LEAST_RATIO))


if __name__ == "__main__":
    run_main(main)
