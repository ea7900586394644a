"""The TAP benchmark runs and its ways agree, also if valid frames have gaps."""

import re

import torch

from benchmarks import tap_scoring
from benchmarks.tap_scoring import unfolded_score
from retrieval.models.pooling import TextAwareAttentionPooling
from tests.conftest import run_here


def test_quick_run_prints_ratio_difference_and_memory():
    result = run_here(tap_scoring.main, "--quick")
    assert result.returncode == 0, result.stderr
    assert re.search(
        r"^ratio \d+\.\d\d, \d+% of the frames valid, largest difference of a score \d",
        result.stdout,
        re.MULTILINE,
    )
    assert (
        len(
            re.findall(
                r"^pooling.block_elements .* scoring adds +\d+\.\d MB$", result.stdout, re.MULTILINE
            )
        )
        == 2
    )


def test_gaps_in_the_mask_and_a_silent_neighbour_change_nothing():
    torch.manual_seed(0)
    module, text, frames = (
        TextAwareAttentionPooling(16, 24).eval(),
        torch.randn(6, 16),
        torch.randn(5, 9, 16),
    )
    # (5, 9): clip i has every (i + 1)-th frame
    mask = torch.arange(9) % torch.arange(1, 6)[:, None] == 0
    with torch.no_grad():
        scores = module.score(text, frames, mask)
        torch.testing.assert_close(
            scores, unfolded_score(module, text, frames, mask), rtol=0, atol=1e-6
        )
        mask[2] = False
        found = module.score(text, frames, mask)
    others = [0, 1, 3, 4]
    assert found.isfinite().all()
    torch.testing.assert_close(found[:, others], scores[:, others], rtol=0, atol=1e-6)
    assert (found[:, 2] - scores[:, 2]).abs().max() > 1e-3  # negative control
