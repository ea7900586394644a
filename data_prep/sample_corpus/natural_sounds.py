"""Animals, weather, water and fire. Each function: (rng, pitch, rate, size) -> samples.

`pitch` and `rate` are factors around 1; `size` is the number of calls for counted sounds, the
length in seconds for the others.
"""

import numpy as np

from data_prep.sample_corpus.signals import (
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


def dog(rng: Rng, pitch: float, rate: float, size: int) -> np.ndarray:
    def bark() -> np.ndarray:
        seconds = rng.uniform(0.16, 0.22)
        voice = buzz(pitch * glide(seconds, 330, 520, 400, 260))
        voice += 0.5 * noise(rng, seconds, 400, 3000)
        throat = formants((750 * pitch, 250, 1.0), (1700 * pitch, 350, 0.7))
        return faded(filtered(voice, throat), 0.01, 0.09)

    return repeated(rng, bark, size, 0.5 / rate, jitter=0.15)


def cat(rng: Rng, pitch: float, rate: float, size: int) -> np.ndarray:
    def meow() -> np.ndarray:
        seconds = rng.uniform(0.7, 0.95)
        frequency = pitch * glide(seconds, 480, 760, 820, 700, 480)
        open_mouth = glide(seconds, 0.1, 0.8, 1.0, 0.5, 0.1)
        overtones = tone(frequency, (0, 1.0, 0.9, 0.8, 0.3, 0.2))
        return faded(tone(frequency) + open_mouth * overtones, 0.08, 0.25)

    return repeated(rng, meow, size, 1.4 / rate)


def cow(rng: Rng, pitch: float, rate: float, size: int) -> np.ndarray:
    def moo() -> np.ndarray:
        seconds = rng.uniform(1.3, 1.8)
        voice = buzz(pitch * glide(seconds, 110, 150, 160, 150, 105))
        throat = formants((260 * pitch, 80, 1.0), (620 * pitch, 120, 0.5))
        return faded(filtered(voice, throat), 0.25, 0.35)

    return repeated(rng, moo, size, 2.1 / rate)


def bird(rng: Rng, pitch: float, rate: float, size: float) -> np.ndarray:
    def chirp() -> np.ndarray:
        start, end = pitch * rng.uniform(2600, 3900), pitch * rng.uniform(3600, 4900)
        grain = faded(tone(glide(0.07, start, end, start)), 0.015, 0.03)
        return repeated(rng, lambda: grain, int(rng.integers(2, 6)), 0.09)

    return paced(rng, chirp, size, 0.55 / rate, jitter=0.4)


def owl(rng: Rng, pitch: float, rate: float, size: int) -> np.ndarray:
    def hoot() -> np.ndarray:
        seconds = rng.uniform(0.4, 0.5)
        return faded(tone(pitch * glide(seconds, 360, 420, 390), (1.0, 0.06)), 0.06, 0.15)

    return repeated(rng, hoot, size, 0.8 / rate)


def frog(rng: Rng, pitch: float, rate: float, size: int) -> np.ndarray:
    def croak() -> np.ndarray:
        pulse = modes(0.02, (950 * pitch, 1.0, 0.004), (1900 * pitch, 0.5, 0.003))
        count = int(rng.integers(14, 18))
        return faded(repeated(rng, lambda: pulse, count, 0.022, jitter=0.02), 0.1, 0.05)

    return repeated(rng, croak, size, 0.75 / rate, jitter=0.1)


def cricket(rng: Rng, pitch: float, rate: float, size: float) -> np.ndarray:
    grain = faded(tone(np.full(num_samples(0.02), 5200 * pitch**0.5)), 0.005, 0.008)
    return paced(rng, lambda: repeated(rng, lambda: grain, 4, 0.032), size, 0.26 / rate)


def bee(rng: Rng, pitch: float, rate: float, size: float) -> np.ndarray:
    wander = slow_noise(rng, size, 3.0)
    body = formants((500 * pitch, 250, 1.0), (1500 * pitch, 500, 0.6))
    voice = filtered(buzz(pitch * (200 + 60 * wander)), body)
    return faded(voice * (0.5 + 0.5 * slow_noise(rng, size, 1.5)), 0.2, 0.2)


def rain(rng: Rng, pitch: float, rate: float, size: float) -> np.ndarray:
    hiss = noise(rng, size, 2200, 12000, order=1)
    count = int(60 * size)
    drops = [
        rng.uniform(0.5, 3.0) * modes(0.012, (rng.uniform(2500, 7000), 1.0, 0.003))
        for _ in range(count)
    ]
    return faded(hiss + scatter(drops, rng.uniform(0, size, count), size), 0.4, 0.4)


def thunder(rng: Rng, pitch: float, rate: float, size: int) -> np.ndarray:
    def clap() -> np.ndarray:
        seconds = rng.uniform(2.0, 2.8)
        rumble = noise(rng, seconds, 50, 170) * (0.3 + slow_noise(rng, seconds, 8.0))
        crack = 0.5 * noise(rng, seconds, 100, 1200) * decay(seconds, 0.12)
        return faded(rumble * decay(seconds, 0.9) + crack, 0.02, 0.6)

    return repeated(rng, clap, size, 3.0)


def wind(rng: Rng, pitch: float, rate: float, size: float) -> np.ndarray:
    gust = slow_noise(rng, size, 1.2)
    howl = tone(pitch * (380 + 420 * gust) + 60 * slow_noise(rng, size, 40.0))
    air = noise(rng, size, 250 * pitch, 800 * pitch)
    return faded((0.15 + gust**2) * (air + 0.8 * howl), 0.4, 0.4)


def waves(rng: Rng, pitch: float, rate: float, size: int) -> np.ndarray:
    def wave() -> np.ndarray:
        seconds = rng.uniform(1.8, 2.2)
        points = [0, 0.45 * seconds, 0.55 * seconds, seconds]
        swell = np.interp(times(seconds), points, [0, 0.6, 1.0, 0])
        roar = noise(rng, seconds, 150, 900, order=1)
        return (swell**2) * (roar + 0.6 * swell * noise(rng, seconds, 900, 5000))

    return repeated(rng, wave, size, 1.9)


def drops(rng: Rng, pitch: float, rate: float, size: float) -> np.ndarray:
    def drop() -> np.ndarray:
        base = pitch * rng.uniform(750, 1050)
        plop = tone(glide(0.09, base, base * 1.3, base * 2.4)) * decay(0.09, 0.035)
        return faded(plop, 0.003, 0.02)

    return paced(rng, drop, size, 0.42 / rate, jitter=0.25)


def fire(rng: Rng, pitch: float, rate: float, size: float) -> np.ndarray:
    count = int(22 * size)
    crackles = [
        rng.uniform(0.2, 1.0) ** 2 * 5 * noise(rng, 0.006, 900, 9000) * decay(0.006, 0.0015)
        for _ in range(count)
    ]
    flames = 0.35 * noise(rng, size, 60, 260, order=2)
    return faded(flames + scatter(crackles, rng.uniform(0, size - 0.01, count), size), 0.3, 0.3)


def crowd(rng: Rng, pitch: float, rate: float, size: float) -> np.ndarray:
    """Eight voices of random syllables: a babble without words."""
    out = np.zeros(num_samples(size))
    for _ in range(8):
        onsets = np.arange(rng.uniform(0, 0.2), size - 0.25, 0.21) + rng.uniform(0, 0.05)
        frequency = rng.uniform(100, 230)
        grains = []
        for _ in onsets:
            seconds = rng.uniform(0.1, 0.2)
            first, second = rng.uniform(300, 800), rng.uniform(900, 2200)
            vowel = formants((first, 90, 1.0), (second, 120, 0.7), (2700, 200, 0.3))
            loudness = rng.uniform(0, 1)
            voice = buzz(frequency * glide(seconds, 1.1, 1.0, rng.uniform(0.8, 1.1)))
            grains.append(loudness * faded(filtered(voice, vowel), 0.03, 0.05))
        out += scatter(grains, onsets, size)
    return faded(filtered(out, band(150, 5000)), 0.3, 0.3)
