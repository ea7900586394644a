"""Gradients of a batch whose encoders run part by part, so that memory holds the activations of one
part, while every caption keeps all negatives.

Cached gradients (GradCache: Gao et al., 2021, arXiv 2101.06983): all parts are encoded without a
graph; scores and loss of the whole batch give the gradient of each encoding; then each part is
encoded again, with the same random numbers, and its gradient goes back through it.

Letters: b pairs of this process, D dimensions, T frames.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn.utils.rnn import pad_sequence

from retrieval.base.exchange import world_size
from retrieval.models.dual_encoder import DualEncoder

# text (b, D), frames (b, T, D), mask (b, T) -> loss of all processes
LossOf = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def backward_in_parts(
    accelerator: Accelerator,
    wrapped: torch.nn.Module,
    batch: dict[str, Any],
    size: int,
    loss_of: LossOf,
) -> torch.Tensor:
    """Leave in every parameter the gradient of `loss_of` the whole batch, and return the loss.
    `size` pairs are encoded at once.

    batch: of retrieval.data.collate_pairs. The cost is one more forward pass of the encoders.
    """
    model: DualEncoder = accelerator.unwrap_model(wrapped)
    device = accelerator.device
    # Not accelerator.no_sync: it does nothing in a group of one process (torchrun --nproc_per_node
    # 1), but DDP still counts gradients there.
    no_sync = getattr(wrapped, "no_sync", nullcontext)
    parts = [
        {name: values[first : first + size] for name, values in batch.items()}
        for first in range(0, len(batch["captions"]), size)
    ]
    states, encodings = [], []
    for part in parts:
        states.append(_random_state(device))
        with torch.no_grad():
            encodings.append(model(part))
    text = torch.cat([encoding[0] for encoding in encodings]).requires_grad_()  # (b, D)
    frames = _joined([encoding[1] for encoding in encodings]).requires_grad_()  # (b, T, D)
    mask = _joined([encoding[2] for encoding in encodings])  # (b, T)
    shapes = [encoding[1].shape[:2] for encoding in encodings]
    del encodings
    with no_sync():
        loss = loss_of(text, frames, mask)
        accelerator.backward(loss * world_size())
    after = _random_state(device)
    first = 0
    for number, (part, state, (count, num_frames)) in enumerate(
        zip(parts, states, shapes, strict=True), 1
    ):
        _set_random_state(state, device)
        own, first = slice(first, first + count), first + count
        with nullcontext() if number == len(parts) else no_sync():
            text_part, frames_part, _ = wrapped(part)
            outputs, gradients = (
                [text_part, frames_part],
                [
                    text.grad[own],
                    frames.grad[own, :num_frames],
                ],
            )
            if number == len(parts):
                # DistributedDataParallel averages once all parameters have had a gradient since its
                # forward pass: those that learnt from the scores get another one, of zero.
                outputs += [0.0 * parameter.sum() for parameter in _beside_encoders(model)]
                gradients += [torch.ones_like(zero) for zero in outputs[2:]]
            torch.autograd.backward(outputs, gradients)
    _set_random_state(after, device)
    return loss.detach()


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """(b, T, ...) of parts whose T differ: zeros at the end, which the mask leaves out."""
    return pad_sequence([clip for part in parts for clip in part], batch_first=True)


def _beside_encoders(model: DualEncoder) -> Iterator[torch.nn.Parameter]:
    """The trained parameters of the scores and of the loss."""
    for parameter in (
        *model.pooling.parameters(),
        model.temperature,
        *model.loss_parameters.parameters(),
    ):
        if parameter.requires_grad:
            yield parameter


def _random_state(device: torch.device) -> tuple[torch.Tensor, ...]:
    state = (torch.get_rng_state(),)
    return state if device.type != "cuda" else (*state, torch.cuda.get_rng_state(device))


def _set_random_state(state: tuple[torch.Tensor, ...], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
