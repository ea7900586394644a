"""The tokenizer of a text encoder."""

from pathlib import Path

from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from retrieval.base.errors import UserError
from retrieval.models.hub import loading, unreachable


def load_tokenizer(name: str | Path, vocab_size: int | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of hub model or folder `name`; it must fit a model of `vocab_size` tokens,
    where given.

    Where it marks no end of a text (GPT-2), its end-of-text token is appended: the last token is
    then the same in all captions, as in CLIP, and a caption without a word is still one token.
    Where it has no padding, the end-of-text token is that as well.
    """
    settings = loading(name, "tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name), **settings)
    except Exception as error:
        raise unreachable("text encoder", name, error) from None
    # Where a folder has no tokenizer files, transformers makes a tokenizer that knows no word.
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
        found = (
            f"its tokenizer has {len(tokenizer)} tokens, its config.json says vocab_size"
            f" {vocab_size}"
        )
        raise UserError(f"text encoder {name}: {found}; copy both again")
    empty, word = tokenizer(["", "a"])["input_ids"]
    if not empty or empty[-1] != word[-1]:
        _append_end(tokenizer, empty, name)
    return tokenizer


def _append_end(tokenizer: PreTrainedTokenizerBase, begin: list[int], name: str | Path) -> None:
    """A text becomes `begin`, as before, its tokens and the end-of-text token."""
    # not in tokenizers that are written in Python
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if tokenizer.eos_token is None or backend is None:
        found = "its tokenizer marks no end of a text, and has no token, or no way, to do so"
        raise UserError(
            f"text encoder {name}: {found}; set eos_token in its tokenizer_config.json, or take"
            " another text encoder"
        )
    around = {
        token: tokenizer.convert_tokens_to_ids(token)
        for token in (*tokenizer.convert_ids_to_tokens(begin), tokenizer.eos_token)
    }
    single = [*tokenizer.convert_ids_to_tokens(begin), "$A", tokenizer.eos_token]
    backend.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=list(around.items())
    )
