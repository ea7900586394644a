"""Time a training step at full size against a plain implementation; results must agree.

    # CPU, batch 4, some minutes; exits with 1 below 1.3x
    python -m benchmarks.training_step [--precision bf16]
    # exits with 1 below 2x, or below 45 % of the GPU's dense bf16 peak
    python -m benchmarks.training_step --device cuda --precision bf16 --batch-size 16
    # where the time of our step goes
    python -m benchmarks.training_step --profile [--precision bf16]
    # tiny sizes, figures are not judged
    python -m benchmarks.training_step --quick

The model of configs/tap.yaml: ATST-Frame base, roberta-large and TAP, with random weights and its
dropouts. Clips of noise with lengths spread evenly over 15 to 30 s, as in Clotho, at 32 kHz in a
padded batch in memory, under captions of 8 to 19 words.

Ours is retrieval.training.train_step with the optimizer of a run (fused AdamW); --compile sets
train.compile=true. Plain is benchmarks/plain.py on the same weights, and AdamW parameter by
parameter. Both compute in --precision. First, without dropout and in float32, losses must agree to
1e-4 (absolute) and gradients to 1e-4 (of the largest). The learning rate is 0, as at the start of
the warm-up, so that weights stay the same.

On a CPU each way runs in processes of its own, in turns, because our runs keep freed memory
(retrieval.base.processes.keep_freed_memory); the first two steps of a process do not count. On a
GPU, and with --quick, both alternate in one process. The line `text` times the forward and the
backward pass of our text encoder: batches of captions with similar lengths could save a part of it.

--profile prints the time of one step by families of operators (benchmarks/step_trace.py), and its
speed as a share of this machine's fastest matrix product in this precision.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import plain
from benchmarks.full_size import CAPTION_WORDS, WORDS, hardware
from benchmarks.step_trace import read, save_trace
from benchmarks.timing import alternate, is_too_slow
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError
from retrieval.base.launch import make_accelerator
from retrieval.base.matrix_products import fastest_product
from retrieval.config import Config, TrainConfig, load_config
from retrieval.data import collate_pairs
from retrieval.models.build import build_model
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.text import KNOWN_ARCHITECTURES
from retrieval.training.loop import train_step
from retrieval.training.objective import Objective
from retrieval.training.optim import set_learning_rates
from retrieval.training.setup import Run, make_optimizer, set_up_blocks

ROOT = Path(__file__).resolve().parent.parent
SECONDS = (15.0, 30.0)  # shortest and longest clip of Clotho
LEAST_RATIO = {"cpu": 1.3, "cuda": 2.0}
LEAST_SHARE = 0.45  # of the GPU's peak
TOLERANCE = 1e-4
NUM_WARM = 2  # steps of a process that do not count
ROUNDS = 2  # processes of each way
PRODUCT_SIZE = 4096
# Dense bf16 with float32 sums, TFLOP/s, from the data sheets; some of them print the double, with
# sparsity. The first name that the GPU's name contains counts.
PEAKS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
    "A100": 312.0,
    "RTX 4090": 165.2,
}
# initializer_range: with the usual 0.02 such a small model gives all captions the same vector, and
# gradients are rounding errors.
QUICK_TEXT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
QUICK_TEXT |= {"initializer_range": 0.5}
QUICK_AUDIO = [
    "dim=16",
    "pooling.attention_dim=32",
    "audio_encoder.embed_dim=24",
    "audio_encoder.depth=1",
    "audio_encoder.num_heads=2",
]


def make_model(quick: bool, name: str = "tap") -> tuple[DualEncoder, Config]:
    """Make the model of a file in configs/, or a tiny one; random weights, a tokenizer of WORDS."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        write_text_config(folder, QUICK_TEXT if quick else {})
        settings = [
            f"text_encoder.name={folder}",
            "text_encoder.pretrained=false",
            "audio_encoder.checkpoint=null",
        ]
        config = load_config(
            ROOT / "configs" / f"{name}.yaml", settings + (QUICK_AUDIO if quick else [])
        )
        return build_model(config), config


