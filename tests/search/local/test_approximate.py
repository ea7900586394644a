"""Approximate search against exact search, its gate, and all that can happen to its file."""

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest

from retrieval.base.errors import UserError
from retrieval.search.filters import Filters
from retrieval.search.local import approximate, writer
from retrieval.search.local.approximate import Approximate, Facts, Unusable, build
from retrieval.search.local.exact import exact
from retrieval.search.local.storage import read_index_meta
from retrieval.search.local.store import LocalStore
from retrieval.search.local.writer import IndexWriter, locked
from retrieval.search.sound import Found
from tests.search.local.test_catalogue import make_meta

ROWS, DIM, NEAREST, PATIENCE = 12_000, 128, 20, 60
ROWS_OF_FILE = 100
SMALL = {  # a hundredth of the real sizes
    "NEAREST": NEAREST,
    "APPROXIMATE_FROM": 1000,
    "MOST_MISSING": 150,
    "FEW_ROWS": 100,
    "LISTS": 8,
    "ROWS_AT_ONCE": 5000,
}


def small(patch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        patch.setattr(approximate, name, value)


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch):
    small(monkeypatch)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def anisotropic(num: int, seed: int) -> np.ndarray:
    """Unit vectors (num, D) with few large numbers and a common mean, as models make them."""
    sizes = np.arange(1, DIM + 1) ** -0.8
    return unit((np.random.default_rng(seed).standard_normal((num, DIM)) + 0.5) * sizes)


def isotropic(num: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((num, DIM)))


VECTORS, QUERIES = anisotropic(ROWS, 0), anisotropic(50, 1)


def recall(rows: np.ndarray, wanted: np.ndarray) -> float:
    """Share of the wanted rows (n, K) that are in rows (n, K)."""
    shares = [np.isin(own, got).mean() for own, got in zip(wanted, rows, strict=True)]
    return float(np.mean(shares))


def loaded(path: Path, facts: Facts, vectors: np.ndarray = VECTORS) -> Approximate:
    return Approximate.load(path.with_name(facts.file), facts, vectors)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Facts]:
    path = tmp_path_factory.mktemp("made") / "approximate-0.faiss"
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        return path, build(VECTORS, None, QUERIES, path)


@pytest.fixture
def number_of_approximate(monkeypatch) -> list[int]:
    """Grows with each search in the bits; empty if searches were exact."""
    calls, original = [], Approximate._candidates

    def counted(self, queries, *arguments):
        calls.append(len(queries))
        return original(self, queries, *arguments)

    monkeypatch.setattr(Approximate, "_candidates", counted)
    return calls


# --- the search ---


def test_finds_nearly_all_with_exact_scores(made, number_of_approximate):
    path, facts = made
    assert facts.kind == "RaBitQ" and facts.candidates_factor == 10 and facts.rows == ROWS
    assert path.stat().st_size == facts.bytes < VECTORS.nbytes / 10
    queries = anisotropic(40, 2)
    rows, scores = loaded(*made).search(queries, NEAREST)
    assert number_of_approximate
    wanted, wanted_scores = exact(VECTORS, queries, NEAREST)
    assert rows.dtype == np.int64 and scores.dtype == np.float32
    assert recall(rows, wanted) >= 0.98
    assert facts.recall == pytest.approx(recall(rows, wanted), abs=0.02)
    for number in range(len(queries)):
        is_common = np.isin(rows[number], wanted[number])
        common, places = rows[number][is_common], scores[number][is_common]
        is_found = np.isin(wanted[number], common)
        # the flat search's order and bits
        assert np.array_equal(common, wanted[number][is_found])
        assert np.array_equal(places, wanted_scores[number][is_found])


def test_one_query_is_as_many(made):
    opened, queries = loaded(*made), anisotropic(5, 2)
    together = opened.search(queries, NEAREST)
    for number in range(5):
        alone = opened.search(queries[number : number + 1], NEAREST)
        assert np.array_equal(alone[0][0], together[0][number])
        assert np.array_equal(alone[1][0], together[1][number])


