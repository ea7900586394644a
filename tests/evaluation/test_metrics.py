"""Ranks, mAP@k and R@k against golden values, hand-computed cases and a slow reference of loops."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from retrieval.evaluation.metrics.text_audio_retrieval import ranking
from retrieval.evaluation.result import retrieval_metrics
from tests.evaluation.metric_modules import load_metric

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "metrics.npz"
METRIC = Path(ranking.__file__).parent
NAMES = ("mAP@10", "R@1", "R@5", "R@10")


def slow_metrics(scores, relevant, worst_ties=True):
    """Sort each query's candidates, the relevant ones last (or first) among equals, and count."""
    sums = dict.fromkeys(NAMES, 0.0)
    for row, right in zip(scores, relevant):
        order = sorted(
            range(len(row)),
            key=lambda candidate: (-row[candidate], (candidate in right) == worst_ties),
        )
        num_hits, precision = 0, 0.0
        for position, candidate in enumerate(order[:10], start=1):
            if candidate in right:
                num_hits += 1
                precision += num_hits / position
        sums["mAP@10"] += precision / len(right)
        for k in (1, 5, 10):
            sums[f"R@{k}"] += any(candidate in right for candidate in order[:k])
    return {name: value / len(relevant) for name, value in sums.items()}


def test_golden_without_ties_is_exact():
    golden = np.load(GOLDEN)
    metrics = retrieval_metrics(golden["C60_noties"], [[int(clip)] for clip in golden["target60"]])
    for name in NAMES:
        # the reference sums in float32
        assert metrics[name] == pytest.approx(float(golden[f"C60_noties.val/{name}"]), abs=1e-7)


@pytest.mark.parametrize("case", ["60", "25"])
def test_golden_ties_count_against_the_query(case):
    golden = np.load(GOLDEN)
    metrics = retrieval_metrics(
        golden[f"C{case}"], [[int(clip)] for clip in golden[f"target{case}"]]
    )
    for name in NAMES:
        assert metrics[name] == pytest.approx(float(golden[f"C{case}.worst_tie/{name}"]), abs=1e-12)
    # negative control: ties are there
    assert metrics["mAP@10"] < float(golden[f"C{case}.best_tie/mAP@10"]) - 1e-3


@pytest.mark.parametrize("num_candidates", [3, 12, 40])
def test_against_loops_with_ties_and_several_relevant(num_candidates):
    random = np.random.default_rng(num_candidates)
    scores = random.integers(0, 6, size=(30, num_candidates)).astype(np.float32)
    relevant = [
        random.choice(num_candidates, size=random.integers(1, 4), replace=False).tolist()
        for _ in range(30)
    ]
    expected = slow_metrics(scores, relevant)
    assert retrieval_metrics(scores, relevant) == pytest.approx(expected, abs=1e-12)
    # negative control
    assert slow_metrics(scores, relevant, worst_ties=False) != pytest.approx(expected, abs=1e-3)


def test_by_hand():
    # Relevant at ranks 2 and 3 of 4: AP = (1/2 + 2/3) / 2.
    assert ranking.ranks_of_relevant(np.array([0.9, 0.8, 0.7, 0.1]), [1, 2]).tolist() == [2, 3]
    metrics = retrieval_metrics(np.array([[0.9, 0.8, 0.7, 0.1]]), [[1, 2]])
    assert metrics == pytest.approx({"mAP@10": (1 / 2 + 2 / 3) / 2, "R@1": 0, "R@5": 1, "R@10": 1})
    # A relevant candidate tied with one that is not, and with another relevant one: ranks 2 and 3,
    # not 1 and 2.
    assert ranking.ranks_of_relevant(np.array([0.5, 0.5, 0.5, 0.1]), [0, 2]).tolist() == [2, 3]
    # Beyond k a hit counts nothing, but stays in the denominator.
    row = -np.arange(20.0)
    assert retrieval_metrics(row[None], [[0, 10]])["mAP@10"] == pytest.approx(1 / 2)
    assert retrieval_metrics(row[None], [[10]]) == {"mAP@10": 0, "R@1": 0, "R@5": 0, "R@10": 0}
    assert ranking.metrics_of_ranks(ranking.all_ranks(row[None], [[10]]), map_at=16)[
        "mAP@16"
    ] == pytest.approx(1 / 11)


def test_equal_ranks_in_another_order_have_equal_means():
    """To the last bit, so that an epoch is not better by rounding."""
    ranks = [np.array([rank]) for rank in range(1, 8)] * 3
    means = {
        ranking.metrics_of_ranks(
            [ranks[place] for place in np.random.default_rng(seed).permutation(21)]
        )["mAP@10"]
        for seed in range(50)
    }
    assert len(means) == 1


def test_a_collapsed_model_scores_zero():
    metrics = retrieval_metrics(np.zeros((50, 25), np.float32), [[i % 25] for i in range(50)])
    assert metrics == {"mAP@10": 0, "R@1": 0, "R@5": 0, "R@10": 0}


