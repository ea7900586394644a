"""Lightning checkpoints of the real Trainer, files of torch.save, and hostile ones."""

import argparse
import collections
import datetime
import enum
import functools
import gc
import io
import logging
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from torch import nn

from retrieval.base.errors import UserError
from retrieval.models.pretrained.lightning import read_lightning
from retrieval.models.pretrained.salsa import load_salsa_checkpoint
from retrieval.models.pretrained.tensor_files import Built, StoredTensor, read_content, read_tensors
from tests.conftest import write_text_encoder
from tests.lightning_runs import SACRED, read_only, read_only_containers, trained
from tests.models.pretrained.test_salsa import ATST, PASST, TAP, assumed, scores_of, small_model

# The sections and names of the ancestors' configuration.
SETTINGS = {
    "audio_features": {
        **{
            "model": "atst",
            "model_config": {"s_patchout_t": 15, "return_sequence": True},
            "segment_length": 1.0,
            "hop_length": 1.0,
        },
        **{"aggregate": "TAP", "sequence_model": {"num_layers": 0, "use_first_token": True}},
    },
    "sentence_features": {
        "model": "roberta-large",
        "use_first_token": True,
        "max_sentence_tokens": 20,
        "remove_punctuation": True,
    },
    **{
        "normalize": True,
        "initial_tau": 0.05,
        "max_audio_length": 2,
        "average_models": [],
        "distill_from": [],
        "load_parameters": None,
    },
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    return write_text_encoder(tmp_path_factory.mktemp("tokenizer"))


def warnings_of(caplog) -> list[str]:
    """Those of the project; Lightning logs much."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("retrieval")]


# --- of the real Lightning ---


@pytest.mark.parametrize("settings_of", ["sacred", "dict"])
@pytest.mark.parametrize("audio", [ATST, PASST], ids=["atst", "passt"])
def test_a_checkpoint_of_the_trainer_gives_the_scores_of_its_model(
    tmp_path: Path, tokenizer: Path, caplog, audio: dict, settings_of: str
):
    model = small_model(audio, TAP, tokenizer)
    with read_only_containers() as module:
        settings = dict(read_only(SETTINGS, module)) if settings_of == "sacred" else SETTINGS
        trained(model, tmp_path, settings).save_checkpoint(tmp_path / "model.ckpt")
    with zipfile.ZipFile(tmp_path / "model.ckpt") as archive:
        instructions = archive.read(
            next(name for name in archive.namelist() if name.endswith("data.pkl"))
        )
    assert b"_metadata" in instructions and (SACRED.encode() in instructions) == (
        settings_of == "sacred"
    )
    loaded = load_salsa_checkpoint(tmp_path / "model.ckpt", tokenizer)
    model.eval()
    assert torch.equal(scores_of(loaded), scores_of(model))
    assert warnings_of(caplog) == []


def test_nested_settings_of_sacred_are_followed(tmp_path: Path, tokenizer: Path, caplog):
    """None of these is a default, and each would change scores unnoticed."""
    model = small_model(ATST, TAP, tokenizer)
    settings = SETTINGS | {
        "audio_features": SETTINGS["audio_features"] | {"segment_length": 0.5, "hop_length": 0.25},
        "sentence_features": (
            SETTINGS["sentence_features"] | {"use_first_token": False, "max_sentence_tokens": 7}
        ),
    }
    with read_only_containers() as module:
        trained(model, tmp_path, dict(read_only(settings, module))).save_checkpoint(
            tmp_path / "model.ckpt"
        )
    loaded = load_salsa_checkpoint(tmp_path / "model.ckpt", tokenizer)
    assert (loaded.windows.window_samples, loaded.windows.hop_samples) == (16_000, 8_000)
    assert (loaded.text_encoder.max_tokens, loaded.text_encoder.readout) == (7, "mean")
    assert warnings_of(caplog) == []


class HalfAverage(WeightAveraging):
    """The average of the weights after each of two steps."""

    def __init__(self):
        super().__init__(avg_fn=lambda average, current, _count: (average + current) / 2)


@pytest.mark.parametrize("callback", ["weight_averaging", "stochastic_weight_averaging"])
def test_averaged_weights_are_those_that_the_file_was_saved_for(
    tmp_path: Path, tokenizer: Path, callback: str
):
    model = small_model(ATST, TAP, tokenizer)
    averaging = (
        HalfAverage()
        if callback == "weight_averaging"
        else StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1)
    )
    files = ModelCheckpoint(dirpath=tmp_path, filename="model", save_top_k=-1, every_n_epochs=2)
    trained(model, tmp_path, SETTINGS, averaging, files, epochs=3)
    (path,) = tmp_path.glob("model*.ckpt")
    expected = torch.load(path, weights_only=True)["state_dict"]
    stored, _ = read_lightning(path)
    found = read_tensors(path, stored)
    assert found.keys() == expected.keys() and all(
        torch.equal(found[key], expected[key]) for key in found
    )
    load_salsa_checkpoint(path, tokenizer)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "_fsdp_wrapped_module."])
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before 1.6"])
def test_names_of_wrappers_and_both_containers(
    tmp_path: Path, tokenizer: Path, wrapper: str, is_zip: bool
):
    model = small_model(ATST, TAP, tokenizer)
    trained(model, tmp_path, SETTINGS).save_checkpoint(tmp_path / "model.ckpt")
    content = torch.load(tmp_path / "model.ckpt", weights_only=True)
    content["state_dict"] = {
        f"{wrapper}{key}": value for key, value in content["state_dict"].items()
    }
    # of get_extra_state
    content["state_dict"]["audio_embedding_model._extra_state"] = {"amax": [1.0]}
    torch.save(content, tmp_path / "wrapped.ckpt", _use_new_zipfile_serialization=is_zip)
    model.eval()
    assert torch.equal(
        scores_of(load_salsa_checkpoint(tmp_path / "wrapped.ckpt", tokenizer)), scores_of(model)
    )


# --- defaults and windows are said ---


@pytest.mark.parametrize(
    ("section", "name", "said"),
    [
        (None, "normalize", "normalize=True"),
        (None, "max_audio_length", "clip_seconds=30.0"),
        ("audio_features", "segment_length", "window_seconds=2"),
        ("audio_features", "aggregate", "audio_features.aggregate=TAP"),
        ("sentence_features", "use_first_token", "use_first_token=True"),
        ("sentence_features", "remove_punctuation", "sentence_features.remove_punctuation=True"),
        ("sentence_features", "max_sentence_tokens", "max_tokens=32"),
    ],
)
def test_each_setting_that_falls_back_is_named(
    tmp_path: Path, tokenizer: Path, caplog, section: str | None, name: str, said: str
):
    settings = {
        key: dict(value) if isinstance(value, dict) else value for key, value in SETTINGS.items()
    }
    del (settings[section] if section else settings)[name]
    trained(small_model(ATST, TAP, tokenizer), tmp_path, settings).save_checkpoint(
        tmp_path / "model.ckpt"
    )
    load_salsa_checkpoint(tmp_path / "model.ckpt", tokenizer)
    assert assumed(caplog) == {said}


@pytest.mark.parametrize(
    ("window", "hop", "clip", "here", "original"),
    [(20, 20, 30, 2, 1), (8, 8, 30, 4, 3), (10, 10, 30, None, None), (10, 5, 30, None, None)],
)
def test_windows_that_do_not_fill_a_clip_are_said(
    tmp_path: Path, tokenizer: Path, caplog, window, hop, clip, here, original
):
    audio = SETTINGS["audio_features"] | {"segment_length": window, "hop_length": hop}
    model = small_model(
        {"name": "passt_20"} | {key: value for key, value in PASST.items() if key != "name"},
        TAP,
        tokenizer,
    )
    trained(
        model, tmp_path, SETTINGS | {"audio_features": audio, "max_audio_length": clip}
    ).save_checkpoint(tmp_path / "model.ckpt")
    loaded = load_salsa_checkpoint(tmp_path / "model.ckpt", tokenizer)
    if here is None:
        assert warnings_of(caplog) == []
    else:
        assert loaded.windows.num_windows == here
        (line,) = warnings_of(caplog)
        assert f"{here} windows here" in line and f"{original} in the original" in line


# --- what files of torch.save can hold ---


class Mode(enum.Enum):
    FAST = 3


class AttributeDict(dict):
    """As omegaconf and Lightning have one."""


def everything() -> dict[str, Any]:
    shared = torch.arange(40.0).view(10, 4)
    optimizer = torch.optim.Adam(linear := nn.Linear(3, 2).parameters())
    del linear
    dtypes = (
        torch.bfloat16,
        torch.float16,
        torch.float64,
        torch.int8,
        torch.bool,
        torch.float8_e4m3fn,
    )
    tensors = {
        **{"view": shared[2:5].T, "shared": shared, "parameter": nn.Parameter(torch.ones(3))},
        **{"empty": torch.empty(0, 3), "scalar": torch.tensor(2.5)},
        **{str(dtype): torch.ones(4).to(dtype) for dtype in dtypes},
    }
    return {
        **{"tensors": tensors, "optimizer": optimizer.state_dict()},
        **{"a_size": torch.Size([2, 3]), "a_device": torch.device("cpu"), "a_dtype": torch.float16},
        **{
            "float64": np.float64(0.25),
            "float32": np.float32(0.5),
            "int32": np.int32(7),
            "bool": np.bool_(True),
        },
        **{"big": np.array(3, ">i4")[()], "array": np.zeros(3), "complex": 1 + 2j, "long": 2**70},
        **{"path": PurePosixPath("a/b"), "mode": Mode.FAST, "namespace": argparse.Namespace(x=1)},
        **{"partial": functools.partial(print, sep=4), "attribute": AttributeDict(y=2)},
        **{"counter": collections.Counter("aab"), "default": collections.defaultdict(list, a=[1])},
        **{"set": {1, 2}, "frozen": frozenset((1,)), "bytes": b"abc", "bytearray": bytearray(b"x")},
    }


@pytest.mark.parametrize(
    ("is_zip", "protocol"), [(True, 2), (True, 4), (True, 5), (False, 2), (False, 4)]
)
def test_tensors_and_numbers_are_what_torch_load_gives(tmp_path: Path, is_zip: bool, protocol: int):
    content = everything()
    torch.save(
        content,
        tmp_path / "file.pt",
        _use_new_zipfile_serialization=is_zip,
        pickle_protocol=protocol,
    )
    found = read_content(tmp_path / "file.pt")
    assert found.keys() == content.keys()
    tensors = read_tensors(tmp_path / "file.pt", found["tensors"])
    for name, expected in content["tensors"].items():
        assert (tensors[name].dtype, tensors[name].shape) == (expected.dtype, expected.shape), name
        assert torch.equal(tensors[name].double(), expected.detach().double()), name
    assert (
        tensors["view"].untyped_storage().data_ptr()
        != tensors["shared"].untyped_storage().data_ptr()
    )
    for name in ("float64", "float32", "int32", "bool", "big", "long", "bytes"):
        assert found[name] == content[name], name
    objects = {"path", "mode", "namespace", "partial", "array", "attribute"}
    assert {name for name, value in found.items() if isinstance(value, Built)} >= objects


def test_tensors_of_another_device_are_read_on_the_cpu(tmp_path: Path):
    """As saved on a GPU that is not here: the device stands in the pickle beside each storage."""
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(3.0)}, buffer, _use_new_zipfile_serialization=False)
    (tmp_path / "file.pt").write_bytes(buffer.getvalue().replace(text("cpu"), text("xpu")))
    assert buffer.getvalue().count(text("cpu")) == 1
    tensors = read_tensors(tmp_path / "file.pt", read_content(tmp_path / "file.pt"))
    assert torch.equal(tensors["w"], torch.arange(3.0))


class TensorWithAttributes(nn.Parameter):
    """Saved by way of torch._tensor._rebuild_from_type_v2."""


def test_parameters_with_attributes_and_of_subclasses(tmp_path: Path):
    parameter = nn.Parameter(torch.ones(3))
    parameter.is_frozen = True
    subclass = torch.ones(2).as_subclass(TensorWithAttributes)
    torch.save({"parameter": parameter, "subclass": subclass}, tmp_path / "file.pt")
    tensors = read_tensors(tmp_path / "file.pt", read_content(tmp_path / "file.pt"))
    assert torch.equal(tensors["parameter"], torch.ones(3)) and torch.equal(
        tensors["subclass"], torch.ones(2)
    )


@pytest.mark.parametrize(
    "hold",
    [
        lambda value: argparse.Namespace(audio_features=argparse.Namespace(segment_length=value)),
        lambda value: AttributeDict(audio_features=AttributeDict(segment_length=value)),
        lambda value: collections.OrderedDict(
            audio_features=collections.OrderedDict(segment_length=value)
        ),
        lambda value: {
            "kwargs": {"audio_features": functools.partial(print, segment_length=value)}
        },
        lambda value: collections.defaultdict(
            dict, audio_features={"segment_length": np.float32(value)}
        ),
    ],
    ids=["namespace", "attribute_dict", "ordered_dict", "partial", "numpy"],
)
def test_settings_in_objects_of_any_class_are_found(tmp_path: Path, hold):
    torch.save({"state_dict": {}, "hyper_parameters": hold(2.5)}, tmp_path / "file.ckpt")
    _, settings = read_lightning(tmp_path / "file.ckpt")
    assert settings["audio_features.segment_length"] == settings["segment_length"] == 2.5


@pytest.mark.parametrize(
    "value",
    [
        np.array(2.0),
        np.array([1, 2]),
        datetime.timedelta(seconds=10),
        complex(1, 2),
        range(3),
        2**5000,
    ],
    ids=["array", "vector", "timedelta", "complex", "range", "endless"],
)
def test_numbers_within_objects_that_only_their_class_understands_are_no_settings(
    tmp_path: Path, value
):
    """The first number that numpy writes of an array is the version of its format, 1."""
    torch.save(
        {"state_dict": {}, "hyper_parameters": {"max_tokens": value, "tau": 0.1}},
        tmp_path / "file.ckpt",
    )
    assert read_lightning(tmp_path / "file.ckpt") == ({}, {"tau": 0.1})


def test_settings_behind_a_vocabulary_are_found(tmp_path: Path):
    settings = {
        "vocabulary": {f"word{number}": number for number in range(20_000)},
        "sentence_features": {"max_tokens": 7},
    }
    torch.save({"state_dict": {}, "hyper_parameters": settings}, tmp_path / "file.ckpt")
    assert read_lightning(tmp_path / "file.ckpt")[1]["sentence_features.max_tokens"] == 7


def test_numbers_that_are_no_weights_are_refused(tmp_path: Path, tokenizer: Path):
    """load_state_dict would take integers of a quantised model, and half of a complex number."""
    trained(small_model(ATST, TAP, tokenizer), tmp_path, SETTINGS).save_checkpoint(
        tmp_path / "model.ckpt"
    )
    content = torch.load(tmp_path / "model.ckpt", weights_only=True)
    weights = content["state_dict"].copy()
    name = "project_audio.0.weight"
    for wrong in (
        weights[name].mul(100).to(torch.int8),
        weights[name].to(torch.complex64),
        torch._neg_view(weights[name]),
    ):
        torch.save(content | {"state_dict": weights | {name: wrong}}, tmp_path / "model.ckpt")
        with pytest.raises(UserError, match=name):
            load_salsa_checkpoint(tmp_path / "model.ckpt", tokenizer)


@pytest.mark.parametrize("hop", [1e-9, 0.01, 0.02])
def test_a_hop_of_a_spectrogram_is_not_that_of_windows(
    tmp_path: Path, tokenizer: Path, caplog, hop: float
):
    caplog.set_level(logging.WARNING)
    settings = SETTINGS | {"audio_features": SETTINGS["audio_features"] | {"hop_length": hop}}
    trained(small_model(ATST, TAP, tokenizer), tmp_path, settings).save_checkpoint(
        tmp_path / "model.ckpt"
    )
    grid = load_salsa_checkpoint(tmp_path / "model.ckpt", tokenizer).windows
    assert grid.hop_samples == grid.window_samples
    assert f"hop_seconds=1.0 (not hop_length={hop})" in assumed(caplog)


# --- hostile files ---


def archive_of(path: Path, instructions: bytes, **records: bytes) -> Path:
    """The container of torch.save around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", instructions)
        for name, content in records.items():
            archive.writestr(f"archive/data/{name}", content)
    return path


def weights(instructions: bytes) -> bytes:
    """A pickle of {"state_dict": {}, "x": what `instructions` leave on the stack}."""
    return b"\x80\x02}(X\x0a\x00\x00\x00state_dict}X\x01\x00\x00\x00x" + instructions + b"u."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


@pytest.mark.parametrize(
    "instructions",
    [
        b"cos\nsystem\n" + text("touch {mark}") + b"\x85R",
        b"\x80\x04" + text("os") + text("system") + b"\x93" + text("touch {mark}") + b"\x85R",
        b"(cos\nsystem\n" + text("touch {mark}") + b"o",
        b"(" + text("touch {mark}") + b"ios\nsystem\n",
        b"cbuiltins\neval\n" + text("__import__('os').mknod('{mark}')") + b"\x85R",
        b"c__builtin__\nexec\n" + text("open('{mark}','w')") + b"\x85R",
        b"cfunctools\npartial\n(cposix\nsystem\n" + text("touch {mark}") + b"tR",
        b"cposix\nsystem\n\x94" + b"0h\x00" + text("touch {mark}") + b"\x85R",
    ],
    ids=["global", "stack_global", "obj", "inst", "eval", "exec", "partial", "memo"],
)
def test_calls_that_run_programs_are_refused_and_not_made(tmp_path: Path, instructions: bytes):
    mark = tmp_path / "mark"
    pickled = weights(instructions.replace(b"{mark}", str(mark).encode()))
    path = archive_of(tmp_path / "file.ckpt", pickled)
    with pytest.raises(UserError, match="refused|no file of torch.save"):
        read_lightning(path)
    assert not mark.exists()


def test_calls_of_anything_else_are_not_made(tmp_path: Path, monkeypatch):
    """importlib, pty, a class with __setstate__, attributes of functions: no list is complete."""
    called = []
    monkeypatch.setattr("shutil.rmtree", lambda *arguments: called.append(arguments))
    monkeypatch.setattr("importlib.import_module", lambda *arguments: called.append(arguments))
    attacks = [
        b"cshutil\nrmtree\n" + text(str(tmp_path)) + b"\x85R",
        b"cimportlib\nimport_module\n" + text("antigravity") + b"\x85R",
        b"cimportlib\nimport_module\n"
        + text("antigravity")
        + b"\x85R}("
        + text("a")
        + text("b")
        + b"ub",  # BUILD of the result
        # BUILD of a function
        b"ctorch._utils\n_rebuild_parameter\n}" + text("__code__") + text("x") + b"sb",
        b"ctorch\nFloatStorage\n)\x81}" + text("__class__") + text("x") + b"sb",
        b"clogging.config\nDictConfigurator\n)\x81}" + text("config") + b"}sb",
        b"cantigravity\nno_such_class\n)\x81",
    ]
    for number, instructions in enumerate(attacks):
        path = archive_of(tmp_path / f"{number}.ckpt", weights(instructions))
        assert read_lightning(path) == ({}, {}), number
    assert called == [] and "antigravity" not in __import__("sys").modules


@pytest.mark.parametrize(
    ("instructions", "reason"),
    [
        (b"\x82\x01", "EXT1"),  # registered extensions
        (b"\x83\x01\x00", "EXT2"),
        (b"P0\n", "PERSID"),
        (text("a") + b"\x8e" + struct.pack("<Q", 2**62), ""),  # BINBYTES8 that claims 4 exabytes
        (b"\x8a\xff", ""),
        # LONG_BINPUT: Python's own unpickler takes 16 GB for its memo
        (b"r" + struct.pack("<I", 2**31), ""),
        (b"h\x07", ""),  # a memo that was never put
        (b"R", ""),
        (b"e", ""),
        (b"Nb", ""),
        (b"N)R", ""),
    ],
)
def test_odd_instructions_are_one_line(tmp_path: Path, instructions: bytes, reason: str):
    path = archive_of(tmp_path / "file.ckpt", b"\x80\x02" + instructions + b".")
    with pytest.raises(UserError, match=f"checkpoint .*{reason}") as caught:
        read_lightning(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def doubling(levels: int, wrap: bytes) -> bytes:
    """A value that holds the one before it twice, `levels` times: 2 ** levels leaves."""
    return b"N\x94" + b"".join(
        b"h" + bytes([level]) + b"h" + bytes([level]) + wrap + b"\x94" for level in range(levels)
    )


def test_values_that_double_at_each_level_take_no_time(tmp_path: Path):
    # tuples; hash and repr of the last would never end
    nested = b"\x80\x04" + doubling(60, b"\x86")
    for use in (
        b"}" + nested + b"Ns",
        nested + text("os") + b"\x93",
        b"\x8f(" + nested + b"\x90",
        nested + b"(" + b"d",
        nested + b"Q",
    ):
        path = archive_of(tmp_path / "file.ckpt", b"\x80\x04" + use + b".")
        with pytest.raises(UserError):
            read_lightning(path)


def test_settings_without_end_are_cut(tmp_path: Path):
    settings: dict[str, Any] = {}
    settings["again"] = [settings]
    settings["me"] = settings
    for _ in range(60):
        settings = {"left": settings, "right": settings, "max_tokens": 7}
    torch.save({"state_dict": {}, "hyper_parameters": settings}, tmp_path / "file.ckpt")
    _, found = read_lightning(tmp_path / "file.ckpt")
    assert found["max_tokens"] == 7 and len(found) < 5_000_000
    del found
    gc.collect()


class Wide:
    """Pickled as a call with very many arguments."""

    arguments = (1,) * 20_000

    def __reduce__(self):
        return Wide, self.arguments


@pytest.mark.parametrize("kind", ["names", "dict", "object"])
def test_a_small_file_does_not_fill_the_memory_with_its_settings(tmp_path: Path, kind: str):
    """Pickles name one object as often as they like, so that some MB stand for terabytes."""
    if kind == "names":  # the path of each number would have 19 MB
        settings: Any = {f"k{number}": number for number in range(5000)}
        for _ in range(19):
            settings = {"a" * 1_000_000: settings}
    else:
        wide = {f"k{number}": 1 for number in range(100_000)} if kind == "dict" else Wide()
        settings = {f"k{number}": wide for number in range(900)}
    torch.save(
        {"state_dict": {}, "hyper_parameters": settings | {"tau": 0.1}}, tmp_path / "file.ckpt"
    )
    tracemalloc.start()
    try:
        _, found = read_lightning(tmp_path / "file.ckpt")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found["tau"] == 0.1 and peak < 200e6


@pytest.mark.parametrize(
    "arguments", [b"}K\x05", b"K\x05)", b"K\x05K\x05"], ids=["dict", "number", "numbers"]
)
def test_objects_whose_arguments_are_none_are_one_line(tmp_path: Path, arguments: bytes):
    call = b"cx\ny\n" + arguments + b"\x92"
    path = archive_of(
        tmp_path / "file.ckpt",
        b"\x80\x04}(" + text("state_dict") + b"}" + text("hyper_parameters") + call + b"u.",
    )
    with pytest.raises(UserError, match="no file of torch.save"):
        read_lightning(path)


def stored_zeros(shape: tuple[int, ...], stride: tuple[int, ...], num_stored: int) -> bytes:
    """A float32 tensor of zeros in a pickle: storage "0", which holds `num_stored` numbers."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return (
                ("storage", torch.FloatStorage, "0", "cpu", num_stored) if value is marker else None
            )

        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return torch._utils._rebuild_tensor_v2, (
                    marker,
                    0,
                    shape,
                    stride,
                    False,
                    collections.OrderedDict(),
                )
            return NotImplemented

    marker = io.BytesIO  # any object
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"state_dict": {"w": torch.zeros(1)}})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("shape", "stride"),
    [((2**40,), (0,)), ((2**20, 2**20), (0, 0)), ((8,), (1,)), ((2,), (100,)), ((4, 4), (1, 1))],
    ids=["expanded", "expanded twice", "longer than stored", "outside", "overlapping"],
)
def test_tensors_larger_than_their_numbers_are_refused(tmp_path: Path, shape: tuple, stride: tuple):
    path = archive_of(tmp_path / "file.ckpt", stored_zeros(shape, stride, 4), **{"0": bytes(16)})
    stored, _ = read_lightning(path)
    with pytest.raises((ValueError, EOFError, RuntimeError)):
        read_tensors(path, stored)


@pytest.mark.parametrize("shape", [(-1,), (2**70,), (True,), (1.5,), ("a",)])
def test_impossible_shapes_are_one_line(tmp_path: Path, shape: tuple):
    path = archive_of(tmp_path / "file.ckpt", stored_zeros(shape, (1,), 4), **{"0": bytes(16)})
    with pytest.raises(UserError, match="impossible shape"):
        read_lightning(path)


def test_one_block_of_numbers_for_a_thousand_weights_is_refused(tmp_path: Path):
    block = torch.zeros(100_000)
    torch.save({"state_dict": {f"w{i}": block for i in range(1000)}}, tmp_path / "file.ckpt")
    stored, _ = read_lightning(tmp_path / "file.ckpt")
    with pytest.raises(ValueError, match="400.0 MB, the file has 0"):
        read_tensors(tmp_path / "file.ckpt", stored)


def test_compressed_records_are_refused(tmp_path: Path):
    """torch.save compresses nothing; compressed, 10 TB of zeros are 10 GB."""
    torch.save({"state_dict": {"w": torch.zeros(2_500_000)}}, tmp_path / "plain.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "plain.ckpt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in plain.namelist():
            bomb.writestr(
                name,
                plain.read(name),
                zipfile.ZIP_STORED if name.endswith(("data.pkl", "byteorder")) else None,
            )
    assert os.path.getsize(tmp_path / "bomb.ckpt") < 20_000
    stored, _ = read_lightning(tmp_path / "bomb.ckpt")
    with pytest.raises(ValueError, match="compressed|would take 10.0 MB"):
        read_tensors(tmp_path / "bomb.ckpt", stored)
    archive_of(tmp_path / "file.ckpt", weights(b"N"))
    with zipfile.ZipFile(tmp_path / "packed.ckpt", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data.pkl", weights(b"N"))
    with pytest.raises(UserError, match="compressed"):
        read_lightning(tmp_path / "packed.ckpt")


def test_names_of_records_stay_in_the_archive(tmp_path: Path):
    (tmp_path / "secret").write_bytes(bytes(16))
    pickled = stored_zeros((4,), (1,), 4).replace(text("0"), text("../../secret"))
    path = archive_of(tmp_path / "file.ckpt", pickled)
    stored, _ = read_lightning(path)
    with pytest.raises(KeyError, match="There is no item named"):
        read_tensors(path, stored)


def test_a_model_of_any_claimed_size_costs_nothing(tmp_path: Path, tokenizer: Path, caplog):
    """A weight of one number that claims terabytes is found before a model of that size is made."""
    caplog.set_level(logging.WARNING)
    model = small_model(ATST, TAP, tokenizer)
    trained(model, tmp_path, SETTINGS).save_checkpoint(tmp_path / "model.ckpt")
    content = torch.load(tmp_path / "model.ckpt", weights_only=True)
    state = content["state_dict"]
    for key in ("project_audio.0.weight", "project_sentence.0.weight"):
        state[key] = torch.zeros(1, 1).expand(2**24, state[key].shape[1])
    for key in ("project_audio.0.bias", "project_sentence.0.bias"):
        state[key] = torch.zeros(1).expand(2**24)
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="weights are not those|cannot be read"):
        load_salsa_checkpoint(tmp_path / "model.ckpt", tokenizer)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before 1.6"])
def test_every_cut_of_a_file_is_one_line(tmp_path: Path, is_zip: bool):
    torch.save(
        {"state_dict": nn.Linear(30, 20).state_dict()},
        whole := tmp_path / "whole.ckpt",
        _use_new_zipfile_serialization=is_zip,
    )
    content = whole.read_bytes()
    for length in (*range(0, len(content) - 1, 97), len(content) - 1):
        path = tmp_path / "cut.ckpt"
        path.write_bytes(content[:length])
        try:
            stored, _ = read_lightning(path)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert all(isinstance(tensor, StoredTensor) for tensor in stored.values())
            with pytest.raises(Exception, match="."):  # salsa.py makes a line of it
                read_tensors(path, stored)
