"""A cache of clips with tones at known times: queries that a small model learns to locate."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import NOTES, SAMPLE_RATE, tone, write_rows

SECONDS = 2.0


def timed_clip(split: str, number: int, seconds: float, rng: np.random.Generator) -> dict[str, Any]:
    """A row: two notes after each other on quiet noise, each with a query and its window."""
    samples = 0.01 * rng.standard_normal(int(seconds * SAMPLE_RATE)).astype(np.float32)
    moments, places = [], np.sort(rng.uniform(0, seconds - 0.5, 2))
    places[1] = max(places[1], places[0] + 0.55)
    for place, note in zip(places, rng.permutation(len(NOTES)), strict=False):
        length = min(0.5, seconds - place)
        first = int(place * SAMPLE_RATE)
        sound = tone(int(note), 0, length, rng)[: len(samples) - first]
        samples[first : first + len(sound)] += sound
        window = {"start": float(place), "end": float(place + len(sound) / SAMPLE_RATE)}
        name = f"{split}_{number}_{len(moments)}"
        query = f"someone plays a {NOTES[note]} note"
        moments.append({"qid": name, "query": query, "windows": [window]})
    pcm = np.round(samples.clip(-1, 1) * 32767).astype("<i2")
    return {
        "clip_id": f"{split}/{number}.wav",
        "file_name": f"{number}.wav",
        "audio": pcm.tobytes(),
        "num_samples": len(pcm),
        "captions": [own["query"] for own in moments],
        "moments": moments,
    }


def write_timed_cache(
    path: Path, splits: dict[str, int], seed: int = 0, seconds: float = SECONDS
) -> Path:
    rng = np.random.default_rng(seed)
    rows = {
        split: [timed_clip(split, number, seconds, rng) for number in range(num_clips)]
        for split, num_clips in splits.items()
    }
    return write_rows(path, rows)
