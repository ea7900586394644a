"""`evaluate.py --report`: figures against slow references, a page that runs no caption's code."""

import base64
import hashlib
import io
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from itertools import combinations
from math import log
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import soundfile
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image

from retrieval.base.errors import UserError
from retrieval.config import load_config
from retrieval.data import open_cache
from retrieval.evaluation.attention import MAX_POINTS, attention_curve
from retrieval.evaluation.bootstrap import FEW_CLIPS
from retrieval.evaluation.report import figures as figures_module
from retrieval.evaluation.report import media as media_module
from retrieval.evaluation.report import near_duplicates as near_duplicates_module
from retrieval.evaluation.report.against import OtherRun
from retrieval.evaluation.report.figures import (
    breakdowns,
    difference_figures,
    duplicate_figures,
    hardest_queries,
    metric_figures,
    split_keywords,
)
from retrieval.evaluation.report.media import Media, attention_path, sound_uri, spectrogram_uri
from retrieval.evaluation.report.near_duplicates import (
    THRESHOLD,
    find_near_duplicates,
    forgiving_ranks,
    words,
)
from retrieval.evaluation.report.page import MAX_CHARACTERS, ROWS_WITHOUT_SCRIPT, render
from retrieval.evaluation.report.writing import collect
from retrieval.evaluation.result import EvaluationResult
from retrieval.models.build import build_model
from retrieval.models.dual_encoder import DualEncoder
from tests.conftest import ROOT, SAMPLE_RATE, SCORING_RECORD, tone, write_cache, write_rows
from tests.evaluation.evaluate_command import evaluate

HOSTILE = [
    "</script><script>window.attacked = 1</script>",
    '"><img src=x onerror="window.attacked = 2">',
    "</style><style>body { display: none }</style> <!-- & &lt; {{ 7 * 7 }} {% raise %}",
    # Python 3.10's csv cannot write a NUL
    "javascript:alert(1) ' onmouseover='window.attacked = 3' \u2028 \u202e"
    + "\0" * (sys.version_info >= (3, 11)),
]
LANGUAGES = [
    "两只狗在雨中叫。",
    "كلب ينبح مرتين",
    "Собака лает дважды",
    "कुत्ता दो बार भौंकता है",
    "🐕🐕",
    "Ein Hund bellt zweimal",
]
HOSTILE_NAME = '<b onclick="window.attacked = 4">"&.wav'
VOID = {"meta", "input", "link", "img", "br"}


# --- small results ---


def result_of(
    num_clips: int = 30, captions_a_clip: int = 3, seed: int = 0, relevant=None, captions=None
) -> EvaluationResult:
    random = np.random.default_rng(seed)
    clips = [clip for clip in range(num_clips) for _ in range(captions_a_clip)]
    scores = random.normal(size=(len(clips), num_clips)) + 1.2 * (
        np.array(clips)[:, None] == np.arange(num_clips)
    )
    captions = captions or [
        f"word{caption} word{caption % 7} word{caption % 3}" for caption in range(len(clips))
    ]
    names = [f"{clip}.wav" for clip in range(num_clips)]
    return EvaluationResult(
        "evaluation",
        torch.from_numpy(scores).float(),
        captions,
        clips,
        list(names),
        names,
        relevant,
    )


def split_of(result: EvaluationResult, keywords=None) -> SimpleNamespace:
    num_samples = np.arange(1, len(result.clip_ids) + 1) * SAMPLE_RATE
    return SimpleNamespace(
        num_samples=num_samples, sample_rate=SAMPLE_RATE, column={"keywords": keywords}.get
    )


def other_run(result: EvaluationResult, seed: int = 9) -> OtherRun:
    other = result_of(
        len(result.clip_ids), len(result.captions) // len(result.clip_ids), seed, result.relevant
    )
    return OtherRun(
        "runs/b/best", other.ranks["text_to_audio"], [result.file_names[0]] * len(result.captions)
    )


# --- figures ---


