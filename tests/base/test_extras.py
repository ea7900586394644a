"""A command that needs a package of an extra says how to install it; a training goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval.base.errors import UserError
from retrieval.base.extras import needs_extra
from tests.conftest import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
# Runs modules and scripts as commands, each in a fork of this Python, in which the packages that it
# lists are not to be had. What takes seconds to import, and is in no extra, is imported once.
COMMANDS = """
import json, os, runpy, sys
import accelerate, datasets, torchaudio, transformers.modeling_utils
for number, (packages, command) in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        open(f"{sys.argv[2]}/{number}.code", "w").write(str(code))
        continue
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(f"{sys.argv[2]}/{number}.{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
    sys.modules.update(dict.fromkeys(packages))
    sys.argv = command
    if command[0].endswith(".py"):
        runpy.run_path(command[0], run_name="__main__")
    else:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    break
"""
MISSING = {
    "faiss": ("search", ("retrieval.search", "query", "a dog", "--index", "{run}")),
    "gradio": ("search", ("retrieval.app", "--index", "{run}", "--port", "0")),
    "onnxruntime": ("export", ("retrieval.export", *"--onnx --output {out}".split())),
    "onnxscript": ("export", ("retrieval.export", *"--onnx --output {out}".split())),
    "jinja2": ("tracking", ("evaluate.py", "--report", "{out}")),
}
ALL = "faiss gradio uvicorn matplotlib onnx onnxruntime tensorboard".split()
MODULES = ("search", "app", "export")


@pytest.fixture(scope="module")
def ended(tiny, tmp_path_factory) -> dict[str, subprocess.CompletedProcess[str]]:
    """How each command ended: a training of one step without TensorBoard, and then those that have
    its run folder, by their name or the package that they lack.
    """
    folder = tmp_path_factory.mktemp("commands")
    places = {"run": folder / "run", "out": folder / "out"}
    train = ["train.py", "--config", tiny / "tiny.yaml", "--quiet", "train.max_steps=1"]
    commands = {"train": (["tensorboard"], [*train, "train.output={run}"])}
    for package, (_, command) in MISSING.items():
        model = ["--checkpoint", "{run}/best"]
        has_model = command[0] in ("retrieval.export", "evaluate.py")
        commands[package] = ([package], [*command, *(model if has_model else [])])
    for module in MODULES:
        commands[module] = (ALL, [f"retrieval.{module}", "--help"])
    export = ["retrieval.export", "--checkpoint", "{run}/best", "--cache", tiny / "cache"]
    commands["parquet"] = (["onnxruntime"], [*export, "--parquet", folder / "vectors.parquet"])
    given = [
        (packages, [str(word).format(**places) for word in command])
        for packages, command in commands.values()
    ]
    subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(given), folder],
        cwd=ROOT,
        check=True,
        timeout=PATIENCE,
    )

    def read(number: int, name: str) -> str:
        return (folder / f"{number}.{name}").read_text()

    return {
        name: subprocess.CompletedProcess(
            given[number][1], int(read(number, "code")), read(number, "out"), read(number, "err")
        )
        for number, name in enumerate(commands)
    }


def test_a_run_without_tensorboard_trains(ended):
    trained = ended["train"]
    assert trained.returncode == 0, trained.stderr
    (note,) = [line for line in trained.stderr.splitlines() if "tensorboard" in line]
    assert 'pip install "text-to-audio-retrieval[tracking]"' in note
    folder = Path(trained.args[-1].partition("=")[2])
    assert (folder / "metrics.json").is_file() and (folder / "best").is_dir()
    assert not list(folder.glob("events.*"))


@pytest.mark.parametrize("package", MISSING)
def test_one_line_says_what_to_install(ended, package):
    failed, (extra, command) = ended[package], MISSING[package]
    assert failed.returncode == 2, failed.stderr
    (line,) = failed.stderr.splitlines()
    assert package in line and f'pip install "text-to-audio-retrieval[{extra}]"' in line
    if "{out}" in command:
        assert not Path(failed.args[command.index("{out}")]).exists()


@pytest.mark.parametrize("module", MODULES)
def test_help_needs_no_extra(ended, module):
    assert ended[module].returncode == 0


def test_parquet_needs_no_extra(ended):
    exported = ended["parquet"]
    assert exported.returncode == 0 and Path(exported.args[-1]).is_file(), exported.stderr


def test_a_missing_module_of_the_project_is_no_missing_extra():
    with pytest.raises(ModuleNotFoundError) as found, needs_extra("search"):
        import retrieval.a_module_that_is_gone  # noqa: F401
    assert not isinstance(found.value, UserError)
