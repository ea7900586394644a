"""Make all measurements that need a GPU, the most important first, within some minutes.

    python -m benchmarks.gpu [--minutes 8] [--output runs/gpu]
    python -m benchmarks.gpu --rehearse            # on a CPU, tiny sizes: shows that each step runs
    python -m benchmarks.gpu --only tap,trace      # measure these steps again

Each step (benchmarks/gpu/steps.py) runs in its own process, with its own time limit: an error, a
crash or a hang of one step does not affect the others. The command writes results to
OUTPUT/results.json and OUTPUT/results.md after each step, and the output of each process to
OUTPUT/logs. After an interruption run it again: it keeps the steps that were finished with the same
commit, card and PyTorch version. --only measures them again.

Nothing is downloaded: weights are random, sounds are noise. The exit code is 1 if a step failed.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.full_size import hardware
from benchmarks.gpu.child import forked_step, run_step
from benchmarks.gpu.report import DONE, MARKDOWN, RESULTS, markdown, save
from benchmarks.gpu.steps import STEPS, Place, Step
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError, one_line
from retrieval.base.files import check_outputs, check_writable, read_json
from retrieval.base.interrupts import watch_sigterm
from retrieval.base.versions import git_commit

OUTPUT = Path("runs") / "gpu"
ROWS = "rows.jsonl"  # of a step, in its folder
# For the processes of the steps; libraries read it when they are imported. A killed step leaves
# semaphores, which Python removes at the end; its warning is off.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore::UserWarning:multiprocessing.resource_tracker",
}
REHEARSAL_SECONDS = 60.0  # limit of a step
LEAST_SECONDS = 15.0  # a step with less time is not started
# Imported once, for all steps. None of them may touch the GPU when it is imported.
PRELOAD = ["retrieval.training.loop", "benchmarks.training_step", "benchmarks.gpu.child"]


def measure(step: Step, place: Place, logs: Path, name: str) -> dict[str, Any]:
    """Run a step in a process of its own; return its state, rows and seconds."""
    rows, log = place.folder / ROWS, logs / f"{name}.log"
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    start = time.perf_counter()
    process = context.Process(target=forked_step, args=(step.function, place, rows, log))
    process.start()
    try:
        process.join(place.seconds)
        is_over_time = process.is_alive()
    finally:
        end(process)
    seconds = time.perf_counter() - start
    result = {"state": "failed", "why": "", "seconds": round(seconds, 1), **read_rows(rows)}
    if is_over_time and result["state"] == "failed":
        result |= {"state": "over its time", "why": f"ended after {place.seconds:.0f} s"}
    elif result["state"] == "failed" and not result["why"]:
        result["why"] = f"the process ended with exit code {process.exitcode}; see {log.name}"
    return result


def read_rows(path: Path) -> dict[str, Any]:
    """Return the rows of a step, and its state if it wrote one."""
    found: dict[str, Any] = {"rows": []}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            content = json.loads(line)
        except ValueError:
            break  # the process was killed while it wrote
        if "row" in content:
            found["rows"].append(content["row"])
        else:
            found |= content
    return found


def end(process: Any) -> None:
    """Kill a step's process and the processes that it started."""
    if process.pid is not None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            process.kill()
    process.join()


def describe_place(rehearse: bool) -> dict[str, Any]:
    """Describe machine and versions, on which results depend. Raises UserError without a GPU."""
    import torch

    if not rehearse and not torch.cuda.is_available():
        raise UserError(
            "no GPU is visible here (torch.cuda.is_available() is False); --rehearse runs every"
            " step on the CPU in miniature"
        )
    card = "CPU" if rehearse else torch.cuda.get_device_name()
    return {
        "card": card,
        "machine": hardware(),
        "torch": torch.__version__,
        "commit": git_commit() or "unknown",
        "rehearsal": rehearse,
    }


def kept_steps(folder: Path, place: dict[str, Any]) -> dict[str, Any]:
    """Return the results in `folder` of finished steps from this machine, commit and PyTorch."""
    path = folder / RESULTS
    if not path.exists():
        return {}
    try:
        results = read_json(path)
        if results["place"]["rehearsal"] != place["rehearsal"]:
            kind = "a rehearsal" if results["place"]["rehearsal"] else "a GPU"
            raise UserError(f"{path} has results of {kind}; give another folder as --output")
        is_same = all(results["place"][key] == place[key] for key in ("card", "torch", "commit"))
        kept = {
            name: step
            for name, step in results["steps"].items()
            if is_same and step["state"] == DONE
        }
        markdown({"command": "", "place": place, "steps": kept}, STEPS)  # as it will be written
    except (LookupError, TypeError, AttributeError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} is no result of this command ({one_line(error)}); delete it, or give another"
            " folder as --output"
        ) from None
    return kept


