"""`python evaluate.py`: a scored checkpoint, and one line for every mistake."""

import csv
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from conftest import ROOT, write_cache
from retrieval.config import load_config
from retrieval.data import open_cache
from retrieval.errors import UserError
from retrieval.evaluation import evaluate_split
from retrieval.models import DualEncoder, build_model

specification = importlib.util.spec_from_file_location("evaluate_script", ROOT / "evaluate.py")
script = importlib.util.module_from_spec(specification)
specification.loader.exec_module(script)


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """Accelerate keeps the precision of the first Accelerator of a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tap"
    config = load_config(tiny / "tiny.yaml")
    torch.manual_seed(0)
    build_model(config).save_pretrained(run / "best")
    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump()))
    return run / "best"


def test_a_run_is_scored(checkpoint, tiny, capsys):
    assert script.main(["--checkpoint", str(checkpoint)]) == 0
    captured = capsys.readouterr()
    assert "text to audio" in captured.out and "audio to text" in captured.out and "chance" in captured.out
    assert "R@10 says nothing" in captured.err
    metrics = json.loads((checkpoint / "results" / "evaluation" / "metrics.json").read_text())
    result = evaluate_split(DualEncoder.from_pretrained(checkpoint), open_cache(tiny / "cache").split("evaluation"))
    for direction, values in result.metrics.items():
        assert metrics[direction] == pytest.approx(values)
    assert metrics["num_clips"] == 8 and metrics["cache"] == str(tiny / "cache") and "_git_commit_hash" in metrics
    with open(checkpoint / "results" / "evaluation" / "ranks.csv", newline="") as file:
        assert [row["query"] for row in csv.DictReader(file)] == result.captions


def test_given_settings_win(checkpoint, tmp_path):
    cache = write_cache(tmp_path / "cache", {"validation": 12})
    arguments = ["--checkpoint", str(checkpoint), "--split", "validation", "--cache", str(cache), "--output", str(tmp_path / "out")]
    script.main([*arguments, "--audio-batch-size", "3", "--text-batch-size", "5", "--mixed-precision", "bf16"])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["num_clips"] == 12 and metrics["mixed_precision"] == "bf16" and metrics["split"] == "validation"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["metrics.json", "ranks.csv"]


def _truncated(copy):
    weights = copy / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def _other_architecture(copy):
    weights = load_file(copy / "best" / "model.safetensors")
    save_file({name: tensor for name, tensor in weights.items() if "pooling" not in name}, copy / "best" / "model.safetensors")


def _not_finite(copy):
    weights = load_file(copy / "best" / "model.safetensors")
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()}, copy / "best" / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (None, ["--checkpoint", "{copy}/absent"], "absent is no folder; train.py writes"),
        (None, ["--checkpoint", "{copy}"], "did you mean .*best"),
        (_truncated, [], "best does not load"),
        (lambda copy: (copy / "best" / "config.json").write_text("3"), [], "config.json cannot be read"),
        (lambda copy: (copy / "config.yaml").write_bytes(b"\xff"), [], "config.yaml cannot be read"),
        (_other_architecture, [], "best does not load"),
        (_not_finite, [], "scores on split 'evaluation' are NaN"),
        (lambda copy: (copy / "config.yaml").unlink(), [], "add --cache DIR"),
        (lambda copy: (copy / "config.yaml").write_text("data: ["), [], "config.yaml cannot be read"),
        (lambda copy: (copy / "config.yaml").write_text(""), [], r"config.yaml cannot be read \(it holds no settings\); .* put back"),
        (None, ["--cache", "{copy}/absent"], "absent does not exist"),
        (None, ["--split", "test"], "no split 'test'"),
        (lambda copy: write_cache(copy / "cache", {"evaluation": 2}, sample_rate=32_000), ["--cache", "{copy}/cache"], "needs 16000 Hz"),
        (None, ["--output", "{copy}/config.yaml/below"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(checkpoint, tmp_path, spoil, arguments, message):
    copy = tmp_path / "run"
    shutil.copytree(checkpoint.parent, copy, ignore=shutil.ignore_patterns("results"))
    if spoil is not None:
        spoil(copy)
    arguments = [argument.format(copy=copy) for argument in arguments]
    if "--checkpoint" not in arguments:
        arguments += ["--checkpoint", str(copy / "best")]
    with pytest.raises(UserError, match=message) as error:
        script.main(arguments)
    assert "\n" not in str(error.value) and not (copy / "best" / "results").exists()


def test_an_impossible_output_is_noticed_before_the_model_is_loaded(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(DualEncoder, "from_pretrained", lambda *_: 1 / 0)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/below cannot be written \(Not a directory\); choose another output folder"):
        script.main(["--checkpoint", str(checkpoint), "--output", str(tmp_path / "file" / "below")])
    with pytest.raises(ZeroDivisionError):  # negative control
        script.main(["--checkpoint", str(checkpoint), "--output", str(tmp_path / "new" / "below")])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_process_ends_with_one_line_and_code_2(tmp_path):
    ended = subprocess.run([sys.executable, "evaluate.py", "--checkpoint", str(tmp_path / "no")], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stdout == "" and ended.stderr.startswith("error: checkpoint") and ended.stderr.count("\n") == 1
