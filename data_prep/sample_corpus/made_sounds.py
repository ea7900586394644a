"""Machines, tools, signals and people's noises. Signatures as in natural_sounds.py."""

import numpy as np

from data_prep.sample_corpus.signals import (
    SAMPLE_RATE,
    Rng,
    band,
    buzz,
    decay,
    faded,
    filtered,
    formants,
    glide,
    modes,
    noise,
    num_samples,
    paced,
    repeated,
    scatter,
    slow_noise,
    times,
    tone,
)


def footsteps(rng: Rng, pitch: float, rate: float, size: float) -> np.ndarray:
    def step() -> np.ndarray:
        heel = modes(0.09, (110, 1.0, 0.025), (190, 0.6, 0.02))
        scuff = 0.25 * noise(rng, 0.1, 600, 2200) * np.sin(np.pi * times(0.1) / 0.1)
        return rng.uniform(0.8, 1.1) * scatter([heel, scuff], [0.0, 0.04])

    return paced(rng, step, size, 0.55 / rate)


def knock(rng: Rng, pitch: float, rate: float, size: int) -> np.ndarray:
    def hit() -> np.ndarray:
        wood = modes(0.12, (240, 1.0, 0.02), (430, 0.9, 0.016), (780, 0.5, 0.01))
        return wood + 0.2 * noise(rng, 0.12, 300, 2500) * decay(0.12, 0.006)

    return repeated(rng, hit, size, 0.3 / rate)


def hammer(rng: Rng, pitch: float, rate: float, size: int) -> np.ndarray:
    def hit() -> np.ndarray:
        ring = modes(
            0.3, (1350, 0.7, 0.05), (2850, 1.0, 0.07), (4300, 0.8, 0.06), (6100, 0.5, 0.04)
        )
        return faded(ring + 0.8 * noise(rng, 0.3, 500, 9000) * decay(0.3, 0.008), 0.0005)

    return repeated(rng, hit, size, 0.6 / rate)


def bell(rng: Rng, pitch: float, rate: float, size: int) -> np.ndarray:
    base = 330 * pitch
    partials = [
        (0.5, 0.5, 1.1),
        (1.0, 0.8, 0.9),
        (1.2, 0.6, 0.8),
        (1.5, 0.4, 0.6),
        (2.0, 1.0, 0.7),
        (2.7, 0.4, 0.3),
        (4.2, 0.3, 0.15),
    ]

    def stroke() -> np.ndarray:
        tones = [(ratio * base, amplitude, fall) for ratio, amplitude, fall in partials]
        return faded(modes(1.8, *tones), 0.003, 0.6)

    return repeated(rng, stroke, size, 1.2 / rate)


def phone(rng: Rng, pitch: float, rate: float, size: int) -> np.ndarray:
    def ring() -> np.ndarray:
        low = (1450 * pitch, 1.0, 0.06), (2150 * pitch, 0.8, 0.05), (3700 * pitch, 0.3, 0.03)
        high = (1700 * pitch, 1.0, 0.06), (2500 * pitch, 0.8, 0.05)
        strokes = [modes(0.1, *low), modes(0.1, *high)] * 11
        return faded(scatter(strokes, 0.045 * np.arange(22)), 0.01, 0.08)

    return repeated(rng, ring, size, 1.7 / rate, jitter=0.0)


def clock(rng: Rng, pitch: float, rate: float, size: float) -> np.ndarray:
    ticks = [
        modes(0.05, (3100, 1.0, 0.008), (5300, 0.7, 0.006)),
        modes(0.05, (2300, 1.0, 0.009), (4100, 0.6, 0.006)),
    ]
    onsets = np.arange(0, size, 0.4 / rate)
    return scatter([ticks[i % 2] for i in range(len(onsets))], onsets)


def typing(rng: Rng, pitch: float, rate: float, size: float) -> np.ndarray:
    def key() -> np.ndarray:
        press = noise(rng, 0.03, 1100, 2600) * decay(0.03, 0.007)
        press += modes(0.03, (rng.uniform(380, 520), 0.8, 0.01))
        release = 0.4 * noise(rng, 0.02, 1800, 3500) * decay(0.02, 0.005)
        return rng.uniform(0.6, 1.0) * scatter([press, release], [0.0, 0.06])

    return paced(rng, key, size, 0.13 / rate, jitter=0.6)


def siren(rng: Rng, pitch: float, rate: float, size: float) -> np.ndarray:
    sweep = (1 - np.cos(2 * np.pi * rate * 0.55 * times(size) + rng.uniform(0, 6))) / 2
    return faded(tone(pitch * (600 + 750 * sweep), (1.0, 0.35, 0.25, 0.1)), 0.1, 0.2)


