"""Checkpoints in the layout of salsa and the thesis: same scores, no code run, one-line errors.

The published files are too large for a test; these are written from small models. Letters: N
captions, B clips.
"""

import argparse
import json
import os
import shutil
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import RobertaConfig

from retrieval.base.errors import UserError
from retrieval.config import parse_config
from retrieval.models import hub
from retrieval.models.audio import AUDIO_ENCODERS
from retrieval.models.audio.atst import AtstFrame
from retrieval.models.build import build_model
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.pretrained.salsa import _architecture, _Settings, load_salsa_checkpoint
from retrieval.models.text import KNOWN_ARCHITECTURES, TextEncoder, load_tokenizer
from tests.conftest import write_text_encoder
from tests.golden import formulas

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
CAPTIONS = ["a low tone", "someone plays a shrill note", "a pulsing middle tone"]
ATST = {"name": "atst_frame", "embed_dim": 64, "depth": 1, "num_heads": 1}
PASST = {"name": "passt", "embed_dim": 64, "depth": 2, "num_heads": 1, "patchout_time": 0}
TAP, MEAN = {"name": "tap", "attention_dim": 128}, {"name": "mean"}
TAP_NAMES = {"query": "w_q", "key": "w_k", "value": "w_v", "output": "w_0", "norm": "layer_norm"}
SETTINGS = {
    "segment_length": 1.0,
    "hop_length": 1,
    "max_audio_length": 2,
    "tau": 0.05,
    "max_sentence_tokens": 20,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    return write_text_encoder(tmp_path_factory.mktemp("tokenizer"))


def small_model(audio: dict, pooling: dict, tokenizer: Path) -> DualEncoder:
    """Two attention heads in the text encoder; weights so large that each part has an effect."""
    shape = {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 96,
        "max_position_embeddings": 40,
    }
    text = RobertaConfig(vocab_size=16, type_vocab_size=1, layer_norm_eps=1e-5, **shape).to_dict()
    times = {"sample_rate": 32_000, "clip_seconds": 2.0, "window_seconds": 1.0, "hop_seconds": 1.0}
    model = DualEncoder(audio, text, pooling, dim=64, max_tokens=20, temperature=0.05, **times)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "temperature":
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.text_encoder.tokenizer = load_tokenizer(tokenizer)
    return model.eval()


def scores_of(model: DualEncoder) -> torch.Tensor:
    waveform = torch.from_numpy(formulas.noise("salsa", 2 * 64_000, 0.3)).float().view(2, -1)
    waveform[1] = waveform[1].cumsum(0) / 20
    with torch.no_grad():
        frames, mask = model.encode_audio(waveform, torch.tensor([64_000, 40_000]))
        return model.score(model.encode_text(CAPTIONS), frames, mask)  # (3, 2)


def foreign_names(
    model: DualEncoder,
    audio: str = "audio_embedding_model.model.",
    text: str = "sentence_embedding_model.",
) -> dict:
    """The weights as those projects name them."""
    prefixes = {"audio_encoder.": audio, "text_encoder.model.": text}
    prefixes |= {"audio_projection.": "project_audio.0.", "text_projection.": "project_sentence.0."}
    prefixes |= {
        f"pooling.{ours}.": f"text_aware_pooling.{theirs}." for ours, theirs in TAP_NAMES.items()
    }
    state = {}
    for key, value in model.state_dict().items():
        ours = next((prefix for prefix in prefixes if key.startswith(prefix)), None)
        if ours is not None:
            state[prefixes[ours] + key.removeprefix(ours)] = value.clone()
    return state


def write_checkpoint(path: Path, state: dict, settings: object = None, **others) -> Path:
    optimizer = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(5)}},
        "param_groups": [{"lr": 2e-5, "params": [0]}],
    }
    content = {
        "epoch": 3,
        "global_step": 7,
        "pytorch-lightning_version": "2.2.0",
        "optimizer_states": [optimizer],
        "lr_schedulers": [],
    }
    torch.save(
        content
        | {"state_dict": state, "hyper_parameters": SETTINGS if settings is None else settings}
        | others,
        path,
    )
    return path


