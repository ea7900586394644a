"""The score that unrelated sentences reach: against loops, on an index, and for the terminal."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval.base.errors import UserError
from retrieval.config import load_config
from retrieval.models.build import build_model
from retrieval.models.pooling import MeanPooling
from retrieval.search import AudioIndex, calibration
from retrieval.search.__main__ import main
from retrieval.search.calibration import (
    BELOW,
    RELATED,
    highest_unrelated,
    known_sentences,
    unrelated_score,
)
from retrieval.search.local.storage import connect
from retrieval.search.sentences import SENTENCES
from tests.conftest import NOTES, RHYTHMS
from tests.search.conftest import write_sounds

QUERY = "A steady low tone."
KNOWN = tuple(
    sentence
    for note in NOTES
    for rhythm in RHYTHMS
    for sentence in (f"a {rhythm} {note} tone", f"someone plays a {rhythm} {note} note")
)  # 24


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    return write_sounds(tmp_path_factory.mktemp("sounds"))


@pytest.fixture(scope="module", params=["tap", "mean"])
def indexed(request, tiny, sounds, tmp_path_factory) -> Path:
    """An index whose model knows 24 sentences; random weights. Not to be changed."""
    root = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(3)
    model = build_model(load_config(tiny / "tiny.yaml", [f"pooling.name={request.param}"])).eval()
    with torch.no_grad():
        model.audio_projection.weight.mul_(4)
    model.save_pretrained(root / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "SENTENCES", KNOWN)
        AudioIndex.build(sounds, root / "model", root / "index")
    return root / "index"


def slow_score(scores: np.ndarray) -> float:
    """The definition, pair by pair."""
    num_related = max(1, round(RELATED * len(scores)))
    highest = []
    for row in scores:
        unrelated = [
            score
            for excerpt, score in enumerate(row)
            if sum(other >= score for other in scores[:, excerpt]) > num_related
        ]
        if unrelated:
            highest.append(max(unrelated))
    return float(np.quantile(highest, BELOW))


@pytest.mark.parametrize("shape", [(24, 1), (24, 9), (100, 40)])
def test_score_is_that_of_the_definition(shape):
    scores = np.random.default_rng(1).normal(size=shape)
    assert highest_unrelated(scores) == pytest.approx(slow_score(scores))


def test_a_sentence_that_is_heard_everywhere_does_not_raise_the_score():
    random = np.random.default_rng(2)
    scores = random.normal(0.1, 0.05, size=(100, 300))
    before = highest_unrelated(scores)
    scores[:3] += 0.7  # a folder of birds, three sentences about birds
    assert highest_unrelated(scores) == pytest.approx(before, abs=0.08)
    scores[:40] = random.normal(0.8, 0.05, size=(40, 300))  # control: many more sentences
    assert highest_unrelated(scores) > before + 0.5


def test_a_general_collection_in_which_most_sentences_are_heard():
    random = np.random.default_rng(2)
    scores = random.normal(0.1, 0.05, size=(100, 300))
    before = highest_unrelated(scores)
    for excerpt in range(300):
        scores[random.choice(100, 2, replace=False), excerpt] += 0.6
    assert highest_unrelated(scores) == pytest.approx(before, abs=0.08)
    assert np.quantile(scores.max(axis=1), BELOW) > before + 0.4  # control: a plain quantile


def test_scores_without_differences_give_none():
    assert highest_unrelated(np.ones((30, 4))) is None


def test_index_holds_the_score_and_judges_by_it(indexed, monkeypatch):
    monkeypatch.setattr(calibration, "SENTENCES", KNOWN)
    index = AudioIndex.open(indexed)
    num_clips = len(index.store)
    assert known_sentences(index.model.text_encoder) == list(KNOWN)
    with torch.no_grad():
        text = index.model.encode_text(list(KNOWN)).float()
        clips, scores = index._two_stage.scores(text, num_clips)
    by_clip = scores.gather(1, clips.argsort(dim=1))  # (S, B); NEAREST leaves none of them out
    expected = slow_score(by_clip.numpy())
    assert index.unrelated_score == pytest.approx(expected, abs=1e-5)
    # text encoded in another way, as the 8 bit encoder's
    given = unrelated_score(index.model, index.store, index.model.encode_text)
    assert given == pytest.approx(expected, abs=1e-5)
    for hit in index.search(QUERY, 50):
        assert hit.is_match == (hit.score >= index.unrelated_score)


def test_min_score_leaves_answers_out_and_changes_no_other(indexed):
    index = AudioIndex.open(indexed)
    hits = index.search(QUERY, 50)
    least = hits[4].score
    kept = index.search(QUERY, 50, min_score=least)
    assert [(hit.file, hit.score) for hit in kept] == [(hit.file, hit.score) for hit in hits[:5]]
    assert index.search(QUERY, 50, min_score=hits[0].score + 1) == []
    assert len(index.search(QUERY, 50, min_score=-math.inf)) == len(hits)
    with pytest.raises(UserError, match="min_score"):
        index.search(QUERY, min_score=math.nan)


def test_score_is_measured_again_after_changes_only(indexed, sounds, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(sounds, tmp_path / "own"))
    path = Path(shutil.copytree(indexed, tmp_path / "index"))
    monkeypatch.setattr(calibration, "SENTENCES", KNOWN)
    before = AudioIndex.open(path).unrelated_score
    built = AudioIndex.build(folder, None, path)  # moved: measured, the same
    assert built.unrelated_score == pytest.approx(before, abs=1e-5)
    with monkeypatch.context() as patch:
        patch.setattr("retrieval.search.update.unrelated_score", lambda *_: pytest.fail("again"))
        built.add()
        assert built.unrelated_score == pytest.approx(before, abs=1e-5)
    for file in sorted(folder.glob("below/*"))[:4]:
        file.unlink()
    built.add()
    assert built.unrelated_score == pytest.approx(unrelated_score(built.model, built.store))
    # an index of an older version: no score until the next update
    with connect(path) as database:
        database.execute("DELETE FROM meta WHERE key = 'unrelated_score'")
    old = AudioIndex.open(path)
    assert old.unrelated_score is None and all(hit.is_match for hit in old.search(QUERY))
    old.add()
    assert old.unrelated_score == built.unrelated_score


def test_too_few_known_sentences_give_none_and_a_note(indexed, tmp_path, sounds, capsys):
    model = AudioIndex.open(indexed).store.meta.model.path
    assert main(["index", str(sounds), "--checkpoint", model, "--index", str(tmp_path / "i")]) == 0
    index = AudioIndex.open(tmp_path / "i")
    assert not known_sentences(index.model.text_encoder)  # control: words of real sentences
    assert index.unrelated_score is None and "too few general sentences" in capsys.readouterr().out
    assert all(hit.is_match for hit in index.search(QUERY))


@pytest.mark.parametrize(("unrelated", "num_matches"), [(10.0, 0), (None, 2), (-10.0, 4)])
def test_terminal_draws_a_line(indexed, tmp_path, capsys, unrelated, num_matches):
    path = Path(shutil.copytree(indexed, tmp_path / "index"))
    hits = AudioIndex.open(path).search(QUERY, 4)
    if unrelated is None:
        unrelated = (hits[1].score + hits[2].score) / 2
    with connect(path) as database:
        update = "UPDATE meta SET value = ? WHERE key = 'unrelated_score'"
        database.execute(update, (json.dumps(unrelated),))
    arguments = ["query", QUERY, "--index", str(path), "-k", "4"]
    assert main([*arguments, "--csv", str(tmp_path / "answers.csv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = [place for place, line in enumerate(lines) if "unrelated" in line]
    assert said == {0: [0], 2: [2], 4: []}[num_matches]
    assert all(f"{unrelated:.3f}" in lines[place] for place in said)
    assert (QUERY in lines[0]) == (num_matches == 0)
    expected = [rank < num_matches for rank in range(4)]
    with open(tmp_path / "answers.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][-1] == "matches"
    assert [row[-1] for row in rows[1:]] == [str(is_match).lower() for is_match in expected]
    assert main([*arguments, "--json"]) == 0
    (content,) = json.loads(capsys.readouterr().out)
    assert [hit["matches"] for hit in content["hits"]] == expected
    assert main([*arguments, "--min-score", f"{hits[1].score - 1e-6}"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2  # the user's own number: no line


def test_the_line_says_which_score_it_judges_if_sentences_are_subtracted(indexed, tmp_path, capsys):
    path = Path(shutil.copytree(indexed, tmp_path / "index"))
    other = "a high fast tone"
    plain = AudioIndex.open(path).search(QUERY, 50, fold=False)
    plain = {(hit.file, hit.start): hit.score for hit in plain}
    hits = AudioIndex.open(path).search(QUERY, 4, without=other)
    judged = sorted(hit.judged_score for hit in hits)
    assert all(hit.judged_score != hit.score for hit in hits)
    scores = [(hit.judged_score, plain.get((hit.file, hit.start))) for hit in hits]
    same = [own == pytest.approx(one, abs=1e-5) for own, one in scores if one is not None]
    assert len(same) > 1 and all(same)
    arguments = ["query", QUERY, "--index", str(path), "-k", "4"]
    for unrelated in (10.0, (judged[0] + judged[1]) / 2):
        with connect(path) as database:
            update = "UPDATE meta SET value = ? WHERE key = 'unrelated_score'"
            database.execute(update, (json.dumps(unrelated),))
        assert main([*arguments, "--without", other]) == 0
        said = [line for line in capsys.readouterr().out.splitlines() if "unrelated" in line]
        assert all("by the wanted sentences alone" in line for line in said)
        if unrelated == 10:
            assert len(said) == 1 and f"{judged[-1]:.3f}" in said[0]
        assert main([*arguments, "--without", other, "--json"]) == 0
        (content,) = json.loads(capsys.readouterr().out)
        assert content["unrelated_score"] == pytest.approx(unrelated, abs=1e-6)
        for hit in content["hits"]:
            assert hit["matches"] == (hit["judged_score"] >= unrelated)
    assert main(arguments) == 0  # control
    assert "alone" not in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    (content,) = json.loads(capsys.readouterr().out)
    assert not any("judged_score" in hit for hit in content["hits"])


@pytest.mark.parametrize("kind", ["csv", "json", "audacity"])
def test_exports_say_which_answers_do_not_match(indexed, tmp_path, capsys, kind):
    path, output = Path(shutil.copytree(indexed, tmp_path / "index")), tmp_path / f"out.{kind}"
    hits = AudioIndex.open(path).search(QUERY, 4)
    with connect(path) as database:
        update = "UPDATE meta SET value = ? WHERE key = 'unrelated_score'"
        database.execute(update, (json.dumps((hits[1].score + hits[2].score) / 2),))
    export = ["--labels", kind, "--output", str(output)]
    arguments = ["query", QUERY, "--index", str(path), "-k", "4", *export]
    assert main(arguments) == 0
    counts = [len(hit.moments) for hit in hits]
    assert f" {sum(counts[2:])} of the {sum(counts)} " in capsys.readouterr().err
    if kind != "audacity":
        text = output.read_text(encoding="utf-8")
        rows = json.loads(text) if kind == "json" else list(csv.DictReader(text.splitlines()))
        assert list(rows[0])[-1] == "matches"
        expected = [rank < 2 for rank, count in enumerate(counts) for _ in range(count)]
        written = [str(value).lower() for value in expected] if kind == "csv" else expected
        assert [row["matches"] for row in rows] == written
    assert main([*arguments, "--min-score", "-1000"]) == 0
    assert "match" not in capsys.readouterr().err


def test_sentences_of_the_list_are_taken_for_a_tokenizer_that_knows_all_words(indexed):
    encoder = AudioIndex.open(indexed).model.text_encoder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "unknown_words", lambda words, _: [])
        assert len(known_sentences(encoder)) == calibration.MOST_SENTENCES
        patch.setattr(calibration, "unknown_words", lambda words, _: ["a"])
        known = known_sentences(encoder)
        assert known and not any("a" in sentence.split() for sentence in known)
        assert set(known) <= set(SENTENCES)


def test_mean_pooling_on_known_vectors():
    """Birds only: sentences about birds match, others stay below."""
    random = np.random.default_rng(0)
    topics = np.linalg.qr(random.normal(size=(64, 64)))[0][:26]
    words = [f"topic{number}" for number in range(25)]

    class Model(torch.nn.Module):
        pooling = MeanPooling()
        text_encoder = None

    from retrieval.search.local.clips import IndexedClips

    noise = 0.05 * random.normal(size=(200, 64))
    birds = (topics[0] + topics[25] + noise).astype(np.float32)
    birds /= np.linalg.norm(birds, axis=1, keepdims=True)

    def encode(sentences: list[str]) -> torch.Tensor:
        places = [words.index(sentence) for sentence in sentences]
        own = topics[places] + 0.02 * random.normal(size=(len(places), 64))
        return torch.from_numpy(own.astype(np.float32))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "known_sentences", lambda _: words)
        limit = unrelated_score(Model(), IndexedClips(birds), encode)
    scores = torch.nn.functional.normalize(encode(words)).numpy() @ birds.T
    best = scores.max(axis=1)
    assert best[0] > limit + 0.2 and (best[1:] < limit).mean() > 0.8