@pytest.mark.parametrize(("share", "is_exact"), [(0.3, False), (0.05, True), (0.001, True)])
def test_filters(made, share, is_exact, number_of_approximate, monkeypatch):
    allowed = np.random.default_rng(3).random(ROWS) < share
    if share == 0.05:  # at the real sizes there are enough rows for a shortlist
        monkeypatch.setattr(approximate, "LARGEST_SHARE", 0.5)
        is_exact = False
    rows, scores = loaded(*made).search(QUERIES, NEAREST, allowed)
    assert is_exact == (not number_of_approximate)
    wanted, wanted_scores = exact(VECTORS, QUERIES, NEAREST, allowed)
    assert allowed[rows].all() and rows.shape == wanted.shape
    assert recall(rows, wanted) >= (1.0 if is_exact else 0.98)
    if is_exact:
        assert np.array_equal(rows, wanted) and np.array_equal(scores, wanted_scores)


def test_no_row_or_few_rows_allowed(made):
    allowed = np.zeros(ROWS, dtype=bool)
    assert loaded(*made).search(QUERIES, 5, allowed)[0].shape == (50, 0)
    allowed[[7, 9]] = True
    rows, _ = loaded(*made).search(QUERIES, 5, allowed)
    assert rows.shape == (50, 2) and set(rows.flat) == {7, 9}


def test_as_many_rows_as_there_are(made):
    rows, _ = loaded(*made).search(QUERIES[:1], ROWS)
    assert sorted(rows[0]) == list(range(ROWS))


def test_equal_vectors_and_zeros(tmp_path):
    vectors = VECTORS.copy()
    vectors[5:25], vectors[30] = vectors[3], 0.0
    facts = build(vectors, None, QUERIES, tmp_path / "file")
    rows, scores = loaded(tmp_path / "file", facts, vectors).search(vectors[3:4], NEAREST)
    assert set(rows[0]) <= {3, *range(5, 25)} and np.unique(scores).size == 1


def test_a_query_of_nan_gives_nan(made):
    rows, scores = loaded(*made).search(np.full((1, DIM), np.nan, np.float32), 5)
    assert (rows == -1).all() and np.isnan(scores).all()


def test_rows_are_read_from_the_file_not_the_map(made, tmp_path):
    path, facts = made
    VECTORS.tofile(tmp_path / "vectors")
    mapped = np.memmap(tmp_path / "vectors", np.float32, "c", shape=VECTORS.shape)
    opened, expected = loaded(path, facts, mapped), loaded(*made)
    mapped[:] = 0.0  # in memory only
    found, wanted = (one.search(QUERIES, 5) for one in (opened, expected))
    assert np.array_equal(found[0], wanted[0])
    is_from_file = opened._file is not None  # not on Windows
    assert np.array_equal(found[1], wanted[1]) == is_from_file
    num_open = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    del opened
    if num_open:
        assert len(os.listdir("/proc/self/fd")) == num_open - 1


def test_vectors_that_are_removed_meanwhile(made, tmp_path):
    path, facts = made
    VECTORS.tofile(tmp_path / "vectors")
    mapped = np.memmap(tmp_path / "vectors", np.float32, "c", shape=VECTORS.shape)
    (tmp_path / "vectors").unlink()
    with pytest.raises(Unusable, match="vectors"):
        loaded(path, facts, mapped)


# --- the gate ---


def test_isotropic_vectors_fail_the_bits(tmp_path):
    """The negative control: their neighbours are hardly nearer than other rows."""
    vectors, queries = isotropic(ROWS, 0), isotropic(50, 1)
    facts = build(vectors, None, queries, tmp_path / "file")
    assert facts.kind == "SQ8" and facts.recall >= 0.98
    assert facts.bytes > vectors.nbytes / 5
    rows, scores = loaded(tmp_path / "file", facts, vectors).search(queries, NEAREST)
    wanted, wanted_scores = exact(vectors, queries, NEAREST)
    assert recall(rows, wanted) >= 0.98
    assert set(scores[rows == wanted]) <= set(wanted_scores.flat)


