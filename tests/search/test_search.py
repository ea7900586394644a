"""AudioIndex against the model, clip by clip; changed folders, damaged indexes, killed builds."""

import csv
import json
import math
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from retrieval.base import decoder_process
from retrieval.base import sound as base_sound
from retrieval.base.errors import UserError
from retrieval.config import load_config
from retrieval.models.build import build_model
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.pooling import TextAwareAttentionPooling
from retrieval.moments.locator import Locator
from retrieval.search import AudioIndex, sound, update
from retrieval.search.__main__ import main
from retrieval.search.local import approximate, storage, writer
from tests.conftest import (
    NOTES,
    PATIENCE,
    RHYTHMS,
    SAMPLE_RATE,
    digests,
    run_here,
    run_module,
    tone,
    wait_for,
)
from tests.corpora import write_by_ffmpeg

CLIP_SECONDS = 2.0  # of the tiny model
QUERY = "A steady low tone."


@pytest.fixture
def own(sounds, tmp_path) -> Path:
    """A copy of the sounds that a test may change."""
    return Path(shutil.copytree(sounds, tmp_path / "own"))


def answers(index: AudioIndex, k: int = 50) -> list[tuple]:
    hits = index.search(QUERY, k, fold=False)
    return [(hit.file, hit.start, hit.end, hit.score) for hit in hits]


def check_equal(index: AudioIndex, other: AudioIndex) -> None:
    """Compare files and answers; scores of another batch differ in the last digits."""
    assert index.files == other.files
    found, expected = answers(index), answers(other)
    assert [row[:3] for row in sorted(found)] == [row[:3] for row in sorted(expected)]
    np.testing.assert_allclose(
        [row[3] for row in sorted(found)], [row[3] for row in sorted(expected)], atol=1e-4
    )


def slow_samples(path: Path) -> np.ndarray:
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    return mono if rate == SAMPLE_RATE else soxr.resample(mono, rate, SAMPLE_RATE)


# --- what it answers ---


@pytest.mark.parametrize("pooling", ["tap", "mean"])
def test_scores_and_times_are_the_models(models, sounds, tmp_path, pooling):
    index = AudioIndex.build(sounds, models / pooling, tmp_path / "index")
    model = DualEncoder.from_pretrained(models / pooling)
    hits = index.search(QUERY, 50)
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1)) and {
        hit.file for hit in hits
    } == {file.file for file in index.files}
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    with torch.no_grad():
        text = model.encode_text([QUERY])
        for hit in hits:
            samples = torch.from_numpy(
                slow_samples(sounds / hit.file)[
                    round(hit.start * SAMPLE_RATE) : round(hit.end * SAMPLE_RATE)
                ]
            )
            frames, mask = model.encode_audio(samples[None], torch.tensor([len(samples)]))
            assert hit.score == pytest.approx(model.score(text, frames, mask).item(), abs=2e-3), (
                hit.file
            )
            if pooling == "mean":
                assert hit.attention is None
                continue
            weights = model.attention(text, frames, mask)[0, 0][mask[0]]
            np.testing.assert_allclose(hit.attention, weights, atol=3e-3)
            assert hit.start <= hit.attended_from < hit.attended_to <= hit.end + 1e-6
    spread = [hit.score for hit in hits]
    assert max(spread) - min(spread) > 0.02  # else the tolerance above would let everything pass


def slow_moments(values: list[float], score: float) -> list[tuple[int, int, float]]:
    """Stretches of highest sum over the mean by trying all; each next one between those before."""
    above = [value - sum(values) / len(values) for value in values]
    free, found = [True] * len(values), []
    while len(found) < 10:
        pairs = [
            (sum(above[first:stop]), first, stop)
            for first in range(len(values))
            for stop in range(first + 1, len(values) + 1)
            if all(free[first:stop])
        ]
        if not pairs:
            break
        total, first, stop = max(pairs, key=lambda pair: (pair[0], -pair[1]))
        best = found[0][2] if found else total
        if total < 0.3 * best:
            break
        found.append((first, stop, total))
        free[first:stop] = [False] * (stop - first)
    shares = [total / found[0][2] for *_, total in found]
    own = [score * share if score > 0 else score / share for share in shares]
    return [(first, stop, one) for (first, stop, _), one in zip(found, own, strict=True)]


@pytest.mark.parametrize("pooling", ["tap", "mean"])
def test_moments_are_the_stretches_of_the_contributions(models, sounds, tmp_path, pooling):
    index = AudioIndex.build(sounds, models / pooling, tmp_path / "index")
    model, numbers = DualEncoder.from_pretrained(models / pooling), []
    with torch.no_grad():
        text = model.encode_text([QUERY])
        for hit in index.search(QUERY, 50):
            excerpts = index.store.excerpts(index.store.clips_of(hit.file))
            (clip,) = [excerpt.clip for excerpt in excerpts if excerpt.start == hit.start]
            stored = index.store.frames(clip).float()  # (T, D)
            if pooling == "tap":  # by the unfolded formula, frame by frame
                tap = model.pooling
                keys, query = tap.key(stored), tap.query(tap.norm(text))[0]
                weights = (keys @ query / math.sqrt(len(query))).softmax(dim=0)
                own = tap.norm(tap.output(tap.value(stored)))
                values = weights * torch.cosine_similarity(text, own, dim=1)
            else:
                assert hit.attention is None
                values = torch.cosine_similarity(text, stored, dim=1)
            expected = slow_moments(values.tolist(), hit.score)
            assert len(hit.moments) == len(expected)
            numbers.append(len(expected))
            frame = model.windows.frame_samples / SAMPLE_RATE
            for moment, (first, stop, score) in zip(hit.moments, expected, strict=True):
                assert moment.start == pytest.approx(hit.start + first * frame)
                assert moment.end == pytest.approx(min(hit.start + stop * frame, hit.end))
                assert moment.score == pytest.approx(score, rel=1e-3)
            assert hit.moments[0].score == hit.score
            assert (hit.attended_from, hit.attended_to) == hit.moments[0][:2]
            scores = [moment.score for moment in hit.moments]
            assert scores == sorted(scores, reverse=True)
    assert max(numbers) > 1


@pytest.mark.parametrize("pooling", ["tap", "mean"])
def test_a_moment_head_answers_from_the_index_as_from_the_sound(
    tiny, models, sounds, tmp_path, pooling
):
    settings = [f"pooling.name={pooling}", "moment_head={hidden: 8, step_seconds: 0.08}"]
    torch.manual_seed(3)
    start = f"train.init_from={models / pooling}"
    model = build_model(load_config(tiny / "tiny.yaml", [*settings, start])).eval()
    with torch.no_grad():
        model.moment_head.logit.weight.mul_(20)
    model.save_pretrained(tmp_path / "model")
    index = AudioIndex.build(sounds, tmp_path / "model", tmp_path / "index")
    plain = AudioIndex.build(sounds, models / pooling, tmp_path / "plain")
    assert answers(index) == answers(plain)  # the head changes no answer
    locator, compared = Locator(model, "head"), 0
    with torch.no_grad():
        text = model.encode_text([QUERY])
    for hit in index.search(QUERY, 50):
        if hit.seconds <= 2.0:  # one excerpt
            samples = slow_samples(sounds / hit.file)
            (expected,) = locator.locate(text, locator.hear([samples])).moments
            # stored in half precision
            assert hit.moments[0].score == pytest.approx(expected[0].score, abs=5e-3)
            assert hit.moments[0][:2] == pytest.approx(expected[0][:2], abs=0.09)
            compared += 1
    assert compared > 2


