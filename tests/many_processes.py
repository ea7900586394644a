"""What the tests of many processes run in each of them: the training step with and without faults,
bytes that travel, evaluation, interrupted runs.

Letters: N pairs of all processes together, n of this one, T frames, D dimensions.
"""

import os
import random
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from retrieval.base import exchange
from retrieval.base.errors import UserError
from retrieval.base.stopping import Interrupted
from retrieval.config import load_config
from retrieval.data import MomentQuery
from retrieval.evaluation.result import evaluate_split
from retrieval.losses import LOSSES
from retrieval.models.build import build_model
from retrieval.moments.locator import Locator
from retrieval.moments.split import answer_split
from retrieval.training import loop, objective, setup
from retrieval.training.setup import Run, prepare

BATCH_SIZE = 7
STEPS = {"full": 1, "last": 3}  # of the first epoch: 7 pairs, and the 3 that are left
CASES = [(pooling, loss) for pooling in ("mean", "tap") for loss in LOSSES]
FAULTS = (
    "own negatives only",
    "no sum over texts",
    "no factor",
    "columns summed",
    "temperature once a process",
)
SCHEDULE = ["optimizer.schedule.warmup_epochs=0.5", "optimizer.schedule.rampdown_start=0.6"]
AUDIO_BATCH_SIZES, TEXT_BATCH_SIZES, BLOCK_ELEMENTS = (1, 3, 16), (1, 256), (64, 2**22)


@dataclass(frozen=True)
class Inputs:
    """Folders of the fixtures."""

    tiny: Path
    teacher: Path
    sentence_encoder: Path

    def settings(self, pooling: str, loss: str) -> list[str]:
        """No dropout, and every parameter learns that can."""
        settings = [
            "text_encoder.dropout=0",
            "pooling.attention_dropout=0",
            "loss.learnable_temperature=true",
            "evaluation.num_pictures=0",
        ]
        settings += [
            f"pooling.name={pooling}",
            f"loss.name={loss}",
            f"loss.sentence_encoder={self.sentence_encoder}",
        ]
        # With weights as small as RoBERTa's own at the start all captions would mean the same.
        settings += [
            f"text_encoder.name={self.sentence_encoder}",
            "text_encoder.pretrained=true",
            "text_encoder.readout=mean",
        ]
        settings += [f"train.batch_size={BATCH_SIZE}"]
        return settings + (
            [f"loss.teachers=[{self.teacher}]", "loss.loss_weight=0.5"]
            if loss == "distillation"
            else []
        )


