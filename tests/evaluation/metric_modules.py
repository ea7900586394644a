"""evaluate.load of a metric of this project, without a network and without a trace."""

import sys
from pathlib import Path
from typing import Any

import pytest


def load_metric(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A new metric of `folder`. Its code is copied to a package below `tmp_path`."""
    import evaluate  # seconds, so not at the top

    if tmp_path / "modules" != evaluate.config.HF_MODULES_CACHE:
        monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
        monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
        monkeypatch.syspath_prepend(tmp_path)  # undoes what evaluate.load does to sys.path
        # the package of an earlier test lies in another folder
        for name in [name for name in sys.modules if name.startswith("evaluate_modules")]:
            del sys.modules[name]
    return evaluate.load(str(folder), keep_in_memory=True, cache_dir=str(tmp_path / "metrics"))
