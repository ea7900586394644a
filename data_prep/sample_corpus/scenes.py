"""Scenes: the events, their order and the background; and how a scene sounds.

`plan_scene` draws the parameters (cheap), `render_scene` makes the samples and fills in onsets and
durations. Captions are written from the same Scene, so that they are true.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from data_prep.sample_corpus.events import EVENTS
from data_prep.sample_corpus.signals import (
    SAMPLE_RATE,
    Rng,
    band,
    decay,
    faded,
    fft_size,
    filtered,
    level,
    noise,
    num_samples,
    scatter,
    slow_noise,
    times,
)

MIN_SECONDS, MAX_SECONDS = 4.0, 20.0
NUM_EVENTS_SHARE = (0.10, 0.25, 0.35, 0.30)  # of scenes with 1, 2, 3, 4 events
PITCH = {"low": 0.64, "medium": 1.0, "high": 1.55}
RATE = {"slow": 0.6, "medium": 1.0, "fast": 1.75}
SECONDS = {"short": 1.7, "medium": 3.4, "long": 5.6}
LEVEL = {"faint": 0.018, "medium": 0.045, "loud": 0.11}  # RMS of the loud part, full scale 1
PEAK_KNEE, PEAK = 0.35, 0.6  # an event's peaks above the knee are bent so that they stay under PEAK
BACKGROUND_LEVEL = 0.0027  # RMS: 16 dB below a faint event


@dataclass
class Event:
    """One event of a scene."""

    kind: str
    pitch: str = "medium"
    rate: str = "medium"
    loudness: str = "medium"
    length: str | None = None  # of lasting sounds
    count: int | None = None  # of counted sounds
    onset: float = 0.0  # s, set by render_scene
    duration: float = 0.0


@dataclass
class Scene:
    events: list[Event]
    background: str
    seconds: float = 0.0
    # for every event but the first: True if it begins within the one before
    overlaps: list[bool] = field(default_factory=list)


def hum(rng: Rng, seconds: float) -> np.ndarray:
    t = times(seconds)
    mains = sum(np.sin(2 * np.pi * 50 * k * t) / k for k in (2, 4, 6))
    return mains + 0.15 * noise(rng, seconds, 100, 4000, 1)


def traffic(rng: Rng, seconds: float) -> np.ndarray:
    return (0.4 + slow_noise(rng, seconds, 0.4)) * noise(rng, seconds, 60, 500, 1)


def static(rng: Rng, seconds: float) -> np.ndarray:
    return noise(rng, seconds, 500, 15000, 1)


def hall(rng: Rng, seconds: float) -> np.ndarray:
    return noise(rng, seconds, 80, 1500, 1)


def fan(rng: Rng, seconds: float) -> np.ndarray:
    blades = np.sin(2 * np.pi * 23 * times(seconds))
    return (1 + 0.7 * blades) * noise(rng, seconds, 250, 1200, 2)


BACKGROUNDS: dict[str, Callable[[Rng, float], np.ndarray]] = {
    "room": hum,
    "street": traffic,
    "static": static,
    "hall": hall,
    "fan": fan,
}


def plan_scene(rng: Rng) -> Scene:
    """Draw the parameters of a scene."""
    num_events = 1 + int(rng.choice(4, p=NUM_EVENTS_SHARE))
    kinds = [list(EVENTS)[index] for index in rng.permutation(len(EVENTS))[:num_events]]
    background = list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))]
    overlaps = [bool(rng.random() < 0.25) for _ in kinds[1:]]
    events = []
    for name in kinds:
        kind, event = EVENTS[name], Event(name, loudness=_draw(rng, LEVEL))
        if kind.count is None:
            event.length = _draw(rng, SECONDS)
        else:
            event.count = int(rng.integers(kind.count[0], kind.count[1] + 1))
        if kind.pitched:
            event.pitch = _draw(rng, PITCH)
        if kind.paced and event.count != 1:
            event.rate = _draw(rng, RATE)
        events.append(event)
    return Scene(events, background, overlaps=overlaps)


def _draw(rng: Rng, table: dict[str, float]) -> str:
    return list(table)[int(rng.integers(len(table)))]


def render_event(rng: Rng, event: Event) -> np.ndarray:
    """Return samples of one event at its level; values vary by some per cent around the nominal."""
    size = event.count if event.count is not None else _vary(rng, SECONDS[event.length], 0.12)
    pitch, rate = _vary(rng, PITCH[event.pitch], 0.06), _vary(rng, RATE[event.rate], 0.06)
    sound = EVENTS[event.kind].synthesise(rng, pitch, rate, size)
    sound = faded(sound) * (_vary(rng, LEVEL[event.loudness], 0.1) / level(sound))
    # Crackles and clicks are all peak: round those off, so that a loud fire does not push down the
    # rest of its scene.
    over = np.maximum(np.abs(sound) - PEAK_KNEE, 0) / (PEAK - PEAK_KNEE)
    bent = np.sign(sound) * (PEAK_KNEE + (PEAK - PEAK_KNEE) * np.tanh(over))
    return np.where(over > 0, bent, sound)


def _vary(rng: Rng, value: float, width: float) -> float:
    return value * rng.uniform(1 - width, 1 + width)


def render_scene(rng: Rng, scene: Scene) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Make the samples of a scene, and set `seconds` and each event's onset and duration.

    Returns:
        Mix (S,); each event by itself (S,); background (S,). All are scaled down by one factor if
        the mix would clip.
    """
    dry = [render_event(rng, event) for event in scene.events]
    lead, tail = rng.uniform(0.2, 2.0), rng.uniform(0.3, 2.5)
    _place(rng, scene, [len(sound) / SAMPLE_RATE for sound in dry], lead)
    end = max(event.onset + event.duration for event in scene.events)
    scene.seconds = min(max(MIN_SECONDS, end + tail), MAX_SECONDS)
    background = BACKGROUNDS[scene.background](rng, scene.seconds)
    background *= BACKGROUND_LEVEL * rng.uniform(0.7, 1.3) / np.sqrt(np.mean(background**2))
    sounds = [_echoing(rng, sound) if scene.background == "hall" else sound for sound in dry]
    tracks = [
        scatter([sound], [event.onset], scene.seconds) for sound, event in zip(sounds, scene.events)
    ]
    mix = background + sum(tracks)
    scale = min(1.0, 0.97 / np.abs(mix).max())
    return scale * mix, [scale * track for track in tracks], scale * background


