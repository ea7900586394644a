"""Run a model without training it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from retrieval.base.errors import UserError

Autocast = Callable[[], AbstractContextManager]


@contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Keep all modules in eval mode within the block, then restore the training mode of each."""
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in was_training:
            module.training = True


def check_not_nan(scores: torch.Tensor, place: str = "") -> None:
    """Raise UserError if a score is NaN; `place`, with a leading blank, follows "scores"."""
    num_nan = int(scores.isnan().sum())
    if num_nan:
        raise UserError(
            f"{num_nan} of {scores.numel()} scores{place} are NaN: the weights or stored frames are"
            " not finite, or overflow in this precision; take an earlier checkpoint, another mixed"
            " precision or float32 frames"
        )
