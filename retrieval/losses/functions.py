"""Losses: functions of a score matrix. A loss is one function here and one line in LOSSES.

All compute in float32 at least, also under autocast. Letters: N texts, B audios. Losses of pairs
need N = B, text i written for audio i.
"""

import torch
from torch import Tensor
from torch.nn import functional

LISTNET_TARGET_TEMPERATURE = 0.05


def nt_xent(scores: Tensor, positives: Tensor, temperature: float | Tensor) -> Tensor:
    """Normalised temperature-scaled cross-entropy in both directions, with several positives.

        -1/2 (mean over positives of log_softmax(scores / temperature, rows)
              + the same over columns)

    If a batch holds a clip twice, both captions are positive for both of its columns: a clip is
    never its own negative. After SimCLR (Chen et al., 2020, arXiv 2002.05709).

    Args:
        scores: Cosines (N, B): rows are texts, columns audios.
        positives: bool (N, B), True where a text belongs to an audio.
        temperature: Scores are divided by it.

    Returns:
        A scalar.

    Raises:
        ValueError: scores and positives differ in shape.
    """
    logits = _at_least_float32(scores, positives) / temperature  # (N, B)
    log_probability = logits.log_softmax(dim=1) + logits.log_softmax(dim=0)
    return -0.5 * _mean_over(positives, log_probability)


def info_nce(scores: Tensor, positives: Tensor, temperature: float | Tensor) -> Tensor:
    """`nt_xent` of the pairs only: a clip that comes twice is its own negative.

    Source: van den Oord et al., 2018, arXiv 1807.03748.

    Args:
        scores: Cosines (N, B): rows are texts, columns audios.
        positives: bool (N, B), True where a text belongs to an audio.
        temperature: Scores are divided by it.

    Returns:
        A scalar.

    Raises:
        ValueError: scores and positives differ in shape, or N is not B.
    """
    return nt_xent(scores, _own_pairs(positives), temperature)


def triplet(
    scores: Tensor, positives: Tensor, temperature: float | Tensor, margin: float
) -> Tensor:
    """Hinge of each pair against its closest negative (semi-hard), both directions added.

        mean over pairs of max(0, margin + negative - positive), on scores / temperature

    The negative is the one whose score is closest to the pair's own, above or below. A pair without
    a negative, in a batch of one clip, costs nothing.

    Args:
        scores: Cosines (N, B): rows are texts, columns audios.
        positives: bool (N, B), True where a text belongs to an audio.
        temperature: Scores are divided by it.
        margin: In units of scores / temperature.

    Returns:
        A scalar.

    Raises:
        ValueError: scores and positives differ in shape, or N is not B.
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
    """Prior matrix revised loss, both directions added.

        -mean over positives of log_softmax(scores * softmax(omega * scores) / temperature)

    Source: Xin, Yang, Zou: ICASSP 2023, section 2.3.

    Args:
        scores: Cosines (N, B): rows are texts, columns audios.
        positives: bool (N, B), True where a text belongs to an audio.
        temperature: Scores are divided by it.
        omega: Sharpness of the prior, on cosines.
        prior_axis: "cross" takes the prior along the other direction, so that a pair counts less
            if that disagrees, as in dual softmax (Cheng et al., 2021, arXiv 2109.04290); "same"
            takes it along the direction of the loss, as in the thesis.

    Returns:
        A scalar.

    Raises:
        ValueError: scores and positives differ in shape.
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
    """Binary cross-entropy of every pair, summed, over the number of texts.

        -sum of log sigmoid(label * (scores / temperature * exp(scale) + bias)) / N

    The label is 1 for positives and -1 for all others. Source: SigLIP (Zhai et al., 2023,
    arXiv 2303.15343).

    Args:
        scores: Cosines (N, B): rows are texts, columns audios.
        positives: bool (N, B), True where a text belongs to an audio.
        temperature: Scores are divided by it.
        scale: Learnable scalar, the logarithm of a factor on scores / temperature.
        bias: Learnable scalar, added to the logits.

    Returns:
        A scalar.

    Raises:
        ValueError: scores and positives differ in shape.
    """
    logits = _at_least_float32(scores, positives) / temperature * scale.exp() + bias  # (N, B)
    labels = 2 * positives.to(logits.dtype) - 1
    return -functional.logsigmoid(labels * logits).sum() / len(logits)


def listnet(
    scores: Tensor, positives: Tensor, temperature: float | Tensor, caption_similarity: Tensor
) -> Tensor:
    """Cross-entropy with a ranking by the similarity of captions, both directions, halved.

    A similarity s becomes the relevance 1 / (1 + exp(2.73 - 4.58 s)), whose softmax at
    LISTNET_TARGET_TEMPERATURE is the target. Source: ListNet (Cao et al., ICML 2007).

    Args:
        scores: Cosines (N, B): rows are texts, columns audios.
        positives: bool (N, B), True where a text belongs to an audio.
        temperature: Scores are divided by it.
        caption_similarity: Sentence-BERT cosines (N, B) of text i with the caption of audio j.

    Returns:
        A scalar.

    Raises:
        ValueError: scores and positives differ in shape.
    """
    relevance = torch.sigmoid(4.58 * caption_similarity.to(scores.device) - 2.73)
    return _soft_cross_entropy(
        _at_least_float32(scores, positives) / temperature, relevance / LISTNET_TARGET_TEMPERATURE
    )


def distillation(
    scores: Tensor, positives: Tensor, temperature: float | Tensor, teacher_scores: Tensor
) -> Tensor:
    """Cross-entropy with the softmax of the teachers' scores, both directions, halved.

    Both sides are divided by the temperature, which learns from the student's only. Source:
    Primus, Schmid, Widmer: DCASE 2024.

    Args:
        scores: Cosines (N, B): rows are texts, columns audios.
        positives: bool (N, B), True where a text belongs to an audio.
        temperature: Scores are divided by it.
        teacher_scores: Mean of the teachers' cosines, (N, B).

    Returns:
        A scalar.

    Raises:
        ValueError: scores and positives differ in shape.
    """
    if isinstance(temperature, Tensor):
        teacher = teacher_scores.to(scores.device) / temperature.detach()
    else:
        teacher = teacher_scores.to(scores.device) / temperature
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
    """Return the identity (N, N). Raises ValueError if N is not B."""
    if positives.shape[0] != positives.shape[1]:
        raise ValueError(
            f"text i must belong to audio i, found {positives.shape[0]} texts and"
            f" {positives.shape[1]} audios"
        )
    return torch.eye(len(positives), dtype=torch.bool, device=positives.device)


def _soft_cross_entropy(logits: Tensor, target_logits: Tensor) -> Tensor:
    """Return the mean cross-entropy of two softmaxes over rows, and over columns, halved."""
    total = 0.0
    for axis in (1, 0):
        target = target_logits.softmax(dim=axis)
        total = total - (target * logits.log_softmax(dim=axis)).sum(dim=axis).mean()
    return 0.5 * total
