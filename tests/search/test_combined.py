"""Queries of several sentences and a sound: against the model's scores, part by part."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.nn import functional

from retrieval.base.errors import UserError
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.pooling import MeanPooling
from retrieval.models.pretrained import load_pretrained
from retrieval.search import AudioIndex, Query
from retrieval.search.__main__ import main
from retrieval.search.combined import SOUND_SCALE, WITHOUT_WEIGHT, ranked, weighed
from retrieval.search.local.clips import IndexedClips
from retrieval.search.two_stage import TwoStage
from tests.conftest import SAMPLE_RATE, mistake, tone
from tests.pretrained_models import RATE, make
from tests.search.test_search import slow_samples

LOW, HIGH, FAST = "A steady low tone.", "someone plays a high note", "a fast tone"


@pytest.fixture(scope="module")
def indexes(models, sounds, tmp_path_factory) -> dict[str, Path]:
    """Indexes of `sounds`; not to be changed."""
    root = tmp_path_factory.mktemp("indexes")
    for pooling in ("tap", "mean"):
        AudioIndex.build(sounds, models / pooling, root / pooling)
    return {pooling: root / pooling for pooling in ("tap", "mean")}


@pytest.fixture
def other(tmp_path) -> Path:
    """A sound that no index has."""
    samples = tone(1, 2, 1.3, np.random.default_rng(7))
    soundfile.write(tmp_path / "other.wav", samples, SAMPLE_RATE)
    return tmp_path / "other.wav"


def encoded(model, samples: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    samples = torch.from_numpy(np.asarray(samples, np.float32))
    return model.encode_audio(samples[None], torch.tensor([len(samples)]))


def is_order_of(hits: list, scores: list[float]) -> bool:
    """Whether the answers are in the order of their scores, which are those given."""
    np.testing.assert_allclose([hit.score for hit in hits], scores, atol=2e-3)
    return [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize("pooling", ["tap", "mean"])
def test_score_is_the_weighted_sum_of_the_parts_scores(indexes, models, sounds, other, pooling):
    index, model = AudioIndex.open(indexes[pooling]), DualEncoder.from_pretrained(models / pooling)
    query = Query(((LOW, 1.0), (HIGH, 0.5)), (FAST,), other, 2.0)
    hits, parts = index.search(query, 50), []
    assert {hit.file for hit in hits} == {file.file for file in index.files}
    with torch.no_grad():
        text = model.encode_text([LOW, HIGH, FAST])
        asked = model.pooling.clip_vectors(*encoded(model, slow_samples(other)))
        for hit in hits:
            span = round(hit.start * SAMPLE_RATE), round(hit.end * SAMPLE_RATE)
            frames, mask = encoded(model, slow_samples(sounds / hit.file)[slice(*span)])
            vector = model.pooling.clip_vectors(frames, mask)
            alike = functional.cosine_similarity(asked, vector).item()
            parts.append([*model.score(text, frames, mask)[:, 0].tolist(), alike])
    low, high, fast, alike = np.array(parts).T
    expected = (low + 0.5 * high + 2 * SOUND_SCALE * alike) / 3.5 - WITHOUT_WEIGHT * fast
    assert is_order_of(hits, expected)
    assert np.ptp(expected) > 0.05 and np.abs(expected - low).max() > 0.05  # control


def test_dot_products_are_compared_by_cosine_beside_a_sound(tmp_path):
    """PE-Audio's scores are unbounded: alone they stay as they are, beside a sound they do not."""
    random = np.random.default_rng(3)
    make("pe_audio", tmp_path / "model")
    for number in range(6):
        samples = 0.1 * (number + 1) * random.standard_normal(RATE)
        samples *= np.sin(2 * np.pi * (number + 1) * np.arange(RATE) / RATE)
        (tmp_path / "own").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "own" / f"{number}.wav", samples, RATE, subtype="FLOAT")
    asked = 0.2 * random.standard_normal(RATE).astype(np.float32)
    index = AudioIndex.build(tmp_path / "own", tmp_path / "model", tmp_path / "index")
    model = load_pretrained(tmp_path / "model")
    with torch.no_grad():
        rain, dog = model.encode_text(["rain falls", "a dog barks"])
        sound = encoded(model, asked)[0][0, 0]
        vectors = {
            path.name: encoded(model, soundfile.read(path, dtype="float32")[0])[0][0, 0]
            for path in (tmp_path / "own").iterdir()
        }
    cosine = functional.cosine_similarity
    hits = index.search("rain falls", without="a dog barks", audio=(asked, RATE))
    assert is_order_of(
        hits,
        [
            ((cosine(rain, own, 0) + SOUND_SCALE * cosine(sound, own, 0)) / 2).item()
            - WITHOUT_WEIGHT * cosine(dog, own, 0).item()
            for own in (vectors[hit.file] for hit in hits)
        ],
    )
    hits = index.search("rain falls", without="a dog barks")
    dots = [((rain - WITHOUT_WEIGHT * dog) @ vectors[hit.file]).item() for hit in hits]
    assert is_order_of(hits, dots) and max(map(abs, dots)) > 1


