"""Queries of several parts: sentences that should be heard, others that should not, and a sound.

score = (sum of weight x score of each sentence + weight x SOUND_SCALE x cosine of the sound)
        / (sum of these weights) - WITHOUT_WEIGHT x score of each sentence that should not be heard

Sentences are scored by `model.score`, with TAP from the frames. The first stage's scores are linear
in the query's vector, so one weighted sum of vectors finds the candidates. Dot products have no
fixed scale: in a query with a sound, models that use them compare sentences by cosines too.

Letters: P sentences of a query, n excerpts of a sound, K candidates, D = dim.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from retrieval.search.local.clips import unit
from retrieval.search.queries import Query
from retrieval.search.two_stage import TwoStage

# Chosen on scenes of the sample corpus's kinds (docs/search.md).
WITHOUT_WEIGHT = 0.5
SOUND_SCALE = 0.5  # cosines of two sounds spread about twice as far as scores of sentences


@dataclass(frozen=True)
class Parts:
    """A query of several parts, encoded.

    Attributes:
        text: float32 (P, D), of encode_text: sentences that should be heard, then those that
            should not.
        weights: float32 (P,), factors of the sentences' scores; below 0 if they should not be
            heard.
        num_heard: Number of sentences that should be heard.
        sounds: float32 (n, D), unit vectors of a sound's excerpts times the sound's factor; None
            without a sound.
    """

    text: torch.Tensor
    weights: np.ndarray
    num_heard: int
    sounds: np.ndarray | None


def weighed(query: Query, text: torch.Tensor, sounds: np.ndarray | None) -> Parts:
    """Apply the weights to the encoded parts of a query.

    Args:
        query: The query.
        text: float32 (P, D), of its sentences.
        sounds: float32 (n, D), vectors of its sound's excerpts; None without a sound.
    """
    shares = [weight for _, weight in query.texts]
    shares += [] if sounds is None else [query.audio_weight]
    shares = np.array(shares, np.float64) / max(shares)  # first, since a sum can overflow
    shares = shares / shares.sum()
    if sounds is not None:
        sounds = unit(sounds) * np.float32(SOUND_SCALE * shares[-1])
    weights = shares[: len(query.texts)].tolist()
    weights += [-WITHOUT_WEIGHT] * len(query.without)
    return Parts(text, np.array(weights, np.float32), len(query.texts), sounds)


def ranked(
    parts: Parts, two_stage: TwoStage, num_candidates: int, selection: Any
) -> tuple[list[int], list[float], list[float] | None]:
    """Rank clips by the weighted sum of the parts' scores.

    Args:
        parts: The query.
        two_stage: Scores texts against the clips.
        num_candidates: K, clips of the first stage that are scored.
        selection: Clips that may be found; None: all.

    Returns:
        Clips, best first, and their scores; of equal scores the clip of the lower number first.
        Of each clip the mean score of the sentences that should be heard, to be compared with that
        of unrelated ones; None for queries with a sound.

    Raises:
        UserError: A score is NaN.
    """
    store, pooling = two_stage.clips, two_stage.pooling
    by_cosines = parts.sounds is not None and pooling.similarity != "cosine"
    directions = pooling.directions(parts.text).cpu().numpy()  # (P, D)
    if by_cosines:
        directions = unit(directions)
    vectors = (parts.weights @ directions)[None]  # (1, D)
    if parts.sounds is not None:
        vectors = vectors + parts.sounds  # (n, D)
    found, first = store.nearest(vectors, num_candidates, selection, by_cosines)
    best: dict[int, float] = {}  # of a long sound the excerpt that is most alike counts
    for clip, score in zip(found.flat, first.flat, strict=True):
        best[int(clip)] = max(float(score), best.get(int(clip), -math.inf))
    clips = sorted(sorted(best, key=lambda clip: (-best[clip], clip))[:num_candidates])
    if not clips:
        return [], [], None
    indexed = store.vectors(clips)  # (K, D)
    if by_cosines:
        indexed = unit(indexed)
    if pooling.keeps_frames and len(parts.text):
        places = torch.tensor(clips, device=parts.text.device).expand(len(parts.text), -1)
        of_sentences = two_stage.rescore(parts.text, places).cpu().numpy()  # (P, K)
    else:
        of_sentences = directions @ indexed.T
    scores = parts.weights @ of_sentences  # (K,)
    judged = None
    if parts.sounds is None:
        judged = parts.weights[: parts.num_heard] @ of_sentences[: parts.num_heard]  # (K,)
    else:
        scores = scores + (parts.sounds @ indexed.T).max(axis=0)
    order = np.argsort(-scores, kind="stable")
    ranked_clips = [clips[place] for place in order]
    return ranked_clips, scores[order].tolist(), None if judged is None else judged[order].tolist()
