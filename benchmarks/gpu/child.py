"""The process of one step of benchmarks.gpu."""

import json
import multiprocessing
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.full_size import ROOT
from benchmarks.gpu.report import DONE
from benchmarks.gpu.steps import NotHere, Place
from retrieval.base.errors import one_line
from retrieval.base.extras import MissingExtraError
from retrieval.base.processes import end_with_parent


def run_step(function: str, place: Place, rows: Path, log: Path) -> None:
    """Write each row of a step as a JSON line to `rows`; the last line says how it ended."""
    os.setsid()  # so that processes which the step starts end with it
    if multiprocessing.parent_process() is not None:  # None if Python was started anew
        end_with_parent()
    with open(log, "w") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    os.chdir(ROOT)
    if not place.is_gpu:
        os.environ |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    with open(rows, "w") as file:

        def write(row: dict[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        try:
            module, _, name = function.partition(":")
            for row in getattr(import_module(module), name)(place):
                write({"row": row})
        except (NotHere, MissingExtraError) as error:
            write({"state": "not run", "why": str(error)})
        except ModuleNotFoundError as error:
            write({"state": "not run", "why": f"package {error.name} is missing"})
        except Exception as error:
            traceback.print_exc()
            write({"state": "failed", "why": one_line(error)})
        else:
            write({"state": DONE})
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a process group or a loader may wait at a normal end


def forked_step(function: str, place: Place, rows: Path, log: Path) -> None:
    """Run a step in this fork of the server; start a new Python if the server initialised CUDA."""
    if place.is_gpu and cuda_was_initialised():
        words = [function, place.folder, place.output, place.seconds, rows, log]
        command = [sys.executable, "-m", "benchmarks.gpu", "--step", *map(str, words)]
        os.chdir(ROOT)
        os.execv(sys.executable, command)
    run_step(function, place, rows, log)


def cuda_was_initialised() -> bool:
    """Return True if CUDA was initialised before the fork: this process then cannot use it."""
    import torch

    return torch.cuda._is_in_bad_fork()
