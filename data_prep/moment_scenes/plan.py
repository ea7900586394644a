"""Draw scenes: their clips, the parts, times and levels of these, and the queries.

The recipe of Clotho-Moment: from 0 on, wait for a time drawn from an exponential distribution,
place the active part of a clip, wait again, and so on. Stop at the first clip that would end after
the scene. Clips never overlap, and a scene has no clip twice. Two things differ: a level is
a true signal-to-noise ratio, and a share of the clips is cropped to a few seconds.
"""

from dataclasses import dataclass

import numpy as np

from data_prep.moment_scenes.foregrounds import Foreground
from retrieval.base.errors import UserError
from retrieval.data.moments import MomentQuery

STEPS = 100  # times are whole multiples of 1 / STEPS s: sums of them are exact
MAX_TRIES = 1000  # draws of a scene that may come out empty


@dataclass(frozen=True)
class Recipe:
    """Settings of the scenes."""

    seconds: float = 60.0  # length of a scene
    mean_gap: float = 30.0  # s, of the exponential distribution
    snr_db: tuple[float, float] = (5.0, 25.0)  # lowest and highest
    short_share: float = 0.55  # of the clips, cropped to `short_seconds`
    short_seconds: tuple[float, float] = (1.0, 5.0)  # shortest and longest crop


@dataclass(frozen=True)
class Placement:
    """A part of a clip in a scene. Times in s."""

    clip: int  # number in the split
    caption: int  # number among the clip's captions
    offset: float  # in the clip
    start: float  # in the scene
    length: float
    snr_db: float

    @property
    def end(self) -> float:
        return round(self.start + self.length, 2)


def draw_scene(
    rng: np.random.Generator,
    foregrounds: list[Foreground],
    num_captions: list[int],
    recipe: Recipe,
) -> list[Placement]:
    """Draw the placements of a scene, none or more, sorted by time.

    Args:
        rng: Source of random numbers.
        foregrounds: Clips of the split.
        num_captions: Number of captions of each foreground.
        recipe: Settings.
    """
    placements: list[Placement] = []
    taken: set[int] = set()
    now, end = 0, _steps(recipe.seconds)
    while len(taken) < len(foregrounds):
        now += _steps(rng.exponential(recipe.mean_gap))
        number = int(rng.integers(len(foregrounds)))
        while number in taken:
            number = int(rng.integers(len(foregrounds)))
        taken.add(number)
        offset, length = _draw_part(rng, foregrounds[number], recipe)
        if now + length > end:
            break
        placements.append(
            Placement(
                clip=foregrounds[number].clip,
                caption=int(rng.integers(num_captions[number])),
                offset=offset / STEPS,
                start=now / STEPS,
                length=length / STEPS,
                snr_db=round(rng.uniform(*recipe.snr_db), 2),
            )
        )
        now += length
    return placements


def draw_filled_scene(
    rng: np.random.Generator,
    foregrounds: list[Foreground],
    num_captions: list[int],
    recipe: Recipe,
) -> list[Placement]:
    """Draw scenes until one has a clip. Raises UserError if none has."""
    for _ in range(MAX_TRIES):
        if placements := draw_scene(rng, foregrounds, num_captions, recipe):
            return placements
    shortest = min(each.seconds[-1] + 1 - each.seconds[0] for each in foregrounds)
    raise UserError(
        f"--seconds {recipe.seconds:g} is too short: in {MAX_TRIES} tries no clip fitted into a"
        f" scene (the shortest active part has {shortest} s, gaps have {recipe.mean_gap:g} s on"
        " average): give more --seconds, or a smaller --mean-gap"
    )


def _draw_part(rng: np.random.Generator, foreground: Foreground, recipe: Recipe) -> tuple[int, int]:
    """Draw the part of a clip to use; return its offset and length in steps.

    A crop holds at least one whole active second, so that it is never silent.
    """
    first, last = foreground.seconds[0], foreground.seconds[-1] + 1
    crop = _steps(rng.uniform(*recipe.short_seconds))
    is_short = rng.random() < recipe.short_share
    if not is_short or crop >= (last - first) * STEPS:
        return first * STEPS, (last - first) * STEPS
    second = foreground.seconds[int(rng.integers(len(foreground.seconds)))]
    lowest = max(first * STEPS, (second + 1) * STEPS - crop)
    highest = min(last * STEPS - crop, second * STEPS)
    return int(rng.integers(lowest, highest + 1)), crop


def _steps(seconds: float) -> int:
    return round(seconds * STEPS)


def queries_of(
    name: str, placements: list[Placement], captions: list[list[str]]
) -> tuple[MomentQuery, ...]:
    """Return the queries of a scene. Clips with the same caption are one query of several windows.

    Args:
        name: Beginning of the qids.
        placements: Of the scene, sorted by time.
        captions: Captions of each clip of the split.
    """
    windows: dict[str, list[tuple[float, float]]] = {}
    for placed in placements:
        text = captions[placed.clip][placed.caption]
        windows.setdefault(text, []).append((placed.start, placed.end))
    return tuple(
        MomentQuery(f"{name}_{number}", text, tuple(of_text))
        for number, (text, of_text) in enumerate(windows.items(), 1)
    )
