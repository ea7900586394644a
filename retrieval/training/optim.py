"""Which parameter learns how fast, and when: parameter groups by module, and the learning-rate
schedule.
"""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import nn

# Group of each part of a DualEncoder.
GROUPS = {
    "audio_encoder": "audio_encoder",
    "text_encoder": "text_encoder",
    "audio_projection": "audio_projection",
    "temperature": "audio_projection",
    "text_projection": "text_projection",
    "pooling": "pooling",
    "loss_parameters": "loss",
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
    """Learning rate at a fractional `epoch`, counted from 0.

    Warm-up: a factor that rises linearly from 0 to 1 over `warmup_epochs`. cosine and linear:
    base_lr until `rampdown_start`, then down to `min_lr` at `rampdown_stop`. step: base_lr times
    `step_factor` for every `step_epochs` since epoch 0, not below `min_lr`. All shapes stay at
    `min_lr` from `rampdown_stop` on. A base_lr below `min_lr` stays as it is: 0 keeps a part as it
    was loaded.
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
    """Optimizer groups {"name", "params", "lr", "base_lr"} in the order of `learning_rates`; empty
    ones are left out.

    Every trainable parameter is in exactly one group, by the part of the model it belongs to
    (GROUPS). Raises ValueError that names a parameter in no group, or one that two parts in
    different groups share, and for a group without a learning rate.
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
    """Give each group of `parameter_groups` its learning rate at `epoch`; `schedule` holds the
    settings of `learning_rate`.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(epoch, group["base_lr"], **schedule)
