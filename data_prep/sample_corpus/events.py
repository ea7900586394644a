"""Kinds of event: sound, keyword and words. A new kind: a function in *_sounds.py, a line here."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_prep.sample_corpus import made_sounds as made
from data_prep.sample_corpus import natural_sounds as natural
from data_prep.sample_corpus.signals import Rng

Phrase = tuple[str, str, str]  # subject, verb, participle: ("a dog", "barks", "barking")


@dataclass(frozen=True)
class EventKind:
    """How an event sounds, and the words for it."""

    synthesise: Callable[[Rng, float, float, float], np.ndarray]
    keyword: str
    phrases: tuple[Phrase, ...]
    count: tuple[int, int] | None = None  # fewest and most calls; None: the sound lasts
    pitched: bool = False  # may be high or low, and be called so
    paced: bool = False  # may be fast or slow, and be called so
    low: str = "low pitched"  # adjective for that pitch, empty if none suits
    high: str = "high pitched"


# subjects that a sound's adjective ("quiet", "high pitched") would describe wrongly
WITHOUT_ADJECTIVE = {"a window", "a leaky faucet", "a group of people"} | {
    f"a {person}"
    for person in "person visitor typist blacksmith carpenter referee driver drummer".split()
}

# fmt: off
# a table, two or three lines a kind
EVENTS: dict[str, EventKind] = {
    # animals
    "dog": EventKind(natural.dog, "dog bark", count=(1, 5), pitched=True, paced=True,
        low="big", high="small", phrases=(
        ("a dog", "barks", "barking"), ("a hound", "barks", "barking"),
        ("a dog", "woofs", "woofing"), ("a dog", "yaps", "yapping"))),
    "cat": EventKind(natural.cat, "cat meow", count=(1, 3), pitched=True, phrases=(
        ("a cat", "meows", "meowing"), ("a kitten", "meows", "meowing"),
        ("a cat", "cries", "crying"))),
    "cow": EventKind(natural.cow, "cow moo", count=(1, 2), pitched=True, phrases=(
        ("a cow", "moos", "mooing"), ("a cow", "lows", "lowing"), ("cattle", "moo", "mooing"))),
    "bird": EventKind(natural.bird, "birds", pitched=True, paced=True, phrases=(
        ("birds", "chirp", "chirping"), ("a bird", "sings", "singing"),
        ("songbirds", "twitter", "twittering"))),
    "owl": EventKind(natural.owl, "owl hoot", count=(1, 4), pitched=True, phrases=(
        ("an owl", "hoots", "hooting"), ("a night owl", "hoots", "hooting"),
        ("an owl", "calls", "calling"))),
    "frog": EventKind(natural.frog, "frog croak", count=(2, 5), pitched=True, paced=True,
        low="big", high="small", phrases=(
        ("a frog", "croaks", "croaking"), ("a toad", "croaks", "croaking"),
        ("a frog", "ribbits", "ribbiting"))),
    "cricket": EventKind(natural.cricket, "crickets", paced=True, phrases=(
        ("crickets", "chirp", "chirping"), ("a cricket", "chirps", "chirping"),
        ("insects", "trill", "trilling"))),
    "bee": EventKind(natural.bee, "bee buzz", pitched=True, phrases=(
        ("a bee", "buzzes", "buzzing"), ("a bumblebee", "hums", "humming"),
        ("a fly", "buzzes around", "buzzing around"))),
    # weather, water and fire
    "rain": EventKind(natural.rain, "rain", phrases=(
        ("rain", "falls", "falling"), ("rain", "pours down", "pouring down"),
        ("a shower of rain", "falls", "falling"),
        ("raindrops", "patter down", "pattering down"))),
    "thunder": EventKind(natural.thunder, "thunder", count=(1, 2), phrases=(
        ("thunder", "rumbles", "rumbling"), ("a thunderstorm", "rumbles", "rumbling"),
        ("thunder", "rolls", "rolling"))),
    "wind": EventKind(natural.wind, "wind", pitched=True, low="", high="", phrases=(
        ("the wind", "howls", "howling"), ("gusts of wind", "blow", "blowing"),
        ("wind", "blows", "blowing"))),
    "waves": EventKind(natural.waves, "ocean waves", count=(1, 3), phrases=(
        ("waves", "break", "breaking"), ("ocean waves", "roll in", "rolling in"),
        ("the surf", "washes ashore", "washing ashore"))),
    "drops": EventKind(natural.drops, "water drops", pitched=True, paced=True,
        low="", high="", phrases=(
        ("water", "drips", "dripping"), ("a tap", "drips", "dripping"),
        ("a leaky faucet", "drips", "dripping"))),
    "fire": EventKind(natural.fire, "fire", phrases=(
        ("a fire", "crackles", "crackling"), ("a campfire", "burns", "burning"),
        ("burning wood", "pops", "popping"))),
    # people
    "crowd": EventKind(natural.crowd, "crowd", phrases=(
        ("a crowd", "chatters", "chattering"), ("people", "talk", "talking"),
        ("a group of people", "chats", "chatting"))),
    "footsteps": EventKind(made.footsteps, "footsteps", paced=True, phrases=(
        ("someone", "walks", "walking"), ("footsteps", "pass by", "passing by"),
        ("a person", "walks along", "walking along"))),
    "knock": EventKind(made.knock, "door knock", count=(2, 6), paced=True, phrases=(
        ("someone", "knocks on a door", "knocking on a door"), ("a visitor", "knocks", "knocking"),
        ("a person", "raps on wood", "rapping on wood"))),
    "typing": EventKind(made.typing, "keyboard typing", paced=True, phrases=(
        ("someone", "types on a keyboard", "typing on a keyboard"),
        ("keyboard keys", "clatter", "clattering"),
        ("a typist", "types", "typing"))),
    # tools and machines
    "hammer": EventKind(made.hammer, "hammer", count=(2, 6), paced=True, phrases=(
        ("a hammer", "strikes metal", "striking metal"), ("a blacksmith", "hammers", "hammering"),
        ("a hammer", "clangs", "clanging"))),
    "saw": EventKind(made.saw, "hand saw", paced=True, phrases=(
        ("someone", "saws wood", "sawing wood"), ("a saw", "cuts wood", "cutting wood"),
        ("a carpenter", "saws", "sawing"))),
    "clock": EventKind(made.clock, "clock tick", paced=True, phrases=(
        ("a clock", "ticks", "ticking"), ("a wall clock", "ticks", "ticking"),
        ("a watch", "ticks", "ticking"))),
    "engine": EventKind(made.engine, "engine", pitched=True, phrases=(
        ("an engine", "runs", "running"), ("a motor", "runs", "running"),
        ("an engine", "idles", "idling"))),
    "train": EventKind(made.train, "train", paced=True, phrases=(
        ("a train", "passes", "passing"), ("a train", "rattles along", "rattling along"),
        ("a freight train", "goes by", "going by"))),
    # signals and music
    "bell": EventKind(made.bell, "bell", count=(1, 4), pitched=True,
        low="big", high="small", phrases=(
        ("a bell", "rings", "ringing"), ("a church bell", "tolls", "tolling"),
        ("a bell", "chimes", "chiming"))),
    "phone": EventKind(made.phone, "phone ring", count=(1, 3), pitched=True, phrases=(
        ("a phone", "rings", "ringing"), ("a telephone", "rings", "ringing"),
        ("an old telephone", "rings", "ringing"))),
    "siren": EventKind(made.siren, "siren", pitched=True, paced=True, phrases=(
        ("a siren", "wails", "wailing"), ("a siren", "sounds", "sounding"),
        ("an ambulance siren", "wails", "wailing"))),
    "alarm": EventKind(made.alarm, "alarm beep", count=(2, 6), pitched=True, paced=True, phrases=(
        ("an alarm", "beeps", "beeping"), ("a machine", "beeps", "beeping"),
        ("an electronic device", "beeps", "beeping"))),
    "horn": EventKind(made.horn, "car horn", count=(1, 4), pitched=True, phrases=(
        ("a car horn", "honks", "honking"), ("a car", "honks", "honking"),
        ("a driver", "honks", "honking"),
        ("a horn", "toots", "tooting"))),
    "whistle": EventKind(made.whistle, "whistle", count=(1, 3), pitched=True, phrases=(
        ("a whistle", "blows", "blowing"), ("a referee", "whistles", "whistling"),
        ("a whistle", "shrills", "shrilling"))),
    "drum": EventKind(made.drum, "drum", count=(2, 6), pitched=True, paced=True, phrases=(
        ("a drum", "beats", "beating"), ("a drummer", "drums", "drumming"),
        ("a drum", "booms", "booming"))),
    # things that break, and games
    "glass": EventKind(made.glass, "glass break", count=(1, 2), phrases=(
        ("glass", "breaks", "breaking"), ("glass", "shatters", "shattering"),
        ("a window", "smashes", "smashing"))),
    "laser": EventKind(made.laser, "laser", count=(1, 5), pitched=True, paced=True, phrases=(
        ("a laser", "zaps", "zapping"), ("a toy laser", "fires", "firing"),
        ("a space gun", "shoots", "shooting"))),
}
# fmt: on
