"""Copies of recordings among answers: real codecs, levels and rates against other recordings."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from retrieval.config import load_config
from retrieval.models.build import build_model
from retrieval.search import AudioIndex, copies
from retrieval.search.copies import Chooser, correlation, steps_of
from tests.conftest import SAMPLE_RATE
from tests.corpora import write_by_ffmpeg

QUERY = "A steady low tone."
SECONDS = 5.0
COPIES = ("a.mp3", "a.ogg", "a.opus", "a quiet.wav", "a rate.wav", "a.wav", "b.wav", "b2.wav")


def scene(seed: int) -> np.ndarray:
    """Tones and noises of random times and pitches, (S,)."""
    rng = np.random.default_rng(seed)
    samples = 0.01 * rng.standard_normal(round(SECONDS * SAMPLE_RATE))
    for start in np.sort(rng.uniform(0, SECONDS - 0.6, 8)):
        time = np.arange(round(rng.uniform(0.2, 0.6) * SAMPLE_RATE)) / SAMPLE_RATE
        first = round(start * SAMPLE_RATE)
        sound = np.sin(2 * np.pi * rng.uniform(200, 3000) * time) * np.hanning(len(time))
        samples[first : first + len(time)] += 0.3 * sound
    return samples.astype(np.float32)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    first, second = scene(0), scene(1)
    soundfile.write(folder / "a.wav", first, SAMPLE_RATE)
    write_by_ffmpeg(folder / "a.mp3", first[:, None], SAMPLE_RATE, "libmp3lame")
    soundfile.write(folder / "a.ogg", first, SAMPLE_RATE)
    resampled = soxr.resample(first, SAMPLE_RATE, 48_000)
    write_by_ffmpeg(folder / "a.opus", resampled[:, None], 48_000, "libopus")
    soundfile.write(folder / "a quiet.wav", first / 2, SAMPLE_RATE)
    soundfile.write(folder / "a rate.wav", soxr.resample(first, SAMPLE_RATE, 44_100), 44_100)
    for name in ("b.wav", "b2.wav"):
        soundfile.write(folder / name, second, SAMPLE_RATE)
    for seed in range(2, 7):  # other recordings of the same length
        soundfile.write(folder / f"other {seed}.wav", scene(seed), SAMPLE_RATE)
    return folder


@pytest.fixture(scope="module", params=["tap", "mean"])
def index(request, tiny, sounds, tmp_path_factory) -> AudioIndex:
    torch.manual_seed(0)
    overrides = [f"pooling.name={request.param}", "data.max_seconds=6.0"]
    path = tmp_path_factory.mktemp(request.param)
    built = build_model(load_config(tiny / "tiny.yaml", overrides))
    built.save_pretrained(path / "model")
    return AudioIndex.build(sounds, path / "model", path / "index")


def test_copies_are_one_answer_and_other_recordings_are_not(index):
    every = index.search(QUERY, k=50, fold=False)
    assert all(hit.copies == () for hit in every)
    folded = index.search(QUERY, k=50)
    groups = {frozenset([hit.file, *hit.copies]) for hit in folded}
    expected = {frozenset(COPIES[:6]), frozenset(COPIES[6:])}
    assert groups == expected | {frozenset([f"other {seed}.wav"]) for seed in range(2, 7)}
    # an answer is the best of its copies, and is as without folding
    plain = {(hit.file, hit.start): hit for hit in every}
    for hit in folded:
        other = plain[hit.file, hit.start]
        assert (hit.score, hit.moments) == (other.score, other.moments)
    assert [hit.score for hit in folded] == sorted((hit.score for hit in folded), reverse=True)


def test_an_answer_knows_the_metadata_of_its_copies(index, monkeypatch):
    best = next(hit for hit in index.search(QUERY, k=50) if hit.copies)
    known = {
        best.copies[-1]: {"place": "lake", "year": 2020.0},
        best.copies[0]: {"place": "forest"},
        "other 3.wav": {"place": "moon"},
    }
    monkeypatch.setattr(
        index.store, "fields", lambda names: {own: known[own] for own in names if own in known}
    )
    both = known[best.copies[-1]] | known[best.copies[0]]  # the copy that ranks higher counts
    for hit in index.search(QUERY, k=50):
        assert hit.metadata == (both if hit.file == best.file else known.get(hit.file, {}))
    for hit in index.search(QUERY, k=50, fold=False):
        assert hit.metadata == known.get(hit.file, {})


def test_k_answers_stay_k(index, monkeypatch):
    monkeypatch.setattr("retrieval.search.index.CANDIDATES", 2)
    monkeypatch.setattr("retrieval.search.index.CANDIDATES_PER_HIT", 1)
    hits = index.search(QUERY, k=7)
    assert len(hits) == 7
    assert len({hit.file for hit in hits}) > 1


def test_copies_of_a_sound_as_query(index, sounds):
    hits = index.search_audio(sounds / "a.wav", k=3)
    assert {hits[0].file, *hits[0].copies} <= set(COPIES[:6])
    assert all(hit.file not in COPIES[:6] for hit in hits[1:] if hit.start == hits[0].start)
    assert [hit.copies for hit in index.search_audio(sounds / "a.wav", k=3, fold=False)] == [()] * 3


def test_the_correlation_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    frames, other = rng.standard_normal((2, 50, 3)).astype(np.float32)
    own, size = steps_of(frames, 2.0), 4  # 25 frames a second, steps of 0.16 s
    slow = [frames[first : first + 2 * size].mean(axis=0) for first in range(0, 41, size)]
    np.testing.assert_allclose(own, slow, atol=1e-6)
    assert correlation(own, own * 3 + 5) == pytest.approx(1.0, abs=1e-5)
    theirs = steps_of(other, 2.0)
    first, second = own - own.mean(axis=0), theirs - theirs.mean(axis=0)
    expected = np.corrcoef(first.flatten(), second.flatten())[0, 1]
    assert correlation(own, theirs[:]) == pytest.approx(expected, abs=1e-5)
    assert np.isnan(correlation(own, np.zeros_like(own)))  # silence is no copy


def test_many_answers_are_compared_with_the_last_ones(index, monkeypatch):
    compared = []
    are_copies = Chooser._are_copies
    monkeypatch.setattr(Chooser, "_are_copies", lambda *own: compared.append(1) or are_copies(*own))
    folded = [(hit.file, hit.copies) for hit in index.search(QUERY, k=50)]
    num_all = len(compared)
    monkeypatch.setattr(copies, "MOST_COMPARED", 2)
    compared.clear()
    assert index.search(QUERY, k=50)[0].file == folded[0][0]
    assert len(compared) < num_all and len(compared) <= 2 * index.num_files