# Settings of the ancestors that small checkpoints of these tests leave out.
ALWAYS_ASSUMED = {
    "normalize=True",
    "sentence_features.remove_punctuation=True",
    "use_first_token=True",
}


def assumed(caplog) -> set[str]:
    """The settings that the warning calls missing, with the defaults used."""
    (line,) = [message for message in caplog.messages if "lacks" in message]
    return set(line.rsplit(": ", 1)[1].split(", "))


def error_of(*arguments, **named) -> str:
    with pytest.raises(UserError) as caught:
        load_salsa_checkpoint(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the same scores ---


@pytest.mark.parametrize(
    ("audio", "pooling", "prefix"),
    [
        (ATST, TAP, "audio_embedding_model.model.atst."),
        (ATST, MEAN, "audio_embedding_model.model.encoder.encoder."),
        (PASST, TAP, "audio_embedding_model.model."),
        (PASST | {"sequence": False}, MEAN, "audio_embedding_model.model.net."),
        (PASST | {"name": "passt_20"}, TAP, "audio_embedding_model.model.model."),
    ],
    ids=["atst-tap", "atst-mean", "passt-tap", "passt-mean", "passt_20-tap"],
)
def test_scores_are_those_of_the_model_it_came_from(
    tmp_path: Path, tokenizer: Path, audio: dict, pooling: dict, prefix: str
):
    model = small_model(audio, pooling, tokenizer)
    path = write_checkpoint(tmp_path / "model.ckpt", foreign_names(model, prefix))
    loaded = load_salsa_checkpoint(path, tokenizer)
    assert not loaded.training
    assert torch.equal(scores_of(loaded), scores_of(model))
    # captions are told apart, or equality would say little
    assert scores_of(model).std(dim=0).min() > 1e-3
    assert loaded.temperature.item() == pytest.approx(0.05)
    loaded.save_pretrained(tmp_path / "saved")
    assert torch.equal(scores_of(DualEncoder.from_pretrained(tmp_path / "saved")), scores_of(model))


@pytest.mark.skipif("mn40_as_ext" not in AUDIO_ENCODERS, reason="this encoder is not there")
@pytest.mark.parametrize("width", [0.1, 0.5])
def test_efficientat_has_the_width_of_its_weights(tmp_path: Path, tokenizer: Path, width: float):
    model = small_model({"name": "mn40_as_ext", "width": width, "sequence": True}, TAP, tokenizer)
    path = write_checkpoint(tmp_path / "model.ckpt", foreign_names(model))
    assert torch.equal(scores_of(load_salsa_checkpoint(path, tokenizer)), scores_of(model))


def test_negative_control_each_part_is_heard(tmp_path: Path, tokenizer: Path):
    model = small_model(ATST, TAP, tokenizer)
    before = foreign_names(model)
    swaps = [
        ("text_aware_pooling.w_q", "text_aware_pooling.w_k"),
        ("text_aware_pooling.w_k", "text_aware_pooling.w_v"),
    ]
    layers = [f"sentence_embedding_model.encoder.layer.{i}.attention.self.query" for i in range(2)]
    for one, other in [*swaps, tuple(layers)]:
        names = {f"{one}.{kind}": f"{other}.{kind}" for kind in ("weight", "bias")}
        state = (
            before
            | {a: before[b] for a, b in names.items()}
            | {b: before[a] for a, b in names.items()}
        )
        loaded = load_salsa_checkpoint(
            write_checkpoint(tmp_path / "swapped.ckpt", state), tokenizer
        )
        assert (scores_of(loaded) - scores_of(model)).abs().max() > 1e-4, one


def test_pooling_gives_the_golden_scores(tmp_path: Path, tokenizer: Path):
    """Numbers and names of the thesis code: w_q is the query, not transposed and not exchanged."""
    shapes = {f"w_{x}.weight": (128, 64) for x in "qkv"} | {f"w_{x}.bias": (128,) for x in "qkv"}
    shapes |= {
        "w_0.weight": (64, 128),
        "w_0.bias": (64,),
        "layer_norm.weight": (64,),
        "layer_norm.bias": (64,),
    }
    weights = formulas.params(shapes, "Q", scale=0.2, ln_scale=0.1)
    state = foreign_names(small_model(ATST, TAP, tokenizer))
    state |= {
        f"text_aware_pooling.{name}": torch.from_numpy(value) for name, value in weights.items()
    }
    golden = np.load(GOLDEN / "tap.npz")
    inputs = (
        torch.from_numpy(golden["text"][:, 0]),
        torch.from_numpy(golden["audio"]),
        torch.from_numpy(golden["mask"]) > 0,
    )

    def difference(one: str, other: str) -> float:
        """With two of the maps exchanged, from the golden scores."""
        changed = dict(state)
        for kind in ("weight", "bias"):
            first, second = (
                f"text_aware_pooling.w_{one}.{kind}",
                f"text_aware_pooling.w_{other}.{kind}",
            )
            changed |= {first: state[second], second: state[first]}
        path = write_checkpoint(tmp_path / "golden.ckpt", changed)
        found = load_salsa_checkpoint(path, tokenizer).score(*inputs).detach().numpy()
        return np.abs(found - golden["Q_C_textraw"]).max()

    assert difference("q", "q") < 1e-6
    assert (
        difference("q", "k") > 1e-3 and difference("q", "v") > 1e-3 and difference("k", "v") > 1e-3
    )


# --- what else is in such files ---


def test_names_of_wrappers_buffers_and_unused_weights(tmp_path: Path, tokenizer: Path):
    model = small_model(ATST, TAP, tokenizer)
    state = foreign_names(
        model,
        "audio_embedding_model._orig_mod.model.encoder.encoder.frame_encoder.",
        "sentence_embedding_model.0.auto_model.",
    )
    teacher = "audio_embedding_model.model.encoder.encoder.teacher_module.encoder."
    state |= {f"{teacher}{key}": value for key, value in AtstFrame(64, 1, 1).state_dict().items()}
    del state["audio_embedding_model._orig_mod.model.encoder.encoder.frame_encoder.mask_embed"]
    mel = ("mel.mel_transform.spectrogram.window", "mel.mel_transform.mel_scale.fb")
    for name in ("resampler.kernel", *mel, "encoder.encoder.frame_encoder.cls_token"):
        state[f"audio_embedding_model.model.{name}"] = torch.zeros(3)
    for name in ("pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"):
        state[f"sentence_embedding_model.0.auto_model.{name}"] = torch.zeros(3)
    state["tau"] = torch.nn.Parameter(torch.tensor([0.07]))
    path = write_checkpoint(
        tmp_path / "model.ckpt", {f"module.{key}": value for key, value in state.items()}
    )
    loaded = load_salsa_checkpoint(path, tokenizer)
    assert torch.equal(scores_of(loaded), scores_of(model))
    assert loaded.temperature.item() == pytest.approx(0.07)  # the weight, not the hyper-parameter
    assert loaded.audio_encoder.mask_embed.abs().max() == 0


def test_self_supervised_layout_with_its_other_name_of_the_norm(tmp_path: Path, tokenizer: Path):
    model = small_model(ATST, MEAN, tokenizer)
    state = foreign_names(model, "audio_embedding_model.model.teacher.encoder.")
    state = {key.replace("norm_frame", "norm"): value for key, value in state.items()}
    state |= {
        f"audio_embedding_model.model.student.encoder.{key}": value
        for key, value in AtstFrame(64, 1, 1).state_dict().items()
    }
    assert torch.equal(
        scores_of(
            load_salsa_checkpoint(write_checkpoint(tmp_path / "model.ckpt", state), tokenizer)
        ),
        scores_of(model),
    )


def test_the_ancestor_s_whole_list_of_weights_and_settings(tmp_path: Path, tokenizer: Path, caplog):
    """As in its LightningModule.

    A transformer without layers leaves its token, positions and projection; losses leave theirs.
    """
    model = small_model(PASST | {"sequence": False}, MEAN, tokenizer)
    state = foreign_names(model, "audio_embedding_model.model.model.net.")
    state["audio_embedding_model.model.model.mel.window"] = torch.zeros(3)
    state |= {
        "tau": torch.tensor([-0.05]),
        "timing_tau": torch.tensor([0.05]),
        "audio_token": torch.zeros(1, 1, 768),
    }
    state |= {
        "posencode.pe": torch.zeros(1, 192, 768),
        "posencode.w": torch.ones(1),
        "audio_output_projection.weight": torch.zeros(768, 64),
    }
    state |= {
        "sigmoid_loss.t": torch.ones(1),
        "sentence_transformer.0.auto_model.embeddings.word_embeddings.weight": torch.zeros(5, 3),
    }
    audio = {
        "model": "passt",
        "model_config": {"return_sequence": False},
        "segment_length": 2,
        "hop_length": 1,
        "aggregate": "mean",
    }
    settings = {
        "audio_features": audio,
        "sentence_features": {"max_sentence_tokens": 16},
        "initial_tau": 0.05,
        "shared_representation_size": 48,
    }
    loaded = load_salsa_checkpoint(
        write_checkpoint(tmp_path / "model.ckpt", state, settings), tokenizer
    )
    grid = loaded.windows
    assert (
        grid.window_samples,
        grid.hop_samples,
        grid.frames_per_window,
        loaded.text_encoder.max_tokens,
    ) == (64_000, 32_000, 1, 16)
    assert loaded.temperature.item() == pytest.approx(0.05)  # the loss takes its absolute value
    assert assumed(caplog) == ALWAYS_ASSUMED | {"clip_seconds=30.0"}
    state["audio_sequence.0.linear1.weight"] = torch.zeros(4, 4)
    message = error_of(write_checkpoint(tmp_path / "layers.ckpt", state, settings), tokenizer)
    assert "has left over audio_sequence.0.linear1.weight [4, 4]" in message


def test_a_passt_without_classifier_and_in_half_precision(tmp_path: Path, tokenizer: Path):
    model = small_model(PASST, TAP, tokenizer)
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    state = {
        key: value.half() for key, value in foreign_names(model).items() if ".model.head" not in key
    }
    loaded = load_salsa_checkpoint(write_checkpoint(tmp_path / "model.ckpt", state), tokenizer)
    assert torch.equal(scores_of(loaded), scores_of(model))
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}


