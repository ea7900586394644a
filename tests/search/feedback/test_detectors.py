"""Detectors on an index: learned, saved, used; marks and names with mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval.base.errors import UserError
from retrieval.search import AudioIndex, Detector, Mark
from retrieval.search.feedback.detectors import Detectors, read_marks, write_marks
from tests.search.test_search import QUERY


@pytest.fixture(scope="module")
def index(indexed) -> AudioIndex:
    """With TAP; not to be changed."""
    return AudioIndex.open(indexed)


@pytest.fixture(scope="module")
def mean(models, sounds, tmp_path_factory) -> AudioIndex:
    return AudioIndex.build(sounds, models / "mean", tmp_path_factory.mktemp("mean") / "index")


@pytest.fixture(params=["tap", "mean"])
def either(request) -> AudioIndex:
    return request.getfixturevalue("index" if request.param == "tap" else "mean")


def ranked(index: AudioIndex, query: str | Detector, **filters) -> list[tuple[str, float]]:
    return [(hit.file, hit.start) for hit in index.search(query, 50, **filters)]


def marks_of(index: AudioIndex, num: int = 6) -> list[Mark]:
    """Mark the last answers right and the first wrong, so that the order must change."""
    hits = [hit for hit in index.search(QUERY, 50) if hit.file != "long.flac"]  # it has several
    own = [Mark.of(hit, False) for hit in hits[: num // 2]]
    return own + [Mark.of(hit, True) for hit in hits[-num // 2 :]]


def test_without_marks_the_answers_are_those_of_the_sentence(either: AudioIndex):
    detector = either.refine(QUERY, [])
    assert ranked(either, detector) == ranked(either, QUERY)
    scores = [hit.score for hit in either.search(detector)]
    assert all(0 < score < 1 for score in scores) and scores == sorted(scores, reverse=True)


def test_answers_follow_the_marks(either: AudioIndex):
    marks = marks_of(either)
    detector = either.refine(QUERY, marks)
    assert (detector.num_right, len(detector.marks)) == (3, 6)
    none = either.refine(QUERY, [])

    def gap(detector: Detector) -> float:
        """By how much the rights' probabilities are higher, in the mean."""
        likely = {(hit.file, hit.start): hit.score for hit in either.search(detector, 50)}
        own = {True: [], False: []}
        for mark in marks:
            own[mark.right].append(likely[mark.file, mark.start])
        return np.mean(own[True]) - np.mean(own[False])

    assert gap(none) < 0 and gap(detector) > 0.3 * gap(none)
    opposite = [mark.model_copy(update={"right": not mark.right}) for mark in marks]
    assert gap(either.refine(QUERY, opposite)) < gap(detector)  # negative control


def test_the_features_of_tap_are_its_outputs_for_the_sentence(index: AudioIndex):
    """A detector reads them: with the sentence as its vector they give the sentence's scores."""
    hits = index.search(QUERY, 50)
    with torch.no_grad():
        text = index.model.encode_text([QUERY])[0]
    direction = index.model.pooling.directions(text).numpy()
    clips = [index.excerpt_of(Mark.of(hit, True)).clip for hit in hits]
    features = index._two_stage.pooled(text, clips)
    np.testing.assert_allclose(features @ direction, [hit.score for hit in hits], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


def test_detect_gives_all_answers_from_the_threshold_on(either: AudioIndex):
    detector = either.refine(QUERY, marks_of(either))
    all_hits = either.search(detector, 50)
    for least in (0.0, all_hits[3].score, 1.0):
        found = either.detect(detector, least)
        assert [hit.score for hit in found] == [hit.score for hit in all_hits if hit.score >= least]
    default = either.detect(detector)
    assert default and all(hit.score >= detector.threshold and hit.is_match for hit in default)
    assert [hit.is_match for hit in all_hits] == [
        hit.score >= detector.threshold for hit in all_hits
    ]
    within = either.detect(detector, 0.0, within="below")
    assert within and all(hit.file.startswith("below/") for hit in within)


def test_a_saved_detector_is_the_same(either: AudioIndex, tmp_path: Path):
    detector = either.refine(QUERY, marks_of(either))
    folder = Detectors(tmp_path / "detectors")
    assert folder.names() == []
    saved = folder.save(detector, "My wren (2)")
    assert saved.name == "My wren (2)" and folder.names() == ["My wren (2)"]
    loaded = folder.load("My wren (2)")
    assert loaded == saved
    assert [hit.score for hit in either.search(loaded)] == [
        hit.score for hit in either.search(detector)
    ]
    with pytest.raises(UserError, match="wren"):
        folder.save(detector, "My wren (2)", overwrite=False)
    folder.delete("My wren (2)")
    with pytest.raises(UserError, match="wren"):
        folder.delete("My wren (2)")
    assert folder.names() == []


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", "a\\b", ".hidden", "a\nb", "x.", "-x", "a" * 81]
)
def test_a_name_that_is_no_file_name(name: str, tmp_path: Path):
    with pytest.raises(UserError, match="name of a detector"):
        Detectors(tmp_path).load(name)