def alarm(rng: Rng, pitch: float, rate: float, size: int) -> np.ndarray:
    frequency = np.full(num_samples(0.16), 1850 * pitch)
    beep = faded(tone(frequency, (1.0, 0, 0.35, 0, 0.15)), 0.004, 0.01)
    return repeated(rng, lambda: beep, size, 0.38 / rate, jitter=0.0)


def horn(rng: Rng, pitch: float, rate: float, size: int) -> np.ndarray:
    def honk() -> np.ndarray:
        seconds = rng.uniform(0.4, 0.6)
        flat = np.ones(num_samples(seconds))
        chord = buzz(pitch * 390 * flat) + buzz(pitch * 492 * flat)
        return faded(filtered(chord, band(250, 3500, 2)), 0.02, 0.06)

    return repeated(rng, honk, size, 0.85 / rate, jitter=0.1)


def train(rng: Rng, pitch: float, rate: float, size: float) -> np.ndarray:
    def joint() -> np.ndarray:
        clack = noise(rng, 0.09, 250, 1300) * decay(0.09, 0.025)
        return scatter([clack, 0.8 * clack], [0.0, 0.13])

    wheels = paced(rng, joint, size, 0.62 / rate)
    rumble = 0.16 * noise(rng, len(wheels) / SAMPLE_RATE, 60, 350, order=2)
    return faded(1.4 * wheels + rumble[: len(wheels)], 0.3, 0.3)


def engine(rng: Rng, pitch: float, rate: float, size: float) -> np.ndarray:
    frequency = pitch * (48 + 4 * slow_noise(rng, size, 2.0))
    strokes = buzz(frequency) * (1 + 0.5 * np.sin(np.cumsum(frequency) / SAMPLE_RATE * np.pi))
    body = formants((110 * pitch, 60, 1.0), (330 * pitch, 120, 0.5), (800, 400, 0.25))
    return faded(filtered(strokes, body) + 0.045 * noise(rng, size, 300, 1500), 0.3, 0.3)


def saw(rng: Rng, pitch: float, rate: float, size: float) -> np.ndarray:
    def stroke() -> np.ndarray:
        seconds = 0.3 / rate
        teeth = 1 + 0.8 * np.sin(2 * np.pi * np.cumsum(glide(seconds, 70, 120, 70)) / SAMPLE_RATE)
        push = noise(rng, seconds, 1300, 3200) * teeth
        pull = 0.5 * noise(rng, seconds, 2800, 6000) * teeth
        strokes = [faded(sound, 0.08 / rate, 0.1 / rate) for sound in (push, pull)]
        return scatter(strokes, [0.0, 0.36 / rate])

    return paced(rng, stroke, size, 0.75 / rate)


def whistle(rng: Rng, pitch: float, rate: float, size: int) -> np.ndarray:
    def blow() -> np.ndarray:
        seconds = rng.uniform(0.5, 0.7)
        pea = np.sin(2 * np.pi * 32 * times(seconds))
        breath = tone(pitch * (2700 + 130 * pea)) + 0.15 * noise(rng, seconds, 2000, 5000)
        return faded((1 + 0.6 * pea) * breath, 0.03, 0.06)

    return repeated(rng, blow, size, 1.0 / rate)


def drum(rng: Rng, pitch: float, rate: float, size: int) -> np.ndarray:
    def beat() -> np.ndarray:
        skin = tone(pitch * glide(0.45, 150, 92, 84, 80)) * decay(0.45, 0.16)
        return faded(skin + 0.15 * noise(rng, 0.45, 200, 900) * decay(0.45, 0.02), 0.002, 0.1)

    return repeated(rng, beat, size, 0.55 / rate, jitter=0.03)


def glass(rng: Rng, pitch: float, rate: float, size: int) -> np.ndarray:
    def shatter() -> np.ndarray:
        count = 45
        onsets = np.minimum(rng.exponential(0.22, count), 1.1)
        shards = []
        for _ in onsets:
            loudness, low, high = (rng.uniform(*r) for r in ((0.2, 1), (2800, 7600), (4500, 9500)))
            shards.append(loudness * modes(0.25, (low, 1.0, 0.05), (high, 0.7, 0.03)))
        crash = 3.0 * noise(rng, 0.2, 1500, 12000) * decay(0.2, 0.04)
        return faded(scatter([crash, *shards], [0.0, *onsets]), 0.001, 0.1)

    return repeated(rng, shatter, size, 1.9)


def laser(rng: Rng, pitch: float, rate: float, size: int) -> np.ndarray:
    def zap() -> np.ndarray:
        frequency = pitch * (350 + 3600 * decay(0.28, 0.07))
        return faded(tone(frequency, (1.0, 0, 0.3)), 0.002, 0.05)

    return repeated(rng, zap, size, 0.42 / rate)
