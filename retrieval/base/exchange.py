"""Exchange between processes; the only file that touches torch.distributed. Without several
processes all is identity.

Every process scores all texts against its own audio and gets the other score columns: frames never
travel. Each then computes the same loss of the whole batch, and backward is called on loss * world
size, since DistributedDataParallel averages gradients: the sum over processes is the gradient of
one process with the whole batch.

Letters: N texts and B audios of all processes together, n and b of this one, D dimensions.
"""

import atexit
import time

import torch
import torch.distributed as dist

SECONDS_TO_LET_GO = 0.2


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def gather_texts(text: torch.Tensor) -> torch.Tensor:
    """(n, D) of every process -> (N, D) in order of rank; the gradient is summed over the
    processes.
    """
    return text if world_size() == 1 else _GatherSummed.apply(text)


def gather_columns(scores: torch.Tensor) -> torch.Tensor:
    """Score blocks (N, b) of every process -> (N, B) in order of rank; the gradient is this
    process's own columns.
    """
    return scores if world_size() == 1 else _GatherOwn.apply(scores.T).T


def gather_rows(values: torch.Tensor) -> torch.Tensor:
    """(n, ...) of every process -> (N, ...) in order of rank, without gradient."""
    return values if world_size() == 1 else torch.cat(_all_gather(values.detach()))


def replicated(parameter: torch.Tensor) -> torch.Tensor:
    """For a parameter of the loss, which every process holds whole: its gradient counts once, not
    once a process.
    """
    share = parameter / world_size()
    return share + (parameter - share).detach()


def any_process(flag: bool, device: torch.device) -> bool:
    """True on every process if it is on one."""
    if world_size() == 1:
        return flag
    votes = torch.tensor(int(flag), device=device)
    dist.all_reduce(votes)
    return bool(votes.item())


def _all_gather(values: torch.Tensor) -> list[torch.Tensor]:
    """Tensors of every process, which may differ in their first size."""
    sizes = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(values)], device=values.device))
    counts = [int(size) for size in sizes]
    padded = values.new_zeros(max(counts), *values.shape[1:])
    padded[: len(values)] = values
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return [part[:count] for part, count in zip(gathered, counts, strict=True)]


@atexit.register
def let_go() -> None:
    """Before the process or its group ends: gloo's threads need Python's lock to let go of the
    tensors of the last exchange; sleeping hands it over.

    Without it PyTorch 2.11 can abort the process (https://github.com/pytorch/pytorch/pull/179291),
    or wait for ever for a thread that waits too.
    """
    if world_size() > 1:
        time.sleep(SECONDS_TO_LET_GO)


class _GatherOwn(torch.autograd.Function):
    """All processes compute the same loss from the result, so a process needs its own part of the
    gradient alone.
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
    """The result is used differently on every process (against its own audio), so the gradients add
    up.
    """

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.first : ctx.first + ctx.count]
