"""Bootstrap over clips: against a slow loop over the same draws, and cases with a known answer."""

import math
from dataclasses import astuple

import numpy as np
import pytest

from retrieval.base.errors import UserError
from retrieval.evaluation.bootstrap import (
    bootstrap_intervals,
    narrow_intervals_warning,
    paired_bootstrap,
    query_metrics,
)
from retrieval.evaluation.metrics.text_audio_retrieval.ranking import metrics_of_ranks


def example(num_clips=40, num_metrics=2):
    """Clips with one to five queries each; queries of a clip resemble each other."""
    random = np.random.default_rng(3)
    clips = [clip for clip in range(num_clips) for _ in range(random.integers(1, 6))]
    first = random.random((len(clips), num_metrics))
    second = (
        first
        + 0.1 * random.normal(size=(num_clips, num_metrics))[clips]
        + 0.05 * random.normal(size=first.shape)
        + 0.03
    )
    return first, second, clips


def slow_means(first, second, clips, num_resamples, seed):
    """The same draws; every resample is put together query by query."""
    random = np.random.default_rng(seed)
    names = sorted(set(clips))
    queries = {name: [query for query, clip in enumerate(clips) if clip == name] for name in names}
    means = []
    for draw in random.integers(len(names), size=(num_resamples, len(names))):
        chosen = [query for index in draw for query in queries[names[index]]]
        means.append(np.mean([second[query] - first[query] for query in chosen], axis=0))
    return np.array(means)


def test_against_a_slow_loop():
    first, second, clips = example()
    means = slow_means(first, second, clips, 300, seed=5)
    for metric, difference in enumerate(
        paired_bootstrap(first, second, clips, num_resamples=300, confidence=0.9, seed=5)
    ):
        assert difference.mean == pytest.approx((second - first)[:, metric].mean())
        assert [difference.low, difference.high] == pytest.approx(
            np.percentile(means[:, metric], [5, 95])
        )
        one_side = min((means[:, metric] <= 0).sum(), (means[:, metric] >= 0).sum())
        assert difference.p_value == pytest.approx(min(1, 2 * (one_side + 1) / 301))
    other = paired_bootstrap(first, second, clips, num_resamples=300, seed=6)[0]
    # negative control: other draws
    assert other.low != pytest.approx(np.percentile(means[:, 0], 2.5), abs=1e-6)


def test_the_interval_of_one_system_against_a_slow_loop():
    values, _, clips = example()
    means = slow_means(np.zeros_like(values), values, clips, 300, seed=5)
    found = bootstrap_intervals(values, clips, num_resamples=300, confidence=0.9, seed=5)
    for metric, interval in enumerate(found):
        assert interval.mean == pytest.approx(values[:, metric].mean())
        expected = np.percentile(means[:, metric], [5, 95])
        assert [interval.low, interval.high] == pytest.approx(expected)
    # negative control: queries drawn by themselves, which are more than clips
    by_query = bootstrap_intervals(values, range(len(values)), num_resamples=300, seed=5)
    assert by_query[0].low != pytest.approx(found[0].low, abs=1e-6)
    with pytest.raises(UserError, match="all queries belong to one"):
        bootstrap_intervals(values, ["a.wav"] * len(values))
    with pytest.raises(ValueError, match="expected"):
        bootstrap_intervals(values, clips[1:])


def test_blocks_of_resamples_do_not_change_the_draws(monkeypatch):
    first, second, clips = example()
    whole = paired_bootstrap(first, second, clips, num_resamples=100)
    monkeypatch.setattr("retrieval.evaluation.bootstrap.ELEMENTS_AT_ONCE", 7 * 40)
    for row, expected in zip(
        paired_bootstrap(first, second, clips, num_resamples=100), whole, strict=True
    ):
        assert astuple(row) == pytest.approx(astuple(expected))


def test_the_interval_is_that_of_normal_theory():
    """With 2,000 clips of one query each the interval is +- 1.96 standard errors of the mean."""
    random = np.random.default_rng(0)
    second = random.normal(0.02, 0.3, size=(2000, 1))
    (difference,) = paired_bootstrap(np.zeros_like(second), second, range(2000))
    error = second.std(ddof=1) / np.sqrt(2000)
    assert (difference.high - difference.low) / 2 == pytest.approx(1.96 * error, rel=0.03)
    assert difference.p_value == pytest.approx(
        math.erfc(second.mean() / error / math.sqrt(2)), rel=0.25, abs=5e-4
    )


