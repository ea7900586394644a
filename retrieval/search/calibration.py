"""Score that unrelated sentences reach on an index; an answer below it is no match.

1. Score general sentences (sentences.py) against the excerpts that are nearest to any of them.
2. Set aside pairs that may be related: with each excerpt, the share RELATED of the sentences that
   scores best. A recording holds only a few sounds.
3. Take each sentence's highest score among the other pairs. The result is the quantile BELOW of
   these.

A plain quantile of the best scores would be wrong: many of the sentences describe sounds of a
general collection, few describe those of a folder of birds. benchmarks/search_queries.py measures
the errors of the result.

Letters: S sentences, M excerpts, D = dim.
"""

from collections.abc import Callable

import numpy as np
import torch

from retrieval.models.dual_encoder import DualEncoder, eval_mode
from retrieval.models.text import TextEncoder
from retrieval.search.queries import unknown_words
from retrieval.search.sentences import SENTENCES, spread
from retrieval.search.store import ClipStore
from retrieval.search.two_stage import TwoStage

MOST_SENTENCES = 100
FEWEST_SENTENCES = 20  # whose words the model knows
NEAREST = 10  # excerpts to each sentence; together up to 1,000, which TAP compares with all of them
RELATED = 0.03  # share of the sentences that count as related to an excerpt
BELOW = 0.95  # share of the sentences whose highest unrelated score is below the result


@torch.no_grad()
def unrelated_score(
    model: DualEncoder,
    clips: ClipStore,
    encode_text: Callable[[list[str]], torch.Tensor] | None = None,
) -> float | None:
    """Measure the score that unrelated sentences reach on an index.

    Args:
        model: The model of the index.
        clips: The index.
        encode_text: Replaces model.encode_text, such as by an encoder in 8 bit.

    Returns:
        The score, on the scale of answers; None if the index is empty, or if the model knows
        all words of fewer than FEWEST_SENTENCES sentences.

    Raises:
        UserError: A score is NaN.
    """
    sentences = known_sentences(model.text_encoder)
    if len(sentences) < FEWEST_SENTENCES or not len(clips):
        return None
    with eval_mode(model):
        text = (encode_text or model.encode_text)(sentences).float()  # (S, D)
    directions = model.pooling.directions(text).cpu().numpy()
    found = np.unique(clips.nearest(directions, NEAREST)[0])  # (M,)
    if not model.pooling.keeps_frames:
        return highest_unrelated(directions @ clips.vectors(found.tolist()).T)
    places = torch.from_numpy(found).to(text.device).expand(len(text), -1)  # (S, M)
    return highest_unrelated(TwoStage(model.pooling, clips).rescore(text, places).cpu().numpy())


def highest_unrelated(scores: np.ndarray) -> float | None:
    """Return the score that the share BELOW of the sentences stays under with unrelated excerpts.

    Args:
        scores: (S, M), each sentence with each excerpt.

    Returns:
        The score; None if each sentence may be related to all excerpts.
    """
    num_related = max(1, round(RELATED * len(scores)))
    least = np.partition(scores, -num_related, axis=0)[-num_related]  # (M,), of a related sentence
    highest = np.where(scores < least, scores, -np.inf).max(axis=1)  # (S,)
    highest = highest[np.isfinite(highest)]
    return float(np.quantile(highest, BELOW)) if len(highest) else None


def known_sentences(encoder: TextEncoder) -> list[str]:
    """Return at most MOST_SENTENCES sentences, of all groups, whose words the model knows."""
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    unknown = set(unknown_words(words, encoder))
    known = [sentence for sentence in SENTENCES if unknown.isdisjoint(sentence.split())]
    return spread(MOST_SENTENCES, known)