def foreign_settings() -> dict:
    """Hyper-parameters of classes that are absent at reading: dict, list, wrappers, enumeration."""
    module = types.ModuleType("a_module_that_is_not_installed")
    exec(
        "import enum\nclass AttributeDict(dict): pass\nclass ReadOnlyList(list): pass\nclass"
        " Mode(enum.Enum):\n    FAST = 1\nclass Node:\n    def __init__(self, value): self._val,"
        " self._parent = value, self\nclass Config:\n    def __init__(self, **items):"
        " self._content, self._metadata = items, {'max_tokens': 3}\n",
        module.__dict__,
    )
    sys.modules[module.__name__] = module
    nested = module.Config(
        segment_length=module.Node(1.0), hop_size=module.Node(320), mode=module.Mode.FAST
    )
    return {
        "kwargs": module.AttributeDict(audio_features=nested, sizes=module.ReadOnlyList([1, 2])),
        "namespace": argparse.Namespace(
            max_audio_length=2, max_tokens=20, folder=Path("data"), tags={"a", "b"}
        ),
        "score": np.float64(0.3),
    }


def test_hyper_parameters_of_classes_that_are_not_installed(
    tmp_path: Path, tokenizer: Path, caplog
):
    model = small_model(PASST, TAP, tokenizer)
    try:
        path = write_checkpoint(tmp_path / "model.ckpt", foreign_names(model), foreign_settings())
    finally:
        del sys.modules["a_module_that_is_not_installed"]
    with pytest.raises(ModuleNotFoundError):
        torch.load(path, weights_only=False)  # the file is what it is meant to be
    loaded = load_salsa_checkpoint(path, tokenizer)
    assert torch.equal(scores_of(loaded), scores_of(model))
    assert loaded.windows.hop_samples == 32_000  # 320 is the hop of a spectrogram
    assert assumed(caplog) == ALWAYS_ASSUMED | {
        "audio_features.aggregate=TAP",
        "hop_seconds=1.0 (not hop_size=320)",
        "sequence=True",
        "tau=0.05",
    }


