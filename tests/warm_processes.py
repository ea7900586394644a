"""Processes that do not import torch anew.

A server, which has imported what the tests need, is forked for each of them. With the start method
`spawn` Python starts anew, which takes seconds of a core for every process.
"""

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

from torch.multiprocessing import start_processes

# most of what the functions that the tests start import
PRELOADED = ["tests.many_processes", "tests.pretrained_models", "peft", "tensorboard"]


def spawn(function: Callable, arguments: tuple, nprocs: int) -> None:
    """As torch.multiprocessing.spawn: function(rank, *arguments) in `nprocs` processes of their
    own, with the environment variables of this one. Raises what one of them raises.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    started = (dict(os.environ), function, arguments)
    start_processes(_run, started, nprocs, start_method="forkserver")


def _run(rank: int, environment: dict[str, str], function: Callable, arguments: Any) -> None:
    os.environ.clear()
    os.environ.update(environment)
    function(rank, *arguments)
