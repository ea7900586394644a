"""Captions of a scene, from a grammar. Every word follows from the Scene, so it is true.

Pieces: a *clause* ("a dog barks three times"), a *description* ("a dog barking three times"), a
*setting* ("over distant traffic"). Captions are drawn until one has 8 to 20 words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.sample_corpus.events import EVENTS, WITHOUT_ADJECTIVE
from data_prep.sample_corpus.scenes import Event, Scene
from data_prep.sample_corpus.signals import Rng

MIN_WORDS, MAX_WORDS = 8, 20
NUMBERS = {
    1: ("once",),
    2: ("twice", "two times"),
    3: ("three times",),
    4: ("four times",),
    5: ("five times",),
    6: ("six times",),
}
NUMBER_WORDS = {2: "two", 3: "three", 4: "four"}
ORDINALS = ("first", "second", "third", "fourth")
LOUDNESS = {"faint": ("faintly", "quietly", "softly"), "loud": ("loudly", "very loudly")}
LOUDNESS_ADJECTIVES = {"faint": ("quiet", "barely audible"), "loud": ("loud", "very loud")}
PITCH = {"low": ("at a low pitch", "in a deep tone"), "high": ("at a high pitch", "in a high tone")}
PACE = {"slow": ("slowly", "at a slow pace"), "fast": ("quickly", "rapidly", "at a fast pace")}
PACE_COUNTED = {
    "slow": ("with long pauses", "with pauses in between"),
    "fast": ("in quick succession", "in rapid succession"),
}
LENGTH = {
    "short": ("for a moment", "for a short moment"),
    "long": ("for a while", "for several seconds"),
}
SETTINGS = {
    "room": (
        "over a low electric hum",
        "in a room with a humming appliance",
        "over the hum of electricity",
    ),
    "street": ("over distant traffic", "with traffic in the background", "near a distant road"),
    "static": ("over soft static", "on a hissing recording", "with static in the background"),
    "hall": ("in a large echoing hall", "with a long echo", "in a reverberant space"),
    "fan": ("over the whir of a fan", "with a fan in the background", "next to a running fan"),
}
# (between clauses?, where) -> words between two events of a caption that names the whole scene
JOINTS = {
    (True, "overlap"): (" while ", " as "),
    (True, "between"): (", ", ", then "),
    (True, "last"): (" and then ", ", and finally ", ", and after that "),
    (False, "overlap"): (" together with ", " over the sound of "),
    (False, "between"): (", ", ", followed by "),
    (False, "last"): (" and then ", ", followed by ", " and finally "),
}


@dataclass(frozen=True)
class Caption:
    """A caption and the events that it names."""

    text: str
    names: str  # "all" (every event, in order), "pair" or "one"
    events: tuple[int, ...]  # indices into Scene.events


def write_captions(rng: Rng, scene: Scene, number: int = 5) -> list[Caption]:
    """Return `number` different captions in random order.

    Two name the whole scene, one names a pair (from three events on), the others one event each.
    """
    order = [int(index) for index in rng.permutation(len(scene.events))]
    plan: list[tuple[str, tuple[int, ...]]] = []
    if len(scene.events) > 1:
        plan += [("all", tuple(range(len(order))))] * 2
    if len(scene.events) > 2:
        plan += [("pair", tuple(sorted(order[:2])))]
    single = "one" if len(scene.events) > 1 else "all"
    plan += [(single, (order[i % len(order)],)) for i in range(number - len(plan))]
    captions: list[Caption] = []
    for names, events in plan:
        texts = {caption.text for caption in captions}
        captions.append(Caption(_write(rng, scene, names, events, texts), names, events))
    return [captions[int(index)] for index in rng.permutation(len(captions))]


def _write(rng: Rng, scene: Scene, names: str, events: tuple[int, ...], taken: set[str]) -> str:
    write = {"all": _single if len(scene.events) == 1 else _all, "pair": _pair, "one": _one}[names]
    for attempt in range(1000):
        # long scenes leave no room for adverbs
        details = max(0, int(rng.integers(0, 4)) - attempt // 50)
        text = write(rng, scene, events, details)
        text = text[0].upper() + text[1:] + "."
        if MIN_WORDS <= len(text.split()) <= MAX_WORDS and text not in taken:
            return text
    raise AssertionError(f"no caption of {MIN_WORDS} to {MAX_WORDS} words for {scene}")


def _single(rng: Rng, scene: Scene, events: tuple[int, ...], details: int) -> str:
    """Name the only event of a scene."""
    event, setting = scene.events[0], _pick(rng, SETTINGS[scene.background])
    clause, description = _clause(rng, event, details), _description(rng, event, details)
    choices = (
        f"{clause} {setting}",
        f"{clause} {setting} and nothing else is heard",
        f"only {description} can be heard {setting}",
        f"{setting}, {clause}",
        f"there is nothing but {description} {setting}",
    )
    return _pick(rng, choices)


def _all(rng: Rng, scene: Scene, events: tuple[int, ...], details: int) -> str:
    """Name every event, in order of onset."""
    verbs = rng.random() < 0.6
    speak = _clause if verbs else _description
    chosen = set(rng.permutation(len(events))[:details].tolist())  # each of these gets one adverb
    parts = [speak(rng, scene.events[index], int(index in chosen)) for index in events]
    text, joint = parts[0], ""
    for index in range(1, len(parts)):
        overlapping = _simultaneous(scene.events[index - 1], scene.events[index])
        place = "overlap" if overlapping else "last" if index == len(parts) - 1 else "between"
        joint = _pick(rng, [other for other in JOINTS[verbs, place] if other != joint])
        text += joint + parts[index]
    if rng.random() < 0.4:
        setting = _pick(rng, SETTINGS[scene.background])
        text = f"{setting}, {text}" if rng.random() < 0.5 else f"{text}, all {setting}"
    return text


def _pair(rng: Rng, scene: Scene, events: tuple[int, ...], details: int) -> str:
    """Name two events of a longer scene, with their order in time."""
    first, second = (scene.events[index] for index in events)
    if _simultaneous(first, second):
        clause, joint = _clause(rng, first, details), _pick(rng, ("while", "as"))
        text = f"{clause} {joint} {_clause(rng, second, min(details, 1))}"
    elif events[1] - events[0] > 1:
        order = _pick(rng, ("some time before", "a while before"))
        text = f"{_clause(rng, first, details)} {order} {_clause(rng, second, min(details, 1))}"
    else:
        few = min(details, 1)
        choices = (
            f"{_clause(rng, first, details)} before {_clause(rng, second, few)}",
            f"after {_clause(rng, first, few)}, {_clause(rng, second, details)}",
            f"{_description(rng, first, details)} is followed by {_description(rng, second, few)}",
        )
        text = _pick(rng, choices)
    return f"{text} {_pick(rng, SETTINGS[scene.background])}" if rng.random() < 0.3 else text


def _one(rng: Rng, scene: Scene, events: tuple[int, ...], details: int) -> str:
    """Name one event of a longer scene, and the number of events."""
    index, total = events[0], NUMBER_WORDS[len(scene.events)]
    event, ordinal = scene.events[index], ORDINALS[index]
    setting = _pick(rng, SETTINGS[scene.background])
    clause, description = _clause(rng, event, details + 1), _description(rng, event, details + 1)
    choices = [
        f"somewhere in the recording {clause}",
        f"at some point {clause} {setting}",
        f"of {total} different sounds, one is {description}",
        f"the {ordinal} of {total} sounds is {description}",
        f"one of {total} sounds is {description}",
        f"{description} can be heard {setting}",
        f"{setting}, {clause} at some point",
    ]
    if index == 0:
        choices += [
            f"at first {clause}, then something else follows",
            f"the recording begins with {description} {setting}",
            f"{clause} before anything else is heard",
        ]
    elif index == len(scene.events) - 1:
        choices += [
            f"last of all {clause} {setting}",
            f"the last sound to begin is {description}",
            f"{clause} as the last sound to begin",
        ]
    else:
        choices += [
            f"in between other sounds {clause}",
            f"{clause} after something else was heard first",
        ]
    return _pick(rng, choices)


def _simultaneous(first: Event, second: Event) -> bool:
    """Return True if the second begins clearly within the first."""
    return second.onset < first.onset + first.duration - 0.25


def _clause(rng: Rng, event: Event, details: int) -> str:
    subject, verb, _, adverbs = _worded(rng, event, details)
    return " ".join([subject, verb, *adverbs])


def _description(rng: Rng, event: Event, details: int) -> str:
    subject, _, participle, adverbs = _worded(rng, event, details)
    return " ".join([subject, participle, *adverbs])


def _worded(rng: Rng, event: Event, details: int) -> tuple[str, str, str, list[str]]:
    """Return subject, verb, participle and up to `details` adverbs.

    One adverb may become an adjective of the subject instead.
    """
    kind = EVENTS[event.kind]
    subject, verb, participle = _pick(rng, kind.phrases)
    # (adverbs, adjectives), in the order of a sentence
    options: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    if event.loudness != "medium":
        options.append((LOUDNESS[event.loudness], LOUDNESS_ADJECTIVES[event.loudness]))
    if event.count is not None:
        options.append((NUMBERS[event.count], ()))
    if event.rate != "medium":
        options.append(((PACE if event.count is None else PACE_COUNTED)[event.rate], ()))
    if event.pitch != "medium":
        adjective = kind.low if event.pitch == "low" else kind.high
        options.append((PITCH[event.pitch], (adjective,) if adjective else ()))
    if event.length in LENGTH:
        options.append((LENGTH[event.length], ()))
    adverbs: list[str] = []
    bare = subject.startswith(("a ", "an ")) and subject not in WITHOUT_ADJECTIVE
    for index in sorted(rng.permutation(len(options))[:details].tolist()):
        words, adjectives = options[index]
        if adjectives and bare and rng.random() < 0.5:
            adjective, noun = _pick(rng, adjectives), subject.split(" ", 1)[1]
            article = "an" if adjective[0] in "aeiou" else "a"
            subject, bare = f"{article} {adjective} {noun}", False
        else:
            adverb = _pick(rng, words)
            # "faintly and slowly"
            both_ly = adverbs and adverb.endswith("ly") and adverbs[-1].endswith("ly")
            adverbs.append(f"and {adverb}" if both_ly else adverb)
    return subject, verb, participle, adverbs


def _pick(rng: Rng, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]
