"""The text encoder: captions as in the reference, token 0 of real models, weights that do not fit.

Letters: N captions, L tokens.
"""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
)

from retrieval.base.errors import UserError
from retrieval.models import hub
from retrieval.models.text import (
    KNOWN_ARCHITECTURES,
    TextEncoder,
    load_tokenizer,
    normalise_caption,
    text_architecture,
    text_readout,
)
from tests.conftest import write_text_encoder

GOLDEN = json.loads(
    (Path(__file__).resolve().parents[1] / "golden" / "text.json").read_text(encoding="utf-8")
)
CAPTIONS = ["A steady, LOW tone.", "Someone plays a rising note!", "tone"]
SHAPE = {
    "vocab_size": 20,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
FAMILIES = {
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SHAPE, pad_token_id=1)),
    "bert": lambda: BertModel(BertConfig(**SHAPE, pad_token_id=1)),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(
            vocab_size=20, dim=32, n_layers=2, n_heads=2, hidden_dim=64, pad_token_id=1
        )
    ),
}


def save_family(folder: Path, family: str) -> str:
    """A folder with tokenizer, config.json and weights, as `hf download` gives it."""
    write_text_encoder(folder)
    torch.manual_seed(0)
    model = FAMILIES[family]()
    # LayerNorms and biases too: a fresh model hides a mix-up of them
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return str(folder)


def load(name: str) -> TextEncoder:
    encoder = TextEncoder(text_architecture(name, dropout=0.2), max_tokens=32)
    encoder.tokenizer = load_tokenizer(name)
    encoder.load_pretrained(name)
    return encoder.eval()


def first_tokens(name: str, captions: list[str]) -> torch.Tensor:
    """Slow reference: one caption at a time through the Hugging Face model, without padding."""
    tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name).eval()
    tokens = [
        tokenizer(caption, truncation=True, max_length=32, return_tensors="pt")["input_ids"]
        for caption in captions
    ]
    # (N, feature_dim)
    return torch.stack([model(input_ids=ids).last_hidden_state[0, 0] for ids in tokens])


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory) -> str:
    return save_family(tmp_path_factory.mktemp("text_encoder"), request.param)


@pytest.fixture(scope="module")
def encoder(folder: str) -> TextEncoder:
    """In eval mode."""
    return load(folder)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory) -> TextEncoder:
    return load(save_family(tmp_path_factory.mktemp("roberta"), "roberta"))


def error_of(function, *arguments, **settings) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **settings)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


# --- captions ---


@pytest.mark.parametrize(
    ("caption", "expected"), zip(GOLDEN["captions"], GOLDEN["handed_to_tokenizer"], strict=True)
)
def test_captions_reach_the_tokenizer_as_in_the_reference(caption: str, expected: str):
    assert normalise_caption(caption) == expected


def test_the_tokenizer_gets_normalised_captions(roberta: TextEncoder, monkeypatch):
    tokenizer, seen = roberta.tokenizer, []
    monkeypatch.setattr(
        roberta,
        "tokenizer",
        lambda captions, **settings: seen.append(captions) or tokenizer(captions, **settings),
    )
    roberta(GOLDEN["captions"])
    assert seen == [GOLDEN["handed_to_tokenizer"]]


def test_captions_are_cut_to_max_tokens_special_tokens_included(roberta: TextEncoder, monkeypatch):
    seen = []
    monkeypatch.setattr(roberta, "max_tokens", 6)
    with roberta.model.register_forward_pre_hook(
        lambda _module, _arguments, inputs: seen.append(inputs), with_kwargs=True
    ):
        roberta(["a steady low tone", "a steady low tone a note", "someone"])
    start, pad, end = (
        roberta.tokenizer.bos_token_id,
        roberta.tokenizer.pad_token_id,
        roberta.tokenizer.eos_token_id,
    )
    words = roberta.tokenizer.convert_tokens_to_ids(["a", "steady", "low", "tone"])
    tokens, mask = seen[0]["input_ids"], seen[0]["attention_mask"]  # (N, L)
    assert tokens[:2].tolist() == [[start, *words, end]] * 2
    assert tokens[2, [0, 2, 3, 4, 5]].tolist() == [start, end, pad, pad, pad]
    assert mask.sum(dim=1).tolist() == [6, 6, 3]


