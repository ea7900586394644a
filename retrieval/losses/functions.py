"""Losses: pure functions of a score matrix. A loss is one function here and one line in LOSSES.

A loss takes cosines (N, B), rows are texts and columns audios, and positives bool (N, B), and gives
a scalar; it computes in float32 whatever autocast says. What it takes besides are settings
(retrieval.config.LossConfig), learnable parameters (LEARNABLE) or targets (TARGETS), by name.
Letters: N texts, B audios. Where a loss speaks of pairs, N is B and text i was written for audio i.
"""

import torch
from torch import Tensor
from torch.nn import functional

LISTNET_TARGET_TEMPERATURE = 0.05


def nt_xent(scores: Tensor, positives: Tensor, temperature: float | Tensor) -> Tensor:
    """Normalised temperature-scaled cross-entropy over both directions (recipe of SimCLR, several
    positives allowed).

        -1/2 (mean over positives of log_softmax(scores / temperature, rows) + the same over
        columns)

    A batch that holds a clip twice marks both captions positive for both of its columns, so a clip
    is never its own negative.
    """
    logits = _at_least_float32(scores, positives) / temperature  # (N, B)
    log_probability = logits.log_softmax(dim=1) + logits.log_softmax(dim=0)
    return -0.5 * _mean_over(positives, log_probability)


def info_nce(scores: Tensor, positives: Tensor, temperature: float | Tensor) -> Tensor:
    """`nt_xent` that knows only its own pairs (van den Oord et al., 2018, arXiv 1807.03748): a clip
    that comes twice is its own negative.
    """
    return nt_xent(scores, _own_pairs(positives), temperature)


def triplet(
    scores: Tensor, positives: Tensor, temperature: float | Tensor, margin: float
) -> Tensor:
    """Hinge of each pair against the negative whose score is closest to its own, above or below
    (semi-hard), in both directions, added.

        mean over pairs of max(0, margin + negative - positive), on scores / temperature

    A pair without any negative, in a batch of one clip, costs nothing.
    """
    logits = _at_least_float32(scores, positives) / temperature  # (N, B)
    _own_pairs(positives)
    own = logits.diagonal()  # (N,)
    total = 0.0
    for matrix, taken in ((logits, positives), (logits.T, positives.T)):
        distance = (matrix.detach() - own.detach()[:, None]).abs().masked_fill(taken, torch.inf)
        closest = matrix.gather(1, distance.argmin(dim=1, keepdim=True)).squeeze(1)  # (N,)
        total = total + (functional.relu(margin + closest - own) * ~taken.all(dim=1)).mean()
    return total


def pmr(
    scores: Tensor, positives: Tensor, temperature: float | Tensor, omega: float, prior_axis: str
) -> Tensor:
    """Prior matrix revised loss (Xin, Yang, Zou: ICASSP 2023, section 2.3), both directions added.

        -mean over positives of log_softmax(scores * softmax(omega * scores) / temperature)

    prior_axis "cross": a pair counts less where the opposite direction disagrees, as in dual
    softmax (Cheng et al., 2021, arXiv 2109.04290); "same": prior and loss run along one axis, as in
    the thesis.
    """
    scores = _at_least_float32(scores, positives)
    total = 0.0
    for axis in (1, 0):
        prior = (omega * scores).softmax(dim=1 - axis if prior_axis == "cross" else axis)
        total = total - _mean_over(positives, (scores * prior / temperature).log_softmax(dim=axis))
    return total


def sigmoid(
    scores: Tensor, positives: Tensor, temperature: float | Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    """Every pair is a yes-or-no question of its own (SigLIP: Zhai et al., 2023, arXiv 2303.15343),
    summed, over the number of texts.

        -sum of log sigmoid(label * (scores / temperature * exp(scale) + bias)) / N, label 1 for
        positives, -1 for all others
    """
    logits = _at_least_float32(scores, positives) / temperature * scale.exp() + bias  # (N, B)
    labels = 2 * positives.to(logits.dtype) - 1
    return -functional.logsigmoid(labels * logits).sum() / len(logits)


def listnet(
    scores: Tensor, positives: Tensor, temperature: float | Tensor, caption_similarity: Tensor
) -> Tensor:
    """Cross-entropy with a ranking by the similarity of captions, both directions, halved (ListNet:
    Cao et al., ICML 2007).

    caption_similarity (N, B): Sentence-BERT cosine of text i with the caption of audio j, from
    which its relevance is estimated as 1 / (1 + exp(2.73 - 4.58 s)).
    """
    relevance = torch.sigmoid(4.58 * caption_similarity.to(scores.device) - 2.73)
    return _soft_cross_entropy(
        _at_least_float32(scores, positives) / temperature, relevance / LISTNET_TARGET_TEMPERATURE
    )


def distillation(
    scores: Tensor, positives: Tensor, temperature: float | Tensor, teacher_scores: Tensor
) -> Tensor:
    """Cross-entropy with the teachers' softmax, both directions, halved (Primus, Schmid, Widmer:
    DCASE 2024).

    teacher_scores (N, B): mean of the teachers' cosines; both sides are divided by the temperature.
    """
    teacher = teacher_scores.to(scores.device) / (
        temperature.detach() if isinstance(temperature, Tensor) else temperature
    )
    return _soft_cross_entropy(_at_least_float32(scores, positives) / temperature, teacher)


def _at_least_float32(scores: Tensor, positives: Tensor) -> Tensor:
    if scores.shape != positives.shape:
        raise ValueError(
            f"scores and positives must have one shape, found {tuple(scores.shape)} and"
            f" {tuple(positives.shape)}"
        )
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _mean_over(positives: Tensor, values: Tensor) -> Tensor:
    # A product and not an index: indexing by a mask would make the host wait for the GPU.
    return (values * positives).sum() / positives.sum()


def _own_pairs(positives: Tensor) -> Tensor:
    if positives.shape[0] != positives.shape[1]:
        raise ValueError(
            f"text i must belong to audio i, found {positives.shape[0]} texts and"
            f" {positives.shape[1]} audios"
        )
    return torch.eye(len(positives), dtype=torch.bool, device=positives.device)


def _soft_cross_entropy(logits: Tensor, target_logits: Tensor) -> Tensor:
    """Mean over rows, and over columns, of the cross-entropy of softmax(logits) with
    softmax(target_logits), halved.
    """
    total = 0.0
    for axis in (1, 0):
        total = (
            total
            - (target_logits.softmax(dim=axis) * logits.log_softmax(dim=axis)).sum(dim=axis).mean()
        )
    return 0.5 * total
