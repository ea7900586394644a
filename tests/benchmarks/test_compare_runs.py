"""The table of runs, against figures worked out by hand."""

import json
from pathlib import Path

import pytest

from benchmarks import compare_runs
from retrieval.base.errors import UserError

CHANCE = {"mAP@10": 0.05, "R@1": 0.02, "R@5": 0.08, "R@10": 0.17}


def write_run(folder: Path, value: float, chance: dict = CHANCE) -> Path:
    path = folder / "results" / "evaluation" / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(
        json.dumps(
            {"text_to_audio": dict.fromkeys(CHANCE, value), "chance": {"text_to_audio": chance}}
        )
    )
    return folder


def test_mean_and_standard_deviation_over_the_runs_of_a_group(tmp_path, capsys):
    runs = [
        write_run(tmp_path / name, value) for name, value in (("a", 0.1), ("b", 0.2), ("c", 0.6))
    ]
    assert compare_runs.main([f"mean={runs[0]}", f"TAP={','.join(map(str, runs))}"]) == 0
    header, chance, mean, tap = capsys.readouterr().out.splitlines()
    assert header.split() == ["%", "runs", "mAP@10", "R@1", "R@5", "R@10"]
    assert chance.split() == ["chance", "5.00", "2.00", "8.00", "17.00"]
    assert mean.split() == ["mean", "1"] + ["10.00"] * 4
    # sqrt(((20^2 + 10^2 + 30^2) / 2)
    assert tap.split() == ["TAP", "3"] + ["30.00", "±", "26.46"] * 4


def test_a_run_that_was_not_scored_says_how_to_score_it(tmp_path):
    with pytest.raises(UserError, match="evaluate.py --checkpoint"):
        compare_runs.main([f"mean={tmp_path}"])


def test_runs_of_different_corpora_are_not_compared(tmp_path):
    runs = [write_run(tmp_path / "a", 0.1), write_run(tmp_path / "b", 0.2, CHANCE | {"R@1": 0.5})]
    with pytest.raises(UserError, match="chance levels differ"):
        compare_runs.main([f"a={runs[0]}", f"b={runs[1]}"])


def set_about(folder: Path, **about) -> None:
    """Further entries of a metrics.json."""
    path = folder / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | about))


def test_results_of_other_clips_or_captions_are_not_compared(tmp_path, capsys):
    runs = [write_run(tmp_path / name, 0.1) for name in "abcd"]
    for run, about in zip(runs, [("x", 32_000), ("y", 32_000), ("z", 16_000)]):
        set_about(run / "results" / "evaluation", fingerprint=about[0], sample_rate=about[1])
    with pytest.raises(
        UserError,
        match="b and a were scored on different clips or captions; score all on the same split",
    ):
        compare_runs.main([f"a={runs[0]}", f"b={runs[1]}"])
    with pytest.raises(UserError, match="the runs of both were scored on different"):
        compare_runs.main([f"both={runs[0]},{runs[1]}"])
    # another rate has other lengths; an older result does not say
    compare_runs.main([f"a={runs[0]}", f"c={runs[2]}", f"old={runs[3]}"])
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_an_output_folder_takes_the_place_of_a_model(tmp_path, capsys):
    run = write_run(tmp_path / "a", 0.1)
    write_ranks(
        run, queries := [(f"caption {number}", f"{number // 5}.wav", 2) for number in range(100)]
    )
    # as evaluate.py --output writes it
    both = write_run(tmp_path / "both", 0.3) / "results" / "evaluation"
    write_ranks(tmp_path / "both", [(*query[:2], 1) for query in queries])
    set_about(both, split="evaluation")
    compare_runs.main([f"a={run}", f"both={both}", "--bootstrap"])
    captured = capsys.readouterr()
    assert (
        captured.out.splitlines()[3].split()[:3] == ["both", "1", "30.00"]
        and "+50.00" in captured.out
        and captured.err == ""
    )
    with pytest.raises(
        UserError,
        match="both/results/evaluation holds results of evaluation, and --split is validation",
    ):
        compare_runs.main([f"both={both}", "--split", "validation"])
    set_about(both, relevance="x.csv")
    with pytest.raises(
        UserError, match="holds results of evaluation_relevance, and --split is evaluation"
    ):
        compare_runs.main([f"both={both}"])
    compare_runs.main([f"both={both}", "--split", "evaluation_relevance"])
    (both / "metrics.json").write_text("{}")
    with pytest.raises(
        UserError,
        match=(
            "evaluation cannot be read .* --checkpoint MODEL --output .*evaluation --split"
            " evaluation"
        ),
    ):
        compare_runs.main([f"both={both}"])
    with pytest.raises(UserError, match="both lists one folder twice"):
        compare_runs.main([f"both={both},{tmp_path / 'both'}"])


