"""TAP scores, folded against the formula as it stands: same numbers, a third of the arithmetic.

    python -m benchmarks.tap_scoring            # 1,000 texts x 8 clips of up to 750 frames, D 1024, D_p 2048; exits with 1 below 3x
    python -m benchmarks.tap_scoring --quick    # small sizes, any ratio: shows that it runs and that the scores agree

Folded is `TextAwareAttentionPooling.score`. Unfolded is the formula of the paper called audio by audio, as the ancestor scores, each call
with its own queries; "queries once" is the same with the queries kept from the first call. All three alternate in one process. Clips are as
long as Clotho's, 15 to 30 s, and padded to 30 s; folded does not compute what is padding in all audios of a block. The second table is
for clips that fill all 750 frames. The ratio of the first is judged.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from retrieval.errors import OneLineParser
from retrieval.models.pooling import TextAwareAttentionPooling

LEAST_RATIO = 3.0


def unfolded_score(module: TextAwareAttentionPooling, text: Tensor, frames: Tensor, mask: Tensor, queries_once: bool = False) -> Tensor:
    """(N, B): text (N, D), frames (B, T, D), mask (B, T)."""
    columns, query = [], None
    for audio, valid in zip(frames, mask):
        if query is None or not queries_once:
            query = module.query(module.norm(text))  # (N, D_p)
        key, value = module.key(module.norm(audio)), module.value(module.norm(audio))  # (T, D_p)
        weights = (query @ key.T / math.sqrt(key.shape[1])).masked_fill(~valid, -math.inf).softmax(dim=1)  # (N, T)
        columns.append(functional.cosine_similarity(text, module.norm(module.output(weights @ value)), dim=1))
    return torch.stack(columns, dim=1)


def measure(ways: dict[str, Callable[[], Tensor]], repeats: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Median seconds and scores of each way, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    scores = {name: way() for name, way in ways.items()}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}, scores


def compare(module: TextAwareAttentionPooling, text: Tensor, frames: Tensor, mask: Tensor, repeats: int) -> tuple[float, float]:
    """Print a table; (unfolded seconds / folded seconds, largest difference of a score)."""
    ways = {
        "unfolded": lambda: unfolded_score(module, text, frames, mask),
        "unfolded, queries once": lambda: unfolded_score(module, text, frames, mask, queries_once=True),
        "folded": lambda: module.score(text, frames, mask),
    }
    seconds, scores = measure(ways, repeats)
    print(f"{mask.sum() / mask.numel():.0%} of the frames valid:")
    for name, median in seconds.items():
        print(f"  {name:24s} median {median:8.4f} s   {median / seconds['folded']:5.2f} x folded")
    difference = (scores["folded"] - scores["unfolded"]).abs().max().item()
    ratio = seconds["unfolded"] / seconds["folded"]
    print(f"  ratio {ratio:.2f}, largest difference of a score {difference:.1e}")
    return ratio, difference


def main() -> int:
    parser = OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes; the ratio is not judged")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.threads < 1:
        parser.error(f"--threads {arguments.threads}: must be 1 or more")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    sizes = (50, 3, 75, 64, 128, 1) if arguments.quick else (1000, 8, 750, 1024, 2048, 7)
    num_texts, num_audios, num_frames, dim, attention_dim, repeats = sizes
    print(f"{num_texts} texts x {num_audios} clips, T {num_frames}, D {dim}, D_p {attention_dim}, float32, {arguments.threads} threads")
    module = TextAwareAttentionPooling(dim, attention_dim).eval()
    text, frames = torch.randn(num_texts, dim), torch.randn(num_audios, num_frames, dim)
    num_valid = torch.linspace(num_frames / 2, num_frames, num_audios).ceil()
    with torch.no_grad():
        ratio, difference = compare(module, text, frames, torch.arange(num_frames) < num_valid[:, None], repeats)
        _, other = compare(module, text, frames, torch.ones(num_audios, num_frames, dtype=torch.bool), repeats)
    if max(difference, other) > 1e-6:
        print("error: folded and unfolded scores differ by more than 1e-6", file=sys.stderr)
        return 1
    if ratio < LEAST_RATIO and not arguments.quick:
        print(f"error: ratio {ratio:.2f} is below {LEAST_RATIO:.0f}; is the machine busy with something else?", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
