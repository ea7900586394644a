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
    table.write_text('query,clip,ranks\nA steady low tone.,0.wav,4\n"Someone plays a low, steady note.",0.wav,1\nA steady middle tone.,1.wav,1\n')
    assert compare_runs.main([f"TAP={run}", "--scenes", str(scenes)]) == 0
    title, _, _, row = capsys.readouterr().out.splitlines()
    assert title == "1 captions"
    assert row.split() == ["TAP", "1", "25.00", "0.00", "100.00", "100.00"]
    table.write_text("query,clip,ranks\nA bell.,0.wav,4\n")
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


@pytest.mark.parametrize("group", ["runs/tap/best", "=runs/tap/best", "TAP=", "TAP=a,,b"])
def test_a_group_without_name_or_model_says_what_is_expected(group):
    with pytest.raises(UserError, match=r"is not of the form name=MODEL\[,MODEL...\]"):
        compare_runs.main([group])


def write_ranks(run: Path, rows: list[tuple], split: str = "evaluation") -> None:
    lines = ["query,clip,ranks", *(",".join(map(str, row)) for row in rows)]
    (run / "results" / split / "ranks.csv").write_text("\n".join(lines) + "\n")


def test_bootstrap_against_the_first_group(tmp_path, capsys):
    runs = [write_run(tmp_path / name, value) for name, value in (("a", 0.1), ("b", 0.2), ("c", 0.6))]
    queries = [(f"caption {number}", f"{number // 5}.wav") for number in range(100)]
    write_ranks(runs[0], [(*query, 2) for query in queries])
    write_ranks(runs[1], [(*query, 1) for query in queries])
    write_ranks(runs[2], [(*query, 20) for query in queries])
    assert compare_runs.main([f"mean={runs[0]}", f"TAP={runs[1]}", f"both={runs[1]},{runs[2]}", "--bootstrap"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "difference to mean" in lines[-9] and "resamples of 20 clips" in lines[-9]
    assert lines[-8].split() == ["TAP", "mAP@10", "+50.00", "[+50.00,", "+50.00]", "p", "0.0002"]
    assert lines[-6].split() == ["TAP", "R@5", "+0.00", "[+0.00,", "+0.00]", "p", "1.0000"]
    assert lines[-4].split()[:3] == ["both", "mAP@10", "+0.00"]  # (1 + 0) / 2 - 1/2
    assert lines[-3].split()[:3] == ["both", "R@1", "+50.00"]
    with pytest.raises(UserError, match="give two at least"):
        compare_runs.main([f"mean={runs[0]}", "--bootstrap"])
    write_ranks(runs[1], [(*query, 1) for query in queries[1:]])
    with pytest.raises(UserError, match="TAP were asked other queries"):
        compare_runs.main([f"mean={runs[0]}", f"TAP={runs[1]}", "--bootstrap"])
    for content in ("query,clip,rank\na,b,1\n", "query,clip,ranks\n", "query,clip,ranks\na,b,x\n", "query,clip,ranks\na,b,\n"):
        (runs[1] / "results" / "evaluation" / "ranks.csv").write_text(content)
        with pytest.raises(UserError, match="cannot be read .* evaluate.py --checkpoint"):
            compare_runs.main([f"mean={runs[0]}", f"TAP={runs[1]}", "--bootstrap"])


def test_queries_with_several_right_clips_are_drawn_for_themselves(tmp_path, capsys):
    runs = []
    for name, ranks in (("a", "2 3"), ("b", "1 12")):
        folder = tmp_path / name / "results" / "evaluation_relevance"
        folder.mkdir(parents=True)
        table = CHANCE | {"mAP@16": 0.3}
        (folder / "metrics.json").write_text(json.dumps({"text_to_audio": table, "chance": {"text_to_audio": table}, "relevance": "x.csv"}))
        write_ranks(tmp_path / name, [(f"query {number}", "0.wav", ranks) for number in range(6)], "evaluation_relevance")
        runs.append(f"{name}={tmp_path / name}")
    compare_runs.main([*runs, "--split", "evaluation_relevance", "--bootstrap"])
    out = capsys.readouterr().out
    assert "resamples of 6 queries" in out and out.splitlines()[0].split() == ["%", "runs", "mAP@10", "R@1", "R@5", "R@10", "mAP@16"]
    # (1 + 2/12) / 2 - (1/2 + 2/3) / 2 at 16; at 10 the second hit is out of reach.
    assert [line.split()[2] for line in out.splitlines() if "mAP@" in line and line.startswith("b")] == ["-8.33", "+0.00"]
    with pytest.raises(UserError, match="--split evaluation --relevance FILE"):
        compare_runs.main([f"c={tmp_path / 'c'}", "--split", "evaluation_relevance"])
