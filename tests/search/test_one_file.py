"""Search in one file without an index: answers, formats of models, files that cannot be read."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from retrieval.base.errors import UserError
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.pretrained import load_pretrained
from retrieval.models.transformer_pooling import TransformerPooling
from retrieval.moments.locator import Locator
from retrieval.search import AudioIndex, find_moments, one_file
from retrieval.search.__main__ import main
from tests.conftest import mistake
from tests.models.test_dual_encoder import RATE, clip, make_model, text_folder  # noqa: F401
from tests.pretrained_models import RATE as PE_RATE
from tests.pretrained_models import make

QUERIES = ["a steady low tone", "someone plays a rising note"]
HEAD = {"hidden": 8, "kernel": 3, "step_seconds": 0.12}


@pytest.fixture(scope="module")
def model(text_folder) -> DualEncoder:  # noqa: F811
    """TAP with a head: clips of 3 s, windows of 1 s, at 8 kHz."""
    return make_model(text_folder, moment_head=HEAD)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "best"
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def meeting(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sounds") / "long meeting.flac"
    sound = np.concatenate([clip(4.0, "a"), clip(3.3, "bbb"), clip(4.0, "ccccc")])
    soundfile.write(path, sound, RATE)
    return path


def answers_of(capsys, *arguments) -> list[dict]:
    assert main(["query", *map(str, arguments), "--json", "--quiet"]) == 0
    return json.loads(capsys.readouterr().out)


@torch.no_grad()
@pytest.mark.parametrize("method", ["auto", "head", "contribution"])
def test_answers_are_the_locator_s_moments(model, folder, meeting, tmp_path, capsys, method):
    queries = tmp_path / "queries.txt"
    queries.write_text("\n".join(QUERIES))
    found = answers_of(
        capsys, "--queries", queries, "--file", meeting, "--checkpoint", folder,
        "--method", method, "-k", 3, "--csv", tmp_path / "answers.csv",
    )  # fmt: skip
    locator = Locator(model, None if method == "auto" else method, most=3)
    samples = soundfile.read(meeting, dtype="float32")[0]
    expected = locator.locate(model.encode_text(QUERIES), locator.hear([samples]))
    assert [own["query"] for own in found] == QUERIES
    for answer, moments in zip(found, expected.moments, strict=True):
        assert 1 <= len(answer["hits"]) <= 3
        rows = [(hit["from"], hit["to"], hit["score"]) for hit in answer["hits"]]
        np.testing.assert_allclose(rows, moments, atol=0.006)
        assert {hit["file"] for hit in answer["hits"]} == {"long meeting.flac"}
        assert {hit["file_seconds"] for hit in answer["hits"]} == {11.3}
        assert [hit["rank"] for hit in answer["hits"]] == list(range(1, 1 + len(moments)))
    with (tmp_path / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["from"] for row in rows] == [str(h["from"]) for a in found for h in a["hits"]]


@torch.no_grad()
def test_a_file_at_another_rate_and_of_two_channels_is_heard_as_one(model, tmp_path):
    sound = np.repeat(clip(5.0).numpy(), 3)  # at 24 kHz
    soundfile.write(tmp_path / "plain.wav", sound, 3 * RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "two.wav", np.stack([sound, sound], 1), 3 * RATE, subtype="FLOAT")
    found, both = (find_moments(tmp_path / n, QUERIES, model) for n in ("plain.wav", "two.wav"))
    assert found.seconds == 5.0 and found.method == "head" and not found.is_silent
    assert found.curves.shape == (2, 125)
    np.testing.assert_allclose(found.curves, both.curves, atol=1e-6)


def test_a_short_file_has_the_answer_of_an_index(folder, tmp_path, capsys):
    """By the head: an excerpt of an index and one of a file are the same."""
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    soundfile.write(recordings / "short.wav", clip(2.5), RATE, subtype="FLOAT")
    model = load_pretrained(folder)
    AudioIndex.build(recordings, folder, tmp_path / "index")
    (hit,) = AudioIndex.open(tmp_path / "index").search(QUERIES[0])
    found = find_moments(recordings / "short.wav", QUERIES[:1], model)
    np.testing.assert_allclose(found.moments[0], hit.moments, atol=2e-3)  # frames in half precision


def test_lines_labels_and_clips(folder, meeting, tmp_path, capsys):
    arguments = ["query", QUERIES[0], "--file", str(meeting), "--checkpoint", str(folder)]
    arguments += ["--labels", "audacity", "--output", str(tmp_path / "labels")]
    arguments += ["--clips", str(tmp_path / "clips"), "--method", "contribution", "-k", "2"]
    assert main([*arguments, "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "long meeting.flac" in out and str(tmp_path / "labels") in out
    labels = (tmp_path / "labels/long meeting.flac.labels.txt").read_text().splitlines()
    clips = sorted((tmp_path / "clips").iterdir())
    assert len(labels) == len(clips) >= 1
    start, end, text = labels[0].split("\t")
    assert text == QUERIES[0]
    lengths = sorted(soundfile.info(own).duration for own in clips)
    spans = sorted(float(own.split("\t")[1]) - float(own.split("\t")[0]) for own in labels)
    np.testing.assert_allclose(lengths, spans, atol=1e-3)


def test_a_name_that_is_not_utf8_is_written_with_a_sign(folder, tmp_path, capsys):
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.wav"))
    soundfile.write(tmp_path / "plain.wav", clip(2.0), RATE)
    (tmp_path / "plain.wav").rename(file)
    asked = [QUERIES[0], "--file", file, "--checkpoint", folder, "--csv", tmp_path / "found.csv"]
    (found,) = answers_of(capsys, *asked, "--labels", "audacity", "--output", tmp_path / "labels")
    assert found["hits"][0]["file"] == "bad\ufffd.wav"
    assert "bad\ufffd.wav" in (tmp_path / "found.csv").read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "labels").iterdir()] == ["bad\ufffd.wav.labels.txt"]


def test_more_moments_than_ten_can_be_asked_for(model):
    curve = np.tile(np.float32([0.9, 0.1, 0.1]), 25)
    for k in (3, 25, 40):
        assert len(Locator(model, "head", most=k).stretches(curve, 10**6, 0.5)[:k]) == min(k, 25)


@pytest.mark.parametrize("family", ["clap", "pe_audio", "pe_a_frame"])
def test_pretrained_models_search_a_file(family, tmp_path, capsys):
    make(family, tmp_path / family)
    noise = 0.1 * np.random.default_rng(0).standard_normal(round(12.4 * PE_RATE))
    soundfile.write(tmp_path / "noise.wav", noise, PE_RATE)
    place = ("--file", tmp_path / "noise.wav", "--checkpoint", tmp_path / family)
    (answer,) = answers_of(capsys, "A dog barks", *place)
    assert answer["hits"]
    for hit in answer["hits"]:
        assert 0 <= hit["from"] < hit["to"] <= 12.4 and np.isfinite(hit["score"])
    # models whose frames have no probabilities
    method = ["--method", "runs"] if family != "pe_a_frame" else ["--method", "head"]
    assert method[1] in mistake(main, "query", "A dog barks", *map(str, place), *method)


def test_an_hour_of_silence_has_finite_answers_and_a_note(text_folder, tmp_path, monkeypatch):  # noqa: F811
    """The stub of a decoder: an hour in blocks, without a file of it."""
    lengths = {"clip_seconds": 60.0, "window_seconds": 10.0, "hop_seconds": 10.0}
    model = make_model(text_folder, moment_head=HEAD, **lengths)
    soundfile.write(tmp_path / "silence.wav", np.zeros(10), RATE)
    hour = lambda *_: (np.zeros(60 * RATE, np.float32) for _ in range(60))  # noqa: E731
    encoded = {}
    plain = Locator._encode

    def once(locator, samples):  # all windows are equal
        if len(samples) not in encoded:
            encoded[len(samples)] = plain(locator, samples)
        return encoded[len(samples)]

    monkeypatch.setattr(one_file, "mono_blocks", hour)
    monkeypatch.setattr(Locator, "_encode", once)
    for method in ("head", "contribution"):
        found = find_moments(tmp_path / "silence.wav", QUERIES, model, method=method)
        assert found.seconds == 3600 and found.is_silent
        assert found.curves.shape == (2, 90_000) and np.isfinite(found.curves).all()
        for moments in found.moments:
            assert 1 <= len(moments) <= 10 and np.isfinite(moments).all()
        (note,) = found.notes()
        assert "zero" in note


def test_files_that_cannot_be_searched(model, folder, meeting, tmp_path, capsys):
    whole = meeting.read_bytes()
    samples = np.zeros(2 * RATE, np.float32)
    samples[-100] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "none.wav", samples[:0], RATE)
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("not a sound")
    (tmp_path / "broken.flac").write_bytes(whole[: len(whole) // 2])
    wav = tmp_path / "cut.wav"
    soundfile.write(wav, clip(8.0), RATE)
    wav.write_bytes(wav.read_bytes()[: 2 * RATE * 5])
    (tmp_path / "folder").mkdir()
    for name, reason in (
        ("gone.wav", "exist"),
        ("empty.wav", "empty"),
        ("none.wav", "no samples"),
        ("nan.wav", "NaN"),
        ("text.wav", "text.wav"),
        ("broken.flac", "broken.flac"),
        ("cut.wav", "cut.wav"),
        ("folder", "folder"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            find_moments(tmp_path / name, QUERIES, model)
        assert "\n" not in str(caught.value) and name in str(caught.value)
    arguments = ("--file", tmp_path / "cut.wav", "--checkpoint", folder)
    output = tmp_path / "answers.csv"
    assert "cut.wav" in mistake(main, "query", "a tone", *map(str, (*arguments, "--csv", output)))
    assert not output.exists()
    # shorter than a frame
    soundfile.write(tmp_path / "short.wav", clip(0.002), RATE)
    found = find_moments(tmp_path / "short.wav", QUERIES, model)
    assert found.curves.shape == (2, 1)
    assert [moment[:2] for (moment,) in found.moments] == [(0.0, 0.002)] * 2


def test_queries_and_models_that_cannot_search_a_file(model, text_folder, meeting):  # noqa: F811
    for query, reason in (("", "empty"), ("...", "no words"), ("qqqq zzzz", "knows no word")):
        with pytest.raises(UserError, match=reason):
            find_moments(meeting, [query], model)
    with pytest.raises(UserError, match="list"):
        find_moments(meeting, "a tone", model)
    with pytest.raises(UserError, match="k must"):
        find_moments(meeting, QUERIES, model, k=0)
    pooled = make_model(text_folder)
    pooled.pooling = TransformerPooling(pooled.dim, 75, num_heads=4)
    with pytest.raises(UserError, match="TransformerPooling"):
        find_moments(meeting, QUERIES, pooled)
    plain = make_model(text_folder, "mean")
    with pytest.raises(UserError, match="moment head"):
        find_moments(meeting, QUERIES, plain, method="head")
    assert find_moments(meeting, QUERIES, plain).method == "contribution"


def test_options_that_do_not_go_together(folder, meeting, tmp_path):
    one, place = ("--file", meeting, "--checkpoint", folder), ("--index", tmp_path / "index")
    for arguments, name in (
        (("a tone",), "--index"),
        (("a tone", "--file", meeting), "--checkpoint"),
        (("a tone", *one, *place), "--index"),
        (("a tone", *place, "--method", "head"), "--method"),
        (("a tone", *one, "--method", "best"), "--method"),
        (("a tone", *one, "--within", "2024"), "--within"),
        (("a tone", *one, "--max-seconds", 3), "--max-seconds"),
        (("a tone", *one, "--fast-text"), "--fast-text"),
        (("--audio", meeting, *one), "--audio"),
        ((*one,), "sentence"),
        (("a tone", *one, "--csv", meeting), "--csv"),
        (("a tone", "--file", tmp_path / "gone.wav", "--checkpoint", folder), "gone.wav"),
        (("a tone", "--file", meeting, "--checkpoint", tmp_path / "gone"), "gone"),
    ):
        assert name in mistake(main, "query", *map(str, arguments))
