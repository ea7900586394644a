"""Sounds, models and an index that the tests of search share."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from retrieval.config import load_config
from retrieval.models.build import build_model
from retrieval.search import AudioIndex
from tests.conftest import NOTES, RHYTHMS, SAMPLE_RATE, tone


def write_sounds(folder: Path) -> Path:
    """Write 12 sounds in two folders and four formats, one in stereo at 44.1 kHz, one of 7.3 s."""
    rng = np.random.default_rng(5)
    for number in range(12):
        samples = tone(number % 4, number % 3, rng.uniform(0.6, 1.9), rng)
        name = (
            f"{NOTES[number % 4]}"
            f" {RHYTHMS[number % 3]}.{('wav', 'flac', 'ogg', 'mp3')[number // 3]}"
        )
        path = folder / ("high up" if number % 4 > 1 else "below") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, SAMPLE_RATE)
    stereo = np.stack([tone(2, 0, 1.5, rng), tone(3, 0, 1.5, rng)], axis=1)
    soundfile.write(folder / "stereo.wav", soxr.resample(stereo, SAMPLE_RATE, 44_100), 44_100)
    soundfile.write(
        folder / "long.flac",
        np.concatenate([tone(number % 4, 0, 1.46, rng) for number in range(5)]),
        SAMPLE_RATE,
    )
    return folder


@pytest.fixture(scope="module")
def models(tiny, tmp_path_factory) -> Path:
    """Folders `tap` and `mean`, random weights."""
    root = tmp_path_factory.mktemp("models")
    for seed, pooling in enumerate(("tap", "mean")):
        torch.manual_seed(seed)
        model = build_model(load_config(tiny / "tiny.yaml", [f"pooling.name={pooling}"])).eval()
        # frames that differ from each other, so that attention has something to choose
        with torch.no_grad():
            model.audio_projection.weight.mul_(4)
            if pooling == "tap":
                model.pooling.query.weight.mul_(6)
        model.save_pretrained(root / pooling)
    return root


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    return write_sounds(tmp_path_factory.mktemp("sounds"))


@pytest.fixture(scope="module")
def indexed(models, sounds, tmp_path_factory) -> Path:
    """An index of `sounds` with TAP; not to be changed."""
    path = tmp_path_factory.mktemp("indexed") / "index"
    AudioIndex.build(sounds, models / "tap", path)
    return path
