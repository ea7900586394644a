"""A trace of a training step is read: families of operators, backward pass, waiting."""

import gzip
import json
from pathlib import Path

import pytest

from benchmarks import step_trace


def write_trace(path: Path, events: list[dict]) -> Path:
    step = {"name": step_trace.STEP, "cat": "user_annotation", "ts": 100.0, "dur": 100.0}
    content = [{"ph": "X", "tid": 1} | event for event in [step, *events]]
    with gzip.open(path, "wt") as file:
        json.dump({"traceEvents": [*content, {"ph": "M", "name": "no event"}]}, file)
    return path


def test_kernels_of_a_gpu_count_and_their_gaps_are_waiting(tmp_path):
    kernels = [
        ("void cutlass::Kernel2<gemm>", "kernel", 110.0, 30.0),
        ("flash_fwd_kernel", "kernel", 130.0, 20.0),  # 10 beside the product
        ("Memcpy HtoD", "gpu_memcpy", 160.0, 10.0),
        ("void gemm_before_the_step", "kernel", 10.0, 50.0),
    ]
    events = [
        {"name": name, "cat": kind, "ts": start, "dur": duration, "tid": 7}
        for name, kind, start, duration in kernels
    ]
    events.append({"name": "aten::mm", "cat": "cpu_op", "ts": 101.0, "dur": 90.0})
    rows = {row["family"]: row for row in step_trace.read(write_trace(tmp_path / "t.gz", events))}
    milliseconds = {family: row["ms"] for family, row in rows.items()}
    assert milliseconds == pytest.approx(
        {
            **{"matrix products": 0.03, "attention": 0.02, "copies": 0.01},
            **{"waiting": 0.05, "whole step": 0.1},
        }
    )


def test_without_kernels_each_operator_counts_without_those_that_it_calls(tmp_path):
    operators = [
        ("aten::linear", 100.0, 50.0, 1),
        ("aten::addmm", 110.0, 30.0, 1),
        ("aten::copy_", 115.0, 5.0, 1),
        ("autograd::engine::evaluate_function: NativeLayerNormBackward0", 150.0, 12.0, 1),
        ("aten::native_layer_norm_backward", 150.0, 10.0, 1),
        ("aten::_fused_adamw_", 105.0, 20.0, 2),  # another thread
    ]
    events = [
        {"name": name, "cat": "cpu_op", "ts": start, "dur": duration, "tid": thread}
        for name, start, duration, thread in operators
    ]
    rows = {row["family"]: row for row in step_trace.read(write_trace(tmp_path / "t.gz", events))}
    assert {family: row["ms"] for family, row in rows.items()} == pytest.approx(
        {
            **{"matrix products": 0.045, "copies": 0.005, "norms and elementwise": 0.012},
            **{"optimizer": 0.02, "waiting": 0.038, "whole step": 0.1},
        }
    )
    backward = {family: row["backward ms"] for family, row in rows.items() if "backward ms" in row}
    assert backward.pop("norms and elementwise") == pytest.approx(0.012)
    assert not any(backward.values())
