"""Does training wait for data? The loader with 16 pairs per batch, beside steps of a given time.

    # 3 minutes, 400 MB; exits with 1 at 2 % or more
    python -m benchmarks.data_loading [--step-seconds 0.3 0.1 1.0] [--num-workers 4]
    # small numbers, not judged: shows that it runs
    python -m benchmarks.data_loading --quick

A cache of noise at 32 kHz, clips of 15-30 s, is read through `make_loader`, as train.py does; its
files are in the page cache. First, batches are taken as fast as they come: the loader's own
time. Then a step follows each batch: it sleeps, as the host does while a GPU computes. (A step on
the CPU takes cores from the loader processes, but is far longer than 0.3 s. On a GPU the loader's
pinning thread adds a copy.)

Waiting is the time from asking for a batch until it comes, as a share of waiting and steps. The
first batches are left out, because the processes start with them. The first of --step-seconds is
judged. To find the shortest step that waits less than 2 %, multiples of the loader's own time are
tried in order.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.full_size import run_script, write_corpus
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError
from retrieval.data import EpochBatches, PairDataset, make_loader, open_cache

SAMPLE_RATE = 32_000  # Hz
BATCH_SIZE = 16
LARGEST_SHARE = 0.02  # of the time
MULTIPLES = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 8.0)  # of the loader's own time for a batch


class Sizes(NamedTuple):
    num_clips: int
    seconds: tuple[float, float]  # shortest and longest clip
    num_captions: int  # of a clip: makes an epoch long enough for a measurement
    num_warm: int  # batches taken before the clock starts; more than are loaded ahead
    num_batches: int  # measured


FULL = Sizes(num_clips=100, seconds=(15.0, 30.0), num_captions=10, num_warm=12, num_batches=50)
QUICK = Sizes(num_clips=20, seconds=(0.5, 1.0), num_captions=10, num_warm=6, num_batches=6)


class Epochs:
    """Epochs of one loader, whose processes stay from one to the next."""

    def __init__(self, cache: Path, sizes: Sizes, num_workers: int):
        pairs = PairDataset(
            open_cache(cache, SAMPLE_RATE).split("development"), 30 * SAMPLE_RATE, seed=0
        )
        self.batches = EpochBatches(len(pairs), BATCH_SIZE, seed=0)
        self.loader = make_loader(pairs, self.batches, num_workers)
        self.sizes = sizes
        assert sizes.num_warm + sizes.num_batches <= len(self.batches)

    def waits(self, epoch: int, step_seconds: float) -> list[float]:
        """Return the seconds waited for each measured batch of this epoch; a step follows each."""
        self.batches.start(epoch)
        stream: Iterator[dict[str, Any]] = iter(self.loader)
        waits = []
        for _ in range(self.sizes.num_warm + self.sizes.num_batches):
            start = time.perf_counter()
            batch = next(stream)
            waits.append(time.perf_counter() - start)
            time.sleep(step_seconds)
            # Its shared memory is given back here. That takes milliseconds, but is not waiting.
            del batch
        return waits[self.sizes.num_warm :]


def share_waited(waits: list[float], step_seconds: float) -> float:
    return sum(waits) / (sum(waits) + step_seconds * len(waits))


def measure(epochs: Epochs, steps: list[float], is_judged: bool) -> float:
    """Print the speed of the loader by itself and beside steps (s).

    Returns the share of time waited at the first of `steps`.
    """
    waits = epochs.waits(0, 0.0)
    alone = sum(waits) / len(waits)
    shortest, longest = epochs.sizes.seconds
    print(
        f"{epochs.loader.num_workers} loader processes, batches of {BATCH_SIZE} clips of"
        f" {shortest:g}-{longest:g} s"
    )
    print(
        f"loader alone: {1000 * alone:.1f} ms a batch, {BATCH_SIZE / alone:.0f} clips/s", flush=True
    )
    shares = []
    for epoch, step in enumerate(steps, 1):
        waits = epochs.waits(epoch, step)
        shares.append(share_waited(waits, step))
        median, most = 1000 * sorted(waits)[len(waits) // 2], 1000 * max(waits)
        print(
            f"step of {step:.3f} s: waiting {shares[-1]:.2%} of the time, {median:.1f} ms in the"
            f" median, at most {most:.1f} ms",
            flush=True,
        )
    for epoch, multiple in enumerate(MULTIPLES, 1 + len(steps)):
        step = multiple * alone
        share = share_waited(epochs.waits(epoch, step), step)
        if share < LARGEST_SHARE:
            print(
                f"shortest step that waits less than {LARGEST_SHARE:.0%}: {step:.3f} s, {multiple}"
                f" times the loader's own ({share:.2%})"
            )
            break
    else:
        judged = "" if is_judged else ": so small a measurement says nothing, and is not judged"
        print(
            f"no step up to {MULTIPLES[-1]} times the loader's own waits less than"
            f" {LARGEST_SHARE:.0%}{judged}"
        )
    return shares[0]


def main() -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--step-seconds",
        type=float,
        nargs="+",
        default=[0.3, 0.1, 1.0],
        help="the first is judged (default: 0.3 0.1 1.0)",
    )
    parser.add_argument(
        "--num-workers",
        type=int,
        default=4,
        help="as data.num_workers: at most one per core is started (default: 4)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="short clips and few batches; the share is not judged"
    )
    arguments = parser.parse_args()
    if arguments.num_workers < 0:
        raise UserError(f"--num-workers {arguments.num_workers}: must be 0 or more")
    for seconds in arguments.step_seconds:
        if not seconds > 0:
            raise UserError(f"--step-seconds {seconds}: must be more than 0")
    sizes = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        root, rate = Path(folder), str(SAMPLE_RATE)
        write_corpus(root, {"development": sizes.num_clips}, sizes.seconds, sizes.num_captions)
        split = ("--splits", "development", "--sample-rate", rate)
        run_script("build_clotho.py", "--root", root, *split)
        steps = [0.01] if arguments.quick else arguments.step_seconds
        epochs = Epochs(root / "cache", sizes, arguments.num_workers)
        share = measure(epochs, steps, is_judged=not arguments.quick)
    if share >= LARGEST_SHARE and not arguments.quick:
        message = (
            f"a step of {arguments.step_seconds[0]} s waits {share:.1%} of the time for data, not"
            f" less than {LARGEST_SHARE:.0%}"
        )
        print(f"error: {message}; is the machine busy with something else?", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_main(main)