def test_tries_are_taken_in_order(tmp_path, monkeypatch):
    vectors, queries, found = isotropic(ROWS, 0), isotropic(50, 1), {}
    for factor in (10, 20, 50):
        monkeypatch.setattr(approximate, "TRIES", (("RaBitQ", factor),))
        found[factor] = build(vectors, None, queries, tmp_path / "file")
    assert [facts.kind for facts in found.values()] == 3 * ["flat"]
    assert found[10].recall < found[20].recall < found[50].recall
    assert list(tmp_path.iterdir()) == []  # flat has no file
    monkeypatch.undo()
    small(monkeypatch)
    monkeypatch.setattr(approximate, "LEAST_RECALL", (found[10].recall + found[20].recall) / 2)
    facts = build(vectors, None, queries, tmp_path / "file")
    assert (facts.kind, facts.candidates_factor) == ("RaBitQ", 20)


def test_the_gate_looks_at_live_rows_only(tmp_path):
    """Rows of removed files, nearest to all queries, would hide that others are not found."""
    vectors, live = isotropic(ROWS, 0), np.ones(ROWS, dtype=bool)
    queries = isotropic(50, 1)
    live[:1000] = False
    vectors[:1000] = np.repeat(queries, 20, axis=0)
    facts = build(vectors, live, queries, tmp_path / "file")
    assert facts.kind == "SQ8"


def test_the_facts_say_which_and_how_good(made):
    _, facts = made
    assert "RaBitQ" in str(facts) and f"{100 * facts.recall:.1f} %" in str(facts)
    flat = facts.model_copy(update={"kind": "flat", "recall": 0.5})
    assert "flat" in str(flat) and "50.0 %" in str(flat)


# --- the file ---


def test_rows_that_were_added_later_are_found(made):
    path, facts = made
    more = np.concatenate([VECTORS, anisotropic(300, 5)])
    opened = loaded(path, facts, more)
    rows, scores = opened.search(more[ROWS:][:50], 3)
    assert np.array_equal(rows[:, 0], np.arange(ROWS, ROWS + 50))
    saved = opened.save(path.with_name("approximate-1.faiss"))
    assert saved.rows == ROWS + 300 and saved.rows_when_trained == ROWS
    again, _ = loaded(path, saved, more).search(more[ROWS:][:50], 3)
    assert np.array_equal(again, rows)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flipped(path: Path) -> None:
    with open(path, "rb+") as file:
        file.seek(path.stat().st_size // 3)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def removed(path: Path) -> None:
    path.unlink()


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replaced_by_another(path: Path) -> None:
    index = faiss.IndexFlatIP(3)
    faiss.write_index(index, str(path))


DAMAGES = [truncated, flipped, emptied, removed, replaced_by_a_folder, replaced_by_another]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_never_given_to_faiss(made, tmp_path, damage, monkeypatch):
    path, facts = made
    copy = Path(shutil.copy(path, tmp_path))
    damage(copy)
    monkeypatch.setattr(faiss, "read_index", lambda *_: pytest.fail("read"))
    with pytest.raises(Unusable, match=r"approximate-0\.faiss"):
        loaded(copy, facts)


def test_a_file_of_other_vectors(made):
    path, facts = made
    for vectors in (VECTORS[:100], VECTORS[:, :64].copy()):
        with pytest.raises(Unusable, match="other vectors"):
            loaded(path, facts, vectors)


# --- within an index ---


def add_files(index: IndexWriter, numbers: range, seed: int) -> None:
    vectors = anisotropic(len(numbers) * ROWS_OF_FILE, seed).reshape(len(numbers), -1, DIM)
    for number, own in zip(numbers, vectors, strict=True):
        places = index.append(own, None)
        excerpts = [(float(start), start + 2.0, *place) for start, place in enumerate(places)]
        found = Found(f"{number % 10}/{number:04}.wav", 1, 1)
        index.add_file(found, str(number), ROWS_OF_FILE + 1.0, excerpts)


def update(path: Path, change: Callable[[IndexWriter], None] = lambda index: None) -> None:
    """Change an index as an update of its folder does."""
    meta = make_meta(path).model_copy(update={"dim": DIM})
    with locked(path), IndexWriter.opened(path, meta, overwrite=False) as index:
        change(index)
        index.commit(complete=True)
        index.finish(lambda: QUERIES)


def write(path: Path) -> None:
    update(path, lambda index: add_files(index, range(40), 0))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("written") / "index"
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        write(path)
    return path


@pytest.fixture
def path(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "index"))


