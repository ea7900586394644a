"""Gradients of a batch whose encoders run part by part: less memory, and all negatives.

Memory holds the activations of one part at a time. Cached gradients (GradCache: Gao et al., 2021,
arXiv 2101.06983): all parts are encoded without a graph; scores and loss of the whole batch give
the gradient of each encoding; then each part is encoded again, with the same random numbers, and
its gradient goes back through it.

Letters: b pairs of this process, D dimensions, T frames.
"""

from collections.abc import Callable
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
    """Leave the gradient of the loss of the whole batch in every parameter.

    It costs one more forward pass of the encoders than a backward pass of the whole.

    Args:
        accelerator: Of the run.
        wrapped: The DualEncoder as `accelerator.prepare` wrapped it.
        batch: This process's part of the batch, from retrieval.data.collate_pairs.
        size: Pairs that are encoded at once, the same on every process.
        loss_of: Function of text (b, D), frames (b, T, D) and mask (b, T).

    Returns:
        The loss, a scalar without a graph.
    """
    model: DualEncoder = accelerator.unwrap_model(wrapped)
    device = accelerator.device
    # Not accelerator.no_sync: it does nothing in a group of one process (torchrun --nproc_per_node
    # 1), but DDP still counts gradients there.
    no_sync = getattr(wrapped, "no_sync", nullcontext)
    slices = [slice(first, first + size) for first in range(0, len(batch["captions"]), size)]
    parts = [{name: values[own] for name, values in batch.items()} for own in slices]
    states, encodings = [], []
    for part in parts:
        states.append(_random_state(device))
        with torch.no_grad():
            encodings.append(model(part))
    texts, frames_of_parts, masks = zip(*encodings, strict=True)
    num_frames = [frames.shape[1] for frames in frames_of_parts]  # the longest clip's of each part
    text = torch.cat(texts).requires_grad_()  # (b, D)
    frames = _joined(frames_of_parts).requires_grad_()  # (b, T, D)
    mask = _joined(masks)  # (b, T)
    del encodings, texts, frames_of_parts, masks
    with no_sync():
        loss = loss_of(text, frames, mask)
        accelerator.backward(loss * world_size())
    after = _random_state(device)
    for own, part, state, count in zip(slices, parts, states, num_frames, strict=True):
        _set_random_state(state, device)
        is_last = part is parts[-1]
        with nullcontext() if is_last else no_sync():
            text_part, frames_part, _ = wrapped(part)
            outputs = [text_part, frames_part]
            gradients = [text.grad[own], frames.grad[own, :count]]
            if is_last:
                # DistributedDataParallel averages once all parameters have had a gradient since its
                # forward pass: those that learnt from the scores get another one, of zero.
                beside_encoders = [
                    *model.pooling.parameters(),
                    model.temperature,
                    *model.loss_parameters.parameters(),
                    *([] if model.moment_head is None else model.moment_head.parameters()),
                ]
                zeros = [0.0 * weight.sum() for weight in beside_encoders if weight.requires_grad]
                outputs += zeros
                gradients += [torch.ones_like(zero) for zero in zeros]
            # if only a moment head learns, encodings have no gradient
            learnt = [place for place, output in enumerate(outputs) if output.requires_grad]
            torch.autograd.backward(
                [outputs[place] for place in learnt], [gradients[place] for place in learnt]
            )
    _set_random_state(after, device)
    return loss.detach()


def _joined(parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Join parts (n, T, ...) whose T differ; zeros at the end, which the mask leaves out."""
    return pad_sequence([clip for part in parts for clip in part], batch_first=True)


def _random_state(device: torch.device) -> tuple[torch.Tensor, ...]:
    state = (torch.get_rng_state(),)
    return state if device.type != "cuda" else (*state, torch.cuda.get_rng_state(device))


def _set_random_state(state: tuple[torch.Tensor, ...], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
