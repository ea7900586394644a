"""The table of an index as arrays, and the clips that a store finds, against SQLite and loops."""

import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from retrieval.base.errors import UserError
from retrieval.search.filters import Filters
from retrieval.search.index_meta import IndexMeta
from retrieval.search.local import catalogue
from retrieval.search.local.catalogue import CATALOGUE, Catalogue, Files
from retrieval.search.local.clips import IndexedClips, unit
from retrieval.search.local.storage import connect
from retrieval.search.local.store import LocalStore
from retrieval.search.local.writer import IndexWriter, locked
from retrieval.search.model_identity import ModelIdentity
from retrieval.search.sound import Found

NAMES = (
    *("a.wav", "b/a.wav", "b/é.wav", "b/c/d.wav", "b-c/x.wav", "b0.wav", "b/z.wav", "c.wav"),
    "b/c.wav/e.wav",
)
DIM = 4


def make_meta(folder: Path) -> IndexMeta:
    lengths = {"hop_seconds": 1.0, "clip_seconds": 2.0, "dim": DIM, "has_frames": False}
    return IndexMeta(folder=str(folder), model=ModelIdentity(path="m", files={}), **lengths)


def add(writer: IndexWriter, name: str, content: str, rng: np.random.Generator) -> None:
    """Add a file of 1 to 3 excerpts."""
    number = int(rng.integers(1, 4))
    vectors = rng.standard_normal((number, DIM)).astype(np.float32)
    places = writer.append(vectors, None)
    excerpts = [(float(start), start + 2.0, *place) for start, place in enumerate(places)]
    writer.add_file(Found(name, 1, 1), content, number + 1.0, excerpts)


def write(path: Path, names: tuple[str, ...] = NAMES) -> None:
    rng = np.random.default_rng(0)
    with locked(path), IndexWriter.opened(path, make_meta(path), overwrite=False) as writer:
        for name in names:
            add(writer, name, name, rng)
        writer.commit(complete=True)
        writer.finish()


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(catalogue, "SAVED_FROM", 1)
    write(tmp_path / "index")
    return tmp_path / "index"


def refuse(*_) -> None:
    raise AssertionError("the table was read from SQLite")


def check_same(one: LocalStore, other: LocalStore) -> None:
    assert one.files == other.files
    clips = range(len(one))
    assert len(one) == len(other) and one.excerpts(clips) == other.excerpts(clips)
    np.testing.assert_array_equal(one.vectors(clips), other.vectors(clips))


def test_arrays_hold_the_table_of_the_database(path, monkeypatch):
    saved = LocalStore(path)
    shutil.copytree(path, path.with_name("other"))
    (path.with_name("other") / CATALOGUE).unlink()
    check_same(LocalStore(path.with_name("other")), saved)
    with monkeypatch.context() as patch:
        patch.setattr(Catalogue, "read", refuse)
        check_same(LocalStore(path), saved)
        with pytest.raises(AssertionError):  # negative control
            LocalStore(path.with_name("other"))
    names = [file.file for file in saved.files]
    assert names == sorted(NAMES, key=str.encode) and saved.num_files == len(NAMES)
    assert saved.seconds == sum(file.seconds for file in saved.files)


def change(path: Path, statement: str) -> None:
    with connect(path) as database:
        database.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM files WHERE file = 'a.wav'",
        "INSERT INTO files (file, seconds) VALUES ('new.wav', 1.0)",
    ],
)
def test_arrays_of_an_earlier_state_are_not_used(path, statement):
    """Also after a writer that does not know of them, such as an older version."""
    before = LocalStore(path).num_files
    change(path, statement)
    assert LocalStore(path).num_files == before + (1 if "INSERT" in statement else -1)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "gone", "other", "folder"])
