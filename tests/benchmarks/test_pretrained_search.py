"""The benchmark of search by CLAP runs, in miniature. The figures are for a quiet machine."""

import re

from benchmarks import pretrained_search
from tests.conftest import mistake, run_here


def test_quick_run_prints_seconds_per_hour_and_milliseconds(tmp_path):
    result = run_here(pretrained_search.main, "--quick", "--work", str(tmp_path))
    assert result.returncode == 0, result.stderr[-2000:]
    assert re.search(
        r"^index: [\d.]+ s for 1 min, \d+ s per hour; \d+ s of processor time per hour$",
        result.stdout,
        re.MULTILINE,
    )
    assert re.findall(r"text encoder (\S+ ?\S*): median", result.stdout) == ["PyTorch", "8 bit"]
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_one_line():
    assert "--minutes 0: must be" in mistake(pretrained_search.main, "--minutes", "0")
