"""R1, mIoU and mAP of moments against lighthouse's numbers, a slow loop and hand-made cases."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from retrieval.evaluation.metrics.audio_moment_retrieval import scoring
from retrieval.evaluation.metrics.audio_moment_retrieval.scoring import (
    NAMES,
    THRESHOLDS,
    moment_metrics,
    query_values,
)
from tests.evaluation.metric_modules import load_metric

GOLDEN = json.loads(
    (Path(__file__).resolve().parents[1] / "golden" / "moments.json").read_text(encoding="utf-8")
)
CASES = {case["qid"]: case for case in GOLDEN["cases"]}
METRIC = Path(scoring.__file__).parent


def lists_of(qids):
    """Predictions and references of golden cases."""
    cases = [CASES[qid] for qid in qids]
    return (
        [case["pred_relevant_windows"] for case in cases],
        [case["relevant_windows"] for case in cases],
    )


# --- a slow second implementation, from the written conventions ---


def slow_iou(first, second):
    overlap = min(first[1], second[1]) - max(first[0], second[0])
    if overlap <= 0:
        return 0.0
    return overlap / (first[1] - first[0] + second[1] - second[0] - overlap)


def slow_ap(prediction, reference, threshold, last_of_equal=True):
    ranked = sorted(prediction[:10], key=lambda window: -window[2])
    taken, hits = set(), []
    for window in ranked:
        best = None
        for place, true in enumerate(reference):
            value = slow_iou(window, true)
            is_better = best is None or value > best[0] or (last_of_equal and value == best[0])
            if place not in taken and value >= threshold and is_better:
                best = (value, place)
        if best:
            taken.add(best[1])
        hits.append(best is not None)
    total = 0.0
    for place, hit in enumerate(hits):
        if hit:
            total += max(sum(hits[: end + 1]) / (end + 1) for end in range(place, len(hits)))
    return total / len(reference)


def slow_query(prediction, reference, **options):
    """IoU of the first prediction and AP at each threshold; None for a query that is left out."""
    reference = [window for window in reference if 0 < window[1] - window[0] <= 1500]
    if not reference:
        return None
    first = max([slow_iou(prediction[0], true) for true in reference]) if prediction else 0.0
    return first, [slow_ap(prediction, reference, t, **options) for t in THRESHOLDS]


def slow_metrics(predictions, references, **options):
    values = [slow_query(*query, **options) for query in zip(predictions, references)]
    values = [value for value in values if value]
    means = {f"R1@{t}": np.mean([first >= t for first, _ in values]) for t in (0.3, 0.5, 0.7)}
    means["mIoU"] = np.mean([first for first, _ in values])
    by_threshold = np.mean([precisions for _, precisions in values], axis=0)
    means |= {"mAP@0.5": by_threshold[0], "mAP@0.75": by_threshold[5]}
    return means | {"mAP": np.mean(by_threshold)}


def random_queries(seed, num_queries, fewest, most, whole_seconds=False):
    """Predictions near true windows, with ties of scores and of IoUs."""
    random = np.random.default_rng(seed)

    def windows(number):
        starts = random.uniform(0, 100, number)
        spans = np.column_stack([starts, starts + random.uniform(1, 30, number)])
        return spans.round() if whole_seconds else spans

    predictions, references = [], []
    for _ in range(num_queries):
        true = windows(random.integers(fewest, most + 1))
        number = random.integers(0, 15)
        near = true[random.integers(len(true), size=number)] + random.normal(0, 2, (number, 2))
        near = near.round() if whole_seconds else near
        near = np.column_stack([near.min(axis=1), near.max(axis=1)])
        scores = random.integers(0, 6, number) / 5
        predictions.append(np.column_stack([near, scores]).tolist())
        references.append(true.tolist())
    return predictions, references


# --- lighthouse ---


@pytest.mark.parametrize("qid", CASES)
def test_golden_cases_one_by_one(qid):
    (iou,), (precisions,) = query_values(*lists_of([qid]))
    expected = CASES[qid]["lighthouse"]
    if expected is not None:
        assert iou == pytest.approx(expected["iou1"], abs=1e-12)
        assert precisions.tolist() == pytest.approx(expected["ap"], abs=1e-12)
        # to the bit where it decides a hit
        assert [iou >= t for t in THRESHOLDS] == [expected["iou1"] >= t for t in THRESHOLDS]
    elif CASES[qid]["pred_relevant_windows"]:  # the only true window has no length
        assert math.isnan(iou) and np.isnan(precisions).all()
    else:  # lighthouse stops at a query without a prediction
        assert (iou, precisions.tolist()) == (0, [0] * 10)


@pytest.mark.parametrize("total", ["lighthouse_answered", "strict_all"])
def test_golden_totals(total):
    qids = GOLDEN["answered"] if total == "lighthouse_answered" else list(CASES)
    queries, expected = lists_of(qids), GOLDEN[total]
    ious, precisions = query_values(*queries)
    kept = ~np.isnan(ious)
    for place, threshold in enumerate(THRESHOLDS):
        first = 100 * np.mean(ious[kept] >= threshold)
        assert f"{first:.2f}" == f"{expected['R1'][str(threshold)]:.2f}"
        mean = 100 * precisions[kept, place].mean()
        assert f"{mean:.2f}" == f"{expected['mAP'][str(threshold)]:.2f}"
    metrics = moment_metrics(*queries)
    assert tuple(metrics) == NAMES
    named = {
        "R1@0.5": expected["R1"]["0.5"],
        "R1@0.7": expected["R1"]["0.7"],
        "mAP@0.5": expected["mAP"]["0.5"],
        "mAP@0.75": expected["mAP"]["0.75"],
        "mAP": expected["mAP"]["average"],
    }
    assert {name: round(100 * metrics[name], 2) for name in named} == named
    assert metrics["mIoU"] == pytest.approx(ious[kept].mean(), abs=1e-12)
    assert metrics["R1@0.3"] == np.mean(ious[kept] >= 0.3)


# --- the slow loop ---


@pytest.mark.parametrize(
    "options",
    [
        {"fewest": 1, "most": 5},
        {"fewest": 1, "most": 5, "whole_seconds": True},
        {"fewest": 10, "most": 32, "whole_seconds": True},
    ],
    ids=["few", "whole seconds", "many"],
)
def test_against_a_slow_loop(options):
    queries = random_queries(7, 250, **options)
    ious, precisions = query_values(*queries)
    for query, (prediction, reference) in enumerate(zip(*queries)):
        slow = slow_query(prediction, reference)
        if slow is None:
            assert np.isnan(ious[query])
        else:
            assert ious[query] == pytest.approx(slow[0], abs=1e-12)
            assert precisions[query].tolist() == pytest.approx(slow[1], abs=1e-12)
    assert moment_metrics(*queries) == pytest.approx(slow_metrics(*queries), abs=1e-12)


def test_negative_controls():
    """The comparisons above can fail."""
    queries = lists_of(CASES)
    expected = slow_metrics(*queries)
    assert moment_metrics(*queries) == pytest.approx(expected, abs=1e-12)
    assert slow_metrics(*queries, last_of_equal=False)["mAP@0.5"] != pytest.approx(
        expected["mAP@0.5"], abs=1e-4
    )
    by_score = [sorted(one, key=lambda window: -window[2]) for one in queries[0]]
    assert moment_metrics(by_score, queries[1])["mIoU"] != pytest.approx(expected["mIoU"], abs=1e-4)
    cut = [one[:9] for one in queries[0]]
    assert moment_metrics(cut, queries[1])["mAP"] != pytest.approx(expected["mAP"], abs=1e-5)


# --- by hand ---


def test_by_hand():
    # IoU 5/10 with the second window; the second prediction finds the first window exactly.
    answer, truth = [[20, 25, 0.9], [0, 8, 0.8]], [[0, 8], [20, 30]]
    metrics = moment_metrics([answer], [truth])
    precision = {0.5: 1.0} | dict.fromkeys(THRESHOLDS[1:], 0.25)  # from 0.55: one hit at rank 2
    expected = {"R1@0.3": 1, "R1@0.5": 1, "R1@0.7": 0, "mIoU": 0.5}
    expected |= {"mAP@0.5": 1, "mAP@0.75": 0.25, "mAP": sum(precision.values()) / 10}
    assert metrics == pytest.approx(expected)


def test_a_query_without_answer_counts_zero_and_one_without_truth_not_at_all():
    right, true = [[0, 8, 0.9]], [[0, 8]]
    assert set(moment_metrics([right], [true]).values()) == {1}
    assert set(moment_metrics([right, []], [true, true]).values()) == {0.5}
    for nothing in ([], [[3, 3]], [[4, 3]], [[0, 1501]]):
        assert set(moment_metrics([right, right], [true, nothing]).values()) == {1}


def test_columns_of_queries_average_to_the_metrics():
    queries = random_queries(3, 40, 1, 4)
    queries[1][5] = [[2.0, 2.0]]
    columns = scoring.metric_columns(*query_values(*queries))
    assert columns.shape == (40, len(NAMES)) and np.isnan(columns[5]).all()
    means = dict(zip(NAMES, np.nanmean(columns, axis=0)))
    assert moment_metrics(*queries) == pytest.approx(means, abs=1e-12)


def test_equal_queries_in_another_order_have_equal_means():
    """To the last bit, so that an epoch is not better by rounding."""
    predictions, references = random_queries(4, 60, 1, 4)
    means = set()
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(60)
        shuffled = [predictions[i] for i in order], [references[i] for i in order]
        means.add(tuple(moment_metrics(*shuffled).values()))
    assert len(means) == 1


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        ([[10, 5, 0.9]], [[0, 5]], "query 1.*ends before it starts"),
        ([[0, float("nan"), 0.9]], [[0, 5]], "query 1.*finite.*nan"),
        ([[0, 5, float("inf")]], [[0, 5]], "query 1.*finite.*inf"),
        ([[0, 5, 1]], [[0, float("inf")]], "query 1.*true window.*finite"),
        ([[0, 5]], [[0, 5]], "query 1.*score"),
        ([[0, 5, 1]], [[0, 5, 1]], "query 1.*true window"),
    ],
)
def test_impossible_input(prediction, reference, message):
    with pytest.raises(ValueError, match=message):
        moment_metrics([[[0, 5, 1]], prediction], [[[0, 5]], reference])


def test_a_prediction_longer_than_all_numbers_overlaps_nothing(recwarn):
    assert moment_metrics([[[-1e308, 1e308, 1]]], [[[0, 1]]])["mIoU"] == 0 and not recwarn.list


def test_lists_of_different_number_and_no_truth_at_all():
    with pytest.raises(ValueError, match="1 queries.*2"):
        moment_metrics([[]], [[[0, 1]], [[0, 1]]])
    with pytest.raises(ValueError, match="none of 2 queries"):
        moment_metrics([[], []], [[], [[1, 1]]])


def test_evaluate_module_loads_by_path_and_agrees(tmp_path, monkeypatch):
    predictions, references = lists_of(CASES)
    metric = load_metric(METRIC, tmp_path, monkeypatch)
    expected = moment_metrics(predictions, references)
    assert metric.compute(predictions=predictions, references=references) == expected
    in_parts = load_metric(METRIC, tmp_path, monkeypatch)
    in_parts.add_batch(predictions=predictions[:20], references=references[:20])
    for prediction, reference in zip(predictions[20:], references[20:]):
        in_parts.add(prediction=prediction, reference=reference)
    assert in_parts.compute() == expected
    with pytest.raises(ValueError, match="query 0"):
        metric.compute(predictions=[[[10.0, 5.0, 0.9]]], references=[[[0.0, 5.0]]])
