"""The benchmark of moment variants runs in miniature; its losses and ways are checked by hand."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import moment_variants
from benchmarks.moment_variants import (
    Batch,
    OffsetHead,
    as_it_is,
    by_offsets,
    caption_loss,
    filled,
    make_batch,
    of_runs,
    offset_loss,
    random_clips,
)
from retrieval.losses.moments import moment_loss
from retrieval.moments.locator import Locator
from retrieval.moments.spans import MOST_MOMENTS
from tests.conftest import mistake, run_here

FRAME = 0.04


@pytest.fixture(scope="module")
def clips():
    return random_clips(num_clips=4, dim=8)[0]


def test_quick_run_prints_every_way_for_every_group():
    result = run_here(moment_variants.main, "--quick")
    assert result.returncode == 0, result.stderr[-2000:]
    tables = result.stdout.split("\nevaluation, ")
    assert len(tables) == 4
    rows = [
        {line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")}
        for table in tables
    ]
    names = {"head", "runs", "re-ranked", "offsets, frames' own spans"}
    assert all(names | {"without times, top tenth"} <= found for found in rows)


def test_as_it_is_is_the_locators_own_way():
    """The baseline of the table is the library's, whatever the curve."""
    model = SimpleNamespace(sample_rate=1000)
    stub = SimpleNamespace(
        model=model, samples_per_frame=FRAME * 1000, alternatives=True, most=MOST_MOMENTS
    )
    stub._moment = partial(Locator._moment, stub)
    rng = np.random.default_rng(0)
    for _ in range(20):
        curve = rng.random(30).astype(np.float32)
        expected = Locator.stretches(stub, curve, 1190, 0.6)
        found = filled(as_it_is(curve, FRAME, 1.19, 0.6), curve, FRAME, 1.19, 0.6)
        assert len(found) == len(expected) and np.allclose(found, expected)


def test_runs_keep_the_gap_that_a_maximum_sum_bridges():
    curve = np.array([0.1, 0.9, 1.0, 0.2, 0.8, 0.8, 0.1, 0.4, 0.1])
    assert as_it_is(curve, 1.0, 9.0, 0.3)[0][:2] == (1.0, 6.0)
    by_sum = of_runs(curve, 1.0, 9.0, (0.3, 0.7, "sum"))
    assert [moment[:2] for moment in by_sum] == [(1, 3), (4, 6)]
    assert [moment.score for moment in by_sum] == pytest.approx([1.3 / 2.3, 1.0 / 2.3])
    assert len(of_runs(curve, 1.0, 9.0, (0.3, 0.0, "mean"))) == 3  # one does not reach 0.7
    assert of_runs(curve, 1.0, 9.0, (0.3, 0.7, "max"))[0].score == 1.0


def batch_of(clips, pairs):
    batch = make_batch(clips, pairs)
    assert batch.is_own.tolist() == [query == text for query, text in pairs]
    return batch


def test_batch_has_labels_and_sides_of_own_queries_only(clips):
    batch = batch_of(clips, [(2, 2), (2, 5), (6, 6)])
    (start, end), *_ = clips.windows[2]
    centres = (np.arange(batch.labels.shape[1]) + 0.5) * FRAME
    inside = [start <= centre < end for centre in centres]
    assert batch.labels[0].tolist() == inside and not batch.labels[1].any()
    assert torch.allclose(batch.sides[0].sum(-1), torch.tensor(inside) * (end - start), atol=1e-5)
    keys = clips.keys[1][None]
    one = clips.pooling.evidence(clips.text[[5]], keys, torch.ones(keys.shape[:2]) > 0)
    assert torch.allclose(batch.evidence[1, : keys.shape[1]], one[0, 0], atol=1e-4)


def test_true_offsets_leave_the_heads_loss_and_false_ones_add_to_it(clips):
    batch = batch_of(clips, [(0, 0), (3, 3)])
    logits = torch.randn(batch.labels.shape)
    # softplus of it is the true number of seconds
    true = torch.where(batch.sides > 0, batch.sides.clamp_min(1e-6).expm1().log(), 0.0)
    outputs = torch.cat([logits[..., None], true], -1)
    expected = moment_loss(logits, batch.labels, batch.mask).mean()
    assert offset_loss(outputs, batch).item() == pytest.approx(expected.item(), abs=1e-4)
    outputs[..., 1:] += 1.0
    assert offset_loss(outputs, batch).item() > expected.item() + 0.2
    spans = np.concatenate([np.eye(1, 50, 20).T, np.full((50, 2), 0.3)], 1)
    assert by_offsets(spans, FRAME, 2.0, 0.5)[0][:2] == pytest.approx((0.52, 1.12))


@pytest.mark.parametrize("pool", ["linear softmax", "top"])
def test_caption_loss_uses_no_times_and_no_padding(clips, pool):
    batch = batch_of(clips, [(0, 0), (0, 5), (3, 3), (3, 0)])
    outputs = torch.randn(batch.labels.shape)
    loss = caption_loss(outputs, batch, pool=pool)
    padded = outputs.where(batch.mask, 50.0)
    without = Batch(**vars(batch) | {"labels": None, "sides": None})
    assert caption_loss(padded, without, pool=pool) == loss
    better = outputs + 3.0 * (2.0 * batch.is_own[:, None] - 1)
    assert caption_loss(better, batch, pool=pool) < loss


def test_offset_head_gives_three_numbers_that_padding_does_not_change(clips):
    torch.manual_seed(0)
    head = OffsetHead(8, clips.pooling.num_evidence, FRAME, hidden=4).eval()
    batch = batch_of(clips, [(0, 0), (2, 2), (4, 4), (6, 6)])
    together = head(batch.text, batch.keys, batch.mask, batch.evidence)
    assert together.shape == (*batch.mask.shape, 3)
    for place, query in enumerate((0, 2, 4, 6)):
        one = batch_of(clips, [(query, query)])
        own = head(one.text, one.keys, one.mask, one.evidence)
        assert torch.allclose(together[place, : own.shape[1]], own[0], atol=1e-4)


def test_mistakes_name_the_option(tmp_path):
    main = moment_variants.main
    assert "--epochs 0" in mistake(main, "--epochs", "0")
    assert "--checkpoint" in mistake(main, "--checkpoint", str(tmp_path / "none"))
