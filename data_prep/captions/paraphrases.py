"""The question for paraphrases of a clip's captions, and what is accepted of the answer.

Language models wrap their lists in many ways, and some of what they list is no caption. An answer
may be JSON (a list of strings, or any object that holds strings; in a code fence, with text around
it) or numbered lines. Each caption is judged by itself, so that a bad one costs no good one.

A caption has 5 to 25 words of Latin letters and the punctuation of a sentence (. , ; : ! ? quotes,
apostrophes, dashes), and nothing else: no digits or other numerals, brackets, HTML, markdown,
addresses, emoji or invisible characters. Quotes and marks around all of it are taken off; whatever
else is wrong is not mended but asked again, which costs a question and never a caption with
something left in it.
"""

import json
import re
import string
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

MIN_WORDS, MAX_WORDS = 5, 25  # Clotho's own captions have 8 to 20
# What is read of an answer, its thoughts left out; five captions have 1,000. So many brackets are
# tried in 1 s, a million take a minute.
MAX_CHARACTERS = 10_000
PROMPT = """Several people described the same sound recording:
{captions}

Write {num_captions} more descriptions of it, as other people might have worded them. Each one is a single English sentence of 8 to 20 words, \
tells the same sounds and adds none, and differs in its wording from those above and from the others. Write numbers as words.

Answer with a JSON list of {num_captions} strings and nothing else."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_OF_SENTENCES = frozenset(" .,;:!?'\"‘’“”-‐‑–—…")
_BULLET = re.compile(r"\s*(?:\d+\s*[.):]|[-*•–—])\s+")
_MARKS = " *_`"
_QUOTED = re.compile('"[^"]*"|“[^“”]*”')
_ADDRESS = re.compile(r"\w\w\.\w\w")  # example.org, dog.wav; not "a.m."
_META = re.compile(
    r"^(here (are|is|'s)|here's|sure\b|certainly\b|of course\b|as an? (ai|language model)\b|i('m|"
    r" am) sorry|i can('t|not)\b)"
    r"|\b(paraphrase[sd]?|paraphrasing|captions?|rephras(e[sd]?|ing)|rewritten|json)\b|:$"
)


def question(captions: Sequence[str], num_captions: int) -> str:
    """The prompt for `num_captions` further captions of the clip that has `captions`."""
    listed = "\n".join(f"{number}. {caption}" for number, caption in enumerate(captions, 1))
    return PROMPT.format(captions=listed, num_captions=num_captions)


def listed_texts(answer: str) -> list[str]:
    """What `answer` lists: the strings of its first JSON value with any, else its numbered lines;
    no texts where there are neither.
    """
    answer = answer.rpartition("</think>")[2][:MAX_CHARACTERS]
    # a comma before the bracket is not JSON, but common
    unpunctuated = re.sub(r",\s*([\]}])", r"\1", answer)
    texts = next(filter(None, map(_strings, _json_values(unpunctuated))), None)
    if texts is None:
        texts = [line for line in answer.splitlines() if _BULLET.match(line)]
    return [_bare(text) for text in texts]


def _bare(text: str) -> str:
    """`text` without a bullet or number in front, and without the marks and quotes around all of
    it.
    """
    bullet = _BULLET.match(text)
    text = text[bullet.end() if bullet else 0 :].strip(_MARKS)
    return text[1:-1].strip(_MARKS) if _QUOTED.fullmatch(text) else text


def _json_values(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    for match in re.finditer(r"[\[{]", text):
        try:
            yield decoder.raw_decode(text, match.start())[0]
        except (ValueError, RecursionError):
            continue


def _strings(value: Any) -> list[str]:
    """All strings of a JSON value, in their order. A loop, as JSON may be deeper than Python's
    functions may call themselves.
    """
    texts, left = [], [value]
    while left:
        value = left.pop()
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, (list, dict)):
            left.extend(reversed(value.values() if isinstance(value, dict) else value))
    return texts


def normalised(caption: str) -> str:
    """Two captions of one normalised form are copies: lower case, no ASCII punctuation, single
    blanks.
    """
    return " ".join(caption.lower().translate(_PUNCTUATION).split())


def fault(text: str, captions: Sequence[str]) -> str | None:
    """Why `text` is no new caption of a clip that has `captions`; None if it is one."""
    num_words = len(text.split())
    if not text.isprintable():
        return "holds a line break or control character"
    if any(
        character.isalpha() and not unicodedata.name(character, "").startswith("LATIN ")
        for character in text
    ):
        return "is not written in Latin letters"
    if any(character.isnumeric() for character in text):  # also ½ and Ⅳ
        return "holds digits"
    if strange := next(
        (
            character
            for character in text
            if not (character.isalpha() or character in _OF_SENTENCES)
        ),
        None,
    ):
        return f"holds {strange!r}, no letter and no punctuation of a sentence"
    if _ADDRESS.search(text):
        return "holds an address, or no blank after a sentence"
    if text.count('"') % 2 or text.count("“") != text.count("”"):
        return "holds a quote without its other end"
    if _META.search(text.lower().replace("’", "'")):
        return "speaks of the task"
    if not MIN_WORDS <= num_words <= MAX_WORDS:
        return f"has {num_words} words, expected {MIN_WORDS} to {MAX_WORDS}"
    if normalised(text) in map(normalised, captions):
        return "is a copy"
    return None


def new_captions(
    texts: Sequence[str], captions: Sequence[str], num_captions: int
) -> tuple[list[str], str]:
    """The first `num_captions` of `texts` that are new captions, and what is wrong with the last of
    the others (empty: nothing).
    """
    new: list[str] = []
    reason = "" if texts else "the answer holds neither JSON with captions nor numbered lines"
    for text in texts:
        if len(new) == num_captions:
            break
        if found := fault(text, [*captions, *new]):
            shown = " ".join(text[:60].split())
            reason = f"{shown!r} {found}"
        else:
            new.append(text)
    if not reason and len(new) < num_captions:
        reason = f"{len(texts)} captions, {num_captions} were asked for"
    return new, reason
