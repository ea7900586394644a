"""The tokenizer of a text encoder."""

from pathlib import Path

from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from retrieval.base.errors import UserError
from retrieval.models.hub import loading, unreachable


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
