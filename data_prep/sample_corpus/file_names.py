"""File names as on Freesound: blanks, brackets, apostrophes, commas, accents.

All characters exist in ISO-8859-1 (Clotho's metadata) and in file systems of Windows.
"""

from data_prep.sample_corpus.events import EVENTS
from data_prep.sample_corpus.scenes import Scene
from data_prep.sample_corpus.signals import Rng

PLACES = (
    "Málaga",
    "Zürich",
    "São Paulo",
    "Tromsø",
    "Besançon",
    "Göteborg",
    "Nîmes",
    "garden",
    "backyard",
    "kitchen",
    "old town",
    "studio",
)
OWNERS = ("Nick's", "grandma's", "neighbour's", "Anna's", "somebody else's")
STYLES = (
    "{first}.wav",
    "{first} {number}.wav",
    "{first}_{second}.wav",
    "{number:02d} {first} - {second}.wav",
    "{first} ({place}).wav",
    "{first} [take {number}].wav",
    "{owner} {first}.wav",
    "{first} {second} .wav",
    "{place}, {first} & {second}.wav",
    "{upper}_{number:03d}.wav",
    "{place} {first} {number}_14_2008.wav",
    "{first}-{second}(edit {number}).wav",
    "{first}#{number}.wav",
    "{first}  {place}.wav",
)


def file_name(rng: Rng, scene: Scene, taken: set[str]) -> str:
    """Return a new name for the scene, and add its key to `taken`.

    The key is made of letters and digits, so that names differ in more than case, blanks or signs.
    """
    keywords = [EVENTS[event.kind].keyword for event in scene.events]
    first, second = keywords[0], keywords[-1]
    while True:
        if len(keywords) == 1:
            second = _pick(rng, ("field recording", "close up", "outside"))
        name = _pick(rng, STYLES).format(
            first=first if rng.random() < 0.5 else first.capitalize(),
            second=second,
            upper=first.upper().replace(" ", ""),
            place=_pick(rng, PLACES),
            owner=_pick(rng, OWNERS),
            number=1 + int(rng.integers(99)),
        )
        key = "".join(character for character in name.casefold() if character.isalnum())
        if key not in taken:
            taken.add(key)
            return name


def _pick(rng: Rng, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
