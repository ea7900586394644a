"""Any Hugging Face text encoder: captions in, one vector per caption out.

Letters: N captions, L tokens of the longest.
"""

import copy
import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from tokenizers import processors
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from retrieval.base.captions import normalise_caption
from retrieval.base.errors import UserError, one_line
from retrieval.base.files import read_json
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

READOUTS = ("first", "mean", "last", "pooled")

# Dropout settings in Hugging Face configs, without those of heads, which are not used here.
DROPOUT_SETTINGS = (
    # BERT, RoBERTa, MPNet, ALBERT, DeBERTa
    *("hidden_dropout_prob", "attention_probs_dropout_prob"),
    *("dropout", "attention_dropout"),  # DistilBERT, OPT | these and CLIP, Llama, Qwen
    *("embd_pdrop", "attn_pdrop", "resid_pdrop"),  # GPT-2
    *("embedding_dropout", "mlp_dropout"),  # ModernBERT
    *("embed_dropout", "resid_dropout", "hidden_dropout"),  # GPT-Neo | GPT-NeoX, Falcon
    "dropout_rate",  # T5
)

# names of sentence-transformers -> READOUTS
SENTENCE_POOLINGS = {"cls": "first", "mean": "mean", "lasttoken": "last"}

# Replaces the hub's config.json if the hub is out of reach and only shapes are needed (--dry-run,
# benchmarks).
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
    "Qwen/Qwen3-Embedding-0.6B": {
        "model_type": "qwen3",
        "vocab_size": 151669,
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "attention_dropout": 0.0,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "tie_word_embeddings": True,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
    },
    "answerdotai/ModernBERT-large": {
        "model_type": "modernbert",
        "vocab_size": 50368,
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "intermediate_size": 2624,
        "max_position_embeddings": 8192,
        "pad_token_id": 50283,
        "bos_token_id": 50281,
        "eos_token_id": 50282,
        "cls_token_id": 50281,
        "sep_token_id": 50282,
    },
}


class TextEncoder(nn.Module):
    """Text encoder with the architecture of a Hugging Face config, and random weights.

    Set `tokenizer` before captions are encoded.

    Args:
        architecture: The Hugging Face config as a dict.
        max_tokens: Longer captions are cut; None: as many as the model has positions.
        readout: Of the last layer: "first" token, "mean" of the valid tokens, or "last" valid
            token, the end of the text. "pooled" is the output of the model's own pooler, such as
            the layer above the first token in CLAP.
        as_written: Keep the captions' capitals and punctuation.

    Raises:
        UserError: The architecture cannot be built, or max_tokens or readout does not fit it.
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
        if readout != "pooled":
            self.model.pooler = None  # its parameters would never receive a gradient
        elif getattr(self.model, "pooler", None) is None:
            raise UserError(
                f"the text encoder {config.model_type} has no pooler: set text_encoder.readout to"
                " first, mean or last"
            )
        self.feature_dim: int = config.hidden_size
        longest = _num_positions(self.model)
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

    def load_pretrained(self, name: str) -> None:
        """Load the weights of a hub model or folder with this architecture, or raise UserError."""
        settings = loading(name, "text encoder")
        settings |= {"dtype": torch.float32, "output_loading_info": True}
        if _tower_class(self.model.config) is not None:
            settings["key_mapping"] = {r"^text_model\.": ""}  # its prefix in the whole model
        try:
            # The class and config of this model: of CLIP or T5 only the text tower is read.
            source, report = type(self.model).from_pretrained(
                name, config=self.model.config, **settings
            )
        except Exception as error:
            raise unreachable("text encoder", name, error) from None
        # transformers fills missing weights with random numbers.
        unused = "pooler." if self.readout != "pooled" else ()
        missing = sorted(key for key in report["missing_keys"] if not key.startswith(unused))
        if missing:
            raise UserError(
                f"text encoder {name!r} lacks {len(missing)} weights, first: {missing[0]}; download"
                " it again"
            )
        state = source.state_dict()
        self.model.load_state_dict({key: state[key] for key in state if not key.startswith(unused)})

    def checkpoint_activations(self) -> None:
        """Keep only the inputs of its layers for the backward pass; see retrieval.models.blocks."""
        checkpoint_pretrained(self.model)

    def compile_blocks(self) -> None:
        """Call torch.compile for each of its layers."""
        compile_module_lists(self.model)

    def tokens(self, captions: list[str]) -> BatchEncoding:
        """Return input_ids and attention_mask of captions, int64 (N, L), on the CPU."""
        return self.tokenizer(
            captions if self.as_written else list(map(normalise_caption, captions)),
            padding=True,
            padding_side="right",  # positions of CLIP and GPT-2 count padding on the left
            truncation=True,
            max_length=self.max_tokens,
            return_attention_mask=True,
            return_tensors="pt",
        )

    def forward(self, captions: list[str]) -> torch.Tensor:
        """Encode N captions to (N, feature_dim)."""
        tokens = self.tokens(captions).to(self.model.device, non_blocking=True)
        return self.encode_tokens(tokens["input_ids"], tokens["attention_mask"])

    def encode_tokens(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Encode input_ids and attention_mask int64 (N, L), padded on the right."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        if self.readout == "pooled":
            return output.pooler_output
        hidden = output.last_hidden_state  # (N, L, feature_dim)
        num_tokens = attention_mask.sum(dim=1)  # (N,)
        if self.readout == "first":
            return hidden[:, 0]
        if self.readout == "mean":
            return (hidden * attention_mask[..., None]).sum(dim=1) / num_tokens[:, None]
        # The mask, not the token: if the end of text is also the padding (CLIP, GPT-2), ids do not
        # tell them apart. shape[0], not len(): an exported graph serves any number of captions.
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), num_tokens - 1]


def _num_positions(model: PreTrainedModel) -> int | None:
    """Return the most tokens that the position table allows; None for a model without a table."""
    for name, module in model.named_modules():
        if name.endswith("embeddings.position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa and its relatives count from padding_idx + 1
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - first
    longest = getattr(model.config, "max_position_embeddings", None)
    return None if longest == -1 else longest  # XLNet's -1 means no limit


def _build(config: PreTrainedConfig) -> PreTrainedModel:
    """Build the encoder of `config` with random weights, without head and without decoder."""
    auto = AutoModelForTextEncoding if config.is_encoder_decoder else AutoModel
    tower = _tower_class(config)
    try:
        if tower is not None:
            return tower(config).float()
        # float32 also for files in half precision: autocast converts at use
        return auto.from_config(config, dtype=torch.float32, **NO_CODE)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        found = (
            "the text encoder's config.json describes no text encoder that transformers can build"
            f" ({one_line(error)})"
        )
        raise UserError(f"{found}; copy it again, or take another text encoder") from None


def _tower_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """Return the class of the text tower of a model such as CLAP, which AutoModel does not know."""
    if type(config) in AutoModel._model_mapping or config.is_encoder_decoder:
        return None
    return getattr(transformers, type(config).__name__.replace("TextConfig", "TextModel"), None)


def text_architecture(name: str, dropout: float, allow_known: bool = False) -> dict[str, Any]:
    """Return the Hugging Face config of a text encoder, or of the text tower of CLIP and the like.

    Args:
        name: Hub name or folder.
        dropout: Value of every dropout that the config has.
        allow_known: If the hub is out of reach, use KNOWN_ARCHITECTURES and log a warning.

    Raises:
        UserError: It is absent or damaged, or no text encoder.
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
    """Return `config` as a dict with all dropouts set, without the path of its folder."""
    architecture = without_code(config.to_dict())
    architecture.pop("_name_or_path", None)
    return architecture | {
        setting: dropout for setting in DROPOUT_SETTINGS if setting in architecture
    }


