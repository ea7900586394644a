"""Files of moments of lighthouse and DCASE 2026, and `python -m retrieval.moments score`."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from retrieval.base.errors import UserError
from retrieval.evaluation.metrics.audio_moment_retrieval.scoring import NAMES, moment_metrics
from retrieval.moments.__main__ import main
from retrieval.moments.files import (
    Answer,
    Truth,
    castella_rounding,
    read_predictions,
    read_truth,
    rounded,
    write_predictions,
)
from retrieval.moments.result import score_answers
from retrieval.moments.spans import Moment
from tests.conftest import mistake, run_here

GOLDEN = json.loads(
    (Path(__file__).resolve().parents[1] / "golden" / "moments.json").read_text(encoding="utf-8")
)

# Lines as lighthouse has them: truth of CASTELLA, Clotho-Moment (0.1 s, another key) and
# QVHighlights (numbers as names), predictions of training/evaluate.py, and a line of the
# DCASE 2026 baseline's submission.
CASTELLA_TRUE = (
    '{"qid": "--0w1YA1Hm4_1", "query": "A car horn blares", "duration": 299, "vid": "--0w1YA1Hm4",'
    ' "relevant_windows": [[27, 28], [289, 290], [291, 292]]}'
)
CLOTHO_TRUE = (
    '{"qid": "32694", "query": "A bell rings", "duration": 60, "vid": "Singapore_0.0_60.0",'
    ' "relevant_windows": [[41.1, 48.1]], "fg_dB": 3.37}'
)
QV_TRUE = (
    '{"qid": 2579, "query": "A girl and her mother cooked", "duration": 150, "vid":'
    ' "NUsG9BgSes0_210.0_360.0", "relevant_clip_ids": [41, 42], "saliency_scores": [[4, 1, 1],'
    ' [4, 1, 1]], "relevant_windows": [[82, 86]]}'
)
CASTELLA_FOUND = (
    '{"qid": "--0w1YA1Hm4_1", "query": "A car horn blares", "vid": "--0w1YA1Hm4",'
    ' "pred_relevant_windows": [[68.0, 76.0, 0.9826], [103.0, 112.0, 0.9615]]}'
)
QV_FOUND = (
    '{"qid": 2579, "query": "A girl and her mother cooked", "vid": "NUsG9BgSes0_210.0_360.0",'
    ' "pred_relevant_windows": [[82.0, 150.0, 0.9421]], "pred_saliency_scores": [-0.25, 0.5]}'
)
SUBMITTED = (
    '{"qid": "--0w1YA1Hm4_1", "query": "A car horn blares", "vid": "--0w1YA1Hm4",'
    ' "pred_relevant_windows": [[68.0, 76.0], [103.0, 112.0]]}'
)


def write(path, *lines, end="\n"):
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


def true_line(**changes):
    line = {"qid": "a_1", "query": "A dog", "duration": 60, "vid": "a"}
    return json.dumps(line | {"relevant_windows": [[3, 5]]} | changes)


def found_line(**changes):
    line = {"qid": "a_1", "query": "A dog", "vid": "a"}
    return json.dumps(line | {"pred_relevant_windows": [[3.0, 5.0, 0.9]]} | changes)


def score(tmp_path, found, true, *options):
    paths = [write(tmp_path / "found.jsonl", *found), write(tmp_path / "true.jsonl", *true)]
    ended = run_here(main, "score", *map(str, paths), "--json", *options)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout), ended.stderr


# --- files of others ---


def test_lines_of_lighthouse(tmp_path):
    truths = read_truth(write(tmp_path / "true.jsonl", CASTELLA_TRUE, CLOTHO_TRUE, QV_TRUE))
    assert truths[0] == Truth(
        "--0w1YA1Hm4_1",
        "A car horn blares",
        "--0w1YA1Hm4",
        299.0,
        [(27, 28), (289, 290), (291, 292)],
    )
    assert [truth.qid for truth in truths] == ["--0w1YA1Hm4_1", "32694", "2579"]
    assert truths[1].windows == [(41.1, 48.1)] and truths[1].duration == 60
    answers = read_predictions(write(tmp_path / "found.jsonl", CASTELLA_FOUND, QV_FOUND))
    moments = [Moment(68.0, 76.0, 0.9826), Moment(103.0, 112.0, 0.9615)]
    expected = Answer("--0w1YA1Hm4_1", "A car horn blares", "--0w1YA1Hm4", None, moments)
    assert answers[0] == expected
    assert (answers[1].qid, answers[1].moments) == ("2579", [Moment(82.0, 150.0, 0.9421)])


def test_a_submission_without_scores_is_in_the_order_of_the_ranks(tmp_path):
    (answer,) = read_predictions(write(tmp_path / "found.jsonl", SUBMITTED))
    assert [moment[:2] for moment in answer.moments] == [(68.0, 76.0), (103.0, 112.0)]
    assert answer.moments[0].score > answer.moments[1].score
    both = [score(tmp_path, [line], [CASTELLA_TRUE])[0] for line in (SUBMITTED, CASTELLA_FOUND)]
    assert both[0] == both[1]


def test_keys_that_scoring_does_not_need_may_be_absent(tmp_path):
    found = '{"qid": "a", "pred_relevant_windows": [[0, 4, 1]]}'
    metrics, notes = score(tmp_path, [found], ['{"qid": "a", "relevant_windows": [[0, 5]]}'])
    assert metrics["mIoU"] == 0.8 and notes == ""


# --- written files ---


def test_what_is_written_is_read_again(tmp_path):
    moments = [Moment(1.0, 2.0, 0.25), Moment(0.04, 3.2, 0.75), Moment(5.0, 6.0, 0.25)]
    answers = [Answer("a_1", "Ein Hund: »Wau«", "a", 10.0, moments), Answer("2", "", "", 5.0, [])]
    path = tmp_path / "deep" / "found.jsonl"
    write_predictions(path, answers)
    first, second = map(json.loads, path.read_text().splitlines())
    assert list(first) == list(json.loads(CASTELLA_FOUND))  # lighthouse's keys in its order
    assert first["pred_relevant_windows"] == [[0.04, 3.2, 0.75], [1.0, 2.0, 0.25], [5.0, 6.0, 0.25]]
    by_score = [moments[1], moments[0], moments[2]]
    expected = [replace(answers[0], moments=by_score, duration=None)]
    assert read_predictions(path) == [*expected, replace(answers[1], duration=None)]
    write_predictions(path, answers, with_scores=False)
    assert json.loads(path.read_text().splitlines()[0])["pred_relevant_windows"][0] == [0.04, 3.2]
    again = read_predictions(path)
    assert [moment[:2] for moment in again[0].moments] == [moment[:2] for moment in by_score]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = write(tmp_path / "found.jsonl", CASTELLA_FOUND)
    with pytest.raises(ValueError):
        write_predictions(path, [Answer("a", "", "", 5.0, [Moment(0.0, float("nan"), 1.0)])])
    assert path.read_text() == CASTELLA_FOUND + "\n" and list(tmp_path.iterdir()) == [path]


# --- rounding ---


def test_rounding_of_castella_is_lighthouses():
    golden = GOLDEN["castella_postprocessing"]
    result = castella_rounding([Moment(*window) for window in golden["windows"]])
    assert [list(moment) for moment in result] == golden["result"]
    unsorted = castella_rounding([Moment(0.5, 1.5, 0.1), Moment(1.5, 2.5, 0.2)])
    assert unsorted == [Moment(2, 2, 0.2), Moment(0, 2, 0.1)]


def test_rounding_changes_the_score(tmp_path):
    found = found_line(pred_relevant_windows=[[2.6, 5.4, 0.9]])
    assert score(tmp_path, [found], [true_line()])[0]["R1@0.7"] == 1  # 2 s of 2.8 s
    exact, rounded = (
        score(tmp_path, [found], [true_line()], *options)[0]
        for options in ((), ("--castella-rounding",))
    )
    assert exact["mIoU"] == pytest.approx(2 / 2.8) and rounded["mIoU"] == 1
    assert not exact["castella_rounding"] and rounded["castella_rounding"]


# --- the command ---


def golden_lines(qids):
    cases = [case for case in GOLDEN["cases"] if case["qid"] in qids]
    keys = ("qid", "duration", "relevant_windows")
    return (
        [
            json.dumps({key: case[key] for key in ("qid", "pred_relevant_windows")})
            for case in cases
        ],
        [json.dumps({key: case[key] for key in keys}) for case in cases],
    )


def test_the_command_prints_lighthouses_numbers(tmp_path):
    found, true = golden_lines(GOLDEN["answered"])
    # in another order
    metrics, notes = score(tmp_path, found[::-1], true)
    brief = GOLDEN["lighthouse_answered"]["brief"]
    for name, value in brief.items():
        assert round(100 * metrics[name.removeprefix("MR-full-")], 2) == value
    assert (metrics["num_queries"], metrics["num_left_out"]) == (45, 1)
    assert len(notes.splitlines()) == 5 and "without length" in notes and "not cut" in notes
    table = run_here(main, "score", str(tmp_path / "found.jsonl"), str(tmp_path / "true.jsonl"))
    header, values = table.stdout.splitlines()
    assert header.split() == list(NAMES)
    assert values.split()[3:] == [f"{100 * metrics[name]:.2f}" for name in NAMES]


def test_a_query_without_answer_is_noted_and_counts_zero(tmp_path):
    found, true = golden_lines([case["qid"] for case in GOLDEN["cases"]])
    metrics, notes = score(tmp_path, found, true)
    assert round(100 * metrics["mAP"], 2) == GOLDEN["strict_all"]["mAP"]["average"]
    assert round(100 * metrics["R1@0.5"], 2) == GOLDEN["strict_all"]["R1"]["0.5"]
    assert "without a prediction, which count as 0: 1" in notes


def test_results_have_the_values_of_each_query(tmp_path):
    found, true = golden_lines(GOLDEN["answered"])
    answers = read_predictions(write(tmp_path / "found.jsonl", *found))
    truths = read_truth(write(tmp_path / "true.jsonl", *true))
    result = score_answers(answers[::-1], truths)
    assert [answer.qid for answer in result.answers] == [truth.qid for truth in truths]
    assert result.columns.shape == (46, 7) and result.is_scored.sum() == 45
    expected = moment_metrics(
        [answer.moments for answer in answers], [truth.windows for truth in truths]
    )
    assert result.metrics == expected


@pytest.mark.parametrize("kind", ["BOM", "CRLF", "blank lines", "no last newline"])
def test_ways_to_end_lines(tmp_path, kind):
    paths = []
    for name, line in (("found", found_line()), ("true", true_line())):
        other = line.replace("a_1", "a_2").replace("A dog", "A dog\u2028barks")
        text = f"{line}\n{other}\n"
        if kind == "BOM":
            text = "\ufeff" + text
        elif kind == "CRLF":
            text = text.replace("\n", "\r\n")
        elif kind == "blank lines":
            text = text.replace("\n", "\n\n  \n")
        else:
            text = text[:-1]
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_bytes(text.encode())
    ended = run_here(main, "score", *map(str, paths), "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["num_queries"] == 2


# --- mistakes ---

BROKEN_PREDICTIONS = {
    '{"qid": "a_1", "pred_relevant_windows": [[3, 5, 0.9]': ["not valid JSON"],
    "[1, 2]": ["expected a JSON object", "[1, 2]"],
    "7": ["expected a JSON object"],
    "[" * 100_000: ["nested"],
    found_line().replace("0.9", "NaN"): ["NaN", "'a_1'"],
    found_line().replace("5.0", "Infinity"): ["Infinity", "'a_1'"],
    found_line().replace("5.0", "1e999"): ["finite", "'a_1'"],
    found_line().replace("5.0", "1" + "0" * 400): ["finite", "'a_1'"],
    found_line().replace("5.0", "1" + "0" * 5000): ["digits"],
    found_line(pred_relevant_windows=[[5, 3, 0.9]]): ["ends before it starts", "'a_1'"],
    found_line(pred_relevant_windows=[[3, 5, True]]): ["finite numbers", "'a_1'", "true"],
    found_line(pred_relevant_windows=[["3", 5, 1]]): ["finite numbers", "'a_1'"],
    found_line(pred_relevant_windows=[[3, None, 1]]): ["finite numbers", "'a_1'"],
    found_line(pred_relevant_windows=[3, 5, 0.9]): ["[start, end", "'a_1'"],
    found_line(pred_relevant_windows=[[3]]): ["[start, end", "'a_1'"],
    found_line(pred_relevant_windows=[[3, 5, 1, 1]]): ["[start, end", "'a_1'"],
    found_line(pred_relevant_windows=[[3, 5], [3, 5, 1]]): ["[start, end]", "[3, 5, 1]"],
    found_line(pred_relevant_windows=[[3, 5, 1], [3, 5]]): ["[start, end, score]", "[3, 5]"],
    found_line(pred_relevant_windows={"start": 3}): ["pred_relevant_windows", "a list"],
    found_line(pred_relevant_windows=None): ["pred_relevant_windows", "null"],
    found_line(qid=None): ["qid", "null"],
    found_line(qid=True): ["qid", "true"],
    found_line(qid=1.5): ["qid", "1.5"],
    found_line(qid=""): ["qid"],
    found_line(query=7): ["query", "7"],
    found_line(vid=[]): ["vid", "[]"],
    '{"query": "A dog", "pred_relevant_windows": []}': ["no 'qid'", "'query'"],
    '{"qid": "a_1", "windows": []}': ["no 'pred_relevant_windows'", "'windows'"],
    "{}": ["no 'qid'"],
    true_line(): ["the first file is the predictions"],
    '{"qid": "a_1", "qid": "a_2", "pred_relevant_windows": []}': ["'qid'", "twice"],
}
BROKEN_TRUTHS = {
    true_line(relevant_windows=[[-1, 5]]): ["before the recording", "'a_1'"],
    true_line(relevant_windows=[[5, 3]]): ["ends before it starts", "'a_1'"],
    true_line(relevant_windows=[[3, 5, 1]]): ["[start, end]", "'a_1'"],
    true_line(relevant_windows=[[False, True]]): ["finite numbers", "'a_1'"],
    true_line().replace("[3, 5]", "[3, -Infinity]"): ["Infinity", "'a_1'"],
    true_line(duration=0): ["duration", "'a_1'"],
    true_line(duration="60"): ["duration", '"60"'],
    true_line(duration=True): ["duration", "true"],
    true_line().replace("60", "1e999"): ["duration"],
    found_line(): ["the second one the truth"],
    '{"qid": "a_1", "duration": 60}': ["no 'relevant_windows'"],
}


@pytest.mark.parametrize("line", BROKEN_PREDICTIONS, ids=lambda line: line[:90])
def test_a_broken_line_of_predictions_is_named(tmp_path, line):
    found = write(tmp_path / "found.jsonl", found_line(qid="b_1"), line)
    # the first line says whether there are scores
    if "[3, 5], [3, 5, 1]" in line:
        found = write(tmp_path / "found.jsonl", "", line)
    with pytest.raises(UserError) as error:
        read_predictions(found)
    assert f"{found}, line 2" in str(error.value) and "\n" not in str(error.value)
    assert [part for part in BROKEN_PREDICTIONS[line] if part not in str(error.value)] == []
    assert len(str(error.value)) < 400 + len(str(found))


@pytest.mark.parametrize("line", BROKEN_TRUTHS, ids=lambda line: line[:90])
def test_a_broken_line_of_the_truth_is_named(tmp_path, line):
    true = write(tmp_path / "true.jsonl", "", true_line(qid="b_1"), line)
    found = write(tmp_path / "found.jsonl", found_line())
    said = mistake(main, "score", str(found), str(true))
    assert f"{true}, line 3" in said and len(said.splitlines()) == 1
    assert [part for part in BROKEN_TRUTHS[line] if part not in said] == []


@pytest.mark.parametrize("kind", ["folder", "absent", "empty", "blank", "gzip", "latin-1"])
def test_a_file_that_is_none_is_named(tmp_path, kind):
    path = tmp_path / "found.jsonl"
    if kind == "folder":
        path.mkdir()
    elif kind != "absent":
        lines = f"{found_line()}\n{found_line(qid='b')}\n".encode()
        content = {"empty": b"", "blank": b"\n \r\n", "gzip": gzip.compress(lines)}
        path.write_bytes(content.get(kind, lines.replace(b'"b"', b'"\xe9"')))
    words = {
        "folder": "is a folder",
        "absent": "No such file",
        "empty": "no queries",
        "blank": "no queries",
        "gzip": "gzip",
        "latin-1": "line 2 is not UTF-8",
    }
    true = write(tmp_path / "true.jsonl", true_line())
    said = mistake(main, "score", str(path), str(true))
    assert str(path) in said and words[kind] in said and len(said.splitlines()) == 1


def test_a_query_twice_is_named_with_both_lines(tmp_path):
    with pytest.raises(UserError, match="line 3.*'a_1'.*line 1"):
        read_truth(write(tmp_path / "true.jsonl", true_line(), "", true_line()))
    # a number and a text are one name
    with pytest.raises(UserError, match="'7'"):
        read_truth(write(tmp_path / "true.jsonl", true_line(qid=7), true_line(qid="7")))


def test_queries_of_one_file_are_named_and_counted(tmp_path):
    found = write(tmp_path / "f", *(found_line(qid=f"x{i}") for i in range(5)), found_line())
    true = write(tmp_path / "t", *(true_line(qid=f"y{i}") for i in range(2)), true_line())
    said = mistake(main, "score", str(found), str(true))
    assert "lacks 2 of the 3 queries" in said and "'y0', 'y1'" in said
    assert "5 queries" in said and "'x0', 'x1', 'x2', ..." in said and len(said.splitlines()) == 1


def test_a_truth_without_a_window_with_a_length_cannot_be_scored(tmp_path):
    found = write(tmp_path / "f", found_line())
    for windows in ([], [[3, 3]]):
        true = write(tmp_path / "t", true_line(relevant_windows=windows))
        assert "nothing to score" in mistake(main, "score", str(found), str(true))


def test_windows_beyond_the_recording_count_as_they_are_and_are_noted(tmp_path):
    found = [found_line(pred_relevant_windows=[[-5, 10, 0.9], [50, 70, 0.5]])]
    metrics, notes = score(tmp_path, found, [true_line(relevant_windows=[[0, 10], [59, 61]])])
    assert metrics["mIoU"] == pytest.approx(10 / 15)
    assert "true windows that end after their recording, which count as they are: 1" in notes
    assert "lighthouse: 2" in notes
    inside, notes = score(tmp_path, [found_line()], [true_line()])
    assert notes == ""


def test_answers_are_sorted_before_they_are_rounded():
    # 0.20004 and 0.20001 are equal in four decimals; the better one stays first
    moments = [Moment(1, 2, 0.20001), Moment(3, 4.00004, 0.20004), Moment(5, 6, 0.9)]
    assert rounded(moments) == [Moment(5, 6, 0.9), Moment(3, 4, 0.2), Moment(1, 2, 0.2)]
