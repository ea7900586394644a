"""LoRA: what is adapted, computed, saved merged and beside its base, and refused."""

import json
import re
import shutil
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import nn

from retrieval.base.errors import UserError
from retrieval.base.extras import MissingExtraError
from retrieval.config import load_config
from retrieval.models.audio import AUDIO_ENCODERS
from retrieval.models.audio.atst import AtstFrame
from retrieval.models.build import build_model, warnings_of
from retrieval.models.card import model_card
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.lora import add_lora
from retrieval.models.record import TrainingRecord
from retrieval.search.model_identity import ModelIdentity
from tests.conftest import digests
from tests.models import test_text_encoders as text_encoders
from tests.models.audio import test_huggingface_audio as huggingface
from tests.models.lora_models import (
    change_adapters,
    config_of,
    save_bases,
    scores_of,
    sounds,
)
from tests.pretrained_models import make

PARTS = ("audio_encoder", "text_encoder")
BOTH = [f"{part}.lora.rank=4" for part in PARTS]
PLAIN = {"rank": 2, "alpha": 4, "dropout": 0.0}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    """Folder with qwen3/, modernbert/ and atst.ckpt."""
    return save_bases(tmp_path_factory.mktemp("bases"))


def pretrained(bases: Path, kind: str = "qwen3") -> list[str]:
    return [
        f"text_encoder.name={bases / kind}",
        "text_encoder.pretrained=true",
        f"audio_encoder.checkpoint={bases / 'atst.ckpt'}",
    ]


def built(tiny: Path, *overrides: str) -> DualEncoder:
    torch.manual_seed(0)
    return build_model(config_of(tiny, *overrides))


def error_of(function, *arguments, **settings) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **settings)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


# --- which layers ---

FUSED = {"gpt2": {"c_attn"}, "modernbert": {"Wqkv"}}
TEXT_TARGETS = {
    "bert": {"query", "value"},
    "roberta": {"query", "value"},
    "distilbert": {"q_lin", "v_lin"},
    "mpnet": {"q", "v"},
    "gpt2": {"c_attn"},
    "clip_text": {"q_proj", "v_proj"},
    "clap": {"query", "value"},
    "t5": {"q", "v"},
}


