"""The benchmark of the ONNX export runs, in miniature. The figures are for a quiet machine."""

import re

from benchmarks import onnx_export
from tests.conftest import mistake, run_module


def test_quick_run_prints_seconds_sizes_and_differences(tmp_path):
    result = run_module("benchmarks.onnx_export", "--quick", "--work", str(tmp_path))
    assert result.returncode == 0, result.stderr[-2000:]
    pattern = (
        r"^largest differences: mask 0.0e\+00, frames (\S+), text (\S+), score (\S+), all three"
        r" (\S+)$"
    )
    differences = re.search(pattern, result.stdout, re.MULTILINE)
    assert all(float(found) < 1e-4 for found in differences.groups())
    assert re.findall(
        r"^(\w+): PyTorch [\d.]+ s, ONNX Runtime [\d.]+ s$", result.stdout, re.MULTILINE
    ) == ["audio", "text", "score"]
    assert len(re.findall(r"^\w+\.onnx: [\d.]+ MB in 1 file", result.stdout, re.MULTILINE)) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_one_line():
    said = mistake(onnx_export.main, "--work", "absent")
    assert (
        said.startswith("error: --work ")
        and "absent is not a folder; make it" in said
        and said.count("\n") == 1
    )
