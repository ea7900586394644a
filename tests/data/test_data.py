"""The Arrow cache's reader, training items, the order of batches, collation.

Letters: B clips, S samples.
"""

import io
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import soundfile
import torch

from retrieval.base.errors import UserError
from retrieval.data import (
    ClipSplit,
    EpochBatches,
    PairDataset,
    as_float,
    collate_clips,
    collate_pairs,
    make_clip_loader,
    make_loader,
    num_steps_per_epoch,
    open_cache,
    pairs,
    shared_memory_warnings,
    usable_workers,
)
from tests.conftest import PATIENCE, ROOT, SAMPLE_RATE, write_cache, write_rows

RNG = np.random.default_rng(0)
PCM = [RNG.integers(-32768, 32768, size, dtype=np.int16) for size in (5_000, 800, 1, 20_000)]
CAPTIONS = [["one", "two"], ["three"], [], ["four", "five", "six"]]


def encode(pcm: np.ndarray, codec: str) -> bytes:
    if codec == "pcm_s16le":
        return pcm.astype("<i2").tobytes()
    file = io.BytesIO()
    soundfile.write(file, pcm, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def write_clips(
    path: Path,
    codec: str = "pcm_s16le",
    captions: list[list[str]] = CAPTIONS,
    num_clips: int = len(PCM),
) -> Path:
    """A cache whose one split, development, holds PCM."""
    rows = [
        {
            "clip_id": f"development/{i}",
            "file_name": f"{i}.wav",
            "audio": encode(PCM[i], codec),
            "num_samples": len(PCM[i]),
            "captions": captions[i],
        }
        for i in range(num_clips)
    ]
    return write_rows(path, {"development": rows}, codec=codec)


@pytest.fixture(scope="module", params=["pcm_s16le", "flac"])
def clips(request, tmp_path_factory) -> ClipSplit:
    return open_cache(
        write_clips(tmp_path_factory.mktemp("clips") / "cache", request.param), SAMPLE_RATE
    ).split("development")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return write_clips(tmp_path / "cache")


def error_of(path: Path, split: str | None = None, sample_rate: int | None = SAMPLE_RATE) -> str:
    with pytest.raises(UserError) as caught:
        opened = open_cache(path, sample_rate)
        assert split is not None
        opened.split(split)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and len(message) < 500
    return message


def change_info(cache: Path, **changes) -> None:
    info = json.loads((cache / "cache.json").read_text())
    (cache / "cache.json").write_text(json.dumps(info | changes))


# --- an opened cache ---


def test_a_split_knows_its_clips(clips: ClipSplit):
    assert len(clips) == 4 and clips.name == "development"
    assert clips.clip_ids == [f"development/{i}" for i in range(4)]
    assert clips.file_names == [f"{i}.wav" for i in range(4)]
    assert clips.captions == CAPTIONS
    assert (
        clips.num_samples.tolist() == [len(pcm) for pcm in PCM]
        and clips.num_samples.dtype == np.int64
    )


def test_info_is_the_content_of_cache_json(cache: Path):
    opened = open_cache(cache)
    assert opened.info == json.loads((cache / "cache.json").read_text())
    assert (opened.sample_rate, opened.split_names) == (SAMPLE_RATE, ["development"])


def test_samples_are_exact(clips: ClipSplit):
    for i, pcm in enumerate(PCM):
        found = clips.read(i)
        assert found.dtype == np.float32
        assert np.array_equal(found.astype(np.float64) * 32768, pcm)


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 10), (100, 4_000), (4_990, None), (4_990, 9_000), (0, None), (17, 17)]
)
def test_a_part_of_a_clip_is_exact(clips: ClipSplit, start: int, stop: int | None):
    found = clips.read(0, start, stop)
    assert np.array_equal(found.astype(np.float64) * 32768, PCM[0][start:stop])


def test_what_is_read_may_be_changed_without_changing_the_cache(clips: ClipSplit):
    clips.read(1)[:] = 7
    assert np.abs(clips.read(1)).max() <= 1


def test_a_batch_is_made_of_what_is_stored(clips: ClipSplit):
    stored = clips.read_stored(1, 10, 500)
    assert (stored.dtype == np.int16 and not stored.flags.writeable) == (clips.codec == "pcm_s16le")
    for other in (clips.read_stored(0), clips.read(0)):
        batch, lengths = collate_clips([stored, other])
        assert lengths.tolist() == [490, len(PCM[0])]
        assert batch.dtype == (
            torch.int16 if stored.dtype == other.dtype == np.int16 else torch.float32
        )
        assert (
            np.array_equal(as_float(batch[0, :490].numpy()), clips.read(1, 10, 500))
            and not batch[0, 490:].any()
        )
        assert np.array_equal(as_float(batch[1].numpy()), clips.read(0))


