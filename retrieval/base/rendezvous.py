"""Make the process group; meanwhile report which processes are missing, and react to signals.

PyTorch waits silently for up to 30 minutes, in C++, where no Python signal handler runs. Here each
process first announces itself in a store that the process of rank 0, or its launcher, serves; then
the process group is made.
"""

import os
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from datetime import timedelta
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

import torch.distributed as dist

from retrieval.base.errors import UserError, one_line

if TYPE_CHECKING:
    from retrieval.base.launch import Launch

FIRST_NOTICE = 30.0  # seconds of silence; later notices after 60, 120, ...
LONGEST_WAIT = 1800.0  # seconds, as PyTorch's own
POLL = 0.2  # seconds

Result = TypeVar("Result")


def group_size() -> int:
    """Return the number of processes in the process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def join(launch: "Launch") -> None:
    """Make the process group of all processes of `launch`, unless it exists.

    Raises:
        UserError: Processes are missing after LONGEST_WAIT, or cannot be reached.
    """
    if dist.is_initialized():
        return
    # Accelerate looks for these; MPI and users who start processes by hand leave some out.
    os.environ |= {
        "RANK": str(launch.rank),
        "LOCAL_RANK": str(launch.local_rank),
        "WORLD_SIZE": str(launch.num_processes),
    }
    os.environ |= {"MASTER_ADDR": launch.address, "MASTER_PORT": str(launch.port)}
    place = f"{launch.address}:{launch.port}"
    rank = f"{launch.rank} of {launch.num_processes} (ranks from 0)"
    waiting = _Waiting(f"process {rank}, on {socket.gethostname()},", place)
    try:
        store = waiting.meanwhile(
            lambda: _connect(launch),
            lambda: "process 0 or its launcher, which does not answer there",
        )
        store.set(f"here/{launch.rank}", "")
        ranks = range(launch.num_processes)
        while missing := [str(rank) for rank in ranks if not store.check([f"here/{rank}"])]:
            waiting.say(lambda ranks=missing: f"rank {', '.join(ranks)}")
            time.sleep(POLL)
        backend = "gloo" if launch.on_cpu else "nccl"
        arguments = {
            "rank": launch.rank,
            "world_size": launch.num_processes,
            "store": dist.PrefixStore("group", store),
        }
        connect = partial(dist.init_process_group, backend, **arguments)
        waiting.meanwhile(connect, lambda: "all ranks to connect to each other")
    except (RuntimeError, ValueError) as error:  # torch's DistError is a RuntimeError
        if isinstance(error, UserError):
            raise
        reason = one_line(error)
        raise UserError(f"{waiting.this} cannot meet the others at {place}: {reason}") from None


def _connect(launch: "Launch") -> dist.Store:
    launcher_serves = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(
        launch.address,
        launch.port,
        is_master=launch.rank == 0 and not launcher_serves,
        wait_for_workers=False,
        timeout=timedelta(seconds=LONGEST_WAIT),
        multi_tenant=True,
    )
    # A launcher that starts the processes anew keeps its store.
    return dist.PrefixStore(f"retrieval/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


class _Waiting:
    """Reports on stderr that `this` process waits at `place`: after 30 s, 1 min, 2 min, ..."""

    def __init__(self, this: str, place: str):
        self.this, self.place = this, place
        self.start, self.next_notice = time.monotonic(), FIRST_NOTICE

    def say(self, missing: Callable[[], str]) -> None:
        """Print the next notice if it is due. Raises UserError after LONGEST_WAIT."""
        seconds = time.monotonic() - self.start
        if seconds < min(self.next_notice, LONGEST_WAIT):
            return
        told = f"{self.this} has waited {seconds:.0f} s at {self.place} for {missing()}"
        if seconds > LONGEST_WAIT:
            raise UserError(f"{told}; look into the logs of the others")
        self.next_notice *= 2
        print(told, file=sys.stderr, flush=True)

    def meanwhile(self, work: Callable[[], Result], missing: Callable[[], str]) -> Result:
        """Return the result of `work`, which may block in C++.

        It runs in another thread, so that this one reacts to signals.
        """
        future: Future[Result] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

        # a daemon: it does not hold up the end of an interrupted process
        Thread(target=run, daemon=True).start()
        while not wait([future], POLL).done:
            self.say(missing)
        return future.result()
