"""The question for paraphrases of a clip's captions, and what is accepted of the answer.

Language models wrap their lists in many ways, and some of what they list is no caption. An answer may be JSON (a list of strings, or any object
that holds strings; in a code fence, with text around it) or numbered lines. Each caption is judged by itself, so that a bad one costs no good one.
"""

import json
import re
import string
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

MIN_WORDS, MAX_WORDS = 5, 25  # Clotho's own captions have 8 to 20
PROMPT = """Several people described the same sound recording:
{captions}

Write {num_captions} more descriptions of it, as other people might have worded them. Each one is a single English sentence of 8 to 20 words, \
tells the same sounds and adds none, and differs in its wording from those above and from the others. Write numbers as words.

Answer with a JSON list of {num_captions} strings and nothing else."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_BULLET = re.compile(r"\s*(?:\d+\s*[.):]|[-*•])\s+")
_META = re.compile(
    r"^(here (are|is|'s)|here's|sure\b|certainly\b|of course\b|as an? (ai|language model)\b|i('m| am) sorry|i can('t|not)\b)"
    r"|\b(paraphrase[sd]?|paraphrasing|captions?|rephras(e[sd]?|ing)|rewritten|json)\b|:$"
)


def question(captions: Sequence[str], num_captions: int) -> str:
    """The prompt for `num_captions` further captions of the clip that has `captions`."""
    listed = "\n".join(f"{number}. {caption}" for number, caption in enumerate(captions, 1))
    return PROMPT.format(captions=listed, num_captions=num_captions)


def listed_texts(answer: str) -> list[str]:
    """What `answer` lists: the strings of its first JSON value with any, else its numbered lines; no texts where there are neither."""
    answer = re.sub(r"<think>.*?</think>", "", answer, flags=re.DOTALL)
    unpunctuated = re.sub(r",\s*([\]}])", r"\1", answer)  # a comma before the bracket is not JSON, but common
    texts = next(filter(None, map(_strings, _json_values(unpunctuated))), None)
    if texts is None:
        texts = [line for line in answer.splitlines() if _BULLET.match(line)]
    return [_BULLET.sub("", text, count=1).strip(' "“”*') if _BULLET.match(text) else text.strip(' "“”*') for text in texts]


def _json_values(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    for match in re.finditer(r"[\[{]", text):
        try:
            yield decoder.raw_decode(text, match.start())[0]
        except (ValueError, RecursionError):
            continue


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for item in items for text in _strings(item)]


def normalised(caption: str) -> str:
    """Two captions of one normalised form are copies: lower case, no ASCII punctuation, single blanks."""
    return " ".join(caption.lower().translate(_PUNCTUATION).split())


def fault(text: str, captions: Sequence[str]) -> str | None:
    """Why `text` is no new caption of a clip that has `captions`; None if it is one."""
    num_words = len(text.split())
    if not text.isprintable():
        return "holds a line break or control character"
    if any(character.isdigit() for character in text):
        return "holds digits"
    if any(character.isalpha() and "LATIN" not in unicodedata.name(character, "") for character in text):
        return "is not written in Latin letters"
    if _META.search(text.lower().replace("’", "'")):
        return "speaks of the task"
    if not MIN_WORDS <= num_words <= MAX_WORDS:
        return f"has {num_words} words, expected {MIN_WORDS} to {MAX_WORDS}"
    if normalised(text) in map(normalised, captions):
        return "is a copy"
    return None


def new_captions(texts: Sequence[str], captions: Sequence[str], num_captions: int) -> tuple[list[str], str]:
    """The first `num_captions` of `texts` that are new captions, and what is wrong with the last of the others (empty: nothing)."""
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
