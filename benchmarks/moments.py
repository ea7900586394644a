"""Score ways to find moments: on clips, and on joined recordings.

    python -m benchmarks.moments [--checkpoint DIR] [--head DIR]     # after `make demo`
    python -m benchmarks.moments --checkpoint A/best B/best C/best --head D/best E/best F/best

Scores the queries with times of a cache's split, in percent. Several runs of a way are
averaged, with their standard deviation. The ways:

half          the shortest stretch that holds half of TAP's attention, as search answered before
contribution  the maximum-sum stretch of the frames' parts in the score (moments/locator.py)
head          the moment head of the models of --head, or of --checkpoint where they have one
random        a span whose ends are uniform, the mean of 20 draws
whole         the whole recording

Joined recordings are the split's clips one after the other, about as long as --minutes says; a
query counts its own clip's windows only, although another clip may hold the same sound. A qid that
ends in _1of3 names one event of a scene with three, as the sample corpus writes it; queries of
other corpora are in the group `all` only. Differences are paired over queries; their intervals come
from a bootstrap over clips.
"""

import argparse
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError
from retrieval.base.files import write_json
from retrieval.data import ClipSplit, open_cache
from retrieval.data.schema import EVALUATION, SPLITS
from retrieval.evaluation.bootstrap import narrow_intervals_warning, paired_bootstrap
from retrieval.evaluation.metrics.audio_moment_retrieval.scoring import (
    NAMES,
    metric_columns,
    query_values,
)
from retrieval.models.dual_encoder import DualEncoder
from retrieval.moments.locator import Locator
from retrieval.moments.spans import Moment

SHOWN = ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU", "mAP")
COMPARED = ("R1@0.5", "R1@0.7", "mIoU", "mAP")
FIRST = "half"  # differences are to this way
UNHEARING = ("random", "whole")  # their differences are in the JSON file only
NUM_DRAWS = 20
NUM_RESAMPLES = 10_000
EVENTS = re.compile(r"_(\d+)of(\d+)$")  # at the end of the sample corpus's qids


@dataclass(frozen=True)
class Query:
    """A query of a split.

    Attributes:
        text: The sentence.
        windows: True windows in s from the beginning of its clip.
        clip: Number of its clip.
        groups: Groups that it is scored in.
    """

    text: str
    windows: tuple[tuple[float, float], ...]
    clip: int
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Recording:
    """Clips one after the other: numbers in the split, and the first second of each."""

    clips: list[int]
    starts: list[float]
    seconds: float