def test_pcm_is_read_from_the_memory_map_without_a_copy(tmp_path: Path):
    write_cache(tmp_path / "cache", {"development": 2}, seconds=(30.0, 30.0))
    before = pyarrow.total_allocated_bytes()
    split = open_cache(tmp_path / "cache").split("development")
    split.read(1, 1_000, 2_000)
    # captions and names; a clip is 960,000 bytes
    assert pyarrow.total_allocated_bytes() - before < 10_000

    maps = [
        line.split()
        for line in Path("/proc/self/maps").read_text().splitlines()
        if str(tmp_path) in line
    ]
    address = split._audio[1].address
    assert any(
        int(first, 16) <= address < int(last, 16)
        for first, last in (entry[0].split("-") for entry in maps)
    )

    tracemalloc.start()
    split.read(1, 1_000, 2_000)
    part = tracemalloc.get_traced_memory()[1]
    split.read(1)
    whole = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert part < 20_000 < 480_000 * 4 < whole  # bytes; the whole clip is the negative control


def test_a_split_travels_to_another_process_as_a_path(tmp_path: Path):
    write_cache(tmp_path / "cache", {"development": 3}, seconds=(10.0, 10.0))
    split = open_cache(tmp_path / "cache").split("development")
    message = pickle.dumps(split)
    assert len(message) < 20_000 < 10 * SAMPLE_RATE * 2
    copy = pickle.loads(message)
    assert np.array_equal(copy.read(2), split.read(2)) and copy.captions == split.captions


# --- caches that cannot be read ---


def test_absent(tmp_path: Path):
    path = tmp_path / "absent"
    build, other = (
        "build it with the data_prep/build_*.py of its corpus (docs/corpora.md)",
        "name another one: data.cache=DIR for train.py",
    )
    assert (
        error_of(path) == f"cache {path} does not exist; {build}, or {other}, --cache DIR elsewhere"
    )


def test_half_built(tmp_path: Path):
    (tmp_path / "cache.partial").mkdir()
    message = error_of(tmp_path / "cache")
    assert (
        "is not a complete cache (no cache.json): the build did not finish" in message
        and "build it with" in message
    )


@pytest.mark.parametrize("folder", ["cache", ""])
def test_a_folder_without_cache_json(tmp_path: Path, folder: str):
    (tmp_path / folder).mkdir(exist_ok=True)
    assert "is not a complete cache (no cache.json)" in error_of(tmp_path / folder)