def write_text_config(folder: str | Path, sizes: dict[str, Any]) -> None:
    """Write a tokenizer of WORDS, and roberta-large's config.json with other `sizes`."""
    make_tokenizer().save_pretrained(folder)
    architecture = KNOWN_ARCHITECTURES["roberta-large"] | sizes
    transformers.AutoConfig.for_model(**architecture).save_pretrained(folder)


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Make a tokenizer of WORDS with the special tokens of RoBERTa."""
    names = ["<s>", "<pad>", "</s>", "<unk>", *WORDS]
    tokenizer = Tokenizer(
        models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def make_captions(num_captions: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(*CAPTION_WORDS))) for _ in range(num_captions)]


def make_clips(num_clips: int, sample_rate: int) -> list[np.ndarray]:
    """Make noise, float32 (S,) each; lengths are the middles of equal parts of SECONDS."""
    rng = np.random.default_rng(0)
    shortest, longest = SECONDS
    seconds = shortest + (longest - shortest) * (np.arange(num_clips) + 0.5) / num_clips
    return [
        0.1 * rng.standard_normal(round(length * sample_rate), dtype=np.float32)
        for length in seconds
    ]


def make_batch(batch_size: int, sample_rate: int) -> dict[str, Any]:
    """Make a batch of noise under random captions, each pair a clip of its own."""
    pairs = zip(make_clips(batch_size, sample_rate), make_captions(batch_size), strict=True)
    return collate_pairs(
        [
            {"waveform": clip, "caption": caption, "clip": number, "pair": number}
            for number, (clip, caption) in enumerate(pairs)
        ]
    )


def make_run(model: DualEncoder, config: Config, accelerator: Accelerator) -> Run:
    """Make a Run with the parts that train_step reads."""
    optimizer = make_optimizer(model.to(accelerator.device), config.optimizer)
    wrapped, optimizer = accelerator.prepare(model.train(), optimizer)
    names = ("batches", "loader", "validation", "pictured", "test", "tracker", "history")
    absent = dict.fromkeys(names)
    objective = Objective(config.loss, SimpleNamespace(mix_probability=0.0), accelerator.device)
    parts = {
        "accelerator": accelerator,
        "model": model,
        "wrapped": wrapped,
        "optimizer": optimizer,
        "objective": objective,
    }
    return Run(config=config, folder=Path(), steps_per_epoch=1, **parts, **absent)


def plain_optimizer(model: DualEncoder, config: Config) -> torch.optim.AdamW:
    """Make an AdamW that updates one parameter after the other."""
    optimizer = make_optimizer(model, config.optimizer)
    for group in optimizer.param_groups:
        group |= {"fused": False, "foreach": False}
    return optimizer


def plain_step(run: Run, optimizer: torch.optim.Optimizer, batch: dict[str, Any]) -> float:
    set_learning_rates(optimizer, 0.0, run.config.optimizer.schedule.model_dump())
    optimizer.zero_grad()
    with run.accelerator.autocast():
        loss = plain_loss(run, batch)
    loss.backward()
    optimizer.step()
    return loss.item()


def plain_loss(run: Run, batch: dict[str, Any]) -> torch.Tensor:
    frames, mask = plain.encode_audio(
        run.model, batch["waveform"].to(run.accelerator.device, non_blocking=True), batch["lengths"]
    )
    text = plain.encode_text(run.model, batch["captions"])
    if run.model.pooling.keeps_frames:
        scores = plain.score(run.model.pooling, text, frames, mask)
    else:
        scores = plain.mean_score(text, frames, mask)
    return _loss_of_scores(run, batch, scores)


def our_loss(run: Run, batch: dict[str, Any]) -> torch.Tensor:
    """Compute the loss as train_step does in one process, but without autocast."""
    frames, mask = run.model.encode_audio(
        batch["waveform"].to(run.accelerator.device), batch["lengths"]
    )
    return _loss_of_scores(
        run, batch, run.model.score(run.model.encode_text(batch["captions"]), frames, mask)
    )


def _loss_of_scores(run: Run, batch: dict[str, Any], scores: torch.Tensor) -> torch.Tensor:
    device = run.accelerator.device
    return run.objective(run.model, scores, batch["clips"].to(device), batch["pairs"].to(device))


def text_step(run: Run, batch: dict[str, Any]) -> None:
    with run.accelerator.autocast():
        text = run.model.encode_text(batch["captions"])
    text.sum().backward()


def differences(run: Run, batch: dict[str, Any]) -> tuple[float, float]:
    """Compare the two ways without dropout, in float32.

    Returns the difference of the losses, and the largest of the watched gradients, relative to the
    largest number of each.
    """
    model = run.model.eval()
    text = model.text_encoder.model.encoder.layer[0].attention.self
    watched = [
        model.audio_encoder.blocks[0].attn.qkv,
        text.query,
        model.audio_projection,
        model.text_projection,
    ]
    if model.pooling.keeps_frames:
        watched.append(model.pooling.value)
    losses, gradients = [], []
    for way in (our_loss, plain_loss):
        loss = way(run, batch)
        gradients.append(torch.autograd.grad(loss, [module.weight for module in watched]))
        losses.append(loss.item())
    model.train()
    relative = [
        ((ours - others).abs().max() / others.abs().max()).item()
        for ours, others in zip(*gradients, strict=True)
    ]
    return abs(losses[0] - losses[1]), max(relative)


def until_done(way: Callable[[], Any]) -> Callable[[], Any]:
    """Wrap `way` to wait until a GPU has finished its work."""

    def waiting() -> Any:
        result = way()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return result

    return waiting


def report(seconds: dict[str, list[float]]) -> float:
    """Print medians. Returns plain / ours."""
    for name, values in seconds.items():
        print(
            f"{name:6s} median {statistics.median(values):8.3f} s, {min(values):.3f} to"
            f" {max(values):.3f} s"
        )
    ratio = statistics.median(seconds["plain"]) / statistics.median(seconds["ours"])
    print(f"ratio {ratio:.2f}")
    return ratio


def step_flops(run: Run, batch: dict[str, Any]) -> int:
    """Count the floating-point operations of our step, in matrix products and attention."""
    with FlopCounterMode(display=False) as counter:
        train_step(run, batch)
    return counter.get_total_flops()


def data_sheet_peak() -> float | None:
    """Return the GPU's dense bf16 peak in TFLOP/s; None for a GPU that PEAKS does not name."""
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def share_of_peak(run: Run, batch: dict[str, Any], seconds: float) -> float | None:
    """Print the TFLOP/s of our step.

    Returns their share of the GPU's dense bf16 peak, or None for a GPU that PEAKS does not name.
    """
    flops = step_flops(run, batch)
    achieved = flops / seconds / 1e12
    name, peak = torch.cuda.get_device_name(), data_sheet_peak()
    of_peak = (
        "its peak is not known here"
        if peak is None
        else f"{achieved / peak:.0%} of {peak:.0f}, its dense bf16 peak"
    )
    print(f"{name}: {flops / 1e12:.1f} TFLOP a step, {achieved:.1f} TFLOP/s, {of_peak}")
    return None if peak is None else achieved / peak


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny model; the ratio is not judged")
    parser.add_argument(
        "--batch-size", type=int, default=4, help="(clip, caption) pairs (default: 4)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--precision",
        choices=("no", "bf16"),
        default="no",
        help="precision of both ways (default: no, which is float32)",
    )
    parser.add_argument("--compile", action="store_true", help="run ours with train.compile=true")
    parser.add_argument(
        "--repeats", type=int, default=5, help="timed steps of each way (default: 5)"
    )
    parser.add_argument("--profile", action="store_true", help="print where a step's time goes")
    parser.add_argument("--way", choices=("ours", "plain", "text"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    for name, least in (("batch_size", 2), ("repeats", 1)):
        if getattr(arguments, name) < least:
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(arguments, name)}: must be {least} or more"
            )
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda needs a GPU, and none is visible here; leave it out for the CPU"
        )
    if arguments.profile:
        return profile_step(arguments)
    if arguments.way:
        return time_way(arguments)
    return benchmark(arguments)