class HalfOfAttention(Locator):
    """The shortest stretch with half of TAP's attention in each excerpt, ranked by its score."""

    def _curves(self, text: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
        return self.model.pooling.attention(text, frames, mask)[:, 0] * frames.shape[1]

    def _peaks(self, curve: np.ndarray, score: float, first: int, stop: int) -> list[Moment]:
        begin, end = shortest_stretch(curve)
        return [self._moment(first + begin, first + end, score, stop)]


def shortest_stretch(weights: np.ndarray, share: float = 0.5) -> tuple[int, int]:
    """Find the shortest stretch that holds `share` of the weights (T,); of equal ones the first.

    Returns:
        Its first frame, and the frame after its last.
    """
    sums = np.concatenate([[0.0], np.cumsum(weights, dtype=np.float64)])  # (T + 1,)
    # (T,): for each first frame the end that is far enough; T + 1 if there is none
    lasts = np.searchsorted(sums, sums[:-1] + share * sums[-1] * (1 - 1e-9))
    lengths = np.where(lasts < len(sums), lasts - np.arange(len(weights)), len(sums))
    first = int(lengths.argmin())
    return first, int(lasts[first])


def queries_of(split: ClipSplit) -> list[Query]:
    """Return the queries of a split in the order of its clips. Raises UserError."""
    found = [
        Query(query.query, query.windows, clip, groups_of(query.qid))
        for clip, queries in enumerate(split.moments)
        for query in queries
    ]
    if not found:
        raise UserError(
            f"split {split.name!r} has no queries with times; `make demo` makes some, in"
            " data/sample/cache"
        )
    return found


def groups_of(qid: str) -> tuple[str, ...]:
    """Return the groups of a query, by the events that it names and those of its scene."""
    if not (match := EVENTS.search(qid)):
        return ("all",)
    named, events = map(int, match.groups())
    groups = ["all"]
    if named == 1 and events >= 2:
        groups.append("one event of 2 or more")
    if named == 1 and events >= 3:
        groups.append("one event of 3 or more")
    if named == 2 and events >= 3:
        groups.append("two events of 3 or more")
    return tuple(groups)


def recordings_of(split: ClipSplit, minutes: float | None) -> list[Recording]:
    """Join the clips in their order to equal numbers, about `minutes` long; None: one each."""
    seconds = split.num_samples / split.sample_rate
    number = len(split) if minutes is None else max(1, round(seconds.sum() / 60 / minutes))
    recordings = []
    for clips in np.array_split(np.arange(len(split)), min(number, len(split))):
        ends = np.cumsum(seconds[clips])
        starts = [0.0, *ends[:-1].tolist()]
        recordings.append(Recording(clips.tolist(), starts, float(ends[-1])))
    return recordings


def find(
    model: DualEncoder,
    locators: dict[str, Locator],
    split: ClipSplit,
    recordings: list[Recording],
    queries: list[Query],
) -> dict[str, list[list[Moment]]]:
    """Return the moments of each query in its recording, by way. A recording is encoded once."""
    found: dict[str, list[list[Moment]]] = {name: [[] for _ in queries] for name in locators}
    with torch.no_grad():
        text = model.encode_text([query.text for query in queries])  # (Q, D)
    hear = next(iter(locators.values())).hear
    for recording in recordings:
        numbers = [i for i, query in enumerate(queries) if query.clip in set(recording.clips)]
        if not numbers:
            continue
        heard = list(hear(split.read(clip) for clip in recording.clips))
        for name, locator in locators.items():
            moments = locator.locate(text[numbers], heard).moments
            for number, of_query in zip(numbers, moments, strict=True):
                found[name][number] = of_query
    return found


def references(
    recordings: list[Recording], queries: list[Query]
) -> tuple[list[list[tuple[float, float]]], np.ndarray]:
    """Return the true windows of each query in its recording, and the recording's seconds (Q,)."""
    places = {
        clip: (start, recording.seconds)
        for recording in recordings
        for clip, start in zip(recording.clips, recording.starts, strict=True)
    }
    windows = [
        [
            (places[query.clip][0] + start, places[query.clip][0] + end)
            for start, end in query.windows
        ]
        for query in queries
    ]
    return windows, np.array([places[query.clip][1] for query in queries])


def columns_of(
    predictions: Sequence[Sequence[Moment]], windows: list[list[tuple[float, float]]]
) -> np.ndarray:
    """Return each query's share of each metric, float64 (Q, 7), as NAMES."""
    return metric_columns(*query_values(predictions, windows))


def columns_without_a_model(
    windows: list[list[tuple[float, float]]], seconds: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the columns (Q, 7) of the ways without a model: random and whole."""
    draws = []
    for draw in range(NUM_DRAWS):
        ends = np.random.default_rng(draw).uniform(0, seconds, (2, len(seconds)))
        spans = zip(ends.min(axis=0).tolist(), ends.max(axis=0).tolist(), strict=True)
        draws.append(columns_of([[Moment(start, end, 1.0)] for start, end in spans], windows))
    whole = [[Moment(0.0, end, 1.0)] for end in seconds.tolist()]
    return {"random": np.mean(draws, axis=0), "whole": columns_of(whole, windows)}


def score(
    split: ClipSplit,
    minutes: float | None,
    checkpoints: dict[str, list[DualEncoder]],
    queries: list[Query],
) -> dict[str, list[np.ndarray]]:
    """Return the columns (Q, 7) of each run, by way.

    Args:
        split: The clips.
        minutes: Length of the recordings; None: the clips.
        checkpoints: Models of the runs, by way. Ways that share a model share its frames.
        queries: Q queries of the split.
    """
    recordings = recordings_of(split, minutes)
    windows, seconds = references(recordings, queries)
    ways: dict[str, list[np.ndarray]] = {
        name: [columns] for name, columns in columns_without_a_model(windows, seconds).items()
    }
    models = {id(model): model for models in checkpoints.values() for model in models}
    for key, model in models.items():
        names = [name for name, used in checkpoints.items() if key in map(id, used)]
        locators = {name: locator_of(name, model) for name in names}
        for name, moments in find(model, locators, split, recordings, queries).items():
            ways.setdefault(name, []).append(columns_of(moments, windows))
    return ways


def locator_of(way: str, model: DualEncoder) -> Locator:
    """Make the locator of a way. Raises UserError if the model cannot find moments by it."""
    return HalfOfAttention(model, "contribution") if way == FIRST else Locator(model, way)


def table(ways: dict[str, list[np.ndarray]], chosen: np.ndarray) -> dict[str, dict[str, list]]:
    """Return mean and standard deviation over runs (None for one), by way and metric."""
    rows: dict[str, dict[str, list]] = {}
    for way, runs in ways.items():
        means = np.array([run[chosen].mean(axis=0) for run in runs])  # (runs, 7)
        rows[way] = {
            name: [
                float(means[:, column].mean()),
                float(means[:, column].std(ddof=1)) if len(runs) > 1 else None,
            ]
            for column, name in enumerate(NAMES)
        }
    return rows


def differences(
    ways: dict[str, list[np.ndarray]], chosen: np.ndarray, clips: np.ndarray
) -> dict[str, dict[str, list[float]]]:
    """Return mean, low and high of the differences to FIRST, by way and metric."""
    first = np.mean(ways[FIRST], axis=0)[chosen]
    return {
        way: {
            name: [difference.mean, difference.low, difference.high]
            for name, difference in zip(
                NAMES,
                paired_bootstrap(
                    first, np.mean(runs, axis=0)[chosen], clips[chosen], NUM_RESAMPLES
                ),
                strict=True,
            )
        }
        for way, runs in ways.items()
        if way != FIRST
    }


def format_table(
    title: str, rows: dict[str, dict[str, list]], against: dict[str, dict[str, list[float]]]
) -> str:
    """Format the metrics in percent, and the differences to FIRST with their intervals."""
    width = max(map(len, rows)) + 2
    lines = [f"\n{title}", " " * width + "".join(f"{name:>15}" for name in SHOWN)]
    for way, row in rows.items():
        cells = ""
        for name in SHOWN:
            mean, deviation = row[name]
            spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
            cells += f"{100 * mean:.1f}{spread}".rjust(15)
        lines.append(f"{way:<{width}}{cells}")
    for way, row in against.items():
        if way in UNHEARING:
            continue
        cells = [
            f"{name} {100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            for name, (mean, low, high) in row.items()
            if name in COMPARED
        ]
        lines.append(f"{way} - {FIRST}: {', '.join(cells)}")
    return "\n".join(lines)


def quality(arguments: argparse.Namespace) -> None:
    """Score all ways on clips and on joined recordings."""
    tap = [load(path, "--checkpoint") for path in arguments.checkpoint]
    heads = [load(path, "--head") for path in arguments.head]
    heads = heads or [model for model in tap if model.moment_head is not None]
    checkpoints = {FIRST: tap, "contribution": tap, "head": heads}
    split = open_split(arguments, tap[0].sample_rate)
    queries = queries_of(split)
    clips = np.array([query.clip for query in queries])
    groups = {
        name: np.array([name in query.groups for query in queries])
        for name in dict.fromkeys(group for query in queries for group in query.groups)
    }
    report: dict[str, object] = {
        "checkpoint": list(map(str, arguments.checkpoint)),
        "head": list(map(str, arguments.head)),
        "cache": str(arguments.cache),
        "split": arguments.split,
    }
    results: list[dict[str, object]] = []
    for minutes in (None, *arguments.minutes):
        ways = score(split, minutes, checkpoints, queries)
        recordings = recordings_of(split, minutes)
        length = statistics.mean(recording.seconds for recording in recordings)
        place = "clips" if minutes is None else f"recordings of {length / 60:.1f} min"
        for name, chosen in groups.items():
            rows = table(ways, chosen)
            against = differences(ways, chosen, clips)
            title = f"{place}, {name}: {chosen.sum()} queries of {len(set(clips[chosen]))} clips"
            print(format_table(title, rows, against), flush=True)
            results.append(
                {
                    "recordings": len(recordings),
                    "seconds": length,
                    "group": name,
                    "queries": int(chosen.sum()),
                    "metrics": rows,
                    "differences_to_half": against,
                }
            )
    if warning := narrow_intervals_warning(len(split)):
        print(f"warning: {warning}")
    if arguments.output:
        write_json(arguments.output, report | {"results": results})


def load(path: Path, option: str) -> DualEncoder:
    """Load a model that compares frames. Raises UserError."""
    if not path.is_dir():
        raise UserError(f"{option} {path} is not a folder; `make demo` trains runs/sample_tap/best")
    model = DualEncoder.from_pretrained(path).eval()
    if option == "--head" and model.moment_head is None:
        raise UserError(f"--head {path} has no moment head; train one: configs/sample_moments.yaml")
    if not model.pooling.keeps_frames:
        raise UserError(f"{option} {path} has no attention: give a TAP model")
    return model


def open_split(arguments: argparse.Namespace, sample_rate: int) -> ClipSplit:
    return open_cache(arguments.cache, sample_rate).split(arguments.split)


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        nargs="+",
        default=[Path("runs/sample_tap/best")],
        metavar="DIR",
        help="TAP models for half and contribution (default: runs/sample_tap/best)",
    )
    parser.add_argument(
        "--head", type=Path, nargs="+", default=[], metavar="DIR", help="models with a moment head"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("data/sample/cache"),
        metavar="DIR",
        help="cache with times (default: data/sample/cache)",
    )
    parser.add_argument("--split", choices=SPLITS, default=EVALUATION)
    parser.add_argument(
        "--minutes",
        type=float,
        nargs="*",
        default=[2.0, 11.0],
        metavar="M",
        help="lengths of joined recordings (default: 2 11)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file to write")
    arguments = parser.parse_args(argv)
    for minutes in arguments.minutes:
        if not 0 < minutes < 1_000:
            raise UserError(f"--minutes {minutes:g}: expected 0 to 1000")
    quality(arguments)
    return 0


if __name__ == "__main__":
    run_main(main)
