"""100,000 clips x 1,000 queries with mean pooling: metrics and best ten of a query, within 4 GB.

    python -m benchmarks.large_collection            # 12 s on two free cores; fails above 4 GB
    python -m benchmarks.large_collection --quick    # 2,000 x 50, with the same limit

One vector of 1,024 random numbers stands for a clip under mean pooling; each query is its right
clip with much noise. A process of its own makes the clips block by block. First `MeanPooling.score`
fills the score matrix, whose metrics are computed; then retrieval.search.two_stage (FAISS) finds
the best ten of every query from the vectors, without a matrix. Both must agree, else the exit code
is 1. Memory is the largest resident set that the operating system counted for that process, with
Python and PyTorch.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError

if TYPE_CHECKING:
    from torch import Tensor

MOST_GB = 4.0
CLIPS_AT_ONCE = 4096
NUM_TOP = 10
DIM = 1024
LEAST_SAME = 0.999  # rounding may swap two clips with almost equal scores
# standard deviation, that of the clips being 1: the right clip is found often, not always
NOISE = 8.0


def blocks(num_clips: int) -> Iterator[tuple[int, "Tensor"]]:
    """Yield first clip and vectors (b, D) of each block; the same ones at every call."""
    import torch

    for first in range(0, num_clips, CLIPS_AT_ONCE):
        generator = torch.Generator().manual_seed(first)
        yield first, torch.randn(min(CLIPS_AT_ONCE, num_clips - first), DIM, generator=generator)


def work(num_clips: int, num_queries: int) -> int:
    """Score both ways, in a process of its own; return exit code 1 if they disagree."""
    import torch

    from retrieval.evaluation.result import retrieval_metrics
    from retrieval.models.pooling import MeanPooling
    from retrieval.search.local.clips import IndexedClips
    from retrieval.search.two_stage import TwoStage

    pooling, generator = MeanPooling(), torch.Generator().manual_seed(num_clips)
    right = torch.randperm(num_clips, generator=generator)[:num_queries]  # (N,)
    text = NOISE * torch.randn(num_queries, DIM, generator=generator)  # (N, D)
    for first, vectors in blocks(num_clips):
        own = (right >= first) & (right < first + len(vectors))
        text[own] += vectors[right[own] - first]

    start = time.perf_counter()
    scores = torch.empty(num_queries, num_clips)  # (N, B)
    for first, vectors in blocks(num_clips):
        mask = torch.ones(len(vectors), 1, dtype=torch.bool)
        scores[:, first : first + len(vectors)] = pooling.score(text, vectors[:, None], mask)
    print(f"score matrix, clips made in blocks: {time.perf_counter() - start:.1f} s")
    start = time.perf_counter()
    metrics = retrieval_metrics(scores, right[:, None].tolist())
    print(
        f"ranks and metrics: {time.perf_counter() - start:.1f} s; "
        + ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
    )
    expected = scores.topk(NUM_TOP, dim=1)  # (N, K)
    del scores

    start = time.perf_counter()
    kept = torch.empty(num_clips, DIM)  # (B, D)
    for first, vectors in blocks(num_clips):
        kept[first : first + len(vectors)] = torch.nn.functional.normalize(vectors)
    clips, found = TwoStage(pooling, IndexedClips(kept.numpy())).scores(text, NUM_TOP)
    print(
        f"best {NUM_TOP} of every query without the matrix, clips made and kept:"
        f" {time.perf_counter() - start:.1f} s"
    )
    difference = (found - expected.values).abs().max().item()
    same = (clips == expected.indices).double().mean().item()
    print(f"largest difference of a score {difference:.1e}, {same:.2%} the same clips")
    return int(difference > 1e-6 or same < LEAST_SAME)


def main() -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small collection")
    parser.add_argument(
        "--work", nargs=2, type=int, metavar=("CLIPS", "QUERIES"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if arguments.work:
        if min(arguments.work) < 1 or arguments.work[1] > arguments.work[0]:
            raise UserError(
                f"--work {arguments.work[0]} {arguments.work[1]}: at least one query, and a clip"
                " for each"
            )
        return work(*arguments.work)
    num_clips, num_queries = (2_000, 50) if arguments.quick else (100_000, 1_000)
    print(
        f"{num_clips:,} clips x {num_queries:,} queries, D {DIM}, mean pooling, float32", flush=True
    )
    start = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "benchmarks.large_collection",
        "--work",
        str(num_clips),
        str(num_queries),
    ]
    ended = subprocess.run(command, cwd=Path(__file__).parents[1])
    if ended.returncode:
        print(
            f"error: the scoring ended with exit code {ended.returncode}: the two ways disagree, or"
            " the memory ran out",
            file=sys.stderr,
        )
        return 1
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9  # kB -> GB
    print(f"in all {time.perf_counter() - start:.1f} s, peak memory {peak:.2f} GB")
    if peak > MOST_GB:
        print(f"error: {peak:.2f} GB is more than {MOST_GB:.0f} GB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_main(main)