def test_a_sound_heard_twice_is_found_twice(models, tmp_path):
    """Two places with the same sound, in silence, are two stretches of like score."""
    samples = np.zeros(2 * SAMPLE_RATE, np.float32)
    beep = tone(0, 0, 0.4, np.random.default_rng(0)).astype(np.float32)
    for second in (0.2, 1.3):
        first = round(second * SAMPLE_RATE)
        samples[first : first + len(beep)] = beep
    (tmp_path / "sounds").mkdir()
    soundfile.write(tmp_path / "sounds" / "twice.wav", samples, SAMPLE_RATE)
    index = AudioIndex.build(tmp_path / "sounds", models / "mean", tmp_path / "index")
    frames = index.store.frames(0).float()
    first, second = round(0.4 / index.model.frame_seconds), round(1.5 / index.model.frame_seconds)
    assert torch.cosine_similarity(frames[first], frames[second], dim=0) > 0.8
    heard = (frames[first] + frames[second]) - 2 * frames[round(0.9 / index.model.frame_seconds)]
    index._encode_text = lambda texts: heard[None]
    (hit,) = index.search(QUERY)
    two = sorted(hit.moments)[:2]
    assert len(hit.moments) == 2
    assert two[0].start == pytest.approx(0.2, abs=0.1) and two[0].end == pytest.approx(0.6, abs=0.1)
    assert two[1].start == pytest.approx(1.3, abs=0.1) and two[1].end == pytest.approx(1.7, abs=0.1)


def test_frames_are_kept_unless_told_otherwise(models, sounds, tmp_path, capsys):
    """Without frames an index is as those of earlier versions: same files, same record."""
    build = ["index", str(sounds), "--checkpoint", str(models / "mean"), "--quiet", "--index"]
    without, kept = tmp_path / "without", tmp_path / "kept"
    assert main([*build, str(without), "--frames", "none"]) == 0
    assert main([*build, str(kept)]) == 0
    names = {"index.sqlite", "vectors-0.f32", "unreadable.csv", ".lock"}
    assert set(os.listdir(without)) == names
    assert set(os.listdir(kept)) == names | {"frames-0.f16"}
    assert digests(without)["vectors-0.f32"] == digests(kept)["vectors-0.f32"]
    hits, same = (AudioIndex.open(path).search(QUERY, 50) for path in (without, kept))
    for hit, other in zip(hits, same, strict=True):
        assert (hit.file, hit.start, hit.score) == (other.file, other.start, other.score)
        assert hit.moments == ((hit.start, hit.end, hit.score),) and not hit.is_located
    assert any(hit.is_located for hit in same)
    for sound_hit in AudioIndex.open(kept).search_audio(sounds / "stereo.wav"):
        assert not sound_hit.is_located
    # each stays as it was made, and says so
    for path, other in ((without, "float16"), (kept, "none")):
        assert main([*build, str(path)]) == 0
        with pytest.raises(UserError, match="--frames") as error:
            main([*build, str(path), "--frames", other])
        assert "--overwrite" in str(error.value)
    with pytest.raises(UserError, match="--frames none"):
        AudioIndex.build(sounds, models / "tap", tmp_path / "tap", frames="none")
    with pytest.raises(UserError, match="'int3'"):
        AudioIndex.build(sounds, models / "mean", tmp_path / "other", frames="int3")
    assert not (tmp_path / "tap").exists() and not (tmp_path / "other").exists()


def test_an_answer_from_a_long_file_is_a_place_in_it(indexed, sounds):
    index = AudioIndex.open(indexed)
    clip = slow_samples(sounds / "long.flac")
    seconds = len(clip) / SAMPLE_RATE
    excerpts = index.store.excerpts(index.store.clips_of("long.flac"))
    starts, stops = np.array([excerpt[2:] for excerpt in excerpts]).T
    # half of clip_seconds apart, the last one to the end
    np.testing.assert_allclose(starts, [0, 1, 2, 3, 4, 5, seconds - CLIP_SECONDS], atol=1e-4)
    np.testing.assert_allclose(stops, starts + CLIP_SECONDS, atol=1e-4)
    hits = [hit for hit in index.search(QUERY, 50) if hit.file == "long.flac"]
    spans = sorted((hit.start, hit.end) for hit in hits)
    # the best of overlapping ones alone
    assert len(spans) > 1 and all(end <= start for (_, end), (start, _) in zip(spans, spans[1:]))


def test_excerpts_of_a_stream_are_those_of_the_whole(tmp_path, monkeypatch):
    # in this process, where the size of a block can be set
    monkeypatch.setattr(sound, "mono_blocks", base_sound.mono_blocks)
    rng = np.random.default_rng(0)
    for num_samples in (1, 99, 100, 101, 149, 150, 151, 250, 1000):
        for hop in (30, 50, 100):
            for block in (7, 64, 5000):
                monkeypatch.setattr(base_sound, "BLOCK_FRAMES", block)
                samples = rng.uniform(-0.5, 0.5, num_samples).astype(np.float32)
                soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE, subtype="FLOAT")
                stream = list(sound.read_excerpts(tmp_path / "a.wav", SAMPLE_RATE, 100, hop))
                whole = sound.cut(samples, SAMPLE_RATE, SAMPLE_RATE, 100, hop)
                assert [excerpt.start for excerpt in stream] == [excerpt.start for excerpt in whole]
                assert all(np.array_equal(a.samples, b.samples) for a, b in zip(stream, whole))
                assert {
                    excerpt.start + i for excerpt in whole for i in range(len(excerpt.samples))
                } == set(range(num_samples))


def test_all_formats_are_heard(indexed):
    names = {file.file for file in AudioIndex.open(indexed).files}
    assert {Path(name).suffix for name in names} == {".wav", ".flac", ".ogg", ".mp3"} and len(
        names
    ) == 14


def test_filters(indexed):
    index = AudioIndex.open(indexed)
    assert index.folders == ["below", "high up"]
    within = index.search(QUERY, 50, within="high up")
    assert within and {hit.file for hit in within} == {
        file.file for file in index.files if file.file.startswith("high up/")
    }
    assert {hit.file for hit in index.search(QUERY, 50, min_seconds=2.0)} == {"long.flac"}
    short = index.search(QUERY, 50, max_seconds=1.0)
    assert {hit.file for hit in short} == {
        file.file for file in index.files if file.seconds <= 1.0
    } and short
    assert (
        index.search(QUERY, within="no such folder") == []
        and index.search(QUERY, within="high") == []
    )


def test_several_queries_at_once_are_each_alone(indexed, monkeypatch):
    index = AudioIndex.open(indexed)
    queries = [f"A {rhythm} {note} tone." for note in NOTES for rhythm in RHYTHMS]
    monkeypatch.setattr("retrieval.search.index.QUERIES_AT_ONCE", 5)
    for query, hits in zip(queries, index.search_many(queries, 4)):
        alone = index.search(query, 4)
        assert [hit.file for hit in hits] == [hit.file for hit in alone] and len(hits) == 4
        np.testing.assert_allclose(
            [hit.score for hit in hits], [hit.score for hit in alone], atol=1e-5
        )


def test_a_shortlist_is_that_of_the_first_stage(indexed, monkeypatch):
    """Answers of few candidates are the best of the first stage, in the order of TAP."""
    index = AudioIndex.open(indexed)
    everything = index.search(QUERY, 50)
    monkeypatch.setattr("retrieval.search.index.CANDIDATES", 4)
    monkeypatch.setattr("retrieval.search.index.CANDIDATES_PER_HIT", 1)
    hits = index.search(QUERY, 4)
    text = torch.nn.functional.normalize(index.model.encode_text([QUERY]), dim=1)
    vectors = torch.from_numpy(index.store.vectors(range(len(index.store))))
    best = (vectors @ text[0]).argsort(descending=True)[:4].tolist()
    files = {excerpt.file.file for excerpt in index.store.excerpts(best)}
    assert {hit.file for hit in hits} == files
    assert [hit.file for hit in hits] == [hit.file for hit in everything if hit.file in files][
        : len(hits)
    ] or "long.flac" in files


def test_more_like_this(indexed, sounds, tmp_path):
    index = AudioIndex.open(indexed)
    copy = tmp_path / "elsewhere.wav"
    soundfile.write(
        copy, slow_samples(sounds / "below" / "low steady.wav"), SAMPLE_RATE, subtype="FLOAT"
    )
    best, *others = index.search_audio(copy, 50)
    assert (
        best.file == "below/low steady.wav"
        and best.score == pytest.approx(1.0, abs=1e-3)
        and others[0].score < 0.9999
    )
    # A file of the index is not an answer to itself, nor under another spelling of its path.
    for own in (
        sounds / "below" / "low steady.wav",
        sounds / "below" / ".." / "below" / "low steady.wav",
    ):
        assert [hit.file for hit in index.search_audio(own, 50)] == [hit.file for hit in others]
    from_memory = index.search_audio(soundfile.read(copy), 50)
    assert [hit.file for hit in from_memory] == [hit.file for hit in (best, *others)]
    assert [hit.score for hit in from_memory] == pytest.approx(
        [hit.score for hit in (best, *others)]
    )
    pcm, rate = soundfile.read(sounds / "below" / "low steady.wav", dtype="int16")
    for samples in (pcm, pcm.astype(np.int32) * 65536, np.stack([pcm, pcm], axis=1)):
        assert index.search_audio((samples, rate))[0].score > 0.999
    for samples, wrong_rate, message in (
        (np.stack([pcm, pcm]), rate, "has shape"),
        (pcm, 0, "rate of 0"),
        (pcm[:0], rate, "no samples"),
    ):
        with pytest.raises(UserError, match=message):
            index.search_audio((samples, wrong_rate))


