"""build_folder.py --moments: a CSV of times in many spellings, bad rows, captions and splits."""

from pathlib import Path

import pytest

from data_prep import build_folder
from data_prep.corpora.moments_csv import read_moments_csv
from retrieval.base.errors import UserError
from retrieval.data import MomentQuery, open_cache
from tests.corpora import (
    assert_refused,
    error_line,
    load,
    read_info,
    reasons,
    run_build,
    write_csv,
    write_sound,
)

HEADER = "file_name,query,start,end"


def build(audio: Path, *arguments: object) -> int:
    return run_build(build_folder, {"--audio": audio}, *arguments)


def read(tmp_path: Path, *lines: str, ending: str = "\n") -> dict[str, list[MomentQuery]]:
    table = tmp_path / "moments.csv"
    table.write_bytes(ending.join(lines).encode())
    return {name: file.queries for name, file in read_moments_csv(table, str.strip).items()}


def windows(*arguments, **options) -> list[tuple[tuple[float, float], ...]]:
    """Windows of all queries of `read`."""
    queries = read(*arguments, **options)
    return [query.windows for of_file in queries.values() for query in of_file]


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    """A folder with the sounds a.wav and b.wav, a second each."""
    for name in ("a.wav", "b.wav"):
        write_sound(tmp_path / "audio" / name, seconds=1.0)
    return tmp_path / "audio"


def moments_of(cache: Path, split: str = "development") -> dict[str, list[MomentQuery]]:
    clips = open_cache(cache).split(split, need_captions=False)
    return dict(zip(clips.file_names, clips.moments, strict=True))


# ---- the CSV


def test_rows_of_a_file_and_a_query_are_windows(tmp_path):
    found = read(
        tmp_path,
        HEADER,
        "a.wav,a dog,1,2",
        "b.wav,a dog,0.5,1e1",
        "a.wav,a cat,3,4",
        "a.wav,a  dog ,.5,0.75",
    )
    assert found == {
        "a.wav": [
            MomentQuery("a.wav_1", "a dog", ((1.0, 2.0), (0.5, 0.75))),
            MomentQuery("a.wav_2", "a cat", ((3.0, 4.0),)),
        ],
        "b.wav": [MomentQuery("b.wav_1", "a dog", ((0.5, 10.0),))],
    }


def test_rows_of_a_qid_are_windows(tmp_path):
    found = read(
        tmp_path,
        f"qid,{HEADER},note",
        "q7,a.wav,a dog,1,2,x",
        "q9,a.wav,a dog,5,6,",
        "q7,a.wav,a dog,3,4,",
    )
    assert found["a.wav"] == [
        MomentQuery("q7", "a dog", ((1.0, 2.0), (3.0, 4.0))),
        MomentQuery("q9", "a dog", ((5.0, 6.0),)),
    ]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ("83.5,84", (83.5, 84.0)),
        ("1:23.5,2:00", (83.5, 120.0)),
        ("00:01:23.500,1:00:00", (83.5, 3600.0)),
        (" 83.5 , 90:00.25 ", (83.5, 5400.25)),
        ("7,7", (7.0, 7.0)),  # left out and counted later
    ],
)
def test_times_as_seconds_or_clock(tmp_path, times, expected):
    assert windows(tmp_path, HEADER, f"a.wav,a dog,{times}") == [(expected,)]


@pytest.mark.parametrize(
    ("lines", "ending"),
    [
        (["\ufeffFile_Name,QUERY,Start,END", '"a.wav","a dog, barking",1.5,2'], "\r\n"),
        (["file_name;query;start;end", "a.wav;a dog, barking;1,5;2,0", ""], "\r\n"),
        (["file_name\tquery\tstart\tend", "a.wav\ta dog, barking\t1.5\t2"], "\n"),
        (["end, start,query ,file_name", '2,1.5,"a dog,\nbarking", a.wav'], "\n"),
    ],
    ids=["capitals, mark, quotes", "semicolons", "tabs", "another order"],
)
def test_spellings_of_spreadsheets(tmp_path, lines, ending):
    found = read(tmp_path, *lines, ending=ending)
    assert found == {"a.wav": [MomentQuery("a.wav_1", "a dog, barking", ((1.5, 2.0),))]}


def test_a_query_without_a_window_is_kept_for_the_count(tmp_path):
    assert windows(tmp_path, HEADER, "a.wav,a dog,,") == [()]


GOOD_ROW = "a.wav,a dog,1,2"


