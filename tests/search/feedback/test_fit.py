"""The fit to marks, against scipy's minimum of the same objective and matrices inverted in full."""

import numpy as np
import pytest
from scipy.optimize import minimize

from retrieval.search.feedback import fit as feedback
from retrieval.search.feedback.fit import Background, approximate, fit, sigmoid

DIM = 12


@pytest.fixture(scope="module", params=[60, 8])  # more and fewer than dimensions
def features(request) -> np.ndarray:
    """A sample of unit vectors, of which some directions vary more than others."""
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((request.param, DIM)) * np.linspace(0.1, 2, DIM) + 0.5
    return (sample / np.linalg.norm(sample, axis=1, keepdims=True)).astype(np.float32)


def slow_whitening(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and matrix, by the covariance's eigenvectors in all dimensions."""
    covariance = np.cov(features.astype(np.float64).T, bias=True)
    typical = np.trace(covariance @ covariance) / np.trace(covariance)
    mixed = (1 - feedback.FLOOR) * covariance + feedback.FLOOR * typical * np.eye(DIM)
    variances, axes = np.linalg.eigh(mixed)
    return features.mean(axis=0), axes @ np.diag(variances**-0.5) @ axes.T


def marks_and_query() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    marked = rng.standard_normal((10, DIM)).astype(np.float32)
    right = marked[:, 0] > 0
    return marked, right, rng.standard_normal(DIM).astype(np.float32)


def test_whitening_against_the_full_matrix(features: np.ndarray):
    mean, matrix = slow_whitening(features)
    background = Background(features)
    other = np.random.default_rng(2).standard_normal((5, DIM))
    np.testing.assert_allclose(background.whiten(other), (other - mean) @ matrix, atol=1e-4)
    vector, bias = background.unwhiten(np.arange(DIM), 0.3)
    expected = (other - mean) @ matrix @ np.arange(DIM) + 0.3
    np.testing.assert_allclose(other @ vector + bias, expected, atol=1e-3)


def test_fit_against_the_minimum_of_its_objective(features: np.ndarray):
    marked, right, query = marks_and_query()
    found = fit(marked, right, query, Background(features))
    mean, matrix = slow_whitening(features)
    scores = features @ query
    likely = sigmoid(
        feedback.SCORE_SLOPE * (scores - scores.mean()) / scores.std() + feedback.SCORE_OFFSET
    )

    def objective(weights: np.ndarray, own_right: np.ndarray = right) -> float:
        """Log loss of marks, and of each excerpt of the sample as right and as wrong."""
        logits = (marked - mean) @ matrix @ weights[:DIM] + weights[DIM]
        total = 0.0
        for logit, is_right in zip(logits, own_right, strict=True):
            total += np.logaddexp(0, -logit if is_right else logit)
        for excerpt, own in zip(features, likely, strict=True):
            logit = (excerpt - mean) @ matrix @ weights[:DIM] + weights[DIM]
            share = feedback.SAMPLE_WEIGHT / len(features)
            total += share * own * np.logaddexp(0, -logit)
            total += share * (1 - own) * np.logaddexp(0, logit)
        return total + weights[:DIM] @ weights[:DIM] / (2 * feedback.INVERSE_REGULARISATION)

    def logits_of(own_right: np.ndarray) -> np.ndarray:
        best = minimize(objective, np.zeros(DIM + 1), args=(own_right,)).x
        return (marked - mean) @ matrix @ best[:DIM] + best[DIM]

    np.testing.assert_allclose(marked @ found.vector + found.bias, logits_of(right), atol=0.02)
    # negative control: other marks have another minimum
    assert np.abs(marked @ found.vector + found.bias - logits_of(~right)).max() > 0.2


def test_without_marks_the_query_ranks(features: np.ndarray):
    _, _, query = marks_and_query()
    none = np.zeros((0, DIM), np.float32)
    found = fit(none, np.zeros(0, bool), query, Background(features))
    logits = features @ found.vector + found.bias
    np.testing.assert_array_equal(np.argsort(logits), np.argsort(features @ query))
    assert logits.mean() == pytest.approx(feedback.SCORE_OFFSET, abs=1e-4)
    assert found.threshold == feedback.NEUTRAL


def test_marks_of_one_kind_move_what_is_like_them(features: np.ndarray):
    _, _, query = marks_and_query()
    background, marked = Background(features), features[:2]
    rights = fit(marked, np.ones(2, bool), query, background)
    wrongs = fit(marked, np.zeros(2, bool), query, background)
    moved = features @ (rights.vector - wrongs.vector) + rights.bias - wrongs.bias
    assert (moved[:2] > 0).all() and moved[:2].mean() > 2 * moved[2:].mean()
    assert rights.threshold == wrongs.threshold == feedback.NEUTRAL


def test_the_threshold_divides_marks_that_are_easy_to_divide(features: np.ndarray):
    rng = np.random.default_rng(3)
    right = np.arange(20) % 2 == 0
    direction = rng.standard_normal(DIM)
    marked = (np.where(right, 3.0, -3.0)[:, None] * direction).astype(np.float32)
    marked += 0.1 * rng.standard_normal(marked.shape).astype(np.float32)
    found = fit(marked, right, direction.astype(np.float32), Background(features))
    likely = sigmoid(marked @ found.vector + found.bias)
    assert ((likely >= found.threshold) == right).all()
    # one mark of a kind cannot be left out
    few = fit(marked[:4], np.array([True, False, False, False]), direction, Background(features))
    assert few.threshold == feedback.NEUTRAL


def test_equal_vectors_do_no_harm():
    same = np.ones((5, DIM), np.float32)
    found = fit(same[:1], np.array([True]), same[0], Background(same))
    assert np.isfinite(found.vector).all() and np.isfinite(found.bias)


def test_the_first_stage_follows_a_classifier_of_other_features():
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((60, DIM)).astype(np.float32)
    in_text = vectors @ rng.standard_normal((DIM, DIM)).astype(np.float32)
    marked, right, query = marks_and_query()
    target = fit(in_text[:10], right, query, Background(in_text))
    coarse = approximate(target, in_text[:10], vectors[:10], Background(vectors), in_text)
    wanted = in_text @ target.vector
    assert np.corrcoef(vectors @ coarse, wanted)[0, 1] > 0.95
    assert np.corrcoef(vectors @ query, wanted)[0, 1] < 0.9  # negative control
