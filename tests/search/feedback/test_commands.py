"""The commands mark, detect and detectors."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from retrieval.base.errors import UserError
from retrieval.search import AudioIndex, IndexedFile, Mark
from retrieval.search.__main__ import main
from retrieval.search.feedback.commands import parse_mark
from retrieval.search.feedback.detectors import Detectors, read_marks
from retrieval.search.local.storage import connect
from tests.conftest import mistake
from tests.search.test_search import QUERY


@pytest.fixture
def index(indexed, tmp_path) -> Path:
    """A copy, with room for detectors."""
    return Path(shutil.copytree(indexed, tmp_path / "index"))


@pytest.fixture(scope="module")
def names(indexed) -> list[str]:
    """Files of one excerpt, the best answers first."""
    hits = AudioIndex.open(indexed).search(QUERY, 50)
    return [hit.file for hit in hits if hit.file != "long.flac"]


def command(name: str, index: Path, *arguments: str | Path) -> list[str]:
    return [name, *map(str, arguments), "--index", str(index), "--quiet"]


def run(capsys, *arguments) -> str:
    assert main(command(*arguments)) == 0
    return capsys.readouterr().out


def test_rounds_of_marks(index: Path, names: list[str], sounds: Path, capsys):
    out = run(
        capsys, "mark", index, "low", "--query", QUERY, "--right", names[0], "--wrong", names[1]
    )
    assert "1 right, 1 wrong" in out
    judged = [line.split("  ")[-1] for line in out.splitlines() if line.startswith("judge next")]
    assert len(judged) == 5 and not {names[0], names[1]} & set(judged)
    # a path in place of a name, and a time; the marks before stay
    out = run(
        capsys, "mark", index, "low", "--right", sounds / names[2], "--wrong", "long.flac@0:02.1-3"
    )
    assert "2 right, 2 wrong" in out
    learned = Detectors(index / "detectors").load("low")
    assert [mark.file for mark in learned.marks] == [*names[:3], "long.flac"]
    assert (learned.marks[3].start, learned.marks[3].end) == (2.1, 3)
    # the same as in Python
    opened = AudioIndex.open(index)
    marks = [Mark(file=name, right=name != names[1]) for name in names[:3]]
    marks.append(Mark(file="long.flac", start=2.1, end=3, right=False))
    assert opened.refine(QUERY, marks).vector == learned.vector
    # a mind that was changed
    out = run(capsys, "mark", index, "low", "--wrong", names[0])
    assert "1 right, 3 wrong" in out
    out = run(capsys, "mark", index, "low", "--overwrite", "--query", "a", "--right", names[0])
    assert "1 right, 0 wrong" in out
    assert "low" in run(capsys, "detectors", index)
    run(capsys, "detectors", index, "--delete", "low")
    assert "low" not in run(capsys, "detectors", index)


def test_names_of_two_lines_are_printed_in_one(index: Path, names: list[str], capsys):
    with connect(index) as database:
        database.execute("UPDATE files SET file = ? WHERE file = ?", ("a\nb.wav", names[1]))
    out = run(capsys, "mark", index, "low", "--query", QUERY, "--right", names[0])
    assert r"a\nb.wav" in out and "a\nb.wav" not in out


def test_marks_of_one_kind_are_noted(index: Path, names: list[str], capsys):
    assert main(command("mark", index, "low", "--query", QUERY, "--wrong", names[0])) == 0
    captured = capsys.readouterr()
    assert "0 right, 1 wrong" in captured.out and "all marks are wrong" in captured.err


def test_detect_writes_what_it_finds(index: Path, names: list[str], tmp_path: Path, capsys):
    run(capsys, "mark", index, "low", "--query", QUERY, "--right", names[0], "--wrong", names[-1])
    answers = json.loads(run(capsys, "detect", index, "low", "--min-probability", "0", "--json"))
    hits = AudioIndex.open(index).detect(Detectors(index / "detectors").load("low"), 0.0)
    assert answers[0]["query"] == "low"
    assert [own["file"] for own in answers[0]["hits"]] == [hit.file for hit in hits]
    table = tmp_path / "found.csv"
    options = ["--labels", "csv", "--output", table, "--within", "below"]
    run(capsys, "detect", index, "low", "--min-probability", "0", *options)
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert rows and all(row["query"] == "low" for row in rows)
    assert {row["file"] for row in rows} == {
        hit.file for hit in hits if hit.file.startswith("below/")
    }
    # one stretch of each excerpt, with the probability: the detector has not judged the others
    options[-1] = ""
    run(capsys, "detect", index, "low", "--min-probability", "0", *options)
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert sum(len(hit.moments) for hit in hits) > len(hits) == len(rows)  # control: it has others
    assert [float(row["score"]) for row in rows] == [round(hit.score, 6) for hit in hits]
    # on another index of the same model
    other = Path(shutil.copytree(index, tmp_path / "other"))
    shutil.rmtree(other / "detectors")
    options = ["--detectors", index / "detectors", "--min-probability", "0", "--json"]
    assert json.loads(run(capsys, "detect", other, "low", *options)) == answers


def test_marks_are_exported_and_read_again(index: Path, names: list[str], tmp_path: Path, capsys):
    table, labels = tmp_path / "marks.csv", tmp_path / "labels"
    given = ["--query", QUERY, "--right", names[0], "--wrong", names[1], "long.flac@3.1"]
    run(capsys, "mark", index, "low", *given, "--labels", "csv", "--output", table)
    marks = read_marks(table)
    assert [(mark.file, mark.right) for mark in marks] == [
        (names[0], True),
        (names[1], False),
        ("long.flac", False),
    ]
    assert all(mark.end for mark in marks)
    run(capsys, "mark", index, "again", "--query", QUERY, "--marks", table)
    saved = Detectors(index / "detectors")
    assert saved.load("again").vector == saved.load("low").vector
    run(capsys, "mark", index, "low", "--labels", "audacity", "--output", labels)
    texts = [path.read_text(encoding="utf-8") for path in labels.rglob("*.txt")]
    assert sorted(text.rstrip("\n").split("\t")[2] for text in texts) == [
        "low",
        "not low",
        "not low",
    ]


def test_exported_answers_with_a_column_right_are_marks(index: Path, tmp_path: Path, capsys):
    table = tmp_path / "answers.csv"
    assert (
        main(["query", QUERY, "--index", str(index), "--labels", "csv", "--output", str(table)])
        == 0
    )
    message = mistake(main, *command("mark", index, "low", "--query", QUERY, "--marks", table))
    assert "add a column right" in message
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    with open(table, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "right"])
        writer.writeheader()
        writer.writerows(
            row | {"right": "no" if number else "yes"} for number, row in enumerate(rows)
        )
    marks = read_marks(table)
    assert [(mark.file, mark.start, mark.end, mark.right) for mark in marks] == [
        (row["file"], float(row["from"]), float(row["to"]), number == 0)
        for number, row in enumerate(rows)
    ]
    run(capsys, "mark", index, "low", "--query", QUERY, "--marks", table)


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["--right", "gone.wav"], "gone.wav"),
        (["--right", "long.flac"], "long.flac@"),
        (["--right", "long.flac@7.4"], "long.flac@7.4"),
        (["--right", "long.flac@soon"], "soon"),
        (["--right", "stereo.wav", "--wrong", "stereo.wav"], "stereo.wav"),
        (["--marks", "gone.csv"], "gone.csv"),
        ([], "--right"),
        (["--right", "stereo.wav", "--labels", "csv"], "--output"),
    ],
)
def test_mistakes_in_marks(index: Path, arguments: list[str], culprit: str):
    message = mistake(main, *command("mark", index, "low", "--query", QUERY, *arguments))
    assert culprit in message
    assert not (index / "detectors").exists()


def test_a_file_is_named_by_its_base_name_or_a_path_through_a_link(
    index: Path,
    tmp_path: Path,
    sounds: Path,
):
    opened = AudioIndex.open(index)
    (name,) = [own.file for own in opened.files if own.file == "below/low steady.wav"]
    (tmp_path / "link").symlink_to(sounds, target_is_directory=True)
    for text in (name, "low steady.wav", str(tmp_path / "link" / name)):
        assert parse_mark(text, True, opened).file == name
        assert parse_mark(f"{text}@0.25", True, opened).start == 0.25
    with pytest.raises(UserError, match="several"):
        files = [IndexedFile(f"{folder}/x.wav", 1.0) for folder in "ab"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AudioIndex, "files", files)
            parse_mark("x.wav", True, opened)


def test_other_mistakes(index: Path, names: list[str], capsys):
    assert "--query" in mistake(main, *command("mark", index, "low", "--right", names[0]))
    run(capsys, "mark", index, "low", "--query", QUERY, "--right", names[0])
    message = mistake(main, *command("mark", index, "low", "--query", "other", "--right", names[1]))
    assert QUERY in message and "other" in message
    assert "'a/b'" in mistake(main, *command("mark", index, "a/b", "--query", QUERY))
    assert "low" in mistake(main, *command("detect", index, "high"))  # those that there are
    wrong = command("detect", index, "low", "--min-probability", "2")
    assert "--min-probability" in mistake(main, *wrong)
    assert "gone" in mistake(main, *command("detectors", index.with_name("gone")))
