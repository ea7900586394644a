"""Parameter groups of the optimizer, and the learning-rate schedule."""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import nn

# Group of each part of a DualEncoder; a learning rate each (optimizer.lr).
GROUPS = {
    "audio_encoder": "audio_encoder",
    "text_encoder": "text_encoder",
    "audio_projection": "audio_projection",
    "temperature": "audio_projection",
    "text_projection": "text_projection",
    "pooling": "pooling",
    "loss_parameters": "loss",
    "moment_head": "moment_head",
}


def learning_rate(
    epoch: float,
    base_lr: float,
    *,
    shape: str,
    warmup_epochs: float,
    rampdown_start: float,
    rampdown_stop: float,
    min_lr: float,
    step_epochs: float,
    step_factor: float,
) -> float:
    """Return the learning rate at a fractional `epoch`, counted from 0.

    From `rampdown_stop` on, all shapes stay at `min_lr`. A base_lr below `min_lr` is not raised:
    with 0 a part stays as it was loaded.

    Args:
        epoch: Epochs done, with the fraction of the current one.
        base_lr: Highest learning rate.
        shape: "cosine" and "linear" stay at base_lr until `rampdown_start`, then go down to
            `min_lr` at `rampdown_stop`; "step" multiplies by `step_factor` every `step_epochs`
            since epoch 0, not below `min_lr`.
        warmup_epochs: Epochs in which a factor rises linearly from 0 to 1.
        rampdown_start: Epoch, for "cosine" and "linear".
        rampdown_stop: Epoch.
        min_lr: Lowest learning rate after the warm-up.
        step_epochs: For "step".
        step_factor: For "step".

    Raises:
        ValueError: `shape` is none of these.
    """
    min_lr = min(min_lr, base_lr)
    progress = min(max((epoch - rampdown_start) / (rampdown_stop - rampdown_start), 0.0), 1.0)
    if progress == 1.0:
        value = min_lr
    elif shape == "cosine":
        value = min_lr + (base_lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))
    elif shape == "linear":
        value = base_lr + (min_lr - base_lr) * progress
    elif shape == "step":
        value = max(min_lr, base_lr * step_factor ** math.floor(epoch / step_epochs))
    else:
        raise ValueError(f"shape must be cosine, linear or step, found {shape!r}")
    return value * min(1.0, epoch / warmup_epochs) if warmup_epochs > 0 else value


def parameter_groups(model: nn.Module, learning_rates: dict[str, float]) -> list[dict[str, Any]]:
    """Return optimizer groups: every trainable parameter is in one, by its part of the model.

    Args:
        model: Its parts are named in GROUPS.
        learning_rates: Base learning rate of each group.

    Returns:
        {"name", "params", "lr", "base_lr"} each, in the order of `learning_rates`; no empty ones.

    Raises:
        ValueError: A parameter is in no group or, shared by two parts, in two; or its group has no
            learning rate.
    """
    members: dict[str, list[nn.Parameter]] = defaultdict(list)
    group_of: dict[nn.Parameter, tuple[str, str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            continue
        group = GROUPS.get(name.split(".")[0])
        if group is None:
            raise ValueError(
                f"parameter {name} is in no group; add its part of the model to"
                " retrieval.training.optim.GROUPS"
            )
        if group not in learning_rates:
            raise ValueError(
                f"parameter {name} is in group {group}, which has no learning rate; there is:"
                f" {', '.join(learning_rates)}"
            )
        other_name, other_group = group_of.setdefault(parameter, (name, group))
        if other_group != group:
            raise ValueError(
                f"parameter {name} is in two groups, {other_group} (as {other_name}) and {group};"
                " share no weights among them"
            )
        if other_name == name:
            members[group].append(parameter)
    return [
        {"name": group, "params": members[group], "lr": lr, "base_lr": lr}
        for group, lr in learning_rates.items()
        if members[group]
    ]


def set_learning_rates(
    optimizer: torch.optim.Optimizer, epoch: float, schedule: dict[str, Any]
) -> None:
    """Set the learning rate of each group of `parameter_groups`.

    Args:
        optimizer: Its groups have "base_lr".
        epoch: Fractional, counted from 0.
        schedule: The keyword arguments of `learning_rate`.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(epoch, group["base_lr"], **schedule)
