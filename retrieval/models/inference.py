"""Run a model without training it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

Autocast = Callable[[], AbstractContextManager]


@contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Every module trains afterwards that did before; frozen parts do not."""
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in was_training:
            module.training = True
