"""The loss of a moment head. Letters: P pairs of a text and a clip, T frames."""

from torch import Tensor
from torch.nn import functional


def moment_loss(
    logits: Tensor, labels: Tensor, mask: Tensor, *, dice_weight: float = 0.5
) -> Tensor:
    """Return binary cross-entropy plus dice over the valid frames of each pair, (P,).

    Dice measures the overlap of stretches, so that a short one weighs as much as a long one
    (Milletari et al., 2016, arXiv 1606.04797). A text that is heard nowhere has no dice part.

    Args:
        logits: (P, T).
        labels: float (P, T), 1 where the text is heard.
        mask: bool (P, T), True = valid; at least one frame of each pair.
        dice_weight: Weight of the dice part.
    """
    valid = mask.to(logits.dtype)
    entropy = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    entropy = (entropy * valid).sum(dim=1) / valid.sum(dim=1)
    heard, told = logits.sigmoid() * valid, labels * valid
    dice = 1 - 2 * (heard * told).sum(dim=1) / (heard.sum(dim=1) + told.sum(dim=1)).clamp_min(1e-6)
    return entropy + dice_weight * dice * (told.sum(dim=1) > 0)
