"""Runs on the device: fp16 with clipping, a killed run that is resumed, several processes."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.full_size import ROOT
from benchmarks.gpu.steps import Place

CLIP = 0.5  # norm of all gradients together
LARGE_SCALE = 2.0**34  # gradients overflow in fp16
MOST_SKIPPED = 60
NUM_STEPS = 3
NO_WARMUP = {"warmup_epochs": 0.0}


def fp16(place: Place) -> Iterator[dict[str, Any]]:
    """Check that gradients are unscaled once and clipped, and that the loss scale recovers."""
    import torch

    from benchmarks.training_step import make_batch, our_loss
    from retrieval.training.loop import train_step

    run = without_dropout(place, "fp16", quick=place.rehearse)
    batch = make_batch(2 if place.rehearse else 16, run.model.sample_rate)
    our_loss(run, batch).backward()  # in float32
    expected = norm_of(run)
    for _ in range(MOST_SKIPPED):  # the first scale, 65,536, may be too large for these weights
        loss, norms = train_step(run, batch)
        if is_finite(norms):
            break
    found = sum(norm**2 for norm in norms.values()) ** 0.5
    clipped = norm_of(run)
    yield {
        "what": "norm of gradients",
        "float32": expected,
        "fp16, unscaled once": found,
        f"after clipping to {CLIP}": clipped,
        "loss": loss,
    }
    assert abs(found / expected - 1) < 0.05, "the norm in fp16 is not that in float32"
    assert abs(clipped / min(CLIP, found) - 1) < 1e-3, "gradients are not clipped"

    scaler, weights = run.accelerator.scaler, list(run.model.parameters())
    scaler.update(new_scale=LARGE_SCALE)
    skipped = 0
    while skipped < MOST_SKIPPED:
        before, scale = [weight.detach().clone() for weight in weights[-2:]], scaler.get_scale()
        loss, norms = train_step(run, batch)
        counts = is_finite(norms)
        is_same = all(torch.equal(old, new) for old, new in zip(before, weights[-2:]))
        assert counts != is_same, "a step that overflows must leave the weights as they are"
        assert counts or scaler.get_scale() == scale / 2, "the loss scale did not fall"
        if counts:
            break
        skipped += 1
    yield {
        "what": "loss scale",
        "at first": LARGE_SCALE,
        "steps skipped": skipped,
        "scale of the first step that counts": scale,
        "loss": loss,
    }
    assert 0 < skipped < MOST_SKIPPED, "the loss scale did not recover"


def resume(place: Place) -> Iterator[dict[str, Any]]:
    """Kill the real command with SIGKILL, resume it, and compare with an undisturbed run."""
    from safetensors.torch import load_file

    from benchmarks.full_size import QUICK, run_script, write_corpus
    from benchmarks.training_step import QUICK_TEXT, write_text_config
    from retrieval.models.dual_encoder import WEIGHTS
    from retrieval.training.states import latest_state

    folder = place.folder
    write_corpus(folder / "corpus", {"development": 12, "validation": 4}, QUICK.seconds)
    splits = ("development", "validation")
    run_script("build_clotho.py", "--root", folder / "corpus", "--splits", *splits)
    write_text_config(folder / "text_model", QUICK_TEXT)
    settings = {
        "data.cache": folder / "corpus" / "cache",
        "data.num_workers": 0,
        "text_encoder.name": folder / "text_model",
        "text_encoder.pretrained": "false",
        "audio_encoder.checkpoint": "null",
        "train.batch_size": 8,
        "train.epochs": 3 if place.rehearse else 5,
        "train.save_every_steps": 2,
        "evaluation.num_pictures": 0,
    }
    words = [f"{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "train.py", "--config", "configs/tap.yaml", *words]
    command += QUICK.overrides

    def begin(name: str, *more: str) -> subprocess.Popen:
        return subprocess.Popen([*command, f"train.output={folder / name}", *more], cwd=ROOT)

    undisturbed, killed = begin("undisturbed"), begin("killed")
    while latest_state(folder / "killed") is None and killed.poll() is None:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "the run ended before it was killed; see the log"
    state = latest_state(folder / "killed")
    assert begin("killed", "--resume").wait() == 0, "the resumed run failed; see the log"
    assert undisturbed.wait() == 0, "the undisturbed run failed; see the log"
    ours, theirs = (
        load_file(folder / name / "last" / WEIGHTS) for name in ("killed", "undisturbed")
    )
    difference = max((ours[name] - theirs[name]).abs().max().item() for name in theirs)
    largest = max(weight.abs().max().item() for weight in theirs.values())
    losses = [last_loss(folder / name) for name in ("killed", "undisturbed")]
    yield {
        "killed after": Path(state).name,
        "largest difference of a weight": difference,
        "bit-equal": difference == 0.0,
        "largest weight": largest,
        "mean loss, last epoch": losses[0],
        "undisturbed": losses[1],
    }
    most = 0.0 if not place.is_gpu else 1e-3 * largest  # atomic sums have no fixed order
    assert difference <= most, f"the resumed run differs by {difference:.1e}"


def processes(place: Place) -> Iterator[dict[str, Any]]:
    """Compare losses of one process with two on one device (gloo), and with a group of one.

    The model is tiny, also on a GPU: this step tests the exchange between processes.
    """
    alone = group(place, 1, "none")
    yield {"processes": 1, "exchange": "none", "losses": listed(alone), "largest difference": 0.0}
    for count, backend in ((2, "gloo"), (1, "nccl" if place.is_gpu else "gloo")):
        losses = group(place, count, backend)
        difference = max(abs(own - other) for own, other in zip(losses, alone))
        yield {
            "processes": count,
            "exchange": backend,
            "losses": listed(losses),
            "largest difference": difference,
        }
        assert difference < 1e-4, f"losses of {count} process(es) with {backend} differ"


# --- parts ---


def without_dropout(place: Place, precision: str, quick: bool) -> Any:
    """Make a run of tap.yaml that clips, with a full learning rate and no dropout."""
    from benchmarks.training_step import make_model, make_run
    from retrieval.base.launch import make_accelerator

    model, config = make_model(quick)
    schedule = config.optimizer.schedule.model_copy(update=NO_WARMUP)
    own = {"max_grad_norm": CLIP, "schedule": schedule}
    config = config.model_copy(update={"optimizer": config.optimizer.model_copy(update=own)})
    if place.is_gpu or precision != "fp16":
        accelerator = make_accelerator(precision, cpu=not place.is_gpu)
    else:
        accelerator = fp16_on_cpu()
    run = make_run(model, config, accelerator)
    run.wrapped.eval()
    return run


def fp16_on_cpu() -> Any:
    """Return an Accelerator of fp16 with PyTorch's own scaler; Accelerate refuses it on a CPU."""
    import torch

    from retrieval.base.launch import make_accelerator

    accelerator = make_accelerator("no", cpu=True)
    accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
    accelerator.scaler = torch.amp.GradScaler("cpu")
    return accelerator


