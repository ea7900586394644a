"""The TAP experiment at full size on a CPU: a few optimizer steps, in seconds and peak memory.

    # 12 GB of disk, 13 GiB of memory, some minutes
    python -m benchmarks.full_size [--batch-size 2] [--steps 3] [--work DIR]
    # tiny sizes: shows that it runs
    python -m benchmarks.full_size --quick

A user of `configs/tap.yaml` downloads a text model, an audio encoder and a corpus. This makes them
with random weights and noise: a text model of roberta-large's size in the hub's layout, an
ATST-Frame base checkpoint in the layout of atstframe_base_as2M.ckpt, and a corpus in Clotho's
layout, which the real builder turns into a cache. Then it runs the real command, `accelerate launch
train.py --config configs/tap.yaml`, with its validation, states and models on disk; paths, batch
size and number of steps differ. The temporary folder (in DIR) is deleted at the end.

The seconds of a step are those between two points in the run's TensorBoard file; the first step
includes the start of the loader processes. Peak memory is the largest resident set of one process,
which is the training process: its loader processes share its pages and the mapped cache.
"""

import argparse
import csv
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError
from retrieval.base.processes import usable_cores
from retrieval.base.progress import set_quiet, silence_transformers

ROOT = Path(__file__).resolve().parent.parent
WAV_RATE = 44_100  # Hz, as in Clotho
CAPTIONS_A_CLIP = 5
WORDS = (
    "a dog bird bell engine crowd rain wind door water barks sings rings hums talks falls blows"
    " slams far near loud soft twice".split()
)
CAPTION_WORDS = (8, 20)  # fewest and most words, as in Clotho


@dataclass(frozen=True)
class Sizes:
    """Sizes that --quick changes; without it they are those of configs/tap.yaml."""

    seconds: tuple[float, float]  # shortest and longest clip
    disk_gb: float  # models that are made, a state (weights and two moments), best and last
    atst: dict[str, int] = field(default_factory=dict)
    text: dict[str, int] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()


FULL = Sizes(seconds=(15.0, 30.0), disk_gb=12.0)
QUICK = Sizes(
    seconds=(1.0, 2.0),
    disk_gb=0.2,
    atst={"embed_dim": 24, "depth": 1, "num_heads": 2},
    text={
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    },
    overrides=(
        "dim=16",
        "pooling.attention_dim=32",
        "audio_encoder.embed_dim=24",
        "audio_encoder.depth=1",
        "audio_encoder.num_heads=2",
    ),
)


def write_corpus(
    root: Path,
    clips_of_split: dict[str, int],
    seconds: tuple[float, float],
    num_captions: int = CAPTIONS_A_CLIP,
) -> None:
    """Write noise under random words in Clotho's layout.

    Args:
        root: Folder to make.
        clips_of_split: Number of clips by split.
        seconds: Shortest and longest clip.
        num_captions: Of a clip.
    """
    import numpy as np
    import soundfile

    from data_prep.corpora.clotho_files import METADATA_COLUMNS

    rng = np.random.default_rng(0)
    columns = [f"caption_{number}" for number in range(1, num_captions + 1)]
    for split, num_clips in clips_of_split.items():
        (root / split).mkdir(parents=True)
        captions, metadata = [["file_name", *columns]], [["file_name", *METADATA_COLUMNS]]
        for number in range(num_clips):
            name = f"noise {number}.wav"
            noise = 0.1 * rng.standard_normal(round(rng.uniform(*seconds) * WAV_RATE))
            soundfile.write(root / split / name, noise, WAV_RATE)
            texts = [" ".join(rng.choice(WORDS, rng.integers(*CAPTION_WORDS))) for _ in columns]
            captions.append([name, *texts])
            metadata.append([name, *METADATA_COLUMNS])
        for kind, rows in (("captions", captions), ("metadata", metadata)):
            path = root / f"clotho_{kind}_{split}.csv"
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(rows)


def write_text_model(folder: Path, captions_csv: Path, sizes: dict[str, int]) -> None:
    """Write roberta-large with random weights and a tokenizer of the captions' words.

    As on the hub it is a language model, whose head is ignored.
    """
    import transformers

    from retrieval.models.text import KNOWN_ARCHITECTURES

    # its config.json is replaced
    run_script("make_text_encoder.py", "--captions", captions_csv, "--output", folder)
    transformers.utils.logging.disable_progress_bar()
    config = transformers.AutoConfig.for_model(**KNOWN_ARCHITECTURES["roberta-large"] | sizes)
    transformers.RobertaForMaskedLM(config).save_pretrained(folder)


def write_atst_checkpoint(path: Path, sizes: dict[str, int]) -> None:
    """Write random weights in the layout of the fine-tuned official checkpoint."""
    import torch

    from retrieval.models.audio.atst import AtstFrame

    encoder = AtstFrame(**sizes)
    state = {f"encoder.encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    head = {
        "head.linear.weight": torch.randn(527, encoder.feature_dim),
        "head.linear.bias": torch.zeros(527),
    }
    torch.save(
        {
            "epoch": 0,
            "global_step": 0,
            "hyper_parameters": argparse.Namespace(arch="base"),
            "state_dict": state | head,
        },
        path,
    )


