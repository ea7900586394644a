"""MomentHead: padding and batches change nothing; interpolation against a loop."""

import numpy as np
import pytest
import torch

from retrieval.base.errors import UserError
from retrieval.models.moment_head import MomentHead

D, E, T = 12, 5, 23


def inputs(num_pairs: int = 3, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([T, 9, 1][:num_pairs])
    mask = torch.arange(T) < lengths[:, None]
    frames = torch.randn(num_pairs, T, D, generator=generator)
    evidence = 9 * torch.randn(num_pairs, T, E, generator=generator)
    return torch.randn(num_pairs, D, generator=generator), frames, mask, evidence


def head(**settings) -> MomentHead:
    torch.manual_seed(3)
    return MomentHead(D, E, 0.04, hidden=8, kernel=3, **settings).eval()


@torch.no_grad()
@pytest.mark.parametrize("step_seconds", [0.04, 0.16, 0.2])
def test_a_batch_of_mixed_lengths_equals_one_by_one(step_seconds):
    model, (text, frames, mask, evidence) = head(step_seconds=step_seconds), inputs()
    frames[~mask], evidence[~mask] = float("nan"), float("inf")  # padding is not looked at
    found = model(text, frames, mask, evidence)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        own = slice(row, row + 1)
        part = frames[own, :length], mask[own, :length], evidence[own, :length]
        alone = model(text[own], *part)
        assert torch.allclose(found[own, :length], alone, atol=1e-6)


def test_logits_between_steps_are_interpolated():
    model, logits = head(step_seconds=0.16), torch.randn(2, 6)
    found = model._interpolated(logits, torch.tensor([6, 3]), T)
    places, centres = np.arange(T) + 0.5, 4 * (np.arange(6) + 0.5)  # steps of four frames
    for row, num_steps in enumerate((6, 3)):
        expected = np.interp(places, centres[:num_steps], logits[row, :num_steps])
        assert np.allclose(found[row], expected, atol=1e-6)


def test_every_weight_gets_a_gradient():
    model = head().train()
    text, frames, mask, evidence = inputs()
    model(text, frames, mask, evidence)[mask].sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())


def test_an_even_kernel_is_refused():
    with pytest.raises(UserError, match="kernel"):
        MomentHead(D, E, 0.04, kernel=4)
