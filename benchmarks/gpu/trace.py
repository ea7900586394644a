"""Trace of a training step: time by families of operators, and waiting."""

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.steps import Place

FILE = "step.json.gz"


def trace(place: Place) -> Iterator[dict[str, Any]]:
    """Profile a step of tap.yaml in bf16; save the trace in the folder of the results."""
    from benchmarks.gpu.training import release, start
    from benchmarks.step_trace import read, save_trace
    from benchmarks.training_step import make_batch, make_model
    from retrieval.training.loop import train_step

    run = start(place, *make_model(place.rehearse, "tap"))
    batch = make_batch(2 if place.rehearse else 32, run.model.sample_rate)
    for _ in range(1 if place.rehearse else 3):
        train_step(run, batch)
    release(run)
    save_trace(run, batch, place.output / FILE)
    yield from read(place.output / FILE)