def _place(rng: Rng, scene: Scene, durations: list[float], lead: float) -> None:
    """Set onsets and durations: after a gap, or within the event before.

    Onsets move closer together if the scene would be too long.
    """
    onset, end = lead, lead + durations[0]
    onsets = [onset]
    for index, overlap in enumerate(scene.overlaps):
        if overlap:
            onset += max(0.5, durations[index] * rng.uniform(0.2, 0.6))
        else:
            onset = end + rng.uniform(0.3, 1.4)
        onsets.append(onset)
        end = max(onset + durations[index + 1], end)
    limit = MAX_SECONDS - 0.3
    squeeze = min(
        [1.0]
        + [
            (limit - duration - lead) / (onset - lead)
            for onset, duration in zip(onsets[1:], durations[1:])
        ]
    )
    for event, onset, duration in zip(scene.events, onsets, durations):
        event.onset = lead + squeeze * (onset - lead)
        event.duration = duration


def _echoing(rng: Rng, x: np.ndarray, seconds: float = 1.6) -> np.ndarray:
    """Add reverberation of `seconds` to `x`: convolve it with decaying noise, through the FFT."""
    response = filtered(2 * rng.random(num_samples(seconds)) - 1, band(100, 5000, 1))
    response *= decay(seconds, 0.35)
    response /= np.sqrt(np.sum(response**2))
    length = len(x) + len(response)
    size = fft_size(length)
    wet = np.fft.irfft(np.fft.rfft(x, size) * np.fft.rfft(response, size), size)[:length]
    return 0.6 * wet + np.pad(x, (0, len(response)))