def is_finite(norms: dict[str, float]) -> bool:
    return all(map(math.isfinite, norms.values()))


def norm_of(run: Any) -> float:
    import torch

    gradients = [weight.grad for weight in run.model.parameters() if weight.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).item()


def last_loss(folder: Path) -> float:
    lines = (folder / "history.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["train/mean_loss"]


def listed(losses: list[float]) -> str:
    return ", ".join(f"{loss:.6f}" for loss in losses)


def group(place: Place, count: int, backend: str) -> list[float]:
    """Return the losses of steps that `count` new processes take on one batch together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("fork" if place.rehearse else "spawn")  # a fork would inherit CUDA
    answers = context.SimpleQueue()
    members = [
        context.Process(target=member, args=(place, rank, count, backend, port, answers))
        for rank in range(count)
    ]
    for process in members:
        process.start()
    while any(process.is_alive() for process in members):
        time.sleep(0.02)
        if any(process.exitcode for process in members):  # the others would wait for it
            for process in members:
                process.kill()
    codes = [process.exitcode for process in members]
    assert codes == [0] * count, f"exit codes {codes}; see the log"
    results = [answers.get() for _ in members]
    assert all(result == results[0] for result in results), f"losses differ: {results}"
    return results[0]


def member(place: Place, rank: int, count: int, backend: str, port: int, answers: Any) -> None:
    """Take steps on this process's part of the batch; put the losses into `answers`."""
    import torch

    from benchmarks.training_step import make_batch
    from retrieval.base.exchange import dist
    from retrieval.training.loop import train_step

    torch.set_num_threads(1)
    if count > 1:
        # all of them see one GPU, the first
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if backend != "none":
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group(backend, init_method=address, rank=rank, world_size=count)
    run = without_dropout(place, "no", quick=True)
    if backend != "none" and count == 1:
        run.wrapped = torch.nn.parallel.DistributedDataParallel(run.wrapped)
    num_pairs = 4 if place.rehearse else 8
    batch, size = make_batch(num_pairs, run.model.sample_rate), num_pairs // count
    own = slice(rank * size, (rank + 1) * size)
    part = {name: values[own] for name, values in batch.items()}
    answers.put([train_step(run, part)[0] for _ in range(NUM_STEPS)])
    sys.stdout.flush()
    os._exit(0)  # a thread of the group may hold a tensor of the last exchange
