"""Average precision after 0, 5, 10 and 20 marks, of recordings that no model was trained on.

    python -m benchmarks.feedback --checkpoint runs/sample_tap/best runs/sample_mean/best
    python -m benchmarks.feedback --checkpoint runs/sample_tap/best --set SAMPLE_WEIGHT=40 --seed 17
    python -m benchmarks.feedback --quick    # a random model, a few recordings: shows that it runs

Needs the models of `make demo`. Recordings come from data_prep/make_sample_corpus.py with a seed of
their own: 400 to mark, and 400 held out, on which all figures are measured. A simulated person asks
for a sound by a sentence, such as "a dog barks", and judges the best five answers that have no mark
yet; four rounds give 20 marks. An answer is right if the sound is heard in it. For comparison: five
answers a round drawn at random.

Each of the 32 kinds of sound is asked for. The table has every third of them, ten, and the means of
both. A recording is relevant if the sound is heard in it. --set changes a number of
retrieval/search/feedback/fit.py.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.search_profile import write_clap
from data_prep.make_sample_corpus import main as make_sample_corpus
from data_prep.sample_corpus.events import EVENTS
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser
from retrieval.base.progress import set_quiet, silence_transformers

if TYPE_CHECKING:
    from retrieval.search import AudioIndex, Detector
    from retrieval.search.store import IndexedExcerpt

SEED = 18  # of the corpus; with 17 the numbers of retrieval/search/feedback/fit.py were chosen
RECORDINGS = 400  # to mark, and as many held out
PER_ROUND = 5
ROUNDS = 4
SHOWN = (0, 1, 2, 4)  # rounds
IN_TABLE = list(EVENTS)[::3][:10]
CANDIDATES = 100
Spans = dict[str, list[tuple[float, float]]]  # of a sound, by file


@dataclass(frozen=True)
class Course:
    """A session for one sound.

    Attributes:
        precision: Average precision of the held-out recordings after each round, (ROUNDS + 1,).
        num_right: Of all marks.
        reported: Precision and recall of the recordings that the detector reports at the end.
        among: The same as `precision` at the end, among CANDIDATES of the first stage, which the
            detector finds by its own vector, and by that of the sentence.
    """

    precision: list[float]
    num_right: int
    reported: tuple[float, float]
    among: tuple[float, float]


def sentence_of(kind: str) -> str:
    """Return such as "a dog barks"."""
    return " ".join(EVENTS[kind].phrases[0][:2])


def spans_of(scenes: Path, kind: str, split: str) -> Spans:
    """Return when a kind of sound is heard in the recordings of a split, in s."""
    found: Spans = {}
    for clip in json.loads(scenes.read_text(encoding="utf-8"))["clips"]:
        for event in clip["events"] if clip["split"] == split else ():
            if event["kind"] == kind:
                times = event["onset"], event["onset"] + event["duration"]
                found.setdefault(clip["file_name"], []).append(times)
    return found


def is_right(excerpt: "IndexedExcerpt", spans: Spans) -> bool:
    heard = spans.get(excerpt.file.file, ())
    return any(start < excerpt.end and excerpt.start < end for start, end in heard)


def average_precision(excerpts: Sequence["IndexedExcerpt"], relevant: set[str]) -> float:
    """Return the mean of the precisions at each relevant file; one that is not ranked gives 0."""
    total, found = 0.0, 0
    files = dict.fromkeys(own.file.file for own in excerpts)  # by the best excerpt of each
    for rank, file in enumerate(files, 1):
        if file in relevant:
            found += 1
            total += found / rank
    return total / len(relevant)


def ranked(
    index: "AudioIndex", detector: "Detector", num: int | None = None
) -> list["IndexedExcerpt"]:
    """Rank all excerpts of an index, or `num` candidates of the first stage."""
    clips, _ = index._refinement.probabilities(detector, num or len(index.store), None)
    return index.store.excerpts(clips)


def reported(index: "AudioIndex", detector: "Detector") -> list["IndexedExcerpt"]:
    """Return the excerpts that the detector accepts by its own threshold."""
    clips, likely = index._refinement.probabilities(detector, len(index.store), None)
    accepted = [clip for clip, own in zip(clips, likely) if own >= detector.threshold]
    return index.store.excerpts(accepted)


def course(
    to_mark: "AudioIndex", held_out: "AudioIndex", kind: str, scenes: Path, at_random: bool
) -> Course:
    """Ask for a sound and mark answers, as the module says."""
    from retrieval.search import Mark

    sentence, random = sentence_of(kind), np.random.default_rng(list(EVENTS).index(kind))
    spans = spans_of(scenes, kind, "validation")
    relevant = set(spans_of(scenes, kind, "evaluation"))
    detector, marks, precision = to_mark.refine(sentence, []), [], []
    for number in range(ROUNDS + 1):
        precision.append(average_precision(ranked(held_out, detector), relevant))
        if number == ROUNDS:
            break
        seen = {(mark.file, mark.start) for mark in marks}
        answers = [
            own for own in ranked(to_mark, detector) if (own.file.file, own.start) not in seen
        ]
        order = random.permutation(len(answers)) if at_random else range(len(answers))
        for place in order[:PER_ROUND]:
            own = answers[place]
            right = is_right(own, spans)
            marks.append(Mark(file=own.file.file, start=own.start, end=own.end, right=right))
        detector = to_mark.refine(sentence, marks)
    direction = to_mark.refine(sentence, []).coarse
    of_sentence = (
        detector if direction is None else detector.model_copy(update={"coarse": direction})
    )
    among = [
        average_precision(ranked(held_out, own, CANDIDATES), relevant)
        for own in (detector, of_sentence)
    ]
    found = {own.file.file for own in reported(held_out, detector)}
    shares = [len(found & relevant) / max(1, len(own)) for own in (found, relevant)]
    return Course(precision, sum(mark.right for mark in marks), tuple(shares), tuple(among))


def measure(checkpoint: Path, corpus: Path, folder: Path, quick: bool) -> None:
    """Print the table of one model; quick: only sounds that the random model has a word for."""
    from retrieval.search import AudioIndex

    indexes = [
        AudioIndex.build(corpus / split, checkpoint, folder / split)
        for split in ("validation", "evaluation")
    ]
    scenes = corpus / "scenes.json"
    kinds = [
        kind
        for kind in EVENTS
        if (not quick or sentence_of(kind).startswith("a "))
        and all(spans_of(scenes, kind, split) for split in ("validation", "evaluation"))
    ]
    kinds = kinds[:2] if quick else kinds
    made = {kind: course(*indexes, kind, scenes, at_random=False) for kind in kinds}
    drawn = {kind: course(*indexes, kind, scenes, at_random=True) for kind in kinds}
    counts = [PER_ROUND * number for number in SHOWN]
    print(f"\n{checkpoint}\n")
    print(f"| average precision, % after | {' | '.join(map(str, counts))} marks | right |")
    print("| --- |" + " --- |" * (len(SHOWN) + 1))

    def row(name: str, courses: list[Course]) -> None:
        means = np.mean([own.precision for own in courses], axis=0)
        numbers = [f"{100 * means[number]:.1f}" for number in SHOWN]
        right = f"{np.mean([own.num_right for own in courses]):.3g}"
        print(f"| {' | '.join([name, *numbers, right])} |")

    shown = kinds if quick else [kind for kind in IN_TABLE if kind in made]
    for kind in shown:
        row(f'"{sentence_of(kind)}"', [made[kind]])
    row(f"mean of these {len(shown)}", [made[kind] for kind in shown])
    row(f"mean of all {len(kinds)}", list(made.values()))
    row(f"mean of all {len(kinds)}, marks at random", list(drawn.values()))
    worse = sum(own.precision[-1] < own.precision[0] - 0.01 for own in made.values())
    print(f"\nworse than without marks, by more than 1: {worse} of {len(kinds)}")
    precision, recall = 100 * np.mean([one.reported for one in made.values()], axis=0)
    print(
        f"reported by the detector's own threshold, after {PER_ROUND * ROUNDS} marks, all"
        f" {len(kinds)}: precision {precision:.1f}, recall {recall:.1f}"
    )
    own, of_sentence = 100 * np.mean([one.among for one in made.values()], axis=0)
    print(
        f"among {CANDIDATES} candidates of the first stage, after {PER_ROUND * ROUNDS} marks, all"
        f" {len(kinds)}: {own:.1f} by the detector's vector, {of_sentence:.1f} by the sentence's"
    )


def main() -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, nargs="+", default=[Path("runs/sample_tap/best")])
    changed = "a number of retrieval/search/feedback/fit.py, such as SAMPLE_WEIGHT=40"
    add("--set", nargs="+", default=[], metavar="NAME=NUMBER", help=changed)
    add("--seed", type=int, default=SEED, help="of the recordings")
    add("--quick", action="store_true", help="a random model and a few recordings")
    arguments = parser.parse_args()
    set_quiet(True)
    silence_transformers()
    from retrieval.search.feedback import fit

    for text in arguments.set:
        name, _, number = text.partition("=")
        if not isinstance(getattr(fit, name, None), (int, float)):
            parser.error(f"--set {text}: retrieval/search/feedback/fit.py has no number {name}")
        setattr(fit, name, float(number))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = ["1", "6", "6"] if arguments.quick else ["1", *2 * [str(RECORDINGS)]]
        options = ["--seed", str(arguments.seed), "--sizes", *sizes, "--num-proc", "1", "--quiet"]
        make_sample_corpus(["--output", str(folder / "corpus"), *options])
        checkpoints = arguments.checkpoint
        if arguments.quick:
            checkpoints = [folder / "clap"]
            write_clap(checkpoints[0], quick=True)
        for number, checkpoint in enumerate(checkpoints):
            measure(checkpoint, folder / "corpus", folder / f"index {number}", arguments.quick)
    return 0


if __name__ == "__main__":
    run_main(main)
