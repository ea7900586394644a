"""Ask for paraphrases of a clip's captions, and judge the answer.

Language models wrap their lists in many ways, and list other things beside captions. An answer may
be JSON (a list of strings, or any object that holds strings; in a code fence, with text around it)
or numbered lines. Each caption is judged by itself, so that a bad one does not cost the good ones.

A caption has 5 to 25 words of Latin letters and the punctuation of a sentence (. , ; : ! ? quotes,
apostrophes, dashes), and nothing else: no digits or other numerals, brackets, HTML, markdown,
addresses, emoji or invisible characters. Quotes and marks around a whole caption are removed. A
caption with another fault is refused and asked for again: that costs less than a bad caption.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Sequence

from retrieval.base.captions import normalise_caption

MIN_WORDS, MAX_WORDS = 5, 25  # Clotho's own captions have 8 to 20
# Of an answer, after its thoughts; five captions have 1,000. Trying as many brackets takes 1 s, a
# million take a minute.
MAX_CHARACTERS = 10_000
PROMPT = """Several people described the same sound recording:
{captions}

Write {num_captions} more descriptions of it, as other people might have worded them. \
Each one is a single English sentence of 8 to 20 words, \
tells the same sounds and adds none, and differs in its wording from those above and from the \
others. Write numbers as words.

Answer with a JSON list of {num_captions} strings and nothing else."""

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


def question(captions: Sequence[str], num_captions: int, prompt: str = PROMPT) -> str:
    """Return the prompt for `num_captions` more captions of a clip."""
    listed = "\n".join(f"{number}. {caption}" for number, caption in enumerate(captions, 1))
    return prompt.format(captions=listed, num_captions=num_captions)


def listed_texts(answer: str) -> list[str]:
    """Return the strings of the first JSON value that holds some, or else the numbered lines.

    Bullets and numbers in front, and marks and quotes around a text, are removed.
    """
    answer = answer.rpartition("</think>")[2][:MAX_CHARACTERS]
    # a comma before the closing bracket is not JSON, but common
    unpunctuated = re.sub(r",\s*([\]}])", r"\1", answer)
    found = _json_strings(unpunctuated)
    if not found:
        found = [line for line in answer.splitlines() if _BULLET.match(line)]
    texts = []
    for text in found:
        bullet = _BULLET.match(text)
        text = text[bullet.end() if bullet else 0 :].strip(_MARKS)
        texts.append(text[1:-1].strip(_MARKS) if _QUOTED.fullmatch(text) else text)
    return texts


def _json_strings(text: str) -> list[str]:
    """Return all strings of the first JSON value in `text` that holds some, in order."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"[\[{]", text):
        try:
            left = [decoder.raw_decode(text, match.start())[0]]
        except (ValueError, RecursionError):
            continue
        texts = []
        while left:  # no recursion: JSON may be deeper than Python's stack
            value = left.pop()
            if isinstance(value, str):
                texts.append(value)
            elif isinstance(value, (list, dict)):
                left.extend(reversed(value.values() if isinstance(value, dict) else value))
        if texts:
            return texts
    return []


def normalised(caption: str) -> str:
    """Return a caption in lower case, without ASCII punctuation: copies have the same form."""
    return " ".join(normalise_caption(caption).split())


def fault(text: str, captions: Sequence[str]) -> str | None:
    """Return why `text` is not a new caption of a clip that has `captions`; None if it is one."""
    return (
        form_fault(text) or length_fault(text, MIN_WORDS, MAX_WORDS) or copy_fault(text, captions)
    )


def form_fault(text: str) -> str | None:
    """Return why `text` is no plain text, or speaks of the task; None if it is fine."""
    if not text.isprintable():
        return "holds a line break or control character"
    letters = [character for character in text if character.isalpha()]
    if not all(unicodedata.name(letter, "").startswith("LATIN ") for letter in letters):
        return "is not written in Latin letters"
    if any(character.isnumeric() for character in text):  # also ½ and Ⅳ
        return "holds digits"
    strange = [sign for sign in text if not (sign.isalpha() or sign in _OF_SENTENCES)]
    if strange:
        return f"holds {strange[0]!r}, no letter and no punctuation of a sentence"
    if _ADDRESS.search(text):
        return "holds an address, or no blank after a sentence"
    if text.count('"') % 2 or text.count("“") != text.count("”"):
        return "holds a quote without its other end"
    if _META.search(text.lower().replace("’", "'")):
        return "speaks of the task"
    return None


def length_fault(text: str, fewest: int, most: int) -> str | None:
    """Return why `text` has too few or too many words; None if it has not."""
    num_words = len(text.split())
    if fewest <= num_words <= most:
        return None
    return f"has {num_words} words, expected {fewest} to {most}"


def copy_fault(text: str, captions: Sequence[str]) -> str | None:
    """Return why `text` is a copy of one of the captions; None if it is not."""
    return "is a copy" if normalised(text) in map(normalised, captions) else None


def new_captions(
    texts: Sequence[str],
    captions: Sequence[str],
    num_captions: int,
    fault_of: Callable[[str, Sequence[str]], str | None] = fault,
) -> tuple[list[str], str]:
    """Choose captions among the texts of an answer.

    Args:
        texts: From `listed_texts`.
        captions: Captions of the clip so far.
        num_captions: How many to choose.
        fault_of: Returns why a text is no caption; None if it is one.

    Returns:
        The new captions, and the fault of the last refused text (empty: none).
    """
    new: list[str] = []
    reason = "" if texts else "the answer holds neither JSON with captions nor numbered lines"
    for text in texts:
        if len(new) == num_captions:
            break
        if found := fault_of(text, [*captions, *new]):
            shown = " ".join(text[:60].split())
            reason = f"{shown!r} {found}"
        else:
            new.append(text)
    if not reason and len(new) < num_captions:
        reason = f"{len(texts)} captions, {num_captions} were asked for"
    return new, reason