def test_queries_of_one_clip_count_as_one():
    """Five equal queries of a clip say no more than one; drawn by themselves they seem to."""
    second = np.repeat(np.random.default_rng(1).normal(0.1, 1, size=(200, 1)), 5, axis=0)
    first = np.zeros_like(second)
    (by_clip,) = paired_bootstrap(first, second, np.repeat(np.arange(200), 5))
    (once,) = paired_bootstrap(first[::5], second[::5], range(200))
    (by_query,) = paired_bootstrap(first, second, range(1000))
    assert (by_clip.low, by_clip.high, by_clip.p_value) == pytest.approx(
        (once.low, once.high, once.p_value)
    )
    assert (by_clip.high - by_clip.low) / (by_query.high - by_query.low) == pytest.approx(
        np.sqrt(5), rel=0.05
    )


def test_equal_systems_and_systems_that_always_differ():
    values = np.random.default_rng(2).random((30, 1))
    (same,) = paired_bootstrap(values, values, range(30))
    assert (same.mean, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    (better,) = paired_bootstrap(values, values + 0.25, range(30))
    assert (better.mean, better.low, better.high) == pytest.approx(
        (0.25, 0.25, 0.25)
    ) and better.p_value == pytest.approx(2 / 10_001)


def test_the_full_size():
    random = np.random.default_rng(0)
    first, second = random.random((2, 5225, 4))
    intervals = paired_bootstrap(first, second, np.repeat(np.arange(1045), 5))
    assert len(intervals) == 4 and all(
        interval.low < interval.mean < interval.high for interval in intervals
    )


def test_query_metrics_average_to_the_metrics():
    random = np.random.default_rng(4)
    ranks = [
        np.sort(random.choice(np.arange(1, 40), size=random.integers(1, 5), replace=False))
        for _ in range(50)
    ]
    names = ["mAP@10", "mAP@16", "R@1", "R@5"]
    expected = metrics_of_ranks(ranks, map_at=(10, 16), recall_at=(1, 5))
    assert dict(zip(names, query_metrics(ranks, names).mean(axis=0))) == pytest.approx(expected)


def test_few_clips():
    """With a single clip every resample is the same, and the interval a point."""
    with pytest.raises(UserError, match="all queries belong to one"):
        paired_bootstrap(np.zeros((5, 1)), np.arange(5.0)[:, None], ["a.wav"] * 5)
    assert (
        paired_bootstrap(np.zeros((2, 1)), np.array([[0.0], [1.0]]), ["a.wav", "b.wav"])[0].high
        == 1
    )
    assert (
        narrow_intervals_warning(19)
        == "resamples of only 19: below 20 the intervals are too narrow"
        and narrow_intervals_warning(20) is None
    )


def test_coverage_grows_with_the_clips_as_the_docstring_says():
    """The 95 % interval of equal systems holds 0 more often with more clips.

    Five captions a clip share one part of their difference.
    """
    random = np.random.default_rng(0)

    def coverage(num_clips: int, repeats: int = 200) -> float:
        clips, hits = np.repeat(np.arange(num_clips), 5), 0
        for _ in range(repeats):
            second = (random.normal(size=num_clips)[clips] + random.normal(size=len(clips)))[
                :, None
            ]
            (difference,) = paired_bootstrap(
                np.zeros_like(second), second, clips, num_resamples=1000
            )
            hits += difference.low <= 0 <= difference.high
        return hits / repeats

    assert 0.74 < coverage(5) < 0.9 < coverage(60)


@pytest.mark.parametrize(
    "shapes", [((3, 1), (2, 1), 3), ((3, 1), (3, 1), 2), ((3,), (3,), 3), ((0, 1), (0, 1), 0)]
)
def test_impossible_input(shapes):
    with pytest.raises(ValueError, match="expected two arrays"):
        paired_bootstrap(np.zeros(shapes[0]), np.zeros(shapes[1]), list(range(shapes[2])))
