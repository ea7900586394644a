"""Metadata from a CSV: what is read, what is refused, and filters and counts against slow ones."""

import math
import sqlite3
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from retrieval.base.errors import UserError
from retrieval.search.facets import MetadataArrays
from retrieval.search.local.metadata import (
    read_column,
    read_columns,
    read_fields,
    statements_to_copy,
    statements_to_replace,
)
from retrieval.search.metadata import Metadata, Range, parse_where, read_metadata, resolve_where

FILES = ["birds/owl.wav", "birds/Málaga.wav", "rain.wav", "sea/1.wav", "lake/1.wav"]


def read(tmp_path: Path, content: str | bytes, files: list[str] = FILES) -> Metadata:
    path = tmp_path / "meta.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_metadata(path, files)


def test_rows_are_read_by_path_or_base_name(tmp_path):
    decomposed = "Ma\u0301laga.wav"  # as macOS writes it
    found = read(
        tmp_path,
        '\ufefffile_name,place,year,note\r\nowl.wav,forest,2021,"a, b"\r\n'
        f"{decomposed}, forest ,2020.5,\r\n\r\nsea\\1.wav,,,\r\n./lake/1.wav,lake,-3e2,x\r\n"
        "gone.wav,a,1,x\r\n",
    )
    assert found.columns == {"place": "text", "year": "number", "note": "text"}
    assert found.fields == {
        "birds/owl.wav": {"place": "forest", "year": 2021.0, "note": "a, b"},
        "birds/Málaga.wav": {"place": "forest", "year": 2020.5},
        "sea/1.wav": {},
        "lake/1.wav": {"place": "lake", "year": -300.0, "note": "x"},
    }
    assert (found.num_rows, found.num_unknown, found.unknown) == (5, 1, ("gone.wav",))


def test_a_column_with_many_texts_is_text(tmp_path):
    rows = "".join(f"{file},{value}\n" for file, value in zip(FILES, ["1", "2", "3A", "nan", "4"]))
    assert read(tmp_path, f"file_name,take\n{rows}").columns == {"take": "text"}


@pytest.mark.parametrize(
    ("content", "culprits"),
    [
        ("", ["file_name", "empty"]),
        ("file,place\nowl.wav,x\n", ["file_name", "file,place"]),
        ("file_name;place\nowl.wav;x\n", ["file_name;place", "commas"]),
        ("file_name\nowl.wav\n", ["1 columns"]),
        ("file_name,place,place\n", ["column 3", "place", "column 2"]),
        ("file_name,Score\n", ["column 2", "Score"]),
        ("file_name,matches\n", ["column 2", "matches"]),
        ("file_name,a=b\n", ["column 2", "a=b"]),
        ("file_name,\n", ["column 2"]),
        ("file_name,place\nowl.wav,x,y\n", ["row 2", "3 fields"]),
        ("file_name,place\n,x\n", ["row 2", "file_name"]),
        ("file_name,place\n1.wav,x\n", ["row 2", "1.wav", "lake/1.wav"]),
        ("file_name,place\nowl.wav,x\n\nbirds/owl.wav,y\n", ["row 4", "birds/owl.wav", "row 2"]),
        ("file_name,place\na.wav,x\nb.wav,y\n", ["2 rows", "a.wav"]),
        (f"file_name,place\nowl.wav,{'x' * 1001}\n", ["row 2", "place", "1,001"]),
        (f"file_name,place\nowl.wav,{'x' * 200_000}\n", ["line 2", "field limit"]),
        ('file_name,place\nowl.wav,"x"y\n', ["line 2"]),
        ("file_name,place\nowl.wav,Málaga\n".encode("latin-1"), ["UTF-8"]),
        ("file_name,place\nowl.wav,x\n".encode("utf-16"), ["UTF-8"]),
        (
            "file_name,year\n" + "".join(f"{n}.wav,{n if n != 3 else 'MMXX'}\n" for n in range(6)),
            ["row 5", "year", "3.wav", "MMXX", "5 other"],
        ),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, content, culprits):
    files = FILES + [f"{number}.wav" for number in range(6)] * ("MMXX" in str(content))
    with pytest.raises(UserError) as caught:
        read(tmp_path, content, files)
    assert "\n" not in str(caught.value)
    for culprit in ["meta.csv", *culprits]:
        assert culprit in str(caught.value)


def test_an_absent_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="absent.csv"):
        read_metadata(tmp_path / "absent.csv", FILES)


# --- filters and counts ---


@pytest.fixture(scope="module")
def table() -> dict[str, list]:
    """Columns of 500 files, a fifth of the values unknown."""
    rng = np.random.default_rng(0)
    columns = {
        "place": [str(own) for own in rng.choice(["forest", "lake", "city"], 500)],
        "year": [float(own) for own in rng.integers(2000, 2010, 500)],
        "name": [f"n{own}" for own in rng.integers(0, 300, 500)],
    }
    for values in columns.values():
        for place in rng.choice(500, 100, replace=False):
            values[place] = None
    return columns


KINDS = {"place": "text", "year": "number", "name": "text"}


