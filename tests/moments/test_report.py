"""`evaluate.py --moments --report`: figures against loops, and a page that runs no query's code."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from PIL import Image

from retrieval.data import open_cache
from retrieval.evaluation.metrics.audio_moment_retrieval.scoring import NAMES
from retrieval.moments import report as report_module
from retrieval.moments.files import Answer, Truth
from retrieval.moments.report import breakdowns, collect, hardest_queries, reliability
from retrieval.moments.result import score_answers
from retrieval.moments.spans import Moment, iou
from retrieval.moments.split import truths_of
from tests.conftest import SCORING_RECORD
from tests.evaluation.evaluate_command import evaluate
from tests.models.test_dual_encoder import text_folder  # noqa: F401
from tests.moments.test_evaluation import HOSTILE, SECONDS, arguments, inputs  # noqa: F401

ABOUT = {"method": "head", "castella_rounding": False}


def random_result(num_queries=60, seed=0, scores=None):
    random = np.random.default_rng(seed)
    answers, truths = [], []
    for query in range(num_queries):
        starts = np.sort(random.uniform(0, 50, random.integers(1, 4)))
        windows = [(start, start + random.uniform(1, 9)) for start in starts]
        moments = []
        for _ in range(random.integers(0, 5)):
            start, end = windows[random.integers(len(windows))]
            shift = random.normal(0, 1.5, 2)
            start, end = sorted((start + shift[0], end + shift[1]))
            moments.append(Moment(start, end, float((scores or random.uniform)(0, 1))))
        about = (f"q{query}", f"Query {query}", f"v{query // 2}")
        answers.append(Answer(*about, 60.0, sorted(moments, key=lambda moment: -moment.score)))
        truths.append(Truth(*about, 60.0, windows))
    return score_answers(answers, truths)


# --- figures ---


@pytest.mark.parametrize("is_probability", [True, False])
@pytest.mark.parametrize("most", [1, 10])
def test_reliability_is_that_of_a_loop(is_probability, most):
    result = random_result()
    found = reliability(result, is_probability, most)
    moments = []
    for answer, truth in zip(result.answers, result.truths):
        for moment in answer.moments[:most]:
            right = any(iou(moment, window) >= 0.5 for window in truth.windows)
            moments.append((moment.score, right))
    assert found["num_moments"] == len(moments) == sum(own["count"] for own in found["bins"])
    for own in found["bins"]:
        inside = [moment for moment in moments if own["low"] <= moment[0] <= own["high"]]
        assert own["count"] == len(inside)
        assert own["mean_score"] == pytest.approx(np.mean([score for score, _ in inside]))
        assert own["share_right"] == pytest.approx(np.mean([right for _, right in inside]))
    if is_probability:
        assert all(int(10 * own["low"]) == int(10 * own["high"]) for own in found["bins"])
        gap = sum(
            own["count"] * abs(own["mean_score"] - own["share_right"]) for own in found["bins"]
        )
        assert found["error"] == pytest.approx(gap / len(moments)) and found["error"] > 0
    else:
        counts = [own["count"] for own in found["bins"]]
        assert len(counts) == 10 and max(counts) - min(counts) <= 1 and found["error"] is None


def test_reliability_of_equal_scores_and_of_no_answers():
    equal = reliability(random_result(scores=lambda *_: 0.25), False)
    assert len(equal["bins"]) == 1 and equal["bins"][0]["low"] == equal["bins"][0]["high"] == 0.25
    truths = [Truth("q", "", "v", 60.0, [(1.0, 2.0)])]
    silent = score_answers([Answer("q", "", "v", 60.0, [])], truths)
    for is_probability in (True, False):
        found = reliability(silent, is_probability)
        assert (found["bins"], found["num_moments"], found["error"]) == ([], 0, None)


def test_a_perfect_score_has_no_error():
    truths = [Truth(f"q{i}", "", f"v{i}", 60.0, [(1.0, 2.0)]) for i in range(8)]
    answers = [Answer(f"q{i}", "", f"v{i}", 60.0, [Moment(1.0, 2.0, 1.0)]) for i in range(8)]
    assert reliability(score_answers(answers, truths), True)["error"] == 0
    wrong = [Answer(f"q{i}", "", f"v{i}", 60.0, [Moment(9.0, 9.5, 1.0)]) for i in range(8)]
    assert reliability(score_answers(wrong, truths), True)["error"] == 1  # negative control


def test_bins_of_lengths_hold_every_query_once():
    result = random_result()
    for part in breakdowns(result):
        assert sum(own["num_queries"] for own in part["bins"]) == 60
        mean = sum(own["num_queries"] * own["mIoU"] for own in part["bins"]) / 60
        assert mean == pytest.approx(result.metrics["mIoU"])
    by_number = breakdowns(result)[3]["bins"]
    for own in by_number:
        low, *_, high = map(int, own["name"].split("–") * 2)
        rows = [query for query in range(60) if low <= len(result.truths[query].windows) <= high]
        assert own["num_queries"] == len(rows)
        assert own["R1@0.5"] == pytest.approx((result.ious[rows] >= 0.5).mean())


def test_the_hardest_queries_come_first_and_exact_ones_never():
    truths = [Truth(f"q{i}", "", "v", 60.0, [(10.0, 20.0)]) for i in range(5)]
    found = [[(10, 20, 0.9)], [(10, 15, 0.8)], [(30, 40, 0.3)], [(30, 40, 0.7)], []]
    answers = [
        Answer(f"q{i}", "", "v", 60.0, [Moment(*moment) for moment in moments])
        for i, moments in enumerate(found)
    ]
    split = SimpleNamespace(file_names=["v.wav"])
    hard = hardest_queries(score_answers(answers, truths), split, [0] * 5, 10)
    assert [own["qid"] for own in hard] == ["q3", "q2", "q4", "q1"]
    assert [own["iou"] for own in hard] == [0, 0, 0, 0.5]


def test_a_query_whose_truth_does_not_count_is_left_out(inputs):  # noqa: F811
    split = open_cache(inputs.cache).split("evaluation")
    truths = truths_of(split)
    answers = [Answer(one.qid, one.query, one.vid, 9.0, [Moment(0, 9, 0.5)]) for one in truths]
    long = [Truth(*vars(truths[0]).values()), *truths[1:]]
    long[0].windows[:] = [(0.0, 1501.0)]
    figures = collect(score_answers(answers, long), split, SCORING_RECORD, ABOUT, 10)
    assert figures["about"]["num_queries"] == 3
    assert "q1" not in [own["qid"] for own in figures["hardest"]]
    assert all(np.isfinite(cell["low"]) for cell in figures["metrics"].values())


# --- the page ---


class Page(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def folder(inputs, tmp_path_factory):  # noqa: F811
    """Reports of the head, and of contributions with parts of 2 s of a recording."""
    root = tmp_path_factory.mktemp("report")
    evaluate(*arguments(inputs, root), "--report", root / "head")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_module, "MAX_SECONDS", 2.0)
        options = ("--method", "contribution", "--report-queries", "2")
        evaluate(*arguments(inputs, root), "--report", root / "parts", *options)
    return root


def test_figures_are_those_of_the_result(folder):
    figures = json.loads((folder / "head/moments_report.json").read_text(encoding="utf-8"))
    assert list(figures["metrics"]) == list(NAMES)
    for cell in figures["metrics"].values():
        assert cell["low"] <= cell["value"] <= cell["high"]
    assert figures["bootstrap"]["num_units"] == 3 and "below 20" in figures["bootstrap"]["warning"]
    assert 1 <= len(figures["hardest"]) <= 4 and figures["about"]["method"] == "head"
    assert sorted(path.name for path in (folder / "head").iterdir()) == [
        "moments.html",
        "moments_report.json",
    ]


def test_a_query_runs_nothing(folder):
    html = (folder / "head/moments.html").read_text(encoding="utf-8")
    page = Page(html)
    assert not any("onerror" in attrs for _, attrs in page.tags)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert HOSTILE in "".join(page.words)
    policy = next(attrs["content"] for tag, attrs in page.tags if "http-equiv" in attrs)
    assert "default-src 'none'" in policy and "sha256-" in policy
    assert not re.search(r'(src|href)="(?!data:|#)', html)


def test_sound_and_stretches_are_those_of_the_recording(folder):
    html = (folder / "head/moments.html").read_text(encoding="utf-8")
    figures = json.loads((folder / "head/moments_report.json").read_text(encoding="utf-8"))
    sounds = re.findall(r'src="data:audio/mpeg;base64,([^"]+)"', html)
    pictures = re.findall(r'url\("data:image/png;base64,([^"]+)"\)', html)
    assert len(sounds) == len(pictures) == len(figures["hardest"])
    for sound, picture, own in zip(sounds, pictures, figures["hardest"]):
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(sound)))
        assert len(samples) / rate == pytest.approx(SECONDS[own["clip"]], abs=0.1)
        Image.open(io.BytesIO(base64.b64decode(picture))).verify()
    rows = re.findall(r'class="stretches (truth|answers)"[^>]*>(.*?)</div>', html, re.DOTALL)
    for place, own in enumerate(figures["hardest"]):
        (kind, true), (other, found) = rows[2 * place : 2 * place + 2]
        assert (kind, other) == ("truth", "answers")
        drawn = [tuple(map(float, one)) for one in re.findall(r"left: (.*?)%; width: (.*?)%", true)]
        seconds = own["seconds"]
        expected = [(100 * s / seconds, 100 * (e - s) / seconds) for s, e in own["windows"]]
        assert np.allclose(drawn, expected, atol=0.01)
        assert found.count("<i ") == len(own["moments"])


def test_a_long_recording_shows_the_part_around_its_truth(folder):
    html = (folder / "parts/moments.html").read_text(encoding="utf-8")
    figures = json.loads((folder / "parts/moments_report.json").read_text(encoding="utf-8"))
    assert len(figures["hardest"]) == 2 and figures["reliability"]["error"] is None
    scales = re.findall(r"<span>([\d.]+) s</span><span>curve[^<]*</span><span>([\d.]+) s", html)
    for (first, last), own in zip(scales, figures["hardest"]):
        assert float(last) - float(first) == pytest.approx(min(2.0, own["seconds"]), abs=0.11)
        middle = sum(own["windows"][0]) / 2
        assert float(first) <= middle <= float(last)


def test_a_full_page_says_what_is_left_out(inputs, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(report_module, "MAX_BYTES", 1000)
    evaluate(*arguments(inputs, tmp_path), "--report", tmp_path / "report")
    text = "".join(Page((tmp_path / "report/moments.html").read_text(encoding="utf-8")).words)
    assert "the page is full" in text and "sound left out" in text


def test_no_queries_shown(inputs, tmp_path):  # noqa: F811
    options = ("--report", tmp_path / "report", "--report-queries", "0")
    evaluate(*arguments(inputs, tmp_path), *options)
    text = "".join(Page((tmp_path / "report/moments.html").read_text(encoding="utf-8")).words)
    assert "--report-queries 0" in text
