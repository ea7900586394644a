"""Output sizes that an index keeps: the numbers, older indexes, and older programs beside it."""

import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval.models.dual_encoder import DualEncoder
from retrieval.search import AudioIndex
from retrieval.search.local.writer import IndexWriter, locked
from retrieval.search.sound import Found
from retrieval.search.two_stage import OutputSizes

QUERY = "a low tone"


def heard(index: AudioIndex) -> list[np.ndarray]:
    """Return each excerpt's contributions for a sentence."""
    with torch.no_grad():
        (text,) = index.model.encode_text([QUERY])
    return [own.contributions for own in index._two_stage.heard(text, range(len(index.store)))]


def computed(index: AudioIndex) -> int:
    """Return the number of excerpts whose sizes had to be computed for queries."""
    return len(index._two_stage._sizes)


def forget_sizes(path: Path) -> None:
    """Make an index as an older program wrote it."""
    (path / "sizes-0.f32").unlink()
    with sqlite3.connect(path / "index.sqlite") as database:
        database.execute("DELETE FROM meta WHERE key = 'sizes'")
    database.close()


@pytest.mark.parametrize(
    "options", [{}, {"frames": "int8", "frames_per_second": 5.0}], ids=["float16", "int8, averages"]
)
def test_the_numbers_are_those_of_each_kept_frame(models, sounds, tmp_path, options):
    index = AudioIndex.build(sounds, models / "tap", tmp_path / "index", **options)
    tap = DualEncoder.from_pretrained(models / "tap").pooling
    with torch.no_grad():
        for clip in range(len(index.store)):
            for frame, (deviation, length) in zip(
                index.store.frames(clip).float(), index.store.sizes(clip), strict=True
            ):  # by the unfolded formula
                value = tap.output(tap.value(frame)).double()
                assert deviation.item() == pytest.approx(value.numpy().std(), rel=1e-3)
                output = (value - value.mean()) / value.std(correction=0)
                output = output * tap.norm.weight + tap.norm.bias
                assert length.item() == pytest.approx(output.norm().item(), rel=1e-3)
    contributions = heard(index)
    assert computed(index) == 0
    index.store._sizes = index.store._sizes[:0]  # not known: they are computed
    for own, same in zip(heard(index), contributions, strict=True):
        np.testing.assert_allclose(own, same, atol=1e-6)
    assert computed(index) == len(index.store)
    # negative control: the numbers are used
    other = AudioIndex.open(tmp_path / "index")
    other.store._sizes[:] *= 2
    assert np.abs(heard(other)[0] - contributions[0]).max() > 1e-3


def test_an_older_index_opens_and_goes_on(models, sounds, tmp_path):
    recordings, path = tmp_path / "recordings", tmp_path / "index"
    shutil.copytree(sounds, recordings)
    late = recordings / "below"
    shutil.move(late, tmp_path / "late")
    expected = heard(AudioIndex.build(recordings, models / "tap", path))
    num_before = len(expected)
    forget_sizes(path)
    index = AudioIndex.open(path)
    for own, same in zip(heard(index), expected, strict=True):
        np.testing.assert_allclose(own, same, atol=1e-6)
    assert computed(index) == num_before
    shutil.move(tmp_path / "late", late)
    index.add()
    known = [index.store.sizes(clip) is not None for clip in range(len(index.store))]
    assert sum(known) == len(known) - num_before > 0  # those that were added
    contributions = heard(index)
    assert computed(index) == num_before
    index.store._sizes = index.store._sizes[:0]
    for own, same in zip(heard(index), contributions, strict=True):
        np.testing.assert_allclose(own, same, atol=1e-6)


def test_an_older_program_may_write_meanwhile(indexed, models, tmp_path):
    """It appends frames without sizes, and copies an index to another generation without them."""
    path = tmp_path / "index"
    shutil.copytree(indexed, path)
    model = DualEncoder.from_pretrained(models / "tap")
    rng, frames = np.random.default_rng(3), []

    def append(writer: IndexWriter, name: str, sizes: OutputSizes | None) -> None:
        keys = rng.standard_normal((4, model.dim), dtype=np.float32)
        frames.append(keys)
        (place,) = writer.append(np.ones((1, model.dim), np.float32), [keys], sizes)
        writer.add_file(Found(name, 1, 1), name, 1.0, [(0.0, 1.0, *place)])

    own_sizes = OutputSizes.of(model.pooling)
    meta = AudioIndex.open(path).store.meta
    for name, sizes in (("y older", None), ("z newer", own_sizes)):
        with locked(path), IndexWriter.opened(path, meta, overwrite=False) as writer:
            append(writer, name, sizes)
            kept = writer.meta.sizes if sizes is None else None
            writer.commit()
            if sizes is None:
                assert writer.meta.sizes == kept  # as written by an older program
        if sizes is None:  # killed after it has written, before it has confirmed
            with open(path / "sizes-0.f32", "ab") as file:
                file.write(np.full(64, 7, np.float32).tobytes())
    store = AudioIndex.open(path).store
    (older,), (newer,) = store.clips_of("y older"), store.clips_of("z newer")
    assert store.sizes(older) is None
    np.testing.assert_allclose(
        store.sizes(newer), own_sizes(store.frames(newer).float()), rtol=1e-5
    )
    assert all(store.sizes(clip) is not None for clip in range(len(store)) if clip != older)
    with sqlite3.connect(path / "index.sqlite") as database:
        database.execute("UPDATE meta SET value = '1' WHERE key = 'generation'")
    database.close()
    for name in ("frames-0.f16", "vectors-0.f32"):
        shutil.move(path / name, path / name.replace("-0", "-1"))
    store = AudioIndex.open(path).store
    assert all(store.sizes(clip) is None for clip in range(len(store)))


def test_a_short_file_of_sizes_is_not_believed(indexed, tmp_path):
    path = tmp_path / "index"
    shutil.copytree(indexed, path)
    expected = heard(AudioIndex.open(path))
    with open(path / "sizes-0.f32", "rb+") as file:
        file.truncate(8)
    index = AudioIndex.open(path)
    for own, same in zip(heard(index), expected, strict=True):
        np.testing.assert_allclose(own, same, atol=1e-6)
    assert computed(index) == len(index.store)