@pytest.mark.parametrize("use_first_token", [True, False])
def test_the_text_is_read_as_the_hyper_parameters_say(
    tmp_path: Path, tokenizer: Path, use_first_token: bool
):
    """The same name stands in another section, where it speaks of the audio."""
    model = small_model(ATST, TAP, tokenizer)
    audio = {"sequence_model": {"use_first_token": not use_first_token}}
    settings = SETTINGS | {
        "audio_features": audio,
        "sentence_features": {"use_first_token": use_first_token},
        "normalize": True,
    }
    loaded = load_salsa_checkpoint(
        write_checkpoint(tmp_path / "model.ckpt", foreign_names(model), settings), tokenizer
    )
    # the model reads the first
    assert torch.equal(scores_of(loaded), scores_of(model)) == use_first_token
    model.text_encoder.readout = "first" if use_first_token else "mean"
    assert torch.equal(scores_of(loaded), scores_of(model))


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"normalize": False}, "normalize: False, so its scores are not cosines"),
        ({"sentence_features": {"remove_punctuation": False}}, "keep their"),
        ({"audio_features": {"aggregate": "first"}}, "audio_features.aggregate: 'first'"),
    ],
)
def test_what_cannot_be_computed_here_is_refused(
    tmp_path: Path, tokenizer: Path, settings: dict, found: str
):
    state = foreign_names(small_model(ATST, TAP, tokenizer))
    assert found in error_of(
        write_checkpoint(tmp_path / "model.ckpt", state, SETTINGS | settings), tokenizer
    )


