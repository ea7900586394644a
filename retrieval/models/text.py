"""Any Hugging Face text encoder: captions in, one vector a caption out (token 0 of the last layer)."""

import logging
import string
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from retrieval.errors import UserError, one_line
from retrieval.models.hub import local_files_only

logger = logging.getLogger(__name__)

# Names of the dropout settings in Hugging Face configs: RoBERTa, BERT, MPNet | DistilBERT | CLIP, Whisper | GPT-2.
DROPOUT_SETTINGS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop")

# Stands in for the hub's config.json where the hub is out of reach and only shapes are wanted (--dry-run, benchmarks).
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
    """Lower case, ASCII punctuation deleted and nothing put in its place (recipe of the published runs)."""
    return caption.lower().translate(_DELETE_PUNCTUATION)


class TextEncoder(nn.Module):
    """Architecture from a Hugging Face config as a dict; set `tokenizer` before captions are encoded."""

    def __init__(self, architecture: dict[str, Any], max_tokens: int):
        super().__init__()
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.max_tokens = max_tokens
        config = AutoConfig.for_model(**architecture)
        # float32 also where the files are in half precision: autocast takes what it needs.
        try:
            self.model = AutoModel.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
        except (ValueError, TypeError, ZeroDivisionError) as error:
            raise UserError(f"the text encoder's config.json describes no model ({one_line(error)}); copy it again") from None
        self.model.pooler = None  # its parameters would never receive a gradient
        self.feature_dim: int = config.hidden_size
        longest = self._longest_text()
        if longest is not None and max_tokens > longest:
            raise UserError(f"text_encoder.max_tokens={max_tokens}: the text encoder has positions for {longest} tokens; set it to that or less")

    def _longest_text(self) -> int | None:
        """Tokens that the position table holds; None where there is no table. RoBERTa and its kin count from padding_idx + 1."""
        for name, module in self.model.named_modules():
            if name.endswith("embeddings.position_embeddings") and isinstance(module, nn.Embedding):
                return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        return getattr(self.model.config, "max_position_embeddings", None)

    def load_pretrained(self, name: str) -> None:
        """Weights of hub model or folder `name`, which must have this architecture."""
        settings = {"dtype": torch.float32, "local_files_only": local_files_only(name), "output_loading_info": True}
        try:
            source, report = AutoModel.from_pretrained(name, **settings)
        except Exception as error:
            raise _unreachable(name, error) from None
        # transformers fills what the file lacks with random numbers.
        missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise UserError(f"text encoder {name!r} lacks {len(missing)} weights, first: {missing[0]}; download it again")
        self.model.load_state_dict({key: value for key, value in source.state_dict().items() if not key.startswith("pooler.")})

    def forward(self, captions: list[str]) -> torch.Tensor:
        """(N, feature_dim)"""
        tokens = self.tokenizer(
            [normalise_caption(caption) for caption in captions],
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).to(self.model.device, non_blocking=True)
        hidden = self.model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        return hidden[:, 0]  # (N, feature_dim)


def text_architecture(name: str, dropout: float, allow_known: bool = False) -> dict[str, Any]:
    """The Hugging Face config of hub model or folder `name` as a dict, with its dropouts set.

    `allow_known`: where the hub is out of reach, take the shapes from KNOWN_ARCHITECTURES and say so.
    """
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=local_files_only(name))
    except Exception as error:
        if not (allow_known and name in KNOWN_ARCHITECTURES):
            raise _unreachable(name, error) from None
        logger.warning("%s is out of reach: its shapes are taken from retrieval/models/text.py", name)
        config = AutoConfig.for_model(**KNOWN_ARCHITECTURES[name])
    return architecture_of(config, dropout)


def architecture_of(config: PreTrainedConfig, dropout: float) -> dict[str, Any]:
    """`config` as a dict, with every dropout it has set to `dropout`."""
    architecture = config.to_dict()
    return architecture | {setting: dropout for setting in DROPOUT_SETTINGS if setting in architecture}


def load_tokenizer(name: str | Path, vocab_size: int | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of hub model or folder `name`; it must fit a model of `vocab_size` tokens, where given."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name), local_files_only=local_files_only(name))
    except Exception as error:
        raise _unreachable(str(name), error) from None
    # Where a folder has no tokenizer files, transformers makes a tokenizer that knows no word.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise UserError(f"text encoder {name}: its tokenizer knows no word; the tokenizer files are missing, copy them there again")
    if tokenizer.pad_token is None:
        raise UserError(f"text encoder {name}: its tokenizer has no padding token; set pad_token in its tokenizer_config.json")
    if vocab_size is not None and len(tokenizer) > vocab_size:
        found = f"its tokenizer has {len(tokenizer)} tokens, its config.json says vocab_size {vocab_size}"
        raise UserError(f"text encoder {name}: {found}; copy both again")
    return tokenizer


def _unreachable(name: str, error: Exception) -> UserError:
    # transformers raises OSError, ValueError and others, with texts of many lines, for one and the same absence.
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    if Path(name).is_dir():
        return UserError(f"text encoder folder {name} cannot be loaded ({reason}); it needs config.json, tokenizer files and model.safetensors")
    if name.count("/") > 1:
        return UserError(f"text encoder folder {name} does not exist; set text_encoder.name to a folder, or to a hub name such as roberta-large")
    return UserError(
        f"text encoder {name!r} is no folder here and the Hugging Face hub did not give it ({reason}); "
        f"download it where there is internet (hf download {name} --local-dir weights/{Path(name).name}) "
        f"and set text_encoder.name=weights/{Path(name).name}"
    )
