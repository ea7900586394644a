"""The table of runs, against figures worked out by hand."""

import json
from pathlib import Path

import pytest

from benchmarks import compare_runs
from retrieval.errors import UserError

CHANCE = {"mAP@10": 0.05, "R@1": 0.02, "R@5": 0.08, "R@10": 0.17}


def write_run(folder: Path, value: float, chance: dict = CHANCE) -> Path:
    path = folder / "results" / "evaluation" / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"text_to_audio": {name: value for name in CHANCE}, "chance": {"text_to_audio": chance}}))
    return folder


def test_mean_and_standard_deviation_over_the_runs_of_a_group(tmp_path, capsys):
    runs = [write_run(tmp_path / name, value) for name, value in (("a", 0.1), ("b", 0.2), ("c", 0.6))]
    assert compare_runs.main([f"mean={runs[0]}", f"TAP={','.join(map(str, runs))}"]) == 0
    header, chance, mean, tap = capsys.readouterr().out.splitlines()
    assert header.split() == ["%", "runs", "mAP@10", "R@1", "R@5", "R@10"]
    assert chance.split() == ["chance", "5.00", "2.00", "8.00", "17.00"]
    assert mean.split() == ["mean", "1"] + ["10.00"] * 4
    assert tap.split() == ["TAP", "3"] + ["30.00", "±", "26.46"] * 4  # sqrt(((20^2 + 10^2 + 30^2) / 2)


def test_a_run_that_was_not_scored_says_how_to_score_it(tmp_path):
    with pytest.raises(UserError, match="evaluate.py --checkpoint"):
        compare_runs.main([f"mean={tmp_path}"])


def test_runs_of_different_corpora_are_not_compared(tmp_path):
    runs = [write_run(tmp_path / "a", 0.1), write_run(tmp_path / "b", 0.2, CHANCE | {"R@1": 0.5})]
    with pytest.raises(UserError, match="chance levels differ"):
        compare_runs.main([f"a={runs[0]}", f"b={runs[1]}"])


def write_scenes(path: Path) -> Path:
    """A scene of three events with a caption for one and one for all, and a scene of two."""
    events = [{"onset": 0.25, "duration": 0.5}, {"onset": 0.0, "duration": 0.25}, {"onset": 0.5, "duration": 0.1}]
    captions = [{"text": "A steady low tone.", "events": [0]}, {"text": "Someone plays a low, steady note.", "events": [0, 1, 2]}]
    clips = [
        {"split": "evaluation", "file_name": "0.wav", "events": events, "captions": captions},
        {"split": "evaluation", "file_name": "1.wav", "events": events[:2], "captions": [{"text": "A steady middle tone.", "events": [1]}]},
        {"split": "validation", "file_name": "2.wav", "events": events, "captions": [{"text": "A steady high tone.", "events": [1]}]},
    ]
    path.write_text(json.dumps({"clips": clips}))
    return path


def test_with_scenes_only_captions_of_one_event_of_three_count(tmp_path, capsys):
    scenes = write_scenes(tmp_path / "scenes.json")
    run = write_run(tmp_path / "run", 0.9)
    table = run / "results" / "evaluation" / "ranks.csv"
    table.write_text('query,clip,rank\nA steady low tone.,0.wav,4\n"Someone plays a low, steady note.",0.wav,1\nA steady middle tone.,1.wav,1\n')
    assert compare_runs.main([f"TAP={run}", "--scenes", str(scenes)]) == 0
    title, _, _, row = capsys.readouterr().out.splitlines()
    assert title == "1 captions"
    assert row.split() == ["TAP", "1", "25.00", "0.00", "100.00", "100.00"]
    table.write_text("query,clip,rank\nA bell.,0.wav,4\n")
    with pytest.raises(UserError, match="0 of the 1 captions of --scenes"):
        compare_runs.main([f"TAP={run}", "--scenes", str(scenes)])
    with pytest.raises(UserError, match="no caption of split 'development'"):
        compare_runs.main([f"TAP={run}", "--scenes", str(scenes), "--split", "development"])
    scenes.write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        compare_runs.main([f"TAP={run}", "--scenes", str(scenes)])


def test_a_group_given_twice_and_unusable_files(tmp_path):
    run = write_run(tmp_path / "a", 0.1)
    with pytest.raises(UserError, match="TAP is given twice"):
        compare_runs.main([f"TAP={run}", f"TAP={run}"])
    for content in (b"[]", b"{}", b"\xff\xfe", b'{"text_to_audio": {"mAP@10": "x"}}'):
        (run / "results" / "evaluation" / "metrics.json").write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            compare_runs.main([f"TAP={run}"])
