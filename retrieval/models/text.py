"""Any Hugging Face text encoder: captions in, one vector a caption out: the first token of the last
layer, the mean of the tokens, or the last.

Letters: N captions, L tokens of the longest.
"""

import copy
import logging
import string
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    BatchEncoding,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from retrieval.base.errors import UserError, one_line
from retrieval.base.json_files import read_json
from retrieval.models.blocks import checkpoint_pretrained, compile_module_lists
from retrieval.models.hub import (
    NO_CODE,
    config_of,
    loading,
    local_files_only,
    unreachable,
    warn_of_code,
    without_code,
)

logger = logging.getLogger(__name__)

READOUTS = ("first", "mean", "last")

# Names of the dropout settings in Hugging Face configs, other than those of heads that are not used
# here.
DROPOUT_SETTINGS = (
    # BERT, RoBERTa, MPNet, ALBERT, DeBERTa
    *("hidden_dropout_prob", "attention_probs_dropout_prob"),
    *("dropout", "attention_dropout"),  # DistilBERT, OPT | these and CLIP, Llama, Qwen
    *("embd_pdrop", "attn_pdrop", "resid_pdrop"),  # GPT-2
    *("embedding_dropout", "mlp_dropout"),  # ModernBERT
    *("embed_dropout", "resid_dropout", "hidden_dropout"),  # GPT-Neo | GPT-NeoX, Falcon
    "dropout_rate",  # T5
)

# How sentence-transformers calls what READOUTS holds.
SENTENCE_POOLINGS = {"cls": "first", "mean": "mean", "lasttoken": "last"}

# Stands in for the hub's config.json where the hub is out of reach and only shapes are wanted
# (--dry-run, benchmarks).
KNOWN_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "roberta-large": {
        "model_type": "roberta",
        "vocab_size": 50265,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    },
}

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_caption(caption: str) -> str:
    """Lower case, ASCII punctuation deleted and nothing put in its place (recipe of the published
    runs).
    """
    return caption.lower().translate(_DELETE_PUNCTUATION)