def test_a_repeated_index_counts_once():
    scores = np.array([[0.3, 0.2, 0.1]])
    assert retrieval_metrics(scores, [[1, 1]]) == retrieval_metrics(scores, [[1]])


@pytest.mark.parametrize(
    ("scores", "relevant", "message"),
    [
        ([[0.1, float("nan")]], [[0]], "1 of 2 scores are NaN"),
        ([[0.1, 0.2]], [[]], "query 0 has no relevant candidate"),
        ([[0.1, 0.2]], [[2]], r"not all in 0\.\.1"),
        ([[0.1, 0.2]], [[-1]], r"not all in 0\.\.1"),
        ([[0.1, 0.2]], [[0], [1]], "2 lists"),
        (np.zeros((0, 3)), [], "0 lists"),
    ],
)
def test_impossible_input(scores, relevant, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(np.asarray(scores), relevant)


def test_more_queries_than_are_ranked_at_once_and_any_order_in_memory():
    random = np.random.default_rng(5)
    num_texts, num_audios = 2 * ranking.ROWS_AT_ONCE + 3, ranking.ROWS_AT_ONCE + 7
    scores = np.asfortranarray(
        random.integers(0, 50, size=(num_texts, num_audios)).astype(np.float32)
    )
    # nobody asks for the last one
    relevant = [[int(random.integers(num_audios - 1))] for _ in range(num_texts)]
    ranks = ranking.ranks_of_both_directions(scores, relevant)
    assert ranking.metrics_of_ranks(ranks["text_to_audio"]) == pytest.approx(
        slow_metrics(scores, relevant)
    )
    texts = [
        [text for text in range(num_texts) if relevant[text] == [audio]]
        for audio in range(num_audios)
    ]
    asked = [audio for audio in range(num_audios) if texts[audio]]
    expected = slow_metrics(scores.T[asked], [texts[audio] for audio in asked])
    assert ranking.metrics_of_ranks(ranks["audio_to_text"]) == pytest.approx(expected)
    scores[0, 0] = scores[-1, -1] = np.nan  # in the first block and in the last
    with pytest.raises(ValueError, match=f"2 of {scores.size} scores are NaN"):
        ranking.all_ranks(scores, relevant)


def test_several_depths_at_once():
    ranks = [np.array([2, 12]), np.array([11]), np.array([1])]
    metrics = ranking.metrics_of_ranks(ranks, map_at=(10, 16), recall_at=(1,))
    assert metrics == pytest.approx(
        {
            "mAP@10": (1 / 4 + 0 + 1) / 3,
            "mAP@16": ((1 / 2 + 2 / 12) / 2 + 1 / 11 + 1) / 3,
            "R@1": 1 / 3,
        }
    )
    chance = ranking.chance_metrics(30, [2, 1], map_at=(10, 16))
    assert list(chance) == ["mAP@10", "mAP@16", "R@1", "R@5", "R@10"]
    assert (
        chance["mAP@16"]
        == ranking.chance_metrics(30, [2, 1], map_at=16)["mAP@16"]
        > chance["mAP@10"]
    )


def test_both_directions():
    # captions of clips 0, 0, 1; clip 2 has none
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.3, 0.4], [0.8, 0.7, 0.6]])
    ranks = ranking.ranks_of_both_directions(scores, [[0], [0], [1]])
    assert [query.tolist() for query in ranks["text_to_audio"]] == [[1], [3], [2]]
    assert [query.tolist() for query in ranks["audio_to_text"]] == [[1, 3], [1]]


@pytest.mark.parametrize(("num_candidates", "num_relevant"), [(5, 1), (6, 2), (6, 5), (3, 3)])
def test_chance_is_the_mean_over_all_orders(num_candidates, num_relevant):
    orders = list(permutations(range(num_candidates)))
    ranks = ranking.all_ranks(np.array(orders), [list(range(num_relevant))] * len(orders))
    expected = ranking.metrics_of_ranks(ranks, map_at=4, recall_at=(1, 2, 10))
    assert ranking.chance_metrics(
        num_candidates, [num_relevant], map_at=4, recall_at=(1, 2, 10)
    ) == pytest.approx(expected)


def test_evaluate_module_loads_by_path_and_agrees(tmp_path, monkeypatch):
    metric = load_metric(METRIC, tmp_path, monkeypatch)
    scores = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)
    relevant = [[caption // 5] for caption in range(60)]
    metrics = metric.compute(predictions=scores, references=relevant)
    assert metrics["text_to_audio"] == retrieval_metrics(scores, relevant)
    assert metrics["audio_to_text"] == retrieval_metrics(
        scores.T, [list(range(5 * clip, 5 * clip + 5)) for clip in range(12)]
    )
    in_parts = load_metric(METRIC, tmp_path, monkeypatch)
    in_parts.add_batch(predictions=scores[:20], references=relevant[:20])
    in_parts.add_batch(predictions=scores[20:], references=relevant[20:])
    computed = in_parts.compute(map_at=(10, 16), recall_at=(3,))
    assert computed.keys() == metrics.keys() and list(computed["text_to_audio"]) == [
        "mAP@10",
        "mAP@16",
        "R@3",
    ]
