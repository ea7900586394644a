"""Bytes of a training step over the network: counted, by a formula, and by it at full size.

Part of benchmarks/growth.py.

Letters: P processes, N pairs of the batch of all processes, D dimensions.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from benchmarks.full_size import ROOT

NUM_NODES, PAIRS_A_NODE = 8, 16
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
    """Print the counted bytes, the formula, and the formula for configs/tap.yaml on 8 nodes.

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
    report_full_size()
    return agree


def report_full_size() -> None:
    from retrieval.config import load_config
    from retrieval.models.build import build_model_without_weights

    config = load_config(ROOT / "configs" / "tap.yaml")
    model = build_model_without_weights(config)
    num_pairs, num_frames = NUM_NODES * PAIRS_A_NODE, model.windows.num_frames
    count = num_trained(model)
    bytes_of = formula(NUM_NODES, num_pairs, config.dim, count)
    frames = num_pairs * num_frames * config.dim * 4
    # A ring carries this share of a result past each node; a sum goes round twice.
    share = (NUM_NODES - 1) / NUM_NODES
    print(
        f"\nconfigs/tap.yaml on {NUM_NODES} nodes of one GPU, batch {num_pairs}, {count:,} trained"
        " parameters, computed from the counted bytes:"
    )
    print(f"    {'MB a step':40s}{'the tensor':>14}{'a node sends':>14}")
    rows = {
        name: (size, size * share * (2 if name in SUMMED else 1)) for name, size in bytes_of.items()
    }
    exchange = [row for name, row in rows.items() if name != "gradients of parameters"]
    rows |= {"all but the gradients of parameters": tuple(map(sum, zip(*exchange)))}
    rows |= {"all": tuple(map(sum, zip(*(rows[name] for name in bytes_of))))}
    rows |= {f"not sent: frames, {num_frames} x {config.dim} a clip": (frames, frames * share)}
    rows |= {"not sent: their gradient, summed": (frames, 2 * frames * share)}
    for name, (tensor, sent) in rows.items():
        print(f"    {name:40s}{tensor / 1e6:14,.4f}{sent / 1e6:14,.4f}")
