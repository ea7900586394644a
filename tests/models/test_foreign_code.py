"""Models with code of their own and pickled weights: nothing is run or asked, one line says so.

The folder is one of transformers, with an auto_map in its config.json and the files that it names.
"""

import json
import logging
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator

import train
from retrieval.base.errors import UserError
from retrieval.data import open_cache
from retrieval.models.audio.huggingface import HuggingFaceAudioEncoder, huggingface_arguments
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.text import TextEncoder, load_tokenizer, text_architecture, text_readout
from retrieval.training.checkpoint import Progress, load_state, save_state
from retrieval.training.objective import CaptionSimilarity
from tests.conftest import mistake, write_cache, write_text_encoder
from tests.models.pretrained.test_salsa import ATST, TAP, small_model


@pytest.fixture(autouse=True)
def nobody_to_ask(monkeypatch):
    """A question on the terminal is an error, and so is transformers' alarm while it waits."""

    def asked(*_arguments):
        raise AssertionError("a question was asked")

    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setattr("signal.alarm", asked)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """Made by any code of a folder that is run."""
    return tmp_path / "was_run"


def bring_code(folder: Path, mark: Path, file: str = "config.json", **changes) -> Path:
    """Name code in a JSON file of `folder`, as the hub's custom models do, and write that code."""
    names = {"AutoConfig": "configuration.NewConfig", "AutoModel": "modeling.NewModel"}
    names |= {
        "AutoTokenizer": ["tokenization.NewTokenizer", None],
        "AutoFeatureExtractor": "extraction.NewExtractor",
    }
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | {"auto_map": names} | changes))
    code = (
        f"open({str(mark)!r}, 'w')\nfrom transformers import RobertaConfig\n\nclass"
        " NewConfig(RobertaConfig):\n    model_type = 'new'\n"
    )
    for module in ("configuration", "modeling", "tokenization", "extraction"):
        (folder / f"{module}.py").write_text(code)
    return folder


@pytest.fixture
def text_encoder(tmp_path: Path) -> Path:
    """Config, tokenizer and weights of a tiny RoBERTa."""
    folder = write_text_encoder(tmp_path / "text_encoder")
    transformers.RobertaModel(transformers.RobertaConfig.from_pretrained(folder)).save_pretrained(
        folder
    )
    return folder


def test_negative_control_the_code_would_be_run(text_encoder: Path, mark: Path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(mark.parent / "modules"))
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(mark.parent / "modules")
    )
    bring_code(text_encoder, mark, model_type="new")
    with pytest.raises(AssertionError, match="asked"):
        transformers.AutoConfig.from_pretrained(text_encoder)
    transformers.AutoConfig.from_pretrained(text_encoder, trust_remote_code=True)
    assert mark.exists()


@pytest.mark.parametrize(
    "load",
    [
        lambda name: text_architecture(name, 0.1),
        text_readout,
        load_tokenizer,
        lambda name: CaptionSimilarity(name, ["a tone"], torch.device("cpu")),
        lambda name: huggingface_arguments(name),
    ],
    ids=["config", "readout", "tokenizer", "sentence encoder", "audio encoder"],
)
def test_a_model_of_an_unknown_kind_is_refused_in_one_line(text_encoder: Path, mark: Path, load):
    bring_code(text_encoder, mark, model_type="new")
    if load is load_tokenizer:
        bring_code(text_encoder, mark, "tokenizer_config.json", tokenizer_class="NewTokenizer")
        (text_encoder / "tokenizer.json").unlink()
    with pytest.raises(
        UserError, match="code of its own, which is not run.*take another"
    ) as caught:
        load(str(text_encoder))
    assert str(text_encoder) in str(caught.value) and "\n" not in str(caught.value)
    assert not mark.exists()


def test_train_says_it_before_a_run_folder_is_made(tiny: Path, text_encoder: Path, mark: Path):
    bring_code(text_encoder, mark, model_type="new")
    output = mark.parent / "run"
    line = mistake(
        train.main,
        "--config",
        f"{tiny}/tiny.yaml",
        f"text_encoder.name={text_encoder}",
        f"train.output={output}",
    )
    assert "code of its own, which is not run" in line and line.count("\n") == 1
    assert not output.exists() and not mark.exists()


def test_of_a_known_kind_the_code_of_transformers_is_taken_and_that_is_said(
    text_encoder: Path, mark: Path, caplog
):
    """Many custom models keep the model_type of what they derive from."""
    expected = transformers.AutoModel.from_pretrained(text_encoder).state_dict()
    bring_code(text_encoder, mark)
    bring_code(text_encoder, mark, "tokenizer_config.json")
    caplog.set_level(logging.WARNING)
    architecture = text_architecture(str(text_encoder), 0.0)
    (line,) = [message for message in caplog.messages if "code of its own" in message]
    assert str(text_encoder) in line and "roberta" in line
    assert "auto_map" not in architecture  # what is saved with our models names no code
    encoder = TextEncoder(architecture, None)
    encoder.tokenizer = load_tokenizer(text_encoder)
    encoder.load_pretrained(str(text_encoder))
    assert all(
        torch.equal(value, expected[key]) for key, value in encoder.model.state_dict().items()
    )
    assert not mark.exists()