def start(
    tiny: Path,
    output: Path,
    settings: list[str],
    dtype: torch.dtype = torch.float32,
    config: Path | None = None,
) -> Run:
    """What training starts from. In float64 a difference is a mistake and not rounding."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=False)
    config = load_config(config or tiny / "tiny.yaml", [*settings, f"train.output={output}"])
    with mock.patch.object(setup, "build_model", lambda config: build_model(config).to(dtype)):
        run = prepare(config, output, resume=False, overwrite=True)
    if run.lock is not None:
        run.lock.close()  # the next run is made in the same folder while this one is still held
    run.wrapped.train()
    return run


def step(run: Run, number: int) -> dict[str, Any]:
    """Loss and gradients of one step of epoch 0, and this process's pairs and clips; the weights
    stay.
    """
    run.batches.start(0, number)
    batch = next(iter(run.loader))
    with mock.patch.object(run.optimizer, "step", lambda: None):
        loss = loop.train_step(run, batch)[0]
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in run.model.named_parameters()
        if parameter.requires_grad
    }
    return {
        "loss": loss,
        "gradients": gradients,
        "pairs": batch["pairs"].tolist(),
        "clips": batch["clips"].tolist(),
    }


# --- faults ---


def own_negatives(
    run: Run, batch: dict[str, Any], text: torch.Tensor, frames: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """A missing gather: each process its own loss, averaged, as where DistributedDataParallel is
    all that is known of other processes.
    """
    loss = run.objective(
        run.model, run.model.score(text, frames, mask), batch["clips"], batch["pairs"]
    )
    return loss / exchange.world_size()


@contextmanager
def fault(name: str) -> Iterator[None]:
    patches = {
        "own negatives only": (loop, "batch_loss", own_negatives),
        "no sum over texts": (loop, "gather_texts", exchange._GatherOwn.apply),
        "no factor": (loop, "world_size", lambda: 1),
        "columns summed": (
            loop,
            "gather_columns",
            lambda scores: exchange._GatherSummed.apply(scores.T).T,
        ),
        "temperature once a process": (objective, "replicated", lambda parameter: parameter),
    }
    with mock.patch.object(*patches[name]):
        yield


# --- bytes ---


class CountBytes(TorchDispatchMode):
    """What this process hands to collectives: bytes by operation, also those that
    DistributedDataParallel calls from C++.
    """

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if "c10d" in function.namespace:
            # a gather names first what it fills
            given = args[1] if "gather" in function.__name__ else args[0]
            self.calls.append(
                (
                    function.__name__,
                    sum(
                        leaf.nbytes for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor)
                    ),
                )
            )
        return function(*args, **kwargs or {})


def loss_that_gathers_frames(
    run: Run, batch: dict[str, Any], text: torch.Tensor, frames: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    exchange.gather_rows(frames)
    return BATCH_LOSS(run, batch, text, frames, mask)


BATCH_LOSS = loop.batch_loss


def count_bytes(run: Run, loss: Callable) -> dict[str, Any]:
    """Of the third step: DistributedDataParallel arranges its buckets after the first, and tells
    the others.
    """
    shapes = {}

    def seen(
        run: Run,
        batch: dict[str, Any],
        text: torch.Tensor,
        frames: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        shapes["text"], shapes["frames"] = tuple(text.shape), tuple(frames.shape)
        return loss(run, batch, text, frames, mask)

    with mock.patch.object(loop, "batch_loss", seen):
        step(run, 0)
        step(run, 0)
        with CountBytes() as count:
            step(run, STEPS["full"])
    num_trained = sum(
        parameter.numel() for parameter in run.model.parameters() if parameter.requires_grad
    )
    return {"calls": count.calls, "num_trained": num_trained, **shapes}


# --- what a process does ---


def collect(inputs: Inputs, output: Path) -> dict[str, Any]:
    """All results of this process, whatever the number of processes."""
    results: dict[str, Any] = {
        name: {} for name in ("steps", "faults", "bytes", "scores", "moments")
    }
    for pooling, loss in CASES:
        run = start(inputs.tiny, output, inputs.settings(pooling, loss), torch.float64)
        results["steps"][pooling, loss] = {
            name: step(run, number) for name, number in STEPS.items()
        }
    if exchange.world_size() == 2:
        for name in FAULTS:
            run = start(inputs.tiny, output, inputs.settings("tap", "nt_xent"), torch.float64)
            with fault(name):
                results["faults"][name] = step(run, STEPS["full"])
    for pooling in ("mean", "tap"):
        for seconds in (1.0, 2.0):
            run = start(
                inputs.tiny,
                output,
                [*inputs.settings(pooling, "nt_xent"), f"data.max_seconds={seconds}"],
            )
            results["bytes"][pooling, seconds] = count_bytes(run, BATCH_LOSS)
            if pooling == "tap":
                results["bytes"]["frames gathered", seconds] = count_bytes(
                    run, loss_that_gathers_frames
                )
    run = start(inputs.tiny, output, [*inputs.settings("tap", "nt_xent"), *SCHEDULE], torch.float64)
    results["drawn"] = torch.rand(3)  # as dropout would
    results["epoch"] = epoch(run)
    settings = [*inputs.settings("tap", "nt_xent"), "train.ema_decay=0.5"]
    run = start(inputs.tiny, output, settings, torch.float64)
    epoch(run)
    results["averages"] = run.average.averages
    for pooling in ("mean", "tap"):
        run = start(inputs.tiny, output, [*inputs.settings(pooling, "nt_xent"), "seed=2"])
        results["scores"][pooling] = evaluations(run)
        results["moments"][pooling] = moments(run)
    return results


def epoch(run: Run) -> dict[str, Any]:
    """Learning rates, losses and this process's pairs of each step, as in loop.train_epoch."""
    result: dict[str, Any] = {
        "steps_per_epoch": run.steps_per_epoch,
        "rates": [],
        "losses": [],
        "pairs": [],
    }
    run.batches.start(0)
    for batch in run.loader:
        loss = loop.train_step(run, batch)[0]
        run.progress.step += 1
        result["rates"].append([group["lr"] for group in run.optimizer.param_groups])
        result["losses"].append(loss)
        result["pairs"].append(batch["pairs"].tolist())
    return result