def test_a_damaged_file_is_named(tmp_path: Path):
    (tmp_path / "bad.json").write_text('{"query": "x"', encoding="utf-8")
    with pytest.raises(UserError, match="bad.json"):
        Detectors(tmp_path).load("bad")
    content = {"query": "x", "vector": [1, "two"]}
    (tmp_path / "bad.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="bad.json"):
        Detectors(tmp_path).load("bad")


def test_a_detector_of_another_model_is_refused(index: AudioIndex, mean: AudioIndex):
    detector = index.refine(QUERY, [])
    for use in (mean.search, mean.detect):
        with pytest.raises(UserError) as refused:
            use(detector)
        names = detector.model_path, mean.store.meta.model.path
        assert all(name in str(refused.value) for name in names) and names[0] != names[1]


def test_marks_belong_to_the_excerpt_with_the_largest_overlap(index: AudioIndex):
    excerpts = index.store.excerpts(index.store.clips_of("long.flac"))
    assert len(excerpts) > 3

    def place(start: float, end: float | None = None) -> float:
        mark = Mark(file="long.flac", start=start, end=end, right=True)
        return index.excerpt_of(mark).start

    second = excerpts[1]
    assert place(second.start, second.end) == second.start
    assert place(second.start + 0.2, second.end + 0.2) == second.start
    assert place(second.start) == place(second.start - 0.01) == second.start
    assert place(second.start - 0.3) == excerpts[0].start
    two = [
        Mark(file="long.flac", start=second.start + shift, right=shift == 0) for shift in (0, 0.1)
    ]
    assert index.refine(QUERY, two).marks == (two[1],)  # the last counts


def test_the_sample_comes_from_everywhere_in_the_index(index: AudioIndex):
    assert index.store.sample(1_000) == list(range(len(index.store)))
    few = index.store.sample(4)
    assert len(set(few)) == 4 and few[0] == 0 and few[-1] == len(index.store) - 1


@pytest.mark.parametrize(
    ("mark", "culprit"),
    [
        (Mark(file="gone.wav", right=True), "gone.wav"),
        (Mark(file="long.flac", right=True), "long.flac"),  # which of its excerpts?
        (Mark(file="long.flac", start=7.4, right=True), "7.4"),
        (Mark(file="long.flac", start=3, end=2, right=True), "3-2"),
    ],
)
def test_marks_of_no_excerpt(index: AudioIndex, mark: Mark, culprit: str):
    with pytest.raises(UserError, match=culprit):
        index.refine(QUERY, [mark])


def test_marks_as_csv(tmp_path: Path):
    marks = [Mark(file='a "b", c.wav', start=1.5, end=3, right=True), Mark(file="d", right=False)]
    write_marks(tmp_path / "marks.csv", marks)
    assert read_marks(tmp_path / "marks.csv") == marks


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("file,start\na.wav,1\n", "right"),
        ("file,right\na.wav,perhaps\n", "line 2.*perhaps"),
        ("file,right,start\na.wav,1,2\nb.wav,0,-1\n", "line 3: start.*-1"),
        ("file,right,end\na.wav,1,late\n", "line 2: end.*late"),
    ],
)
def test_mistakes_in_a_csv_of_marks(tmp_path: Path, text: str, culprit: str):
    (tmp_path / "marks.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=culprit):
        read_marks(tmp_path / "marks.csv")
