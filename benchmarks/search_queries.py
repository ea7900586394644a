"""Queries whose answer is known: sentences about absent sounds, and sentences combined.

    python -m benchmarks.search_queries --checkpoint runs/sample_tap/best --work data/scenes

Writes new scenes of the sample corpus's kinds (--single of each kind with that kind only, and
--mixed of 1 to 4 kinds) and indexes them. Prints, for collections that hold all kinds, half of
them, four, or one:

- miss: sentences about a kind that is there, and whose best answer holds it, but lies below the
  score of unrelated sentences;
- false alarm: sentences about an absent kind whose best answer lies above;
- strange: the same for general sentences with words that the sample's captions do not have, and
  that the score was not measured with.

Then what `without`, `also` and a sound change in answers of the mixed scenes.

Letters: Q sentences, B clips.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from sklearn.metrics import average_precision_score

from data_prep.parallel import ordered_map
from data_prep.sample_corpus.events import EVENTS
from data_prep.sample_corpus.scenes import plan_scene, render_scene
from data_prep.sample_corpus.signals import SAMPLE_RATE
from data_prep.seeds import generator
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser
from retrieval.base.processes import usable_cores
from retrieval.search import AudioIndex, Query
from retrieval.search.calibration import MOST_SENTENCES, unrelated_score
from retrieval.search.combined import ranked, weighed
from retrieval.search.sentences import SENTENCES, spread
from retrieval.search.store import Store
from retrieval.search.two_stage import TwoStage

KINDS = list(EVENTS)
COLLECTIONS = {"all 32 kinds": (32, 1), "half": (16, 8), "four": (4, 12), "one": (1, 32)}
PARTNERS = 5  # of each kind in queries of two
SOUNDS_OF_A_KIND = 2  # as queries
FEWEST_CLIPS = 2  # with both kinds of a pair


class Part:
    """Some clips of an index, as a ClipStore."""

    def __init__(self, store: Store, clips: np.ndarray):
        self._store, self._clips = store, clips  # bool (B,)

    def __len__(self) -> int:
        return int(self._clips.sum())

    def nearest(self, vectors, num, selection=None, cosine=False):
        return self._store.nearest(vectors, num, self._clips, cosine)

    def __getattr__(self, name: str):
        return getattr(self._store, name)


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="of the sample corpus")
    parser.add_argument("--work", type=Path, required=True, help="folder for scenes and indexes")
    parser.add_argument("--single", type=int, default=20, help="scenes of each kind alone")
    parser.add_argument("--mixed", type=int, default=400, help="scenes of 1 to 4 kinds")
    parser.add_argument("--num-proc", type=int, default=usable_cores(), help="to write scenes")
    arguments = parser.parse_args(argv)
    sounds = arguments.work / "sounds"
    if not (arguments.work / "kinds.json").exists():
        write_scenes(sounds, arguments.single, arguments.mixed, arguments.num_proc)
    kinds_of = json.loads((arguments.work / "kinds.json").read_text(encoding="utf-8"))
    place = arguments.work / f"{arguments.checkpoint.parent.name}.index"
    index = AudioIndex.build(sounds, arguments.checkpoint, place)
    clips = list(range(len(index.store)))
    files = [excerpt.file.file for excerpt in index.store.excerpts(clips)]
    kinds = [set(kinds_of[file]) for file in files]  # of each clip
    report_absent(index, kinds)
    is_mixed = np.array([file.startswith("mixed/") for file in files])
    report_combined(index, kinds, is_mixed)
    return 0


def write_scenes(folder: Path, num_single: int, num_mixed: int, num_proc: int) -> None:
    """Write the scenes, and the kinds in each to kinds.json beside the folder."""
    tasks = [(folder / kind / f"{n}.wav", kind, n) for kind in KINDS for n in range(num_single)]
    tasks += [(folder / "mixed" / f"{n}.wav", None, n) for n in range(num_mixed)]
    for kind in (*KINDS, "mixed"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    written = dict(ordered_map(write_scene, tasks, num_proc, chunksize=8))
    (folder.parent / "kinds.json").write_text(json.dumps(written), encoding="utf-8")


def write_scene(task: tuple[Path, str | None, int]) -> tuple[str, list[str]]:
    path, kind, number = task
    rng = generator(77, number, 0 if kind is None else KINDS.index(kind) + 1)
    scene = plan_scene(rng)
    if kind is not None:
        while all(event.kind != kind for event in scene.events):
            scene = plan_scene(rng)
        scene.events = [event for event in scene.events if event.kind == kind]
        scene.overlaps = []
    mix, _, _ = render_scene(rng, scene)
    soundfile.write(path, mix.astype(np.float32), SAMPLE_RATE, subtype="PCM_16")
    return f"{path.parent.name}/{path.name}", [event.kind for event in scene.events]


@torch.no_grad()
def all_scores(index: AudioIndex, sentences: list[str]) -> np.ndarray:
    """Return the scores (Q, B) of all sentences and clips."""
    text = index.model.encode_text(sentences).float()
    clips = torch.arange(len(index.store)).expand(len(text), -1)
    if index.model.pooling.keeps_frames:
        return TwoStage(index.model.pooling, index.store).rescore(text, clips).numpy()
    directions = index.model.pooling.directions(text).numpy()
    return directions @ index.store.vectors(clips[0].tolist()).T


def report_absent(index: AudioIndex, kinds: list[set[str]]) -> None:
    phrases = [(name, f"{who} {does}") for name in KINDS for who, does, _ in EVENTS[name].phrases]
    measured_with = set(spread(MOST_SENTENCES))
    known = {word for _, phrase in phrases for word in phrase.split()} | {"at", "and", "for"}
    strange = [s for s in SENTENCES if s not in measured_with and not known.issuperset(s.split())]
    scores = all_scores(index, [phrase for _, phrase in phrases] + strange)
    random = np.random.default_rng(0)
    print(f"collection      excerpts   score    miss   false alarm   strange ({len(strange)})")
    for name, (number, times) in COLLECTIONS.items():
        rows = []
        for turn in range(times):
            one = [KINDS[turn]] if number == 1 else random.choice(KINDS, number, replace=False)
            present = set(KINDS if number == len(KINDS) else one)
            clips = np.array([own <= present for own in kinds])
            limit = unrelated_score(index.model, Part(index.store, clips))
            part, places = scores[:, clips], np.flatnonzero(clips)
            best, answers = part.max(axis=1), places[part.argmax(axis=1)]
            found, absent = [], []
            for row, (kind, _) in enumerate(phrases):
                if kind not in present:
                    absent.append(best[row] >= limit)
                elif kind in kinds[answers[row]]:
                    found.append(best[row] < limit)
            alarms = np.mean(absent) if absent else np.nan
            rows.append(
                (len(places), limit, np.mean(found), alarms, np.mean(best[len(phrases) :] >= limit))
            )
        size, limit, miss, alarm, other = np.mean(rows, axis=0)
        print(f"{name:14}{size:10.0f}{limit:8.2f}{miss:8.2f}{alarm:14.2f}{other:10.2f}")


def shifted(step: int) -> list[tuple[str, str]]:
    """Return each kind with the one that stands `step` places after it."""
    return [(kind, KINDS[(place + step) % len(KINDS)]) for place, kind in enumerate(KINDS)]


@torch.no_grad()
def report_combined(index: AudioIndex, kinds: list[set[str]], is_mixed: np.ndarray) -> None:
    two_stage, num_clips = TwoStage(index.model.pooling, index.store), int(is_mixed.sum())
    sentence = {kind: " ".join(EVENTS[kind].phrases[0][:2]) for kind in KINDS}
    texts = dict(
        zip(KINDS, index.model.encode_text([sentence[kind] for kind in KINDS]).float(), strict=True)
    )

    def ranking(query: Query, names: list[str], sound: np.ndarray | None = None) -> list[int]:
        text = torch.stack([texts[name] for name in names]) if names else torch.zeros(0, 1)
        return ranked(weighed(query, text, sound), two_stage, num_clips, is_mixed)[0]

    def precision(order: list[int], right: set[int]) -> float:
        labels = [clip in right for clip in order]
        return average_precision_score(labels, -np.arange(len(order)))

    single = {
        kind: [clip for clip, own in enumerate(kinds) if own == {kind} and not is_mixed[clip]]
        for kind in KINDS
    }
    without, together = {"plain": [], "without": []}, {"one": [], "both": [], "sound": []}
    pairs = [(kind, other) for step in range(1, PARTNERS + 1) for kind, other in shifted(step)]
    for kind, other in pairs:
        with_kind = {clip for clip in np.flatnonzero(is_mixed) if kind in kinds[clip]}
        with_both = {clip for clip in with_kind if other in kinds[clip]}
        if len(with_both) < FEWEST_CLIPS or len(with_kind - with_both) < FEWEST_CLIPS:
            continue
        queries = {
            "plain": (Query.of(sentence[kind]), [kind]),
            "without": (Query.of(sentence[kind], without=sentence[other]), [kind, other]),
        }
        for name, (query, names) in queries.items():
            order = ranking(query, names)
            top = [kinds[clip] for clip in order[:10]]
            place = {clip: number for number, clip in enumerate(order)}
            before = [place[a] < place[b] for a in with_kind - with_both for b in with_both]
            heard = [np.mean([wanted in own for own in top]) for wanted in (kind, other)]
            without[name].append((*heard, np.mean(before)))
        together["one"].append(precision(ranking(Query.of(sentence[kind]), [kind]), with_both))
        both = Query.of(sentence[kind], also=[sentence[other]])
        together["both"].append(precision(ranking(both, [kind, other]), with_both))
        for clip in single[other][:SOUNDS_OF_A_KIND]:
            query = Query.of(sentence[kind], audio=Path("sound"))
            order = ranking(query, [kind], index.store.vectors([clip]))
            together["sound"].append(precision(order, with_both))
    print(f"\n{len(without['plain'])} pairs of kinds A and B, {num_clips} mixed scenes")
    for name, rows in without.items():
        a, b, first = np.mean(rows, axis=0)
        print(f"{name:8} first ten with A {a:.2f}, with B {b:.2f}; A alone before both {first:.2f}")
    means = {name: 100 * np.mean(values) for name, values in together.items()}
    print(
        f"average precision of scenes with both: sentence A {means['one']:.1f}, A also B"
        f" {means['both']:.1f}, A and a sound of B {means['sound']:.1f}"
    )


if __name__ == "__main__":
    run_main(main)
