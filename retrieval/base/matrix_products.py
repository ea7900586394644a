"""Speed of matrix products on this machine."""

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def fastest_product(
    dtype: "torch.dtype", size: int, device: "torch.device | str" = "cpu", repeats: int = 10
) -> float:
    """Return the FLOP/s of the fastest of several products of random matrices (size, size)."""
    import torch

    on_gpu = torch.device(device).type == "cuda"
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        left @ right
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
