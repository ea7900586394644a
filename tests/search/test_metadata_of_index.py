"""Metadata through the commands and AudioIndex: filters, answers, counts, updates."""

import csv
import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from retrieval.base.errors import UserError
from retrieval.config import load_config
from retrieval.models.build import build_model
from retrieval.search import AudioIndex
from retrieval.search.__main__ import main
from tests.conftest import SAMPLE_RATE, tone
from tests.corpora import write_csv

QUERY = "A steady low tone."
ROWS = [
    ["birds/a.wav", "forest", "2020", ""],
    ["b.wav", "lake", "2021.5", "Ann"],
    ["c.wav", "forest", "2023", "Ben"],
    ["gone.wav", "moon", "1969", "Neil"],
]
FILES = {"birds/a.wav", "birds/b.wav", "c.wav", "d.wav"}


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "mean"
    build_model(load_config(tiny / "tiny.yaml", ["pooling.name=mean"])).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    (folder / "birds").mkdir()
    for number, name in enumerate(sorted(FILES)):
        soundfile.write(folder / name, tone(number, 0, 1.0, rng), SAMPLE_RATE)
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("table") / "meta.csv"
    return write_csv(path, ["file_name", "place", "year", "by"], ROWS)


@pytest.fixture(scope="module")
def built(model, sounds, table, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("built") / "index"
    AudioIndex.build(sounds, model, path, metadata=table)
    return path


def found(index: AudioIndex, **where: object) -> set[str]:
    return {hit.file for hit in index.search(QUERY, where=where)}


def test_columns_are_filters_and_stand_in_the_answers(built, sounds):
    index = AudioIndex.open(built)
    assert found(index) == FILES
    assert found(index, place="forest") == {"birds/a.wav", "c.wav"}
    assert found(index, place=["forest", "lake"], year=(2021, None)) == {"birds/b.wav", "c.wav"}
    assert found(index, year="2021.5") == {"birds/b.wav"}
    assert found(index, year=np.int64(2023)) == {"c.wav"}
    assert found(index, year=(1990, 1999)) == set()
    hits = index.search_audio(sounds / "d.wav", where={"by": ["Ann", "Ben"]}, within="birds")
    assert [hit.file for hit in hits] == ["birds/b.wav"]
    assert hits[0].metadata == {"place": "lake", "year": 2021.5, "by": "Ann"}
    of_files = {hit.file: hit.metadata for hit in index.search(QUERY)}
    assert of_files["birds/a.wav"] == {"place": "forest", "year": 2020.0}
    assert of_files["d.wav"] == {}
    with pytest.raises(UserError, match="place=Forest.* forest"):
        found(index, place="Forest")


def test_facets_count_files(built):
    facets = AudioIndex.open(built).facets()
    assert facets.folders == (("birds", 2),)
    place, year, by = facets.columns
    assert (place.column, place.kind, place.values) == (
        "place",
        "text",
        (("forest", 2), ("lake", 1)),
    )
    assert (place.num_values, place.num_unknown) == (2, 1)
    assert (year.kind, year.lowest, year.highest) == ("number", 2020.0, 2023.0)
    assert by.values == (("Ann", 1), ("Ben", 1))


def test_metadata_stays_until_other_metadata_replaces_it(model, sounds, table, tmp_path):
    own = Path(shutil.copytree(sounds, tmp_path / "own"))
    path = tmp_path / "index"
    AudioIndex.build(own, model, path, metadata=table)
    (own / "birds/a.wav").rename(own / "renamed.wav")  # keeps its metadata
    soundfile.write(own / "c.wav", np.zeros(SAMPLE_RATE), SAMPLE_RATE)  # changes its content
    opened = AudioIndex.open(path)
    opened.add()
    assert found(opened, place="forest") == {"renamed.wav", "c.wav"}
    other = write_csv(
        tmp_path / "other.csv", ["file_name", "kind"], [["d.wav", "7"], ["c.wav", "x"]]
    )
    AudioIndex.build(own, model, path, metadata=other)
    with pytest.raises(UserError, match="other metadata meanwhile"):
        found(opened, year="2020")
    index = AudioIndex.open(path)
    assert found(index, kind="7") == {"d.wav"}
    with pytest.raises(UserError, match="'place'.*kind"):
        found(index, place="forest")


def test_wrong_metadata_changes_nothing(model, sounds, built, tmp_path):
    twice = write_csv(tmp_path / "twice.csv", ["file_name", "x"], [["d.wav", "1"]] * 2)
    path = tmp_path / "index"
    with pytest.raises(UserError, match="row 3.*d.wav"):
        AudioIndex.build(sounds, model, path, metadata=twice)
    assert not path.exists()
    copy = Path(shutil.copytree(built, path))
    with pytest.raises(UserError, match="twice.csv"):
        AudioIndex.build(sounds, model, copy, metadata=twice)
    assert found(AudioIndex.open(copy), place="forest") == {"birds/a.wav", "c.wav"}


def test_an_index_without_metadata_has_no_columns(model, sounds, tmp_path):
    index = AudioIndex.build(sounds, model, tmp_path / "index")
    assert index.facets().columns == ()
    assert all(hit.metadata == {} for hit in index.search(QUERY))
    with pytest.raises(UserError, match="--metadata"):
        found(index, place="forest")
    with sqlite3.connect(tmp_path / "index/index.sqlite") as database:
        names = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    assert "metadata" not in names


def test_the_commands(model, sounds, table, tmp_path, capsys):
    path = tmp_path / "index"
    options = ["--index", str(path), "--quiet"]
    made = ["index", str(sounds), "--checkpoint", str(model), "--metadata", str(table)]
    assert main([*made, *options]) == 0
    out = capsys.readouterr().out
    assert "metadata: of 3 of 4 files; columns: place (text), year (number), by (text)" in out
    assert "1 row of" in out and "gone.wav" in out
    asked = ["query", QUERY, *options, "--where", "place=forest", "--where", "year=2021.."]
    assert main([*asked, "--csv", str(tmp_path / "answers.csv")]) == 0
    assert "c.wav  (forest, 2023, Ben)" in capsys.readouterr().out
    with open(tmp_path / "answers.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["file"], row["place"], row["year"], row["by"]) == (
        "c.wav",
        "forest",
        "2023",
        "Ben",
    )
    assert main([*asked, "--json"]) == 0
    (hit,) = json.loads(capsys.readouterr().out)[0]["hits"]
    assert hit["metadata"] == {"place": "forest", "year": 2023, "by": "Ben"}
    assert isinstance(hit["metadata"]["year"], int)  # as in the CSV, not 2023.0
    with pytest.raises(UserError, match="COLUMN=VALUE"):
        main(["query", QUERY, *options, "--where", "place"])
    with pytest.raises(SystemExit):
        main(["query", QUERY, "--file", "x.wav", "--checkpoint", "y", "--where", "a=b"])
    assert "--where belongs to --index" in capsys.readouterr().err
