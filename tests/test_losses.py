"""NT-Xent against golden numbers of the reference and against loops written from the formula."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval.losses import LOSSES, nt_xent

GOLDEN = np.load(Path(__file__).parent / "golden" / "losses.npz")
TEMPERATURE = float(GOLDEN["tau"])


def loops(scores: np.ndarray, positives: np.ndarray, temperature: float) -> float:
    total, count = 0.0, 0
    for n, b in zip(*np.nonzero(positives)):
        row, column = scores[n] / temperature, scores[:, b] / temperature
        total += row[b] - math.log(np.exp(row).sum()) + column[n] - math.log(np.exp(column).sum())
        count += 1
    return -0.5 * total / count


def inputs(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    scores = torch.from_numpy(GOLDEN["C"].T.copy() if name.endswith(".T") else GOLDEN["C"]).requires_grad_()
    positives = torch.eye(8, dtype=torch.bool) if "nodup" in name else torch.from_numpy(GOLDEN["I"])
    return scores, positives


@pytest.mark.parametrize("name", ["nt_xent", "nt_xent.T", "nt_xent_nodup", "nt_xent_nodup.T"])
def test_nt_xent_equals_the_reference(name: str):
    scores, positives = inputs(name)
    loss = LOSSES["nt_xent"](scores, positives, temperature=TEMPERATURE)
    loss.backward()
    for suffix in ("", "_f64"):
        assert abs(loss.item() / GOLDEN[f"{name}.loss{suffix}"] - 1) < 1e-5
        golden = GOLDEN[f"{name}.grad_C{suffix}"]
        assert np.linalg.norm(scores.grad.numpy() - golden) < 1e-5 * np.linalg.norm(golden)
    # Negative control: duplicate clips as negatives give another loss.
    other = nt_xent(*inputs("nt_xent" if "nodup" in name else "nt_xent_nodup"), temperature=TEMPERATURE)
    assert abs(loss.item() / other.item() - 1) > 1e-3


def test_nt_xent_of_a_matrix_that_is_not_square_equals_loops():
    generator = np.random.default_rng(0)
    scores, positives = generator.uniform(-1, 1, (7, 4)), np.zeros((7, 4), dtype=bool)
    positives[np.arange(7), [0, 1, 1, 2, 3, 3, 0]] = True
    found = nt_xent(torch.from_numpy(scores), torch.from_numpy(positives), temperature=0.1)
    assert abs(found.item() - loops(scores, positives, 0.1)) < 1e-12


def test_nt_xent_computes_in_float32():
    scores, positives = inputs("nt_xent")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nt_xent(scores, positives, TEMPERATURE), nt_xent(*inputs("nt_xent"), TEMPERATURE))
    assert nt_xent(scores.half(), positives, TEMPERATURE).dtype == torch.float32


def test_nt_xent_teaches_a_learnable_temperature():
    temperature = torch.tensor(TEMPERATURE, requires_grad=True)
    nt_xent(*inputs("nt_xent"), temperature).backward()
    step = 1e-3
    slope = (nt_xent(*inputs("nt_xent"), TEMPERATURE + step) - nt_xent(*inputs("nt_xent"), TEMPERATURE - step)) / (2 * step)
    assert abs(temperature.grad.item() / slope.item() - 1) < 1e-2


def test_nt_xent_refuses_positives_of_another_shape():
    with pytest.raises(ValueError, match=r"one shape, found \(3, 4\) and \(4, 3\)"):
        nt_xent(torch.zeros(3, 4), torch.zeros(4, 3, dtype=torch.bool), 0.05)
