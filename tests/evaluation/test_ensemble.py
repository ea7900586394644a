"""Weights of an ensemble: given, or fitted on another split than the one that is scored."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

from retrieval.base.errors import UserError
from retrieval.config import load_config
from retrieval.data import open_cache
from retrieval.evaluation import ensemble
from retrieval.evaluation.ensemble import (
    NUM_STEPS,
    fit_weights,
    mean_average_precision,
    simplex,
    weighted_mean,
)
from retrieval.evaluation.result import retrieval_metrics
from retrieval.evaluation.score_files import open_scores
from retrieval.evaluation.score_matrix import captions_of, similarity_matrix
from retrieval.models.build import build_model
from retrieval.models.dual_encoder import DualEncoder
from tests.conftest import write_cache
from tests.evaluation.evaluate_command import evaluate


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """Accelerate keeps the precision of the first Accelerator of a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


RIGHT = [[clip] for clip in range(30) for _ in range(2)]
SEVERAL = [[clip, (clip + 7) % 30] if clip % 3 else [clip] for clip in range(30) for _ in range(2)]


def scores_of(*strengths: float, seed: int = 0, right=RIGHT) -> list[torch.Tensor]:
    """Score matrices (60, 30) of models that add this much to the right clips, beside noise."""
    generator = torch.Generator().manual_seed(seed)
    matrices = []
    for strength in strengths:
        matrix = torch.randn(len(right), 30, generator=generator)
        for row, clips in enumerate(right):
            matrix[row, clips] += strength
        matrices.append(matrix)
    return matrices


def mean_of(matrices, weights) -> torch.Tensor:
    total = sum(weight * matrix.double() for matrix, weight in zip(matrices, weights, strict=True))
    return (total / sum(weights)).float()


def brute_force(matrices, right) -> tuple[float, list[tuple[float, ...]]]:
    """Highest mAP@10 of all multiples of 0.05, by nested loops, and the weights that reach it."""
    values = {}
    for first in range(NUM_STEPS + 1):
        for second in range(NUM_STEPS + 1 - first):
            steps = [first, second, NUM_STEPS - first - second]
            if len(matrices) == 3 or steps[2] == 0:
                weights = tuple(step / NUM_STEPS for step in steps[: len(matrices)])
                values[weights] = retrieval_metrics(mean_of(matrices, weights), right)["mAP@10"]
    best = max(values.values())
    return best, [weights for weights, value in values.items() if value == best]


@pytest.mark.parametrize("right", [RIGHT, SEVERAL], ids=["one right clip", "several"])
@pytest.mark.parametrize("strengths", [(1.5, 1.0), (1.5, 0.0, 1.0)])
def test_fitted_weights_equal_a_brute_force_grid(strengths, right):
    matrices = scores_of(*strengths, right=right)
    found = fit_weights(matrices, right)
    best, weights = brute_force(matrices, right)
    assert found.value == pytest.approx(best, abs=1e-12)
    equal = [1 / len(matrices)] * len(matrices)
    assert found.equal == retrieval_metrics(mean_of(matrices, equal), right)["mAP@10"]
    assert tuple(found.weights) in weights
    assert fit_weights(matrices, right) == found
    # of equal values the most even weights
    evenness = [sum(weight**2 for weight in one) for one in weights]
    assert sum(weight**2 for weight in found.weights) == pytest.approx(min(evenness))


def test_a_bad_model_loses_its_weight_and_others_gain_on_clips_of_another_split():
    matrices, others = scores_of(2.0, 0.0, 2.0), scores_of(2.0, 0.0, 2.0, seed=1)
    found = fit_weights(matrices, RIGHT)
    assert found.weights[1] < 0.2 and found.value > found.equal + 0.03

    def value(weights):
        return retrieval_metrics(mean_of(others, weights), RIGHT)["mAP@10"]

    assert value(found.weights) > value([1, 1, 1]) + 0.03
    assert value(found.weights) > max(value([1, 0, 0]), value([0, 0, 1]))
    # negative control: equal models have nothing to gain
    same = fit_weights([matrices[0]] * 3, RIGHT)
    assert same.weights == [1 / 3] * 3 and same.value == same.equal


def test_many_models_are_searched_step_by_step(monkeypatch):
    matrices = scores_of(1.0, 0.0, 1.5, 0.3, 0.0)
    found = fit_weights(matrices, RIGHT)  # 10,626 combinations: not all are tried
    singles = [retrieval_metrics(matrix, RIGHT)["mAP@10"] for matrix in matrices]
    assert found.value > max(found.equal, *singles)
    assert sum(found.weights) == pytest.approx(1) and min(found.weights) >= 0
    # three models, as if they were many: never above the grid, and close to it
    whole = fit_weights(matrices[:3], RIGHT)
    monkeypatch.setattr(ensemble, "MAX_WHOLE_GRID", 0)
    stepwise = fit_weights(matrices[:3], RIGHT)
    assert whole.equal <= stepwise.value <= whole.value
    assert stepwise.value > whole.value - 0.02


def test_the_grid_and_the_fast_metric():
    points = list(simplex(3))
    assert len(points) == len(set(points)) == 231 and {sum(point) for point in points} == {20}
    matrices = [torch.round(matrix) for matrix in scores_of(1.0, 0.5, right=SEVERAL)]  # ties
    weights = [0.25, 0.75]
    mean = weighted_mean(matrices, weights)
    assert torch.equal(mean, mean_of(matrices, weights))
    expected = retrieval_metrics(mean, SEVERAL)["mAP@10"]
    assert mean_average_precision(matrices, weights, SEVERAL) == pytest.approx(expected, abs=1e-12)


