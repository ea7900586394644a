"""Captions of different clips that say the same: who asks one of them is right to get either clip,
and R@k counts one as wrong.

Similarity of two captions: the words that both have over the words that one of them has, each word
weighed by log(1 + N / n), n of the N captions having it. So captions that differ in "the" stay
alike, and captions that differ in "dog" and "cat" do not. Order and number of the words do not
count, nor do case and punctuation; synonyms are other words. In scripts without blanks every
character is a word.

Letters: N captions, V words.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.evaluation.metrics.text_audio_retrieval.ranking import ranks_of_relevant

THRESHOLD = 0.8  # similarity from which on two captions count as nearly the same
ROUNDING = 1e-9
MAX_PAIRS = 1000  # of them are listed
# Thai and Lao, Burmese, Khmer, kana, Chinese characters
WITHOUT_BLANKS = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
)


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of captions whose right clips differ and whose similarity reaches THRESHOLD."""

    # similarity, two captions; the most similar ones, at most MAX_PAIRS
    pairs: list[tuple[float, int, int]]
    num_pairs: int
    # N, the clips of a caption's near-duplicates beside its own right ones
    also_right: list[list[int]]


def words(text: str) -> list[str]:
    """Runs of letters, marks and digits, in one case and Unicode form; a text without any is one
    word.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(
        character if unicodedata.category(character)[0] in "LMN" else " " for character in folded
    )
    return WITHOUT_BLANKS.sub(r" \1 ", kept).split() or [folded.strip()]


def find_near_duplicates(
    captions: Sequence[str], relevant: Sequence[Sequence[int]]
) -> NearDuplicates:
    """relevant[n] are the right clips of caption n. Every caption is compared with all that share a
    word with it.
    """
    rows, weights = _words_of(captions)
    totals = np.array([weights[row].sum() for row in rows])  # (N,) of all words of a caption
    captions_with: list[list[int]] = [[] for _ in weights]
    for caption, row in enumerate(rows):
        for word in row:
            captions_with[word].append(caption)
    having = [np.array(found) for found in captions_with]
    groups: dict[tuple[int, ...], int] = {}  # captions with the same right clips
    group = np.array(
        [groups.setdefault(tuple(sorted(set(columns))), len(groups)) for columns in relevant]
    )
    clips = list(groups)
    pairs, num_pairs, also_right = [], 0, []
    for caption, row in enumerate(rows):
        common = np.zeros(len(captions))
        for word in row:
            common[having[word]] += weights[word]
        similarity = common / (totals + totals[caption] - common)
        alike = np.flatnonzero((similarity > THRESHOLD - ROUNDING) & (group != group[caption]))
        others = {clip for index in np.unique(group[alike]).tolist() for clip in clips[index]}
        also_right.append(sorted(others - set(clips[group[caption]])))
        later = alike[alike > caption]
        num_pairs += len(later)
        best = later[np.argsort(-similarity[later], kind="stable")[:MAX_PAIRS]]
        pairs += [(min(1.0, float(similarity[other])), caption, int(other)) for other in best]
        if len(pairs) > 10 * MAX_PAIRS:
            pairs = _most_similar(pairs)
    return NearDuplicates(_most_similar(pairs), num_pairs, also_right)


def forgiving_ranks(
    scores: np.ndarray,
    relevant: Sequence[Sequence[int]],
    ranks: Sequence[np.ndarray],
    also_right: Sequence[Sequence[int]],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The text-to-audio ranks where the clips of near-duplicates count as right, and where they are
    left out of the ranking.
    """
    counted, left_out = list(ranks), list(ranks)
    for row, others in enumerate(also_right):
        if others:
            counted[row] = ranks_of_relevant(scores[row], sorted({*relevant[row], *others}))
            without = np.array(scores[row])
            without[others] = -np.inf
            left_out[row] = ranks_of_relevant(without, sorted(set(relevant[row])))
    return counted, left_out


def _words_of(captions: Sequence[str]) -> tuple[list[list[int]], np.ndarray]:
    """The numbers of the words of each caption, and the weights of the words, float64 (V,)."""
    vocabulary: dict[str, int] = {}
    rows = [
        sorted({vocabulary.setdefault(word, len(vocabulary)) for word in words(caption)})
        for caption in captions
    ]
    counts = np.bincount(np.concatenate(rows), minlength=len(vocabulary))
    return rows, np.log1p(len(captions) / counts)


def _most_similar(pairs: list[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
    return sorted(pairs, key=lambda pair: (-round(pair[0], 9), *pair[1:]))[:MAX_PAIRS]
