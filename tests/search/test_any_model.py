"""Search by pretrained models: CLAP and PE-Audio in folders and by hub name, and salsa's .ckpt."""

import json
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
import torch
from torch.nn import functional

from retrieval.base.errors import UserError
from retrieval.models.pretrained import load_pretrained
from retrieval.search import AudioIndex
from retrieval.search.__main__ import main
from retrieval.search.page.page import Answers, longest_excerpt
from retrieval.search.page.results import score_table
from tests.conftest import mistake, run_here, write_text_encoder
from tests.hub_stub import go_offline, running_hub, use_hub
from tests.models.pretrained.test_pretrained_models import original_audio, original_text
from tests.models.pretrained.test_salsa import (
    ATST,
    TAP,
    foreign_names,
    small_model,
    write_checkpoint,
)
from tests.pretrained_models import FAMILIES, RATE, make

QUERY = "A dog barks loudly"
SECONDS = {"short.wav": 0.4, "one.wav": 1.0, "two.wav": 2.3, "below/long.wav": 23.0}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    folder, random = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    (folder / "below").mkdir()
    for number, (name, seconds) in enumerate(SECONDS.items()):
        time = np.arange(round(seconds * RATE)) / RATE
        loudness = 0.05 + 0.1 * number * (np.sin(2 * np.pi * 0.1 * time) > 0)
        samples = loudness * np.sin(2 * np.pi * 300 * (1 + number) * time)
        samples += 0.02 * random.standard_normal(len(time))
        soundfile.write(folder / name, samples, RATE, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for family in ("clap", "pe_audio", "pe_a_frame"):
        make(family, root / family)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def indexes(folders, sounds, tmp_path_factory) -> dict[str, Path]:
    """An index of `sounds` by each family; not to be changed."""
    root = tmp_path_factory.mktemp("indexes")
    for family, folder in folders.items():
        arguments = ["--checkpoint", str(folder), "--index", str(root / family)]
        assert main(["index", str(sounds), *arguments, "--quiet"]) == 0
    return {path.name: path for path in root.iterdir()}


def meta_of(index: Path) -> dict:
    with sqlite3.connect(index / "index.sqlite") as database:
        rows = database.execute("SELECT key, value FROM meta").fetchall()
    return {key: json.loads(value) for key, value in rows}


@torch.no_grad()
def slow_vector(model, path: Path, start: float, end: float) -> torch.Tensor:
    """The vector (D,) of a part of a file, encoded by itself."""
    samples = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    samples = samples[round(start * RATE) : round(end * RATE)]
    return model.encode_audio(samples[None], torch.tensor([len(samples)]))[0][0, 0]


@pytest.mark.parametrize("family", ["clap", "pe_audio", "pe_a_frame"])
def test_answers_are_excerpts_of_10_s_with_the_scores_of_the_model(
    indexes, folders, sounds, family, capsys
):
    found = ["query", QUERY, "--index", str(indexes[family]), "-k", "20", "--json"]
    assert main(found) == 0
    hits = json.loads(capsys.readouterr().out)[0]["hits"]
    assert {hit["file"] for hit in hits} == SECONDS.keys()
    index, model = AudioIndex.open(indexes[family]), load_pretrained(folders[family])
    long = index.store.excerpts(index.store.clips_of("below/long.wav"))
    # 10 s, half of that apart, the last one to the end
    assert [excerpt.start for excerpt in long] == [0, 5, 10, 13]
    with torch.no_grad():
        text = model.encode_text([QUERY])[0]
    scores, cosines = [], []
    for hit in hits:
        span = hit["excerpt_from"], hit["excerpt_to"]
        vector = slow_vector(model, sounds / hit["file"], *span)
        scores.append((model.pooling.directions(text) @ model.pooling.directions(vector)).item())
        cosines.append(functional.cosine_similarity(text, vector, dim=0).item())
        assert (hit["moments"][0]["from"], hit["moments"][0]["to"]) == (hit["from"], hit["to"])
        if family != "pe_a_frame":  # one vector for a window
            assert span == (hit["from"], hit["to"]) and len(hit["moments"]) == 1
    found = [hit["score"] for hit in hits]
    np.testing.assert_allclose(found, scores, atol=1e-4)
    assert found == sorted(found, reverse=True)
    assert np.ptp(found) > 1e-2
    has_frames = (indexes[family] / "frames-0.f16").exists()
    lengths = [(hit["excerpt_to"] - hit["excerpt_from"], hit["to"] - hit["from"]) for hit in hits]
    assert has_frames == (family == "pe_a_frame") == any(own < whole for whole, own in lengths)
    if family.startswith("pe_"):  # dot products, which are no cosines
        assert np.abs(np.subtract(found, cosines)).max() > 0.1
    sentences = [QUERY, "rain"]
    (score, _) = index.score_audio(sounds / "one.wav", sentences)
    hit = next(hit for hit in hits if hit["file"] == "one.wav")
    assert score == pytest.approx(hit["score"], abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stereo_file_of_another_rate_has_the_scores_of_the_original(tmp_path, family):
    """Of transformers' own model and processor, for the average of the channels."""
    original, processor = make(family, tmp_path / "model")
    stereo = 0.2 * np.random.default_rng(0).standard_normal((44_100, 2)).astype(np.float32)
    stereo[22_050:] *= 0.1
    (tmp_path / "sounds").mkdir()
    path = tmp_path / "sounds" / "stereo.wav"
    soundfile.write(path, stereo, 44_100, subtype="FLOAT")
    sentences = [QUERY, "rain falls", "the wind blows"]
    mono = torch.from_numpy(soxr.resample(stereo.mean(axis=1), 44_100, RATE))
    audio = original_audio(family, original, processor, mono)
    expected = original_text(family, original, processor, sentences) @ audio
    index = AudioIndex.build(tmp_path / "sounds", tmp_path / "model", tmp_path / "index")
    found = index.score_audio(path, sentences)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_frames_of_models_that_have_none_are_refused(folders, sounds, tmp_path):
    for family in ("clap", "pe_audio"):
        arguments = ["--checkpoint", str(folders[family]), "--frames", "float16"]
        refused = mistake(main, "index", str(sounds), *arguments, "--index", str(tmp_path / "a"))
        assert "--frames float16" in refused and not (tmp_path / "a").exists()


@pytest.mark.parametrize("family", ["clap", "pe_audio"])
def test_sounds_are_compared_by_cosine(indexes, folders, sounds, tmp_path, family):
    index, model = AudioIndex.open(indexes[family]), load_pretrained(folders[family])
    copy = shutil.copy(sounds / "two.wav", tmp_path)
    hits = index.search_audio(copy, 20)
    assert (hits[0].file, round(hits[0].score, 4)) == ("two.wav", 1.0)
    own = slow_vector(model, sounds / "two.wav", 0, SECONDS["two.wav"])
    for hit in hits:
        vector = slow_vector(model, sounds / hit.file, hit.start, hit.end)
        expected = functional.cosine_similarity(own, vector, dim=0).item()
        assert hit.score == pytest.approx(expected, abs=1e-4)
    names = {hit.file for hit in index.search_audio(sounds / "two.wav", 20, within="below")}
    assert names == {"below/long.wav"}


def test_the_page_takes_excerpts_and_scores_of_the_index(indexes):
    index = AudioIndex.open(indexes["pe_audio"])
    assert longest_excerpt(index) == 11.0
    page = Answers(index, SimpleNamespace(folder=indexes["pe_audio"]))
    best = index.search(QUERY)[0]
    status, cards = page.words(QUERY, "", 0.0, None, 5, "", None)
    assert "in 4 of 4" in status and f'title="similarity">{best.score:.3f}<' in cards
    assert "<svg" not in cards  # no attention
    long = SimpleNamespace(file="below/long.wav", start=5.0, end=15.0)
    status, cards = page.like(long, "", 0.0, None, 5, "", None)
    assert "like below/long.wav" in status and "two.wav" in cards
    too_long = SimpleNamespace(file="below/long.wav", start=0.0, end=20.0)
    assert "start and end of a sound" in page.like(too_long, "", 0.0, None, 5, "", None)[0]
    table = score_table(["a", "b", "c"], [37.5, -12.25, 3.75])
    assert "width:100.0%" in table and "width:10.0%" in table and "width:0.0%" in table
    assert "37.500" in table and "-12.250" in table
    assert "width:0.0%" in score_table(["a", "b"], [-3.0, -4.0])


def test_another_length_of_excerpts(folders, sounds, tmp_path):
    arguments = [str(sounds), "--index", str(tmp_path / "index"), "--quiet"]
    model = ["--checkpoint", str(folders["clap"])]
    run = run_here(main, "index", *arguments, *model, "--excerpt-seconds", "4")
    assert run.returncode == 0, run.stderr
    meta = meta_of(tmp_path / "index")
    assert (meta["clip_seconds"], meta["hop_seconds"]) == (4.0, 2.0)
    run = run_here(main, "index", *arguments)  # as the index was made
    assert run.returncode == 0 and "4 unchanged" in run.stdout
    index = AudioIndex.open(tmp_path / "index")
    excerpts = index.store.excerpts(range(len(index.store)))
    assert max(excerpt.end - excerpt.start for excerpt in excerpts) == 4.0
    assert [len(own.samples) for own in index._excerpts(sounds / "two.wav")] == [2.3 * RATE]
    assert len(index._excerpts(sounds / "below" / "long.wav")[0].samples) == 4 * RATE
    assert "--overwrite" in mistake(main, "index", *arguments, "--excerpt-seconds", "5")
    for value in ("0.1", "61", "nan"):
        wrong = ["--excerpt-seconds", value, "--overwrite", *model]
        assert "--excerpt-seconds must be" in mistake(main, "index", *arguments, *wrong)
    wrong = ["--hop-seconds", "4.5", "--excerpt-seconds", "4", "--overwrite", *model]
    assert "--hop-seconds must be" in mistake(main, "index", *arguments, *wrong)


def test_an_index_knows_its_model_by_the_files_that_decide(indexes, folders, tmp_path):
    copy = Path(shutil.copytree(folders["clap"], tmp_path / "copy"))
    (copy / "README.md").write_text("another card")
    assert len(AudioIndex.open(indexes["clap"], copy).files) == 4
    for file in ("processor_config.json", "tokenizer_config.json", "config.json"):
        text = (copy / file).read_text()
        (copy / file).write_text(text + " ")
        with pytest.raises(UserError, match="made with another model"):
            AudioIndex.open(indexes["clap"], copy)
        (copy / file).write_text(text)
    assert len(AudioIndex.open(indexes["clap"], copy).files) == 4
    with pytest.raises(UserError, match="made with another model"):
        AudioIndex.open(indexes["clap"], folders["pe_audio"])


def test_weights_in_a_pickle_decide_too(folders, sounds, tmp_path):
    copy = Path(shutil.copytree(folders["clap"], tmp_path / "copy"))
    state = {key: own.clone() for key, own in make("clap")[0].state_dict().items()}
    (copy / "model.safetensors").unlink()
    torch.save(state, copy / "pytorch_model.bin")
    AudioIndex.build(sounds, copy, tmp_path / "index")
    assert "pytorch_model.bin" in meta_of(tmp_path / "index")["model"]["files"]
    state["text_projection.linear1.bias"] += 1
    torch.save(state, copy / "pytorch_model.bin")
    with pytest.raises(UserError, match="made with another model"):
        AudioIndex.open(tmp_path / "index")


def test_a_hub_model_is_found_by_its_name(folders, sounds, indexes, tmp_path, monkeypatch):
    with running_hub() as hub:
        hub.add("some/clap", folders["clap"])
        use_hub(hub, tmp_path / "hub", monkeypatch)
        path = tmp_path / "index"
        arguments = [str(sounds), "--index", str(path), "--quiet"]
        run = run_here(main, "index", *arguments, "--checkpoint", "some/clap")
        assert run.returncode == 0, run.stderr
        commit = hub.sha("some/clap")
        assert meta_of(path)["model"]["path"] == f"some/clap@{commit}"
        hub.requests.clear()
        expected = AudioIndex.open(path).search(QUERY)
        assert hub.requests == []  # a query tells the hub nothing
        # The main branch has moved on: the index stays with its commit.
        hub.add("some/clap", folders["pe_audio"])
        assert AudioIndex.open(path).search(QUERY)[0] == expected[0]
        refused = mistake(main, "index", *arguments, "--checkpoint", "some/clap")
        assert "made with another model" in refused
        # Its cache lies elsewhere now, and there is no network.
        shutil.move(tmp_path / "hub", tmp_path / "moved")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "moved"))
        go_offline(monkeypatch)
        assert AudioIndex.open(path).search(QUERY)[0] == expected[0]
        run = run_here(main, "index", *arguments)
        assert run.returncode == 0 and "4 unchanged" in run.stdout, run.stderr
        shutil.rmtree(tmp_path / "moved")
        gone = mistake(main, "query", QUERY, "--index", str(path))
        assert "some/clap" in gone and "out of reach" in gone
        # the folder that the hub's model came from is the same model
        assert AudioIndex.open(path, folders["clap"]).search(QUERY)[0] == expected[0]
    monkeypatch.undo()