def test_intervals_are_those_of_a_slow_bootstrap(monkeypatch):
    """The same draws, every resample put together clip by clip with all captions."""
    monkeypatch.setattr(figures_module, "NUM_RESAMPLES", 200)
    result = result_of()
    figures = metric_figures(result, by_query=False)
    ids = sorted(set(result.clip_ids))
    queries = {
        "text_to_audio": [result.clip_ids[clip] for clip in result.clips],
        "audio_to_text": result.clip_ids,
    }
    for direction, unit_of_query in queries.items():
        reciprocal = [
            sum((hit + 1) / rank for hit, rank in enumerate(ranks) if rank <= 10) / len(ranks)
            for ranks in result.ranks[direction]
        ]
        by_clip = {
            name: [value for value, unit in zip(reciprocal, unit_of_query) if unit == name]
            for name in ids
        }
        means = []
        for draw in np.random.default_rng(0).integers(len(ids), size=(200, len(ids))):
            means.append(np.mean([value for index in draw for value in by_clip[ids[index]]]))
        cell = figures["metrics"][direction]["mAP@10"]
        assert cell["value"] == pytest.approx(np.mean(reciprocal))
        assert [cell["low"], cell["high"]] == pytest.approx(np.percentile(means, [2.5, 97.5]))
        assert cell["low"] < cell["value"] < cell["high"]
    assert figures["bootstrap"] == {
        "num_resamples": 200,
        "confidence": 0.95,
        "seed": 0,
        "unit": "clips",
        "num_units": 30,
        "warning": None,
    }
    by_query = metric_figures(result, by_query=True)
    assert by_query["bootstrap"]["unit"] == "queries" and by_query["bootstrap"]["num_units"] == 90
    assert by_query["metrics"]["text_to_audio"]["mAP@10"]["low"] != pytest.approx(
        figures["metrics"]["text_to_audio"]["mAP@10"]["low"]
    )


def test_few_clips_are_warned_of_and_one_has_no_interval():
    assert (
        "too narrow"
        in metric_figures(result_of(FEW_CLIPS - 1), by_query=False)["bootstrap"]["warning"]
    )
    figures = metric_figures(result_of(1), by_query=False)
    assert figures["bootstrap"]["warning"] == "no intervals: they need at least two clips"
    assert figures["metrics"]["text_to_audio"]["R@1"] == {
        "value": 1.0,
        "low": None,
        "high": None,
        "chance": 1.0,
    }


def test_hardest_queries_against_a_slow_sort():
    result = result_of()
    result.scores[5] = 0.5  # all tied: its clip stands last
    result = EvaluationResult(
        "evaluation",
        result.scores,
        result.captions,
        result.clips,
        result.clip_ids,
        result.file_names,
    )
    scores, clips = result.scores.numpy(), result.clips
    ranks = [sum(row >= row[clip]) for row, clip in zip(scores, clips)]
    hardest = hardest_queries(result, 8, [[] for _ in clips])
    assert (5, 30) in [(hard["number"], hard["right"]["rank"]) for hard in hardest]
    assert [hard["right"]["rank"] for hard in hardest] == sorted(ranks, reverse=True)[:8]
    for hard in hardest:
        row, clip = scores[hard["number"]], clips[hard["number"]]
        assert hard["right"]["clip"] == clip and hard["right"]["score"] == pytest.approx(row[clip])
        wrong = sorted(
            (column for column in range(30) if column != clip),
            key=lambda column: (-row[column], column),
        )
        assert [answer["clip"] for answer in hard["returned"]] == wrong[:3]
        assert hard["right"]["captions"] == [
            text for text, own in zip(result.captions, clips) if own == clip
        ]
    assert len(hardest_queries(result, 10**6, [[] for _ in clips])) == sum(
        rank > 1 for rank in ranks
    )


def test_breakdowns_hold_every_query_once_and_keywords_each_of_theirs():
    result = result_of()
    keywords = ["Dog; bark", "rain", None] * 10
    caption_length, clip_length, keyword = breakdowns(
        result, [float(clip) for clip in range(30)], keywords
    )
    average_precision = [
        1 / ranks[0] if ranks[0] <= 10 else 0 for ranks in result.ranks["text_to_audio"]
    ]
    for part in (caption_length, clip_length):
        assert sum(bin["num_queries"] for bin in part["bins"]) == 90
        assert sum(bin["num_queries"] * bin["mAP@10"] for bin in part["bins"]) == pytest.approx(
            sum(average_precision)
        )
    assert [bin["name"] for bin in caption_length["bins"]] == ["3"]  # one length, one bin
    assert [bin["name"] for bin in clip_length["bins"]] == [
        "0.0–5.0",
        "6.0–11.0",
        "12.0–17.0",
        "18.0–23.0",
        "24.0–29.0",
    ]
    of_rain = [value for value, clip in zip(average_precision, result.clips) if clip % 3 == 1]
    rain = next(bin for bin in keyword["bins"] if bin["name"] == "rain")
    assert rain["num_queries"] == 30 and rain["mAP@10"] == pytest.approx(np.mean(of_rain))
    assert (
        sorted(bin["name"] for bin in keyword["bins"]) == ["bark", "dog", "rain"]
        and not keyword["absent"]
    )
    assert breakdowns(result, [1.0] * 30, None)[2] == {
        "by": "keyword",
        "unit": None,
        "bins": [],
        "absent": True,
    }
    assert split_keywords(["A", "b", "a"]) == ["a", "b"] and split_keywords(" Hand  saw;;x ") == [
        "hand saw",
        "x",
    ]


