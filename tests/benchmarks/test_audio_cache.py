"""The audio-cache benchmark runs in miniature; figures need a quiet machine."""

from functools import partial

import pytest

from benchmarks import audio_cache
from tests.conftest import mistake, run_here

run = partial(run_here, audio_cache.main)


def test_quick_run_compares_all_methods():
    result = run("--quick", "--num-proc", "1")
    assert result.returncode == 0, result.stderr[-2000:]
    assert (
        result.stdout.count("x faster than hdf5 vlen") == 4
        and "10 s windows, ms per clip: cache " in result.stdout
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-proc", "0"], "--num-proc 0: must be 1 or more"),
        (["--num-proc", "two"], "argument --num-proc: invalid"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str):
    said = mistake(audio_cache.main, *arguments)
    assert said.startswith(f"error: {message}") and said.count("\n") == 1