def prepared(arguments: argparse.Namespace) -> tuple[Run, dict[str, Any]]:
    """Return a run and its batch."""
    accelerator = make_accelerator(
        arguments.precision, cpu=arguments.device == "cpu", several=False
    )
    model, config = make_model(arguments.quick)
    run = make_run(model, config, accelerator)
    return run, make_batch(arguments.batch_size, model.sample_rate)


def describe(run: Run, arguments: argparse.Namespace) -> None:
    num_parameters = sum(parameter.numel() for parameter in run.model.parameters())
    place = (
        f"{torch.get_num_threads()} threads; {hardware()}"
        if arguments.device == "cpu"
        else torch.cuda.get_device_name()
    )
    print(
        f"{num_parameters / 1e6:.0f} M parameters, batch {arguments.batch_size}, precision"
        f" {arguments.precision}; {place}",
        flush=True,
    )


def profile_step(arguments: argparse.Namespace) -> int:
    """Print where the time of our step goes."""
    run, batch = prepared(arguments)
    set_up_blocks(run.model, TrainConfig(compile=arguments.compile), run.accelerator.device)
    describe(run, arguments)
    step = until_done(lambda: train_step(run, batch))
    for _ in range(NUM_WARM):
        step()
    seconds, _ = alternate({"ours": step}, arguments.repeats)
    median = statistics.median(seconds["ours"])
    print(f"a step takes {median:.2f} s (median of {arguments.repeats})")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "step.json.gz")
        save_trace(run, batch, path)
        rows = read(path)
    print(f"{'':22}{'seconds':>9}{'share':>8}{'backward':>10}  most time in")
    for row in rows:
        backward = f"{row['backward ms'] / 1000:10.3f}" if "backward ms" in row else " " * 10
        print(
            f"{row['family']:22}{row['ms'] / 1000:9.3f}{row['of the step']:8.1%}{backward}"
            f"  {row['most time in']}"
        )
    dtype = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    size = PRODUCT_SIZE // 16 if arguments.quick else PRODUCT_SIZE
    peak = fastest_product(dtype, size, arguments.device)
    achieved = step_flops(run, batch) / median
    print(
        f"{achieved / 1e9:.0f} GFLOP/s, {achieved / peak:.0%} of {peak / 1e9:.0f}, the fastest"
        f" product of two {size} x {size} matrices"
    )
    return 0


