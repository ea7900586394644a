"""The full-size benchmark runs in miniature with the real commands."""

import re
from functools import partial

import pytest

from benchmarks import full_size
from tests.conftest import mistake, run_here

run = partial(run_here, full_size.main)


@pytest.mark.slow
def test_quick_run_prints_seconds_and_memory_and_cleans_up(tmp_path):
    result = run("--quick", "--steps", "2", "--work", str(tmp_path))
    assert result.returncode == 0, result.stderr[-2000:]
    assert re.findall(r"^step (\d+): \d+\.\d s, loss \d\.\d{4}$", result.stdout, re.MULTILINE) == [
        "1",
        "2",
    ]
    peaks = re.search(
        r"peak memory .*: (\S+) GiB after the last step, (\S+) GiB in the whole command",
        result.stdout,
    )
    assert 0.1 < float(peaks[1]) <= float(peaks[2]) + 0.01 < 20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "1"], "--batch-size 1: must be 2 or more"),
        (["--work", "absent"], "absent is not a folder; make it"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    said = mistake(full_size.main, *arguments)
    assert said.startswith("error: ") and message in said and said.count("\n") == 1
