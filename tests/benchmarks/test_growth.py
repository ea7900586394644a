"""The growth benchmark runs in miniature: a plot, and bytes of a step as by the formula."""

import re
from functools import partial

import pytest

from benchmarks import growth
from benchmarks.growth import formula
from tests.conftest import mistake, run_module

run = partial(run_module, "benchmarks.growth")


@pytest.mark.slow
def test_quick_run_plots_and_counts_what_the_formula_says():
    result = run("--quick", "--threads", "2")
    assert result.returncode == 0, result.stderr[-2000:]
    points = re.findall(
        r"^(step|scoring), .*?(\d) process\(es\) +(\S+) s +(\S+) GiB$", result.stdout, re.MULTILINE
    )
    assert [processes for name, processes, _, _ in points if name == "step"] == [
        "1",
        "1",
        "1",
        "1",
        "2",
        "2",
    ]
    assert len(points) == 10 and all(
        float(seconds) > 0 and 0.1 < float(peak) < 4 for _, _, seconds, peak in points
    )
    assert re.search(r"^growth.png: \d+ kB$", result.stdout, re.MULTILINE)
    table = result.stdout.partition("counted       formula\n")[2].partition(
        "    equal for batches of 4, 8\n"
    )[0]
    rows = dict(re.findall(r"^    (.+?) {2,}(\S+) +\S+", table, re.MULTILINE))
    assert list(rows) == [*formula(2, 4, 16, 1), "buffers"]
    # 4 x 16 and 4 x 4 float32
    assert rows["texts"] == "256" and rows["score columns"] == "64" and rows["buffers"] == "0"
    assert (
        int(re.search(r"\((\S+) a forward pass if DDP broadcast them\)", table)[1].replace(",", ""))
        > 0
    )  # the count would see them


def test_negative_control_other_sizes_have_another_formula():
    """The terms that grow with the batch, its square and the model show in a count."""
    small, large = formula(2, 4, 16, 100), formula(2, 8, 16, 200)
    ratios = {name: large[name] / small[name] for name in small}
    assert ratios["texts"] == ratios["gradient of texts"] == ratios["gradients of parameters"] == 2
    assert ratios["score columns"] == 4 and ratios["sizes"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "error: --threads 0: must be 1 or more\n"),
        (
            ["--output", "growth"],
            (
                "error: --output growth: give a file with the suffix of a picture, such as"
                " picture.png\n"
            ),
        ),
        (
            ["--output", "absent/a.png"],
            (
                "error: --output absent/a.png: there is no folder absent; make it, or choose"
                " another file\n"
            ),
        ),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str):
    assert mistake(growth.main, *arguments) == message
