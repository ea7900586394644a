"""Ctrl-C while a command still imports: one line, exit code 130, no traceback, and it ends."""

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from types import ModuleType

import pytest

from retrieval.base import interrupts
from retrieval.base.command import exit_code
from retrieval.base.stopping import Interrupted, stop_on_signals
from retrieval.config import load_config
from retrieval.models.build import build_model
from retrieval.search import AudioIndex
from tests.conftest import ROOT

HOOK = Path(__file__).parent / "interrupted_start"


def interrupt_start(
    folder: Path, command: list[str], at: str, last: str, every: int, **environment: str
) -> tuple[subprocess.CompletedProcess, list]:
    """Start `command` with interrupted_start/sitecustomize.py.

    Returns how it ended, and [moment, exit code, output] of each copy.
    """
    results = folder / "results"
    environment |= {
        "INTERRUPT_AT": at,
        "INTERRUPT_LAST": last,
        "INTERRUPT_EVERY": str(every),
        "INTERRUPT_RESULTS": str(results),
    }
    environment |= {"PYTHONPATH": str(HOOK), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    return ended, (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )


def check_ends(code: int, output: str) -> None:
    assert code == interrupts.EXIT_CODE, output
    lines = [line for line in output.splitlines() if line.startswith("interrupted")]
    assert len(lines) == 1 and not any(
        word in output for word in ("Traceback", "Exception ignored", "KeyboardInterrupt", "error")
    ), output


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build_model(load_config(tiny / "tiny.yaml")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def index(model, tmp_path_factory) -> Path:
    import soundfile

    sounds = tmp_path_factory.mktemp("sounds")
    soundfile.write(sounds / "a.wav", [0.1, -0.1] * 8000, 16_000)
    AudioIndex.build(sounds, model, sounds.parent / "index_of_sounds")
    return sounds.parent / "index_of_sounds"


TORCH = "numpy torch torch.nn transformers datasets pyarrow accelerate"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "evaluate", "page", "search", "build"])
def test_ctrl_c_in_the_middle_of_a_start(tiny, model, index, tmp_path, name):
    command, at, last, every = {
        "train": (
            ["train.py", "--config", str(tiny / "tiny.yaml"), "--dry-run"],
            f"yaml pydantic retrieval.base.progress {TORCH}",
            "retrieval.models",
            700,
        ),
        "evaluate": (
            ["evaluate.py", "--checkpoint", str(model), "--cache", str(tiny / "cache")],
            f"retrieval.evaluation.relevance {TORCH}",
            "retrieval.models.pretrained",
            700,
        ),
        "page": (
            ["-m", "retrieval.app", "--index", str(index), "--port", "0"],
            f"retrieval.app {TORCH} sqlite3 uvicorn gradio pandas fastapi",
            "retrieval.search.page.page",
            900,
        ),
        "search": (
            ["-m", "retrieval.search", "query", "dog", "--index", str(index)],
            f"retrieval.search {TORCH}",
            "retrieval.search.whole_file",
            700,
        ),
        "build": (
            ["data_prep/build_clotho.py", "--root", str(tmp_path)],
            "data_prep.cache.arrow_cache numpy pyarrow soundfile soxr py7zr"
            " data_prep.corpora.csv_files",
            "data_prep.corpora.clotho_files",
            60,
        ),
    }[name]
    ended, copies = interrupt_start(tmp_path, command, at, last, every)
    check_ends(ended.returncode, ended.stderr)
    assert ended.stdout == ""
    for _, code, output in copies:
        check_ends(code, output)
    moments = {moment for moment, _, _ in copies}
    assert len(moments - set(at.split())) >= 2  # callbacks
    assert len(moments & set(at.split())) >= len(at.split()) - 2, (
        set(at.split()) - moments
    )  # a library may stop needing another one


@pytest.mark.slow
def test_negative_control_python_s_own_handler_is_lost_in_callbacks(tmp_path):
    command = ["data_prep/build_clotho.py", "--root", str(tmp_path / "absent")]
    _, copies = interrupt_start(tmp_path, command, "", "clotho_files", 100, INTERRUPT_BY_PYTHON="1")
    assert copies and all(
        code == 2 and "Exception ignored" in output and "absent" in output
        for _, code, output in copies
    )


# --- one moment each, in this process ---