def test_an_empty_path_is_the_current_folder(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is not a complete cache"):
        open_cache("")


@pytest.mark.parametrize(
    "content",
    [
        *(
            "",
            "{",
            "[]",
            "3",
            '"text"',
            '{"schema": 1}',
            '{"schema": 1, "codec": "flac", "sample_rate": 1, "splits": []}',
        ),
        '{"schema": 1, "codec": ["flac"], "sample_rate": 1, "splits": {}}',
    ],
)
def test_cache_json_that_makes_no_sense(cache: Path, content: str):
    (cache / "cache.json").write_text(content)
    assert "cache.json cannot be understood" in error_of(cache)


def test_another_schema(cache: Path):
    change_info(cache, schema=2)
    assert f"cache {cache} has schema 2, this version reads schema 1; build it with" in error_of(
        cache
    )


def test_another_codec(cache: Path):
    change_info(cache, codec="opus")
    assert "codes audio as 'opus', this version reads pcm_s16le, flac, mp3" in error_of(cache)


def test_another_sample_rate(cache: Path):
    message = error_of(cache, sample_rate=32_000)
    assert (
        f"is sampled at {SAMPLE_RATE} Hz, data.sample_rate is 32000; set"
        f" data.sample_rate={SAMPLE_RATE}, or build again" in message
    )
    assert open_cache(cache).sample_rate == SAMPLE_RATE  # asked for without a rate, any will do


def test_a_split_that_was_not_built(cache: Path):
    message = error_of(cache, "evaluation")
    assert f"cache {cache} has no split 'evaluation', only: development;" in message


def damage_cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def damage_zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


@pytest.mark.parametrize("damage", [damage_cut, damage_zero, Path.unlink])
def test_a_damaged_arrow_file(cache: Path, damage):
    (arrow,) = (cache / "development").glob("*.arrow")
    damage(arrow)
    message = error_of(cache, "development")
    assert "split 'development'" in message and "is damaged" in message and "--overwrite" in message


def test_a_split_whose_folder_is_gone(cache: Path):
    change_info(cache, splits={"evaluation": {"num_clips": 3}})
    assert "split 'evaluation'" in error_of(cache, "evaluation")


def test_a_split_without_captions(tmp_path: Path):
    message = error_of(write_clips(tmp_path / "cache", captions=[[]] * 4), "development")
    assert "has no captions, so there is nothing to train on or to score" in message
    assert (
        "--queries FILE" in message
        and "python -m retrieval.zero_shot" in message
        and "\n" not in message
    )
    clips = open_cache(tmp_path / "cache").split("development", need_captions=False)
    assert clips.captions == [[]] * 4 and np.array_equal(clips.read(1) * 32768, PCM[1])


def test_a_clip_without_samples(tmp_path: Path):
    path = write_cache(tmp_path / "cache", {"development": 2}, seconds=(0.0, 0.00001))
    assert "clip '0.wav' in split 'development'" in error_of(
        path, "development"
    ) and "has no samples" in error_of(path, "development")


def test_an_empty_split(tmp_path: Path):
    assert "holds no clips" in error_of(write_clips(tmp_path / "cache", num_clips=0), "development")


# --- training items ---


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> ClipSplit:
    return open_cache(write_clips(tmp_path_factory.mktemp("pairs") / "cache"), SAMPLE_RATE).split(
        "development"
    )


def test_an_item_is_one_caption_of_a_clip(split: ClipSplit):
    pairs = PairDataset(split, max_samples=30_000, seed=1)
    assert [
        (item["clip"], item["caption"]) for item in (pairs[0, i] for i in range(len(pairs)))
    ] == [(clip, caption) for clip, captions in enumerate(CAPTIONS) for caption in captions]
    assert all(
        np.array_equal(as_float(item["waveform"]), split.read(item["clip"]))
        for item in (pairs[3, i] for i in range(len(pairs)))
    )


def start_of(pairs: PairDataset, epoch: int, index: int) -> int:
    """Where the crop of an item of clip 0 begins."""
    crop = pairs[epoch, index]["waveform"]
    (starts,) = np.nonzero(PCM[0] == crop[0])
    return next(
        int(start) for start in starts if np.array_equal(PCM[0][start : start + len(crop)], crop)
    )


def test_crops_depend_on_seed_epoch_and_item_alone(split: ClipSplit):
    pairs, again = (
        PairDataset(split, max_samples=400, seed=1),
        PairDataset(split, max_samples=400, seed=1),
    )
    forwards = [start_of(pairs, epoch, index) for epoch in range(6) for index in (0, 1)]
    np.random.seed(99)  # neither numpy's global state nor the order of asking matters
    backwards = [start_of(again, epoch, index) for epoch in reversed(range(6)) for index in (1, 0)]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) > 9
    assert forwards != [
        start_of(PairDataset(split, max_samples=400, seed=2), epoch, index)
        for epoch in range(6)
        for index in (0, 1)
    ]


def test_crops_reach_both_ends_and_not_beyond(split: ClipSplit):
    """As in the reference, whose 125 samples are cut to 120 at offsets 0 to 5, both included."""
    golden = np.load(Path(__file__).resolve().parents[1] / "golden" / "window.npz")[
        "fixed.crop_offsets_possible"
    ].tolist()
    pairs = PairDataset(split, max_samples=len(PCM[0]) - 5, seed=0)
    counts = Counter(start_of(pairs, epoch, 0) for epoch in range(200))
    assert sorted(counts) == golden
    assert min(counts.values()) > 15  # 33 each are expected


def test_clips_that_fit_are_not_cropped(split: ClipSplit):
    assert len(PairDataset(split, max_samples=len(PCM[0]), seed=0)[5, 0]["waveform"]) == len(PCM[0])


# --- the order of batches ---


def batches_of(
    epoch: int, step: int = 0, num_pairs: int = 23, batch_size: int = 5, seed: int = 3, **share
) -> list[list[tuple[int, int]]]:
    batches = EpochBatches(num_pairs, batch_size, seed, **share)
    batches.start(epoch, step)
    found = list(batches)
    assert len(found) == len(batches)
    return found


def test_every_pair_comes_once_an_epoch_and_the_last_batch_is_partial():
    batches = batches_of(epoch=2)
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
    assert len(batches) == num_steps_per_epoch(23, 5)
    assert sorted(index for batch in batches for _, index in batch) == list(range(23))
    assert {epoch for batch in batches for epoch, _ in batch} == {2}


