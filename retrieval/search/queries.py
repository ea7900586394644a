"""Queries of one or several sentences and a sound; checks of their words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import numpy as np

from retrieval.base.errors import UserError, one_line
from retrieval.models.text import TextEncoder, normalise_caption

LONGEST_SHOWN = 60  # characters of a query in a message
LONGEST = 100_000  # characters of a query: the tokenizer reads all of them
WORDS_CHECKED = 100

# a file, or samples (S,) or (S, channels) and their rate in Hz
Sound = Path | str | tuple[np.ndarray, int]


@dataclass(frozen=True)
class Query:
    """Sentences and a sound to search for together, and sentences that should not be heard.

    Attributes:
        texts: Sentences that should all be heard, each with its weight above 0.
        without: Sentences that should not be heard.
        audio: A sound that answers should be like; None: none.
        audio_weight: Weight of the sound beside those of the sentences.
    """

    texts: tuple[tuple[str, float], ...] = ()
    without: tuple[str, ...] = ()
    audio: Sound | None = None
    audio_weight: float = 1.0

    @classmethod
    def of(
        cls,
        text: str | None = None,
        *,
        also: str | Sequence[str | tuple[str, float]] = (),
        without: str | Sequence[str] = (),
        audio: Sound | None = None,
        audio_weight: float = 1.0,
    ) -> "Query":
        """Make a query from plain values, as programs and forms give them.

        Args:
            text: A sentence, of weight 1; None: none.
            also: Further sentences; a weight beside one is relative to 1.
            without: Sentences that should not be heard.
            audio: A sound.
            audio_weight: Its weight.

        Raises:
            UserError: Nothing to search for, a weight that is not above 0, or a repeated sentence.
        """
        texts = () if text is None else ((text, 1.0),)
        for own in (also,) if isinstance(also, str) else also or ():
            pair = (own, 1.0) if isinstance(own, str) else tuple(own)
            if len(pair) != 2 or not isinstance(pair[0], str):
                raise UserError(f"also takes sentences, or pairs with a weight, found {own!r}")
            texts += (pair,)
        without = (without,) if isinstance(without, str) else tuple(without or ())
        query = cls(texts, without, audio, audio_weight)
        query.check()
        return query

    @property
    def sentences(self) -> tuple[str, ...]:
        """All sentences: those that should be heard, then those that should not."""
        return (*(text for text, _ in self.texts), *self.without)

    @property
    def is_plain(self) -> bool:
        """True if it is one sentence and nothing else."""
        return len(self.texts) == 1 and not self.without and self.audio is None

    def check(self) -> None:
        """Raise UserError for an empty query, a wrong weight, or a repeated sentence."""
        if not self.texts and self.audio is None:
            found = (
                f"has only `without`, {short(self.without[0])!r}" if self.without else "is empty"
            )
            raise UserError(f"the query {found}; add a sentence or a sound to search for")
        weights = [(repr(short(text)), weight) for text, weight in self.texts]
        weights += [("the sound", self.audio_weight)] if self.audio is not None else []
        for name, weight in weights:
            is_number = isinstance(weight, Real) and math.isfinite(weight)
            if not is_number or weight <= 0:
                hint = "; for what should not be heard there is `without`" if is_number else ""
                raise UserError(f"the weight of {name} must be above 0, found {weight!r}{hint}")
        seen: set[str] = set()
        for sentence in self.sentences:
            plain = " ".join(normalise_caption(sentence).split()).casefold()
            if plain in seen:
                raise UserError(
                    f"the query names {short(sentence)!r} twice; name each sentence once, to be"
                    " heard or not"
                )
            seen.add(plain)

    def __str__(self) -> str:
        """Describe it in one line: one sentence is itself."""
        parts = [text if weight == 1 else f"{weight:g} {text}" for text, weight in self.texts]
        if self.audio is not None:
            name = "a sound" if isinstance(self.audio, tuple) else str(self.audio)
            parts.append(name if self.audio_weight == 1 else f"{self.audio_weight:g} {name}")
        return " + ".join(parts) + "".join(f" - {text}" for text in self.without)


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


def check_sentences(query: str | Query, encoder: TextEncoder) -> None:
    """Check all sentences of a query as check_query does. Raises UserError."""
    if isinstance(query, str):
        return check_query(query, encoder)
    query.check()
    for sentence in query.sentences:
        check_query(sentence, encoder)


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
