"""The benchmark of a validation pass runs in miniature, and both ways agree."""

import re
from functools import partial

from benchmarks import plain, validation_pass
from tests.conftest import mistake, run_here

run = partial(run_here, validation_pass.main)


def test_quick_run_prints_difference_and_ratio():
    result = run("--quick", "--num-clips", "4")
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.startswith("4 clips x 20 captions ")
    assert re.search(r"^largest difference of a score \d\.\de-\d\d$", result.stdout, re.MULTILINE)
    assert re.search(r"^ratio \d+\.\d\d$", result.stdout, re.MULTILINE)


def test_negative_control_other_texts_are_seen(monkeypatch, capsys):
    usual = plain.encode_text
    monkeypatch.setattr(plain, "encode_text", lambda model, captions: usual(model, captions) + 0.1)
    assert validation_pass.main(["--quick", "--num-clips", "2"]) == 1
    assert "scores differ by more than 1e-05" in capsys.readouterr().err


def test_a_mistake_is_one_line():
    assert (
        mistake(validation_pass.main, "--num-clips", "0")
        == "error: --num-clips 0: must be 1 or more\n"
    )