def test_two_runs_side_by_side():
    result = result_of()
    other = other_run(result)
    figures = difference_figures(result, other, by_query=False)
    ours, theirs = (
        [int(ranks[0]) for ranks in run] for run in (result.ranks["text_to_audio"], other.ranks)
    )
    assert figures["higher_here"] == sum(a < b for a, b in zip(ours, theirs)) and figures[
        "equal"
    ] == sum(a == b for a, b in zip(ours, theirs))
    recall = figures["metrics"]["R@5"]
    assert recall["difference"] == pytest.approx(
        np.mean(np.array(ours) <= 5) - np.mean(np.array(theirs) <= 5)
    )
    assert recall["low"] <= recall["difference"] <= recall["high"] and 0 < recall["p_value"] <= 1
    same = difference_figures(
        result, OtherRun("same", result.ranks["text_to_audio"], []), by_query=False
    )
    assert same["metrics"]["mAP@10"] | {"this": 0, "other": 0} == {
        "this": 0,
        "other": 0,
        "difference": 0,
        "low": 0,
        "high": 0,
        "p_value": 1,
    }


# --- near-duplicates ---


def slow_similarities(captions: list[str]) -> dict[tuple[int, int], float]:
    sets = [set(words(caption)) for caption in captions]
    weights = {
        word: log(1 + len(captions) / sum(word in other for other in sets))
        for word in set().union(*sets)
    }

    def total(found: set[str]) -> float:
        return sum(weights[word] for word in found)

    return {
        pair: total(sets[pair[0]] & sets[pair[1]]) / total(sets[pair[0]] | sets[pair[1]])
        for pair in combinations(range(len(sets)), 2)
    }


def test_near_duplicates_against_all_pairs(monkeypatch):
    random = np.random.default_rng(4)
    vocabulary = ["a", "the", "dog", "Dog", "cat", "barks", "rain", "falls", "twice", "loudly"]
    captions = [" ".join(random.choice(vocabulary, size=random.integers(1, 6))) for _ in range(60)]
    relevant = [
        sorted(set(random.integers(4, size=random.integers(1, 3)).tolist())) for _ in captions
    ]
    similar = {
        pair: value
        for pair, value in slow_similarities(captions).items()
        if value >= THRESHOLD - 1e-9
    }
    expected = {
        pair: value for pair, value in similar.items() if relevant[pair[0]] != relevant[pair[1]]
    }
    found = find_near_duplicates(captions, relevant)
    assert 10 < found.num_pairs == len(expected) < len(similar)
    assert {(first, second): value for value, first, second in found.pairs} == pytest.approx(
        expected
    )
    assert [value for value, *_ in found.pairs] == sorted(
        (value for value, *_ in found.pairs), reverse=True
    )
    for caption, clips in enumerate(found.also_right):
        alike = {other for pair in expected if caption in pair for other in pair} - {caption}
        assert clips == sorted(
            {clip for other in alike for clip in relevant[other]} - set(relevant[caption])
        )
    monkeypatch.setattr(near_duplicates_module, "MAX_PAIRS", 3)
    few = find_near_duplicates(captions, relevant)
    assert (
        few.pairs == found.pairs[:3]
        and few.num_pairs == found.num_pairs
        and few.also_right == found.also_right
    )


def test_ranks_that_forgive_against_a_slow_ranking():
    result = result_of(
        captions=["the same words"] * 12
        + [f"other{caption} words{caption}" for caption in range(78)]
    )
    found = find_near_duplicates(result.captions, result.relevant)
    assert [bool(clips) for clips in found.also_right] == [True] * 12 + [
        False
    ] * 78 and found.also_right[0] == [1, 2, 3]
    counted, left_out = forgiving_ranks(
        result.scores.numpy(), result.relevant, result.ranks["text_to_audio"], found.also_right
    )
    for query, row in enumerate(result.scores.numpy()):
        order = np.argsort(-row, kind="stable").tolist()
        right = [result.clips[query], *found.also_right[query]]
        assert counted[query].tolist() == sorted(order.index(clip) + 1 for clip in right)
        assert left_out[query].tolist() == [
            [clip for clip in order if clip not in right[1:]].index(right[0]) + 1
        ]
    figures = duplicate_figures(result, found)
    assert figures["num_captions"] == 12 and figures["metrics"]["as scored"] == pytest.approx(
        result.metrics["text_to_audio"]
    )
    assert figures["metrics"]["their clips count as right"]["R@10"] == pytest.approx(
        np.mean([ranks[0] <= 10 for ranks in counted])
    )
    of_these = figures["metrics_of_these_captions"]["their clips left out of the ranking"]
    assert of_these["mAP@10"] == pytest.approx(
        np.mean([1 / ranks[0] if ranks[0] <= 10 else 0 for ranks in left_out[:12]])
    )