def test_a_ckpt_of_salsa(sounds, tmp_path):
    tokenizer = write_text_encoder(tmp_path / "tokenizer")
    model = small_model(ATST, TAP, tokenizer)
    ckpt = write_checkpoint(tmp_path / "model.ckpt", foreign_names(model))
    index = ["--index", str(tmp_path / "index"), "--quiet"]
    made_by = ["--checkpoint", str(ckpt), "--text-encoder", str(tokenizer)]
    run = run_here(main, "index", str(sounds), *made_by, *index)
    assert run.returncode == 0, run.stderr
    query = "a low tone"
    expected = AudioIndex.open(tmp_path / "index").search(query)
    model.save_pretrained(tmp_path / "folder")
    AudioIndex.build(sounds, tmp_path / "folder", tmp_path / "other")
    other = AudioIndex.open(tmp_path / "other").search(query)
    assert [(hit.file, hit.score) for hit in expected] == [(hit.file, hit.score) for hit in other]
    ckpt.rename(tmp_path / "moved.ckpt")
    assert "is gone" in mistake(main, "query", query, *index)
    run = run_here(main, "query", query, *index, "--checkpoint", str(tmp_path / "moved.ckpt"))
    assert run.returncode == 0 and expected[0].file in run.stdout
    run = run_here(main, "index", str(sounds), *index, "--checkpoint", str(tmp_path / "moved.ckpt"))
    assert run.returncode == 0 and "4 unchanged" in run.stdout
    (tmp_path / "second").mkdir()
    second = write_text_encoder(tmp_path / "second" / "tokenizer")
    content = json.loads((second / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {"low": 5, "middle": 4}
    (second / "tokenizer.json").write_text(json.dumps(content))
    wrong = mistake(main, "query", query, *index, "--text-encoder", str(second))
    assert "made with another model" in wrong


def test_the_record_of_a_model_of_ones_own_is_as_in_earlier_versions(folders, sounds, tmp_path):
    load_pretrained(folders["clap"]).save_pretrained(tmp_path / "own")
    AudioIndex.build(sounds, tmp_path / "own", tmp_path / "index")
    model = meta_of(tmp_path / "index")["model"]
    assert model.keys() == {"path", "files"} and model["path"] == str(tmp_path / "own")
    names = {"config.json", "model.safetensors"}
    names |= {f"tokenizer/{name}" for name in ("tokenizer.json", "tokenizer_config.json")}
    assert model["files"].keys() == names


@pytest.mark.slow
def test_the_text_tower_in_8_bit(indexes, tmp_path):
    path = Path(shutil.copytree(indexes["pe_audio"], tmp_path / "index"))
    fast, plain = AudioIndex.open(path, fast_text=True), AudioIndex.open(path)
    queries = [QUERY, "rain", "the wind blows and then a cat"]
    with torch.no_grad():
        found, expected = fast._encode_text(queries), plain.model.encode_text(queries)
    assert functional.cosine_similarity(found, expected).min() > 0.99
    for own, other in zip(fast.search_many(queries), plain.search_many(queries), strict=True):
        scores = {hit.file: hit.score for hit in other}
        assert all(hit.score == pytest.approx(scores[hit.file], abs=0.05) for hit in own)


@pytest.mark.parametrize("kind", ["text", "half"])
def test_what_is_no_audio_text_model_makes_no_index(folders, sounds, tmp_path, kind):
    config = json.loads((folders["clap"] / "config.json").read_text())
    config = {"text": {"model_type": "bert"}, "half": config["audio_config"]}[kind]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    made = ["--checkpoint", str(tmp_path / "model"), "--index", str(tmp_path / "index")]
    assert "is a " in mistake(main, "index", str(sounds), *made)
    assert not (tmp_path / "index").exists()
