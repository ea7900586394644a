"""The benchmark of the loader runs in miniature; figures need a quiet machine."""

from functools import partial

import pytest

from benchmarks import data_loading
from benchmarks.data_loading import MULTIPLES, share_waited
from tests.conftest import mistake, run_here

run = partial(run_here, data_loading.main)


@pytest.mark.parametrize("num_workers", ["0", "1"])
def test_quick_run_prints_speed_and_share(num_workers: str):
    result = run("--quick", "--num-workers", num_workers)
    assert result.returncode == 0, result.stderr[-2000:]
    assert f"{num_workers} loader processes" in result.stdout and "loader alone: " in result.stdout
    assert "step of 0.010 s: waiting " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-workers", "-1"], "--num-workers -1: must be 0 or more"),
        (["--step-seconds", "0"], "--step-seconds 0.0: must be more than 0"),
        (["--step-seconds", "nan"], "--step-seconds nan: must be more than 0"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str):
    assert mistake(data_loading.main, *arguments) == f"error: {message}\n"


@pytest.mark.parametrize("is_judged", [True, False])
def test_no_step_is_long_enough_and_small_numbers_say_so(capsys, is_judged):
    class Slow:
        loader, sizes = type("loader", (), {"num_workers": 0}), data_loading.QUICK

        def waits(self, epoch: int, step_seconds: float) -> list[float]:
            return [max(1.0, step_seconds)]

    data_loading.measure(Slow(), [0.01], is_judged)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"no step up to {MULTIPLES[-1]} times") and last.endswith(
        "not judged"
    ) == (not is_judged)


def test_share_waited_is_of_waiting_and_steps():
    assert share_waited([0.1, 0.3], step_seconds=0.8) == pytest.approx(0.2)