def test_words_of_any_language():
    assert words("A dog's BARK, twice!") == ["a", "dog", "s", "bark", "twice"]
    assert words("ＡＢ ﬁne") == ["ab", "fine"] and words("Cafe\u0301") == words("Café")
    assert words("两只狗 bark") == ["两", "只", "狗", "bark"]
    assert words("कुत्ता दो") == ["कुत्ता", "दो"]  # vowel signs stay with their word
    assert words(" 🐕🐕 ") == ["🐕🐕"] and words("") == [""]
    found = find_near_duplicates(
        ["两只狗在雨中叫", "两只狗在雨中叫。", "🐕", "🐕 ", "x"], [[0], [1], [2], [3], [4]]
    )
    assert [pair[1:] for pair in found.pairs] == [(0, 1), (2, 3)]


# --- sound and pictures ---


def decoded(uri: str, kind: str) -> io.BytesIO:
    head, _, content = uri.partition(",")
    assert head == f"data:{kind};base64"
    return io.BytesIO(base64.b64decode(content, validate=True))


@pytest.mark.parametrize("sample_rate", [8000, 16_000, 44_100, 96_000])
def test_a_sound_is_heard_in_full(sample_rate):
    time = np.arange(2 * sample_rate) / sample_rate
    samples = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    uri = sound_uri(samples, sample_rate)
    heard, rate = soundfile.read(decoded(uri, "audio/mpeg"))
    assert len(heard) / rate == pytest.approx(2, abs=0.1) and rate in media_module.MP3_RATES
    spectrum = np.abs(np.fft.rfft(heard[: 2 * rate]))
    assert spectrum.argmax() / 2 == pytest.approx(440, abs=2) and len(uri) < 40_000
    assert sound_uri(np.zeros(1, dtype=np.float32), sample_rate)  # a clip of one sample


def test_a_picture_keeps_place_and_level():
    log_mel = np.zeros((8, 960), dtype=np.float32)
    log_mel[1, 480:] = 5  # low band, second half
    image = np.asarray(
        Image.open(decoded(spectrogram_uri(log_mel), "image/png")).convert("L"), dtype=int
    )
    assert image.shape == (8, media_module.MAX_COLUMNS)
    assert (
        image[-2, 240:].min() > 200
        and image[-2, :240].max() < 10
        and np.delete(image, -2, axis=0).max() < 10
    )
    assert spectrogram_uri(np.zeros((4, 3), dtype=np.float32))  # silence


def test_an_attention_curve_is_the_weights():
    curve = attention_path(np.array([0.5, 0.25, 0.25, 0.0]))
    assert (
        curve.path == "M0,100 V7.4H1 V53.7H2 V53.7H3 V100.0H4 V100Z"
        and curve.peak == pytest.approx(2)
    )
    assert curve.uniform == pytest.approx(100 - 100 / 2.16)
    many = attention_path(np.full(5000, 1 / 5000))
    assert (
        many.num_points == MAX_POINTS
        and many.uniform == pytest.approx(50)
        and many.path.count("V50.0") == many.num_points
    )
    weights = np.random.default_rng(0).dirichlet(np.ones(1000))
    levels, sizes = attention_curve(weights)
    ends = np.cumsum(sizes)
    assert len(levels) == MAX_POINTS and ends[-1] == 1000 and set(sizes.tolist()) == {4, 5}
    for level, size, end in zip(levels, sizes, ends, strict=True):
        assert level == pytest.approx(1000 * max(weights[end - size : end]))


# --- the page ---