def files_of(path: Path) -> list[str]:
    return sorted(file.name for file in path.glob("*approximate*"))


def check(path: Path, is_approximate: bool = True, filters: Filters | None = None) -> LocalStore:
    """Check that an index finds what exact search in its vectors finds."""
    store = LocalStore(path)
    assert (store._approximate is not None) == is_approximate
    selection = store.select(filters or Filters())
    clips, scores = store.nearest(QUERIES, NEAREST, selection)
    allowed = np.ones(len(store), dtype=bool) if selection is None else selection
    wanted, _ = exact(store.vectors(range(len(store))), QUERIES, NEAREST, allowed)
    assert allowed[clips].all() and recall(clips, wanted) >= (0.98 if is_approximate else 1.0)
    assert np.allclose(
        scores,
        np.einsum("nd,nkd->nk", QUERIES, store.vectors(clips.flat).reshape(*clips.shape, DIM)),
        atol=1e-5,
    )
    facts = store.meta.approximate
    assert files_of(path) == ([facts.file] if facts and facts.file else [])
    return store


def test_a_large_index_has_a_file(path, number_of_approximate, capfd):
    store = check(path)
    assert number_of_approximate and store.meta.approximate.kind == "RaBitQ"
    check(path, filters=Filters(within="3"))
    facts = read_index_meta(path).approximate
    update(path)
    assert read_index_meta(path).approximate == facts  # nothing changed: not made again
    assert capfd.readouterr().err == ""


def test_a_small_index_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(approximate, "APPROXIMATE_FROM", ROWS)
    write(tmp_path / "index")
    assert check(tmp_path / "index", is_approximate=False).meta.approximate is None


def test_few_new_rows_are_added_by_those_who_open_it(path):
    facts = read_index_meta(path).approximate
    update(path, lambda index: add_files(index, range(40, 41), 7))
    store = check(path)
    assert store.meta.approximate == facts and len(store) == facts.rows + ROWS_OF_FILE
    update(path, lambda index: add_files(index, range(41, 43), 8))
    store = check(path)
    assert store.meta.approximate.rows == len(store) == facts.rows + 3 * ROWS_OF_FILE
    assert store.meta.approximate.rows_when_trained == facts.rows


def test_at_twice_the_rows_it_is_made_again(path):
    update(path, lambda index: add_files(index, range(40, 80), 7))
    assert check(path).meta.approximate.rows_when_trained == 8000


def test_removed_rows_are_not_found(path):
    facts = read_index_meta(path).approximate
    update(path, lambda index: [index.remove(f"{n % 10}/{n:04}.wav") for n in range(15)])
    store = check(path)
    assert store.meta.approximate == facts and store.num_files == 25


def test_a_copy_without_removed_rows_has_its_own(path):
    update(path, lambda index: [index.remove(f"{n % 10}/{n:04}.wav") for n in range(25)])
    store = check(path)
    assert store.meta.generation == store.meta.approximate.generation == 1
    assert store.meta.approximate.rows == 1500
    update(path, lambda index: [index.remove(f"{n % 10}/{n:04}.wav") for n in range(25, 35)])
    assert check(path, is_approximate=False).meta.approximate is None  # it is small now