def test_audio_encoders_with_code(tmp_path: Path, mark: Path, caplog):
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "num_mel_bins": 16,
        "max_length": 100,
    }
    config = transformers.ASTConfig(**sizes)
    folder = tmp_path / "ast"
    transformers.ASTModel(config).save_pretrained(folder)
    transformers.ASTFeatureExtractor(num_mel_bins=16, max_length=100).save_pretrained(folder)
    bring_code(folder, mark)
    bring_code(folder, mark, "preprocessor_config.json")
    caplog.set_level(logging.WARNING)
    arguments = huggingface_arguments(str(folder))
    assert "auto_map" not in arguments["architecture"]
    assert any(
        "audio encoder" in message and "code of its own" in message for message in caplog.messages
    )
    HuggingFaceAudioEncoder(**arguments).load_official(folder)
    bring_code(folder, mark, model_type="new")
    with pytest.raises(UserError, match="code of its own, which is not run"):
        huggingface_arguments(str(folder))
    assert not mark.exists()


@pytest.mark.parametrize(
    "where", ["config of a known kind", "config of an unknown kind", "tokenizer", "kernel"]
)
def test_model_folders_of_others(tmp_path: Path, text_encoder: Path, mark: Path, where: str):
    folder = tmp_path / "model"
    model = small_model(ATST, TAP, text_encoder)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    if where == "tokenizer":
        bring_code(folder / "tokenizer", mark, "tokenizer_config.json")
    elif where == "kernel":  # transformers would fetch this package from the hub and import it
        config["text_encoder"]["attn_implementation"] = "kernels-community/flash-attn2"
    else:
        config["text_encoder"]["auto_map"] = {
            "AutoConfig": "configuration.NewConfig",
            "AutoModel": "modeling.NewModel",
        }
        config["text_encoder"]["model_type"] = "new" if "unknown" in where else "roberta"
    (folder / "config.json").write_text(json.dumps(config))
    if "unknown" in where:
        with pytest.raises(UserError, match="code of its own, which is not run"):
            DualEncoder.from_pretrained(folder)
    else:
        loaded = DualEncoder.from_pretrained(folder).state_dict()
        assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())
    assert not mark.exists()


class Attack:
    """Pickled as a call that makes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mknod, (str(self.mark),)


def test_pickled_weights_of_text_encoders_run_nothing(text_encoder: Path, mark: Path):
    (text_encoder / "model.safetensors").unlink()
    torch.save(
        {"embeddings.word_embeddings.weight": Attack(mark)}, text_encoder / "pytorch_model.bin"
    )
    encoder = TextEncoder(text_architecture(str(text_encoder), 0.0), None)
    with pytest.raises(UserError, match="cannot be loaded"):
        encoder.load_pretrained(str(text_encoder))
    assert not mark.exists()


@pytest.mark.parametrize(
    "file", ["custom_checkpoint_0.pkl", "optimizer.bin", "random_states_0.pkl", "scheduler.bin"]
)
def test_states_of_a_run_of_others_run_nothing(tmp_path: Path, mark: Path, file: str):
    """--resume in a run folder that was given by someone."""
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model, optimizer = accelerator.prepare(model, optimizer)
    scheduler = accelerator.prepare_scheduler(
        torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, lambda _step: 1.0)
    )
    assert scheduler is not None
    accelerator.register_for_checkpointing(progress := Progress())
    save_state(accelerator, tmp_path, progress)
    load_state(accelerator, tmp_path, progress, steps_per_epoch=1, seed=0)
    (state,) = (tmp_path / "states").iterdir()
    assert (state / file).is_file()
    if file == "random_states_0.pkl":
        with open(state / file, "wb") as target:
            pickle.dump({"step": Attack(mark)}, target)
    torch.save({"step": Attack(mark)}, state / file)
    with pytest.raises(UserError, match="does not load"):
        load_state(accelerator, tmp_path, progress, steps_per_epoch=1, seed=0)
    assert not mark.exists()


def test_caches_with_a_loading_script_and_arrays_with_objects(tmp_path: Path, mark: Path):
    cache = write_cache(tmp_path / "cache", {"development": 2})
    for name in ("cache.py", "development.py", "dataset.py"):
        (cache / name).write_text(f"open({str(mark)!r}, 'w')")
        shutil.copy(cache / name, cache / "development" / name)
    assert len(open_cache(cache).split("development")) == 2
    with pytest.raises(ValueError, match="allow_pickle"):
        objects = np.empty(1, dtype=object)
        objects[0] = Attack(mark)
        np.save(tmp_path / "objects.npy", objects)
        np.load(tmp_path / "objects.npy")
    assert not mark.exists()