def test_what_is_cut_does_not_matter_and_what_is_kept_does(roberta: TextEncoder, monkeypatch):
    monkeypatch.setattr(roberta, "max_tokens", 5)
    same, cut, other = roberta(["a steady low", "a steady low tone", "a steady high tone"])
    assert torch.allclose(same, cut, atol=1e-6)
    assert not torch.allclose(same, other, atol=1e-3)


# --- pretrained models ---


def test_output_is_token_0_of_the_last_layer(folder: str, encoder: TextEncoder):
    found = encoder(CAPTIONS)  # (N, feature_dim), padded to the longest
    slow = first_tokens(folder, [normalise_caption(caption) for caption in CAPTIONS] + CAPTIONS[:1])
    assert found.shape == (3, 32)
    assert (found - slow[:3]).abs().max() < 2e-6
    # Negative control: a caption as it was written is other tokens.
    assert (found[0] - slow[3]).abs().max() > 1e-3


def test_padding_and_the_other_captions_do_not_matter(encoder: TextEncoder):
    assert (encoder(CAPTIONS)[2:] - encoder(CAPTIONS[2:])).abs().max() < 2e-6


def test_every_parameter_of_the_encoder_gets_a_gradient(encoder: TextEncoder):
    encoder(CAPTIONS).square().sum().backward()
    unused = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert unused == []  # a pooler would be
    assert not any("pooler" in name for name, _ in encoder.named_parameters())


@pytest.mark.parametrize("dropout", [0.0, 0.35])
def test_dropout_settings_are_applied_everywhere(folder: str, dropout: float):
    encoder = TextEncoder(text_architecture(folder, dropout), 32)
    encoder.tokenizer = load_tokenizer(folder)
    assert {module.p for module in encoder.modules() if isinstance(module, torch.nn.Dropout)} == {
        dropout
    }
    # attention weights as well as hidden states
    assert torch.equal(encoder(CAPTIONS), encoder(CAPTIONS)) == (dropout == 0)
    encoder.eval()
    assert torch.equal(encoder(CAPTIONS), encoder(CAPTIONS))


def test_loading_is_float32_also_from_half_precision(tmp_path: Path):
    name = save_family(tmp_path, "roberta")
    RobertaModel.from_pretrained(name).half().save_pretrained(name)
    assert {parameter.dtype for parameter in load(name).parameters()} == {torch.float32}


# --- what can be missing ---


def test_a_folder_without_weights_cannot_be_pretrained(tmp_path: Path):
    name = str(write_text_encoder(tmp_path))
    TextEncoder(text_architecture(name, 0.1), 32)  # pretrained: false
    message = error_of(load, name)
    assert message.startswith(f"text encoder folder {name} cannot be loaded (")
    assert message.endswith("it needs config.json, tokenizer files and model.safetensors")


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_folder_that_lacks_a_file(tmp_path: Path, missing: str):
    name = save_family(tmp_path, "roberta")
    (tmp_path / missing).unlink()
    assert f"text encoder folder {name} cannot be loaded" in error_of(load, name)


def test_a_truncated_weight_file(tmp_path: Path):
    name = save_family(tmp_path, "roberta")
    weights = tmp_path / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    assert f"text encoder folder {name} cannot be loaded" in error_of(load, name)


