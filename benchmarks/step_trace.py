"""Profile a training step: time by families of operators, in both passes, and waiting.

    python -m benchmarks.training_step --profile [--precision bf16]

The trace of torch.profiler is a Chrome trace (chrome://tracing, https://ui.perfetto.dev).
"""

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from retrieval.training.loop import train_step
from retrieval.training.setup import Run

STEP = "training step"  # name of the range in the trace
# A kernel (GPU) or operator (CPU) belongs to the first family whose pattern is in its name.
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


BACKWARD = "autograd::engine::evaluate_function"


def save_trace(run: Run, batch: dict[str, Any], path: Path) -> None:
    """Profile a step, after one without profiling; write the trace, gzipped JSON, to `path`."""
    on_gpu = run.accelerator.device.type == "cuda"
    train_step(run, batch)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    if on_gpu:
        torch.cuda.synchronize()
        with profile(activities=activities):  # the first one starts the driver's tools
            torch.ones(1, device="cuda").sum().item()
    with profile(activities=activities) as profiler, record_function(STEP):
        train_step(run, batch)
        if on_gpu:
            torch.cuda.synchronize()
    profiler.export_chrome_trace(str(path))


def read(path: Path) -> list[dict[str, Any]]:
    """Return a row for each family: ms, share of the step, number of events, most expensive name.

    On a GPU the times are those of kernels, and `waiting` is the time without any kernel. On a CPU
    they are the operators' own times, without the operators that they call, and each row also has
    the part in the backward pass.
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
        times = [(event["name"], event["dur"], None) for event in kernels]
        busy = covered((event["ts"], event["ts"] + event["dur"]) for event in kernels)
    else:
        operators = [event for event in inside if event.get("cat") == "cpu_op"]
        times = own_times(operators)
        busy = covered((event["ts"], event["ts"] + event["dur"]) for event in operators)
    by_family: dict[str, list[tuple[str, float, bool | None]]] = defaultdict(list)
    for name, microseconds, is_backward in times:
        by_family[family_of(name)].append((name, microseconds, is_backward))
    rows = []
    for family, members in sorted(
        by_family.items(), key=lambda item: -sum(time for _, time, _ in item[1])
    ):
        total = sum(time for _, time, _ in members)
        of_name: dict[str, float] = defaultdict(float)
        for name, time, _ in members:
            of_name[name] += time
        most = max(of_name, key=of_name.get)
        row = _row(family, total, step["dur"], len(members), most[:60])
        if not kernels:
            backward = sum(time for _, time, is_backward in members if is_backward)
            row["backward ms"] = backward / 1000
        rows.append(row)
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


def own_times(events: list[dict[str, Any]]) -> list[tuple[str, float, bool]]:
    """Return (name, own microseconds, whether in the backward pass) of each operator.

    An operator's own time is without the operators that it calls.
    """
    result: list[tuple[str, float, bool]] = []
    by_thread: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        by_thread[event["tid"]].append(event)
    for of_thread in by_thread.values():
        open_calls: list[tuple[float, int]] = []  # end, place in `result`
        for event in sorted(of_thread, key=lambda event: (event["ts"], -event["dur"])):
            while open_calls and open_calls[-1][0] <= event["ts"]:
                open_calls.pop()
            is_backward = event["name"].startswith(BACKWARD)
            if open_calls:
                name, own, caller_is_backward = result[open_calls[-1][1]]
                result[open_calls[-1][1]] = name, own - event["dur"], caller_is_backward
                is_backward |= caller_is_backward
            open_calls.append((event["ts"] + event["dur"], len(result)))
            result.append((event["name"], event["dur"], is_backward))
    return result


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of spans."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
