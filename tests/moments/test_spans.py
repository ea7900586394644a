"""Stretches of a curve against loops over all of them."""

from itertools import combinations

import numpy as np
import pytest

from retrieval.moments.spans import Moment, iou, maximum_sum, runs, stretches, suppressed


def every_stretch(values: np.ndarray) -> dict[tuple[int, int], float]:
    places = range(len(values) + 1)
    return {(i, j): float(sum(values[i:j])) for i, j in combinations(places, 2)}


@pytest.mark.parametrize("seed", range(60))
def test_maximum_sum_is_the_best_of_all_stretches(seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(-3, 4, rng.integers(1, 40)).astype(float) - (seed % 3)
    sums = every_stretch(values)
    first, stop, total = maximum_sum(values)
    assert total == sums[first, stop] == max(sums.values())


@pytest.mark.parametrize("seed", range(40))
def test_each_stretch_is_the_best_of_what_is_left(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=rng.integers(1, 40))
    taken = np.zeros(len(values), bool)
    found = stretches(values, most=10, least_share=0.1)
    highest = max(every_stretch(values).values())
    assert found[0][2] == 1.0
    for number, (first, stop, share) in enumerate(found):
        left = {own: s for own, s in every_stretch(values).items() if not taken[slice(*own)].any()}
        assert sum(values[first:stop]) == pytest.approx(max(left.values()))
        if number:
            assert share * highest == pytest.approx(max(left.values())) and share >= 0.1
        taken[first:stop] = True
    left = {own: s for own, s in every_stretch(values).items() if not taken[slice(*own)].any()}
    if left and highest > 0:
        assert max(left.values()) < 0.1 * highest or len(found) == 10


def test_one_stretch_of_a_curve_without_any():
    assert stretches(np.full(5, -1.0), 10, 0.5) == [(0, 1, 1.0)]
    assert stretches(np.zeros(5), 10, 0.5)[0] == (0, 1, 1.0)
    assert stretches(np.array([2.0]), 10, 0.5) == [(0, 1, 1.0)]


def test_the_number_of_stretches_is_bounded():
    comb = np.tile([1.0, -5.0], 50)
    assert len(stretches(comb, 7, 0.5)) == 7
    assert [share for *_, share in stretches(comb, 3, 0.5)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("seed", range(30))
def test_runs_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    curve = rng.integers(0, 3, rng.integers(0, 30)) / 2
    expected, start = [], None
    for place, value in enumerate([*curve, 0.0]):
        if value > 0.5 and start is None:
            start = place
        if value <= 0.5 and start is not None:
            expected.append((start, place))
            start = None
    assert runs(curve, 0.5) == expected


def test_iou_and_suppression():
    assert iou((0, 10), (5, 15)) == pytest.approx(1 / 3)
    assert iou((0, 5), (5, 10)) == 0 and iou((0, 5), (0, 5)) == 1
    moments = [Moment(0, 10, 0.5), Moment(1, 10, 0.9), Moment(20, 30, 0.1), Moment(0, 4, 0.7)]
    assert suppressed(moments, 0.5) == [moments[1], moments[3], moments[2]]
