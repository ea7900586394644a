"""Losses: pure functions of a score matrix. A loss is one function here and one line in LOSSES.

A loss takes cosines (N, B), rows are texts and columns audios, and positives bool (N, B), and gives a scalar; it computes in float32
whatever autocast says. Letters: N texts, B audios.
"""

import torch
from torch import Tensor

from retrieval.errors import UserError


def nt_xent(scores: Tensor, positives: Tensor, temperature: float | Tensor) -> Tensor:
    """Normalised temperature-scaled cross-entropy over both directions (recipe of SimCLR, several positives allowed).

        -1/2 (mean over positives of log_softmax(scores / temperature, rows) + the same over columns)

    A batch that holds a clip twice marks both captions positive for both of its columns, so a clip is never its own negative.
    """
    if scores.shape != positives.shape:
        raise ValueError(f"scores and positives must have one shape, found {tuple(scores.shape)} and {tuple(positives.shape)}")
    logits = scores.to(torch.promote_types(scores.dtype, torch.float32)) / temperature  # (N, B)
    log_probability = logits.log_softmax(dim=1) + logits.log_softmax(dim=0)
    # A product and not an index: indexing by a mask would make the host wait for the GPU.
    return -0.5 * (log_probability * positives).sum() / positives.sum()


LOSSES = {"nt_xent": nt_xent}


def check_loss(name: str) -> None:
    """Raises UserError for a loss.name that is no key of LOSSES."""
    if name not in LOSSES:
        raise UserError(f"loss.name={name!r} is unknown; there is: {', '.join(LOSSES)}")