def time_way(arguments: argparse.Namespace) -> int:
    """Print the seconds of one way's steps as JSON; for a process of its own, on a CPU."""
    # The plain way is to use memory as other trainers do, which do not keep freed memory.
    usual = mock.patch("retrieval.base.launch.keep_freed_memory")
    with usual if arguments.way == "plain" else nullcontext():
        run, batch = prepared(arguments)
    way = ways_of(run, batch, plain_optimizer(run.model, run.config))[arguments.way]
    set_up_blocks(run.model, TrainConfig(compile=arguments.compile), run.accelerator.device)
    for _ in range(NUM_WARM):
        way()
    seconds, _ = alternate({arguments.way: way}, arguments.repeats)
    print(json.dumps(seconds[arguments.way]))
    return 0


def ways_of(
    run: Run, batch: dict[str, Any], optimizer: torch.optim.Optimizer
) -> dict[str, Callable[[], Any]]:
    return {
        "ours": lambda: train_step(run, batch),
        "plain": lambda: plain_step(run, optimizer, batch),
        "text": lambda: text_step(run, batch),
    }


def seconds_in_turns(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Time each way on a CPU, in processes of its own, in turns."""
    seconds: dict[str, list[float]] = {"ours": [], "plain": [], "text": []}
    for number in range(ROUNDS):
        for way, of_way in seconds.items():
            if way == "text" and number:
                continue
            command = [sys.executable, "-m", "benchmarks.training_step", "--way", way]
            command += ["--compile"] * arguments.compile
            for name in ("precision", "batch_size", "repeats"):
                command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
            ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            if ended.returncode:
                raise UserError(
                    f"the process of {way} ended with exit code {ended.returncode}; its message is"
                    " above, or else the memory ran out"
                )
            of_way += json.loads(ended.stdout.splitlines()[-1])
    return seconds


def seconds_here(
    arguments: argparse.Namespace, run: Run, batch: dict[str, Any]
) -> dict[str, list[float]]:
    """Time the ways in turns in this process."""
    # Plain has its own optimizer: the fused kernel counts steps on the GPU, and the plain loop
    # would wait for each count.
    ways = ways_of(run, batch, plain_optimizer(run.model, run.config))
    set_up_blocks(run.model, TrainConfig(compile=arguments.compile), run.accelerator.device)
    ways = {name: until_done(way) for name, way in ways.items()}
    alternate(ways, 1)  # to warm up
    return alternate(ways, arguments.repeats)[0]


def benchmark(arguments: argparse.Namespace) -> int:
    run, batch = prepared(arguments)
    describe(run, arguments)
    of_loss, of_gradients = differences(run, batch)
    print(
        f"without dropout: losses differ by {of_loss:.1e}, gradients by {of_gradients:.1e}",
        flush=True,
    )
    if not max(of_loss, of_gradients) <= TOLERANCE:
        print(f"error: the two ways differ by more than {TOLERANCE:.0e}", file=sys.stderr)
        return 1
    if arguments.device == "cpu" and not arguments.quick:
        del run, batch  # the processes that follow need the memory
        ratio = report(seconds_in_turns(arguments))
        return int(is_too_slow(ratio, LEAST_RATIO["cpu"]))
    seconds = seconds_here(arguments, run, batch)
    ratio = report(seconds)
    if arguments.quick:
        return 0
    share = share_of_peak(run, batch, statistics.median(seconds["ours"]))
    too_slow = is_too_slow(ratio, LEAST_RATIO["cuda"])
    if share is not None and share < LEAST_SHARE:
        print(f"error: {share:.0%} of the peak is below {LEAST_SHARE:.0%}", file=sys.stderr)
    return int(too_slow or (share is not None and share < LEAST_SHARE))


if __name__ == "__main__":
    run_main(main)