def check_training(encoder: nn.Module, forward, expected: set[str], **settings) -> None:
    """B = 0 changes nothing; every adapter, and nothing else, gets a gradient."""
    encoder.eval()
    with torch.no_grad():
        before = forward()
    torch.manual_seed(0)
    lora = add_lora(encoder, "encoder", **PLAIN | {"targets": None} | settings)
    with torch.no_grad():
        assert (forward() - before).abs().max() <= 1e-6
    assert {name.rpartition(".")[2] for name in lora.layers} == expected
    forward().square().sum().backward()
    trained = {name for name, weight in encoder.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * len(lora.layers) and all(".lora_" in name for name in trained)
    with_gradient = {name for name, weight in encoder.named_parameters() if weight.grad is not None}
    assert with_gradient == trained
    change_adapters(encoder)  # negative control: the adapters are heard
    with torch.no_grad():
        assert (forward() - before).abs().max() > 1e-4


@pytest.mark.parametrize("kind", TEXT_TARGETS)
def test_default_layers_of_text_encoders(tmp_path, kind):
    encoder = text_encoders.load(text_encoders.save_family(tmp_path, kind), max_tokens=30)
    check_training(encoder, lambda: encoder(text_encoders.CAPTIONS), TEXT_TARGETS[kind])


@pytest.mark.parametrize(
    ("kind", "readout", "expected"),
    [("qwen3", "last", {"q_proj", "v_proj"}), ("modernbert", "first", {"Wqkv"})],
)
def test_large_kinds_of_text_encoders(bases, kind, readout, expected):
    """The readout is that of transformers' own model on one caption without padding."""
    encoder = text_encoders.load(str(bases / kind))
    assert encoder.readout == readout
    tokenizer = hf.AutoTokenizer.from_pretrained(bases / kind)
    model = hf.AutoModel.from_pretrained(bases / kind).eval()
    with torch.no_grad():
        found = encoder(["A dog barks.", "rain"])
        for row, caption in zip(found, ["a dog barks", "rain"]):
            hidden = model(**tokenizer(caption, return_tensors="pt")).last_hidden_state[0]
            assert (row - hidden[-1 if readout == "last" else 0]).abs().max() < 1e-5
    check_training(encoder, lambda: encoder(text_encoders.CAPTIONS), expected)


AUDIO_TARGETS = {
    "ast": {"q_proj", "v_proj"},
    "clap": {"query", "value"},
    "whisper": {"q_proj", "v_proj"},
    "wavlm": {"intermediate_dense", "output_dense"},
    "wav2vec2": {"q_proj", "v_proj"},
}


@pytest.mark.parametrize("kind", AUDIO_TARGETS)
def test_default_layers_of_audio_encoders_of_the_hub(tmp_path, kind):
    torch.manual_seed(0)
    for part in huggingface.FAMILIES[kind]:
        part().save_pretrained(tmp_path)
    encoder, waveform = huggingface.load(tmp_path), huggingface.sounds()
    expected = AUDIO_TARGETS[kind]
    if kind == "ast":  # named query and value before transformers 5.24
        names = {name.rpartition(".")[2] for name, _ in encoder.named_modules()}
        expected = expected if expected <= names else {"query", "value"}
    check_training(encoder, lambda: encoder(waveform), expected)


@pytest.mark.parametrize("kind", ["atst_frame", "passt"])
def test_the_fused_layer_of_our_own_encoders(kind):
    shape = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    patchout = {"patchout_time": 0, "patchout_frequency": 0} if kind == "passt" else {}
    encoder = AUDIO_ENCODERS[kind](**shape, **patchout)
    waveform = sounds(encoder.sample_rate)[0]
    check_training(encoder, lambda: encoder(waveform), {"qkv"})


def test_every_layer_and_convolutions_where_asked():
    encoder = AUDIO_ENCODERS["mn40_as_ext"](width=0.25)
    waveform = sounds(32_000)[0]
    targets = ["all-linear", "features.16.0"]  # the last convolution, before its normalisation
    check_training(encoder, lambda: encoder(waveform), {"fc1", "fc2", "0"}, targets=targets)
    assert not any("classifier" in name for name, _ in encoder.named_parameters() if "lora" in name)


def test_an_encoder_without_attention_needs_targets():
    message = error_of(
        add_lora, AUDIO_ENCODERS["mn40_as_ext"](width=0.25), "audio_encoder", **PLAIN, targets=None
    )
    assert "audio_encoder.lora.targets" in message and "fc1" in message


def test_a_target_that_matches_no_layer_is_named(tiny):
    message = error_of(built, tiny, "audio_encoder.lora.targets=[qkv, querry]")
    assert "audio_encoder.lora.targets: 'querry'" in message
    assert "patch_embed, qkv, proj, fc1, fc2" in message


def test_wavlm_s_projections_would_never_be_called(tmp_path):
    for part in huggingface.FAMILIES["wavlm"]:
        part().save_pretrained(tmp_path)
    encoder = huggingface.load(tmp_path)
    message = error_of(add_lora, encoder, "audio_encoder", **PLAIN, targets=["q_proj"])
    assert "'q_proj' matches no layer" in message
    # Negative control: adapters there change nothing, so that they cannot learn.
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    before = encoder(huggingface.sounds())
    peft.inject_adapter_in_model(config, encoder.model)
    assert (encoder(huggingface.sounds()) - before).abs().max() < 1e-5


def test_a_rank_that_does_not_fit_grouped_convolutions():
    encoder = AUDIO_ENCODERS["mn40_as_ext"](width=0.25)
    assert "audio_encoder.lora" in error_of(
        add_lora, encoder, "audio_encoder", **PLAIN, targets=["block.1.0"]
    )


# --- what is computed ---


def weight_by_hand(layer: nn.Module, alpha: float, rank: int) -> torch.Tensor:
    """W + alpha / rank * B A, entry by entry."""
    first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    change = torch.zeros(second.shape[0], first.shape[1])
    for row in range(second.shape[0]):
        for column in range(first.shape[1]):
            change[row, column] = sum(second[row, k] * first[k, column] for k in range(rank))
    plain = layer.base_layer.weight
    # GPT-2 keeps its weights (in, out)
    return plain + alpha / rank * (change if plain.shape == change.shape else change.T)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@torch.no_grad()
def test_the_change_of_a_layer_is_the_published_formula(tmp_path, kind):
    encoder = text_encoders.load(text_encoders.save_family(tmp_path, kind), max_tokens=30)
    lora = add_lora(encoder, "text_encoder", rank=3, alpha=6, dropout=0.5, targets=None)
    change_adapters(encoder)
    found = encoder.eval()(text_encoders.CAPTIONS)
    for name in lora.layers:
        layer = encoder.model.get_submodule(name)
        layer.base_layer.weight.data = weight_by_hand(layer, alpha=6, rank=3)
        encoder.model.set_submodule(name, layer.base_layer)
    assert (encoder(text_encoders.CAPTIONS) - found).abs().max() < 1e-5


def test_adapters_start_as_the_model_without_them(tiny, bases):
    plain = built(tiny, *pretrained(bases))
    adapted = built(tiny, *pretrained(bases), *BOTH)
    for part in ("audio_projection", "text_projection", "pooling"):  # drawn before the adapters
        own = getattr(plain, part).state_dict()
        assert all(
            torch.equal(value, own[key])
            for key, value in getattr(adapted, part).state_dict().items()
        )
    assert (scores_of(adapted) - scores_of(plain)).abs().max() <= 1e-6
    change_adapters(adapted)
    assert (scores_of(adapted) - scores_of(plain)).abs().max() > 1e-3


# --- saved ---


def test_merged_a_saved_model_is_an_ordinary_one(tiny, bases, tmp_path, monkeypatch):
    model = built(tiny, *pretrained(bases), *BOTH, "text_encoder.lora.dropout=0.5")
    change_adapters(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "adapters").exists()
    plain = built(tiny, *pretrained(bases))
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() <= plain.state_dict().keys()
    monkeypatch.setitem(sys.modules, "peft", None)  # is not needed any more
    saved = DualEncoder.from_pretrained(tmp_path / "saved")
    assert (scores_of(saved) - scores_of(model)).abs().max() < 1e-6
    # Negative control: without the adapters the scores are others.
    assert (scores_of(plain) - scores_of(model)).abs().max() > 1e-3
    # the model in training goes on as before
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_starts_from_a_merged_one(tiny, bases, tmp_path):
    model = built(tiny, *pretrained(bases), *BOTH)
    change_adapters(model)
    model.save_pretrained(tmp_path / "saved")
    next_one = built(tiny, *pretrained(bases), *BOTH, f"train.init_from={tmp_path / 'saved'}")
    assert (scores_of(next_one) - scores_of(model)).abs().max() < 1e-6
    assert set(next_one.adapters) == {"audio_encoder", "text_encoder"}


@pytest.fixture(scope="module")
def apart(tiny, bases, tmp_path_factory) -> tuple[DualEncoder, Path]:
    """A model with adapters beside both encoders, and its folder."""
    save = ["audio_encoder.lora.save=adapter", "text_encoder.lora.save=adapter"]
    model = built(tiny, *pretrained(bases), *BOTH, *save)
    change_adapters(model)
    folder = tmp_path_factory.mktemp("apart") / "saved"
    model.save_pretrained(folder)
    return model, folder


def test_adapters_are_saved_without_the_weights_of_their_base(apart):
    model, folder = apart
    names = load_file(folder / "model.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {
        *("audio_projection", "text_projection", "pooling", "temperature")
    }
    files = {path.relative_to(folder).as_posix() for path in folder.glob("adapters/*/*")}
    layout = ("adapter_config.json", "adapter_model.safetensors", "base.json")
    assert files == {
        f"adapters/{part}/{name}" for part in ("audio_encoder", "text_encoder") for name in layout
    }
    loaded = DualEncoder.from_pretrained(folder)
    assert (scores_of(loaded) - scores_of(model)).abs().max() < 1e-6
    assert not loaded.adapters and not any("lora" in name for name in loaded.state_dict())
    assert all(
        weight.requires_grad
        for weight in loaded.text_encoder.parameters()  # as of any other loaded model
    )


def test_peft_itself_reads_the_adapters(apart, bases):
    model, folder = apart
    text = hf.AutoModel.from_pretrained(bases / "qwen3")
    text = peft.PeftModel.from_pretrained(text, folder / "adapters" / "text_encoder").eval()
    tokens = model.text_encoder.tokens(["rain", "a low tone"])
    with torch.no_grad():
        expected = model.eval().text_encoder.model(**tokens).last_hidden_state
        assert (text(**tokens).last_hidden_state - expected).abs().max() < 1e-5
        with text.disable_adapter():  # negative control
            assert (text(**tokens).last_hidden_state - expected).abs().max() > 1e-3
    audio = AtstFrame(embed_dim=32, depth=1, num_heads=2)
    audio.load_official(bases / "atst.ckpt")
    audio = peft.PeftModel.from_pretrained(audio, folder / "adapters" / "audio_encoder").eval()
    waveform = sounds(16_000)[0]
    with torch.no_grad():
        expected = model.audio_encoder(waveform)
        assert (audio(waveform) - expected).abs().max() < 1e-5
    assert peft.PeftConfig.from_pretrained(
        folder / "adapters" / "text_encoder"
    ).base_model_name_or_path == str(bases / "qwen3")


def test_adapters_are_saved_with_the_same_bytes_each_time(apart, tmp_path):
    model, folder = apart
    model.save_pretrained(tmp_path / "again")
    assert digests(tmp_path / "again" / "adapters") == digests(folder / "adapters")


def test_an_index_knows_adapters_apart(apart, tmp_path):
    _, folder = apart
    shutil.copytree(folder, tmp_path / "copy")
    first = ModelIdentity.of(tmp_path / "copy")
    path = tmp_path / "copy" / "adapters" / "text_encoder" / "adapter_model.safetensors"
    save_file({name: 2 * value for name, value in load_file(path).items()}, path)
    assert ModelIdentity.of(tmp_path / "copy").digests != first.digests


def test_the_base_of_an_adapter_may_be_another_model(tiny, bases, tmp_path):
    """train.init_from, whose encoders may be of anywhere."""
    first = built(tiny, *pretrained(bases, "modernbert"), "audio_encoder.lora.rank=2")
    change_adapters(first)
    first.save_pretrained(tmp_path / "first")
    settings = [*pretrained(bases, "modernbert"), f"train.init_from={tmp_path / 'first'}"]
    model = built(tiny, *settings, "audio_encoder.lora.save=adapter")
    change_adapters(model, seed=5)
    model.save_pretrained(tmp_path / "second")
    base = json.loads((tmp_path / "second/adapters/audio_encoder/base.json").read_text())
    assert (base["name"], base["kind"]) == (str(tmp_path / "first"), "model")
    loaded = DualEncoder.from_pretrained(tmp_path / "second")
    assert (scores_of(loaded) - scores_of(model)).abs().max() < 1e-6


# --- refused ---


def changed_base(folder: Path, bases: Path) -> None:
    path = bases / "qwen3" / "model.safetensors"
    state = load_file(path)
    name = next(name for name in state if name.endswith("layers.1.mlp.up_proj.weight"))
    state[name][0, 0] += 1
    save_file(state, path, {"format": "pt"})


def no_base(folder: Path, bases: Path) -> None:
    shutil.rmtree(bases / "qwen3")


def damaged_weights(folder: Path, bases: Path) -> None:
    path = folder / "adapters" / "text_encoder" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:50])