def test_overlapping_excerpts_do_not_take_the_places_of_others(own, models, tmp_path, monkeypatch):
    # the long one has as many excerpts as fit in
    index = AudioIndex.build(own, models / "tap", tmp_path / "index", hop_seconds=0.1)
    monkeypatch.setattr("retrieval.search.index.CANDIDATES", 5)
    monkeypatch.setattr("retrieval.search.index.CANDIDATES_PER_HIT", 1)
    for hits in (index.search(QUERY, 12), index.search_audio(own / "stereo.wav", 12)):
        assert len(hits) == 12 and [hit.rank for hit in hits] == list(range(1, 13))


def test_a_sound_against_sentences(indexed, sounds):
    index, path = AudioIndex.open(indexed), sounds / "below" / "low steady.wav"
    sentences = [f"A {rhythm} {note} tone." for note in NOTES for rhythm in RHYTHMS]
    samples = torch.from_numpy(slow_samples(path))
    with torch.no_grad():
        frames, mask = index.model.encode_audio(samples[None], torch.tensor([len(samples)]))
        expected = index.model.score(index.model.encode_text(sentences), frames, mask)[:, 0]
    np.testing.assert_allclose(index.score_audio(path, sentences), expected, atol=1e-5)
    # Of a long sound the best place counts.
    scores = index.score_audio(sounds / "long.flac", sentences)
    assert all(math.isfinite(score) for score in scores) and len(scores) == len(sentences)
    with pytest.raises(UserError, match="no sentence"):
        index.score_audio(path, [])


@pytest.mark.slow
def test_the_text_tower_in_8_bit(indexed, sounds, models, tmp_path):
    path = Path(shutil.copytree(indexed, tmp_path / "index"))
    index, fast = AudioIndex.open(path), AudioIndex.open(path, fast_text=True)
    written = digests(path / "fast_text")
    assert "text.onnx" in written
    queries = [f"A {rhythm} {note} tone." for note in NOTES for rhythm in RHYTHMS]
    with torch.no_grad():
        expected, found = index.model.encode_text(queries), fast._encode_text(queries)
    similarities = torch.nn.functional.cosine_similarity(expected, found)
    # close, and not the same encoder
    assert similarities.min() > 0.99 and similarities.max() < 1 - 1e-7
    exact, close = (
        {hit.file: hit.score for hit in opened.search(QUERY, 50)} for opened in (index, fast)
    )
    assert max(abs(exact[file] - close[file]) for file in exact.keys() & close.keys()) < 0.05
    assert main(["query", QUERY, "--index", str(path), "--fast-text", "-k", "1"]) == 0
    assert digests(path / "fast_text") == written
    (path / "fast_text" / "made_from.json").write_text("{}")  # of another model: made again
    AudioIndex.open(path, fast_text=True)
    assert digests(path / "fast_text") == written
    (path / "index.sqlite").unlink()
    # what is left of an index is no foreign folder
    assert AudioIndex.build(sounds, models / "tap", path).changes.added == 14
    AudioIndex.open(path, fast_text=True)
    (path / "fast_text" / "text.onnx").write_bytes(b"garbage")
    with pytest.raises(UserError, match="does not load.*delete"):
        AudioIndex.open(path, fast_text=True)
    AudioIndex.build(sounds, models / "mean", path, overwrite=True)
    assert not (path / "fast_text").exists()


@pytest.mark.parametrize("pooling", ["tap", "mean"])
def test_a_large_index_answers_through_its_approximate_search(
    models, sounds, tmp_path, monkeypatch, pooling
):
    """Made with sentences by the model itself; with all excerpts as candidates it is exact."""
    index = AudioIndex.build(sounds, models / pooling, tmp_path / "index")
    for name, value in (("APPROXIMATE_FROM", 1), ("FEW_ROWS", 0), ("LARGEST_SHARE", math.inf)):
        monkeypatch.setattr(approximate, name, value)
    large = AudioIndex.build(sounds, models / pooling, tmp_path / "index")
    facts = large.store.meta.approximate
    assert facts.kind == "RaBitQ" and facts.recall == 1.0 and facts.rows == len(large.store)
    assert index.store.meta.approximate is None
    check_equal(large, index)


# --- keeping up with a folder ---


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """How many excerpts each call of the encoder got."""
    counts, encode = [], update.ExcerptEncoder.encode

    def counting(self, excerpts):
        counts.append(len(excerpts))
        return encode(self, excerpts)

    monkeypatch.setattr(update.ExcerptEncoder, "encode", counting)
    return counts


def counts_of(index: AudioIndex) -> dict[str, int]:
    return {
        name: count for name, count in vars(index.changes).items() if name != "unreadable" and count
    }


def test_only_what_has_changed_is_encoded(own, models, tmp_path, encoded):
    path = tmp_path / "index"
    assert counts_of(AudioIndex.build(own, models / "tap", path)) == {"added": 14}
    encoded.clear()
    assert (
        counts_of(AudioIndex.build(own, models / "tap", path)) == {"unchanged": 14}
        and encoded == []
    )

    soundfile.write(
        own / "below" / "new.wav", tone(1, 1, 1.0, np.random.default_rng(8)), SAMPLE_RATE
    )
    # another sound under the name
    soundfile.write(own / "stereo.wav", tone(1, 2, 1.2, np.random.default_rng(9)), SAMPLE_RATE)
    (own / "below" / "low steady.wav").unlink()
    (own / "long.flac").rename(own / "below" / "longer name.flac")
    os.utime(own / "high up" / "high rising.wav", (1, 1))
    index = AudioIndex.open(path)
    index.add()
    # the moved one's old name is removed
    assert counts_of(index) == {"added": 1, "changed": 1, "moved": 1, "removed": 2, "unchanged": 11}
    assert sum(encoded) == 2
    check_equal(index, AudioIndex.build(own, None, path))
    check_equal(index, AudioIndex.build(own, models / "tap", tmp_path / "fresh"))


def test_a_change_of_content_that_keeps_the_size_is_seen_by_its_time(own, models, tmp_path):
    index = AudioIndex.build(own, models / "tap", tmp_path / "index")
    file = own / "below" / "low steady.wav"
    samples, rate = soundfile.read(file)
    soundfile.write(file, samples[::-1], rate)
    os.utime(file, (2, 2))
    index.add()
    assert counts_of(index) == {"changed": 1, "unchanged": 13}


def test_what_is_gone_leaves_the_disk(own, models, tmp_path, encoded):
    path = tmp_path / "index"
    reader = AudioIndex.build(own, models / "tap", path)
    before, size = answers(reader), (path / "frames-0.f16").stat().st_size
    shutil.copy(own / "below" / "low steady.wav", own / "copy.wav")  # the same frames twice
    for file in [*(own / "high up").iterdir(), own / "long.flac"]:
        file.unlink()
    index = AudioIndex.open(path)
    encoded.clear()
    index.add()
    assert encoded == [] and sorted(file.name for file in path.glob("*-*.f*")) == [
        "frames-1.f16",
        "sizes-1.f32",
        "vectors-1.f32",
    ]
    assert (path / "frames-1.f16").stat().st_size < size / 2
    check_equal(index, AudioIndex.build(own, models / "tap", tmp_path / "fresh"))
    assert answers(reader) == before  # one that was opened before goes on with what it had
    twins = {hit.file: hit.score for hit in index.search(QUERY, 50, fold=False)}
    assert twins["copy.wav"] == twins["below/low steady.wav"]


