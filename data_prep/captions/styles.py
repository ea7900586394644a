"""Ask for a clip's captions in other styles, as users of a search type them, and judge the answers.

Each style has a prompt and its own faults. Texts of all styles hold Latin letters and the
punctuation of a sentence only, and do not speak of the task (paraphrases.py).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data_prep.captions.paraphrases import (
    MAX_WORDS,
    PROMPT,
    copy_fault,
    fault,
    form_fault,
    length_fault,
    normalised,
)

MAX_TAG_WORDS = 2
MIN_WORDS = 3  # of questions and of captions that exclude a sound
SAME_BEGINNING = 5  # letters: `thunder` and `thundering` count as one word
_NEGATION = re.compile(r"\b(?:no|not|without|never|nor|neither|lacking|minus|\w+n['’]t)\b", re.I)
_ENDING = """

Answer with a JSON list of {num_captions} strings and nothing else."""


def tag_fault(text: str, captions: Sequence[str]) -> str | None:
    """Return why `text` is not a tag of one or two words; None if it is one."""
    if found := form_fault(text):
        return found
    strange = next((sign for sign in text if not (sign.isalpha() or sign in " '’-")), None)
    if strange:
        return f"holds {strange!r}, which is in no tag"
    return length_fault(text, 1, MAX_TAG_WORDS) or copy_fault(text, captions)


def question_fault(text: str, captions: Sequence[str]) -> str | None:
    """Return why `text` is not a question; None if it is one."""
    if not text.endswith("?"):
        return "does not end with a question mark"
    return (
        form_fault(text) or length_fault(text, MIN_WORDS, MAX_WORDS) or copy_fault(text, captions)
    )


def negated_fault(text: str, captions: Sequence[str]) -> str | None:
    """Return why `text` does not exclude a sound that the captions lack; None if it does."""
    negation = _NEGATION.search(text)
    if not negation:
        return "excludes no sound: it holds no word such as no or without"
    if not normalised(text[: negation.start()]):
        return "names no sound before the excluded one"
    heard = {word[:SAME_BEGINNING] for caption in captions for word in normalised(caption).split()}
    excluded = [word for word in normalised(text[negation.end() :]).split() if len(word) > 2]
    if all(word[:SAME_BEGINNING] in heard for word in excluded):
        return "excludes what the captions name, or nothing"
    return (
        form_fault(text) or length_fault(text, MIN_WORDS, MAX_WORDS) or copy_fault(text, captions)
    )


@dataclass(frozen=True)
class Style:
    """A way to ask for a clip.

    Attributes:
        prompt: With {captions}, a numbered list, and {num_captions}.
        num_captions: How many a clip gets.
        fault: Of a text, given the captions of the clip so far and the new ones.
    """

    prompt: str
    num_captions: int
    fault: Callable[[str, Sequence[str]], str | None]


_HEARD = "Several people described the same sound recording:\n{captions}\n\n"
STYLES = {
    "tags": Style(
        _HEARD
        + "Someone looks for this recording with a search engine for sounds, and types one or two"
        " words. Write {num_captions} of such queries. Each one names the most prominent sound of"
        " the recording in one or two English words, without punctuation." + _ENDING,
        1,
        tag_fault,
    ),
    "questions": Style(
        _HEARD
        + "Someone looks for this recording and asks a question. Write {num_captions} of such"
        " questions. Each one is a single English question of 5 to 20 words that is answered by"
        " this recording, such as 'Where can I hear rain on a tin roof?'. Write numbers as words."
        + _ENDING,
        1,
        question_fault,
    ),
    "paraphrases": Style(PROMPT, 1, fault),
    "negated": Style(
        _HEARD
        + "Someone looks for this recording, and rules out a similar one that has another sound as"
        " well. Write {num_captions} of such queries. Each one is English, has 4 to 20 words, tells"
        " what is heard, and names one sound that often comes with it but is not heard here, such"
        " as 'rain but no thunder' or 'a crowd talks without any music'. Write numbers as words."
        + _ENDING,
        1,
        negated_fault,
    ),
}
