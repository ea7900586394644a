"""The command train.py: --dry-run, arguments, one-line errors. Training: test_training.py."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import train
from retrieval.base.command import run_main
from retrieval.base.errors import UserError
from retrieval.config import load_config, parse_config
from retrieval.models import hub
from retrieval.training.dry_run import missing_files
from retrieval.training.loop import train as run_training

ROOT = Path(__file__).resolve().parents[2]
TAP = str(ROOT / "configs" / "tap.yaml")


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path: Path):
    """The hub refuses every connection, at once; the working folder is empty."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    hub.hub_answers.cache_clear()
    yield
    hub.hub_answers.cache_clear()


def dry_run(capsys, *arguments: str) -> str:
    assert train.main([*arguments, "--dry-run"]) == 0
    return capsys.readouterr().out


def table_of(text: str) -> dict[str, list[str]]:
    """The rows of the table of parameter groups."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("group "))
    rows = [line.split() for line in lines[first + 1 : lines.index("", first)]]
    return {name: values for name, *values in rows}


# --- --dry-run ---


def test_dry_run_of_the_published_tap_experiment(capsys):
    """Counts by hand: what is trained of ATST-Frame, roberta-large without pooler, two projections,
    TAP.
    """
    text = dry_run(capsys, "--config", TAP)
    counts = {
        "audio_encoder": 85_419_264 - 768,  # without the mask token, which nothing trains
        "text_encoder": 355_359_744 - 1_049_600,
        "audio_projection": 768 * 1024 + 1024,
        "text_projection": 1024 * 1024 + 1024,
        "pooling": 3 * (1024 * 2048 + 2048) + 2048 * 1024 + 1024 + 2 * 1024,
    }
    assert counts["audio_encoder"] == 85_418_496
    rates = dict.fromkeys(counts, "2.0e-05") | {"audio_encoder": "4.0e-06"}
    fixed = 768 + 1  # the mask token and the temperature
    sums = {"fixed": [f"{fixed:,}"], "all": [f"{sum(counts.values()) + fixed:,}"]}
    assert (
        table_of(text)
        == {name: [f"{count:,}", rates[name]] for name, count in counts.items()} | sums
    )
    assert (
        "steps per epoch: 1,200, in all 24,000 (19,195 pairs of Clotho; your cache cannot be used:"
        " cache data/clotho_v2/cache does not exist" in text
    )
    assert f"{sum(counts.values()) * 12 / 2**30:.1f} GiB weights and AdamW" in text
    assert f"at batch 16 ({16 if torch.cuda.is_available() else 32} bit on this machine)," in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_dry_run_measures_bf16_on_a_cpu(capsys):
    speed = r"bf16 matrix products on this CPU: (\d+\.\d) times as fast as float32; (.+)"
    found = re.search(speed, dry_run(capsys, "--config", TAP))
    # 1.0 may be either side
    assert float(found[1]) == 1 or ("bf16" in found[2]) == (float(found[1]) > 1)
    assert not re.search(speed, dry_run(capsys, "--config", TAP, "train.mixed_precision=bf16"))


def test_dry_run_prints_the_resolved_settings(capsys):
    text = dry_run(capsys, "--config", TAP, "train.epochs=3", "optimizer.lr.pooling=1e-3")
    printed = yaml.safe_load(text[: text.index("group ")])
    assert parse_config(printed, "printed") == load_config(
        TAP, ["train.epochs=3", "optimizer.lr.pooling=1e-3"]
    )
    assert "in all 3,600" in text and table_of(text)["pooling"][1] == "1.0e-03"


def test_dry_run_with_mean_pooling_has_four_groups(capsys):
    text = dry_run(
        capsys,
        "--config",
        str(ROOT / "configs" / "baseline.yaml"),
        "train.mixed_precision=no",
        "train.max_steps=10",
    )
    assert list(table_of(text)) == [
        "audio_encoder",
        "text_encoder",
        "audio_projection",
        "text_projection",
        "fixed",
        "all",
    ]
    assert "in all 10 (" in text and "(32 bit)" in text


def test_dry_run_counts_the_temperature_where_it_is_learnt(capsys):
    fixed, learnt = (
        table_of(dry_run(capsys, "--config", TAP, f"loss.learnable_temperature={yes}"))
        for yes in ("no", "yes")
    )
    assert (
        int(learnt["audio_projection"][0].replace(",", ""))
        == int(fixed["audio_projection"][0].replace(",", "")) + 1
    )


def test_dry_run_reads_the_corpus_that_is_there_and_writes_nothing(
    capsys, tiny: Path, tmp_path: Path
):
    text = dry_run(capsys, "--config", str(tiny / "tiny.yaml"))
    assert f"steps per epoch: 6, in all 12 (24 pairs of {tiny / 'cache'})" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        (
            "tap",
            [
                "data.cache: data/clotho_v2/cache",
                "audio_encoder.checkpoint: weights/atstframe_base_as2M.ckpt",
            ],
        ),
        (
            "distill",
            [
                "data.cache: data/clotho_v2/cache",
                "loss.teachers: runs/tap/best/results/development",
                "train.init_from: runs/tap/best",
            ],
        ),
    ],
)
def test_dry_run_lists_the_files_that_the_run_would_miss(
    capsys, monkeypatch, tmp_path, name, missing
):
    monkeypatch.chdir(tmp_path)
    lines = dry_run(capsys, "--config", str(ROOT / "configs" / f"{name}.yaml")).splitlines()
    assert [
        line.removeprefix("missing: ") for line in lines if line.startswith("missing: ")
    ] == missing


def test_dry_run_does_not_count_the_pairs_of_caches_that_are_not_there(
    capsys, monkeypatch, tmp_path, tiny
):
    monkeypatch.chdir(tmp_path)
    text = dry_run(
        capsys, "--config", str(tiny / "tiny.yaml"), f"train.caches=[{tiny}/cache, absent]"
    )
    assert (
        "steps per epoch: not known before the caches are there: cache absent does not exist"
        in text
        and "missing: train.caches: absent" in text
    )


@pytest.mark.parametrize(
    ("overrides", "warnings"),
    [
        (
            ["pooling.name=mean", "pooling.num_layers=3"],
            {"pooling.num_layers has no effect with pooling.name=mean"},
        ),
        (["pooling.name=transformer", "pooling.num_heads=4"], set()),
        (
            ["loss.margin=7", "loss.loss_weight=0.7"],
            {
                f"loss.{name} has no effect with loss.name=nt_xent"
                for name in ("margin", "loss_weight")
            },
        ),
        (["loss.name=triplet", "loss.margin=7"], set()),
        (["loss.name=listnet", "loss.sentence_encoder=x"], set()),
        (
            [
                "loss.name=distillation",
                "loss.teachers=[a]",
                "loss.loss_weight=1",
                "loss.supervised=triplet",
                "loss.margin=2",
            ],
            set(),
        ),
        (
            ["loss.name=distillation", "loss.teachers=[a]", "loss.margin=2"],
            {"loss.margin has no effect with loss.name=distillation"},
        ),
        (
            ["audio_encoder.frozen=true"],
            {"audio_encoder is frozen with random weights, so its output is useless"},
        ),
    ],
)
def test_settings_that_do_nothing_are_named(
    capsys, tiny: Path, overrides: list[str], warnings: set[str]
):
    lines = dry_run(capsys, "--config", str(tiny / "tiny.yaml"), *overrides).splitlines()
    ours = {"attention_dim", "attention_dropout", "init"}  # of tiny.yaml, for TAP
    found = {line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")}
    assert {
        line for line in found if line.split()[0].removeprefix("pooling.") not in ours
    } == warnings


def test_dry_run_loads_no_weights(capsys, monkeypatch):
    """Neither from files nor as random numbers: 450 million would take seconds and 1.8 GB."""

    def refuse(*_arguments, **_settings):
        raise AssertionError("weights were loaded")

    for loader in (
        "torch.load",
        "safetensors.torch.load_file",
        "retrieval.models.text.TextEncoder.load_pretrained",
    ):
        monkeypatch.setattr(loader, refuse)
    allocated = []
    monkeypatch.setattr(
        torch.Tensor,
        "normal_",
        lambda self, *_arguments, **_settings: allocated.append(self.is_meta) or self,
    )
    assert "449,964,289" in dry_run(capsys, "--config", TAP)
    assert all(allocated)


# --- mistakes ---


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--config"],
        ["--config", TAP, "--unknown"],
        ["--config", TAP, "--resume", "--overwrite"],
        ["--config", TAP, "--dry-run=yes"],
    ],
)
def test_wrong_arguments_exit_with_2(capsys, arguments: list[str]):
    with pytest.raises(SystemExit) as caught:
        train.main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_overrides_may_stand_before_and_after_the_options(capsys):
    text = dry_run(capsys, "seed=7", "--config", TAP, "train.epochs=2")
    assert "seed: 7" in text and "epochs: 2" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "absent.yaml"], "config absent.yaml does not exist"),
        (["--config", TAP, "train.epoch=3"], f"config {TAP}: train.epoch .*train.epochs"),
        (["--config", TAP, "seed"], "override 'seed'"),
        (
            ["--config", TAP, "audio_encoder.name=atst", "--dry-run"],
            "audio_encoder.name='atst' .*atst_frame",
        ),
        (["--config", TAP, "--resume"], "--resume: runs/tap .*saved state"),
        (["--config", TAP], "cache data/clotho_v2/cache does not exist; build it with "),
        (["--config", TAP, "text_encoder.name=robrta", "--dry-run"], "text encoder 'robrta'"),
    ],
)
def test_a_user_s_mistake_is_one_line_and_exit_code_2(
    capsys, tmp_path: Path, arguments: list[str], message: str
):
    with pytest.raises(SystemExit) as caught:
        run_main(lambda: train.main(arguments))
    assert caught.value.code == 2
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert re.match(f"error: {message}", line) and output.out == ""
    assert list(tmp_path.iterdir()) == []  # nothing half-written


@pytest.mark.parametrize(
    "override",
    [
        "train.batch_size=25",
        "loss.name=nt_xnet",
        "audio_encoder.name=atst",
        "pooling.attention_dim=16",
    ],
)
def test_dry_run_ends_in_the_error_of_the_run(tiny: Path, override: str):
    arguments = ["--config", str(tiny / "tiny.yaml"), override]
    with pytest.raises(UserError) as of_dry_run:
        train.main([*arguments, "--dry-run"])
    with pytest.raises(UserError) as of_run:
        run_training(load_config(arguments[1], [override]))
    assert str(of_dry_run.value) == str(of_run.value)


def test_other_exceptions_are_not_hidden():
    def broken() -> int:
        raise ValueError("a fault of the program")

    with pytest.raises(ValueError, match="a fault of the program") as caught:
        run_main(broken)
    assert not isinstance(caught.value, UserError)


def test_the_command_itself(tmp_path: Path):
    """As a process, where nothing was imported before: a mistake in the settings does not wait for
    torch.
    """
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "--config", TAP, "sed=1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: config {TAP}: sed is not a setting; did you mean seed?\n"
    code = f"import sys, train; train.main(['--config', {TAP!r}, 'sed=1'])"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    imported = {
        line.split("|")[-1].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert {"yaml", "pydantic", "retrieval.config"} < imported and not {
        "torch",
        "transformers",
        "datasets",
    } & imported


def test_ctrl_c_is_one_line_and_130(capsys):
    def interrupted() -> int:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="130"):
        run_main(interrupted)
    assert capsys.readouterr().err == "interrupted\n"


def test_names_on_the_hub_are_not_missing_files(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = load_config(ROOT / "configs" / "clotho_clap.yaml")
    assert missing_files(config) == ["data.cache: data/clotho_v2/cache"]
    config = load_config(ROOT / "configs" / "clotho_clap.yaml", ["train.init_from=a/b/c"])
    assert "train.init_from: a/b/c" in missing_files(config)