def write_scenes(path: Path) -> Path:
    """A scene of three events with a caption for one and one for all, and a scene of two."""
    events = [
        {"onset": 0.25, "duration": 0.5},
        {"onset": 0.0, "duration": 0.25},
        {"onset": 0.5, "duration": 0.1},
    ]
    captions = [
        {"text": "A steady low tone.", "events": [0]},
        {"text": "Someone plays a low, steady note.", "events": [0, 1, 2]},
    ]
    clips = [
        {"split": "evaluation", "file_name": "0.wav", "events": events, "captions": captions},
        {
            "split": "evaluation",
            "file_name": "1.wav",
            "events": events[:2],
            "captions": [{"text": "A steady middle tone.", "events": [1]}],
        },
        {
            "split": "validation",
            "file_name": "2.wav",
            "events": events,
            "captions": [{"text": "A steady high tone.", "events": [1]}],
        },
    ]
    path.write_text(json.dumps({"clips": clips}))
    return path


def test_with_scenes_only_captions_of_one_event_of_three_count(tmp_path, capsys):
    scenes = write_scenes(tmp_path / "scenes.json")
    run = write_run(tmp_path / "run", 0.9)
    table = run / "results" / "evaluation" / "ranks.csv"
    table.write_text(
        'query,clip,top_1,ranks\nA steady low tone.,0.wav,0.wav,4\n"Someone plays a low, steady'
        ' note.",0.wav,0.wav,1\nA steady middle tone.,1.wav,1.wav,1\n'
    )
    assert compare_runs.main([f"TAP={run}", "--scenes", str(scenes)]) == 0
    title, _, _, row = capsys.readouterr().out.splitlines()
    assert title == "1 captions"
    assert row.split() == ["TAP", "1", "25.00", "0.00", "100.00", "100.00"]
    table.write_text("query,clip,top_1,ranks\nA bell.,0.wav,0.wav,4\n")
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
    for same in (f"{run},{run}", f"{run},{run.parent / 'a' / '..' / 'a'}"):
        with pytest.raises(
            UserError, match="TAP lists one folder twice, which would count as two runs"
        ):
            compare_runs.main([f"TAP={same}"])
    for content in (b"[]", b"{}", b"\xff\xfe", b'{"text_to_audio": {"mAP@10": "x"}}'):
        (run / "results" / "evaluation" / "metrics.json").write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            compare_runs.main([f"TAP={run}"])


@pytest.mark.parametrize("group", ["runs/tap/best", "=runs/tap/best", "TAP=", "TAP=a,,b"])
def test_a_group_without_name_or_model_says_what_is_expected(group):
    with pytest.raises(UserError, match=r"is not of the form name=MODEL\[,MODEL...\]"):
        compare_runs.main([group])


def write_ranks(run: Path, rows: list[tuple], split: str = "evaluation") -> None:
    lines = ["query,clip,top_1,ranks"]
    lines += [f"{query},{clip},{clip},{ranks}" for query, clip, ranks in rows]
    (run / "results" / split / "ranks.csv").write_text("\n".join(lines) + "\n")


