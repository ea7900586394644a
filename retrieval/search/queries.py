"""Sentences that are asked: what cannot be asked at all, and what the asker should know of the
rest.
"""

from pathlib import Path

from retrieval.base.errors import UserError, one_line
from retrieval.evaluation.submission import read_queries
from retrieval.models.text import TextEncoder, normalise_caption

LONGEST_SHOWN = 60  # characters of a query in a message
LONGEST = 100_000  # characters of a query: the tokenizer reads all of them
WORDS_CHECKED = 100


def check_query(query: str, encoder: TextEncoder) -> None:
    """Raises UserError for a query without words, or of which the model knows none."""
    if len(query) > LONGEST:
        raise UserError(
            f"the query has {len(query):,} characters, more than {LONGEST:,}; describe the sound in"
            " a sentence"
        )
    if any("\ud800" <= character <= "\udfff" for character in query):
        raise UserError("the query is not valid UTF-8")
    if not query.strip():
        raise UserError("the query is empty; describe the sound in words")
    if not any(character.isalnum() for character in query):
        raise UserError(f"the query {_short(query)!r} has no words; describe the sound in words")
    words = query.split()[:WORDS_CHECKED]
    if len(_unknown(words, encoder)) == len(words):
        raise UserError(
            f"the text encoder knows no word of the query {_short(query)!r}; use the language and"
            " the words of its training captions"
        )


def query_notes(query: str, encoder: TextEncoder) -> str | None:
    """What is not heard of a query: words that the model does not know, and those beyond its
    longest text.
    """
    notes = []
    if unknown := _unknown(query.split()[:WORDS_CHECKED], encoder):
        notes.append(
            "the text encoder does not know:"
            f" {', '.join(map(_short, unknown[:5]))}{', ...' if len(unknown) > 5 else ''}"
        )
    num_tokens = len(
        encoder.tokenizer(query if encoder.as_written else normalise_caption(query))["input_ids"]
    )
    if encoder.max_tokens is not None and num_tokens > encoder.max_tokens:
        notes.append(
            f"the query has {num_tokens} tokens, of which the first {encoder.max_tokens} count"
        )
    return "; ".join(notes) or None


def _unknown(words: list[str], encoder: TextEncoder) -> list[str]:
    """Words whose tokens are all the tokenizer's unknown one; byte-level tokenizers have none."""
    tokenizer = encoder.tokenizer
    if tokenizer.unk_token_id is None or not words:
        return []
    plain = [word if encoder.as_written else normalise_caption(word) for word in words]
    tokens = tokenizer([text or "." for text in plain], add_special_tokens=False)["input_ids"]
    return [
        word
        for word, text, own in zip(words, plain, tokens)
        if text and set(own) <= {tokenizer.unk_token_id}
    ]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."


def read_query_file(path: Path) -> list[str]:
    """A query a line, or the column `caption` or `query` of a CSV. Raises UserError."""
    if path.suffix.lower() == ".csv":
        return read_queries(path)
    try:
        queries = [
            line.strip()
            for line in path.read_text(encoding="utf-8-sig").splitlines()
            if line.strip()
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--queries {path} cannot be read ({one_line(error)}); expected a query a line, or a"
            " CSV with a column caption"
        ) from None
    if not queries:
        raise UserError(f"--queries {path} holds no query")
    return queries
