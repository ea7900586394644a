"""One saved trace of a training step, read: seconds by families of operators, and waiting.

The file is a Chrome trace (chrome://tracing, https://ui.perfetto.dev).
"""

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.steps import Place

FILE = "step.json.gz"
STEP = "training step"  # the range in the trace that is read
# The first family whose pattern is in the name of a kernel (GPU) or operator (CPU) counts.
FAMILIES = {
    "attention": r"flash|fmha|attention|sdpa|efficient_attn",
    "matrix products": (
        r"gemm|gemv|splitk|cutlass|cublas|xmma|nvjet|matmul|::(add|ba)?mm\b|::bmm|linear"
    ),
    "optimizer": r"adam|multi_tensor|foreach|optimizer",
    "copies": r"memcpy|memset|copy|::to\b|_to_copy|cat\b|CatArray|index_copy|zero_|fill",
    "spectrogram": r"fft|stft|conv|resample|amplitude",
    "norms and elementwise": (
        r"norm|softmax|gelu|elementwise|reduce|dropout|vectorized|unrolled|triton|mul|add|sub|div"
        r"|sum|mean|pow|sqrt|exp|log|tanh|where|masked|embedding|rsqrt|clamp|cosine"
    ),
}
GPU_KINDS = ("kernel", "gpu_memcpy", "gpu_memset")


def trace(place: Place) -> Iterator[dict[str, Any]]:
    """Profile a step of tap.yaml in bf16; save the trace in the folder of the results."""
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    from benchmarks.gpu.training import release, start
    from benchmarks.training_step import make_batch, make_model
    from retrieval.training.loop import train_step

    run = start(place, *make_model(place.rehearse, "tap"))
    batch = make_batch(2 if place.rehearse else 32, run.model.sample_rate)
    for _ in range(1 if place.rehearse else 3):
        train_step(run, batch)
    release(run)
    train_step(run, batch)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * place.is_gpu
    if place.is_gpu:
        torch.cuda.synchronize()
    with profile(activities=activities) as profiler, record_function(STEP):
        train_step(run, batch)
        if place.is_gpu:
            torch.cuda.synchronize()
    path = place.output / FILE
    profiler.export_chrome_trace(str(path))
    yield from read(path)


def read(path: Path) -> list[dict[str, Any]]:
    """Return rows of family, ms, share of the step, and the number and longest of its events.

    With kernels of a GPU in the trace their times count, and `waiting` is the time in which none
    of them ran; else the operators' own times on the CPU, without the operators that they call.
    """
    with gzip.open(path, "rt") as file:
        events = [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    step = next(
        event for event in events if event["name"] == STEP and event["cat"] == "user_annotation"
    )
    first, last = step["ts"], step["ts"] + step["dur"]
    inside = [event for event in events if first <= event["ts"] < last]
    kernels = [event for event in inside if event.get("cat") in GPU_KINDS]
    if kernels:
        times = [(event["name"], event["dur"]) for event in kernels]
        busy = covered((event["ts"], event["ts"] + event["dur"]) for event in kernels)
    else:
        operators = [event for event in inside if event.get("cat") == "cpu_op"]
        times = own_times(operators)
        busy = covered((event["ts"], event["ts"] + event["dur"]) for event in operators)
    by_family: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for name, microseconds in times:
        by_family[family_of(name)].append((name, microseconds))
    rows = []
    for family, members in sorted(
        by_family.items(), key=lambda item: -sum(time for _, time in item[1])
    ):
        total = sum(time for _, time in members)
        of_name: dict[str, float] = defaultdict(float)
        for name, time in members:
            of_name[name] += time
        most = max(of_name, key=of_name.get)
        rows.append(_row(family, total, step["dur"], len(members), most[:60]))
    rows.append(_row("waiting", max(0.0, step["dur"] - busy), step["dur"], 0, ""))
    rows.append(_row("whole step", step["dur"], step["dur"], len(times), ""))
    return rows


def _row(family: str, microseconds: float, whole: float, count: int, most: str) -> dict[str, Any]:
    return {
        "family": family,
        "ms": microseconds / 1000,
        "of the step": microseconds / whole,
        "events": count,
        "most time in": most,
    }


def family_of(name: str) -> str:
    return next(
        (family for family, pattern in FAMILIES.items() if re.search(pattern, name, re.I)), "other"
    )


def own_times(events: list[dict[str, Any]]) -> list[tuple[str, float]]:
    """Return the microseconds of each operator of a thread without those that it calls."""
    result: list[tuple[str, float]] = []
    by_thread: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        by_thread[event["tid"]].append(event)
    for of_thread in by_thread.values():
        open_calls: list[tuple[float, int]] = []  # end, place in `result`
        for event in sorted(of_thread, key=lambda event: (event["ts"], -event["dur"])):
            while open_calls and open_calls[-1][0] <= event["ts"]:
                open_calls.pop()
            if open_calls:
                name, own = result[open_calls[-1][1]]
                result[open_calls[-1][1]] = name, own - event["dur"]
            open_calls.append((event["ts"] + event["dur"], len(result)))
            result.append((event["name"], event["dur"]))
    return result


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of spans."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