def test_without_hyper_parameters_the_recipe(tmp_path: Path, tokenizer: Path, caplog):
    path = write_checkpoint(
        tmp_path / "model.ckpt", foreign_names(small_model(PASST, MEAN, tokenizer)), {}
    )
    loaded = load_salsa_checkpoint(path, tokenizer)
    grid = loaded.windows
    assert (grid.clip_samples, grid.window_samples, grid.hop_samples, grid.frames_per_window) == (
        960_000,
        320_000,
        320_000,
        1,
    )
    assert (loaded.sample_rate, loaded.text_encoder.max_tokens, loaded.temperature.item()) == (
        32_000,
        32,
        pytest.approx(0.05),
    )
    sizes = {"window_seconds=10.0", "hop_seconds=10.0", "clip_seconds=30.0", "max_tokens=32"}
    assert assumed(caplog) == ALWAYS_ASSUMED | sizes | {
        "audio_features.aggregate=mean",
        "sequence=False",
        "tau=0.05",
    }


@pytest.mark.parametrize("kind", ["passt", "atst_frame"])
def test_sizes_of_the_published_models(kind: str):
    """The architecture of the real files, from shapes alone."""
    if kind == "passt":
        shapes = json.loads((GOLDEN / "passt_effat_shapes.json").read_text())[
            "passt_default_state_dict"
        ]
    else:
        shapes = json.loads((GOLDEN / "atst_base_state_dict.json").read_text())["frame_ast_base"]
    shapes = {f"audio_embedding_model.model.{key}": tuple(shape) for key, shape in shapes.items()}
    known = KNOWN_ARCHITECTURES["roberta-large"]
    with torch.device("meta"):
        text = TextEncoder(known, 32).model
    shapes |= {
        f"sentence_embedding_model.{key}": tuple(value.shape)
        for key, value in text.state_dict().items()
    }
    shapes |= {"project_audio.0.weight": (1024, 768)}
    architecture, _ = _architecture(shapes, _Settings({}))
    sizes = {"name": kind, "embed_dim": 768, "depth": 12, "num_heads": 12}
    assert {name: architecture["audio_encoder"][name] for name in sizes} == sizes
    assert {name: architecture["text_encoder"][name] for name in known} == known
    assert architecture["dim"] == 1024


# --- files that want to run something ---


