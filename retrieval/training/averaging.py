"""Exponential moving average (EMA) of the weights that a run trains.

Only what training changes is kept twice: trainable parameters, and the running statistics of
BatchNorm layers whose parameters are trained. Frozen parts are not copied.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from retrieval.base.exchange import copy_from_first


class WeightAverage:
    """Moving average of a model's trained weights.

    After update n, average = d * average + (1 - d) * weights with d = min(decay, (1 + n) / (10 +
    n)): the warm-up of TensorFlow's ExponentialMovingAverage. With a fixed d near 1 the average of
    a short run would be its random start.

    Every process computes the average from its own weights, which are equal on all processes.

    Args:
        model: On its device; `update` reads its weights, `applied` changes them.
        decay: Between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.num_updates = 0
        self.statistics = _statistics(model)
        parameters = model.named_parameters()
        trained = {name: weight for name, weight in parameters if weight.requires_grad}
        self.weights: dict[str, torch.Tensor] = trained | self.statistics  # the model's own
        self.averages = {name: weight.detach().clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an optimizer step."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        weights = list(self.weights.values())
        torch._foreach_lerp_(list(self.averages.values()), weights, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the average within this context, and its own weights back after it."""
        # DistributedDataParallel gives all processes the first one's statistics before a forward
        for name in self.statistics:
            copy_from_first(self.averages[name])
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange weights and averages, one tensor at a time to save memory."""
        for name, weight in self.weights.items():
            kept = weight.clone()
            weight.copy_(self.averages[name])
            self.averages[name].copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates, "averages": self.averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved average. Raises ValueError if it is of another model."""
        if state["averages"].keys() != self.averages.keys():
            raise ValueError("the average of the weights is of another model")
        self.num_updates = state["num_updates"]
        for name, average in self.averages.items():
            average.copy_(state["averages"][name])


def _statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return mean and variance of the trained BatchNorm layers, by name."""
    found = {}
    for prefix, module in model.named_modules():
        trained = any(weight.requires_grad for weight in module.parameters(recurse=False))
        if isinstance(module, _BatchNorm) and trained and module.track_running_stats:
            found[f"{prefix}.running_mean".lstrip(".")] = module.running_mean
            found[f"{prefix}.running_var".lstrip(".")] = module.running_var
    return found
