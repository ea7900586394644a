"""The two-stage benchmark runs in miniature, its scores agree and it draws; its counting of hits is
checked by hand.
"""

import re
from functools import partial

import pytest
import torch

from benchmarks import two_stage
from benchmarks.two_stage import quality
from tests.conftest import mistake, run_here

run = partial(run_here, two_stage.main)


def test_quick_run_prints_the_curve_and_draws_it(tmp_path):
    picture = tmp_path / "two_stage.png"
    result = run("--quick", "--output", str(picture))
    assert result.returncode == 0, result.stderr[-2000:]
    rows = re.findall(
        r"^(\d+) +(\d+\.\d\d) +(\d+\.\d) +(\d+\.\d\d) +(\d+\.\d) +\d+\.\d{4} +\d+\.\d\d$",
        result.stdout,
        re.MULTILINE,
    )
    assert [int(row[0]) for row in rows] == [1, 2, 5, 10, 15]
    # all clips: the first stage does not matter
    assert rows[-1][1] == rows[-1][3] and rows[-1][2] == rows[-1][4] == "100.0"
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
    absent = tmp_path / "absent"
    expected = (
        f"error: --checkpoint {absent} is not a folder; `make demo` trains runs/sample_tap/best\n"
    )
    assert mistake(two_stage.main, "--checkpoint", str(absent)) == expected


def test_a_picture_that_cannot_be_written_is_noticed_before_anything_is_measured(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(two_stage, "curve", lambda *_: 1 / 0)
    absent = tmp_path / "absent"
    expected = (
        f"error: --output {absent}/a.png: there is no folder {absent}; make it, or choose another"
        " file\n"
    )
    assert mistake(two_stage.main, "--quick", "--output", str(absent / "a.png")) == expected
    for name in ("a", "a.text", "folder.png"):
        (tmp_path / "folder.png").mkdir(exist_ok=True)
        expected = (
            f"error: --output {tmp_path}/{name}: give a file with the suffix of a picture, such as"
            " picture.png\n"
        )
        assert mistake(two_stage.main, "--quick", "--output", str(tmp_path / name)) == expected
    assert not absent.exists()
