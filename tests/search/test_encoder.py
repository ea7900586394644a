"""Excerpts are encoded in batches."""

from contextlib import nullcontext

import numpy as np

from retrieval.models.dual_encoder import DualEncoder
from retrieval.search.encoder import ExcerptEncoder
from retrieval.search.sound import Excerpt


def test_numbers_do_not_depend_on_the_batch(models):
    model = DualEncoder.from_pretrained(models / "tap")
    rng, lengths = np.random.default_rng(0), [16_000, 9_000, 12_000, 16_000, 5_000]
    excerpts = [Excerpt(0, rng.uniform(-1, 1, num).astype(np.float32)) for num in lengths]
    vectors, frames = ExcerptEncoder(model, nullcontext, 1, with_frames=True).encode(excerpts)
    sizes = []
    block = model.audio_encoder.blocks[0].mlp.fc1
    block.register_forward_hook(lambda _, __, out: sizes.append(len(out)))
    found, others = ExcerptEncoder(model, nullcontext, 4, with_frames=True).encode(excerpts)
    np.testing.assert_allclose(found, vectors, atol=1e-6)
    for one, same in zip(others, frames, strict=True):
        np.testing.assert_allclose(one, same, atol=1e-5)
    assert len(sizes) == 2 and sizes[0] > sizes[1]
    assert not np.allclose(vectors[0], vectors[1], atol=1e-6)  # negative control
