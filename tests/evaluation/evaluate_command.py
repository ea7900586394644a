"""evaluate.py in this process."""

import importlib.util

from tests.conftest import ROOT

specification = importlib.util.spec_from_file_location("evaluate_script", ROOT / "evaluate.py")
script = importlib.util.module_from_spec(specification)
specification.loader.exec_module(script)


def evaluate(*arguments: object) -> int:
    """Run evaluate.py with these arguments, as text."""
    return script.main([str(argument) for argument in arguments])