@pytest.mark.parametrize(
    "where",
    [
        {},
        {"place": "forest"},
        {"place": ["forest", "lake"], "year": (2003, None)},
        {"year": [2001, (2005, 2006.5), "2008.."]},
        {"year": "..2002", "place": "city"},
        {"year": "1990"},
    ],
)
def test_filters_are_those_of_a_loop(table, where):
    arrays = MetadataArrays(KINDS, 500, table.__getitem__)
    resolved = resolve_where(where, arrays.values(list(where)))

    def passes(number: int, column: str) -> bool:
        value = table[column][number]
        return value is not None and any(
            own.low <= value <= own.high if isinstance(own, Range) else own == value
            for own in resolved[column]
        )

    slow = [all(passes(number, column) for column in where) for number in range(500)]
    assert arrays.select(resolved).tolist() == slow
    assert (sum(slow) > 0) == ("1990" not in where.values())


@pytest.mark.parametrize("most", [2, 100, 1000])
def test_counts_are_those_of_a_loop(table, most):
    facets = MetadataArrays(KINDS, 500, table.__getitem__).facets(most)
    assert [own.column for own in facets] == list(KINDS)
    for facet in facets:
        counts = Counter(value for value in table[facet.column] if value is not None)
        ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        assert list(facet.values) == ranked[:most]
        assert (facet.num_values, facet.num_unknown) == (len(counts), 100)
    assert (facets[1].lowest, facets[1].highest) == (2000.0, 2009.0)
    assert facets[0].lowest is None


def test_ranges_of_a_column_of_texts_are_refused():
    dates = {"recorded": {"2022-03-01", "a..b"}}
    for given in ("2022-01-01..2022-12-31", (2020, None)):
        with pytest.raises(UserError, match="recorded.*column of numbers"):
            resolve_where({"recorded": given}, dates)
    assert resolve_where({"recorded": "a..b"}, dates) == {"recorded": ("a..b",)}
    with pytest.raises(UserError) as error:  # control
        resolve_where({"recorded": "2022"}, dates)
    assert "numbers" not in str(error.value)


def test_ranges_of_the_terminal():
    where = parse_where(["year=2020..2024", "year = 1999", "place=a=b"])
    assert where == {"year": ["2020..2024", "1999"], "place": ["a=b"]}
    assert resolve_where(where, {"year": None, "place": {"a=b"}}) == {
        "year": (Range(2020, 2024), Range(1999, 1999)),
        "place": ("a=b",),
    }
    assert resolve_where({"year": "2020.."}, {"year": None})["year"] == (Range(2020, math.inf),)


@pytest.mark.parametrize(
    ("where", "culprits"),
    [
        ({"plaec": "forest"}, ["plaec", "place"]),
        ({"colour": "red"}, ["colour", "place", "year"]),
        ({"place": "Forrest"}, ["place=Forrest", "forest"]),
        ({"place": 7}, ["place=7", "forest"]),
        ({"place": []}, ["place"]),
        ({"year": "forest"}, ["year=forest"]),
        ({"year": ".."}, ["year=.."]),
        ({"year": "2024..2020"}, ["2024..2020"]),
        ({"year": (1, "x")}, ["year"]),
        ({"year": None}, ["year"]),
        ({"year": math.nan}, ["year=nan"]),
    ],
)
def test_a_wrong_filter_names_what_there_is(where, culprits):
    with pytest.raises(UserError) as caught:
        resolve_where(where, {"place": {"forest", "lake"}, "year": None})
    for culprit in culprits:
        assert culprit in str(caught.value)


@pytest.mark.parametrize("condition", ["place", "=forest", "place="])
def test_a_wrong_condition_is_one_line(condition):
    with pytest.raises(UserError, match="COLUMN=VALUE"):
        parse_where([condition])


def test_metadata_in_a_database():
    database = sqlite3.connect(":memory:")
    assert read_columns(database) == {}
    assert read_fields(database, ["a.wav"]) == {}
    kinds = {'an "odd" name': "text", "year": "number"}
    fields = {"a.wav": {'an "odd" name': "007"}, "b.wav": {"year": 2020.0}, "c.wav": {}}
    for given in ({"x.wav": {"year": 1.0}}, fields):  # the second replaces the first
        for statement in statements_to_replace(Metadata(kinds, given, 0, (), 0)):
            database.execute(*statement)
    for new, file in (("d.wav", "a.wav"), ("b.wav", "a.wav"), ("e.wav", "none.wav")):
        for statement in statements_to_copy(file, new, len(kinds)):
            database.execute(*statement)
    assert read_columns(database) == kinds
    assert read_column(database, 0) == {"a.wav": "007", "d.wav": "007"}
    assert read_column(database, 1) == {"b.wav": 2020.0}
    many = [f"{number}.wav" for number in range(2000)]
    assert read_fields(database, [*many, *"a.wav b.wav d.wav e.wav x.wav".split()]) == {
        "a.wav": fields["a.wav"],
        "b.wav": fields["b.wav"],
        "d.wav": fields["a.wav"],
    }