def no_weights(folder: Path, bases: Path) -> None:
    (folder / "adapters" / "text_encoder" / "adapter_model.safetensors").unlink()


def a_tensor_less(folder: Path, bases: Path) -> None:
    path = folder / "adapters" / "text_encoder" / "adapter_model.safetensors"
    save_file(dict(list(load_file(path).items())[1:]), path)


def another_rank(folder: Path, bases: Path) -> None:
    path = folder / "adapters" / "text_encoder" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 3}))


def other_layers(folder: Path, bases: Path) -> None:
    path = folder / "adapters" / "text_encoder" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": ["lm_head"]}))


def sizes_without_weights(folder: Path, bases: Path) -> None:
    """A config.json that asks for 1e12 numbers, which would be taken before any weight is read."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["text_encoder"]["vocab_size"] = 10**11
    path.write_text(json.dumps(content))


def a_rank_without_weights(folder: Path, bases: Path) -> None:
    path = folder / "adapters" / "text_encoder" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 10**11}))


def no_text(folder: Path, bases: Path) -> None:
    (folder / "adapters" / "text_encoder" / "base.json").write_text('{"name": 1}')


@pytest.mark.parametrize(
    "damage",
    [
        sizes_without_weights,
        a_rank_without_weights,
        no_text,
        changed_base,
        no_base,
        damaged_weights,
        no_weights,
        a_tensor_less,
        another_rank,
        other_layers,
    ],
)
def test_what_does_not_belong_together_is_refused(apart, bases, tmp_path, damage):
    shutil.copytree(bases, tmp_path / "bases")
    shutil.copytree(apart[1], tmp_path / "copy")
    for path in (tmp_path / "copy").glob("adapters/*/*.json"):
        path.write_text(path.read_text().replace(str(bases), str(tmp_path / "bases")))
    DualEncoder.from_pretrained(tmp_path / "copy")
    damage(tmp_path / "copy", tmp_path / "bases")
    assert str(Path("adapters", "text_encoder")) in error_of(
        DualEncoder.from_pretrained, tmp_path / "copy"
    )


def test_an_encoder_larger_than_the_file_of_its_base_is_refused(apart, tmp_path):
    shutil.copytree(apart[1], tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    content = json.loads(path.read_text())
    content["audio_encoder"]["embed_dim"] = 10**6
    path.write_text(json.dumps(content))
    message = error_of(DualEncoder.from_pretrained, tmp_path / "copy")
    assert str(Path("adapters", "audio_encoder")) in message and "numbers" in message


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["text_encoder.frozen=true", "text_encoder.lora={}"], ["text_encoder", "frozen", "lora"]),
        (["audio_encoder.frozen=true", "audio_encoder.lora.rank=2"], ["audio_encoder", "frozen"]),
        (
            ["data.frame_cache=frames", "audio_encoder.lora={}"],
            ["data.frame_cache", "audio_encoder.lora"],
        ),
        (["text_encoder.lora.rnak=2"], ["text_encoder.lora.rank"]),
        (["text_encoder.lora.rank=0"], ["text_encoder.lora.rank"]),
        (["text_encoder.lora.targets=[]"], ["text_encoder.lora.targets"]),
        (["text_encoder.lora=16"], ["text_encoder.lora"]),
    ],
)
def test_settings_that_cannot_be(tiny, overrides, names):
    message = error_of(load_config, tiny / "tiny.yaml", overrides)
    assert all(name in message for name in names)


def test_cached_frames_go_with_an_adapted_text_encoder(tiny):
    settings = ["data.frame_cache=frames", "audio_encoder.frozen=true", "text_encoder.lora={}"]
    assert load_config(tiny / "tiny.yaml", settings).text_encoder.lora.rank == 16


@pytest.mark.parametrize("part", ["audio_encoder", "text_encoder"])
def test_random_weights_cannot_be_loaded_again(tiny, part):
    message = error_of(built, tiny, f"{part}.lora.save=adapter")
    assert f"{part}.lora.save=adapter" in message
    warnings = warnings_of(config_of(tiny, f"{part}.lora={{}}"))
    assert any(f"{part}.lora" in warning for warning in warnings)


def test_a_missing_package_is_named_with_its_extra(tiny, apart, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setitem(sys.modules, "peft.utils", None)
    for targets in ("[qkv]", "null"):
        with pytest.raises(MissingExtraError, match=re.escape("[lora]")):
            built(tiny, f"audio_encoder.lora.targets={targets}", "audio_encoder.lora.rank=2")
    assert "[lora]" in error_of(DualEncoder.from_pretrained, apart[1])


# --- the card ---


def test_the_card_names_the_settings(tiny, bases):
    config = config_of(tiny, *pretrained(bases), *BOTH, "text_encoder.lora.save=adapter")
    model = build_model(config)
    card = str(model_card(model.architecture, TrainingRecord(settings=config.model_dump())))
    lines = [line for line in card.splitlines() if "LoRA" in line]
    assert len(lines) == 2 and all("rank 4, alpha 32" in line for line in lines)
    assert "merged" in lines[0] and "peft" in lines[1]
    plain = str(model_card(model.architecture, TrainingRecord()))
    assert "LoRA" not in plain


# --- pretrained models of audio and text ---


def fine_tuning(folder: Path, family: str) -> list[str]:
    """Settings of a run that starts from a CLAP or PE-Audio, with its own projections."""
    is_clap = family == "clap"
    return [
        *("audio_encoder.name=huggingface", f"audio_encoder.checkpoint={folder}"),
        *(f"audio_encoder.{name}=null" for name in ("embed_dim", "depth", "num_heads")),
        *(f"text_encoder.name={folder}", "text_encoder.as_written=true"),
        *("text_encoder.pretrained=true", f"train.init_from={folder}"),
        f"audio_encoder.readout={'pooled' if is_clap else 'frames'}",
        f"text_encoder.readout={'pooled' if is_clap else 'first'}",
        f"projection.name={'mlp' if is_clap else 'norm_linear'}",
        *("pooling.name=average", f"pooling.similarity={'cosine' if is_clap else 'dot'}"),
        f"dim={8 if is_clap else 16}",
    ]


@pytest.mark.parametrize("family", ["clap", "pe_a_frame"])
def test_pretrained_models_are_adapted_and_saved_in_both_ways(tiny, tmp_path, family):
    make(family, tmp_path / "base")
    settings = fine_tuning(tmp_path / "base", family)
    plain = built(tiny, *settings)
    for save in ("merged", "adapter"):
        model = built(tiny, *settings, *BOTH, *(f"{part}.lora.save={save}" for part in PARTS))
        assert (scores_of(model) - scores_of(plain)).abs().max() < 1e-6
        change_adapters(model)
        assert (scores_of(model) - scores_of(plain)).abs().max() > 1e-3
        model.save_pretrained(tmp_path / save)
        assert len(list((tmp_path / save).glob("adapters/*"))) == (2 if save == "adapter" else 0)
        loaded = DualEncoder.from_pretrained(tmp_path / save)
        assert (scores_of(loaded) - scores_of(model)).abs().max() < 1e-6
    frames, mask = model.encode_audio(*sounds())
    model.score(model.encode_text(["A dog", "rain"]), frames, mask).sum().backward()
    adapters = [weight for name, weight in model.named_parameters() if ".lora_" in name]
    assert all(weight.grad is not None for weight in adapters)
