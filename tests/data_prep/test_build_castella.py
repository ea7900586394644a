"""data_prep/build_castella.py: json of line/CASTELLA, jsonl of lighthouse, the faults of both."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest

from data_prep import build_castella
from retrieval.data import MomentQuery, open_cache
from retrieval.evaluation.metrics.audio_moment_retrieval.scoring import moment_metrics
from retrieval.moments.files import read_truth
from tests.corpora import assert_refused, error_line, read_info, reasons, run_build, write_sound

# ids as YouTube has them, three seconds each
HORN, RAIN, HUM, TYPO, VALID, TEST = (
    "--0w1YA1Hm4",
    "Yain_-12345",
    "hum00000000",
    "67AE9ZKvECs",
    "valid000000",
    "test0000000",
)


def recording(yid: str, moments: list[tuple[str, list]], **changes) -> dict:
    return {
        "yid": yid,
        "global_caption": f"All of {yid}.",
        "duration": 3,
        "num_moments": len(moments),
        "moments": [{"local_caption": text, "timestamps": times} for text, times in moments],
    } | changes


JSON = {
    "train": [
        recording(HORN, [("A car  horn blares", [[2, 3], [0, 1]]), ("A click", [[1, 1]])]),
        recording(RAIN, [("Rain", [[0, 5]])], num_moments=4),  # ends 2 s after the duration
        recording(HUM, []),
        recording(TYPO, [("A voice", [[0, 1], [2, 4800], [1, 1]])]),
    ],
    "val": [recording(VALID, [("A dog", [[1, 2]])])],
    # the same sentence twice, and overlapping windows
    "test": [recording(TEST, [("A cat", [[1, 2]]), ("A cat", [[0, 2], [1, 3]])])],
}


def write_json(folder: Path, content: dict[str, list] = JSON) -> Path:
    folder.mkdir(parents=True)
    for name, recordings in content.items():
        text = json.dumps(recordings, ensure_ascii=False)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return folder


JSONL = {
    "train": [(HORN, 1, "A car horn blares", [[0, 1], [2, 3]]), (RAIN, 1, "Rain", [[0, 3]])],
    "val": [(VALID, 1, "A dog", [[1, 2]])],
    "test": [
        (TEST, 1, "A cat", [[2, 3], [0, 1]]),
        (TEST, 2, "A cat", [[1, 2]]),
        (TEST, 3, "A door", [[0, 3]]),
    ],
}


def as_lines(queries: list[tuple]) -> list[dict]:
    return [
        {
            "qid": f"{vid}_{number}",
            "query": query,
            "duration": 3,
            "vid": vid,
            "relevant_windows": windows,
        }
        for vid, number, query, windows in queries
    ]


def write_jsonl(folder: Path, content: dict[str, list] = JSONL) -> Path:
    folder.mkdir(parents=True)
    for name, queries in content.items():
        lines = [json.dumps(line) for line in as_lines(queries)]
        (folder / f"castella_{name}_release.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("castella") / "audio"
    for name in (
        f"{HORN}.wav",
        f"sub/{RAIN}.flac",
        f"{HUM}.m4a",
        f"{TYPO}_0_300.wav",
        f"{VALID}.WAV",
        f"{TEST}.mp3",
        f"{TEST}.wav",
        "other000000.wav",
    ):
        write_sound(folder / name, seconds=3.0)
    return folder


def build(annotations: Path, audio: Path, output: Path, *arguments: object) -> int:
    options = {"--annotations": annotations, "--audio": audio, "--output": output}
    return run_build(build_castella, options, *arguments)


@pytest.fixture(scope="module")
def cache(tmp_path_factory, audio) -> Path:
    folder = tmp_path_factory.mktemp("castella_cache")
    assert build(write_json(folder / "json" / "en"), audio, folder / "cache") == 0
    return folder / "cache"


def moments_of(cache: Path, split: str) -> dict[str, list[MomentQuery]]:
    clips = open_cache(cache).split(split)
    return {
        clip_id.partition("/")[2]: queries
        for clip_id, queries in zip(clips.clip_ids, clips.moments, strict=True)
    }


# ---- json


def test_recordings_with_their_queries(cache):
    clips = open_cache(cache).split("development")
    assert clips.file_names == [f"{HORN}.wav", f"{RAIN}.flac", f"{HUM}.m4a", f"{TYPO}_0_300.wav"]
    assert clips.captions == [[f"All of {yid}."] for yid in (HORN, RAIN, HUM, TYPO)]
    assert clips.column("youtube_id") == [HORN, RAIN, HUM, TYPO]
    assert clips.column("duration") == ["3"] * 4
    assert moments_of(cache, "development") == {
        HORN: [MomentQuery(f"{HORN}_1", "A car horn blares", ((0.0, 1.0), (2.0, 3.0)))],
        RAIN: [MomentQuery(f"{RAIN}_1", "Rain", ((0.0, 3.0),))],
        HUM: [],
        TYPO: [MomentQuery(f"{TYPO}_1", "A voice", ((0.0, 1.0), (2.0, 3.0)))],
    }
    assert moments_of(cache, "validation")[VALID][0].qid == f"{VALID}_1"
    assert moments_of(cache, "evaluation")[TEST] == [
        MomentQuery(f"{TEST}_1", "A cat", ((1.0, 2.0),)),
        MomentQuery(f"{TEST}_2", "A cat", ((0.0, 3.0),)),
    ]
    assert open_cache(cache).split("evaluation").file_names == [f"{TEST}.wav"]


def test_faults_are_counted(tmp_path, audio, capsys):
    assert build(write_json(tmp_path / "en"), audio, tmp_path / "cache") == 0
    splits = read_info(tmp_path / "cache")["splits"]
    counts = {split: info["moments"] for split, info in splits.items()}
    first = counts["development"].pop("first")
    assert first["num_empty_windows"] == f"query '{HORN}_2' of '{HORN}.wav'"
    assert counts["development"] == {
        "num_queries": 3,
        "num_windows": 5,
        "num_empty_windows": 2,
        "num_cut_windows": 2,
        "num_lost_queries": 1,
    }
    assert counts["evaluation"]["num_joined_windows"] == 1
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    for expected in (
        "development: train.json: 1 recordings have no moments",
        "development: train.json: 1 recordings announce another number of moments",
        "development: train.json: 2 windows have no length",
        f"development: train.json: 2 windows end after the annotated duration, the last at 4800 s"
        f" in {TYPO}_1",
        "evaluation: test.json: 1 queries have the sentence of another one",
        "1 of 8 audio files belong to no recording",
    ):
        assert sum(expected in note for note in notes) == 1, (expected, notes)
    assert not any("validation: val.json" in note for note in notes)


def test_the_sound_and_not_the_annotated_duration_ends_a_window(tmp_path, audio):
    """Durations are in whole seconds; one that is rounded down must cost nothing."""
    content = JSON | {"val": [recording(VALID, [("A dog", [[1, 3]])], duration=2)]}
    assert build(write_json(tmp_path / "en", content), audio, tmp_path / "cache") == 0
    assert moments_of(tmp_path / "cache", "validation")[VALID][0].windows == ((1.0, 3.0),)
    assert (
        build(tmp_path / "en", audio, tmp_path / "short", "--max-seconds", 2.5) == 0
    )  # as 300 s does by default
    assert moments_of(tmp_path / "short", "validation")[VALID][0].windows == ((1.0, 2.5),)


def test_another_language(tmp_path, audio):
    content = copy.deepcopy(JSON)
    content["val"][0]["global_caption"] = "犬と\u3000雨"
    content["val"][0]["moments"][0]["local_caption"] = "犬が吠える"
    assert build(write_json(tmp_path / "ja", content), audio, tmp_path / "cache") == 0
    clips = open_cache(tmp_path / "cache").split("validation")
    assert clips.captions == [["犬と 雨"]] and clips.moments[0][0].query == "犬が吠える"


# ---- jsonl


def test_truth_of_lighthouse_comes_back(tmp_path, audio):
    folder = write_jsonl(tmp_path / "lighthouse")
    assert build(folder, audio, tmp_path / "cache", "--splits", "evaluation") == 0
    found = {q.qid: q for q in moments_of(tmp_path / "cache", "evaluation")[TEST]}
    truth = read_truth(folder / "castella_test_release.jsonl")
    assert {t.qid: (t.query, sorted(t.windows)) for t in truth} == {
        qid: (query.query, list(query.windows)) for qid, query in found.items()
    }
    assert open_cache(tmp_path / "cache").split("evaluation").captions == [["A cat", "A door"]]
    rng = np.random.default_rng(0)
    predictions = []
    for _ in truth:
        times = np.sort(rng.uniform(0, 3, (5, 2)), axis=1)
        predictions.append([[*window, score] for window, score in zip(times, rng.random(5))])
    theirs = moment_metrics(predictions, [t.windows for t in truth])
    ours = moment_metrics(predictions, [found[t.qid].windows for t in truth])
    assert ours == theirs and 0 < ours["mIoU"] < 1
    # negative control: other windows give other scores
    moved = [[(start / 2, end / 2) for start, end in t.windows] for t in truth]
    assert moment_metrics(predictions, moved) != ours


def test_json_and_jsonl_name_queries_alike(cache, tmp_path, audio):
    assert build(write_jsonl(tmp_path / "lighthouse"), audio, tmp_path / "cache") == 0
    of_jsonl, of_json = (
        {q.qid: q for queries in moments_of(path, "development").values() for q in queries}
        for path in (tmp_path / "cache", cache)
    )
    assert list(of_jsonl) == [f"{HORN}_1", f"{RAIN}_1"]
    assert all(of_json[qid] == query for qid, query in of_jsonl.items())
    assert HUM not in moments_of(tmp_path / "cache", "development")  # only those with queries


# ---- lost recordings


def test_videos_that_are_gone_are_listed(tmp_path, audio, capsys):
    content = copy.deepcopy(JSON)
    content["val"] += [recording("gone0000000", [("A fox", [[0, 1]])])]
    folder, cache = write_json(tmp_path / "en", content), tmp_path / "cache"
    assert_refused(build(folder, audio, cache), "first 'gone0000000': no such", cache, capsys)
    assert build(folder, audio, cache, "--max-lost", 40) == 2 and not cache.exists()
    assert build(folder, audio, cache, "--max-lost", 50) == 0
    found = reasons(read_info(cache)["skipped"])
    assert found == {"gone0000000": "no such audio file"}
    assert list(moments_of(cache, "validation")) == [VALID]


def test_another_excerpt_of_a_video_is_not_taken(tmp_path, audio, capsys):
    write_sound(tmp_path / "audio" / f"{VALID}_30_40.wav")
    folder, cache = write_json(tmp_path / "en"), tmp_path / "cache"
    code = build(folder, tmp_path / "audio", cache, "--splits", "validation")
    assert_refused(code, f"'{VALID}': no such audio file", cache, capsys)


# ---- bad files


def of_val(**changes) -> dict:
    return JSON | {"val": [recording(VALID, [("A dog", [[1, 2]])]) | changes]}


def window_of_val(*times: object) -> dict:
    return JSON | {"val": [recording(VALID, [("A dog", [[0, 1], list(times)])])]}


@pytest.mark.parametrize(
    ("content", "culprits"),
    [
        (window_of_val(2, 1), ("val.json", VALID, "moment 1", "ends before")),
        (window_of_val(math.nan, 1), ("val.json", VALID, "nan")),
        (window_of_val(0, math.inf), ("val.json", VALID, "inf")),
        (window_of_val(-1, 1), ("val.json", VALID, "-1")),
        (window_of_val(0, 10**400), ("val.json", VALID, "expected seconds")),
        (window_of_val("0", "1"), ("val.json", VALID, "'0'")),
        (window_of_val(1), ("val.json", VALID, "[1]")),
        (of_val(duration=None), ("val.json", VALID, "duration")),
        (of_val(moments={}), ("val.json", VALID, "moments")),
        (of_val(moments=[{"timestamps": []}]), ("val.json", VALID, "local_caption")),
        (of_val(moments=[{"timestamps": [], "local_caption": " "}]), (VALID, "local_caption")),
        (of_val(yid=7), ("val.json", "entry 1", "yid")),
        (of_val(global_caption=None), ("val.json", VALID, "global_caption")),
        (JSON | {"val": {}}, ("val.json", "list")),
        (JSON | {"val": []}, ("val.json", "no recording")),
        (JSON | {"val": [7]}, ("val.json", "entry 1", "yid")),
        (JSON | {"val": JSON["val"] * 2}, ("val.json", VALID, "twice")),
        (JSON | {"test": JSON["val"]}, ("test.json", VALID, "val.json")),  # one query in two splits
    ],
)
def test_a_bad_annotation_is_named(tmp_path, audio, capsys, content, culprits):
    cache = tmp_path / "cache"
    assert build(write_json(tmp_path / "en", content), audio, cache) == 2 and not cache.exists()
    line = error_line(capsys)
    assert all(culprit in line for culprit in culprits), line


def test_half_a_character_is_named(tmp_path, audio, capsys):
    folder, cache = write_json(tmp_path / "en", of_val(global_caption="HALF")), tmp_path / "cache"
    (folder / "val.json").write_text((folder / "val.json").read_text().replace("HALF", "\\ud83d"))
    assert build(folder, audio, cache) == 2 and not cache.exists()
    line = error_line(capsys)
    assert all(text in line for text in ("val.json", VALID, "global_caption", "half")), line


GOOD = json.dumps(as_lines(JSONL["val"])[0])


@pytest.mark.parametrize(
    ("line", "culprits"),
    [
        (GOOD[:-5], ("cannot be understood",)),
        (GOOD, ("qid", "twice")),
        (GOOD.replace('"qid"', '"id"'), ("qid",)),
        (GOOD.replace("_1", "_2").replace("[1, 2]", "[2, 1]"), ("ends before",)),
        (GOOD.replace("_1", "_2").replace("[1, 2]", "[1, NaN]"), ("nan",)),
        (GOOD.replace("_1", "_2").replace("[[1, 2]]", "7"), ("relevant_windows",)),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, audio, capsys, line, culprits):
    folder, cache = write_jsonl(tmp_path / "lighthouse"), tmp_path / "cache"
    (folder / "castella_val_release.jsonl").write_text(f"{GOOD}\n\n{line}\n")
    assert build(folder, audio, cache) == 2 and not cache.exists()
    found = error_line(capsys)
    assert all(text in found for text in ("val_release.jsonl, line 3", *culprits)), found


def test_missing_files_and_folders(tmp_path, audio, capsys):
    folder, cache = write_json(tmp_path / "en"), tmp_path / "cache"
    (folder / "val.json").unlink()
    code = build(folder, audio, cache)
    assert_refused(code, "neither val.json", cache, capsys)
    assert build(folder, audio, cache, "--splits", "evaluation", "development") == 0
    assert list(read_info(cache)["splits"]) == ["development", "evaluation"]
    code = build(folder, tmp_path / "absent", tmp_path / "other")
    assert_refused(code, "val.json", tmp_path / "other", capsys)
    code = build(folder, tmp_path / "absent", tmp_path / "other", "--splits", "evaluation")
    assert_refused(code, "--audio", tmp_path / "other", capsys)
    assert build(folder, audio, tmp_path, "--splits", "evaluation") == 2
    assert "would replace --annotations" in error_line(capsys)
