"""Bytes of a training step over the network: counted in a real step, and by a formula.

Part of benchmarks/growth.py and benchmarks/costs, which computes from it what more GPUs would send.

Letters: P processes, N pairs of the batch of all processes, D dimensions.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUMMED = ("gradient of texts", "gradients of parameters", "stop vote")


def num_trained(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def formula(num_processes: int, num_pairs: int, dim: int, num_parameters: int) -> dict[str, int]:
    """Compute the bytes of a step in float32, with equal shares of the batch."""
    return {
        "sizes": 3 * num_processes * 8,  # each of the three gathers sends its number of rows first
        "texts": num_pairs * dim * 4,
        "score columns": num_pairs * num_pairs * 4,
        "clips and pairs": num_pairs * 2 * 8,
        "gradient of texts": num_pairs * dim * 4,
        "gradients of parameters": num_parameters * 4,
        "stop vote": 8,
    }


def sent(bytes_of: dict[str, int], num_processes: int) -> dict[str, float]:
    """Compute the bytes that each process sends, by a formula's sizes of tensors.

    In a ring, of NCCL as of gloo, a gathered tensor passes each process but for its own part; a sum
    goes round twice, once to be added up and once to be handed out.
    """
    share = (num_processes - 1) / num_processes
    return {name: size * share * (2 if name in SUMMED else 1) for name, size in bytes_of.items()}


def loopback_bytes() -> int:
    """Return the bytes that went through this machine's loopback interface so far (Linux)."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.strip().startswith("lo:"))


def count_bytes(run: Any, batch: dict[str, Any]) -> dict[str, int]:
    """Count the bytes that one step of the training loop gives to collectives, by purpose."""
    from retrieval.base.exchange import any_process
    from retrieval.training.loop import train_step

    with counting(run) as counted:
        train_step(run, batch)
        any_process(False, run.accelerator.device)
    return dict(counted)


def average_in_python(wrapped: Any) -> None:
    """Let DDP average gradients in Python, where they can be counted, instead of in C++."""
    import torch

    from retrieval.base.exchange import dist

    def average(_state, bucket):  # DDP refuses annotations other than its own
        gradients = bucket.buffer().div_(dist.get_world_size())
        # Not asynchronous: a callback in gloo's thread can wait for ever if its process group ends.
        dist.all_reduce(gradients)
        done = torch.futures.Future()
        done.set_result(gradients)
        return done

    wrapped.register_comm_hook(None, average)


@contextlib.contextmanager
def counting(run: Any) -> Iterator[Counter]:
    """Count the calls of collectives within the block."""
    import torch

    from retrieval.base.exchange import dist

    counted: Counter = Counter()
    gather, reduce, broadcast = dist.all_gather, dist.all_reduce, dist._broadcast_coalesced
    integer = torch.int64

    def counted_gather(outputs: list, own: Any) -> Any:
        if own.dtype == integer:
            name = "sizes" if own.dim() == 1 else "clips and pairs"
        else:
            name = "texts" if own.shape[1:] == (run.config.dim,) else "score columns"
        counted[name] += sum(output.nbytes for output in outputs)
        return gather(outputs, own)

    def counted_reduce(values: Any, **how: Any) -> Any:
        if values.dtype == integer:
            name = "stop vote"
        else:
            name = "gradients of parameters" if values.dim() == 1 else "gradient of texts"
        counted[name] += values.nbytes
        return reduce(values, **how)

    def counted_broadcast(group: Any, buffers: list, *how: Any) -> None:
        counted["buffers"] += sum(buffer.nbytes for buffer in buffers)
        broadcast(group, buffers, *how)

    dist.all_gather, dist.all_reduce, dist._broadcast_coalesced = (
        counted_gather,
        counted_reduce,
        counted_broadcast,
    )
    try:
        yield counted
    finally:
        dist.all_gather, dist.all_reduce, dist._broadcast_coalesced = gather, reduce, broadcast


def report_bytes(points: dict[int, Any]) -> bool:
    """Print the counted bytes and the formula.

    `points` are growth.Point by batch size. Returns True if counts and formula agree.
    """
    agree = all(point.counted == point.expected for point in points.values())
    size, point = next(iter(points.items()))
    print(
        "\nbytes that a step of 2 processes handed to collectives, batch"
        f" {size}:{'counted':>18}{'formula':>14}"
    )
    for name, expected in point.expected.items():
        print(f"    {name:52s}{point.counted.get(name, 0):14,d}{expected:14,d}")
    print(
        f"    {'buffers':52s}{point.counted.get('buffers', 0):14,d}{0:14,d}  "
        f" ({point.num_buffer_bytes:,} a forward pass if DDP broadcast them)"
    )
    print(f"    {'equal' if agree else 'DIFFERENT'} for batches of {', '.join(map(str, points))}")
    expected = sum(sent(point.expected, 2).values())
    print(f"    a process sent {point.wire:,.0f}, headers included; by the ring {expected:,.0f}")
    return agree