def test_bootstrap_against_the_first_group(tmp_path, capsys):
    runs = [
        write_run(tmp_path / name, value) for name, value in (("a", 0.1), ("b", 0.2), ("c", 0.6))
    ]
    queries = [(f"caption {number}", f"{number // 5}.wav") for number in range(100)]
    write_ranks(runs[0], [(*query, 2) for query in queries])
    write_ranks(runs[1], [(*query, 1) for query in queries])
    write_ranks(runs[2], [(*query, 20) for query in queries])
    assert (
        compare_runs.main(
            [f"mean={runs[0]}", f"TAP={runs[1]}", f"both={runs[1]},{runs[2]}", "--bootstrap"]
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert "difference to mean" in lines[-9] and "resamples of 20 clips" in lines[-9]
    assert lines[-8].split() == ["TAP", "mAP@10", "+50.00", "[+50.00,", "+50.00]", "p", "0.0002"]
    assert lines[-6].split() == ["TAP", "R@5", "+0.00", "[+0.00,", "+0.00]", "p", "1.0000"]
    assert lines[-4].split()[:3] == ["both", "mAP@10", "+0.00"]  # (1 + 0) / 2 - 1/2
    assert lines[-3].split()[:3] == ["both", "R@1", "+50.00"]
    write_ranks(runs[2], [(query, "0.wav", 20) for query, _ in queries])
    with pytest.raises(UserError, match="all queries belong to one"):
        compare_runs.main([f"mean={runs[2]}", f"TAP={runs[2]}", "--bootstrap"])
    with pytest.raises(UserError, match="give at least two"):
        compare_runs.main([f"mean={runs[0]}", "--bootstrap"])
    write_ranks(runs[1], [(*query, 1) for query in queries[1:]])
    with pytest.raises(UserError, match="TAP have other queries"):
        compare_runs.main([f"mean={runs[0]}", f"TAP={runs[1]}", "--bootstrap"])
    for content in (
        "query,clip,top_1,rank\na,b,b,1\n",
        "query,clip,top_1,ranks\n",
        "query,clip,top_1,ranks\na,b,b,x\n",
        "query,clip,top_1,ranks\na,b,b,\n",
    ):
        (runs[1] / "results" / "evaluation" / "ranks.csv").write_text(content)
        with pytest.raises(UserError, match="cannot be read .* evaluate.py --checkpoint"):
            compare_runs.main([f"mean={runs[0]}", f"TAP={runs[1]}", "--bootstrap"])


def test_queries_with_several_right_clips_are_drawn_for_themselves(tmp_path, capsys):
    runs = []
    for name, ranks in (("a", "2 3"), ("b", "1 12")):
        folder = tmp_path / name / "results" / "evaluation_relevance"
        folder.mkdir(parents=True)
        table = CHANCE | {"mAP@16": 0.3}
        (folder / "metrics.json").write_text(
            json.dumps(
                {"text_to_audio": table, "chance": {"text_to_audio": table}, "relevance": "x.csv"}
            )
        )
        # The clip is that of the best rank, which another model may see elsewhere.
        write_ranks(
            tmp_path / name,
            [(f"query {number}", f"{name}.wav", ranks) for number in range(6)],
            "evaluation_relevance",
        )
        runs.append(f"{name}={tmp_path / name}")
    compare_runs.main([*runs, "--split", "evaluation_relevance", "--bootstrap"])
    captured = capsys.readouterr()
    out = captured.out
    assert captured.err == "warning: resamples of only 6: below 20 the intervals are too narrow\n"
    assert "resamples of 6 queries" in out and out.splitlines()[0].split() == [
        "%",
        "runs",
        "mAP@10",
        "R@1",
        "R@5",
        "R@10",
        "mAP@16",
    ]
    # (1 + 2/12) / 2 - (1/2 + 2/3) / 2 at 16; at 10 the second hit is out of reach.
    assert [
        line.split()[2] for line in out.splitlines() if "mAP@" in line and line.startswith("b")
    ] == ["-8.33", "+0.00"]
    with pytest.raises(UserError, match="--split evaluation --relevance FILE"):
        compare_runs.main([f"c={tmp_path / 'c'}", "--split", "evaluation_relevance"])