def text_readout(name: str) -> str:
    """Return the readout of READOUTS that hub model or folder `name` was trained with.

    A sentence-transformers model names it. "last" for a model whose tokens do not see later ones
    (GPT-2, CLIP's text tower). "mean" for the encoder of an encoder-decoder (T5), as in Sentence-T5
    (arXiv 2108.08877). "first" for all others.

    Raises:
        UserError: The model is absent, or pools in another way.
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
    """Return the readout that a sentence-transformers model names; None for another model.

    Its modules after the pooling (Dense, Normalize) are ignored.
    """
    modules = _read_json(name, "modules.json")
    if modules is None:
        return None
    try:
        folder = next(module["path"] for module in modules if module["type"].endswith(".Pooling"))
        settings = _read_json(name, f"{folder}/config.json")
        # a name, a list of names, or, in older versions, a switch for each
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
    """Return the content of a file of hub model or folder `name`; None if it has no such file."""
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
    """Return True if the first token does not see the last one.

    One layer with random weights is tried on two texts that differ in their last token. No setting
    says it reliably: BERT and RoBERTa are also in the table of causal language models,
    `architectures` may be absent, and `is_causal` of CLIP's attention modules is False.
    """
    config = copy.deepcopy(config)
    config.num_hidden_layers, config.vocab_size = 1, max(config.pad_token_id or 0, 0) + 3
    tokens = torch.full((2, 3), config.vocab_size - 2)
    tokens[1, 2] += 1
    # fork_rng: the random numbers of the run stay the same
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        output = _build(config).eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        first, other = output.last_hidden_state[:, 0]
    return torch.allclose(first, other, atol=1e-6)


def load_tokenizer(name: str | Path, vocab_size: int | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a hub model or folder.

    A tokenizer that marks no end of a text (GPT-2) appends its end-of-text token, so that the last
    token is the same in all captions, as in CLIP, and a caption without a word has one token. One
    without padding uses that token for it, too.

    Args:
        name: Hub name or folder.
        vocab_size: Size of the model's vocabulary, if known.

    Raises:
        UserError: It is absent or damaged, or does not fit the vocabulary.
    """
    settings = loading(name, "tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name), **settings)
    except Exception as error:
        raise unreachable("text encoder", name, error) from None
    # For a folder without tokenizer files transformers makes a tokenizer that knows no word.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise UserError(
            f"text encoder {name}: its tokenizer knows no word; the tokenizer files are missing,"
            " copy them there again"
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(
                f"text encoder {name}: its tokenizer has no padding token; set pad_token in its"
                " tokenizer_config.json"
            )
        # in the vocabulary already: the table of embeddings stays as it is
        tokenizer.pad_token = tokenizer.eos_token
    if vocab_size is not None and len(tokenizer) > vocab_size:
        raise UserError(
            f"text encoder {name}: its tokenizer has {len(tokenizer)} tokens, its config.json says"
            f" vocab_size {vocab_size}; copy both again"
        )
    empty, word = tokenizer(["", "a"])["input_ids"]
    if empty and empty[-1] == word[-1]:
        return tokenizer
    end = tokenizer.eos_token
    backend = getattr(tokenizer, "backend_tokenizer", None)  # None if it is written in Python
    if end is None or backend is None:
        raise UserError(
            f"text encoder {name}: its tokenizer marks no end of a text, and has no token, or no"
            " way, to do so; set eos_token in its tokenizer_config.json, or take another text"
            " encoder"
        )
    begin = tokenizer.convert_ids_to_tokens(empty)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (*begin, end)}
    backend.post_processor = processors.TemplateProcessing(
        single=[*begin, "$A", end], special_tokens=list(ids.items())
    )
    return tokenizer
