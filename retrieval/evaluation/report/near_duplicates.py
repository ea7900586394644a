"""Near-duplicate captions: captions of different clips that say the same.

A user who asks with one of them is right to get either clip, but R@k counts one as wrong.

Similarity of two captions: the weight of their common words over that of all their words, each word
weighed by log(1 + N / n), where n of the N captions have it. So captions that differ in "the" stay
alike, and captions that differ in "dog" and "cat" do not. Order, repeats, case and punctuation do
not count; synonyms are different words. In scripts without blanks every character is a word.

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
MAX_PAIRS = 1000  # listed
# Thai and Lao, Burmese, Khmer, kana, Chinese characters
WITHOUT_BLANKS = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
)


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of captions whose right clips differ and whose similarity reaches THRESHOLD."""

    # similarity and two captions; the most similar pairs, at most MAX_PAIRS
    pairs: list[tuple[float, int, int]]
    num_pairs: int
    # N, clips of a caption's near-duplicates, without its own right clips
    also_right: list[list[int]]


def words(text: str) -> list[str]:
    """Split into runs of letters, marks and digits, in one case and Unicode form.

    A text without any is one word.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(
        character if unicodedata.category(character)[0] in "LMN" else " " for character in folded
    )
    return WITHOUT_BLANKS.sub(r" \1 ", kept).split() or [folded.strip()]


def find_near_duplicates(
    captions: Sequence[str], relevant: Sequence[Sequence[int]]
) -> NearDuplicates:
    """Compare every caption with all that share a word with it.

    Args:
        captions: N texts.
        relevant: For each caption the columns of its right clips.
    """
    vocabulary: dict[str, int] = {}
    rows = [
        sorted({vocabulary.setdefault(word, len(vocabulary)) for word in words(caption)})
        for caption in captions
    ]  # N, numbers of the words of each caption
    counts = np.bincount(np.concatenate(rows), minlength=len(vocabulary))
    weights = np.log1p(len(captions) / counts)  # (V,)
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
    """Rank text to audio in two forgiving ways.

    Args:
        scores: (N, B).
        relevant: For each caption the columns of its right clips.
        ranks: N arrays, the ranks as scored.
        also_right: `NearDuplicates.also_right`.

    Returns:
        Ranks with the clips of near-duplicates right as well, and ranks without those clips.
    """
    counted, left_out = list(ranks), list(ranks)
    for row, others in enumerate(also_right):
        if others:
            counted[row] = ranks_of_relevant(scores[row], sorted({*relevant[row], *others}))
            without = np.array(scores[row])
            without[others] = -np.inf
            left_out[row] = ranks_of_relevant(without, sorted(set(relevant[row])))
    return counted, left_out


def _most_similar(pairs: list[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
    return sorted(pairs, key=lambda pair: (-round(pair[0], 9), *pair[1:]))[:MAX_PAIRS]
