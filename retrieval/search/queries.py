"""Check the sentences of queries, and note the words that the model does not read."""

from pathlib import Path

from retrieval.base.errors import UserError, one_line
from retrieval.models.text import TextEncoder, normalise_caption

LONGEST_SHOWN = 60  # characters of a query in a message
LONGEST = 100_000  # characters of a query: the tokenizer reads all of them
WORDS_CHECKED = 100


def check_query(query: str, encoder: TextEncoder) -> None:
    """Raise UserError for a query without words, or without any word that the model knows."""
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
        raise UserError(f"the query {short(query)!r} has no words; describe the sound in words")
    words = query.split()[:WORDS_CHECKED]
    if len(unknown_words(words, encoder)) == len(words):
        raise UserError(
            f"the text encoder knows no word of the query {short(query)!r}; use the language and"
            " the words of its training captions"
        )


def query_notes(query: str, encoder: TextEncoder) -> str | None:
    """Name unknown words, and tokens beyond the longest text that the model reads; None without."""
    notes = []
    if unknown := unknown_words(query.split()[:WORDS_CHECKED], encoder):
        more = ", ..." if len(unknown) > 5 else ""
        notes.append(f"the text encoder does not know: {', '.join(map(short, unknown[:5]))}{more}")
    text = query if encoder.as_written else normalise_caption(query)
    num_tokens = len(encoder.tokenizer(text)["input_ids"])
    if encoder.max_tokens is not None and num_tokens > encoder.max_tokens:
        notes.append(
            f"the query has {num_tokens} tokens, of which the first {encoder.max_tokens} count"
        )
    return "; ".join(notes) or None


def unknown_words(words: list[str], encoder: TextEncoder) -> list[str]:
    """Return the words with only unknown tokens; byte-level tokenizers know every word."""
    tokenizer = encoder.tokenizer
    if tokenizer.unk_token_id is None or not words:
        return []
    plain = [word if encoder.as_written else normalise_caption(word) for word in words]
    tokens = tokenizer([text or "." for text in plain], add_special_tokens=False)["input_ids"]
    return [
        word
        for word, text, own in zip(words, plain, tokens, strict=True)
        if text and set(own) <= {tokenizer.unk_token_id}
    ]


def short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."


def read_query_file(path: Path) -> list[str]:
    """Read one query a line, or the column `caption` or `query` of a CSV. Raises UserError."""
    if path.suffix.lower() == ".csv":
        # here, because opening an index does not need it
        from retrieval.evaluation.submission import read_queries

        return read_queries(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--queries {path} cannot be read ({one_line(error)}); expected a query a line, or a"
            " CSV with a column caption"
        ) from None
    queries = [line.strip() for line in lines if line.strip()]
    if not queries:
        raise UserError(f"--queries {path} holds no query")
    return queries
