"""Batches of excerpts on a CPU."""

from contextlib import nullcontext

import numpy as np
import pytest

from retrieval.models.dual_encoder import DualEncoder
from retrieval.search import encoder as module
from retrieval.search.encoder import ExcerptEncoder
from retrieval.search.sound import Excerpt


@pytest.mark.parametrize("excerpts_that_fit", [0, 2, 100])
def test_tensors_stay_small_and_the_numbers_are_the_same(models, monkeypatch, excerpts_that_fit):
    model = DualEncoder.from_pretrained(models / "tap")
    rng, lengths = np.random.default_rng(0), [16_000, 9_000, 12_000, 16_000, 5_000]
    excerpts = [Excerpt(0, rng.uniform(-1, 1, num).astype(np.float32)) for num in lengths]
    vectors, frames = ExcerptEncoder(model, nullcontext, 1, with_frames=True).encode(excerpts)
    widest = []
    block = model.audio_encoder.blocks[0].mlp.fc1
    block.register_forward_hook(lambda _, __, out: widest.append(out.nbytes))
    of_one = 16 * model.windows.num_frames * model.audio_encoder.feature_dim
    monkeypatch.setattr(module, "MOST_BYTES", excerpts_that_fit * of_one)
    own = ExcerptEncoder(model, nullcontext, 4, with_frames=True)
    found, others = own.encode(excerpts)
    np.testing.assert_allclose(found, vectors, atol=1e-6)
    for one, same in zip(others, frames, strict=True):
        np.testing.assert_allclose(one, same, atol=1e-5)
    assert len(widest) == {0: 5, 2: 3, 100: 2}[excerpts_that_fit]
    assert max(widest) <= max(excerpts_that_fit, 1) * of_one
    if excerpts_that_fit == 100:  # negative control: a whole batch is wider than 1 may be
        assert max(widest) > of_one
