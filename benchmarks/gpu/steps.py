"""The steps of benchmarks.gpu, in their order, with their time limits.

A step is a generator function in a module of this folder. It gets a Place and yields rows: dicts of
numbers and words, whose first keys name the row. It imports packages inside the function, so that a
missing one affects no other step.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """Where and how a step runs.

    Args:
        device: "cuda", or "cpu" in a rehearsal.
        rehearse: Tiny sizes: figures have no meaning.
        folder: Empty folder for the step's files, deleted afterwards.
        output: Folder for files that stay.
        seconds: Time limit.
    """

    device: str
    rehearse: bool
    folder: Path
    output: Path
    seconds: float

    @property
    def is_gpu(self) -> bool:
        return self.device == "cuda"


class NotHere(Exception):
    """A step cannot run on this machine; the message says why."""


@dataclass(frozen=True)
class Step:
    """One measurement.

    Args:
        title: Heading in the Markdown file.
        function: module:function, a generator of rows.
        seconds: Its time limit at full size.
    """

    title: str
    function: str
    seconds: float


# The most important first: if time runs out, the last ones are not run.
STEPS = {
    "parity": Step("Golden numbers in float32, bf16 and fp16", "benchmarks.gpu.parity:parity", 45),
    "tap": Step(
        "A training step of tap.yaml against the plain way", "benchmarks.gpu.training:tap", 75
    ),
    "trace": Step("Where a step's time goes", "benchmarks.gpu.trace:trace", 50),
    "savings": Step(
        "Micro-batches and activation checkpointing", "benchmarks.gpu.training:savings", 50
    ),
    "baseline": Step("A training step of baseline.yaml", "benchmarks.gpu.training:baseline", 60),
    "fp16": Step("fp16 with clipping", "benchmarks.gpu.runs:fp16", 40),
    "resume": Step("A run that is killed and resumed", "benchmarks.gpu.runs:resume", 90),
    "processes": Step(
        "Two processes on one GPU with gloo, one with NCCL", "benchmarks.gpu.runs:processes", 60
    ),
    "validation": Step("A validation pass", "benchmarks.gpu.scoring:validation", 50),
    "scores": Step(
        "TAP scores of 5,225 captions and 1,045 clips", "benchmarks.gpu.scoring:scores", 40
    ),
    "loading": Step("Waiting for data", "benchmarks.gpu.scoring:loading", 50),
    "search": Step("An index and queries", "benchmarks.gpu.scoring:search", 60),
    "pretrained": Step(
        "A training step of CLAP with all weights", "benchmarks.gpu.training:pretrained", 50
    ),
    "compile": Step(
        "A training step of tap.yaml with train.compile", "benchmarks.gpu.training:compiled", 150
    ),
}