def test_the_order_differs_between_epochs_and_seeds_and_comes_back():
    def order(batches):
        return [index for batch in batches for _, index in batch]

    assert order(batches_of(0)) == order(batches_of(0))
    orders = {tuple(order(batches_of(epoch, seed=seed))) for epoch in range(4) for seed in range(4)}
    assert len(orders) == 16
    assert tuple(range(23)) not in orders


@pytest.mark.parametrize("step", range(6))
def test_resuming_at_a_step_gives_the_rest_of_the_same_order(step: int):
    assert batches_of(epoch=1, step=step) == batches_of(epoch=1)[step:]


def test_one_sampler_serves_all_epochs():
    batches = EpochBatches(23, 5, seed=3)
    batches.start(4, 2)
    assert list(batches) == batches_of(4, 2)
    batches.start(5)
    assert list(batches) == batches_of(5)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_pairs", [23, 20])
def test_processes_share_the_same_batches(world_size: int, num_pairs: int):
    whole = batches_of(epoch=1, num_pairs=num_pairs)
    shares = [
        batches_of(epoch=1, num_pairs=num_pairs, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert {len(share) for share in shares} == {len(whole)}
    for step, batch in enumerate(whole):
        together = [pair for share in shares for pair in share[step]]
        assert sorted(together) == sorted(batch)
        sizes = [len(share[step]) for share in shares]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("num_pairs", "batch_size", "num_steps"),
    [(19_195, 16, 1_200), (32, 16, 2), (33, 16, 3), (2, 16, 1)],
)
def test_steps_of_an_epoch(num_pairs: int, batch_size: int, num_steps: int):
    assert (
        num_steps_per_epoch(num_pairs, batch_size)
        == num_steps
        == len(EpochBatches(num_pairs, batch_size, seed=0))
    )


# --- collation ---


def test_clips_are_padded_with_zeros_to_the_longest():
    clips = [
        np.array([1, 2, 3], np.float32),
        np.array([4], np.float32),
        np.array([5, 6], np.float32),
    ]
    waveform, lengths = collate_clips(clips)
    assert (
        waveform.tolist() == [[1, 2, 3], [4, 0, 0], [5, 6, 0]] and waveform.dtype == torch.float32
    )
    assert lengths.tolist() == [3, 1, 2] and lengths.dtype == torch.int64


def test_a_batch_of_pairs(split: ClipSplit):
    pairs = PairDataset(split, max_samples=1_000, seed=0)
    items = [pairs[0, i] for i in (5, 0, 2, 1)]
    batch = collate_pairs(items)
    assert batch["waveform"].shape == (4, 1_000) and batch["lengths"].tolist() == [
        1_000,
        1_000,
        800,
        1_000,
    ]
    assert batch["captions"] == ["six", "one", "three", "two"]
    # the same clip twice: its captions are each other's positives
    assert batch["clips"].tolist() == [3, 0, 1, 0]
    for row, item in zip(batch["waveform"], items, strict=True):
        assert np.array_equal(row[: len(item["waveform"])], item["waveform"])


def test_no_more_loader_processes_than_cores():
    assert usable_workers(0) == 0
    assert usable_workers(1) == 1
    assert usable_workers(10**6) < 10**6


# --- loader processes that fail ---


class DyingSplit:
    """A clip, and another one at which the process that reads it gets a signal."""

    num_samples = np.array([10, 10])

    def __init__(self, signum: int):
        self.signum = signum

    def read_stored(self, index: int, start: int, stop: int) -> np.ndarray:
        if index == 1:
            os.kill(os.getpid(), self.signum)
        return np.zeros(10, np.int16)


def test_a_damaged_clip_is_one_line_also_from_a_loader_process(tmp_path):
    path = write_cache(tmp_path / "cache", {"development": 3})
    split = open_cache(path).split("development")
    split.num_samples[1] += 5
    for num_workers in (0, 1):
        with pytest.raises(UserError) as caught:
            list(make_clip_loader(split, range(3), 10**6, 1, num_workers))
        assert str(caught.value).startswith(
            "clip '1.wav' in split 'development'"
        ) and "\n" not in str(caught.value)


def test_a_loader_process_that_dies_is_one_line():
    """Of a bus error, if shared memory is allocated at first use, or killed if memory is full."""
    for signum, named in (
        (signal.SIGBUS, "--shm-size"),
        (signal.SIGKILL, "a loader process has died.*lower data.num_workers"),
    ):
        with pytest.raises(UserError, match=named) as caught:
            list(make_clip_loader(DyingSplit(signum), range(2), 10, 1, 1))
        assert "\n" not in str(caught.value) and "data.num_workers" in str(caught.value)
        assert ("shm" in str(caught.value)) == (signum == signal.SIGBUS)


SMALL_SHARED_MEMORY = """
import sys
import numpy as np
from retrieval.data import make_clip_loader
from retrieval.base.command import run_main

class Split:
    num_samples = np.full(8, 10**6)
    def read_stored(self, index, start, stop):
        return np.full(int(sys.argv[1]), index, np.int16)

def main():
    for waveform, lengths in make_clip_loader(Split(), range(8), 10**6, 2, 2):
        print(waveform.shape[1], waveform[0, 0].item(), lengths[0].item(), flush=True)

run_main(main)
"""


@pytest.mark.parametrize("num_samples", [10**6, 10_000], ids=["too large", "small enough"])
def test_a_small_dev_shm_is_one_line(tmp_path, num_samples):
    """1 MB, as Docker's 64 MB for real batches: 4 MB do not fit, and nothing waits forever."""
    (tmp_path / "load.py").write_text(SMALL_SHARED_MEMORY)
    command = (
        f"mount -t tmpfs -o size=1m tmpfs /dev/shm && exec {sys.executable} {tmp_path}/load.py"
        f" {num_samples}"
    )
    if subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/dev/shm"],
        capture_output=True,
    ).returncode:
        pytest.skip("no permission to mount another /dev/shm")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", command],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    if num_samples == 10_000:  # negative control
        assert ended.returncode == 0 and ended.stdout.splitlines() == [
            f"10000 {clip} 10000" for clip in (0, 2, 4, 6)
        ], ended
    else:
        assert (
            ended.returncode == 2
            and "--shm-size" in ended.stderr
            and "data.num_workers=0" in ended.stderr
        )
        assert "/dev/shm" in ended.stderr and len(ended.stderr.splitlines()) == 1, ended.stderr


