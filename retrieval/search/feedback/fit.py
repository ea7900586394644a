"""Learn a ranking from a query and from answers marked right or wrong.

There are far fewer marks than dimensions, so the fit uses two more sources:

- The query: its scores give probabilities, which label a sample of the index, with little weight
  each. The more marks there are, the less the query counts. The sample also represents the rest of
  the index, so one kind of marks is enough.
- The index: vectors are whitened on the same sample, so that directions in which all recordings
  differ count less.

The numbers below were chosen by benchmarks/feedback.py; docs/detectors.md has its table.

Letters: M marks, S excerpts of the sample, D = dim.
"""

from dataclasses import dataclass

import numpy as np

from retrieval.base.extras import needs_extra

SAMPLE = 400  # excerpts
SAMPLE_WEIGHT = 80.0  # marks that the whole sample counts as
# log-odds of the sample's labels: SCORE_SLOPE per standard deviation of the query's scores
SCORE_SLOPE = 1.0
SCORE_OFFSET = -2.0  # of an excerpt with the mean score: one in eight
INVERSE_REGULARISATION = 0.05  # scikit-learn's C, on whitened vectors
FLOOR = 0.03  # of the variances that are whitened, as a share of the typical one
FOLDS = 5  # of the threshold's cross-validation
# probability that is the threshold where marks cannot say: those of the sample's labels are low
NEUTRAL = 0.3
COARSE_REGULARISATION = 10.0
COARSE_MARK_WEIGHT = 5.0  # of a marked excerpt beside one of the sample


@dataclass(frozen=True)
class Linear:
    """Linear classifier: log-odds = vector . features + bias.

    Attributes:
        vector: float32 (D,).
        bias: Log-odds of an excerpt whose features are 0.
        threshold: Least probability of an excerpt that counts as found.
    """

    vector: np.ndarray
    bias: float
    threshold: float = NEUTRAL


class Background:
    """A sample of the index, and its whitening.

    Args:
        features: float32 (S, D), S of 1 or more.
    """

    def __init__(self, features: np.ndarray):
        self.features = features.astype(np.float64)
        self._mean = self.features.mean(axis=0)
        variances, self._axes = _principal(self.features - self._mean)  # (r,), (r, D)
        # The typical variance, weighted by itself: that of the directions that the vectors use.
        typical = float(np.square(variances).sum() / max(variances.sum(), 1e-12)) or 1.0
        # All other directions have the variance of the floor.
        self._rest = (FLOOR * typical) ** -0.5
        self._gains = ((1 - FLOOR) * variances + FLOOR * typical) ** -0.5 - self._rest

    def whiten(self, features: np.ndarray) -> np.ndarray:
        """Return features (..., D) with equal variances in all directions, around 0."""
        return self._scaled(features - self._mean)

    def unwhiten(self, vector: np.ndarray, bias: float) -> tuple[np.ndarray, float]:
        """Convert vector and bias of whitened features to those of the original features."""
        vector = self._scaled(vector)
        return vector, float(bias - vector @ self._mean)

    def _scaled(self, vectors: np.ndarray) -> np.ndarray:
        return self._rest * vectors + ((vectors @ self._axes.T) * self._gains) @ self._axes


