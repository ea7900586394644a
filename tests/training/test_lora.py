"""Training with LoRA: what learns, exact in parts and after a resume, memory.

Two processes: test_micro_batches.py.
"""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import train
from retrieval.base.errors import UserError
from retrieval.base.stopping import Interrupted
from retrieval.models.build import build_model
from retrieval.models.dual_encoder import DualEncoder
from retrieval.training import loop
from retrieval.training.setup import Run
from retrieval.training.states import latest_state
from tests import many_processes
from tests.models.lora_models import change_adapters, config_of, save_bases
from tests.training.test_micro_batches import (
    assert_equal,
    first_batch,
    gradients,
    largest_difference,
    needs_compiler,
    start,
    step,
)
from tests.training.test_train_script import table_of
from tests.training.test_training import losses_of

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "clotho_lora_text.yaml")
BOTH = ["audio_encoder.lora.rank=4", "text_encoder.lora.rank=4"]
DROPOUT = ["audio_encoder.lora.dropout=0.3", "text_encoder.lora.dropout=0.3"]
LARGE_BATCH = [
    *("train.batch_size=12", "optimizer.schedule.warmup_epochs=0", "evaluation.num_pictures=0"),
]
NO_DROPOUT = [
    *("text_encoder.dropout=0", "pooling.attention_dropout=0"),
    *("audio_encoder.lora.dropout=0", "text_encoder.lora.dropout=0"),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    return save_bases(tmp_path_factory.mktemp("bases"))


def pretrained(bases: Path, kind: str) -> list[str]:
    return [
        f"text_encoder.name={bases / kind}",
        "text_encoder.pretrained=true",
        f"audio_encoder.checkpoint={bases / 'atst.ckpt'}",
        "evaluation.num_pictures=0",
    ]


def begun(tiny: Path, output: Path, *overrides: str, **settings: Any) -> Run:
    """A run whose adapters have left 0, so that A has a gradient, too."""
    run = start(tiny, output, *BOTH, *overrides, **settings)
    change_adapters(run.model)
    return run


# --- what learns ---


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("kind", ["qwen3", "modernbert"])
def test_three_steps_change_the_adapted_layers_and_nothing_else_of_the_encoders(
    tiny, bases, tmp_path, kind, precision
):
    settings = [*pretrained(bases, kind), *BOTH, f"train.mixed_precision={precision}"]
    loop.train(config_of(tiny, *settings, f"train.output={tmp_path / 'run'}", "train.max_steps=3"))
    saved = load_file(tmp_path / "run" / "best" / "model.safetensors")
    fresh = build_model(config_of(tiny, *pretrained(bases, kind))).state_dict()
    assert saved.keys() <= fresh.keys()
    changed = {name for name in saved if not torch.equal(saved[name], fresh[name])}
    encoders = {name for name in changed if name.split(".")[0].endswith("_encoder")}
    layers = {"q_proj", "v_proj"} if kind == "qwen3" else {"Wqkv"}
    assert {name.split(".")[-2] for name in encoders} == {"qkv", *layers}
    parts = {name.split(".")[0] for name in changed - encoders}
    assert parts == {"audio_projection", "text_projection", "pooling"}


def test_adapters_learn_more_than_frozen_encoders(tiny, tmp_path):
    settings = ["pooling.name=mean", "loss.temperature=0.2", "text_encoder.dropout=0"]
    settings += ["optimizer.lr.audio_encoder=2e-2", "optimizer.lr.text_encoder=2e-2"]
    last_losses = {}
    for name, chosen in (
        ("frozen", ["audio_encoder.frozen=true", "text_encoder.frozen=true"]),
        ("adapted", BOTH),
    ):
        run = many_processes.start(tiny, tmp_path / name, [*settings, *chosen, *LARGE_BATCH])
        losses = []
        for epoch in range(12):
            run.batches.start(epoch, 0)
            losses += [loop.train_step(run, batch)[0] for batch in run.loader]
        last_losses[name] = sum(losses[-4:]) / 4
    assert last_losses["adapted"] < 0.8 * last_losses["frozen"]


def test_the_optimizer_holds_adapters_only_in_the_encoders_groups(tiny, tmp_path):
    run = start(tiny, tmp_path / "run", *BOTH, "optimizer.lr.text_encoder=0.5")
    names = {weight: name for name, weight in run.model.named_parameters()}
    groups = {group["name"]: group for group in run.optimizer.param_groups}
    for part in ("audio_encoder", "text_encoder"):
        held = [names[weight] for weight in groups[part]["params"]]
        assert held and all(name.startswith(part) and ".lora_" in name for name in held)
    assert groups["text_encoder"]["base_lr"] == 0.5
    weights, modes = run.model.text_encoder.named_parameters(), run.model.text_encoder.modules()
    assert all(weight.requires_grad == (".lora_" in name) for name, weight in weights)
    assert all(module.training for module in modes)  # for dropout
    step(run)
    weights = run.model.named_parameters()
    assert all(weight.grad is None for _, weight in weights if not weight.requires_grad)


# --- exact ---


@pytest.mark.parametrize(
    "saving",
    [["train.micro_batch_size=3"], ["train.activation_checkpointing=true"]],
    ids=lambda settings: settings[0],
)
def test_less_memory_changes_no_gradient(tiny, bases, tmp_path, saving):
    settings = [*pretrained(bases, "qwen3"), *NO_DROPOUT]
    whole = step(begun(tiny, tmp_path / "whole", *settings))
    assert_equal(step(begun(tiny, tmp_path / "saving", *settings, *saving)), whole)


def test_checkpointed_blocks_replay_the_dropout_of_adapters(tiny, bases, tmp_path):
    settings = [*pretrained(bases, "modernbert"), *DROPOUT]
    plain = step(begun(tiny, tmp_path / "plain", *settings))
    saving = begun(tiny, tmp_path / "saving", *settings, "train.activation_checkpointing=true")
    assert_equal(step(saving), plain)
    # Negative control: other dropout gives other gradients.
    batch = first_batch(saving)
    torch.manual_seed(8)
    loop.train_step(saving, batch)
    assert largest_difference(gradients(saving), plain[1]) > 1e-3


@needs_compiler
def test_compiled_blocks_give_the_same(tiny, tmp_path, monkeypatch):
    """Captured graphs without the code generator, which takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    expected = step(begun(tiny, tmp_path / "plain", *NO_DROPOUT, dtype=torch.float32))
    settings = [*NO_DROPOUT, "train.compile=true"]
    run = begun(tiny, tmp_path / "compiled", *settings, dtype=torch.float32)
    assert_equal(step(run), expected, tolerance=1e-5)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    run.model.save_pretrained(tmp_path / "saved")
    saved = DualEncoder.from_pretrained(tmp_path / "saved")
    assert saved.state_dict().keys() == build_model(config_of(tiny)).state_dict().keys()


def test_a_resumed_run_is_the_unbroken_one(tiny, bases, tmp_path, monkeypatch):
    """With dropout, and adapters that are saved beside their base."""
    settings = [*pretrained(bases, "qwen3"), *BOTH, *DROPOUT, "text_encoder.lora.save=adapter"]
    settings += ["train.epochs=1"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    loop.train(config_of(tiny, *settings, f"train.output={whole}"))
    config, original = config_of(tiny, *settings, f"train.output={broken}"), loop.train_step

    def stopped_in_step_4(run: Run, batch: dict[str, Any]) -> tuple[float, dict[str, float]]:
        if run.progress.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(run, batch)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "train_step", stopped_in_step_4)
        loop.train(config)
    names = load_file(latest_state(broken) / "model.safetensors")
    assert any(".lora_A." in name for name in names)
    torch.manual_seed(0)
    loop.train(config, resume=True)
    assert losses_of(broken) == losses_of(whole) and len(losses_of(whole)) == 6
    for name in ("model.safetensors", "adapters/text_encoder/adapter_model.safetensors"):
        found, wanted = load_file(broken / "last" / name), load_file(whole / "last" / name)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_run_is_not_resumed_with_other_adapters(tiny, tmp_path, monkeypatch):
    original = loop.train_step
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(
            loop,
            "train_step",
            lambda run, batch: os.kill(os.getpid(), signal.SIGTERM) or original(run, batch),
        )
        loop.train(config_of(tiny, f"train.output={tmp_path / 'run'}"))
    config = config_of(tiny, f"train.output={tmp_path / 'run'}", "text_encoder.lora.rank=4")
    with pytest.raises(UserError, match="text_encoder.lora.rank: None -> 4"):
        loop.train(config, resume=True)


def test_frames_are_cached_beside_an_adapted_text_encoder(tiny, bases, tmp_path):
    settings = [*pretrained(bases, "qwen3"), "audio_encoder.frozen=true", "text_encoder.lora={}"]
    cache = [f"data.frame_cache={tmp_path / 'frames'}", f"train.output={tmp_path / 'run'}"]
    loop.train(config_of(tiny, *settings, *cache, "train.max_steps=3"))
    assert len(losses_of(tmp_path / "run")) == 3


# --- memory ---


def test_dry_run_counts_the_base_as_fixed(capsys):
    """Counts by hand: rank 16 beside query (1024 to 2048) and value (1024 to 1024), 28 layers."""
    texts = {}
    for setting in ("text_encoder.lora.rank=16", "text_encoder.lora=null"):
        arguments = ["--config", CONFIG, "train.mixed_precision=bf16", setting, "--dry-run"]
        assert train.main(arguments) == 0
        texts[setting] = capsys.readouterr().out
    adapted, plain = map(table_of, texts.values())
    adapters = 28 * 16 * ((1024 + 2048) + (1024 + 1024))
    assert adapted["text_encoder"] == [f"{adapters:,}", "2.0e-04"]
    assert adapted["fixed"] == [f"{595_776_512 + 768 + 1:,}"]
    assert plain["text_encoder"][0] == "595,776,512"
    trained = sum(
        int(values[0].replace(",", ""))
        for name, values in adapted.items()
        if name not in ("fixed", "all")
    )
    total = int(adapted["all"][0].replace(",", ""))
    expected = f"{(4 * total + 8 * trained) / 2**30:.1f} GiB weights and AdamW"
    adapted_text, plain_text = texts.values()
    assert expected in adapted_text and expected not in plain_text