# --- evaluate.py ---


@pytest.fixture(scope="module")
def checkpoints(tiny, tmp_path_factory) -> tuple[Path, Path]:
    run = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("a", "b")):
        config = load_config(tiny / "tiny.yaml")
        torch.manual_seed(seed)
        build_model(config).save_pretrained(run / name / "best")
        (run / name / "config.yaml").write_text(yaml.safe_dump(config.model_dump()))
    return run / "a" / "best", run / "b" / "best"


def both(checkpoints) -> list[object]:
    return ["--checkpoint", checkpoints[0], "--checkpoint", checkpoints[1]]


def matrices_of(checkpoints, split) -> list[torch.Tensor]:
    captions = captions_of(split)[0]
    models = [DualEncoder.from_pretrained(path) for path in checkpoints]
    return [similarity_matrix(model, captions, split) for model in models]


def test_given_weights(checkpoints, tiny, tmp_path, capsys):
    first, second = checkpoints
    asked = ["--checkpoint", first, "--weight", 3, "--checkpoint", second, "--weight", 1]
    evaluate(*asked, "--output", tmp_path / "a", "--save-scores", "--report", tmp_path / "report")
    assert f"0.75 x {first}, 0.25 x {second}" in capsys.readouterr().out
    split = open_cache(tiny / "cache").split("evaluation")
    expected = mean_of(matrices_of(checkpoints, split), [0.75, 0.25])
    scores = torch.from_numpy(open_scores(tmp_path / "a").scores)
    torch.testing.assert_close(scores, expected)
    for name in ("a/metrics.json", "a/scores.json"):
        record = json.loads((tmp_path / name).read_text())
        assert record["weights"] == [0.75, 0.25] and "fitted_on" not in record
    lead = re.search(r'<p class="lead">.*', (tmp_path / "report" / "report.html").read_text())[0]
    assert "weighted mean of 0.75 × " in lead
    # the same, written behind both
    evaluate(*both(checkpoints), "--weight", 0.75, 0.25, "--output", tmp_path / "b")
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in "ab"]
    assert metrics[0]["text_to_audio"] == metrics[1]["text_to_audio"]
    # negative control: equal weights give other scores, and are not recorded
    evaluate(*both(checkpoints), "--output", tmp_path / "c", "--save-scores")
    assert "weights" not in json.loads((tmp_path / "c" / "metrics.json").read_text())
    assert not torch.allclose(torch.from_numpy(open_scores(tmp_path / "c").scores), scores)


def test_weights_fitted_on_validation_are_used_on_evaluation(checkpoints, tiny, tmp_path, capsys):
    evaluate(
        *both(checkpoints), "--fit-weights", "validation", "--save-scores", "--output", tmp_path
    )
    cache = open_cache(tiny / "cache")
    validation = cache.split("validation")
    right = [[clip] for clip in captions_of(validation)[1]]
    found = fit_weights(matrices_of(checkpoints, validation), right)
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["weights"] == found.weights
    assert record["fitted_on"] == {
        "split": "validation",
        "fingerprint": validation.fingerprint(),
        "mAP@10": pytest.approx(found.value),
        "mAP@10_equal_weights": pytest.approx(found.equal),
    }
    printed = capsys.readouterr().out
    assert "weights fitted on validation" in printed
    assert f"{found.weights[0]:.3g} x {checkpoints[0]}" in printed
    evaluation = matrices_of(checkpoints, cache.split("evaluation"))
    expected = mean_of(evaluation, found.weights)
    torch.testing.assert_close(torch.from_numpy(open_scores(tmp_path).scores), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weight", 0.5], "--weight gives 1 numbers for 2"),
        (["--weight", 0.5, 0.3, 0.2], "--weight gives 3 numbers for 2"),
        (["--weight", 1, 0], "--weight 0: must be above 0"),
        (["--weight", 1, -1], "--weight -1: must be above 0"),
        (["--weight", 1, "nan"], "--weight nan"),
        (["--weight", "inf", 1], "--weight inf"),
        (["--weight", 1, 1, "--fit-weights", "validation"], "--fit-weights .*--weight"),
        (["--fit-weights", "evaluation"], "--fit-weights evaluation is the split that is scored"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_loaded(
    checkpoints, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.setattr(DualEncoder, "from_pretrained", lambda *_: 1 / 0)
    with pytest.raises(UserError, match=message) as error:
        evaluate(*both(checkpoints), *arguments, "--output", tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [["--weight", 1], ["--fit-weights", "validation"]])
def test_one_checkpoint_has_no_weight(checkpoints, option):
    with pytest.raises(UserError, match=f"{option[0]} is for several checkpoints"):
        evaluate("--checkpoint", checkpoints[0], *option)


def test_a_split_with_clips_of_the_scored_one_is_refused(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval.evaluation.score_matrix.score_columns", lambda *_, **__: 1 / 0)
    cache = write_cache(tmp_path / "cache", {"evaluation": 4, "validation": 4})
    (tmp_path / "cache" / "validation").rename(tmp_path / "cache" / "moved")
    (tmp_path / "cache" / "validation").symlink_to(tmp_path / "cache" / "evaluation")
    score = [*both(checkpoints), "--cache", cache, "--output", tmp_path / "out"]
    with pytest.raises(UserError, match="--fit-weights validation: 4 clips are also in"):
        evaluate(*score, "--fit-weights", "validation")
    with pytest.raises(UserError, match="no split 'dev'"):
        evaluate(*score, "--fit-weights", "dev")
