"""TAP scores with Clotho's shapes: folded against the paper's formula.

The numbers are the same, with a sixth of the arithmetic and bounded memory.

    # 5,225 texts x 16 clips of up to 750 frames, D 1024, D_p 2048; exits with 1 below 5x
    python -m benchmarks.tap_scoring
    # small sizes, any ratio: shows that it runs and that the scores agree
    python -m benchmarks.tap_scoring --quick

Folded is `TextAwareAttentionPooling.score`, whose memory `pooling.block_elements` bounds. Plain is
the formula of the paper, audio by audio, as the ancestor scores: each call computes its own
queries, on frames padded to 30 s. Both alternate in one process. The clips are a sample of the
1,045 of a split of Clotho, 15 to 30 s long; the time of both ways grows with their number. Memory
is the growth of a fresh process's largest resident set while it scores, for two settings of
`pooling.block_elements`.
"""

import argparse
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.timing import alternate, is_too_slow
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError
from retrieval.models.pooling import TextAwareAttentionPooling

LEAST_RATIO = 5.0
LARGEST_DIFFERENCE = 1e-6
NUM_CLIPS_OF_SPLIT = 1045  # Clotho's validation and evaluation split
BLOCKS = (2**20, 2**24)  # pooling.block_elements whose memory is compared


class Sizes(NamedTuple):
    num_texts: int
    num_clips: int
    num_frames: int  # of 30 s
    dim: int
    attention_dim: int
    repeats: int


FULL = Sizes(num_texts=5225, num_clips=16, num_frames=750, dim=1024, attention_dim=2048, repeats=3)
QUICK = Sizes(num_texts=50, num_clips=3, num_frames=75, dim=64, attention_dim=128, repeats=1)


def unfolded_score(
    module: TextAwareAttentionPooling, text: Tensor, frames: Tensor, mask: Tensor
) -> Tensor:
    """Score text (N, D) and frames (B, T, D), mask (B, T), audio by audio: (N, B)."""
    columns = []
    for audio, valid in zip(frames, mask):
        query = module.query(module.norm(text))  # (N, D_p)
        key, value = module.key(module.norm(audio)), module.value(module.norm(audio))  # (T, D_p)
        weights = (
            (query @ key.T / math.sqrt(key.shape[1])).masked_fill(~valid, -math.inf).softmax(dim=1)
        )  # (N, T)
        columns.append(
            functional.cosine_similarity(text, module.norm(module.output(weights @ value)), dim=1)
        )
    return torch.stack(columns, dim=1)


def make_inputs(sizes: Sizes) -> tuple[TextAwareAttentionPooling, Tensor, Tensor, Tensor]:
    """Make a module, text (N, D), frames (B, T, D) and mask (B, T).

    Half to all of a clip's frames are valid.
    """
    torch.manual_seed(0)
    module = TextAwareAttentionPooling(sizes.dim, sizes.attention_dim).eval()
    text, frames = (
        torch.randn(sizes.num_texts, sizes.dim),
        torch.randn(sizes.num_clips, sizes.num_frames, sizes.dim),
    )
    num_valid = torch.linspace(sizes.num_frames / 2, sizes.num_frames, sizes.num_clips).ceil()
    return module, text, frames, torch.arange(sizes.num_frames) < num_valid[:, None]


def compare(sizes: Sizes) -> tuple[float, float]:
    """Print a table. Returns plain seconds / folded seconds, and the largest difference."""
    module, text, frames, mask = make_inputs(sizes)
    ways = {
        "plain": lambda: unfolded_score(module, text, frames, mask),
        "folded": lambda: module.score(text, frames, mask),
    }
    ways["bf16"] = torch.autocast("cpu", torch.bfloat16)(ways["folded"])
    alternate(ways, 1)  # to warm up
    seconds, scores = alternate(ways, sizes.repeats)
    for name, values in seconds.items():
        median = statistics.median(values)
        whole = median * NUM_CLIPS_OF_SPLIT / sizes.num_clips
        print(
            f"{name:8s} median {median:8.4f} s   {NUM_CLIPS_OF_SPLIT:,} clips at this speed:"
            f" {whole:6.0f} s (computed)"
        )
    difference = (scores["folded"] - scores["plain"]).abs().max().item()
    ratio = statistics.median(
        plain / folded for plain, folded in zip(seconds["plain"], seconds["folded"])
    )  # of rounds: a busy machine slows both
    half = statistics.median(seconds["folded"]) / statistics.median(seconds["bf16"])
    print(
        f"bf16: {half:.2f} times as fast as folded, scores differ by up to"
        f" {(scores['bf16'] - scores['folded']).abs().max():.1e}"
    )
    print(
        f"ratio {ratio:.2f}, {mask.sum() / mask.numel():.0%} of the frames valid, largest"
        f" difference of a score {difference:.1e}"
    )
    return ratio, difference


def print_growth(sizes: Sizes, block_elements: int) -> None:
    """Print the MB that scoring adds to the largest resident set; runs in its own process."""
    module, text, frames, mask = make_inputs(sizes)
    module.block_elements = block_elements
    # libraries take memory of their own at the first call
    module.score(text[:2], frames[:1], mask[:1])
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident set starts anew
    before = _largest_resident_kb()
    module.score(text, frames, mask)
    print((_largest_resident_kb() - before) / 1024)


def _largest_resident_kb() -> int:
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])


def report_memory(own_arguments: list[str]) -> None:
    for block_elements in BLOCKS:
        command = [
            sys.executable,
            "-m",
            "benchmarks.tap_scoring",
            *own_arguments,
            "--growth",
            str(block_elements),
        ]
        result = subprocess.run(
            command, cwd=Path(__file__).parents[1], capture_output=True, text=True
        )
        if result.returncode:
            raise UserError(
                f"the process that measures memory ended with exit code {result.returncode}; is"
                " enough memory free?"
            )
        in_block = 4 * block_elements / 1e6
        print(
            f"pooling.block_elements {block_elements:10,}: {in_block:5.1f} MB in a block, scoring"
            f" adds {float(result.stdout):6.1f} MB"
        )


def main() -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes; the ratio is not judged")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads wait for each other where other programs run too (default: 1)",
    )
    parser.add_argument("--growth", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads < 1:
        parser.error(f"--threads {arguments.threads}: must be 1 or more")
    torch.set_num_threads(arguments.threads)
    sizes = QUICK if arguments.quick else FULL
    with torch.no_grad():
        if arguments.growth:
            print_growth(sizes, arguments.growth)
            return 0
        shapes = f"T {sizes.num_frames}, D {sizes.dim}, D_p {sizes.attention_dim}"
        print(
            f"{sizes.num_texts:,} texts x {sizes.num_clips} clips, {shapes}, float32,"
            f" {arguments.threads} thread(s)",
            flush=True,
        )
        ratio, difference = compare(sizes)
        report_memory(
            [*(["--quick"] if arguments.quick else []), "--threads", str(arguments.threads)]
        )
    if difference > LARGEST_DIFFERENCE:
        print(
            f"error: folded and plain scores differ by {difference:.1e}, more than"
            f" {LARGEST_DIFFERENCE:.0e}",
            file=sys.stderr,
        )
        return 1
    return int(not arguments.quick and is_too_slow(ratio, LEAST_RATIO))


if __name__ == "__main__":
    run_main(main)
