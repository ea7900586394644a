"""Run the project's own commands: the user sees their usual output."""

import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from retrieval.base.errors import UserError
from retrieval.base.interrupts import Terminated
from retrieval.base.processes import terminating_with_parent

ROOT = Path(__file__).resolve().parents[2]
INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


def script(name: str) -> list[str]:
    """Return the start of the command of a script of the repository, such as train.py."""
    return [sys.executable, os.path.relpath(ROOT / name)]


def run(words: list[str], environment: dict[str, str]) -> None:
    """Run a command to its end.

    The command runs in its own session, so that Ctrl-C in the terminal reaches only this process.
    It passes each Ctrl-C on once: after the first one a training saves its state. SIGTERM stays
    SIGTERM: a scheduler sends it to all processes, and a Ctrl-C as the second signal would end the
    training before it has saved.

    Args:
        words: The command.
        environment: Variables in addition to those of this process.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM came, and the command has ended.
        SystemExit: The command failed and said why.
        UserError: A signal killed it.
    """
    shown = [f"{name}={value}" for name, value in environment.items()]
    shown += ["python", *words[1:]] if words[0] == sys.executable else words
    print(f"$ {shlex.join(shown)}", flush=True)
    interrupted = False
    with subprocess.Popen(
        words,
        env=os.environ | environment,
        start_new_session=True,
        preexec_fn=terminating_with_parent(),
    ) as process:
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt as stop:
                interrupted = True
                is_term = isinstance(stop, Terminated)
                with suppress(ProcessLookupError):  # it has ended meanwhile
                    os.killpg(process.pid, signal.SIGTERM if is_term else signal.SIGINT)
    if interrupted or code in INTERRUPTED:
        raise KeyboardInterrupt
    if code < 0:
        raise UserError(
            f"{words[1]} was killed by signal {-code} ({signal.Signals(-code).name}); if the memory"
            " ran out, end other programs; the same command continues from here"
        )
    if code:
        raise SystemExit(code)