class TextEncoder(nn.Module):
    """Architecture from a Hugging Face config as a dict; set `tokenizer` before captions are
    encoded.

    readout, of the last layer: "first", token 0; "mean" of the valid tokens; "last" valid token,
    the end of the text. max_tokens: longer captions are cut; None for as many as there are
    positions. as_written: captions with their capitals and punctuation.
    """

    def __init__(
        self,
        architecture: dict[str, Any],
        max_tokens: int | None,
        readout: str = "first",
        as_written: bool = False,
    ):
        super().__init__()
        if readout not in READOUTS:
            raise UserError(
                f"the readout of the text encoder must be one of {', '.join(READOUTS)}, found"
                f" {readout!r}"
            )
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.readout = readout
        self.as_written = as_written
        config = config_of(architecture, "text encoder")
        config.use_cache = False  # a decoder would keep keys and values for tokens to come
        self.model = _build(config)
        self.model.pooler = None  # its parameters would never receive a gradient
        self.feature_dim: int = config.hidden_size
        longest = self._longest_text()
        self.max_tokens = longest if max_tokens is None else max_tokens
        if max_tokens is not None and max_tokens < 1:
            raise UserError(
                f"text_encoder.max_tokens={max_tokens}: a caption has one token or more"
            )
        if None not in (longest, max_tokens) and max_tokens > longest:
            raise UserError(
                f"text_encoder.max_tokens={max_tokens}: the text encoder has positions for"
                f" {longest} tokens; set it to that or less"
            )

    def _longest_text(self) -> int | None:
        """Tokens that the position table holds; None where there is no table. RoBERTa and its kin
        count from padding_idx + 1.
        """
        for name, module in self.model.named_modules():
            if name.endswith("embeddings.position_embeddings") and isinstance(module, nn.Embedding):
                return module.num_embeddings - (
                    0 if module.padding_idx is None else module.padding_idx + 1
                )
        longest = getattr(self.model.config, "max_position_embeddings", None)
        return None if longest == -1 else longest  # XLNet's -1 stands for no limit

    def load_pretrained(self, name: str) -> None:
        """Weights of hub model or folder `name`, which must have this architecture."""
        settings = loading(name, "text encoder") | {
            "dtype": torch.float32,
            "output_loading_info": True,
        }
        if _tower_class(self.model.config) is not None:
            settings["key_mapping"] = {r"^text_model\.": ""}  # what the whole model calls it
        try:
            # With the class and config of this model, the text tower of a folder that holds more
            # (CLIP, T5) is all that is read.
            source, report = type(self.model).from_pretrained(
                name, config=self.model.config, **settings
            )
        except Exception as error:
            raise unreachable("text encoder", name, error) from None
        # transformers fills what the file lacks with random numbers.
        missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise UserError(
                f"text encoder {name!r} lacks {len(missing)} weights, first: {missing[0]}; download"
                " it again"
            )
        self.model.load_state_dict(
            {
                key: value
                for key, value in source.state_dict().items()
                if not key.startswith("pooler.")
            }
        )

    def checkpoint_activations(self) -> None:
        """Keep only the inputs of its layers for the backward pass; see retrieval.models.blocks."""
        checkpoint_pretrained(self.model)

    def compile_blocks(self) -> None:
        """Call torch.compile for each of its layers."""
        compile_module_lists(self.model)

    def tokens(self, captions: list[str]) -> BatchEncoding:
        """input_ids and attention_mask, int64 (N, L), on the CPU."""
        return self.tokenizer(
            captions if self.as_written else [normalise_caption(caption) for caption in captions],
            padding=True,
            padding_side="right",  # positions of CLIP and GPT-2 count padding on the left
            truncation=True,
            max_length=self.max_tokens,
            return_attention_mask=True,
            return_tensors="pt",
        )

    def forward(self, captions: list[str]) -> torch.Tensor:
        """(N, feature_dim)"""
        tokens = self.tokens(captions).to(self.model.device, non_blocking=True)
        return self.encode_tokens(tokens["input_ids"], tokens["attention_mask"])

    def encode_tokens(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(N, feature_dim) of what `tokens` gives, both int64 (N, L), padded on the right."""
        # (N, L, feature_dim)
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.readout == "first":
            return hidden[:, 0]
        if self.readout == "mean":
            return (hidden * attention_mask[..., None]).sum(dim=1) / attention_mask.sum(
                dim=1, keepdim=True
            )
        # The mask, not the token: where the end of text is also the padding (CLIP, GPT-2), ids do
        # not tell them apart. shape[0], not len(): an exported graph serves any number of captions.
        return hidden[
            torch.arange(hidden.shape[0], device=hidden.device), attention_mask.sum(dim=1) - 1
        ]


def _build(config: PreTrainedConfig) -> PreTrainedModel:
    """Random weights, without head; of an encoder-decoder such as T5 the encoder alone."""
    auto = AutoModelForTextEncoding if config.is_encoder_decoder else AutoModel
    tower = _tower_class(config)
    try:
        if tower is not None:
            return tower(config).float()
        # also where the files are in half precision: autocast takes what it needs
        return auto.from_config(config, dtype=torch.float32, **NO_CODE)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        found = (
            "the text encoder's config.json describes no text encoder that transformers can build"
            f" ({one_line(error)})"
        )
        raise UserError(f"{found}; copy it again, or take another text encoder") from None


def _tower_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The text tower of a model such as CLAP, of which AutoModel knows only the whole."""
    known = type(config) in AutoModel._model_mapping or config.is_encoder_decoder
    return (
        None
        if known
        else getattr(transformers, type(config).__name__.replace("TextConfig", "TextModel"), None)
    )


def text_architecture(name: str, dropout: float, allow_known: bool = False) -> dict[str, Any]:
    """The Hugging Face config of hub model or folder `name` as a dict, with its dropouts set; of
    CLIP and the like that of the text tower.

    `allow_known`: where the hub is out of reach, take the shapes from KNOWN_ARCHITECTURES and say
    so.
    """
    try:
        config = _text_config(name)
        warn_of_code("text encoder", name, config)
    except UserError:
        if not (allow_known and name in KNOWN_ARCHITECTURES):
            raise
        logger.warning(
            "%s is out of reach: its shapes are taken from retrieval/models/text.py", name
        )
        config = AutoConfig.for_model(**KNOWN_ARCHITECTURES[name])
    return architecture_of(config, dropout)


def _text_config(name: str) -> PreTrainedConfig:
    settings = loading(name, "text encoder")
    try:
        return AutoConfig.from_pretrained(name, **settings).get_text_config()
    except Exception as error:
        raise unreachable("text encoder", name, error) from None


def architecture_of(config: PreTrainedConfig, dropout: float) -> dict[str, Any]:
    """`config` as a dict, with every dropout it has set to `dropout`, and without the folder that
    it was read from: a model is passed on.
    """
    architecture = without_code(config.to_dict())
    architecture.pop("_name_or_path", None)
    return architecture | {
        setting: dropout for setting in DROPOUT_SETTINGS if setting in architecture
    }


def text_readout(name: str) -> str:
    """What hub model or folder `name` was made for, one of READOUTS, from its own files.

    A sentence-transformers model says how it pools. A model in which no token sees later ones
    (GPT-2, the text tower of CLIP) has read all of the text only at the "last". The encoder of an
    encoder-decoder (T5) has no token that stands for the text: "mean", as Sentence-T5 (arXiv
    2108.08877). All others: "first". Raises UserError for a model that is absent or pools in
    another way.
    """
    config = (
        AutoConfig.for_model(**KNOWN_ARCHITECTURES[name])
        if name in KNOWN_ARCHITECTURES
        else _text_config(name)
    )
    pooling = _sentence_pooling(name)
    if pooling is not None:
        return pooling
    if config.is_encoder_decoder:
        return "mean"
    try:
        return "last" if _is_causal(config) else "first"
    except UserError:
        raise
    except Exception as error:  # each architecture has its own
        raise UserError(
            f"text encoder {name} does not run on tokens and their mask ({one_line(error)}); take"
            " another text encoder"
        ) from None


def _sentence_pooling(name: str) -> str | None:
    """What a sentence-transformers model does with its tokens; None for another model. Its later
    modules (Dense, Normalize) are left out.
    """
    modules = _read_json(name, "modules.json")
    if modules is None:
        return None
    try:
        folder = next(module["path"] for module in modules if module["type"].endswith(".Pooling"))
        settings = _read_json(name, f"{folder}/config.json")
        # A name or a list of names; of older versions a switch for each.
        modes = settings.get("pooling_mode") or [
            key
            for key, value in settings.items()
            if key.startswith("pooling_mode_") and value is True
        ]
    except (StopIteration, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"text encoder {name}: modules.json names no pooling that can be read"
            f" ({one_line(error)}); copy the folder again"
        ) from None
    modes = modes if isinstance(modes, list) else [modes]
    found = [
        str(mode).removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for mode in modes
    ] or ["mean"]
    if len(found) > 1 or found[0] not in SENTENCE_POOLINGS:
        raise UserError(
            f"text encoder {name} was made for the pooling {'+'.join(found)}; set"
            f" text_encoder.readout to {', '.join(READOUTS)}"
        )
    return SENTENCE_POOLINGS[found[0]]


def _read_json(name: str, file: str) -> Any:
    """Content of a file of hub model or folder `name`; None where it has no such file."""
    path = Path(name, file)
    try:
        if not Path(name).is_dir():
            path = Path(hf_hub_download(name, file, local_files_only=local_files_only(name)))
        return read_json(path)
    except (FileNotFoundError, EntryNotFoundError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"text encoder {name}: {file} cannot be read ({one_line(error)}); copy it again"
        ) from None


def _is_causal(config: PreTrainedConfig) -> bool:
    """Whether the first token is blind to the last: asked of one layer with random weights, with
    two texts that differ in their last token.

    No name says so: the table of causal language models holds BERT and RoBERTa too, `architectures`
    may be absent or that of the bare model, and `is_causal` of the attention modules is False in
    CLIP, which passes it at the call.
    """
    config = copy.deepcopy(config)
    config.num_hidden_layers, config.vocab_size = 1, max(config.pad_token_id or 0, 0) + 3
    tokens = torch.full((2, 3), config.vocab_size - 2)
    tokens[1, 2] += 1
    # the run's random numbers stay as they are
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        first, other = (
            _build(config)
            .eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens))
            .last_hidden_state[:, 0]
        )
    return torch.allclose(first, other, atol=1e-6)