def test_damaged_arrays_are_not_used(path, damage):
    saved, file = LocalStore(path), path / CATALOGUE
    content = bytearray(file.read_bytes())
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage == "other":
        np.savez(open(file, "wb"), stamp=np.array([[1], [2]]))
    elif damage != "gone":
        content[len(content) // 2] ^= 255
        size = {"cut": len(content) // 2, "empty": 0}.get(damage, len(content))
        file.write_bytes(content[:size])
    check_same(LocalStore(path), saved)


def test_an_index_of_an_older_version_gets_a_counter(path):
    for trigger in ("file_added", "file_removed"):
        change(path, f"DROP TRIGGER {trigger}")
    change(path, "DELETE FROM meta WHERE key = 'changes'")
    store = LocalStore(path)  # from SQLite: nothing counts its changes
    with locked(path), IndexWriter.opened(path, make_meta(path), overwrite=False) as writer:
        writer.finish()
    check_same(LocalStore(path), store)
    change(path, "DELETE FROM files WHERE file = 'a.wav'")
    assert LocalStore(path).num_files == store.num_files - 1


def test_small_indexes_have_no_arrays(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "SAVED_FROM", 1000)
    write(tmp_path / "index")
    assert not (tmp_path / "index" / CATALOGUE).exists()


def test_files_are_found_by_name():
    pairs = [(name, float(number)) for number, name in enumerate(sorted(NAMES, key=str.encode))]
    files = Files.of(pairs)
    assert [(file.file, file.seconds) for file in files] == pairs
    assert [files.number(name) for name, _ in pairs] == list(range(len(pairs)))
    for wrong in ("", "b", "b/", "b/c", "a.wa", "a.wav ", "zz", "b/\udcff"):
        assert files.number(wrong) is None
    assert files[-1] == list(files)[-1] and files[2:4] == list(files)[2:4]
    with pytest.raises(IndexError):
        files[len(pairs)]
    parents = {str(parent) for name in NAMES for parent in Path(name).parents} - {"."}
    assert files.folders() == sorted(parents)
    for folder in (*parents, "d", "b/c.wav"):
        below = [number for number, (name, _) in enumerate(pairs) if name.startswith(f"{folder}/")]
        assert list(range(len(pairs)))[files.below(folder)] == below
    assert len(Files.of([])) == 0 and Files.of([]).folders() == [] and Files.of([]) == []


@pytest.mark.parametrize(
    "filters",
    [
        Filters(),
        Filters(within="b"),
        Filters(within="/b/c/"),
        Filters(within="absent"),
        Filters(min_seconds=3.0),
        Filters(max_seconds=2.0, within="b"),
        Filters(without="b/a.wav"),
        Filters(without="absent"),
        Filters(min_seconds=100.0),
        Filters(within="./b//c/."),
        Filters(within="../b"),
    ],
)
def test_filters_against_a_loop(path, filters):
    store = LocalStore(path)
    selection = store.select(filters)
    folder = {"/b/c/": "b/c", "./b//c/.": "b/c"}.get(filters.within, filters.within)
    expected = [
        clip
        for clip, file, *_ in store.excerpts(range(len(store)))
        if (not folder or file.file.startswith(f"{folder}/"))
        and filters.min_seconds <= file.seconds <= filters.max_seconds
        and file.file != filters.without
    ]
    assert store.count(selection) == len(expected)
    query = np.random.default_rng(1).standard_normal((1, DIM)).astype(np.float32)
    assert sorted(store.nearest(query, 100, selection)[0][0]) == expected


@pytest.mark.parametrize(
    "filters",
    [
        {"within": None},
        {"without": 3},
        {"min_seconds": float("nan")},
        {"max_seconds": "7"},
        {"where": "place=forest"},
        {"where": None},
    ],
)
def test_wrong_filters_are_named(filters):
    with pytest.raises(UserError, match=next(iter(filters))):
        Filters(**filters)


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("num", [1, 5, 100])
def test_clips_may_share_rows_and_rows_may_be_dead(num, cosine, monkeypatch):
    """Copies of a file share rows; rows of removed files belong to no clip."""
    monkeypatch.setattr("retrieval.search.local.clips.UNIT_ROWS", 7)
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((30, DIM)).astype(np.float32)
    rows = rng.choice(30, 40)
    assert len(set(rows)) < min(30, len(rows))
    clips = IndexedClips(vectors, rows=rows)
    selection = rng.random(40) < 0.6
    queries = unit(rng.standard_normal((3, DIM)).astype(np.float32))
    for allowed in (None, selection):
        found, scores = clips.nearest(queries, num, allowed, cosine)
        own = np.arange(40) if allowed is None else np.flatnonzero(allowed)
        numbers = (unit(vectors) if cosine else vectors)[rows] @ queries.T  # (40, 3)
        assert found.shape == scores.shape == (3, min(num, len(own)))
        for query in range(3):
            expected = np.sort(numbers[own, query])[::-1][: found.shape[1]]
            np.testing.assert_allclose(scores[query], expected, atol=1e-6)
            np.testing.assert_allclose(numbers[found[query], query], expected, atol=1e-6)
            assert len(set(found[query])) == found.shape[1] and set(found[query]) <= set(own)


def test_the_counter_of_changes_does_not_depend_on_the_writer(path):
    with sqlite3.connect(path / "index.sqlite") as database:
        query = "SELECT value FROM meta WHERE key = 'changes'"
        (before,) = database.execute(query).fetchone()
        database.execute("DELETE FROM files WHERE file LIKE 'b/%'")
        (after,) = database.execute(query).fetchone()
    assert int(after) - int(before) == sum(name.startswith("b/") for name in NAMES)
