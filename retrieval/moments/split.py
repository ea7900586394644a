"""Answers to all queries of a split, by one process or several. Letters: Q queries."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch

from retrieval.base.exchange import gather_rows, rank, world_size
from retrieval.base.progress import bar
from retrieval.data import as_float
from retrieval.moments.files import Answer, Truth
from retrieval.moments.locator import Heard, Located, Locator
from retrieval.moments.result import MomentResult, format_metrics, score_answers
from retrieval.moments.spans import Moment

TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class SplitMoments:
    """Scored answers to all queries of a split, with the parts of EvaluationResult for a run."""

    split: str
    result: MomentResult

    best_by: ClassVar = "R1@0.7"  # the metric that chooses the best epoch
    chance: ClassVar[dict[str, Any]] = {}

    @cached_property
    def main(self) -> dict[str, float]:
        """The metrics by name, as fractions."""
        return self.result.metrics

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        return {"moments": self.main}

    @property
    def curves(self) -> dict[str, float]:
        """Metrics by SPLIT/moments/METRIC, as curves and columns are named."""
        return {f"{self.split}/moments/{name}": value for name, value in self.main.items()}

    def table(self) -> str:
        """Format the metrics in percent, as lines of text."""
        return format_metrics(self.result)


@torch.no_grad()
def located_clips(locator: Locator, split: Any) -> "list[tuple[int, Located]]":
    """Locate the queries of this process's share of a split's clips.

    Args:
        locator: Finds them.
        split: ClipSplit with moments, or FrameSplit of clips no longer than the model's.

    Returns:
        Number of the first query, and the answers to all queries of its clip, for each clip that
        has some.
    """
    model, found, number = locator.model, [], 0
    share = range(rank() * len(split) // world_size(), (rank() + 1) * len(split) // world_size())
    shown = bar(total=len(share), desc=f"moments of {split.name}", unit="clip", leave=False)
    with shown as progress:
        for clip, queries in enumerate(split.moments):
            first, number = number, number + len(queries)
            if clip not in share or not queries:
                continue
            texts = [query.query for query in queries]
            with locator.listening():
                text = torch.cat(
                    [
                        model.encode_text(texts[start : start + TEXTS_AT_ONCE]).float()
                        for start in range(0, len(texts), TEXTS_AT_ONCE)
                    ]
                )
            found.append((first, locator.locate(text, heard_of_split(locator, split, clip))))
            progress.update()
    return found


def heard_of_split(locator: Locator, split: Any, clip: int) -> Iterable[Heard]:
    """Return the excerpts of a clip of a split, of its sound or its cached frames."""
    if not split.holds_frames:
        return locator.hear([as_float(split.read_stored(clip))])
    features = torch.from_numpy(split.read(clip)).to(locator.model.temperature.device)
    with locator.listening():
        frames = locator.model.audio_projection(features).float()
    return [Heard(0, int(split.split.num_samples[clip]), frames)]


def truths_of(split: Any) -> list[Truth]:
    """List the queries of a split clip by clip, as in files of moments."""
    sounds = split.split if split.holds_frames else split
    seconds = (sounds.num_samples / sounds.sample_rate).tolist()
    return [
        Truth(query.qid, query.query, clip_id, length, list(query.windows))
        for clip_id, length, queries in zip(split.clip_ids, seconds, split.moments, strict=True)
        for query in queries
    ]


def score_moments(
    split: Any, found: list[tuple[int, list[list[Moment]]]], device: torch.device
) -> SplitMoments:
    """Score the moments that all processes have found for a split; each returns the result.

    Args:
        split: The clips.
        found: Number of a first query, and the moments of it and those after it; of this process.
        device: For the exchange.
    """
    rows = [
        (first + place, *moment)
        for first, answers in found
        for place, moments in enumerate(answers)
        for moment in moments
    ]
    # float64: times and scores stay as they are
    table = torch.tensor(rows, dtype=torch.float64, device=device).reshape(-1, 4)
    truths = truths_of(split)
    answers = [Answer(own.qid, own.query, own.vid, own.duration, []) for own in truths]
    for number, *moment in gather_rows(table).tolist():
        answers[int(number)].moments.append(Moment(*moment))
    return SplitMoments(split.name, score_answers(answers, truths))


def locate_split(locator: Locator, split: Any) -> SplitMoments:
    """Locate all queries of a split; every process returns the result."""
    found = [(first, located.moments) for first, located in located_clips(locator, split)]
    return score_moments(split, found, locator.model.temperature.device)
