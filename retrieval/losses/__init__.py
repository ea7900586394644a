"""Losses: what is minimised. A loss is one function in functions.py and one line in LOSSES.

Its arguments beside scores and positives are settings (retrieval.config.LossConfig), learnable
parameters (LEARNABLE) or targets (TARGETS), found by name.
"""

import inspect
from typing import Any

from torch import Tensor

from retrieval.base.errors import UserError
from retrieval.losses.functions import (
    distillation,
    info_nce,
    listnet,
    nt_xent,
    pmr,
    sigmoid,
    triplet,
)

LOSSES = {
    "nt_xent": nt_xent,
    "info_nce": info_nce,
    "triplet": triplet,
    "pmr": pmr,
    "sigmoid": sigmoid,
    "listnet": listnet,
    "distillation": distillation,
}


LEARNABLE = ("scale", "bias")  # arguments that are parameters of the model, beside the temperature


TARGETS = ("caption_similarity", "teacher_scores")  # arguments that are looked up for each batch


def check_loss(name: str, setting: str = "loss.name") -> None:
    """Raises UserError for a name that is no key of LOSSES."""
    if name not in LOSSES:
        raise UserError(f"{setting}={name!r} is unknown; there is: {', '.join(LOSSES)}")


def arguments_of(name: str) -> list[str]:
    """What loss `name` takes beside scores and positives."""
    return list(inspect.signature(LOSSES[name]).parameters)[2:]


def apply_loss(name: str, scores: Tensor, positives: Tensor, values: dict[str, Any]) -> Tensor:
    """Loss `name` with those of `values` that it takes."""
    return LOSSES[name](
        scores, positives, **{argument: values[argument] for argument in arguments_of(name)}
    )
