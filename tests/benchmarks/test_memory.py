"""The memory benchmark runs in miniature: a line for every batch size and way."""

import re
from functools import partial

import pytest

from benchmarks import memory
from tests.conftest import mistake, run_here

run = partial(run_here, memory.main)


@pytest.mark.slow
def test_quick_run_measures_every_way(tmp_path):
    result = run("--quick", "--batch-sizes", "4", "--work", str(tmp_path))
    assert result.returncode == 0, result.stderr[-2000:]
    lines = re.findall(
        r"^batch   4, (.+?) +(\d+\.\d\d) GiB, \d+\.\d s$", result.stdout, re.MULTILINE
    )
    assert [way for way, _ in lines] == ["plain", "checkpointing", "parts", "parts, checkpointing"]
    assert all(0.1 < float(peak) < 8 for _, peak in lines)
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_line():
    assert (
        mistake(memory.main, "--batch-sizes", "1") == "error: --batch-sizes 1: must be 2 or more\n"
    )
    said = mistake(memory.main, "--work", "absent")
    assert "absent is not a folder; make it" in said and said.count("\n") == 1
