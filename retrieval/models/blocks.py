"""Activation checkpointing and torch.compile for the repeated blocks of encoders."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from retrieval.base.errors import UserError


def checkpoint_block(block: nn.Module) -> None:
    """Let `block` keep only its input in training.

    The backward pass runs it again, with the same dropout.
    """
    block.forward = partial(_run_block, block, block.forward)


def _run_block(
    block: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    if block.training and torch.is_grad_enabled():
        return checkpoint(forward, x, use_reentrant=False)
    return forward(x)


def checkpoint_pretrained(model: PreTrainedModel) -> None:
    """Checkpoint the blocks of a model of transformers. Raises UserError if it cannot."""
    if not model.supports_gradient_checkpointing:
        raise UserError(
            f"train.activation_checkpointing: {model.config.model_type} has no such switch; set it"
            " to false"
        )
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:  # transformers 5.20, the last version for Python 3.10
        model.gradient_checkpointing_enable({"use_reentrant": False})


def compile_module_lists(model: nn.Module) -> None:
    """Call torch.compile for the blocks in each ModuleList of a model of transformers."""
    for blocks in model.modules():
        if isinstance(blocks, nn.ModuleList):
            for block in blocks:
                block.compile(dynamic=True)