class Oracle(TwoStage):
    """Clips whose vectors say which sounds they hold: rain, thunder, wind, one number each."""

    def __init__(self, clips: list[list[float]]):
        vectors = functional.normalize(torch.tensor(clips), dim=1).numpy()
        super().__init__(MeanPooling(), IndexedClips(vectors))

    def best(self, query: Query, k: int = 10) -> list[int]:
        texts = torch.eye(3)[[("rain", "thunder", "wind").index(own) for own in query.sentences]]
        sound = None if query.audio is None else np.array([query.audio], np.float32)
        return ranked(weighed(query, texts, sound), self, k, None)[0]


def test_parts_do_what_they_say():
    rain, thunder, both, all_three, wind = range(5)
    clips = Oracle([[1, 0, 0.1], [0, 1, 0], [1, 0.9, 0], [1, 1, 1], [0, 0.1, 1]])
    plain = Query.of("rain")
    assert clips.best(plain)[:2] == [rain, both]
    together = Query.of("rain", also=["thunder"])
    assert clips.best(together)[0] == both
    # control: without `without` the clip with thunder comes before wind alone, then after it
    order, without = clips.best(plain), clips.best(Query.of("rain", without="thunder"))
    assert order.index(both) < order.index(wind)
    assert without[0] == rain and without.index(thunder) == len(without) - 1
    wanted = Query.of("thunder", also=["rain", "wind"])
    assert clips.best(wanted)[0] == all_three
    assert clips.best(Query.of("rain", also=[("wind", 9.0)]))[0] == wind
    beside = Query.of("rain", audio=[0.0, 1.0, 0.0])  # the sound is thunder
    assert clips.best(beside)[0] == both and clips.best(Query.of("rain"))[0] == rain


@pytest.mark.parametrize("factor", [1.0, 1e-300, 1.5e308])
def test_only_the_ratio_of_weights_counts(factor):
    also, text = [("b", factor), ("c", factor / 2)], torch.eye(4)[:3]
    expected = [0.4, 0.4, 0.2] if factor == 1 else [0, 2 / 3, 1 / 3]
    if factor < 1:
        expected = [1, 0, 0]
    query = Query.of("a", also=also)
    np.testing.assert_allclose(weighed(query, text, None).weights, expected, atol=1e-6)
    # beside a sound of the same weight as b: half of the sum would overflow float64
    query = Query(tuple(also), audio=(np.zeros(3), 8000), audio_weight=factor)
    sound = np.ones((1, 4), np.float32)
    parts = weighed(query, text[:2], sound)
    np.testing.assert_allclose(parts.weights, [0.4, 0.2], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(parts.sounds), 0.4 * SOUND_SCALE, rtol=1e-6)


def test_one_sentence_is_the_plain_search(indexes):
    index = AudioIndex.open(indexes["tap"])
    plain, query = index.search(LOW, 50), index.search(Query(((LOW, 3.0),)), 50)
    assert [(hit.file, hit.score, hit.moments) for hit in query] == [
        (hit.file, hit.score, hit.moments) for hit in plain
    ]
    mixed = index.search_many([LOW, Query.of(LOW, without=FAST), HIGH], 50)
    separate = [index.search(LOW, 50), index.search(LOW, 50, without=FAST), index.search(HIGH, 50)]
    for own, other in zip(mixed, separate, strict=True):
        assert [hit.file for hit in own] == [hit.file for hit in other]
        np.testing.assert_allclose(
            [hit.score for hit in own], [hit.score for hit in other], atol=1e-5
        )


@pytest.mark.parametrize("pooling", ["tap", "mean"])
def test_a_sound_alone_is_the_search_by_sound(indexes, other, sounds, pooling):
    index = AudioIndex.open(indexes[pooling])
    alone, query = index.search_audio(other, 50), index.search(audio=other, k=50)
    assert [hit.file for hit in alone] == [hit.file for hit in query]
    np.testing.assert_allclose(
        [hit.score for hit in alone], [hit.score for hit in query], atol=1e-6
    )
    assert all(hit.moments[0][:2] == (hit.start, hit.end) for hit in query)
    # a file of the index is no answer to itself
    inside = index.search(LOW, 50, audio=sounds / "long.flac")
    found = {hit.file for hit in inside}
    assert found == {file.file for file in index.files} - {"long.flac"}


def test_curves_are_the_weighted_mean_of_the_sentences_that_should_be_heard(indexes):
    index = AudioIndex.open(indexes["tap"])
    both = {hit.file: hit for hit in index.search(LOW, 50, also=[(HIGH, 0.25)], without=[FAST])}
    low, high = ({hit.file: hit for hit in index.search(text, 50)} for text in (LOW, HIGH))
    compared = 0
    for file, hit in both.items():
        if hit.start != low[file].start or hit.start != high[file].start:
            continue  # another excerpt of the long file
        expected = (low[file].attention + 0.25 * high[file].attention) / 1.25
        np.testing.assert_allclose(hit.attention, expected, atol=1e-5)
        assert hit.moments[0].score == pytest.approx(hit.score)
        compared += 1
    assert compared > 10


