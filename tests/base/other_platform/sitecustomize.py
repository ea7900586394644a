"""Hide modules and calls that Windows or macOS lack from the project's modules.

Python imports this file by itself if its folder is on PYTHONPATH. Libraries see everything: they
support these systems themselves.
"""

import builtins
import os
import signal
import types

ABSENT_MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty"}
ABSENT = {
    "os": (
        *("readv", "writev", "pread", "pwrite", "fork", "register_at_fork", "mkfifo", "killpg"),
        *("sched_getaffinity", "posix_fallocate", "getuid", "geteuid", "O_NONBLOCK", "O_CLOEXEC"),
    ),
    "signal": (
        *("SIGALRM", "SIGKILL", "SIGHUP", "SIGPIPE", "SIGUSR1", "alarm", "setitimer"),
        *("ITIMER_REAL", "pthread_sigmask", "SIG_UNBLOCK"),
    ),
    "errno": ("EDQUOT",),
}
original = builtins.__import__
poor = {}


def without(module: types.ModuleType) -> types.ModuleType:
    """A copy of `module` without the names that the other platform lacks."""
    name = module.__name__
    if name not in poor:
        poor[name] = types.ModuleType(name)
        absent = ABSENT[name]
        vars(poor[name]).update({k: v for k, v in vars(module).items() if k not in absent})
    return poor[name]


def import_module(name, globals=None, locals=None, fromlist=(), level=0):
    if (globals or {}).get("__name__", "").split(".")[0] not in ("retrieval", "__main__"):
        return original(name, globals, locals, fromlist, level)
    if name in ABSENT_MODULES:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    module = original(name, globals, locals, fromlist, level)
    return without(module) if module in (os, signal) or name == "errno" else module


builtins.__import__ = import_module
