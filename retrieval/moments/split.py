"""Answers to all queries of a split, by one process or several. Letters: Q queries."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from retrieval.base.exchange import gather_rows, rank, world_size
from retrieval.base.progress import bar
from retrieval.base.sound_files import without_ending
from retrieval.data import ClipSplit, MomentQuery
from retrieval.data.schema import MP3
from retrieval.moments.files import Answer, Truth
from retrieval.moments.locator import Heard, Located, Locator
from retrieval.moments.result import MomentResult, format_metrics, score_answers
from retrieval.moments.spans import Moment

BLOCK_SECONDS = 60  # of a clip, read at once


@dataclass(frozen=True)
class SplitMoments:
    """Scored answers to all queries of a split, with the properties that a run reads."""

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
def located_clips(
    locator: Locator, split: Any, asked: Sequence[Sequence[MomentQuery]] | None = None
) -> "list[tuple[int, Located]]":
    """Locate the queries of this process's share of a split's clips.

    A clip is heard by itself: the answers do not depend on the number of processes.

    Args:
        locator: Finds them.
        split: ClipSplit, or FrameSplit of clips no longer than the model's.
        asked: Queries of each clip, whose windows are not looked at; None: those of the split.

    Returns:
        Number of the first query, and the answers to all queries of its clip, for each clip that
        has some.
    """
    found, number = [], 0
    share = range(rank() * len(split) // world_size(), (rank() + 1) * len(split) // world_size())
    shown = bar(total=len(share), desc=f"moments of {split.name}", unit="clip", leave=False)
    with shown as progress:
        for clip, queries in enumerate(split.moments if asked is None else asked):
            first, number = number, number + len(queries)
            if clip not in share or not queries:
                continue
            texts = [query.query for query in queries]
            text = locator.encode_text(texts)
            found.append((first, locator.locate(text, heard_of_split(locator, split, clip))))
            progress.update()
    return found


def heard_of_split(locator: Locator, split: Any, clip: int) -> Iterable[Heard]:
    """Return the excerpts of a clip of a split, of its sound or its cached frames."""
    if not split.holds_frames:
        return locator.hear(read_blocks(split, clip))
    features = torch.from_numpy(split.read(clip)).to(locator.model.temperature.device)
    with locator.listening():
        frames = locator.model.audio_projection(features).float()
    return [Heard(0, int(split.split.num_samples[clip]), frames)]


def read_blocks(split: ClipSplit, clip: int) -> Iterator[np.ndarray]:
    """Yield the samples of a clip in order, float32 (S,) in [-1, 1] each.

    An MP3 is decoded from its beginning for every read, so it is read at once.
    """
    length = int(split.num_samples[clip])
    size = length if split.codec == MP3 else BLOCK_SECONDS * split.sample_rate
    for start in range(0, length, size):
        yield split.read(clip, start, min(start + size, length))


def truths_of(split: Any, asked: Sequence[Sequence[MomentQuery]] | None = None) -> list[Truth]:
    """List the queries of a split with their true windows, clip by clip.

    `asked` is that of located_clips. `vid` is the name of the file without its ending.
    """
    sounds = split.split if split.holds_frames else split
    seconds = (sounds.num_samples / sounds.sample_rate).tolist()
    asked = split.moments if asked is None else asked
    return [
        Truth(query.qid, query.query, name, length, list(query.windows))
        for name, length, queries in zip(recording_names(sounds), seconds, asked, strict=True)
        for query in queries
    ]


def recording_names(split: ClipSplit) -> list[str]:
    """Return each clip's file name without ending, or the clip ids if two are equal."""
    names = list(map(without_ending, split.file_names))
    return names if len(set(names)) == len(names) else list(split.clip_ids)


def gathered_answers(
    truths: Sequence[Truth], found: list[tuple[int, list[list[Moment]]]], device: torch.device
) -> list[Answer]:
    """Return the answers that all processes have found, on each of them.

    Args:
        truths: Of truths_of.
        found: Of this process, for each of its clips: the number of the clip's first query, and the
            moments of each of its queries.
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
    answers = [Answer(own.qid, own.query, own.vid, own.duration, []) for own in truths]
    for number, *moment in gather_rows(table).tolist():
        answers[int(number)].moments.append(Moment(*moment))
    return answers


def score_moments(
    split: Any, found: list[tuple[int, list[list[Moment]]]], device: torch.device
) -> SplitMoments:
    """Score the moments that all processes have found for a split; each returns the result.

    Args:
        split: The clips.
        found: As for gathered_answers.
        device: For the exchange.
    """
    truths = truths_of(split)
    answers = gathered_answers(truths, found, device)
    return SplitMoments(split.name, score_answers(answers, truths))


def answer_split(
    locator: Locator, split: Any, asked: Sequence[Sequence[MomentQuery]] | None = None
) -> list[Answer]:
    """Answer all queries of a split, clip by clip; arguments as for located_clips.

    Every process returns all answers.
    """
    clips = located_clips(locator, split, asked)
    found = [(first, located.moments) for first, located in clips]
    return gathered_answers(truths_of(split, asked), found, locator.model.temperature.device)
