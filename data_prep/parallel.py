"""Map a function over tasks in worker processes, in order."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from retrieval.base.errors import UserError
from retrieval.base.processes import end_with_parent


def ordered_map(
    function: Callable[[Any], Any], tasks: Sequence[Any], num_proc: int, chunksize: int
) -> Iterator[Any]:
    """Yield `function(task)` for each task, in the order of the tasks.

    Args:
        function: A function that can be pickled, as its tasks and results are.
        tasks: Its arguments.
        num_proc: Number of worker processes; 1 works in this process.
        chunksize: Tasks that a worker takes at a time.

    Raises:
        UserError: A worker was killed.
    """
    if num_proc == 1 or len(tasks) <= 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(num_proc, len(tasks)), context, _start_worker) as pool:
        try:
            yield from pool.map(function, tasks, chunksize=chunksize)
        except BrokenProcessPool:
            raise UserError(
                "a process was killed, perhaps for lack of memory; try a smaller --num-proc"
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    end_with_parent()
