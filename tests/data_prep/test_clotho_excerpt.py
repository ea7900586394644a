"""Seven real Clotho clips through the real commands: build, train, resume, search, score.

Skipped where the shared folder's data/clotho_excerpt is absent. The excerpt has one split; here its
clips stand in for all three, so that a model that has learnt them by heart must find every one of
them.
"""

import copy
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import PATIENCE, wait_for

ROOT = Path(__file__).resolve().parents[2]
EXCERPT = ROOT.parent / "shared" / "data" / "clotho_excerpt"
NUM_CLIPS, NUM_CAPTIONS = 7, 35

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not EXCERPT.is_dir(), reason=f"{EXCERPT} is absent"),
]

# A small TAP model without dropout: it is to learn seven clips by heart. With batches this small
# and weights from scratch the clipping of gradients decides whether it does; how many epochs it
# takes depends on the seed, so the test does not train for a fixed time but until the clips are
# found.
SETTINGS = {
    "seed": 1,
    "dim": 64,
    # the encoder's own rate: nothing to resample in a step
    "data": {"num_workers": 0, "sample_rate": 16_000},
    "audio_encoder": {"embed_dim": 64, "depth": 1, "num_heads": 2},
    "text_encoder": {"pretrained": False, "dropout": 0.0},
    "pooling": {"name": "tap", "attention_dim": 64, "attention_dropout": 0.0, "init": "identity"},
    "optimizer": {
        "lr": dict.fromkeys(
            ("audio_encoder", "text_encoder", "audio_projection", "text_projection", "pooling"),
            0.001,
        ),
        "schedule": {"rampdown_stop": 40.0},
        "max_grad_norm": 1.0,
    },
    "train": {"epochs": 40, "batch_size": 7, "log_every_steps": 1},
    "evaluation": {"num_pictures": 0},
}
# R@1 of 33 of the 35 captions: each clip is then found by at least three of its five. Chance: 0.14
ENOUGH = 0.94


def run(*command: str | Path) -> str:
    """Standard output of a script of the repository, which must succeed."""
    ended = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """The excerpt three times over, built, with a text encoder of its captions and a config."""
    folder = tmp_path_factory.mktemp("clotho_excerpt")
    root = folder / "clotho"
    root.mkdir()
    for split in ("development", "validation", "evaluation"):
        (root / split).symlink_to(EXCERPT / "evaluation", target_is_directory=True)
        for kind in ("captions", "metadata"):
            shutil.copy(
                EXCERPT / f"clotho_{kind}_evaluation.csv", root / f"clotho_{kind}_{split}.csv"
            )
    run("data_prep/build_clotho.py", "--root", root)
    run(
        "data_prep/build_clotho.py",
        "--root",
        root,
        "--sample-rate",
        "16000",
        "--output",
        root / "cache_16000",
    )
    run(
        "data_prep/make_text_encoder.py",
        "--captions",
        root / "clotho_captions_development.csv",
        "--output",
        folder / "text_encoder",
    )
    settings = copy.deepcopy(SETTINGS)
    settings["data"]["cache"] = str(root / "cache_16000")
    settings["text_encoder"]["name"] = str(folder / "text_encoder")
    settings["train"]["output"] = str(folder / "run")
    (folder / "excerpt.yaml").write_text(yaml.safe_dump(settings))
    return folder


def test_the_cache_holds_the_clips_as_they_are(corpus):
    import soundfile

    from retrieval.data import open_cache

    split = open_cache(corpus / "clotho" / "cache", 32_000).split("development")
    assert (
        len(split) == NUM_CLIPS
        and [len(captions) for captions in split.captions] == [5] * NUM_CLIPS
    )
    for index, file_name in enumerate(split.file_names):
        assert split.clip_ids[index] == f"development/{file_name}"
        original, rate = soundfile.read(EXCERPT / "evaluation" / file_name)
        mono = original if original.ndim == 1 else original.mean(axis=1)
        built = split.read(index)
        assert abs(len(built) / 32_000 - len(mono) / rate) < 1e-3
        assert abs((built**2).mean() / (mono**2).mean() - 1) < 0.1  # what lies above 16 kHz is gone


def test_all_seven_are_found_after_interruptions(corpus):
    run_folder = corpus / "run"
    launch = [
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        "--config_file",
        "configs/accelerate/cpu.yaml",
    ]
    launch += ["train.py", "--config", corpus / "excerpt.yaml"]
    early, first = train_until(lambda values: len(values) == 1, launch, run_folder)
    assert first[0] < 0.5  # what it knows it learns after the interruption
    found, _ = train_until(
        lambda values: values[-1:] >= [ENOUGH], [*launch, "--resume"], run_folder
    )
    assert 5 <= early < found
    # scores the test split and ends
    assert "resumed in epoch" in run(*launch, "--resume", f"train.max_steps={found}")
    assert not (run_folder / "states").exists()
    losses = (
        EventAccumulator(str(run_folder), size_guidance={"scalars": 0})
        .Reload()
        .Scalars("train/loss")
    )
    assert [point.step for point in losses] == list(range(1, found + 1))

    output = run("evaluate.py", "--checkpoint", run_folder / "best", "--split", "evaluation")
    assert "text to audio" in output
    results = run_folder / "best" / "results" / "evaluation"
    metrics = json.loads((results / "metrics.json").read_text())
    assert metrics["num_clips"] == NUM_CLIPS and metrics["num_captions"] == NUM_CAPTIONS
    final = json.loads((run_folder / "metrics.json").read_text())
    assert metrics["text_to_audio"] == pytest.approx(final["best"]["text_to_audio"])
    assert metrics["text_to_audio"]["R@1"] >= 0.9
    check_ranks(results / "ranks.csv", metrics["text_to_audio"])


def train_until(
    reached: Callable[[list[float]], bool], arguments: list, run_folder: Path
) -> tuple[int, list[float]]:
    """Train, send Ctrl-C once `reached` holds of the R@1 so far; return steps and R@1.

    The signal goes to all processes, as from a terminal.
    """
    log_path = run_folder.with_name("train.log")

    def validations() -> list[float]:
        return [
            float(value) / 100
            for value in re.findall(r"validation mAP.* R@1 ([\d.]+) %", log_path.read_text())
        ]

    with open(log_path, "w") as log:
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            wait_for(lambda: reached(validations()) or process.poll() is not None)
            assert process.poll() is None, log_path.read_text()[-2000:]
            os.killpg(process.pid, signal.SIGINT)
            # the training outlives its launcher until it has saved
            wait_for(lambda: "interrupted; continue from" in log_path.read_text())
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            process.wait(PATIENCE)
    (state,) = (run_folder / "states").iterdir()
    return int(state.name.removeprefix("step-")), validations()


def check_ranks(path: Path, metrics: dict[str, float]) -> None:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == NUM_CAPTIONS
    first = [row for row in rows if row["rank"] == "1"]
    assert len(first) / NUM_CAPTIONS == pytest.approx(metrics["R@1"])
    assert all(row["top_1"] == row["clip"] for row in first)
    assert {row["clip"] for row in first} == {
        path.name for path in (EXCERPT / "evaluation").iterdir()
    }  # every clip is found