@pytest.mark.parametrize(
    ("row", "culprit"),
    [
        ("a.wav,a dog,2,1.5", "end 1.5 is before start 2"),
        ("a.wav,a dog,nan,2", "start is 'nan'"),
        ("a.wav,a dog,1,inf", "end is 'inf'"),
        ("a.wav,a dog,1,1e999", "end is '1e999'"),
        ("a.wav,a dog,-1,2", "start is '-1'"),
        ("a.wav,a dog,1,", "end is ''"),
        ('a.wav,a dog,"1,5",2', "a point before the decimals"),
        ("a.wav,a dog,1,5,2,5", "6 fields, expected 4"),
        ("a.wav,a dog,1:75,2:00", "start is '1:75'"),
        (f"a.wav,a dog,1,{'9' * 400}:00:00", "end is '999"),
        ("a.wav,a dog,1 s,2 s", "start is '1 s'"),
        ("a.wav, ,1,2", "query is empty"),
        (" ,a dog,1,2", "file_name is empty"),
        ('a.wav,"a dog,1,2', "unexpected end of data"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path, row, culprit):
    with pytest.raises(UserError) as caught:
        read(tmp_path, HEADER, GOOD_ROW, row)
    message = str(caught.value)
    assert "line 3: " in message and culprit in message and "\n" not in message


@pytest.mark.parametrize(
    ("lines", "culprit"),
    [
        (["file_name,query,start", "a.wav,a dog,1"], "column end"),
        (["file_name,query,start,end,END", "a.wav,a dog,1,2,3"], "column end"),
        ([HEADER], "has no rows"),
        ([""], "column file_name"),
        ([f"{HEADER},qid", "a.wav,a dog,1,2,"], "line 2: qid is empty"),
        ([f"{HEADER},split", "a.wav,a dog,1,2,train"], "line 2: split 'train'"),
        (
            [f"{HEADER},split", "a.wav,a dog,1,2,evaluation", "a.wav,a cat,1,2,validation"],
            "line 3: 'a.wav' is in validation, in evaluation in line 2",
        ),
        (
            [
                f"{HEADER},qid,split",
                "a.wav,a dog,1,2,q1,evaluation",
                "b.wav,a dog,1,2,q1,validation",
            ],
            "line 3: qid 'q1'",
        ),
        ([f"{HEADER},qid", "a.wav,a dog,1,2,q1", "a.wav,a cat,1,2,q1"], "line 3: qid 'q1'"),
    ],
)
def test_a_bad_table_is_one_line(tmp_path, lines, culprit):
    with pytest.raises(UserError) as caught:
        read(tmp_path, *lines)
    assert culprit in str(caught.value) and "\n" not in str(caught.value)


# ---- build_folder.py


def write_moments(tmp_path: Path, rows: list[list], header: str = HEADER) -> Path:
    return write_csv(tmp_path / "moments.csv", header.split(","), rows)


def test_queries_are_the_captions_of_clips_without(tmp_path, audio):
    """b.wav has a caption of its own; c.wav has neither."""
    write_sound(audio / "c.wav")
    rows = [["a.wav", "a dog", 0, 0.5], ["a.wav", "a cat", 0.5, 0.75], ["a.wav", "a hum", "", ""]]
    table = write_moments(tmp_path, [*rows, ["b.wav", "a bird", 0, 1]])
    (audio / "b.txt").write_text("A caption.")
    assert build(audio, "--moments", table) == 0
    clips = open_cache(audio / "cache").split("development")
    assert dict(zip(clips.file_names, clips.captions, strict=True)) == {
        "a.wav": ["a dog", "a cat"],  # not the query that is heard nowhere
        "b.wav": ["A caption."],
    }
    assert moments_of(audio / "cache") == {
        "a.wav": [
            MomentQuery("a.wav_1", "a dog", ((0.0, 0.5),)),
            MomentQuery("a.wav_2", "a cat", ((0.5, 0.75),)),
        ],
        "b.wav": [MomentQuery("b.wav_1", "a bird", ((0.0, 1.0),))],
    }
    assert reasons(read_info(audio / "cache")["skipped"]) == {"c.wav": "no captions"}


def test_with_a_csv_of_captions(tmp_path, audio):
    captions = write_csv(tmp_path / "captions.csv", ["file_name", "caption"], [["a.wav", "One."]])
    table = write_moments(tmp_path, [["./a.wav", "a dog", 0, 0.5], ["b.wav", "a cat", 0, 0.5]])
    assert build(audio, "--csv", captions, "--moments", table) == 0
    clips = open_cache(audio / "cache").split("development")
    assert clips.captions == [["One."], ["a cat"]]
    assert [[query.query for query in queries] for queries in clips.moments] == [
        ["a dog"],
        ["a cat"],
    ]


def test_without_captions(tmp_path, audio):
    table = write_moments(tmp_path, [["b.wav", "a cat", 0, 0.5]])
    assert build(audio, "--without-captions", "--moments", table) == 0
    assert load(audio / "cache")["captions"][:] == [[], []]
    found = moments_of(audio / "cache", "evaluation")
    assert {name: len(queries) for name, queries in found.items()} == {"a.wav": 0, "b.wav": 1}


def test_repairs_are_counted(tmp_path, audio, capsys):
    rows = [
        ["a.wav", "cut", 0.5, 7],
        ["a.wav", "late", "0:03", "0:04"],
        ["a.wav", "joined", 0.1, 0.3],
        ["a.wav", "joined", 0.2, 0.4],
        ["b.wav", "empty", 0.5, 0.5],
        ["b.wav", "none", "", ""],
    ]
    assert build(audio, "--without-captions", "--moments", write_moments(tmp_path, rows)) == 0
    found = moments_of(audio / "cache", "evaluation")
    assert {q.query: q.windows for queries in found.values() for q in queries} == {
        "cut": ((0.5, 1.0),),
        "joined": ((0.1, 0.4),),
    }
    counts = read_info(audio / "cache")["splits"]["evaluation"]["moments"]
    assert {name: number for name, number in counts.items() if name != "first"} == {
        "num_queries": 2,
        "num_windows": 2,
        "num_cut_windows": 1,
        "num_late_windows": 1,
        "num_joined_windows": 1,
        "num_empty_windows": 1,
        "num_lost_queries": 3,
    }
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 5 and sum("'a.wav_2' of 'a.wav'" in line for line in notes) == 2


def test_the_split_column_of_either_table(tmp_path, audio, capsys):
    table = write_moments(
        tmp_path,
        [["a.wav", "a dog", 0, 0.5, "validation"], ["b.wav", "a dog", 0, 0.5, "evaluation"]],
        f"{HEADER},split",
    )
    assert build(audio, "--moments", table) == 0
    assert list(moments_of(audio / "cache", "validation")) == ["a.wav"]
    assert list(moments_of(audio / "cache", "evaluation")) == ["b.wav"]
    captions = write_csv(
        tmp_path / "captions.csv",
        ["file_name", "caption", "split"],
        [["a.wav", "One.", "development"]],
    )
    other, arguments = audio / "other", ["--csv", captions, "--moments", table]
    code = build(audio, *arguments, "--output", other)
    assert_refused(code, "line 2: 'a.wav' is in validation, in development by", other, capsys)
    write_csv(captions, ["file_name", "caption"], [["c.wav", "One."]])
    code = build(audio, *arguments, "--output", other)
    assert_refused(code, "1 clips have no split, first 'c.wav'", other, capsys)
    code = build(audio, "--moments", table, "--split", "evaluation", "--output", other)
    assert_refused(code, "has a column split", other, capsys)


def test_an_unknown_file_is_a_lost_clip(tmp_path, audio, capsys):
    table = write_moments(tmp_path, [["a.wav", "a dog", 0, 0.5], ["gone.wav", "a dog", 0, 0.5]])
    code = build(audio, "--moments", table)
    assert_refused(code, "'gone.wav': named in the CSV, no such", audio / "cache", capsys)
    assert build(audio, "--moments", table, "--allow-missing") == 0
    assert list(moments_of(audio / "cache")) == ["a.wav"]


def test_a_changed_time_is_a_change(tmp_path, audio, capsys):
    table = write_moments(tmp_path, [["a.wav", "a dog", 0, 0.5]])
    assert build(audio, "--moments", table) == build(audio, "--moments", table) == 0
    assert "nothing to do" in capsys.readouterr().out
    write_moments(tmp_path, [["a.wav", "a dog", 0, 0.25]])
    assert build(audio, "--moments", table) == 2
    assert "have changed since it was built" in error_line(capsys)


def test_the_cache_may_not_replace_the_table(tmp_path, audio, capsys):
    table = write_moments(tmp_path / "tables", [["a.wav", "a dog", 0, 0.5]])
    assert build(audio, "--moments", table, "--output", tmp_path / "tables") == 2
    assert "would replace --moments" in error_line(capsys) and table.exists()


def test_a_clip_whose_queries_have_no_window_is_lost_for_that(audio, tmp_path):
    table = tmp_path / "moments.csv"
    table.write_text(f"{HEADER}\na.wav,a dog,0.5,0.5\nb.wav,a cat,0,1\n")
    arguments = "--moments", table, "--output", tmp_path / "cache", "--allow-missing"
    assert build(audio, *arguments) == 0
    lost = reasons(read_info(tmp_path / "cache")["skipped"])
    assert lost["a.wav"].startswith("none of its queries")