def moments(run: Run) -> dict[int, list[tuple[str, list[tuple[float, ...]]]]]:
    """Answers to the captions of the validation split, by the number of clips that are asked: of
    one clip only one process has something to do.
    """
    split, found = run.validation, {}
    for num_clips in (1, len(split)):
        asked = [
            [MomentQuery(f"{clip}_{number}", caption, ()) for number, caption in enumerate(own)]
            for clip, own in enumerate(split.captions[:num_clips])
        ]
        asked += [[] for _ in range(len(split) - num_clips)]
        answers = answer_split(Locator(run.model), split, asked)
        found[num_clips] = [(one.qid, list(map(tuple, one.moments))) for one in answers]
    return found


def evaluations(
    run: Run,
) -> dict[tuple[int, int, int], tuple[torch.Tensor, dict[str, dict[str, float]]]]:
    """Scores and metrics of the validation split, by (audio_batch_size, text_batch_size,
    block_elements).
    """
    results = {}
    keeps_frames = run.model.pooling.keeps_frames
    for block_elements in BLOCK_ELEMENTS if keeps_frames else BLOCK_ELEMENTS[-1:]:
        run.model.pooling.block_elements = block_elements
        for audio_batch_size in AUDIO_BATCH_SIZES:
            for text_batch_size in TEXT_BATCH_SIZES:
                sizes = {"audio_batch_size": audio_batch_size, "text_batch_size": text_batch_size}
                found = evaluate_split(run.model, run.validation, **sizes)
                results[audio_batch_size, text_batch_size, block_elements] = (
                    found.scores,
                    found.metrics,
                )
    return results


def join(rank: int, num_processes: int, port: int) -> None:
    """What a launcher says to the process that it starts."""
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(num_processes),
    }
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }


def leave() -> None:
    """The end of a group of processes, of which another may follow."""
    exchange.release_tensors()
    torch.distributed.destroy_process_group()


def work(rank: int, ports: dict[int, int], inputs: Inputs, folder: Path) -> None:
    """`collect` with each number of processes in turn, on the processes whose rank it has: to start
    them costs more than their work.
    """
    from accelerate.state import AcceleratorState

    for num_processes, port in ports.items():
        if rank >= num_processes:
            continue
        join(rank, num_processes, port)
        AcceleratorState._reset_state(reset_partial_state=True)
        results = collect(inputs, folder / f"run_of_{num_processes}")
        assert exchange.world_size() == num_processes
        torch.save(results, folder / f"{rank}_of_{num_processes}.pt")
        leave()


def free_port() -> int:
    """For processes that need seconds before they listen: not one that the system gives to whoever
    asks it for any, such as tests beside this one.
    """
    while True:
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port := random.SystemRandom().randrange(10_000, 32_000)))
            return port


# --- runs that are interrupted, and go on ---


def run_script(arguments: list[str], stop: str = "") -> str:
    """train.py with `arguments`, interrupted after an epoch or within one if `stop` says so; its
    exit code, or the user's mistake.
    """
    from accelerate.state import AcceleratorState

    import train as script

    AcceleratorState._reset_state(reset_partial_state=False)
    train_step, validate = loop.train_step, loop.validate

    def interrupted_validation(run: Run) -> None:
        if run.progress.global_step > 0:  # 0: train.validate_first
            raise Interrupted(signal.SIGTERM)
        validate(run)

    def interrupted_step(run: Run, batch: dict[str, Any]) -> tuple[float, dict[str, float]]:
        if run.progress.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(run, batch)

    patches = {"validate": interrupted_validation if stop == "after an epoch" else validate}
    patches["train_step"] = interrupted_step if stop == "within an epoch" else train_step
    try:
        with mock.patch.multiple(loop, **patches):
            return str(script.main(arguments))
    except UserError as error:
        return str(error)


def run_scripts(rank: int, port: int, runs: dict[str, tuple[list[str], str]], folder: Path) -> None:
    """`run_script` for each of `runs` on two processes; what came of them in FOLDER/RANK.pt."""
    join(rank, 2, port)
    torch.save({name: run_script(*run) for name, run in runs.items()}, folder / f"{rank}.pt")
    leave()