class Page(HTMLParser):
    """Elements and text of a page; asserts that what opens is closed."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self._open = [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self._open[-1] if self._open else None, data))

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self) -> str:
        return " ".join(
            "".join(data for tag, data in self.texts if tag not in ("script", "style")).split()
        )

    def of(self, tag: str) -> list[str]:
        return [data for name, data in self.texts if name == tag]


def save_run(run: Path, settings: Path, overrides: list[str], cache: Path, seed: int) -> Path:
    config = load_config(settings, [*overrides, f"data.cache={cache}"])
    torch.manual_seed(seed)
    build_model(config).save_pretrained(run / "best")
    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump()))
    return run / "best"


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory) -> SimpleNamespace:
    """A TAP and a mean-pooling model, and a cache whose captions and names attack the page."""
    root = tmp_path_factory.mktemp("report")
    random = np.random.default_rng(0)
    captions = [[text] for text in HOSTILE + LANGUAGES] + [
        ["A low tone.", "A steady note, low."],
        ["a LOW tone"],
    ]
    rows = []
    for clip, texts in enumerate(captions):
        pcm = np.round(32767 * tone(clip % 4, clip % 3, 0.8 + 0.1 * clip, random)).astype("<i2")
        name = HOSTILE_NAME if clip == 0 else f"Größe {clip}.wav"
        rows.append(
            {
                "clip_id": f"evaluation/{clip}",
                "file_name": name,
                "audio": pcm.tobytes(),
                "num_samples": len(pcm),
                "captions": texts,
            }
        )
    cache = write_rows(root / "cache", {"evaluation": rows})
    tap = save_run(root / "tap", tiny / "tiny.yaml", [], cache, 0)
    mean = save_run(root / "mean", tiny / "tiny.yaml", ["pooling.name=mean"], cache, 1)
    return SimpleNamespace(root=root, cache=cache, tap=tap, mean=mean)


@pytest.fixture(scope="module")
def report(runs) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = runs.root / "page"
    evaluate(
        "--checkpoint",
        runs.tap,
        "--report",
        folder,
        "--against",
        runs.mean,
        "--report-queries",
        "20",
    )
    return folder


@pytest.fixture(scope="module")
def page(report) -> Page:
    return Page((report / "report.html").read_text(encoding="utf-8"))


def test_figures_are_those_of_the_evaluation(report, runs):
    figures = json.loads((report / "report.json").read_text(encoding="utf-8"))
    metrics = json.loads((runs.tap / "results" / "evaluation" / "metrics.json").read_text())
    for direction in ("text_to_audio", "audio_to_text"):
        for name, cell in figures["metrics"][direction].items():
            assert (
                cell["value"] == metrics[direction][name]
                and cell["chance"] == metrics["chance"][direction][name]
            )
            assert cell["low"] <= cell["value"] <= cell["high"]
    histogram = figures["rank_histogram"]
    assert (
        sum(histogram["text_to_audio"]["counts"]) == 13
        and sum(histogram["audio_to_text"]["counts"]) == 12
    )
    assert [row["query"] for row in figures["queries"]] == HOSTILE + LANGUAGES + [
        "A low tone.",
        "A steady note, low.",
        "a LOW tone",
    ]
    assert all(row["won"] == row["other_rank"] - row["rank"] for row in figures["queries"])
    assert figures["near_duplicates"]["num_pairs"] == 1 and figures["breakdowns"][2]["absent"]
    assert sorted(path.name for path in report.iterdir()) == ["report.html", "report.json"]


def test_the_page_holds_everything_once(report, page):
    figures = json.loads((report / "report.json").read_text(encoding="utf-8"))
    assert figures["hardest"]
    shown = {
        answer["clip"]
        for hard in figures["hardest"]
        for answer in (hard["right"], *hard["returned"])
    }
    sounds = {int(audio["id"].removeprefix("sound-")): audio["src"] for audio in page.all("audio")}
    assert set(sounds) == shown and len(set(sounds.values())) == len(shown)
    again = [link["data-sound"] for link in page.all("a") if "data-sound" in link]
    assert (
        len(again) == sum(1 + len(hard["returned"]) for hard in figures["hardest"]) - len(shown) > 0
    )
    style = page.of("style")[0]
    pictures = dict(re.findall(r'\.picture-(\d+) \{ background-image: url\("([^"]+)"\) \}', style))
    assert set(map(int, pictures)) == shown and style.count("url(") == len(shown)
    for clip in shown:
        heard, rate = soundfile.read(decoded(sounds[clip], "audio/mpeg"))
        # the model hears two seconds
        assert len(heard) / rate == pytest.approx(min(2.0, 0.8 + 0.1 * clip), abs=0.12)
        assert Image.open(decoded(pictures[str(clip)], "image/png")).height > 1
    assert len(page.all("svg")) == sum(1 + len(hard["returned"]) for hard in figures["hardest"])
    # Nothing else is loaded: what has an address is in the page.
    addresses = [
        attributes[name]
        for _, attributes in page.elements
        for name in ("src", "href")
        if name in attributes
    ]
    assert all(
        address.startswith(("data:audio/mpeg;", "#")) for address in addresses
    ) and not page.all("link")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) and {
        address[1:] for address in addresses if address.startswith("#")
    } <= set(ids)


def test_captions_and_file_names_are_text_and_nothing_else(report, page):
    scripts = page.all("script")
    assert scripts == [{"type": "application/json", "id": "data"}, {}] and not page.all("img")
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    data, code = page.of("script")
    assert code == (ROOT / "retrieval" / "evaluation" / "report" / "page.js").read_text(
        encoding="utf-8"
    )
    policy = next(
        meta["content"]
        for meta in page.all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    )
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    table = json.loads(data)
    assert sorted(row[0] for row in table["rows"]) == sorted(
        row["query"] for row in json.loads((report / "report.json").read_text())["queries"]
    )
    assert HOSTILE_NAME in table["names"] and "<" not in data
    text = page.text()
    for caption in (*HOSTILE[:3], *LANGUAGES, HOSTILE_NAME):
        assert caption in text


def test_a_caption_of_ten_thousand_words_is_cut():
    result = result_of(2, 1, captions=["word " * 10_000, "b"])
    html = render(collect(result, split_of(result), SCORING_RECORD, 0, None), Media({}, None, 0))
    assert len(html) < 60_000 and "word " * (MAX_CHARACTERS // 5 - 1) in html and "…" in html


def test_five_thousand_captions_come_by_pages(monkeypatch):
    monkeypatch.setattr(figures_module, "NUM_RESAMPLES", 100)
    result = result_of(1000, 5)
    figures = collect(
        result, split_of(result, ["rain;dog"] * 1000), SCORING_RECORD, 0, other_run(result)
    )
    html = render(figures, Media({}, None, 0))
    page = Page(html)
    rows = json.loads(page.of("script")[0])["rows"]
    assert len(rows) == len(figures["queries"]) == 5000 and len(html) < 1_000_000
    assert (
        len([cell for cell in page.all("td") if cell.get("class") == "text"]) == ROWS_WITHOUT_SCRIPT
    )
    won = [row[5] for row in rows]
    assert won == sorted(won, reverse=True) and won[0] > 0 > won[-1]


def test_pictures_and_sounds_stop_where_the_page_is_full(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(media_module, "MAX_BYTES", 40_000)
    evaluate("--checkpoint", runs.tap, "--report", tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    num_bytes = sum(len(audio["src"]) for audio in page.all("audio")) + sum(
        map(len, re.findall(r'url\("([^"]+)"\)', html))
    )
    assert 20_000 < num_bytes <= 40_000
    left_out = int(re.search(r"(\d+) of \d+ clips come without sound or picture", page.text())[1])
    assert left_out > 0 and page.text().count("sound left out: the page is full") >= left_out


# --- runs of other kinds ---


def test_mean_pooling_has_pictures_without_attention(runs, tmp_path):
    evaluate("--checkpoint", runs.mean, "--report", tmp_path, "--report-queries", "2")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert (
        "there is no attention to draw" in page.text() and not page.all("svg") and page.all("audio")
    )
    evaluate("--checkpoint", runs.mean, "--report", tmp_path, "--report-queries", "0")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "None to show: --report-queries 0" in page.text() and not page.all("audio")


def test_an_ensemble_has_the_attention_of_the_first_that_has_any(runs, tmp_path):
    both = ["--checkpoint", runs.mean, "--checkpoint", runs.tap, "--output", tmp_path / "out"]
    evaluate(*both, "--report", tmp_path / "page", "--against", runs.mean, "--report-queries", "1")
    page = Page((tmp_path / "page" / "report.html").read_text(encoding="utf-8"))
    assert f"the attention that {runs.tap} gives" in page.text() and page.all("svg")
    assert f"the mean of {runs.mean}, {runs.tap} on evaluation" in page.text()
    figures = json.loads((tmp_path / "page" / "report.json").read_text(encoding="utf-8"))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (
        figures["metrics"]["text_to_audio"]["mAP@10"]["value"] == metrics["text_to_audio"]["mAP@10"]
    )


def test_several_right_clips_a_query(runs, tmp_path):
    (tmp_path / "relevance.csv").write_text(
        "query,audio_filenames\nA low tone,\"['Größe 4.wav', 'Größe 5.wav']\"\nNothing,['Größe"
        " 2.wav']\n"
    )
    arguments = [
        "--checkpoint",
        runs.tap,
        "--relevance",
        tmp_path / "relevance.csv",
        "--output",
        tmp_path / "out",
    ]
    evaluate(*arguments, "--report", tmp_path / "page")
    evaluate(
        *arguments, "--report", tmp_path / "page2", "--against", tmp_path / "out"
    )  # with itself
    figures = json.loads((tmp_path / "page2" / "report.json").read_text(encoding="utf-8"))
    assert (
        "mAP@16" in figures["metrics"]["text_to_audio"]
        and figures["bootstrap"]["unit"] == "queries"
        and figures["bootstrap"]["num_units"] == 2
    )
    assert (
        figures["against"]["equal"] == 2
        and figures["against"]["metrics"]["mAP@16"]["difference"] == 0
    )
    assert (
        "2 queries" in Page((tmp_path / "page2" / "report.html").read_text(encoding="utf-8")).text()
    )


def test_a_cache_of_one_clip_with_keywords(runs, tmp_path):
    cache = write_cache(tmp_path / "plain", {"evaluation": 1})
    table = datasets.load_from_disk(str(cache / "evaluation")).add_column(
        "keywords", ["Tone;<i>low"]
    )
    datasets.DatasetDict({"evaluation": table}).save_to_disk(str(tmp_path / "cache"))
    shutil.copy(cache / "cache.json", tmp_path / "cache")
    assert open_cache(tmp_path / "cache").split("evaluation").column("keywords") == ["Tone;<i>low"]
    arguments = [
        "--checkpoint",
        runs.tap,
        "--cache",
        tmp_path / "cache",
        "--output",
        tmp_path / "out",
    ]
    evaluate(*arguments, "--report", tmp_path / "page", "--against", runs.mean)
    page = Page((tmp_path / "page" / "report.html").read_text(encoding="utf-8"))
    assert (
        "no intervals: they need at least two clips" in page.text()
        and "every query found a right clip first" in page.text()
    )
    assert "<i>low" in page.text()


def test_results_of_the_other_run_say_what_scoring_it_says(report, runs, tmp_path):
    other = tmp_path / "other"
    evaluate("--checkpoint", runs.mean, "--output", other)
    evaluate(
        "--checkpoint",
        runs.tap,
        "--report",
        tmp_path / "page",
        "--against",
        other,
        "--report-queries",
        "0",
    )
    scored, read = (
        json.loads((folder / "report.json").read_text(encoding="utf-8"))
        for folder in (report, tmp_path / "page")
    )
    assert read["queries"] == scored["queries"] and read["against"] | {"name": None} == scored[
        "against"
    ] | {"name": None}


# --- refusals ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "{runs}/mean/best"], "need --report DIR"),
        (["--report-queries", "3"], "need --report DIR"),
        (["--report", "{tmp}/page", "--report-queries", "-1"], "must be 0 to 200, found -1"),
        (
            ["--report", "{tmp}/page", "--queries", "q.csv", "--submission", "dcase2024", "s.csv"],
            "not known for --queries",
        ),
        (
            ["--report", "{tmp}/page", "--against", "{tmp}/absent"],
            "absent does not exist: give a model folder",
        ),
        (
            ["--report", "{tmp}/page", "--against", "{runs}/tap/../tap/best"],
            "is the checkpoint itself",
        ),
        (["--report", ""], "by its name"),
        (["--report", "{tmp}/file"], "file cannot be written"),
        (["--report", "{tmp}/file/below"], r"cannot be written \(Not a directory\)"),
        (["--report", "{tmp}/taken"], "report.html is a folder"),
        (
            ["--report", "{tmp}/page", "--submission", "dcase2024", "{tmp}/page/report.json"],
            "or another result",
        ),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(
    runs, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.setattr(DualEncoder, "from_pretrained", lambda *_: 1 / 0)
    (tmp_path / "file").touch()
    (tmp_path / "taken" / "report.html").mkdir(parents=True)
    arguments = [argument.format(tmp=tmp_path, runs=runs.root) for argument in arguments]
    with pytest.raises(UserError, match=message) as error:
        evaluate("--checkpoint", runs.tap, *arguments)
    assert "\n" not in str(error.value) and not (tmp_path / "page").exists()


def test_another_run_that_cannot_be_compared_is_found_before_scoring(
    runs, tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr("retrieval.evaluation.score_matrix.score_columns", lambda *_, **__: 1 / 0)
    score = ["--checkpoint", runs.tap, "--report", tmp_path / "page", "--against"]
    rate = save_run(
        tmp_path / "rate",
        tiny / "tiny.yaml",
        ["data.sample_rate=32000", "audio_encoder.window_seconds=1.0"],
        runs.cache,
        0,
    )
    with pytest.raises(
        UserError,
        match="needs 32000 Hz, and the cache is sampled at 16000 Hz: .* give --against RESULTS",
    ):
        evaluate(*score, rate)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        evaluate(*score, tmp_path / "empty")
    results = tmp_path / "results"
    results.mkdir()
    (results / "metrics.json").write_text(json.dumps({"num_clips": 12}))
    (results / "ranks.csv").write_text(
        "query,clip,rank,score,top_1,ranks\nA tone,a.wav,1,0.5,a.wav,1\n"
    )
    with pytest.raises(
        UserError,
        match="other clips or queries: 1 queries and 12 clips of split None, .* 13 and 12 of ",
    ):
        evaluate(*score, results)
    (results / "ranks.csv").write_text("query,clip\n")
    with pytest.raises(UserError, match="results cannot be read .* write them again"):
        evaluate(*score, results)
    for ranks in ("0", "-5", "13", "9" * 25, "2 1", "1 1"):
        (results / "ranks.csv").write_text(
            f"query,clip,rank,score,top_1,ranks\nA tone,a.wav,1,0.5,a.wav,{ranks}\n"
        )
        with pytest.raises(UserError, match="results cannot be read"):
            evaluate(*score, results)
    with pytest.raises(ZeroDivisionError):  # negative control
        evaluate(*score, runs.mean)
    assert not (tmp_path / "page").exists()


def test_a_report_is_replaced_by_a_whole_one_only(runs, tmp_path, monkeypatch):
    for name in ("report.html", "report.json", "notes.txt"):
        (tmp_path / name).write_text("old")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    score = ["--checkpoint", runs.tap, "--report", tmp_path, "--report-queries", "1"]
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"),
    ):
        patch.setattr("retrieval.evaluation.report.page.json.dump", full)
        evaluate(*score)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("report.html", "report.json", "notes.txt"), "old"
    )
    evaluate(*score)
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith(
        "<!doctype html>"
    ) and (tmp_path / "notes.txt").read_text() == "old"


# --- in a browser ---


@pytest.fixture(scope="module")
def chromium():
    programs = filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser")))
    program = next(programs, None)
    if program is None:
        pytest.skip("no Chromium is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, report):
    """Open the report at a width, with or without scripts; collect the browser's messages."""
    contexts = []

    def opened(width: int, **options):
        context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.messages, tab.requests = [], []
        tab.on("console", lambda message: tab.messages.append(message.text))
        tab.on("pageerror", lambda error: tab.messages.append(str(error)))
        tab.on("request", lambda request: tab.requests.append(request.url))
        tab.goto((report / "report.html").as_uri())
        return tab

    yield opened
    for context in contexts:
        context.close()