def interrupted_import(
    monkeypatch, tmp_path, text: str, exception: type[BaseException] = KeyboardInterrupt
) -> list[str]:
    """Import a module with `text`, in which `stop()` is Ctrl-C.

    Returns the names of the statements that ran after it.
    """
    (tmp_path / "some_library.py").write_text(text)
    (tmp_path / "some_other_library.py").write_text("loaded = True")
    helper = ModuleType("ctrl_c")
    helper.stop = lambda: signal.raise_signal(signal.SIGINT)
    monkeypatch.setitem(sys.modules, "ctrl_c", helper)
    monkeypatch.syspath_prepend(tmp_path)
    ran = []
    with pytest.raises(exception):
        try:
            import some_library  # noqa: F401

            ran.append("next statement")
        finally:
            ran.append("finally")
            sys.modules.pop("some_library", None)
            assert (
                not any(isinstance(finder, interrupts._RefuseImports) for finder in sys.meta_path)
                and sys.gettrace() is None
            )
    return ran


LIBRARIES = {
    "simple": "import ctrl_c\nctrl_c.stop()",
    "catches everything": (
        "import ctrl_c\ntry:\n    ctrl_c.stop()\n    import some_other_library\nexcept:\n    pass"
    ),
    "makes an ImportError of it": (
        "import ctrl_c\ntry:\n    ctrl_c.stop()\n    import some_other_library\n"
        "except BaseException:\n    raise ImportError('x')"
    ),
    "in a finaliser": "import ctrl_c\nclass A:\n    def __del__(self):\n        ctrl_c.stop()\nA()",
    "last thing": "import ctrl_c\ndef f():\n    ctrl_c.stop()\nf()",
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_ctrl_c_within_an_import_arrives_behind_it(monkeypatch, tmp_path, name):
    def main() -> None:
        assert interrupted_import(monkeypatch, tmp_path, LIBRARIES[name]) == ["finally"]

    assert exit_code_of(main) == 0


def ctrl_c_in_a_callback(ran: list[str]) -> None:
    """Raise SIGINT within the Python function by which weakref removes a value."""

    class Key:
        is_armed = False

        def __hash__(self):
            if self.is_armed:
                signal.raise_signal(signal.SIGINT)
            return 1

    class Value:
        pass

    key, value = Key(), Value()
    values = weakref.WeakValueDictionary({key: value})
    key.is_armed = True
    del value
    ran.append("next statement")
    key.is_armed = False
    values.clear()


def test_ctrl_c_within_the_callback_of_a_weak_reference_is_not_lost(monkeypatch):
    ran: list[str] = []
    dropped: list[type] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda about: dropped.append(about.exc_type))
    with interrupts.watched(), pytest.raises(KeyboardInterrupt):
        ctrl_c_in_a_callback(ran)
    with stop_on_signals() as stop:  # a training stops after its step
        ctrl_c_in_a_callback(ran)
    assert ran == ["next statement"] and stop.signum == signal.SIGINT and dropped == []
    ctrl_c_in_a_callback(ran)  # negative control: Python's own handler
    assert dropped == [KeyboardInterrupt]


def exit_code_of(main) -> int:
    with interrupts.watched():
        code = exit_code(main)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return code


def test_the_training_s_own_signal_arrives_behind_an_import_too(monkeypatch, tmp_path):
    with stop_on_signals():
        assert interrupted_import(
            monkeypatch, tmp_path, LIBRARIES["catches everything"], Interrupted
        ) == ["finally"]


def test_a_second_ctrl_c_does_not_wait_for_the_import(monkeypatch, tmp_path):
    def main() -> None:
        text = "import ctrl_c\nctrl_c.stop()\nctrl_c.stop()\nctrl_c.reached = True"
        assert interrupted_import(monkeypatch, tmp_path, text) == ["finally"]

    assert exit_code_of(main) == 0


def test_imports_of_other_threads_go_on(monkeypatch, tmp_path):
    (tmp_path / "of_a_thread.py").write_text("")
    loaded = []
    helper = ModuleType("in_a_thread")

    def load() -> None:
        import of_a_thread  # noqa: F401

        loaded.append("of_a_thread")

    def start() -> None:
        thread = threading.Thread(target=load)
        thread.start()
        thread.join()

    helper.start = start
    monkeypatch.setitem(sys.modules, "in_a_thread", helper)
    text = "import ctrl_c\nimport in_a_thread\nctrl_c.stop()\nin_a_thread.start()"
    assert exit_code_of(lambda: interrupted_import(monkeypatch, tmp_path, text) and None) == 0
    assert loaded == ["of_a_thread"]


def test_elsewhere_ctrl_c_is_raised_at_once_and_cleaned_up_after():
    done = []

    def main() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
            done.append("next statement")
        finally:
            done.append("finally")

    assert exit_code_of(main) == 130 and done == ["finally"]


def test_as_a_library_it_leaves_the_signal_alone():
    code = (
        "import signal, retrieval, retrieval.search; print(signal.getsignal(signal.SIGINT) is"
        " signal.default_int_handler)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        ).stdout
        == "True\n"
    )
