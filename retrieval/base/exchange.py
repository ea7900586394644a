"""Exchange between processes by torch.distributed. A single process exchanges nothing.

Every process scores all texts against its own audio, and gets the other score columns: frames are
never sent. Each then computes the same loss of the whole batch, and calls backward on loss * world
size, since DistributedDataParallel averages gradients. So the sum over processes is the gradient of
one process with the whole batch.

Letters: N texts and B audios of all processes together, n and b of this one, D dimensions.
"""

import atexit
import time

import torch
import torch.distributed as dist

SECONDS_TO_RELEASE = 0.2


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process: 0 to world_size() - 1."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_texts(text: torch.Tensor) -> torch.Tensor:
    """Gather texts (n, D) of every process to (N, D), in order of rank. Gradients are summed."""
    return text if world_size() == 1 else _GatherSummed.apply(text)


def gather_columns(scores: torch.Tensor) -> torch.Tensor:
    """Gather score blocks (N, b) of every process to (N, B), in order of rank.

    The gradient is this process's own columns.
    """
    return scores if world_size() == 1 else _GatherOwn.apply(scores.T).T


def gather_rows(values: torch.Tensor) -> torch.Tensor:
    """Gather rows (n, ...) of every process to (N, ...), in order of rank, without gradient."""
    return values if world_size() == 1 else torch.cat(_all_gather(values.detach()))


def replicated(parameter: torch.Tensor) -> torch.Tensor:
    """Divide the gradient of a loss parameter by world_size(): every process holds a copy."""
    share = parameter / world_size()
    return share + (parameter - share).detach()


def copy_from_first(values: torch.Tensor) -> None:
    """Overwrite `values` of every process with those of the first one."""
    if world_size() > 1:
        dist.broadcast(values, src=0)


def any_process(flag: bool, device: torch.device) -> bool:
    """Return True on every process if `flag` is True on one."""
    if world_size() == 1:
        return flag
    votes = torch.tensor(int(flag), device=device)
    dist.all_reduce(votes)
    return bool(votes.item())


def _all_gather(values: torch.Tensor) -> list[torch.Tensor]:
    """Gather a tensor of every process; they may differ in their first size."""
    sizes = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(values)], device=values.device))
    counts = [int(size) for size in sizes]
    padded = values.new_zeros(max(counts), *values.shape[1:])
    padded[: len(values)] = values
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return [part[:count] for part, count in zip(gathered, counts, strict=True)]


@atexit.register
def release_tensors() -> None:
    """Give gloo's threads time to release the tensors of the last exchange.

    Call it before the process or its group ends. The threads need Python's lock for this, and
    sleeping hands it over. Without this wait PyTorch 2.11 can abort the process, or wait for ever
    (https://github.com/pytorch/pytorch/pull/179291).
    """
    if world_size() > 1:
        time.sleep(SECONDS_TO_RELEASE)


class _GatherOwn(torch.autograd.Function):
    """Gather parts; the gradient is this process's own part.

    All processes compute the same loss from the result.
    """

    @staticmethod
    def forward(ctx, values: torch.Tensor) -> torch.Tensor:
        parts = _all_gather(values)
        ctx.first = sum(len(part) for part in parts[: rank()])
        ctx.count = len(values)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return gradient[ctx.first : ctx.first + ctx.count]


class _GatherSummed(_GatherOwn):
    """Gather parts; gradients are summed, since each process scores them with its own audio."""

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.first : ctx.first + ctx.count]