def test_the_page_works_in_a_browser(open_page):
    tab = open_page(1280)
    tab.wait_for_function(
        "[...document.querySelectorAll('audio[id]')].every(audio => audio.readyState >= 1 &&"
        " audio.duration > 0.5)"
    )
    assert tab.messages == [] and tab.evaluate("window.attacked") is None
    assert all(url.startswith(("file:", "data:")) for url in tab.requests)
    # A clip that is shown again has a player too, of the same sound.
    assert (
        tab.locator("a[data-sound]").count() == 0
        and tab.locator("audio").count() == tab.locator(".clip").count()
    )
    tab.locator(".clip audio:not([id])").first.evaluate(
        "async audio => { await audio.play(); audio.pause(); }"
    )
    # A click in the picture goes to that time.
    picture = tab.locator(".picture").first
    picture.click(position={"x": picture.bounding_box()["width"] / 2, "y": 10})
    tab.wait_for_function("document.querySelector('.clip audio').currentTime > 0.2")

    ranks = (
        "[...document.querySelectorAll('#query-table tbody tr')].map(row =>"
        " Number(row.cells[3].textContent))"
    )
    tab.locator("#query-table th[data-column='3']").click()
    lowest_first = tab.evaluate(ranks)
    assert (
        len(lowest_first) == 13
        and lowest_first == sorted(lowest_first, reverse=True)
        and len(set(lowest_first)) > 2
    )
    tab.locator("#query-table th[data-column='3']").press("Enter")
    assert tab.evaluate(ranks) == lowest_first[::-1]
    tab.locator("#filter").fill("ZWEIMAL größe hund")
    assert tab.locator("#query-table td.text").all_text_contents() == ["Ein Hund bellt zweimal"]
    assert tab.locator("#place").text_content() == "1–1 of 1"
    tab.locator("#filter").fill("")
    tab.locator("#kind").select_option("lower")
    won = tab.locator("#query-table tbody td[data-label=won]").all_text_contents()
    assert all(text.startswith("−") for text in won)
    bins = tab.locator("table.sortable").first
    bins.locator("th").nth(1).click()
    counts = [int(text) for text in bins.locator("tbody td:nth-child(2)").all_text_contents()]
    assert (
        counts == sorted(counts, reverse=True)
        and bins.locator("th").nth(1).get_attribute("aria-sort") == "descending"
    )
    assert tab.messages == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(open_page, scheme):
    tab = open_page(390, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    paper, ink = (
        tab.evaluate(f"getComputedStyle(document.body).{name}")
        for name in ("backgroundColor", "color")
    )
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink)]
    assert (brightness[0] > brightness[1]) == (scheme == "light") and abs(
        brightness[0] - brightness[1]
    ) > 400


def test_the_page_reads_without_scripts(open_page):
    tab = open_page(1280, java_script_enabled=False)
    assert (
        tab.locator("#query-table tbody tr").count() == 13
        and not tab.locator("#controls").is_visible()
    )
    assert (
        tab.locator("a[data-sound]").first.is_visible() and tab.locator("audio").first.is_visible()
    )