class Attack:
    """Pickled as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("place", ["hyper_parameters", "state_dict", "callbacks", "everything"])
@pytest.mark.parametrize("function", [os.system, eval], ids=["os.system", "eval"])
def test_nothing_in_a_file_is_run(tmp_path: Path, tokenizer: Path, place: str, function):
    mark = tmp_path / "was_run"
    attack = Attack(
        function, f"touch '{mark}'" if function is os.system else f"open({str(mark)!r}, 'w')"
    )
    state = foreign_names(small_model(ATST, MEAN, tokenizer))
    path = tmp_path / "attack.ckpt"
    if place == "everything":
        torch.save(attack, path)
    else:
        write_checkpoint(
            path,
            state,
            **{place: state | {"tau": attack} if place == "state_dict" else {"a": attack}},
        )
    message = error_of(path, tokenizer)
    assert message.startswith(f"checkpoint {path} is refused: it would call ")
    assert function.__name__ in message
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # negative control: it would have been


def test_calls_of_other_functions_do_nothing(tmp_path: Path, tokenizer: Path):
    """No list of dangerous functions is complete; none is needed."""
    model = small_model(ATST, MEAN, tokenizer)
    folder = tmp_path / "precious"
    folder.mkdir()
    path = write_checkpoint(
        tmp_path / "attack.ckpt",
        foreign_names(model),
        SETTINGS | {"a": Attack(shutil.rmtree, str(folder))},
    )
    assert torch.equal(scores_of(load_salsa_checkpoint(path, tokenizer)), scores_of(model))
    assert folder.is_dir()
    torch.load(path, weights_only=False)
    assert not folder.exists()


# --- what is wrong with a file ---


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tokenizer: Path) -> Path:
    return write_checkpoint(
        tmp_path_factory.mktemp("whole") / "model.ckpt",
        foreign_names(small_model(ATST, TAP, tokenizer)),
    )


def test_files_that_are_no_checkpoint(tmp_path: Path, tokenizer: Path, whole: Path):
    path = tmp_path / "bad.ckpt"
    assert error_of(path).startswith(
        f"checkpoint {path} is not a file; expected a PyTorch Lightning .ckpt"
    )
    assert "is not a file" in error_of(tmp_path)
    for content in (
        b"",
        b"not a checkpoint\n",
        whole.read_bytes()[:5000],
        whole.read_bytes()[:-100],
    ):
        path.write_bytes(content)
        assert f"checkpoint {path} is truncated or no file of torch.save (" in error_of(
            path, tokenizer
        )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "There is no item named 'data.pkl'" in error_of(path, tokenizer)
    for content in ([1, 2], {"model": {}}, torch.zeros(3), {"state_dict": [1]}):
        torch.save(content, path)
        assert f'checkpoint {path} has no "state_dict" of weights by name' in error_of(
            path, tokenizer
        )
    torch.save({"state_dict": {"tau": 0.05}}, path)
    assert 'has a "state_dict" in which tau is not a tensor' in error_of(path, tokenizer)
    for state in ({}, {3: torch.zeros(2)}):
        torch.save({"state_dict": state}, path)
        assert (
            "expected one text encoder: keys"
            " sentence_embedding_model.*embeddings.word_embeddings.weight (found none)"
            in error_of(path, tokenizer)
        )


def test_damaged_weights(tmp_path: Path, tokenizer: Path, whole: Path):
    content = bytearray(whole.read_bytes())
    with zipfile.ZipFile(whole) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    content[largest.header_offset + 5000] ^= 255
    (tmp_path / "bad.ckpt").write_bytes(content)
    assert "its weights cannot be read (BadZipFile: Bad CRC-32" in error_of(
        tmp_path / "bad.ckpt", tokenizer
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_aware_pooling.w_0.bias": None}, "it lacks text_aware_pooling.w_0.bias [64]"),
        (
            {"audio_embedding_model.model.norm_frame.bias": None},
            "it lacks audio_embedding_model.model.norm_frame.bias [64]",
        ),
        (
            {"sentence_embedding_model.encoder.layer.1.output.dense.bias": None},
            "it lacks sentence_embedding_model.encoder.layer.1.output.dense.bias",
        ),
        ({"project_audio.2.weight": (64, 64)}, "it has left over project_audio.2.weight [64, 64]"),
        (
            {"text_aware_pooling.w_q.bias": (7,)},
            "it has in another shape text_aware_pooling.w_q.bias [7] for [128]",
        ),
        (
            {"project_audio.0.weight": None},
            (
                "the size of the model is read from project_audio.0.weight, 2 dimensions, and the"
                " file lacks it"
            ),
        ),
        (
            {"audio_embedding_model.model.patch_embed.patch_embed.weight": None},
            "expected one audio encoder: keys audio_embedding_model.*patch",
        ),
        (
            {"audio_embedding_model.model.patch_embed.patch_embed.weight": (48, 256)},
            "48 dimensions, expected a multiple of 64",
        ),
        (
            {"sentence_embedding_model.embeddings.token_type_embeddings.weight": (2, 128)},
            "its text encoder is no RoBERTa",
        ),
        ({"tau": (3,)}, "its temperature tau has shape [3], expected one number"),
        ({"tau": ()}, "its temperature tau is 0.0, expected a number above 0, up to 10"),
    ],
)
def test_weights_that_are_missing_left_over_or_of_another_shape(
    tmp_path: Path, tokenizer: Path, whole: Path, change: dict, message: str
):
    state = torch.load(whole, weights_only=True)["state_dict"]
    for key, shape in change.items():
        state.pop(key, None)
        if shape is not None:
            state[key] = torch.zeros(shape)
    path = write_checkpoint(tmp_path / "changed.ckpt", state)
    found = error_of(path, tokenizer)
    assert found.startswith(f"checkpoint {path}: ") and message in found
    if message.startswith("it "):
        assert (
            "AtstFrame at audio_embedding_model.model.* and RobertaModel at"
            " sentence_embedding_model.*, TextAwareAttentionPooling" in found
        )


def test_two_audio_encoders_are_one_too_many(tmp_path: Path, tokenizer: Path, whole: Path):
    state = torch.load(whole, weights_only=True)["state_dict"]
    second = {
        f"audio_embedding_model.other.{key}": value
        for key, value in AtstFrame(64, 1, 1).state_dict().items()
    }
    found = error_of(write_checkpoint(tmp_path / "two.ckpt", state | second), tokenizer)
    assert "found 2: audio_embedding_model.model., audio_embedding_model.other." in found
    del second["audio_embedding_model.other.norm_frame.bias"]  # no whole encoder
    assert "it has left over audio_embedding_model.other.mask_embed [1, 1, 64]" in error_of(
        write_checkpoint(tmp_path / "two.ckpt", state | second), tokenizer
    )


def test_tokenizers_that_are_missing_or_of_another_encoder(
    tmp_path: Path, tokenizer: Path, whole: Path, monkeypatch
):
    state = torch.load(whole, weights_only=True)["state_dict"]
    state["sentence_embedding_model.embeddings.word_embeddings.weight"] = torch.zeros(17, 128)
    found = error_of(write_checkpoint(tmp_path / "other.ckpt", state), tokenizer)
    assert f"the tokenizer of {tokenizer} knows 16 tokens, its text encoder 17: fetch one" in found
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    found = error_of(whole)
    assert (
        "the file holds no tokenizer, and that of roberta-large does not load: text encoder"
        " 'roberta-large' is not a folder here" in found
    )
    assert found.endswith(
        "(hf download roberta-large --local-dir weights/roberta-large) and give it: --text-encoder"
        " FOLDER"
    )
    assert f"{tmp_path / 'absent'} does not exist; fetch one" in error_of(
        whole, tmp_path / "absent"
    )


def test_a_run_starts_from_a_checkpoint_of_salsa(tokenizer, tmp_path):
    model = small_model(ATST, TAP, tokenizer)
    RobertaConfig.from_dict(model.architecture["text_encoder"]).save_pretrained(tokenizer)
    path = write_checkpoint(tmp_path / "salsa.ckpt", foreign_names(model))
    config = parse_config(
        {
            "dim": 64,
            "data": {"max_seconds": 2.0},
            "audio_encoder": {"window_seconds": 1.0, "hop_seconds": 1.0, **ATST}
            | {"name": "atst_frame"},
            "text_encoder": {"name": str(tokenizer), "max_tokens": 20},
            "pooling": TAP,
            "train": {"init_from": str(path)},
        },
        "test",
    )
    assert torch.equal(scores_of(build_model(config).eval()), scores_of(model))
