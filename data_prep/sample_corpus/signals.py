"""Building blocks of the synthesised sounds, as mono float64 arrays (S,) at SAMPLE_RATE.

Everything is float64 until the last rounding to 16 bits, so that a last-digit difference between
two numpy builds or processors practically never reaches the file (about 1e-11 a sample).
"""

from collections.abc import Callable

import numpy as np

SAMPLE_RATE = 44_100  # Hz, Clotho's
Rng = np.random.Generator


def num_samples(seconds: float) -> int:
    return max(1, int(round(seconds * SAMPLE_RATE)))


def times(seconds: float) -> np.ndarray:
    """Sample times in seconds."""
    return np.arange(num_samples(seconds)) / SAMPLE_RATE


def fft_size(smallest: int) -> int:
    """The next length of the form 2^k, 3 2^k or 5 2^k: quick to transform."""
    power = 1 << (smallest - 1).bit_length()
    return next(size for size in (power * 5 // 8, power * 3 // 4, power) if size >= smallest)


def filtered(x: np.ndarray, gain: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Zero-phase filter: `gain` maps frequencies in Hz to amplitudes."""
    size = fft_size(len(x) + SAMPLE_RATE // 10)  # the padding keeps the ends from meeting
    spectrum = np.fft.rfft(x, size)
    return np.fft.irfft(spectrum * gain(np.fft.rfftfreq(size, 1 / SAMPLE_RATE)), size)[: len(x)]


def band(low: float, high: float, order: int = 3) -> Callable[[np.ndarray], np.ndarray]:
    """Gain of a Butterworth-like band pass from `low` to `high` Hz."""

    def gain(frequency: np.ndarray) -> np.ndarray:
        frequency = np.maximum(frequency, 1e-3)
        return 1 / np.sqrt(
            (1 + (low / frequency) ** (2 * order)) * (1 + (frequency / high) ** (2 * order))
        )

    return gain


def formants(*peaks: tuple[float, float, float]) -> Callable[[np.ndarray], np.ndarray]:
    """Gain with resonances, each (centre Hz, width Hz, amplitude)."""

    def gain(frequency: np.ndarray) -> np.ndarray:
        return sum(
            amplitude / (1 + ((frequency - centre) / width) ** 2)
            for centre, width, amplitude in peaks
        )

    return gain


def noise(rng: Rng, seconds: float, low: float, high: float, order: int = 3) -> np.ndarray:
    """Noise between `low` and `high` Hz, about unit RMS."""
    x = filtered(2 * rng.random(num_samples(seconds)) - 1, band(low, high, order))
    return x / (np.sqrt(np.mean(x**2)) + 1e-12)


def slow_noise(rng: Rng, seconds: float, per_second: float) -> np.ndarray:
    """Random curve in [0, 1] with about `per_second` independent values a second."""
    points = rng.random(max(4, int(np.ceil(seconds * per_second)) + 3))
    position = np.linspace(0, len(points) - 1.001, num_samples(seconds))
    index = position.astype(np.int64)
    blend = (1 - np.cos(np.pi * (position - index))) / 2
    return points[index] * (1 - blend) + points[index + 1] * blend


def phase(frequency: np.ndarray) -> np.ndarray:
    """Phase in cycles of a tone whose frequency in Hz is given for every sample."""
    return np.cumsum(frequency) / SAMPLE_RATE


def tone(frequency: np.ndarray, harmonics: tuple[float, ...] = (1.0,)) -> np.ndarray:
    """Sum of sines at multiples of `frequency`, with these amplitudes."""
    cycles = phase(frequency)
    return sum(
        amplitude * np.sin(2 * np.pi * number * cycles)
        for number, amplitude in enumerate(harmonics, 1)
        if amplitude
    )


def buzz(frequency: np.ndarray) -> np.ndarray:
    """Sawtooth: all harmonics."""
    # a few hundred Hz: its aliases are far below the noise
    return 2 * (phase(frequency) % 1.0) - 1


def glide(seconds: float, *points: float) -> np.ndarray:
    """Curve through `points`, evenly spaced in time."""
    return np.interp(times(seconds), np.linspace(0, seconds, len(points)), points)


def modes(seconds: float, *partials: tuple[float, float, float]) -> np.ndarray:
    """A struck body: decaying sines, each (Hz, amplitude, decay time in s)."""
    t = times(seconds)
    return sum(
        amplitude * np.exp(-t / decay) * np.sin(2 * np.pi * frequency * t)
        for frequency, amplitude, decay in partials
    )


def decay(seconds: float, time_constant: float) -> np.ndarray:
    return np.exp(-times(seconds) / time_constant)


def faded(x: np.ndarray, fade_in: float = 0.004, fade_out: float = 0.02) -> np.ndarray:
    """Raised-cosine ends of these lengths in seconds, at most half of the sound each."""
    x = x.copy()
    for seconds, piece in ((fade_in, x), (fade_out, x[::-1])):
        size = min(num_samples(seconds), len(x) // 2)
        piece[:size] *= (1 - np.cos(np.pi * np.arange(size) / max(size, 1))) / 2
    return x


def scatter(
    grains: list[np.ndarray], onsets: np.ndarray | list[float], seconds: float | None = None
) -> np.ndarray:
    """Add each grain at its onset (s); cut the sum at `seconds`, if given."""
    starts = [int(round(onset * SAMPLE_RATE)) for onset in onsets]
    size = (
        num_samples(seconds)
        if seconds is not None
        else max(start + len(grain) for start, grain in zip(starts, grains))
    )
    out = np.zeros(size)
    for start, grain in zip(starts, grains):
        stop = min(size, start + len(grain))
        if start < stop:
            out[start:stop] += grain[: stop - start]
    return out


def repeated(
    rng: Rng, make: Callable[[], np.ndarray], count: int, interval: float, jitter: float = 0.06
) -> np.ndarray:
    """`count` sounds, one every `interval` seconds, give or take `jitter` of it."""
    steps = interval * (1 + jitter * (2 * rng.random(count) - 1))
    return scatter([make() for _ in range(count)], np.cumsum(steps) - steps[0])


def paced(
    rng: Rng, make: Callable[[], np.ndarray], seconds: float, interval: float, jitter: float = 0.03
) -> np.ndarray:
    """Repeat as `repeated` does, for a length in seconds instead of a count."""
    count = max(2, int(seconds / interval))
    return repeated(rng, make, count, interval, jitter)


def level(x: np.ndarray) -> float:
    """Loudness of the loud part: RMS that 10 % of the 50 ms frames exceed, silence left out."""
    size = num_samples(0.05)
    frames = np.pad(x, (0, -len(x) % size)).reshape(-1, size)
    rms = np.sqrt(np.mean(frames**2, axis=1))
    return float(np.quantile(rms[rms > 0.05 * rms.max()], 0.9)) if rms.max() > 0 else 0.0