def spoil(folder: Path) -> dict[str, str]:
    """Files that cannot be indexed, and a piece of the reason of each."""
    (folder / "nothing.wav").touch()
    (folder / "text.mp3").write_text("not a sound" * 100)
    soundfile.write(folder / "no samples.wav", np.zeros(0), SAMPLE_RATE)
    soundfile.write(
        folder / "nan.wav", np.array([0.0, math.nan] * 300), SAMPLE_RATE, subtype="FLOAT"
    )
    (folder / "phone.m4a").write_bytes(b"1234")
    (folder / "outside.wav").symlink_to(folder.parent / "outside.wav")
    soundfile.write(folder.parent / "outside.wav", np.zeros(100), SAMPLE_RATE)
    (folder / "linked").symlink_to(folder.parent)
    (folder / "nowhere.wav").symlink_to(folder / "absent.wav")
    (folder / "a folder.wav").mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/latin\xe9.wav")).write_bytes(b"1234")
    summer = Path(os.fsdecode(os.fsencode(folder) + b"/\xe9t\xe9"))
    summer.mkdir()
    (summer / "a.wav").write_bytes(b"1234")
    broken = (folder / "long.flac").read_bytes()
    (folder / "damaged.flac").write_bytes(broken[: len(broken) // 2] + b"\0" * 2000)
    return {
        "nothing.wav": "0 bytes",
        "text.mp3": "is not a sound file",
        "no samples.wav": "no samples",
        "nan.wav": "NaN",
        "phone.m4a": "is not a sound file",
        "outside.wav": "leads out",
        "linked": "link to a folder",
        "nowhere.wav": "leads nowhere",
        "latin\ufffd.wav": "not UTF-8",
        "\ufffdt\ufffd/a.wav": "not UTF-8",
    }


def test_files_that_cannot_be_read_are_listed_and_tried_again_when_they_change(
    own, models, tmp_path, encoded
):
    expected = spoil(own)
    path = tmp_path / "index"
    index = AudioIndex.build(own, models / "tap", path)
    listed = dict(index.unreadable)
    # of which libsndfile may give the first half
    assert set(expected) <= set(listed) <= {*expected, "damaged.flac"}
    assert [name for name, reason in expected.items() if reason not in listed[name]] == []
    assert {"below/low steady.wav", "stereo.wav"} <= {file.file for file in index.files} and len(
        index.files
    ) >= 14
    with open(path / "unreadable.csv", newline="") as file:
        assert [tuple(row) for row in csv.reader(file)] == [("file", "reason"), *index.unreadable]
    encoded.clear()
    soundfile.write(own / "nan.wav", np.zeros(500), SAMPLE_RATE)
    (own / "text.mp3").unlink()
    index.add()
    assert sum(encoded) == 1 and index.changes.added == 1
    assert set(dict(index.unreadable)) == set(listed) - {"nan.wav", "text.mp3"}


def test_files_of_other_names_are_indexed_and_what_is_no_sound_is_counted(
    own, models, tmp_path, capsys
):
    wave = tone(1, 0, 1.0, np.random.default_rng(5))
    soundfile.write(own / "recorder.dat", wave, SAMPLE_RATE, format="WAV")
    soundfile.write(own / "old.aifc", np.stack([wave, -wave], axis=1), SAMPLE_RATE, format="AIFF")
    write_by_ffmpeg(own / "phone.m4a", wave[:, None], SAMPLE_RATE, "aac", "ipod")
    half = (own / "phone.m4a").read_bytes()
    (own / "half.m4a").write_bytes(half[: len(half) // 2])
    (own / "notes.txt").write_text("The free sounds")
    assert (
        main(
            [
                "index",
                str(own),
                "--checkpoint",
                str(models / "tap"),
                "--index",
                str(tmp_path / "index"),
            ]
        )
        == 0
    )
    printed = capsys.readouterr()
    assert (
        "passed over, since not sound: 1 file: 1 .txt" in printed.out
        and "the channels of 1 file cancel" in printed.out
    )
    index = AudioIndex.open(tmp_path / "index")
    assert {"recorder.dat", "old.aifc", "phone.m4a"} <= {file.file for file in index.files}
    assert [file for file, reason in index.unreadable if "truncated" in reason] == ["half.m4a"]


def test_a_reader_that_reads_more_tries_once_more(own, models, tmp_path, encoded, monkeypatch):
    (own / "junk.mp3").write_text("no sound")
    path = tmp_path / "index"
    index = AudioIndex.build(own, models / "tap", path)
    opened = []
    read_excerpts = update.read_excerpts
    monkeypatch.setattr(
        update,
        "read_excerpts",
        lambda path, *rest: opened.append(path.name) or read_excerpts(path, *rest),
    )
    index.add()
    assert opened == []
    monkeypatch.setattr(update, "READER_VERSION", update.READER_VERSION + 1)
    index.add()
    index.add()
    assert opened == ["junk.mp3"] and [file for file, _ in index.unreadable] == ["junk.mp3"]


def test_an_index_without_a_readable_file_answers_nothing(models, tmp_path):
    folder = tmp_path / "sounds"
    folder.mkdir()
    (folder / "text.wav").write_text("no sound")
    index = AudioIndex.build(folder, models / "tap", tmp_path / "index")
    assert (
        index.files == []
        and index.folders == []
        and index.search(QUERY) == []
        and AudioIndex.open(tmp_path / "index").search(QUERY) == []
    )
    assert index.search_audio((np.zeros(1000, np.float32), SAMPLE_RATE)) == []


def test_permissions_are_tried_again(own, models, tmp_path, monkeypatch):
    locked_file, hashed = own / "below" / "low steady.wav", update.sha256_of

    def refusing(path):
        if path == locked_file:
            raise PermissionError(13, "Permission denied")
        return hashed(path)

    monkeypatch.setattr(update, "sha256_of", refusing)
    index = AudioIndex.build(own, models / "tap", tmp_path / "index")
    assert index.unreadable == [("below/low steady.wav", "cannot be read: Permission denied")]
    monkeypatch.undo()
    index.add()
    assert index.unreadable == [] and index.changes.added == 1


def test_of_a_folder_that_cannot_be_read_what_is_known_stays(own, models, tmp_path, monkeypatch):
    index = AudioIndex.build(own, models / "tap", tmp_path / "index")
    scandir = os.scandir

    def refusing(path):
        if Path(path).name == "below":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    (own / "stereo.wav").unlink()
    index.add()
    assert index.changes.removed == 1 and index.unreadable == [
        ("below/", "the folder cannot be read: Permission denied")
    ]
    assert sum(file.file.startswith("below/") for file in index.files) == 6
    monkeypatch.undo()
    index.add()
    assert index.unreadable == [] and index.changes.unchanged == 13


def test_odd_files_harm_no_others(own, models, tmp_path):
    soundfile.write(own / "loud.wav", np.full(2000, 1e20, np.float32), SAMPLE_RATE, subtype="FLOAT")
    (own / "loop.wav").symlink_to(own / "loop.wav")
    os.utime(own / "stereo.wav", ns=(2**63 + 10**9, 2**63 + 10**9))
    index = AudioIndex.build(own, models / "tap", tmp_path / "index")
    listed = dict(index.unreadable)
    assert (
        "full scale" in listed.pop("loud.wav")
        and "link" in listed.pop("loop.wav")
        or "not a file" in listed["loop.wav"]
    )
    assert (
        len(index.files) == 14
        and AudioIndex.build(own, None, tmp_path / "index").changes.unchanged == 14
    )


def test_a_decoder_that_dies_costs_one_file(own, models, tmp_path, crashing, capfd):
    path, bad = tmp_path / "index", own / "below" / "bad.wav"
    bad.write_text("die SIGSEGV 3")
    (own / "bad too.flac").write_text("null-pointer")
    index = AudioIndex.build(own, models / "tap", path)
    reason = "its decoder crashed (SIGSEGV)"
    assert (
        len(index.files) == 14
        and index.is_complete
        and dict(index.unreadable) == {"below/bad.wav": reason, "bad too.flac": reason}
    )
    for search in (index.search_audio, lambda sound: index.score_audio(sound, [QUERY])):
        with pytest.raises(UserError, match=r"bad.wav its decoder crashed \(SIGSEGV\)"):
            search(bad)
        assert search(own / "stereo.wav")
    assert capfd.readouterr().err == ""
    ended = run_here(main, "query", "--audio", str(bad), "--index", str(path))
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and reason in ended.stderr
    soundfile.write(bad, tone(1, 1, 1.0, np.random.default_rng(8)), SAMPLE_RATE)
    index.add()
    assert counts_of(index)["added"] == 1 and [file for file, _ in index.unreadable] == [
        "bad too.flac"
    ]
    crashing.undo()  # a newer library, which does not crash at the same file
    decoder_process.close_all()
    index.add()
    assert "crashed" not in dict(index.unreadable)["bad too.flac"]


# --- recordings that were moved as a whole ---


def test_a_folder_that_was_moved_keeps_its_index(own, models, tmp_path, encoded, capsys):
    path = tmp_path / "index"
    (own / "text.mp3").write_text("not a sound" * 100)
    reader = AudioIndex.build(own, models / "tap", path)
    before, moved = answers(reader), Path(shutil.move(own, tmp_path / "moved"))
    assert main(["query", QUERY, "--index", str(path)]) == 0
    assert capsys.readouterr().err.count("ITS_NEW_PLACE") == 1  # one note, not one a hit
    with pytest.raises(UserError, match="is gone; if it was moved"):
        reader.add()
    # copied without the times, two of them under each other's name
    for name, file in enumerate(sorted(moved.rglob("*.wav"))):
        os.utime(file, (name, name))
    names = moved / "below" / "low steady.wav", moved / "high up" / "high rising.wav"
    names[0].rename(moved / "kept"), names[1].rename(names[0]), (moved / "kept").rename(names[1])
    encoded.clear()
    index = AudioIndex.build(moved, None, path)
    assert (
        counts_of(index) == {"moved": 14}
        and encoded == []
        and index.folder == moved
        and index.is_complete
    )
    assert f"was of folder {own}; 14 of its 14 recordings" in capsys.readouterr().err
    assert index.path_of("below/low steady.wav") == names[0] and [
        file for file, _ in index.unreadable
    ] == ["text.mp3"]
    check_equal(index, AudioIndex.build(moved, models / "tap", tmp_path / "fresh"))
    # opened before, it goes on with what it had, and follows when it is brought up to date
    assert answers(reader) == before
    reader.add()
    assert reader.folder == moved and counts_of(reader) == {"unchanged": 14}


def test_a_moved_folder_with_changes(own, models, tmp_path, encoded):
    """A copy with new, changed and missing files; one has another content, but size and time."""
    path = tmp_path / "index"
    AudioIndex.build(own, models / "tap", path)
    moved = Path(shutil.copytree(own, tmp_path / "deeper" / "copy"))
    status = (moved / "below" / "low steady.wav").stat()
    samples, rate = soundfile.read(moved / "below" / "low steady.wav")
    soundfile.write(moved / "below" / "low steady.wav", samples[::-1], rate)
    os.utime(moved / "below" / "low steady.wav", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (moved / "below" / "low steady.wav").stat().st_size == status.st_size
    (moved / "stereo.wav").unlink()
    shutil.copy(moved / "long.flac", moved / "twin.flac")
    soundfile.write(moved / "new.wav", tone(1, 1, 1.0, np.random.default_rng(8)), SAMPLE_RATE)
    encoded.clear()
    index = AudioIndex.build(moved, None, path)
    assert (
        counts_of(index) == {"added": 1, "changed": 1, "moved": 13, "removed": 1}
        and sum(encoded) == 2
    )
    check_equal(index, AudioIndex.build(moved, models / "tap", tmp_path / "fresh"))
    # Back again: what the copy lacks is encoded.
    encoded.clear()
    index = AudioIndex.build(own, None, path)
    assert (
        counts_of(index) == {"added": 1, "changed": 1, "moved": 12, "removed": 1}
        and sum(encoded) == 2
    )


def test_a_wrong_folder_does_not_empty_the_index(own, models, tmp_path, encoded):
    path = tmp_path / "index"
    AudioIndex.build(own, models / "tap", path)
    before, other = digests(path), tmp_path / "other"
    other.mkdir()
    soundfile.write(other / "a.wav", tone(1, 1, 1.0, np.random.default_rng(8)), SAMPLE_RATE)
    encoded.clear()
    # A part of the indexed folder is the likely mistake, also where it is the larger one.
    for folder, count in ((other, 0), (own / "below", 6), (own / "most", 8)):
        if folder.name == "most":
            (
                (own / "high up").rename(folder),
                shutil.move(own / "long.flac", folder),
                shutil.move(own / "stereo.wav", folder),
            )
        with pytest.raises(
            UserError,
            match=f"of folder {own}; {folder} holds {count} of its 14 recordings.*--overwrite",
        ):
            AudioIndex.build(folder, None, path)
        assert digests(path) == before and encoded == []
    shutil.move(own / "below", own / "most")
    # everything lies in there now
    assert counts_of(AudioIndex.build(own / "most", None, path)) == {"moved": 14}
    # a folder around it loses nothing
    assert counts_of(AudioIndex.build(own.parent, None, path)) == {"moved": 14, "added": 1}


def test_the_same_folder_by_another_path_is_the_same(own, models, tmp_path, monkeypatch, capsys):
    path = tmp_path / "index"
    AudioIndex.build(own, models / "tap", path)
    (tmp_path / "link").symlink_to(own)
    monkeypatch.chdir(tmp_path)
    for folder in ("own", "./own/../own/", tmp_path / "link", Path("link")):
        index = AudioIndex.build(folder, None, path)
        assert counts_of(index) == {"unchanged": 14} and index.folder == own
    assert "was of folder" not in capsys.readouterr().err


def test_a_closed_part_of_a_moved_folder_keeps_its_entries(own, models, tmp_path, monkeypatch):
    path = tmp_path / "index"
    AudioIndex.build(own, models / "tap", path)
    moved, scandir = Path(shutil.move(own, tmp_path / "moved")), os.scandir

    def refusing(path):
        if Path(path).name == "below":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert counts_of(AudioIndex.build(moved, None, path)) == {"moved": 8}
    monkeypatch.undo()
    index = AudioIndex.build(moved, None, path)  # compared by content now
    assert len(index.files) == 14 and counts_of(index) == {"unchanged": 14}


@pytest.mark.parametrize(("name", "count"), [("commit", 1), ("write_meta", 1), ("commit", 3)])
def test_a_kill_while_a_moved_folder_is_taken_over(own, models, tmp_path, encoded, name, count):
    path = tmp_path / "index"
    AudioIndex.build(own, models / "tap", path)
    moved = Path(shutil.move(own, tmp_path / "moved"))
    soundfile.write(moved / "new.wav", tone(1, 1, 1.0, np.random.default_rng(8)), SAMPLE_RATE)
    process = in_process(
        build_and_die,
        writer if name == "write_meta" else writer.IndexWriter,
        name,
        count,
        moved,
        None,
        path,
    )
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(AudioIndex.open(path).files) >= 14
    encoded.clear()
    index = AudioIndex.build(moved, None, path)
    assert index.is_complete and index.folder == moved and sum(encoded) <= 1
    check_equal(index, AudioIndex.build(moved, models / "tap", tmp_path / "fresh"))


# --- kills, and several at once ---


def in_process(function, *arguments) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def hold(path: Path, is_held, may_end) -> None:
    with writer.locked(path):
        is_held.set()
        may_end.wait()


def build_and_die(owner, name: str, count: int, sounds: Path, model: Path, path: Path) -> None:
    """Build an index, and kill this process after the `count`-th call of a function."""
    original, calls = getattr(owner, name), []

    def dying(*args, **kwargs):
        result = original(*args, **kwargs)
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, dying)
    update.SECONDS_BETWEEN_COMMITS = 0.0
    AudioIndex.build(sounds, model, path, batch_size=2)


PLACES = [
    *((writer.IndexWriter, "append", count) for count in (1, 4)),
    *((writer.IndexWriter, "commit", count) for count in (1, 3, 9)),
    (writer, "write_meta", 1),
    (writer, "write_meta", 4),
    (writer.os, "fsync", 5),
    (writer.IndexWriter, "finish", 1),
]


@pytest.mark.parametrize(
    ("owner", "name", "count"), PLACES, ids=[f"{name}-{count}" for _, name, count in PLACES]
)
def test_a_killed_build_goes_on(sounds, models, indexed, tmp_path, encoded, owner, name, count):
    path = tmp_path / "index"
    process = in_process(build_and_die, owner, name, count, sounds, models / "tap", path)
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    num_before = 0
    if (path / "index.sqlite").exists():
        half = AudioIndex.open(path)  # searched in the meantime, what is there is right
        whole = {row[:3]: row[3] for row in answers(AudioIndex.open(indexed))}
        assert all(
            row[3] == pytest.approx(whole[row[:3]], abs=1e-4)
            for row in answers(half)
            if row[0] != "long.flac"
        )
        assert half.is_complete == (name == "finish")
        num_before = len(half.files)
    index = AudioIndex.build(sounds, models / "tap", path)
    assert index.is_complete and index.changes.unchanged == num_before
    assert sum(encoded) <= 20 - num_before  # excerpts of the whole folder
    check_equal(index, AudioIndex.open(indexed))
    num_rows = index.store.meta.num_rows
    (vectors,) = path.glob("vectors-*.f32")
    # without what the killed process had appended
    assert vectors.stat().st_size == num_rows * 32 * 4


def test_a_kill_while_the_index_is_written_anew(own, models, tmp_path):
    path = tmp_path / "index"
    AudioIndex.build(own, models / "tap", path)
    shutil.rmtree(own / "high up")
    (own / "long.flac").unlink()
    process = in_process(
        build_and_die, writer.IndexWriter, "_append_rows", 3, own, models / "tap", path
    )
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL and (path / "vectors-1.f32").exists()
    index = AudioIndex.build(own, models / "tap", path)
    assert sorted(file.name for file in path.glob("*-*.f*")) == [
        "frames-1.f16",
        "sizes-1.f32",
        "vectors-1.f32",
    ]
    check_equal(index, AudioIndex.build(own, models / "tap", tmp_path / "fresh"))


def test_two_at_once_take_turns(sounds, models, indexed, tmp_path, capfd):
    path, said = tmp_path / "index", []

    def both_wait() -> bool:
        said.append(capfd.readouterr().err)
        return "".join(said).count("waiting for it") == 2

    is_held, may_end = multiprocessing.Event(), multiprocessing.Event()
    holder = in_process(hold, path, is_held, may_end)
    assert is_held.wait(PATIENCE)
    processes = [in_process(AudioIndex.build, sounds, models / "tap", path) for _ in range(2)]
    wait_for(both_wait)
    may_end.set()
    for process in [holder, *processes]:
        process.join(PATIENCE)
    assert [process.exitcode for process in [holder, *processes]] == [0, 0, 0]
    check_equal(AudioIndex.open(path), AudioIndex.open(indexed))


def test_searches_beside_an_update_are_of_one_state(own, models, tmp_path):
    """Hits name a file with that file's own score, whichever state they are of."""
    index = AudioIndex.build(own, models / "tap", tmp_path / "index")
    names = [file.file for file in index.files if file.file != "long.flac"]
    right = {hit.file: hit.score for hit in index.search_audio(own / "long.flac", 50)}
    wrong: list[str] = []
    done = threading.Event()

    def search() -> None:
        while not done.is_set():
            try:
                hits = index.search_audio(own / "long.flac", 50)
                wrong.extend(
                    hit.file
                    for hit in hits
                    if abs(hit.score - right[hit.file.removeprefix("moved ")]) > 1e-3
                )
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for name in [*names[::3]]:
        (own / name).unlink()
        index.add()
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(index.files) == 14 - len(names[::3])


def test_a_reader_of_an_index_that_is_made_anew(sounds, models, indexed, tmp_path, monkeypatch):
    """A reader of the old database finds the old vectors or none, never the new ones."""
    path = Path(shutil.copytree(indexed, tmp_path / "index"))
    mapped, calls = storage.mapped, []

    def late(folder, meta):
        calls.append(meta.generation)
        if len(calls) == 1:
            AudioIndex.build(sounds, models / "mean", path, overwrite=True, frames="none")
        return mapped(folder, meta)

    monkeypatch.setattr(storage, "mapped", late)
    contents = storage.read_index(path)
    assert contents.meta.generation == 1 and not contents.meta.has_frames and calls[0] == 0


def test_an_index_that_another_process_has_made_anew_is_not_continued(own, models, tmp_path):
    path = tmp_path / "index"
    old = AudioIndex.build(own, models / "tap", path)
    AudioIndex.build(own, models / "mean", path, overwrite=True)
    before = digests(path)
    with pytest.raises(UserError, match="another model"):
        old.add()
    assert digests(path) == before
    shutil.rmtree(path)
    with pytest.raises(UserError, match="is gone"):
        old.add()


def test_a_full_disk_keeps_what_was_there(own, models, tmp_path, monkeypatch):
    path = tmp_path / "index"
    AudioIndex.build(own, models / "tap", path)
    before = digests(path)
    soundfile.write(own / "new.wav", tone(1, 1, 1.0, np.random.default_rng(8)), SAMPLE_RATE)
    monkeypatch.setattr(
        writer.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(UserError, match="No space left.*run the command again"):
        AudioIndex.build(own, models / "tap", path)
    monkeypatch.undo()
    assert len(AudioIndex.open(path).files) == 14
    assert AudioIndex.build(own, models / "tap", path).changes.added == 1
    assert digests(path) != before  # the comparison below would otherwise prove nothing


# --- what cannot be ---


def test_an_index_of_another_model(indexed, models, tmp_path, sounds):
    with pytest.raises(UserError, match="made with another model"):
        AudioIndex.open(indexed, models / "mean")
    with pytest.raises(UserError, match="made with another model.*--overwrite"):
        AudioIndex.build(sounds, models / "mean", indexed)
    # the same content elsewhere, with other times
    moved = shutil.copytree(models / "tap", tmp_path / "moved")
    assert len(AudioIndex.open(indexed, moved).files) == 14
    path, model = tmp_path / "index", Path(shutil.copytree(models / "tap", tmp_path / "model"))
    AudioIndex.build(sounds, model, path)
    shutil.rmtree(model)
    with pytest.raises(UserError, match="is gone.*--checkpoint"):
        AudioIndex.open(path)
    shutil.copytree(models / "mean", model)  # trained again under the same name
    with pytest.raises(UserError, match="made with another model"):
        AudioIndex.open(path)
    assert AudioIndex.build(sounds, model, path, overwrite=True).changes.added == 14
    assert [own.name for own in path.glob("frames-*")] == ["frames-1.f16"]
    there = Path(shutil.move(model, tmp_path / "there"))
    assert AudioIndex.build(sounds, there, path).changes.unchanged == 14
    assert len(AudioIndex.open(path).files) == 14  # where the model lies now is remembered


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("index.sqlite", lambda path: path.write_bytes(b"garbage" * 999), "damaged"),
        ("index.sqlite", lambda path: path.write_bytes(path.read_bytes()[:5000]), "damaged"),
        ("index.sqlite", lambda path: path.write_bytes(b""), "damaged"),
        ("index.sqlite", lambda path: path.unlink(), "not an index"),
        ("frames-0.f16", lambda path: path.write_bytes(path.read_bytes()[:-10]), "shorter"),
        ("frames-0.f16", lambda path: path.unlink(), "missing"),
        ("vectors-0.f32", lambda path: path.unlink(), "missing"),
        (
            "vectors-0.f32",
            lambda path: path.write_bytes(b"\xff" * path.stat().st_size),
            "not those that were written",
        ),
    ],
)
def test_a_damaged_index(indexed, tmp_path, sounds, models, file, damage, message):
    path = Path(shutil.copytree(indexed, tmp_path / "index"))
    damage(path / file)
    with pytest.raises(UserError, match=message):
        AudioIndex.open(path)
    assert len(AudioIndex.build(sounds, models / "tap", path, overwrite=True).files) == 14


def test_frames_that_are_not_numbers_are_no_answer(indexed, tmp_path):
    path = Path(shutil.copytree(indexed, tmp_path / "index"))
    (path / "frames-0.f16").write_bytes(b"\xff" * (path / "frames-0.f16").stat().st_size)
    with pytest.raises(UserError, match="NaN"):
        AudioIndex.open(path).search(QUERY)


@pytest.mark.parametrize(
    "key", ["generation", "dim", "folder", "model", "num_rows", "num_frames", "has_frames"]
)
@pytest.mark.parametrize("value", [None, "[]", "-7"])
def test_a_damaged_database_is_one_line(indexed, tmp_path, key, value):
    path = Path(shutil.copytree(indexed, tmp_path / "index"))
    with sqlite3.connect(path / storage.DATABASE) as database:
        (
            database.execute("DELETE FROM meta WHERE key = ?", (key,))
            if value is None
            else database.execute("UPDATE meta SET value = ? WHERE key = ?", (value, key))
        )
    with pytest.raises(UserError, match="damaged"):
        AudioIndex.open(path)


def test_an_index_of_another_version(indexed, tmp_path):
    path = Path(shutil.copytree(indexed, tmp_path / "index"))
    with sqlite3.connect(path / storage.DATABASE) as database:
        database.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    with pytest.raises(UserError, match="version 99.*--overwrite"):
        AudioIndex.open(path)


def test_a_pooling_of_another_form_is_refused(models, sounds, tmp_path, monkeypatch):
    monkeypatch.delattr(TextAwareAttentionPooling, "folded_maps")
    with pytest.raises(UserError, match="TextAwareAttentionPooling .* neither searched nor expor"):
        AudioIndex.build(sounds, models / "tap", tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_folders_that_cannot_be_indexed(models, sounds, indexed, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("keep me")
    cases = [
        ((tmp_path / "absent", models / "tap", tmp_path / "i"), "absent"),
        ((tmp_path / "empty", models / "tap", tmp_path / "i"), "no audio file"),
        ((sounds, None, tmp_path / "i"), "--checkpoint"),
        ((sounds, tmp_path / "absent", tmp_path / "i"), "does not exist"),
        ((sounds, models / "tap", tmp_path / "other"), "other files"),
        ((sounds, models / "tap", tmp_path / "other" / "letter.txt"), "is a file"),
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message):
            AudioIndex.build(*arguments)
    assert not (tmp_path / "i").exists() and [
        path.name for path in (tmp_path / "other").iterdir()
    ] == ["letter.txt"]
    with pytest.raises(UserError, match="hop"):
        AudioIndex.build(sounds, models / "tap", indexed, hop_seconds=0.5)
    for hop in (-1.0, 0.0, 1e-5, 2.5, math.nan, math.inf):
        with pytest.raises(UserError, match="hop"):
            AudioIndex.build(sounds, models / "tap", tmp_path / "i", hop_seconds=hop)
    with pytest.raises(UserError, match="batch_size"):
        AudioIndex.build(sounds, models / "tap", tmp_path / "i", batch_size=0)


def test_a_folder_whose_files_are_all_gone_is_a_missing_disk(own, models, tmp_path):
    index = AudioIndex.build(own, models / "tap", tmp_path / "index")
    shutil.rmtree(own)
    own.mkdir()
    with pytest.raises(
        UserError, match="no audio file any more, the index has 14; nothing is changed"
    ):
        index.add()
    own.rmdir()
    with pytest.raises(UserError, match="is gone"):
        index.add()
    assert len(AudioIndex.open(tmp_path / "index").files) == 14


def test_weights_that_are_not_finite(models, sounds, tmp_path):
    model = DualEncoder.from_pretrained(models / "tap")
    with torch.no_grad():
        model.audio_projection.weight[0, 0] = math.nan
    model.save_pretrained(tmp_path / "nan")
    AudioIndex.build(sounds, models / "tap", tmp_path / "index")
    before = digests(tmp_path / "index")
    with pytest.raises(UserError, match="not finite"):
        AudioIndex.build(sounds, tmp_path / "nan", tmp_path / "index", overwrite=True)
    assert digests(tmp_path / "index") == before


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("🐶🔊", "no words"),
        ("?!", "no words"),
        ("zwölf Boxkämpfer", "knows no word"),
        ("low \udcff", "UTF-8"),
    ],
)
def test_queries_that_ask_nothing(indexed, query, message):
    with pytest.raises(UserError, match=message):
        AudioIndex.open(indexed).search(query)


def test_queries_that_are_heard_in_part(indexed):
    index = AudioIndex.open(indexed)
    assert index.notes(QUERY) is None and index.notes("") is None
    assert index.notes("A steady low boxkämpfer!") == "the text encoder does not know: boxkämpfer!"
    long_query = "a steady low tone " * 2500
    hits = index.search(long_query)
    assert "10002 tokens, of which the first" in index.notes(long_query)
    words = long_query.split()[: index.model.text_encoder.max_tokens]
    assert [hit.file for hit in hits] == [hit.file for hit in index.search(" ".join(words))]
    with pytest.raises(UserError, match="characters"):
        index.search("low " * 30_000)
    with pytest.raises(TypeError):
        index.search_many(QUERY)
    for k in (0, -3):
        with pytest.raises(UserError, match="k must be"):
            index.search(QUERY, k)


def test_only_files_of_the_index_have_a_path(own, models, tmp_path):
    index = AudioIndex.build(own, models / "tap", tmp_path / "index")
    assert index.path_of("below/low steady.wav") == own / "below" / "low steady.wav"
    secret = tmp_path / "secret.wav"
    secret.write_bytes(b"1")
    for file in (
        "../secret.wav",
        str(secret),
        "below/../../secret.wav",
        "",
        ".",
        "below",
        "below/../below/low steady.wav",
    ):
        with pytest.raises(UserError, match="not a file of index"):
            index.path_of(file)
    (own / "stereo.wav").unlink()
    with pytest.raises(UserError, match="no longer"):
        index.path_of("stereo.wav")
    (own / "stereo.wav").symlink_to(secret)
    with pytest.raises(UserError, match="leads out"):
        index.path_of("stereo.wav")


def test_opening_an_index_loads_neither_trainer_nor_writer_nor_page(indexed):
    code = (
        "import sys; from retrieval.search import AudioIndex; AudioIndex.open(sys.argv[1]);"
        " print(*sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(indexed)], capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.split())
    rooms = {name.split(".")[1] for name in loaded if name.startswith("retrieval.")}
    assert rooms == {"base", "models", "moments", "search"}
    assert not loaded & {"retrieval.search.update", "retrieval.search.local.writer"}
    unneeded = {"tensorboard", "torch.utils.tensorboard", "onnx", "onnxruntime", "gradio"}
    assert not loaded & (unneeded | {"datasets", "pandas", "matplotlib"})


# --- the commands ---


def test_the_commands_end_to_end(own, models, tmp_path, capsys):
    (own / "broken.wav").write_text("no sound")
    path = str(tmp_path / "index")
    assert (
        main(["index", str(own), "--checkpoint", str(models / "tap"), "--index", path, "--quiet"])
        == 0
    )
    output = capsys.readouterr()
    assert "14 files" in output.out and "14 added" in output.out and output.out.count("\n") == 2
    assert output.out.splitlines()[1].startswith("note: ")  # of unknown words
    assert (
        output.err.startswith("left out: broken.wav: is not a sound file")
        and output.err.count("\n") == 1
    )

    assert main(["query", QUERY, "--index", path, "-k", "3"]) == 0
    printed = capsys.readouterr().out.replace("(+1)", "").splitlines()
    rows = [line.split(maxsplit=3) for line in printed]
    hits = AudioIndex.open(path).search(QUERY, 3)
    assert [row[0] for row in rows] == ["1", "2", "3"] and [row[3] for row in rows] == [
        hit.file for hit in hits
    ]

    (tmp_path / "queries.txt").write_text(f"{QUERY}\n\nA shrill, pulsing note.\n{QUERY}\n")
    files = "--queries", str(tmp_path / "queries.txt"), "--csv", str(tmp_path / "a.csv")
    assert main(["query", *files, "--index", path, "-k", "2", "--json"]) == 0
    answered = json.loads(capsys.readouterr().out)
    assert [answer["query"] for answer in answered] == [QUERY, "A shrill, pulsing note.", QUERY]
    assert answered[0]["hits"][0]["file"] == hits[0].file and answered[0]["hits"][0][
        "from"
    ] == round(hits[0].attended_from, 2)
    with open(tmp_path / "a.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["query"], row["rank"]) for row in table] == [
        (answer["query"], str(rank)) for answer in answered for rank in (1, 2)
    ]
    for hit, shown, row in zip(hits, answered[0]["hits"], table, strict=False):
        times = [(round(own.start, 2), round(own.end, 2)) for own in hit.moments]
        assert [(own["from"], own["to"]) for own in shown["moments"]] == times
        scores = [own["score"] for own in shown["moments"]]
        assert scores == pytest.approx([own.score for own in hit.moments], abs=1e-5)
        assert (shown["from"], shown["to"]) == times[0] == (float(row["from"]), float(row["to"]))
        assert row["moments"] == " ".join(f"{start:.2f}-{end:.2f}" for start, end in times)

    assert main(["query", QUERY, "--index", path, "--within", "./high up/"]) == 0
    assert capsys.readouterr().out.count("high up/") == 6
    with pytest.raises(UserError, match="it has: below, high up"):
        main(["query", QUERY, "--index", path, "--within", "elsewhere"])
    with pytest.raises(UserError, match="not a file"):
        main(["query", QUERY, "--index", path, "--csv", os.devnull])

    assert main(["query", "--audio", str(own / "below" / "low steady.wav"), "--index", path]) == 0
    assert "low steady.wav" not in capsys.readouterr().out
    (own / hits[0].file).unlink()
    assert main(["query", QUERY, "--index", path]) == 0
    assert f"{hits[0].file!r} is no longer in" in capsys.readouterr().err


def test_stretches_go_out_as_labels_and_clips(indexed, own, sounds, models, tmp_path, capsys):
    """By the command, read back by other readers, against the answers in Python."""
    path = tmp_path / "index"
    index = AudioIndex.build(own, models / "mean", path)
    hits = index.search(QUERY, 5)
    times = {
        hit.file: sorted((round(one.start, 3), round(one.end, 3)) for one in hit.moments)
        for hit in hits
    }
    num_stretches = sum(len(hit.moments) for hit in hits)
    assert num_stretches > len(hits)
    query = ["query", QUERY, "--index", str(path), "-k", "5"]
    folder = tmp_path / "labels"
    assert main([*query, "--labels", "audacity", "--output", str(folder)]) == 0
    assert f"written: {folder}, {len(times)} files" in capsys.readouterr().out
    found = {}
    for file in folder.rglob("*.labels.txt"):
        name = file.relative_to(folder).as_posix().removesuffix(".labels.txt")
        rows = [line.split("\t") for line in file.read_text().splitlines()]
        found[name] = [(round(float(start), 3), round(float(end), 3)) for start, end, _ in rows]
        assert {label for *_, label in rows} == {QUERY}
    assert found == times
    clips = tmp_path / "clips"
    assert main([*query, "--moments", "--clips", str(clips)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{clips}, {num_stretches} clips" in lines[-1] and len(lines) == num_stretches + 1
    stretches = [(hit, moment) for hit in hits for moment in hit.moments]
    for file, (hit, moment) in zip(sorted(clips.iterdir()), stretches, strict=True):
        assert Path(hit.file).stem in file.name
        samples, rate = soundfile.read(file)
        whole, own_rate = soundfile.read(own / hit.file)
        first, stop = round(moment.start * own_rate), round(moment.end * own_rate)
        assert rate == own_rate
        np.testing.assert_allclose(samples, whole[first:stop], atol=1e-4)
    # A second time nothing is replaced; nor is a recording, under whatever option.
    before = digests(clips)
    with pytest.raises(UserError, match="--clips"):
        main([*query, "--clips", str(clips)])
    assert digests(clips) == before
    recording = own / hits[0].file
    for wrong in (["--labels", "csv", "--output", str(recording)], ["--csv", str(recording)]):
        with pytest.raises(UserError, match="is a recording of the index"):
            main([*query, *wrong])
    before = digests(path)
    for wrong in (
        ["--labels", "csv", "--output", str(path / "index.sqlite")],
        ["--csv", str(path / "index.sqlite")],
        ["--clips", str(path / "clips")],
    ):
        with pytest.raises(UserError, match="in the folder of the index"):
            main([*query, *wrong])
    assert digests(path) == before
    # Labels and answers may lie beside the clips.
    both = [*query, "--clips", str(tmp_path / "both"), "--csv", str(tmp_path / "both" / "a.csv")]
    assert main([*both, "--labels", "audacity", "--output", str(tmp_path / "both" / "labels")]) == 0
    assert len(list((tmp_path / "both").iterdir())) == num_stretches + 2
    capsys.readouterr()
    # What is gone is left out of what needs the recording.
    recording.unlink()
    gone = [*query, "--labels", "raven", "--output", str(tmp_path / "raven"), "--json"]
    assert main([*gone, "--clips", str(tmp_path / "others")]) == 0
    output = capsys.readouterr()
    assert "is no longer in" in output.err and len(json.loads(output.out)) == 1
    tables = [file.name for file in (tmp_path / "raven").rglob("*.txt")]
    assert sorted(tables) == sorted(
        Path(file).name + ".Table.1.selections.txt" for file in times if file != hits[0].file
    )
    assert len(list((tmp_path / "others").iterdir())) == num_stretches - len(hits[0].moments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["query", "--index", "absent"], "give one thing to search for"),
        (["query", QUERY, "--queries", "a", "--index", "absent"], "give one thing to search for"),
        (["query", "--audio", "a", "--queries", "a", "--index", "absent"], "give one thing to"),
        (["query", QUERY, "--index", "absent", "-k", "0"], "-k must be"),
        (["query", QUERY, "--index", "absent"], "index absent does not exist"),
        (["query", "--queries", "absent.txt", "--index", "absent"], "absent.txt cannot be read"),
        (["index", "absent", "--index", "absent"], "folder absent is absent"),
        (["index", "configs", "--index", "absent", "--batch-size", "0"], "--batch-size"),
        (["query", QUERY, "--index", "absent", "--csv", "configs"], "--csv configs is a folder"),
        (
            ["query", "--queries", "README.md", "--csv", "./README.md", "--index", "absent"],
            "a file that this run reads",
        ),
        (["query", QUERY, "--index", "absent", "--min-seconds", "nan"], "--min-seconds nan"),
        (
            ["query", QUERY, "--index", "absent", "--min-seconds", "5", "--max-seconds", "4"],
            "--min-seconds 5",
        ),
        (["query", QUERY, "--index", "absent", "--labels", "raven"], "--output"),
        (["query", QUERY, "--index", "absent", "--output", "a"], "--labels"),
        (
            ["query", QUERY, "--index", "absent", "--labels", "csv", "--output", "configs"],
            "--output configs is a folder",
        ),
        (["query", QUERY, "--index", "absent", "--clips", "."], "--clips ."),
        (
            ["query", QUERY, "--index", "absent", "--csv", "absent", "--clips", "absent/clips"],
            "--csv absent is a file, and cannot hold --clips absent/clips",
        ),
        (
            ["query", QUERY, "--index", "absent", "--csv", "absent/a.csv"]
            + ["--labels", "csv", "--output", "absent"],
            "--output absent is a file, and cannot hold --csv",
        ),
        (
            ["query", QUERY, "--index", "absent", "--labels", "raven", "--output", "README.md"],
            "--output README.md is a file",
        ),
        (["query", QUERY, "--index", "absent", "--clips", "configs"], "--clips configs"),
        (["query", QUERY, "--index", ""], "is empty"),
        (["index", "", "--index", "absent"], "is empty"),
        ([], "index|query"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    with pytest.raises((SystemExit, UserError)) as caught:
        main(arguments)
    text = str(caught.value) if isinstance(caught.value, UserError) else capsys.readouterr().err
    assert message in text and len(text.strip().splitlines()) == 1


def test_a_mistake_ends_with_exit_code_2():
    result = run_module(
        "retrieval.search",
        "query",
        "a dog",
        "--index",
        "absent",
        "--csv",
        "configs/tap.yaml/answers.csv",
    )
    assert (
        result.returncode == 2
        and result.stderr.startswith("error: ")
        and result.stderr.count("\n") == 1
    )