def _principal(centred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the variances (r,) of (S, D) along its principal axes (r, D), r <= min(S, D).

    The smaller of two square matrices has them; an SVD of 400 x 1,024 takes ten times as long.
    """
    num, dim = centred.shape
    if dim <= num:
        variances, axes = np.linalg.eigh(centred.T @ centred / num)
        return variances.clip(min=0), axes.T
    variances, weights = np.linalg.eigh(centred @ centred.T / num)
    used = variances > 1e-9 * max(variances[-1], 1e-12)
    axes = (weights[:, used].T @ centred) / np.sqrt(num * variances[used, None])
    return variances[used], axes


def fit(
    features: np.ndarray, right: np.ndarray, query: np.ndarray, background: Background
) -> Linear:
    """Fit a classifier to marked excerpts.

    Without marks it ranks exactly as the query does.

    Args:
        features: float32 (M, D), of the marked excerpts; M may be 0.
        right: bool (M,), whether each was marked right. One kind is enough.
        query: float32 (D,), whose dot products with features are the query's scores.
        background: A sample of all excerpts.

    Returns:
        The classifier. Its threshold is the one of the highest F1 on marks that were left out of
        the fit (cross-validation), or NEUTRAL if one kind has fewer than two marks.
    """
    labels = _Labels(query, background)
    if not len(features):
        return Linear(*labels.of_query)
    vector, bias = labels.fit(features, right)
    threshold = _threshold(features, right, labels)
    return Linear(vector.astype(np.float32), bias, threshold)


class _Labels:
    """The sample, labelled by the query."""

    def __init__(self, query: np.ndarray, background: Background):
        self.background = background
        scores = background.features @ query.astype(np.float64)  # (S,)
        slope = SCORE_SLOPE / max(float(scores.std()), 1e-12)
        offset = SCORE_OFFSET - slope * float(scores.mean())
        self.of_query = (slope * query).astype(np.float32), offset
        self._probabilities = sigmoid(slope * scores + offset)  # (S,)
        self._whitened = background.whiten(background.features)  # (S, D)

    def fit(self, features: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, float]:
        """Return vector float64 (D,) and bias."""
        with needs_extra("search"):  # here, because it takes a second to import
            from sklearn.linear_model import LogisticRegression
        likely, size = self._probabilities, len(self._probabilities)
        # A label between 0 and 1 is one example of each class, whose weights are its parts.
        whitened = [self.background.whiten(features), self._whitened, self._whitened]
        labels = [right, np.ones(size), np.zeros(size)]
        share = SAMPLE_WEIGHT / size
        weights = [np.ones(len(features)), share * likely, share * (1 - likely)]
        model = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=1000)
        model.fit(
            np.concatenate(whitened),
            np.concatenate(labels).astype(int),
            sample_weight=np.concatenate(weights),
        )
        return self.background.unwhiten(model.coef_[0], float(model.intercept_[0]))


def _threshold(features: np.ndarray, right: np.ndarray, labels: _Labels) -> float:
    """Choose the probability of the highest F1 in cross-validation; of several the most neutral."""
    with needs_extra("search"):
        from sklearn.model_selection import StratifiedKFold
    folds = min(FOLDS, int(right.sum()), int((~right).sum()))
    if folds < 2:
        return NEUTRAL
    logits = np.empty(len(right))
    for rest, own in StratifiedKFold(folds, shuffle=True, random_state=0).split(features, right):
        vector, bias = labels.fit(features[rest], right[rest])
        logits[own] = features[own] @ vector + bias
    ranked, neutral = np.unique(logits), np.log(NEUTRAL / (1 - NEUTRAL))
    cuts = [ranked[0] - 1e-6, *(ranked[:-1] + ranked[1:]) / 2]  # at least one is found

    def quality(cut: float) -> tuple[float, float]:
        found = logits >= cut
        f1 = 2 * int((found & right).sum()) / int(found.sum() + right.sum())
        return f1, -abs(cut - neutral)

    return float(sigmoid(np.array(max(cuts, key=quality))))


def approximate(
    target: Linear,
    features: np.ndarray,
    vectors: np.ndarray,
    background: Background,
    sample_features: np.ndarray,
) -> np.ndarray:
    """Fit a vector of the first stage whose products approximate a classifier's log-odds.

    With TAP, a text has its own features of each excerpt, made from all frames; the first stage
    finds the candidates by one vector for all texts. The query's own vector finds far fewer of the
    excerpts that the classifier ranks high (benchmarks/feedback.py).

    Args:
        target: The classifier.
        features: float32 (M, D), of the marked excerpts.
        vectors: float32 (M, D), their vectors in the first stage.
        background: The sample in the first stage.
        sample_features: float32 (S, D), the features of the same sample.

    Returns:
        float32 (D,).
    """
    with needs_extra("search"):
        from sklearn.linear_model import Ridge
    both = np.concatenate([sample_features, features])
    logits = both @ target.vector + target.bias  # (S + M,)
    weights = np.ones(len(both))
    weights[len(sample_features) :] = COARSE_MARK_WEIGHT
    whitened = background.whiten(np.concatenate([background.features, vectors]))
    model = Ridge(alpha=COARSE_REGULARISATION).fit(whitened, logits, sample_weight=weights)
    return background.unwhiten(model.coef_, 0.0)[0].astype(np.float32)


def sigmoid(log_odds: np.ndarray) -> np.ndarray:
    """Return probabilities, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * log_odds))