def chosen_steps(only: str | None) -> list[str]:
    """Return the steps of --only, in the order of STEPS. Raises UserError."""
    if only is None:
        return list(STEPS)
    names = [name.strip() for name in only.split(",")]
    if unknown := [name for name in names if name not in STEPS]:
        raise UserError(f"--only {unknown[0]!r} is no step; there is: {', '.join(STEPS)}")
    return [name for name in STEPS if name in names]


def run_steps(arguments: argparse.Namespace, folder: Path) -> bool:
    """Run the chosen steps. Returns False if one failed."""
    place = describe_place(arguments.rehearse)
    kept = kept_steps(folder, place)
    names = chosen_steps(arguments.only)
    check_outputs([folder / RESULTS, folder / MARKDOWN])
    logs = folder / "logs"
    if logs.exists() and not logs.is_dir():
        raise UserError(f"{logs} is not a folder; delete it, or give another folder as --output")
    logs.mkdir(parents=True, exist_ok=True)
    words = ["python", "-m", "benchmarks.gpu", *arguments.words]
    results: dict[str, Any] = {"command": " ".join(words), "place": place, "steps": dict(kept)}
    deadline = time.perf_counter() + 60 * arguments.minutes
    print(f"{place['card']}; {place['machine']}; results in {folder / MARKDOWN}", flush=True)
    for name in names:
        if name in kept and arguments.only is None:
            print(f"{name:12s} done before", flush=True)
            continue
        left = deadline - time.perf_counter()
        limit = min(left, REHEARSAL_SECONDS if arguments.rehearse else STEPS[name].seconds)
        if left < LEAST_SECONDS and name in kept:
            print(f"{name:12s} no time left; its figures of before stay", flush=True)
            continue
        if left < LEAST_SECONDS:
            result = {"state": "not run", "why": "no time left", "rows": []}
        else:
            with tempfile.TemporaryDirectory(prefix="gpu_") as work:
                device = "cpu" if arguments.rehearse else "cuda"
                own = Place(device, arguments.rehearse, Path(work), folder, limit)
                results["steps"][name] = {"state": "interrupted", "why": "", "rows": []}
                try:
                    result = measure(STEPS[name], own, logs, name)
                except BaseException:
                    results["steps"][name] |= {"rows": read_rows(own.folder / ROWS)["rows"]}
                    results["steps"] |= {name: kept[name]} if name in kept else {}
                    save(folder, results, STEPS)
                    raise
        results["steps"][name] = result
        save(folder, results, STEPS)
        why = f": {result['why']}" if result.get("why") else ""
        print(f"{name:12s} {result['state']}{why}, {result.get('seconds', 0.0):.1f} s", flush=True)
    return all(results["steps"][name]["state"] in (DONE, "not run") for name in names)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="time limit of all steps together (default: 8)"
    )
    parser.add_argument("--rehearse", action="store_true", help="try all steps on the CPU, tiny")
    parser.add_argument(
        "--only", metavar="NAME,...", help=f"measure these steps again: {', '.join(STEPS)}"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help=f"folder of the results (default: {OUTPUT}, with --rehearse {OUTPUT}_rehearsal)",
    )
    parser.add_argument("--step", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    arguments.words = sys.argv[1:] if argv is None else argv
    if not arguments.minutes > 0:
        raise UserError(f"--minutes {arguments.minutes:g}: must be more than 0")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    os.environ |= ENVIRONMENT
    if arguments.step:
        function, folder, output, seconds, rows, log = arguments.step
        place = Place("cuda", False, Path(folder), Path(output), float(seconds))
        run_step(function, place, Path(rows), Path(log))
    default = Path(f"{OUTPUT}_rehearsal") if arguments.rehearse else OUTPUT
    folder = (arguments.output or default).absolute()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is not a folder; choose another name")
    check_writable(folder)
    return 0 if run_steps(arguments, folder) else 1


if __name__ == "__main__":
    watch_sigterm()
    run_main(main)
