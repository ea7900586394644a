"""The two-stage benchmark runs in miniature, its scores agree and it draws; its counting of hits is checked by hand."""

import re
from functools import partial

import pytest
import torch

from benchmarks.two_stage import quality
from tests.conftest import run_module

run = partial(run_module, "benchmarks.two_stage")


def test_quick_run_prints_the_curve_and_draws_it(tmp_path):
    picture = tmp_path / "two_stage.png"
    result = run("--quick", "--output", str(picture))
    assert result.returncode == 0, result.stderr[-2000:]
    rows = re.findall(r"^(\d+) +(\d+\.\d\d) +(\d+\.\d) +(\d+\.\d\d) +(\d+\.\d) +\d+\.\d{4} +\d+\.\d\d$", result.stdout, re.MULTILINE)
    assert [int(row[0]) for row in rows] == [1, 2, 5, 10, 15]
    assert rows[-1][1] == rows[-1][3] and rows[-1][2] == rows[-1][4] == "100.0"  # all clips: the first stage does not matter
    assert float(rows[0][1]) <= float(rows[-1][1])
    assert result.stdout.count("largest difference of a score") == 2 and "one text" in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_right_clip_that_is_no_candidate_or_ties_counts_less():
    candidates = torch.tensor([[4, 0], [1, 2], [3, 5], [5, 0]])
    scores = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.5, 0.5], [0.9, 0.8]])
    mean_average_precision, among = quality(candidates, scores, torch.tensor([4, 2, 3, 1]))
    assert mean_average_precision == pytest.approx((1 + 1 / 2 + 1 / 2 + 0) / 4)
    assert among == 3 / 4


def test_mistakes_are_one_line(tmp_path):
    result = run("--checkpoint", str(tmp_path / "absent"))
    assert result.returncode == 2
    assert result.stderr == f"error: --checkpoint {tmp_path / 'absent'} is no folder; `make demo` trains runs/sample_tap/best\n"
    result = run("--quick", "--output", str(tmp_path / "absent" / "a.png"))
    assert result.returncode == 2
    assert result.stderr.startswith("error: --output ") and result.stderr.count("\n") == 1