def test_a_weight_file_that_lacks_a_tensor_is_refused(tmp_path: Path):
    """transformers alone would go on with random numbers."""
    name = save_family(tmp_path, "roberta")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["roberta.encoder.layer.1.attention.self.query.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    message = error_of(load, name)
    assert (
        message == f"text encoder {name!r} lacks 1 weights, first:"
        " encoder.layer.1.attention.self.query.weight; download it again"
    )


def test_a_folder_name_that_does_not_exist(tmp_path: Path):
    name = str(tmp_path / "absent")
    for message in (error_of(text_architecture, name, 0.1), error_of(load_tokenizer, name)):
        assert f"{name} does not exist" in message and "text_encoder.name" in message


def test_a_tokenizer_that_knows_no_word_or_does_not_fit(tmp_path: Path):
    folder = write_text_encoder(tmp_path)
    assert len(load_tokenizer(folder, 16)) == 16
    assert "its tokenizer has 16 tokens, its config.json says vocab_size 15" in error_of(
        load_tokenizer, folder, 15
    )
    for path in folder.glob("*token*"):
        path.unlink()
    assert "knows no word" in error_of(load_tokenizer, folder)


def test_a_tokenizer_without_padding_pads_with_its_end_of_text(tmp_path: Path):
    path = write_text_encoder(tmp_path) / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(
        json.dumps({name: value for name, value in settings.items() if name != "pad_token"})
    )
    tokenizer = load_tokenizer(tmp_path, 16)
    assert (tokenizer.pad_token, len(tokenizer)) == ("</s>", 16)
    path.write_text(
        json.dumps(
            {
                name: value
                for name, value in settings.items()
                if name not in ("pad_token", "eos_token")
            }
        )
    )
    assert "has no padding token" in error_of(load_tokenizer, tmp_path)


def test_a_config_that_describes_no_model(tmp_path: Path):
    architecture = text_architecture(str(write_text_encoder(tmp_path)), 0.1)
    assert "not a multiple of" in error_of(
        TextEncoder, architecture | {"num_attention_heads": 3}, 32
    )


@pytest.fixture
def no_hub(monkeypatch):
    """The hub refuses every connection, at once."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://127.0.0.1:9")
    hub.hub_answers.cache_clear()
    yield
    hub.hub_answers.cache_clear()


@pytest.mark.parametrize("name", ["roberta-largest", "nobody/no-such-model"])
def test_without_the_hub_a_name_fails_at_once_and_says_how_to_get_it(
    no_hub, name: str, monkeypatch
):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    messages = [error_of(text_architecture, name, 0.1), error_of(load_tokenizer, name)]
    assert pauses == []  # huggingface_hub alone pauses between its tries, 23 s a file
    for message in messages:
        assert message.startswith(
            f"text encoder {name!r} is not a folder here and the Hugging Face hub did not give it ("
        )
        short = name.split("/")[-1]
        assert message.endswith(
            f"(hf download {name} --local-dir weights/{short}) and set"
            f" text_encoder.name=weights/{short}"
        )


def test_the_hub_is_asked_once_and_never_for_a_folder(monkeypatch, tmp_path: Path):
    asked = []
    monkeypatch.setattr(hub, "get_session", lambda: asked.append("hub") or 1 / 0)
    hub.hub_answers.cache_clear()
    assert hub.local_files_only(tmp_path) and asked == []
    assert (
        hub.local_files_only("roberta-large")
        and hub.local_files_only("bert-base-uncased")
        and asked == ["hub"]
    )
    hub.hub_answers.cache_clear()


def test_known_shapes_stand_in_for_the_hub_where_asked(no_hub, caplog):
    architecture = text_architecture("roberta-large", 0.2, allow_known=True)
    assert "roberta-large is out of reach" in caplog.text
    assert (architecture["hidden_dropout_prob"], architecture["attention_probs_dropout_prob"]) == (
        0.2,
        0.2,
    )
    with torch.device("meta"):
        encoder = TextEncoder(architecture, 32)
    # roberta-large has 355,359,744 parameters, of which 1,049,600 are the pooler's.
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 355_359_744 - 1_049_600
    assert encoder.feature_dim == GOLDEN["text_model"]["dims"]["roberta-large"]
    # published: 0.6B and 395M parameters
    sizes = {"Qwen/Qwen3-Embedding-0.6B": 595_776_512, "answerdotai/ModernBERT-large": 394_781_696}
    assert set(KNOWN_ARCHITECTURES) == {"roberta-large", *sizes}
    for name, size in sizes.items():
        with torch.device("meta"):
            encoder = TextEncoder(text_architecture(name, 0.0, allow_known=True), 32)
        assert sum(parameter.numel() for parameter in encoder.parameters()) == size
    assert "is not a folder here" in error_of(text_architecture, "roberta-large", 0.2)
    assert text_readout("roberta-large") == "first"
    assert "is not a folder here" in error_of(text_readout, "nobody/no-such-model")