def test_batches_of_loader_processes_are_those_of_one(tmp_path):
    """In shared memory from the start, for float32 and PCM, clips of one length and of several."""
    split = open_cache(write_cache(tmp_path / "cache", {"development": 5})).split("development")
    for mix in (0.0, 1.0):
        pairs = PairDataset(split, 16_000, seed=0, mix_probability=mix)
        found = [
            list(make_loader(pairs, EpochBatches(10, 4, seed=1), num_workers))
            for num_workers in (0, 1)
        ]
        for own, other in zip(*found, strict=True):
            assert own["captions"] == other["captions"]
            for name in ("waveform", "lengths", "clips", "pairs"):
                assert own[name].dtype == other[name].dtype and torch.equal(own[name], other[name])
                assert other[name].is_shared() and not own[name].is_shared()


def test_too_little_shared_memory_for_full_batches_is_said_before(tmp_path, monkeypatch):
    split = open_cache(
        write_cache(tmp_path / "cache", {"development": 3}, seconds=(1.0, 1.0))
    ).split("development")
    pairs, free = (
        PairDataset(split, 10**6, seed=0),
        shutil.disk_usage(tmp_path)._replace(free=3 * 4 * 16_000 * 2),
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: free)
    assert shared_memory_warnings(pairs, batch_size=4, num_workers=1, num_processes=1) == []
    assert shared_memory_warnings(pairs, batch_size=9, num_workers=0, num_processes=1) == []
    for batch_size, num_processes in ((5, 1), (4, 2)):
        (warning,) = shared_memory_warnings(pairs, batch_size, 1, num_processes)
        assert "--shm-size" in warning and "data.num_workers=0" in warning


# --- signals ---


def loader_process(ready: Event) -> None:
    pairs._leave_signals_to_main_process(0)
    ready.set()
    time.sleep(2 * PATIENCE)


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="needs sigtimedwait")
@pytest.mark.parametrize("of_group", [False, True], ids=["at its end", "after one to the group"])
def test_a_loader_process_ends_when_its_parent_says_so(of_group: bool, monkeypatch):
    monkeypatch.setattr(pairs, "GRACE_SECONDS", 10 * PATIENCE)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=loader_process, args=(ready,), daemon=True)
    process.start()
    try:
        assert ready.wait(PATIENCE)
        if of_group:
            for _ in range(2):  # torch's launcher sends one of its own
                subprocess.run(["kill", "-TERM", str(process.pid)], check=True)
                process.join(0.5)
                assert process.is_alive()
        os.kill(process.pid, signal.SIGINT)
        process.terminate()
        process.join(PATIENCE)
        assert process.exitcode == 0
    finally:
        process.kill()