def test_vectors_that_an_older_program_copied(path, capfd):
    """It leaves a record of the generation before, which is not used."""
    meta = make_meta(path)
    with locked(path), IndexWriter.opened(path, meta, overwrite=False) as index:
        facts = index.meta.approximate
        for number in range(25):
            index.remove(f"{number % 10}/{number:04}.wav")
        index.commit()
        index._copy_live_rows()
        index.commit(approximate=facts)
    store = LocalStore(path)
    assert store._approximate is None and len(store) == 1500
    assert capfd.readouterr().err == ""
    update(path)
    assert check(path).meta.approximate.generation == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_makes_searches_exact_until_the_next_update(path, damage, capfd):
    wanted = LocalStore(path).nearest(QUERIES, NEAREST)
    file = path / read_index_meta(path).approximate.file
    damage(file)
    store = LocalStore(path)
    said = capfd.readouterr().err
    assert store._approximate is None and said.count("\n") == 1 and file.name in said
    assert recall(wanted[0], store.nearest(QUERIES, NEAREST)[0]) >= 0.98
    update(path)
    assert file.name in capfd.readouterr().err
    if damage is replaced_by_a_folder:
        file.rmdir()
    check(path)


def test_vectors_for_which_no_file_is_good_enough(path, monkeypatch):
    update(path, lambda index: index.commit(approximate=None))
    monkeypatch.setattr(approximate, "LEAST_RECALL", 1.1)
    update(path, lambda index: index.commit(approximate=None))
    store = check(path, is_approximate=False)
    assert store.meta.approximate.kind == "flat" and 0.9 < store.meta.approximate.recall <= 1.0
    monkeypatch.setattr(approximate, "build", lambda *_: pytest.fail("tried again"))
    update(path)


def test_a_full_disk_leaves_the_index_as_it_was(path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(faiss, "write_index", full)
    with pytest.raises(UserError, match="No space left"):
        update(path, lambda index: add_files(index, range(40, 80), 7))
    monkeypatch.undo()
    small(monkeypatch)
    assert len(check(path)) == 8000


def die(path: Path, owner: object, name: str, count: int) -> None:
    """Double an index, and kill this process at the `count`-th call of a function."""
    faiss.omp_set_num_threads(1)  # threads of the parent do not exist here
    original, calls = getattr(owner, name), []

    def killed(*args):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    setattr(owner, name, killed)
    update(path, lambda index: add_files(index, range(40, 80), 7))


@pytest.mark.parametrize(
    ("owner", "name", "count"),
    [
        (approximate, "_trained", 1),
        (approximate, "_recall", 1),
        (approximate, "sha256_of", 1),
        (os, "replace", 1),
        (writer, "write_meta", 2),
        (writer.IndexWriter, "_remove_other_generations", 2),
    ],
    ids=["training", "gate", "written", "renaming", "committing", "committed"],
)
def test_a_kill_leaves_a_good_index(path, owner, name, count):
    arguments = (path, owner, name, count)
    process = multiprocessing.get_context("fork").Process(target=die, args=arguments)
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    store = LocalStore(path)
    assert store._approximate is not None
    rows, _ = store.nearest(QUERIES, NEAREST)
    wanted, _ = exact(store.vectors(range(len(store))), QUERIES, NEAREST)
    assert recall(rows, wanted) >= 0.98
    update(path)
    store = check(path)
    assert store.meta.approximate.rows_when_trained == len(store) == 8000


def test_readers_beside_a_writer_that_makes_it_again(path, monkeypatch, capfd):
    """Whatever moment they open it at, they find all, and none says that it is damaged."""
    opened, failures, is_over = [], [], threading.Event()

    def read() -> None:
        try:
            while not is_over.is_set():
                store = LocalStore(path)
                opened.append(store._approximate is not None)
                clips, _ = store.nearest(QUERIES[:2], NEAREST)
                wanted, _ = exact(store.vectors(range(len(store))), QUERIES[:2], NEAREST)
                assert recall(clips, wanted) >= 0.9
        except BaseException as error:
            failures.append(error)

    monkeypatch.setattr(approximate, "MOST_MISSING", 0)
    thread = threading.Thread(target=read)
    thread.start()
    try:
        for number in range(40, 52):
            one = range(number, number + 1)
            update(path, lambda index, one=one: add_files(index, one, one.start))
    finally:
        is_over.set()
        thread.join(PATIENCE)
    assert not failures and opened and all(opened)
    assert capfd.readouterr().err == ""
    check(path)
