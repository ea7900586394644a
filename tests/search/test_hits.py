"""Stretches of a hit lie in its excerpt, for any window, hop and length."""

import numpy as np
import pytest
import torch

from retrieval.models.windows import WindowGrid
from retrieval.search.hits import FrameCurves, IndexedFile, make_hit

RATE = 100
GRIDS = {  # clip, window, hop in samples, frames of a window
    "one window": (1000, 1000, 1000, 25),
    "a window does not divide the clip": (401, 212, 407, 7),
    "windows overlap": (202, 60, 5, 9),
    "a window begins with every sample": (26, 7, 1, 7),
    "gaps between windows": (900, 100, 170, 4),
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("threshold", [None, 0.5])
def test_stretches_lie_in_their_excerpt(grid, threshold):
    windows, random = WindowGrid(*GRIDS[grid]), np.random.default_rng(0)
    for length in (1, 2, windows.clip_samples, *random.integers(1, windows.clip_samples + 1, 30)):
        num_frames = int(windows.num_valid_frames(torch.tensor([length]))[0])
        start = float(random.integers(0, 5000)) / RATE
        end, values = start + float(length) / RATE, random.random(num_frames).astype(np.float32)
        centres, frame = windows.frame_centres(num_frames) / RATE, windows.frame_samples / RATE
        heard = FrameCurves(values, None, None if threshold is None else values)
        file = IndexedFile("a.wav", end)
        hit = make_hit(1, 0.5, file, start, end, heard, centres, frame, threshold)
        assert hit.moments
        for moment in hit.moments:
            assert start <= moment.start < moment.end <= end
