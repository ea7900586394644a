"""`python evaluate.py --moments`: answers, files and results of a split with times."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from data_prep.cache.arrow_cache import CacheSettings, build_cache
from data_prep.cache.shards import Clip
from data_prep.cache.split_plan import SplitPlan
from retrieval.base.errors import UserError
from retrieval.data import MomentQuery, open_cache
from retrieval.data.schema import CODECS
from retrieval.evaluation.options import MOMENT_METHODS
from retrieval.models.dual_encoder import DualEncoder
from retrieval.moments import split as split_module
from retrieval.moments.__main__ import main as score_main
from retrieval.moments.evaluation import match_queries
from retrieval.moments.files import (
    Query,
    castella_rounding,
    read_predictions,
    read_queries,
    rounded,
)
from retrieval.moments.locator import METHODS, Locator
from retrieval.moments.result import score_answers
from retrieval.moments.split import answer_split, read_blocks, recording_names, truths_of
from tests.conftest import run_here
from tests.evaluation.evaluate_command import evaluate
from tests.models.test_dual_encoder import RATE, make_model, text_folder  # noqa: F401

HEAD = {"hidden": 8, "kernel": 3, "step_seconds": 0.12}
HOSTILE = '</script><img src=x onerror="alert(1)"> {{ 7 * 7 }} rising'
SECONDS = (1.3, 7.4, 4.0, 2.0)  # of each clip; the model's clips have 3 s
QUERIES = (
    (MomentQuery("q1", "a steady low tone", ((0.2, 0.9),)),),
    (
        MomentQuery("q2", "a steady low tone", ((1.0, 2.0), (5.0, 6.5))),
        MomentQuery("q3", HOSTILE, ((6.0, 7.4),)),
    ),
    (),
    (MomentQuery("q4", "someone plays a rising note", ((0.0, 2.0),)),),
)


def write_moment_cache(root: Path, codec: str = "pcm_s16le") -> Path:
    plan, random = SplitPlan("evaluation", clips=[]), np.random.default_rng(3)
    for number, (seconds, queries) in enumerate(zip(SECONDS, QUERIES)):
        path = root / "sounds" / f"clip_0.{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        time = np.arange(round(seconds * RATE)) / RATE
        sound = 0.3 * np.sin(2 * np.pi * (200 + 90 * number * time) * time)
        soundfile.write(path, sound + random.normal(0, 0.05, len(time)), RATE)
        plan.clips.append(Clip(f"e/{number}", path.name, str(path), ("A tone.",), {}, queries))
    plans = [plan, SplitPlan("validation", clips=[]), SplitPlan("development", clips=[])]
    for other in plans[1:]:
        other.clips.append(Clip(f"{other.name}/0", "0.wav", str(path), ("A tone.",), {}))
    settings = CacheSettings("test", codec, RATE)
    build_cache(root / "cache", settings, plans, num_proc=1, max_lost=0.0, overwrite=False)
    return root / "cache"


@pytest.fixture(scope="module")
def inputs(text_folder, tmp_path_factory) -> SimpleNamespace:  # noqa: F811
    root = tmp_path_factory.mktemp("moments")
    make_model(text_folder).save_pretrained(root / "plain")
    make_model(text_folder, moment_head=HEAD).save_pretrained(root / "head")
    return SimpleNamespace(root=root, cache=write_moment_cache(root))


def arguments(inputs, tmp_path, model="head"):
    return (
        *("--moments", "--checkpoint", inputs.root / model, "--cache", inputs.cache),
        *("--output", tmp_path / "out"),
    )


def test_methods_are_those_of_the_locator():
    assert ("auto", *METHODS) == MOMENT_METHODS


@torch.no_grad()
@pytest.mark.parametrize("method", ["head", "contribution"])
def test_answers_are_those_of_each_clip_by_itself(inputs, method):
    model = DualEncoder.from_pretrained(inputs.root / "head")
    split = open_cache(inputs.cache).split("evaluation")
    answers = answer_split(Locator(model, method), split)
    expected = []
    for clip, queries in enumerate(QUERIES):
        for query in queries:
            locator = Locator(model, method)
            sound = split.read(clip)
            text = model.encode_text([query.query])
            (moments,) = locator.locate(text, locator.hear([sound])).moments
            expected.append((query.qid, query.query, f"clip_0.{clip}", SECONDS[clip], moments))
    assert [(a.qid, a.query, a.vid, a.duration) for a in answers] == [own[:4] for own in expected]
    for answer, own in zip(answers, expected):
        assert answer.moments
        assert np.allclose(answer.moments, own[4], atol=1e-6)
        assert [moment.score for moment in answer.moments] == sorted(
            (moment.score for moment in answer.moments), reverse=True
        )


@pytest.mark.parametrize("codec", CODECS)
def test_a_clip_is_read_in_blocks(inputs, tmp_path, codec, monkeypatch):
    monkeypatch.setattr(split_module, "BLOCK_SECONDS", 3)
    cache = inputs.cache if codec == "pcm_s16le" else write_moment_cache(tmp_path, codec)
    split = open_cache(cache).split("evaluation")
    blocks = list(read_blocks(split, 1))
    assert len(blocks) == (1 if codec == "mp3" else 3)
    assert np.array_equal(np.concatenate(blocks), split.read(1))


def test_a_split_is_scored(inputs, tmp_path, capsys):
    assert evaluate(*arguments(inputs, tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "4 queries" in printed and "R1@0.7" in printed and "method head" in printed
    content = json.loads((tmp_path / "out/moments.json").read_text())
    split = open_cache(inputs.cache).split("evaluation")
    model = DualEncoder.from_pretrained(inputs.root / "head")
    answers = answer_split(Locator(model, alternatives=True), split)
    answers = [replace(one, moments=rounded(one.moments)) for one in answers]
    result = score_answers(answers, truths_of(split))
    assert content["metrics"] == result.metrics
    assert content["whole_recording"]["R1@0.7"] == 0.25  # q4 alone is the whole recording
    assert (content["method"], content["threshold"]) == ("head", 0.5)
    assert (content["num_clips"], content["num_queries"], content["num_windows"]) == (3, 4, 5)
    assert (
        content["fingerprint"] == split.fingerprint(with_moments=True)
        and content["sample_rate"] == RATE
    )
    assert content["checkpoint"] == str(inputs.root / "head") and "_git_commit_hash" in content
    assert not content["castella_rounding"]
    with open(tmp_path / "out/moments.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["qid"] for row in rows] == ["q1", "q2", "q3", "q4"]
    assert rows[2]["query"] == HOSTILE and rows[1]["windows"] == "1.0000-2.0000 5.0000-6.5000"
    assert [row["file_name"] for row in rows] == [f"clip_0.{clip}.wav" for clip in (0, 1, 1, 3)]
    for row, answer, iou, precisions in zip(rows, result.answers, result.ious, result.precisions):
        assert float(row["iou"]) == pytest.approx(iou, abs=1e-6)
        assert float(row["ap"]) == pytest.approx(precisions.mean(), abs=1e-6)
        found = tuple(float(row[name]) for name in ("start", "end", "score"))
        assert found == answer.moments[0] and int(row["predictions"]) == len(answer.moments)


def test_files_that_are_written_score_as_the_split_did(inputs, tmp_path):
    found, submitted, bare = (tmp_path / name for name in ("p.jsonl", "s.jsonl", "b.jsonl"))
    evaluate(
        *arguments(inputs, tmp_path),
        *("--predictions", found, "--submission", "dcase2026", submitted),
    )
    metrics = json.loads((tmp_path / "out/moments.json").read_text())["metrics"]
    split = open_cache(inputs.cache).split("evaluation")
    true = tmp_path / "true.jsonl"
    lines = [
        {"qid": one.qid, "duration": one.duration, "relevant_windows": one.windows}
        for one in truths_of(split)
    ]
    true.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ended = run_here(score_main, "score", str(found), str(true), "--json")
    assert ended.stderr == ""
    assert {name: json.loads(ended.stdout)[name] for name in metrics} == metrics
    assert submitted.read_bytes() == found.read_bytes()
    evaluate(
        *arguments(inputs, tmp_path),
        *("--submission", "dcase2026", bare, "--without-scores"),
    )
    assert all(
        len(window) == 2
        for line in bare.read_text().splitlines()
        for window in json.loads(line)["pred_relevant_windows"]
    )
    first = [[moment[:2] for moment in one.moments] for one in read_predictions(found)]
    assert [[moment[:2] for moment in one.moments] for one in read_predictions(bare)] == first


def test_rounding_of_castella_is_of_everything(inputs, tmp_path):
    exact, rounded = tmp_path / "exact.jsonl", tmp_path / "rounded.jsonl"
    evaluate(*arguments(inputs, tmp_path), "--predictions", exact)
    evaluate(*arguments(inputs, tmp_path), "--predictions", rounded, "--castella-rounding")
    content = json.loads((tmp_path / "out/moments.json").read_text())
    answers = read_predictions(rounded)
    assert [one.moments for one in answers] == [
        castella_rounding(one.moments) for one in read_predictions(exact)
    ]
    split = open_cache(inputs.cache).split("evaluation")
    assert content["metrics"] == score_answers(answers, truths_of(split)).metrics
    assert content["castella_rounding"]


def test_queries_of_a_file_without_truth(inputs, tmp_path):
    queries = tmp_path / "blind.jsonl"
    # as dcase2026_evaluation.jsonl, and vids with folder and ending
    lines = [
        {"qid": "b2", "query": "a rising note", "duration": 2, "vid": "clip_0.3.wav"},
        {"qid": "b1", "query": "a steady low tone", "duration": 8, "vid": "clip_0.1"},
    ]
    queries.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = tmp_path / "s.jsonl"
    options = ("--queries", queries, "--submission", "dcase2026", found)
    # neither the split's times nor a folder of results are needed
    evaluate("--moments", "--checkpoint", inputs.root / "head", "--cache", inputs.cache, *options)
    answers = read_predictions(found)
    assert [(one.qid, one.vid) for one in answers] == [("b2", "clip_0.3.wav"), ("b1", "clip_0.1")]
    split = open_cache(inputs.cache).split("evaluation")
    model = DualEncoder.from_pretrained(inputs.root / "head")
    expected = {
        one.qid: rounded(one.moments)
        for one in answer_split(Locator(model, alternatives=True), split)
    }
    assert answers[1].moments == expected["q2"]  # of the same sentence, without its times
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blind.jsonl", "s.jsonl"]


def test_recordings_of_queries_are_found_by_name():
    names = ["a/dog.wav", "b/dog.wav", "Singapore_0.0_60.0", "Singapore_1.0_61.0.flac", "x.y.mp3"]
    split = SimpleNamespace(name="s", file_names=names, clip_ids=["1", "2", "3", "4", "5"])
    assert recording_names(split) == [
        *("a/dog", "b/dog", "Singapore_0.0_60.0", "Singapore_1.0_61.0", "x.y")
    ]
    split.file_names = ["dog.wav", "dog.mp3"]
    assert recording_names(split) == split.clip_ids
    split.file_names = names

    def clip_of(vid):
        asked = match_queries([Query("q", "A dog", vid)], split)
        return next(clip for clip, queries in enumerate(asked) if queries)

    for vid, clip in {"Singapore_0.0_60.0": 2, "Singapore_1.0_61.0": 3, "x.y": 4}.items():
        assert clip_of(vid) == clip
    split.file_names[4] = "\u00fc.mp3"  # one character in a cache, two in names of other systems
    assert clip_of("u\u0308") == clip_of("\u00fc") == 4
    assert clip_of("b/dog") == 1 and clip_of("a/dog.wav") == 0
    with pytest.raises(UserError, match="several recordings for 'dog'"):
        clip_of("dog")
    with pytest.raises(UserError, match="lacks 1 of the 1 recordings.*'Singapore_0.0_60'"):
        clip_of("Singapore_0.0_60")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"qid": "a", "query": "A dog"}, "'vid'"),
        ({"qid": "a", "vid": "a"}, "'query'"),
        ({"qid": "a", "vid": "a", "query": " "}, "'query'"),
        ({"query": "A dog", "vid": "a"}, "no 'qid'"),
        ({"qid": "a", "query": "A \ud83d", "vid": "a"}, "'a' has half a character"),
    ],
)
def test_a_query_that_lacks_something_is_named(tmp_path, line, words):
    (tmp_path / "q.jsonl").write_text("\n" + json.dumps(line))
    with pytest.raises(UserError, match=f"line 2.*{words}"):
        read_queries(tmp_path / "q.jsonl")


# --- mistakes ---


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "head"], ["--method", "--moments"]),
        (["--castella-rounding"], ["--castella-rounding", "--moments"]),
        (["--without-scores"], ["--without-scores", "--moments"]),
        (["--predictions", "FILE"], ["--predictions", "--moments"]),
        (["--submission", "dcase2026", "FILE"], ["dcase2026", "dcase2024 or dcase2025"]),
        (["--moments", "--submission", "dcase2025", "FILE"], ["dcase2025", "must be dcase2026"]),
        (["--moments", "--relevance", "FILE"], ["--relevance", "--moments"]),
        (["--moments", "--captions", "FILE"], ["--captions", "--moments"]),
        (["--moments", "--save-scores"], ["--save-scores", "--moments"]),
        (["--moments", "--audio-batch-size", "3"], ["--audio-batch-size", "--moments"]),
        (["--moments", "--text-batch-size", "3"], ["--text-batch-size", "--moments"]),
        (["--moments", "--against", "FILE"], ["--against", "--moments"]),
        (["--moments", "--weight", "1"], ["--weight", "--moments"]),
        (["--moments", "--fit-weights", "validation"], ["--fit-weights", "--moments"]),
        (["--moments", "--without-scores"], ["--without-scores", "--submission"]),
        (["--moments", "--queries", "FILE"], ["--queries", "--submission and --predictions"]),
        (["--moments", "--report-queries", "3"], ["--report"]),
        (["--moments", "--checkpoint", "OTHER"], ["--moments", "--checkpoint once"]),
        (["--moments", "--predictions", "F", "--submission", "dcase2026", "F"], ["--predictions"]),
        (["--moments", "--predictions", "OUT/moments.csv"], ["--predictions"]),
        (["--moments", "--predictions", "CACHE"], ["--predictions", "within cache"]),
        (["--moments", "--predictions", "MODEL"], ["--predictions", "--checkpoint"]),
    ],
)
def test_options_that_do_not_fit_together(inputs, tmp_path, options, words):
    names = {"FILE": tmp_path / "f", "F": tmp_path / "f", "OTHER": inputs.root / "plain"}
    names["OUT/moments.csv"] = tmp_path / "out/moments.csv"
    names |= {"CACHE": inputs.cache / "cache.json", "MODEL": inputs.root / "head" / "config.json"}
    options = [names.get(option, option) for option in options]
    with pytest.raises(UserError) as error:
        evaluate(*arguments(inputs, tmp_path)[1:], *options)
    assert [word for word in words if word not in str(error.value)] == []
    assert list(tmp_path.iterdir()) == []


def test_a_model_or_split_that_cannot_answer(inputs, tmp_path):
    for changes, words in (
        (["--method", "runs"], "runs"),
        (["--split", "validation"], "'validation' has 1 clips and no queries with times"),
    ):
        with pytest.raises(UserError, match=words):
            evaluate(*arguments(inputs, tmp_path), *changes)
    with pytest.raises(UserError, match="moment head"):
        evaluate(*arguments(inputs, tmp_path, "plain"), "--method", "head")
    assert list(tmp_path.iterdir()) == []
    evaluate(*arguments(inputs, tmp_path, "plain"))
    assert json.loads((tmp_path / "out/moments.json").read_text())["method"] == "contribution"


def test_results_of_a_run_lie_beside_those_of_its_captions(inputs, tmp_path):
    shutil.copytree(inputs.root / "head", tmp_path / "best")
    evaluate("--moments", "--checkpoint", tmp_path / "best", "--cache", inputs.cache)
    folder = tmp_path / "best/results/evaluation_moments"
    assert sorted(path.name for path in folder.iterdir()) == ["moments.csv", "moments.json"]