def run_script(name: str, *arguments: Any) -> None:
    """Run a script of data_prep/ without its output. Raises UserError if it fails."""
    ended = subprocess.run(
        [sys.executable, str(ROOT / "data_prep" / name), *map(str, arguments)],
        stdout=subprocess.DEVNULL,
    )
    if ended.returncode:
        raise UserError(f"{name} ended with exit code {ended.returncode}; its message is above")


def train(
    folder: Path, batch_size: int, steps: int, threads: int, overrides: tuple[str, ...]
) -> Path:
    """Run the real command on the CPU, also if there is a GPU. Returns the run folder."""
    run = folder / "run"
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet"]
    launch += ["--config_file", "configs/accelerate/cpu.yaml", "train.py"]
    settings = {
        "data.cache": folder / "corpus" / "cache",
        "text_encoder.name": folder / "text_model",
        "audio_encoder.checkpoint": folder / "atst.ckpt",
        "train.batch_size": batch_size,
        "train.max_steps": steps,
        "train.log_every_steps": 1,
        "train.output": run,
    }
    command = [
        *launch,
        "--config",
        "configs/tap.yaml",
        *(f"{name}={value}" for name, value in settings.items()),
        *overrides,
    ]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True) as process:
        try:
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # its state would be deleted anyway
            raise
    if code:
        raise UserError("the training failed: its message is above, or else the memory ran out")
    return run


def report(run: Path, batch_size: int, total_seconds: float) -> None:
    """Print the run's log and the operating system's count of its memory."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    for loss, speed in zip(
        events.Scalars("train/loss"), events.Scalars("train/clips_per_second"), strict=True
    ):
        print(f"step {speed.step}: {batch_size / speed.value:.1f} s, loss {loss.value:.4f}")
    after_steps = events.Scalars("train/memory_gib")[-1].value
    whole = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # kB -> GiB
    print(f"whole command, with loading, state, validation and test split: {total_seconds:.1f} s")
    print(
        f"peak memory of the training process: {after_steps:.2f} GiB after the last step,"
        f" {whole:.2f} GiB in the whole command"
    )


def hardware() -> str:
    """Describe this machine, such as `AMD EPYC, 2 cores, 23 GiB`."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU"
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {usable_cores()} cores, {memory:.0f} GiB"


def work_folder(given: Path | None) -> Path:
    """Return the folder for the temporary folder; None: the system's. Raises UserError.

    The path is absolute, because the training runs in the repository root.
    """
    work = (given or Path(tempfile.gettempdir())).resolve()
    if not work.is_dir():
        raise UserError(f"--work {work} is not a folder; make it, or leave --work out")
    return work


def set_quiet_and_offline() -> None:
    """Ask no hub, also in processes that are started later; show no bars of libraries."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    silence_transformers()
    set_quiet(True)


def main() -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--batch-size", type=int, default=2, help="(clip, caption) pairs per step (default: 2)"
    )
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps (default: 3)")
    parser.add_argument(
        "--threads",
        type=int,
        default=usable_cores(),
        help="of the training process (default: all cores)",
    )
    parser.add_argument(
        "--work", type=Path, help="folder for the temporary folder (default: the system's)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny models and clips")
    arguments = parser.parse_args()
    for name, least in (("batch_size", 2), ("steps", 1), ("threads", 1)):
        if getattr(arguments, name) < least:
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(arguments, name)}: must be {least} or more"
            )
    work = work_folder(arguments.work)
    sizes = QUICK if arguments.quick else FULL
    free = shutil.disk_usage(work).free / 1e9
    if free < sizes.disk_gb:
        raise UserError(
            f"{work} has {free:.1f} GB free, this run writes {sizes.disk_gb:.1f} GB; give a folder"
            " with more room: --work DIR"
        )
    with tempfile.TemporaryDirectory(prefix="full_size_", dir=work) as name:
        benchmark(Path(name), arguments, sizes)
    return 0


def benchmark(folder: Path, arguments: argparse.Namespace, sizes: Sizes) -> None:
    start = time.perf_counter()
    # Enough clips that no batch of these steps is the last, smaller one of an epoch.
    num_clips = max(6, math.ceil(arguments.batch_size * arguments.steps / CAPTIONS_A_CLIP))
    write_corpus(
        folder / "corpus",
        {"development": num_clips, "validation": 2, "evaluation": 2},
        sizes.seconds,
    )
    run_script("build_clotho.py", "--root", folder / "corpus")
    write_text_model(
        folder / "text_model", folder / "corpus" / "clotho_captions_development.csv", sizes.text
    )
    write_atst_checkpoint(folder / "atst.ckpt", sizes.atst)
    print(f"models and cache made in {time.perf_counter() - start:.1f} s", flush=True)
    start = time.perf_counter()
    run = train(folder, arguments.batch_size, arguments.steps, arguments.threads, sizes.overrides)
    seconds = time.perf_counter() - start
    config = "configs/tap.yaml in miniature" if arguments.quick else "configs/tap.yaml"
    print(f"{config}, batch {arguments.batch_size}, {arguments.threads} threads; {hardware()}")
    report(run, arguments.batch_size, seconds)


if __name__ == "__main__":
    run_main(main)
