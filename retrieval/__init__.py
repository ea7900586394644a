"""Text-to-audio retrieval: models, losses, training and evaluation.

`import evaluate` means the Hugging Face package, also in processes that have the repository root,
with its script evaluate.py, first on sys.path. Importing `retrieval` arranges this, and loads
nothing itself.

On a CPU, threads without work spin for a moment and then sleep (GOMP_SPINCOUNT). By default they
spin on, which is 1.2 times faster on otherwise idle cores, and ten times slower beside other
programs. torch reads the variable when it is loaded; a value that the user has set stays.

In a process of one of the project's commands, Ctrl-C prints one line from here on: see
retrieval/base/interrupts.py.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from retrieval.base.command import begin

__version__ = "0.1.0"

begin()

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


class _HuggingFaceEvaluate:
    """Finds the module `evaluate` on sys.path without this repository.

    A meta path finder. Its base class would double the time that `import retrieval` takes.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "evaluate":
            return None
        others = [entry for entry in sys.path if not _has_script(Path(entry))]
        spec = PathFinder.find_spec(fullname, others, target)
        if spec is None:
            raise ModuleNotFoundError(
                "the Hugging Face package evaluate is not installed: pip install evaluate",
                name=fullname,
            )
        return spec


def _has_script(folder: Path) -> bool:
    """Return True for a repository root, with the script and the package in it.

    The installed package lies beside the Hugging Face one, so its own place says nothing.
    """
    return (folder / "evaluate.py").is_file() and (folder / "retrieval" / "__init__.py").is_file()


# importlib.reload
if not any(type(finder).__name__ == "_HuggingFaceEvaluate" for finder in sys.meta_path):
    sys.meta_path.insert(0, _HuggingFaceEvaluate())
