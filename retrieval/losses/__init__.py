"""Losses by name. A loss is one function in functions.py and one line in LOSSES.

A loss takes scores and positives. Its other arguments are settings (retrieval.config.LossConfig),
learnable parameters (LEARNABLE) or targets (TARGETS), found by name.
"""

import inspect
from collections.abc import Callable

from torch import Tensor

from retrieval.base.errors import UserError
from retrieval.losses import functions

LOSSES: dict[str, Callable[..., Tensor]] = {
    "nt_xent": functions.nt_xent,
    "info_nce": functions.info_nce,
    "triplet": functions.triplet,
    "pmr": functions.pmr,
    "sigmoid": functions.sigmoid,
    "listnet": functions.listnet,
    "distillation": functions.distillation,
}
LEARNABLE = ("scale", "bias")  # arguments that are parameters of the model, beside the temperature
# Arguments that are looked up for each batch, and the settings that they need.
TARGETS = {
    "caption_similarity": ("sentence_encoder",),
    "teacher_scores": ("teachers", "supervised", "distill_weight", "loss_weight"),
}


def check_loss(name: str, setting: str = "loss.name") -> None:
    """Raise UserError if LOSSES has no loss `name`, which `setting` gave."""
    if name not in LOSSES:
        raise UserError(f"{setting}={name!r} is unknown; there is: {', '.join(LOSSES)}")


def arguments_of(name: str) -> list[str]:
    """Return the names of the arguments of loss `name` after scores and positives."""
    return list(inspect.signature(LOSSES[name]).parameters)[2:]


def settings_of(name: str) -> set[str]:
    """Return the names of the settings that loss `name` takes, or needs for its targets."""
    arguments = arguments_of(name)
    needed = {setting for target in TARGETS if target in arguments for setting in TARGETS[target]}
    return set(arguments) - set(TARGETS) | needed