def test_more_answers_than_candidates(indexes, monkeypatch):
    index = AudioIndex.open(indexes["tap"])
    whole = [hit.file for hit in index.search(LOW, 50, without=FAST)]
    monkeypatch.setattr("retrieval.search.index.CANDIDATES", 2)
    monkeypatch.setattr("retrieval.search.index.CANDIDATES_PER_HIT", 0)
    asked = [hit.file for hit in index.search(LOW, 50, without=FAST)]
    assert asked == whole  # all excerpts in the end
    assert len(index.search(LOW, 3, without=FAST)) == 3
    assert index.search(LOW, 3, without=FAST, min_seconds=1e6) == []


def test_one_sentence_and_numbers_of_numpy():
    assert Query.of(LOW, also=HIGH) == Query.of(LOW, also=[HIGH])
    assert Query.of(LOW, also=[(HIGH, np.float32(0.5))]) == Query.of(LOW, also=[(HIGH, 0.5)])


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ({}, "empty"),
        ({"without": [LOW]}, LOW),
        ({"text": LOW, "also": [(HIGH, 0.0)]}, HIGH),
        ({"text": LOW, "also": [(HIGH, -1.0)]}, "without"),
        ({"text": LOW, "also": [(HIGH, math.nan)]}, HIGH),
        ({"text": LOW, "also": [(HIGH, "much")]}, "much"),
        ({"text": LOW, "also": [(HIGH, 1, 2)]}, HIGH),
        ({"text": LOW, "audio": "a.wav", "audio_weight": 0}, "the sound"),
        ({"text": LOW, "without": ["a STEADY low tone"]}, "a STEADY low tone"),
        ({"text": LOW, "also": [LOW]}, LOW),
        ({"text": LOW, "without": [FAST, FAST]}, FAST),
    ],
)
def test_wrong_queries_are_refused(arguments, culprit):
    with pytest.raises(UserError, match=culprit):
        Query.of(**arguments)


def test_sentences_of_all_parts_are_checked(indexes):
    index = AudioIndex.open(indexes["tap"])
    for arguments in ({"without": "xylophone"}, {"also": ["xylophone"]}):
        with pytest.raises(UserError, match="xylophone"):
            index.search(LOW, **arguments)
    with pytest.raises(UserError, match="empty"):
        index.search(LOW, without=" ")
    with pytest.raises(UserError, match=r"gone\.wav"):
        index.search(LOW, audio="gone.wav")
    with pytest.raises(TypeError):
        index.search(Query.of(LOW), without=FAST)
    assert "xylophone" in index.notes(Query.of(LOW, without="a fast xylophone"))


def test_names_of_queries():
    assert str(Query.of(LOW)) == LOW
    query = Query.of("rain", also=[("wind", 0.5), "fire"], without="dog", audio="a.wav")
    assert str(query) == "rain + 0.5 wind + fire + a.wav - dog"
    sound = Query.of(audio=(np.zeros(3), 8000), audio_weight=2)
    assert str(sound) == "2 a sound"


def test_terminal(indexes, sounds, other, tmp_path, capsys):
    index = AudioIndex.open(indexes["tap"])
    place = ["--index", str(indexes["tap"]), "-k", "50", "--json"]
    asked = ["query", LOW, "--also", HIGH, "0.5", "--also", "a tone", "--without", FAST]
    assert main([*asked, "--audio", str(other), "--audio-weight", "2", *place]) == 0
    (content,) = json.loads(capsys.readouterr().out)
    query = Query.of(LOW, also=[(HIGH, 0.5), "a tone"], without=FAST, audio=other, audio_weight=2.0)
    assert content["query"] == str(query)
    expected = [(hit.file, hit.score) for hit in index.search(query, 50)]
    assert [hit["file"] for hit in content["hits"]] == [file for file, _ in expected]
    np.testing.assert_allclose(
        [hit["score"] for hit in content["hits"]], [score for _, score in expected], atol=1e-5
    )
    copy = Path(shutil.copy(other, tmp_path / "copy.wav"))
    assert main(["query", "--audio", str(copy), *place]) == 0  # as ever
    (content,) = json.loads(capsys.readouterr().out)
    assert content["query"] == str(copy) and len(content["hits"]) >= len(index.files)


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["--also", HIGH, LOW], "--also"),
        ([LOW, "--also", HIGH, "1", "2"], "--also"),
        ([LOW, "--also", HIGH, "-1"], HIGH),
        ([LOW, "--without", LOW], LOW),
        (["--without", LOW], "give one thing"),
        ([LOW, "--audio-weight", "2"], "--audio-weight"),
        (["--queries", "a.csv", "--without", LOW], "--without"),
        ([LOW, "--audio", "gone.wav"], "gone.wav"),
    ],
)
def test_mistakes_on_the_terminal(indexes, arguments, culprit):
    assert culprit in mistake(main, "query", *arguments, "--index", str(indexes["tap"]))


def test_options_of_an_index_are_refused_for_one_file(other):
    place = ["--file", str(other), "--checkpoint", "model"]
    for option in (["--without", FAST], ["--also", FAST], ["--min-score", "0"]):
        assert option[0] in mistake(main, "query", LOW, *option, *place)
