"""Peak memory and seconds of a training step by batch size, with and without saving memory.

    python -m benchmarks.memory [--batch-sizes 2 4 8]     # 16 GiB of memory, some minutes on a CPU
    python -m benchmarks.memory --quick                   # tiny sizes: shows that it runs

The sizes are those of configs/tap.yaml. Every line is a process of its own: it takes two optimizer
steps (retrieval.training.train_step) with random weights and noise of 15 to 30 s, because AdamW's
moments exist after the first one. Memory is the largest resident set that the operating system
counted, or the most that CUDA allocated. Seconds are those of the second step. `parts` is
train.micro_batch_size=2, `checkpointing` train.activation_checkpointing=true.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.full_size import (
    CAPTIONS_A_CLIP,
    FULL,
    QUICK,
    hardware,
    run_script,
    work_folder,
    write_atst_checkpoint,
    write_corpus,
    write_text_model,
)
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError
from retrieval.base.processes import peak_memory

PART = 2  # pairs encoded at once
WAYS = {
    "plain": (),
    "checkpointing": ("train.activation_checkpointing=true",),
    "parts": (f"train.micro_batch_size={PART}",),
    "parts, checkpointing": (
        f"train.micro_batch_size={PART}",
        "train.activation_checkpointing=true",
    ),
}


def two_steps(overrides: list[str]) -> None:
    """Print peak GiB and the seconds of the second step; runs in a process of its own."""
    import torch

    from retrieval.config import load_config
    from retrieval.training.loop import train_step
    from retrieval.training.setup import prepare

    config = load_config("configs/tap.yaml", overrides)
    run = prepare(config, Path(config.train.output), resume=False, overwrite=True)
    run.wrapped.train()
    run.batches.start(0)
    batch = next(iter(run.loader))
    train_step(run, batch)
    start = time.perf_counter()
    train_step(run, batch)
    gpu = run.accelerator.device.type == "cuda"
    if gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    run.tracker.close()
    peak = torch.cuda.max_memory_allocated() if gpu else peak_memory()
    print(f"{peak / 2**30:.2f} GiB, {seconds:.1f} s")


def measure(folder: Path, batch_sizes: list[int], overrides: tuple[str, ...]) -> None:
    settings = {
        "data.cache": folder / "corpus" / "cache",
        "data.num_workers": 0,
        "text_encoder.name": folder / "text_model",
        "audio_encoder.checkpoint": folder / "atst.ckpt",
        "train.output": folder / "run",
    }
    common = [*(f"{name}={value}" for name, value in settings.items()), *overrides]
    for batch_size in batch_sizes:
        for way, own in WAYS.items():
            if "parts" in way and batch_size <= PART:
                continue
            command = [
                sys.executable,
                "-m",
                "benchmarks.memory",
                "--settings",
                *common,
                *own,
                f"train.batch_size={batch_size}",
            ]
            ended = subprocess.run(
                command, capture_output=True, text=True, cwd=Path(__file__).parents[1]
            )
            if ended.returncode:
                reason = (ended.stderr.strip().splitlines() or ["the memory may have run out"])[-1]
                raise UserError(f"batch {batch_size}, {way}: the step failed ({reason})")
            print(f"batch {batch_size:3d}, {way:22s}{ended.stdout.splitlines()[-1]}", flush=True)


def main() -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--batch-sizes",
        type=int,
        nargs="+",
        default=[2, 4, 8],
        help="(clip, caption) pairs per step (default: 2 4 8)",
    )
    parser.add_argument(
        "--work", type=Path, help="folder for the temporary folder (default: the system's)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny models and clips")
    parser.add_argument("--settings", nargs="+", metavar="KEY=VALUE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.settings:
        two_steps(arguments.settings)
        return 0
    if min(arguments.batch_sizes) < 2:
        raise UserError(f"--batch-sizes {min(arguments.batch_sizes)}: must be 2 or more")
    sizes = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory(prefix="memory_", dir=work_folder(arguments.work)) as name:
        folder = Path(name)
        num_clips = max(6, -(-max(arguments.batch_sizes) // CAPTIONS_A_CLIP))
        write_corpus(folder / "corpus", {"development": num_clips, "validation": 2}, sizes.seconds)
        run_script(
            "build_clotho.py", "--root", folder / "corpus", "--splits", "development", "validation"
        )
        write_text_model(
            folder / "text_model", folder / "corpus" / "clotho_captions_development.csv", sizes.text
        )
        write_atst_checkpoint(folder / "atst.ckpt", sizes.atst)
        print(
            f"{'configs/tap.yaml in miniature' if arguments.quick else 'configs/tap.yaml'};"
            f" {hardware()}"
        )
        measure(folder, arguments.batch_sizes, sizes.overrides)
    return 0


if __name__ == "__main__":
    run_main(main)
