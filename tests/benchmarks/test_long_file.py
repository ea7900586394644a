"""The benchmark of one long file runs in miniature."""

import re
from functools import partial

import pytest

from benchmarks import long_file
from tests.conftest import mistake, run_module

run = partial(run_module, "benchmarks.long_file")


@pytest.mark.slow
def test_quick_run_prints_seconds_and_memory():
    result = run("--quick")
    assert result.returncode == 0, result.stderr[-2000:]
    lines = re.findall(r"^(\S+) min: (\S+) s, .* ([\d,]+) MiB at most$", result.stdout, re.M)
    assert [float(minutes) for minutes, *_ in lines] == [0.1, 0.5]
    assert re.search(r"0.5 min indexed in \S+ s; then a query takes \d+ ms", result.stdout)


def test_wrong_lengths_are_refused():
    assert "--minutes" in mistake(long_file.main, "--minutes", "0")
