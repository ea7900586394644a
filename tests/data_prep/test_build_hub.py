"""data_prep/build_hub.py: every format that `datasets` writes, splits, columns, bad input."""

import bz2
import contextlib
import csv
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from data_prep import build_hub
from data_prep.cache import stream
from data_prep.corpora.hub_dataset import open_dataset
from retrieval.data import open_cache
from tests.conftest import ROOT, wait_for
from tests.corpora import assert_refused, read_info, reasons, run_build, write_csv
from tests.hub_stub import running_hub

RATE = 16_000
SOUND = datasets.Audio(decode=False)


def samples_of(number: int) -> np.ndarray:
    """int16 (S,), another length and noise for each number."""
    rng = np.random.default_rng(number)
    return rng.integers(-3_000, 3_000, 800 + 10 * number, dtype=np.int16)


def wav(number: int, ending: str = "wav") -> bytes:
    target = io.BytesIO()
    soundfile.write(target, samples_of(number), RATE, format=ending.upper(), subtype="PCM_16")
    return target.getvalue()


def rows_of(numbers, **columns) -> list[dict]:
    """Rows of a dataset: a sound, a caption, and further columns by number."""
    return [
        {
            "audio": {"bytes": wav(number), "path": f"{number}.wav"},
            "caption": f"Caption of {number}.",
            **{name: column(number) for name, column in columns.items()},
        }
        for number in numbers
    ]


def dataset_of(rows: list[dict]) -> datasets.Dataset:
    made = datasets.Dataset.from_list(rows)
    sound = made.features.get("audio")
    is_sound = isinstance(sound, dict) and "bytes" in sound
    return made.cast_column("audio", SOUND) if is_sound else made


def write_parquet(path: Path, rows: list[dict], **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset_of(rows).to_parquet(str(path), **options)
    return path


def write_paths(path: Path, rows: list[dict]) -> Path:
    """Parquet as other tools write it: `to_parquet` would look for files that rows name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(dataset_of(rows).data.table, path)
    return path


def write_folder(folder: Path, numbers, table: str = "metadata.jsonl") -> Path:
    """An audiofolder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"file_name": f"{number}.wav", "caption": f"Caption of {number}."} for number in numbers
    ]
    for number in numbers:
        (folder / f"{number}.wav").write_bytes(wav(number))
    if table.endswith(".csv"):
        with open(folder / table, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        (folder / table).write_text("\n".join(map(json.dumps, rows)))
    return folder


def write_tar(path: Path, members: list[tuple[str, bytes | str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def tar_members(numbers) -> list[tuple[str, bytes | str]]:
    return [
        member
        for number in numbers
        for member in (
            (f"{number}.wav", wav(number)),
            (f"{number}.txt", f"Caption of {number}."),
        )
    ]


def build(dataset: object, output: Path, *arguments: object) -> int:
    return run_build(build_hub, {"--dataset": dataset, "--output": output}, *arguments)


def clips(cache: Path, split: str = "development") -> dict[str, tuple[list[str], np.ndarray]]:
    """clip_id -> captions and samples int16 (S,)."""
    found = datasets.load_from_disk(str(cache))[split]
    return {row["clip_id"]: (row["captions"], np.frombuffer(row["audio"], "<i2")) for row in found}


def assert_holds(cache: Path, numbers, split: str = "development") -> None:
    """Each clip has its caption and exactly its samples, in this order."""
    found = [*clips(cache, split).values()]
    assert [captions for captions, _ in found] == [[f"Caption of {number}."] for number in numbers]
    for number, (_, samples) in zip(numbers, found, strict=True):
        assert np.array_equal(samples, samples_of(number)), number


def arrow_files(cache: Path) -> dict[str, bytes]:
    return {
        path.relative_to(cache).as_posix(): path.read_bytes()
        for path in sorted(cache.rglob("*.arrow"))
    }


# ---- formats


def test_parquet_with_several_files_and_row_groups(tmp_path, capsys):
    for part in range(2):
        path = tmp_path / "corpus" / "data" / f"train-{part:05d}-of-00002.parquet"
        write_parquet(path, rows_of(range(5 * part, 5 * part + 5)), batch_size=2)
    write_parquet(tmp_path / "corpus/data/test-00000-of-00001.parquet", rows_of(range(20, 23)))
    assert build(tmp_path / "corpus", tmp_path / "cache") == 0
    assert_holds(tmp_path / "cache", range(10))
    assert_holds(tmp_path / "cache", range(20, 23), "evaluation")
    out = capsys.readouterr().out
    assert "development = train; evaluation = test" in out
    assert "sounds audio; captions caption; every row is a clip" in out
    assert "train.py needs a validation split" in out
    opened = open_cache(tmp_path / "cache", RATE).split("evaluation")
    assert opened.file_names == ["20.wav", "21.wav", "22.wav"]
    info = read_info(tmp_path / "cache")
    assert (info["corpus"], info["splits"]["development"]["num_clips"]) == ("hub", 10)


@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl"])
def test_audiofolder(tmp_path, table):
    write_folder(tmp_path / "corpus" / "train", range(4), table)
    write_folder(tmp_path / "corpus" / "validation", range(7, 9), table)
    assert build(tmp_path / "corpus", tmp_path / "cache") == 0
    assert_holds(tmp_path / "cache", range(4))
    assert_holds(tmp_path / "cache", range(7, 9), "validation")


def test_audiofolder_in_a_zip(tmp_path):
    write_folder(tmp_path / "made", range(3))
    shutil.make_archive(str(tmp_path / "corpus" / "train"), "zip", tmp_path / "made")
    assert build(tmp_path / "corpus", tmp_path / "cache") == 0
    assert_holds(tmp_path / "cache", range(3))


def test_webdataset(tmp_path):
    for part in range(2):
        write_tar(
            tmp_path / "corpus" / f"train-{part}.tar", tar_members(range(3 * part, 3 * part + 3))
        )
    assert build(tmp_path / "corpus", tmp_path / "cache") == 0
    assert_holds(tmp_path / "cache", range(6))


def test_webdataset_with_captions_in_json(tmp_path):
    """The layout of LAION's audio dataset: FLAC, and a list of captions in `text`."""
    members = []
    for number in range(3):
        text = {"text": [f"One {number}.", "Two."], "original_data": {"tags": ["a", "b"]}}
        members += [
            (f"x/{number}.flac", wav(number, "flac")),
            (f"x/{number}.json", json.dumps(text)),
        ]
    write_tar(tmp_path / "corpus" / "train" / "0.tar", members)
    assert build(tmp_path / "corpus", tmp_path / "cache") == 0
    found = clips(tmp_path / "cache")
    assert [captions for captions, _ in found.values()] == [[f"One {n}.", "Two."] for n in range(3)]
    assert np.array_equal(found["development/1.flac"][1], samples_of(1))


def test_saved_to_disk(tmp_path):
    made = datasets.DatasetDict(
        {"train": dataset_of(rows_of(range(4))), "test": dataset_of(rows_of([9]))}
    )
    made.save_to_disk(tmp_path / "corpus")
    assert build(tmp_path / "corpus", tmp_path / "cache") == 0
    assert_holds(tmp_path / "cache", range(4))
    assert_holds(tmp_path / "cache", [9], "evaluation")
    dataset_of(rows_of(range(2))).save_to_disk(tmp_path / "single")
    assert build(tmp_path / "single", tmp_path / "other") == 0
    assert_holds(tmp_path / "other", range(2))


def test_raw_bytes_and_paths_below_the_folder(tmp_path):
    """Neither has the feature Audio: a column of bytes, and JSON lines that name files."""
    tags = pa.array([[("a", "b")], []], pa.map_(pa.string(), pa.string()))  # not in `datasets`
    texts = ["Caption of 0.", "Caption of 1."]
    table = pa.table({"sound": [wav(0), wav(1)], "text": texts, "tags": tags})
    (tmp_path / "bytes").mkdir()
    pq.write_table(table, tmp_path / "bytes" / "train.parquet")
    assert build(tmp_path / "bytes", tmp_path / "cache") == 0
    assert_holds(tmp_path / "cache", range(2))
    (tmp_path / "paths" / "sub").mkdir(parents=True)
    lines = []
    for number in range(2):
        (tmp_path / "paths" / "sub" / f"{number}.wav").write_bytes(wav(number))
        lines.append({"file": f"sub/{number}.wav", "caption": f"Caption of {number}."})
    (tmp_path / "paths" / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert (
        build(
            "json",
            tmp_path / "other",
            *("--data-files", tmp_path / "paths" / "train.jsonl"),
            *("--audio-column", "file"),
        )
        == 0
    )
    assert_holds(tmp_path / "other", range(2))


def test_every_format_gives_the_same_clips(tmp_path):
    """The sounds and captions do not depend on the container."""
    write_parquet(tmp_path / "parquet" / "train.parquet", rows_of(range(5)))
    write_tar(tmp_path / "tar" / "train.tar", tar_members(range(5)))
    write_folder(tmp_path / "folder", range(5))
    dataset_of(rows_of(range(5))).save_to_disk(tmp_path / "saved")
    for name in ("parquet", "tar", "folder", "saved"):
        assert build(tmp_path / name, tmp_path / f"cache_{name}") == 0
    made = [
        arrow_files(tmp_path / f"cache_{name}") for name in ("parquet", "tar", "folder", "saved")
    ]
    assert made[0] and all(files == made[0] for files in made)


def test_few_rows_are_in_memory(tmp_path):
    """Of a Parquet file with one row group of 64 MB in pages of 1 MB, and of a tar of 50 MB."""
    pool, sound = pa.default_memory_pool(), bytes(2**17)
    table = pa.table({"audio": [sound] * 512, "caption": ["Caption."] * 512})
    (tmp_path / "parquet").mkdir()
    path = tmp_path / "parquet" / "train.parquet"
    options = {"compression": "none", "use_dictionary": False, "write_batch_size": 8}
    pq.write_table(table, path, row_group_size=512, **options)
    del table
    dataset, _ = open_dataset(str(path.parent))
    before, peak = pool.bytes_allocated(), 0
    for _ in dataset.rows("train", None):
        peak = max(peak, pool.bytes_allocated() - before)
    assert peak < 24e6
    whole = pq.ParquetFile(path).read_row_group(0)  # negative control
    assert pool.bytes_allocated() - before > 64e6 and whole.num_rows == 512
    sounds = [(f"{number}.wav", sound) for number in range(400)]
    write_tar(tmp_path / "tar" / "train.tar", sounds)
    dataset, _ = open_dataset(str(tmp_path / "tar"))
    tracemalloc.start()
    try:
        num_rows = sum(1 for _ in dataset.rows("train", None))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_rows == 400 and peak < 16e6


# ---- columns, splits, ids


def test_captions_of_several_columns_and_lists(tmp_path):
    rows = rows_of(
        range(3),
        caption_10=lambda n: "ten",
        caption_2=lambda n: None if n else " two\n lines ",
        captions=lambda n: [f"list {n}", None, ""],
    )
    write_parquet(tmp_path / "corpus" / "train.parquet", rows)
    assert build(tmp_path / "corpus", tmp_path / "cache") == 0
    texts = [captions for captions, _ in clips(tmp_path / "cache").values()]
    assert texts[0] == ["Caption of 0.", "list 0", "two lines", "ten"]
    assert texts[2] == ["Caption of 2.", "list 2", "ten"]
    assert build(tmp_path / "corpus", tmp_path / "one", "--caption-columns", "caption_10") == 0
    assert [captions for captions, _ in clips(tmp_path / "one").values()] == [["ten"]] * 3


def test_captions_in_one_string(tmp_path):
    rows = rows_of(range(2), text=lambda n: "A dog barks. A cat. ")
    write_parquet(tmp_path / "corpus" / "train.parquet", rows)
    options = ("--caption-columns", "text", "--caption-separator", ".")
    assert build(tmp_path / "corpus", tmp_path / "cache", *options) == 0
    assert [text for text, _ in clips(tmp_path / "cache").values()] == [
        ["A dog barks", "A cat"]
    ] * 2


def test_rows_of_one_id_are_one_clip(tmp_path, monkeypatch):
    """Side by side, and far from each other: also when their clip is written already."""
    monkeypatch.setattr(stream, "SHARD_CLIPS", 2)
    rows = rows_of(range(5), youtube_id=lambda n: f"video_{n}_abcd"[:11])
    for row, text in zip([*rows], "abcde", strict=True):
        rows.append(row | {"caption": f"second {text}"})
    rows.insert(1, rows[0] | {"caption": "beside"})
    write_parquet(tmp_path / "corpus" / "train.parquet", rows)
    options = ("--id-column", "youtube_id")
    assert build(tmp_path / "corpus", tmp_path / "cache", *options) == 0
    found = clips(tmp_path / "cache")
    assert [*found] == [f"development/video_{n}_abcd"[:23] for n in range(5)]
    assert found["development/video_0_abc"][0] == ["Caption of 0.", "beside", "second a"]
    assert found["development/video_4_abc"][0] == ["Caption of 4.", "second e"]
    assert all(
        np.array_equal(samples, samples_of(number))
        for number, (_, samples) in enumerate(found.values())
    )
    info = read_info(tmp_path / "cache")["splits"]["development"]
    assert (info["num_clips"], info["num_captions"]) == (5, 11)
    # negative control: without the id every row is a clip
    assert build(tmp_path / "corpus", tmp_path / "each") == 0
    assert len(clips(tmp_path / "each")) == 11


def test_an_id_of_different_sounds_is_refused(tmp_path, capsys):
    rows = rows_of(range(4), label=lambda n: n % 2)
    write_parquet(tmp_path / "corpus" / "train.parquet", rows)
    code = build(tmp_path / "corpus", tmp_path / "cache", "--id-column", "label")
    assert_refused(code, "--id-column label", tmp_path / "cache", capsys)
    assert not (tmp_path / "cache.partial").exists()
    options = ("--id-column", "label", "caption")
    assert build(tmp_path / "corpus", tmp_path / "cache", *options) == 0
    assert "development/1_Caption of 3." in clips(tmp_path / "cache")


def test_a_later_row_makes_up_for_a_bad_one(tmp_path):
    rows = rows_of([0, 0, 1, 1], name=lambda n: f"n{n}")
    rows[0]["audio"] = None
    rows[2]["caption"] = None
    write_parquet(tmp_path / "corpus" / "train.parquet", rows)
    assert build(tmp_path / "corpus", tmp_path / "cache", "--id-column", "name") == 0
    found = clips(tmp_path / "cache")
    assert found["development/n0"][0] == ["Caption of 0."] * 2
    assert found["development/n1"][0] == ["Caption of 1."]
    assert read_info(tmp_path / "cache")["skipped"] == []


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([7, 12, None], ["7", "12"]),
        ([7.0, 12.5, None], ["7", "12.5"]),
        (["../x", "/etc/passwd", ""], ["../x", "/etc/passwd"]),
        (["Käuzchen 🦉", "e\u0301", "   "], ["Käuzchen 🦉", "e\u0301"]),
    ],
)
def test_odd_ids(tmp_path, ids, expected):
    rows = rows_of(range(3))
    for row, text in zip(rows, ids, strict=True):
        row["name"] = text
        row["audio"]["path"] = None
    write_parquet(tmp_path / "corpus" / "train.parquet", rows)
    options = ("--id-column", "name", "--allow-missing", "50")
    assert build(tmp_path / "corpus", tmp_path / "cache", *options) == 0
    assert [*clips(tmp_path / "cache")] == [f"development/{text}" for text in expected]
    names = open_cache(tmp_path / "cache", RATE).split("development").file_names
    assert not any("/" in name for name in names)
    assert [item["reason"] for item in read_info(tmp_path / "cache")["skipped"]] == ["has no id"]
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"corpus", "cache"}  # an id never becomes a path


def test_splits_are_chosen_and_joined(tmp_path, capsys):
    for number, name in enumerate(("balanced", "unbalanced", "strong")):
        write_parquet(tmp_path / "corpus" / name / "0.parquet", rows_of([number, number + 10]))
    card = """---
configs:
- config_name: default
  data_files:
  - {split: balanced, path: balanced/*}
  - {split: unbalanced, path: unbalanced/*}
  - {split: strong, path: strong/*}
- config_name: other
  data_files:
  - {split: train, path: strong/*}
---
"""
    (tmp_path / "corpus" / "README.md").write_text(card)
    code = build(tmp_path / "corpus", tmp_path / "cache")
    assert_refused(code, "balanced, unbalanced, strong", tmp_path / "cache", capsys)
    code = build(tmp_path / "corpus", tmp_path / "cache", "--split", "development=train")
    assert_refused(code, "balanced, unbalanced, strong", tmp_path / "cache", capsys)
    for wrong in ("train=balanced", "balanced"):
        code = build(tmp_path / "corpus", tmp_path / "cache", "--split", wrong)
        assert_refused(code, wrong, tmp_path / "cache", capsys)
    code = build(tmp_path / "corpus", tmp_path / "cache", "--config", "third")
    assert_refused(code, "default, other", tmp_path / "cache", capsys)
    wanted = ("development=unbalanced", "development=balanced", "evaluation=strong")
    assert build(tmp_path / "corpus", tmp_path / "cache", "--split", *wanted) == 0
    assert_holds(tmp_path / "cache", [1, 11, 0, 10])
    assert_holds(tmp_path / "cache", [2, 12], "evaluation")
    assert build(tmp_path / "corpus", tmp_path / "other", "--config", "other") == 0
    assert_holds(tmp_path / "other", [2, 12])


@pytest.mark.parametrize("kind", ["parquet", "folder", "ids"])
def test_clips_are_dealt_out(tmp_path, kind, monkeypatch, capsys):
    """A dataset with one split: each clip is in one of ours, by its sound or id and the seed."""
    monkeypatch.setattr(stream, "SHARD_CLIPS", 4)
    numbers, options = range(40), ["--fractions", 0.5, 0.25, 0.25]
    if kind == "folder":
        write_folder(tmp_path / "corpus", numbers)
    else:
        rows = rows_of(numbers, name=lambda n: f"clip {n}")
        # the second captions of the first clips, as rows of their own
        rows += [row | {"caption": f"Again {row['name']}."} for row in rows[:20]]
        write_parquet(tmp_path / "corpus" / "train.parquet", rows, batch_size=7)
        options += ["--id-column", "name"] * (kind == "ids")

    def dealt(output: str, *more: object) -> dict[str, set[bytes]]:
        """split -> its sounds."""
        assert build(tmp_path / "corpus", tmp_path / output, *options, *more) == 0
        found = datasets.load_from_disk(str(tmp_path / output))
        return {split: {row["audio"] for row in rows} for split, rows in found.items()}

    first = dealt("cache")
    assert first.keys() == {"development", "validation", "evaluation"}
    assert sum(map(len, first.values())) == 40 == len(set.union(*first.values()))
    assert 10 <= len(first["development"]) <= 30  # 20 expected, a standard deviation of 3.2
    captions = [info["num_captions"] for info in read_info(tmp_path / "cache")["splits"].values()]
    assert sum(captions) == (40 if kind == "folder" else 60)
    assert "train.py needs a validation split" not in capsys.readouterr().out
    assert build(tmp_path / "corpus", tmp_path / "cache", *options) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert dealt("other", "--seed", 1) != first  # negative control
    # an interrupted build goes on
    real = stream.run_stream

    def interrupted(jobs, num_proc):
        for number, item in enumerate(real(jobs, num_proc)):
            if number == 3:
                raise KeyboardInterrupt
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(stream, "run_stream", interrupted)
        assert build(tmp_path / "corpus", tmp_path / "late", *options) == 130
    assert dealt("late") == first
    assert arrow_files(tmp_path / "late") == arrow_files(tmp_path / "cache")


def test_a_deal_leaves_the_dataset_s_own_splits_as_they_are(tmp_path, capsys):
    write_parquet(tmp_path / "corpus" / "train.parquet", rows_of(range(30)))
    write_parquet(tmp_path / "corpus" / "test.parquet", rows_of(range(50, 53)))
    made = ("--fractions", 0.8, 0.2, 0)
    assert build(tmp_path / "corpus", tmp_path / "cache", *made) == 0
    assert_holds(tmp_path / "cache", range(50, 53), "evaluation")
    counts = [len(clips(tmp_path / "cache", split)) for split in ("development", "validation")]
    assert sum(counts) == 30 and counts[0] > counts[1] > 0
    shutil.rmtree(tmp_path / "cache")
    corpus = tmp_path / "corpus"
    refused(tmp_path, capsys, "evaluation, test", corpus, "--fractions", 0.8, 0.1, 0.1)
    refused(tmp_path, capsys, "add up to 1", corpus, "--fractions", 0.8, 0.1, 0.2)
    refused(tmp_path, capsys, "no effect without", corpus, "--seed", 3)
    only_test = ("--split", "evaluation=test", *made)
    refused(tmp_path, capsys, "becomes development", corpus, *only_test)
    few = ("--split", "development=train", "--fractions", 0.9999, 0.0001, 0)
    refused(tmp_path, capsys, "0.0001 of 30 rows", corpus, *few)


def test_metadata_is_kept(tmp_path, capsys):
    rows = rows_of(range(2), license=lambda n: "CC0", seconds=lambda n: n / 2, tags=lambda n: ["a"])
    write_parquet(tmp_path / "corpus" / "train.parquet", rows)
    options = ("--keep-columns", "license", "seconds")
    assert build(tmp_path / "corpus", tmp_path / "cache", *options) == 0
    found = datasets.load_from_disk(str(tmp_path / "cache"))["development"]
    assert (found["license"][:], found["seconds"][:]) == (["CC0"] * 2, ["0", "0.5"])
    code = build(tmp_path / "corpus", tmp_path / "other", "--keep-columns", "tags")
    assert_refused(code, "tags", tmp_path / "other", capsys)


# ---- leaks


def test_test_clips_of_other_corpora_and_of_itself_are_left_out(tmp_path, capsys):
    def video(number):
        return f"abcdefgh{number:03d}"

    write_parquet(tmp_path / "corpus/train.parquet", rows_of(range(6), youtube_id=video))
    write_parquet(tmp_path / "corpus/test.parquet", rows_of([5, 7], youtube_id=video))
    leaks = write_csv(tmp_path / "test.csv", ["youtube_id"], [[f"Y{video(1)}"], [video(3)]])
    others = write_csv(tmp_path / "wrong.csv", ["youtube_id"], [["zzzzzzzzzzz"]])
    options = ("--exclude-audiocaps", leaks, others)
    assert build(tmp_path / "corpus", tmp_path / "cache", *options) == 0
    assert_holds(tmp_path / "cache", [0, 2, 4])
    assert_holds(tmp_path / "cache", [5, 7], "evaluation")
    why = reasons(read_info(tmp_path / "cache")["excluded"])
    assert why.keys() == {"1.wav", "3.wav", "5.wav"} and "evaluation" in why["5.wav"]
    out = capsys.readouterr().out
    assert "excluded from development: 2 clips, in AudioCaps' test.csv" in out
    assert "wrong.csv leaves nothing out" in out
    # negative control: without the list only its own test clips are left out
    assert build(tmp_path / "corpus", tmp_path / "all") == 0
    assert_holds(tmp_path / "all", [0, 1, 2, 3, 4])
    assert "--exclude-audiocaps" in capsys.readouterr().out


def test_freesound_ids_are_left_out(tmp_path, capsys):
    write_parquet(
        tmp_path / "corpus" / "train.parquet", rows_of(range(4), number=lambda n: 100 + n)
    )
    listed = write_csv(tmp_path / "ids.csv", ["sound_id"], [["101.0"], ["0103"]])
    code = build(tmp_path / "corpus", tmp_path / "cache", "--exclude-ids", listed)
    assert_refused(code, "--freesound-column", tmp_path / "cache", capsys)
    options = ("--exclude-ids", listed, "--freesound-column", "number")
    assert build(tmp_path / "corpus", tmp_path / "cache", *options) == 0
    assert_holds(tmp_path / "cache", [0, 2])


# ---- again, interrupted, several processes


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """30 clips in two Parquet files; each has a second caption in the other half."""
    folder = tmp_path_factory.mktemp("hub") / "corpus"
    rows = rows_of(range(30), name=lambda n: f"clip {n}")
    rows += [row | {"caption": f"Another of {row['name']}."} for row in rows[:10]]
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", rows[:17], batch_size=4)
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", rows[17:], batch_size=50)
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", rows_of([50], name=str))
    return folder


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> Path:
    """The cache of `corpus`, in shards of 4 clips."""
    cache = tmp_path_factory.mktemp("whole") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "SHARD_CLIPS", 4)
        assert build(corpus, cache, "--id-column", "name") == 0
    found = clips(cache)
    assert len(found) == 30 and len(arrow_files(cache)) == 9
    assert found["development/clip 3"][0] == ["Caption of 3.", "Another of clip 3."]
    return cache


def test_two_processes_write_the_same_bytes(corpus, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "SHARD_CLIPS", 4)
    options = ("--id-column", "name", "--num-proc", "2")
    assert build(corpus, tmp_path / "cache", *options) == 0
    assert arrow_files(tmp_path / "cache") == arrow_files(whole)


def test_a_finished_cache_is_not_built_again(corpus, whole, tmp_path, capsys):
    assert build(corpus, whole, "--id-column", "name") == 0
    assert "nothing to do" in capsys.readouterr().out
    before = arrow_files(whole)
    code = build(corpus, whole)  # other clips
    assert code == 2 and "--overwrite" in capsys.readouterr().err
    assert arrow_files(whole) == before


@pytest.mark.parametrize("num_finished", [1, 3, 6])
def test_an_interrupted_build_goes_on(corpus, whole, tmp_path, monkeypatch, num_finished, capsys):
    monkeypatch.setattr(stream, "SHARD_CLIPS", 4)
    decoded = []
    real = stream.run_stream

    def interrupted(jobs, num_proc):
        for number, item in enumerate(real(jobs, num_proc)):
            if number == num_finished:
                raise KeyboardInterrupt
            decoded.extend(clip.clip_id for clip in item[0].clips)
            yield item

    monkeypatch.setattr(stream, "run_stream", interrupted)
    assert build(corpus, tmp_path / "cache", "--id-column", "name") == 130
    assert not (tmp_path / "cache").exists()
    num_before = len(decoded)
    assert num_before > 0 and not (tmp_path / "cache.partial" / "spool").exists()

    def counted(jobs, num_proc):
        for job, report in real(jobs, num_proc):
            decoded.extend(clip.clip_id for clip in job.clips)
            yield job, report

    monkeypatch.setattr(stream, "run_stream", counted)
    assert build(corpus, tmp_path / "cache", "--id-column", "name") == 0
    assert arrow_files(tmp_path / "cache") == arrow_files(whole)
    # the shard that was made but not told of is not decoded twice either
    assert len(decoded) == len(set(decoded)) and num_before < len(decoded)
    assert "are ready" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["tar", "folder", "saved"])
def test_other_formats_go_on_too(tmp_path, kind, monkeypatch):
    """Interrupted after each shard, within one split of the dataset and between two."""
    monkeypatch.setattr(stream, "SHARD_CLIPS", 2)
    numbers = {"train": range(5), "extra": range(5, 8)}
    if kind == "saved":
        made = {split: dataset_of(rows_of(found)) for split, found in numbers.items()}
        datasets.DatasetDict(made).save_to_disk(tmp_path / "corpus")
    else:
        card = "---\nconfigs:\n- config_name: default\n  data_files:\n"
        for split, found in numbers.items():
            if kind == "tar":
                write_tar(tmp_path / "corpus" / split / "0.tar", tar_members(found))
            else:
                write_folder(tmp_path / "corpus" / split, found)
            card += f"  - {{split: {split}, path: {split}/*}}\n"
        (tmp_path / "corpus" / "README.md").write_text(f"{card}---\n")
    options = ("--split", "development=train", "development=extra")
    real, decoded = stream.run_stream, []

    def interrupted(jobs, num_proc):
        for number, item in enumerate(real(jobs, num_proc)):
            if number:
                raise KeyboardInterrupt
            decoded.extend(clip.clip_id for clip in item[0].clips)
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(stream, "run_stream", interrupted)
        codes = [build(tmp_path / "corpus", tmp_path / "cache", *options) for _ in range(3)]
    assert codes == [130, 130, 0] and len(decoded) == len(set(decoded))
    assert_holds(tmp_path / "cache", range(8))
    assert build(tmp_path / "corpus", tmp_path / "whole", *options) == 0
    assert arrow_files(tmp_path / "cache") == arrow_files(tmp_path / "whole")


def test_a_changed_corpus_is_built_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "SHARD_CLIPS", 2)
    path = write_parquet(tmp_path / "corpus" / "train.parquet", rows_of(range(6)))
    real = stream.run_stream

    def interrupted(jobs, num_proc):
        yield next(real(jobs, num_proc))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stream, "run_stream", interrupted)
        assert build(tmp_path / "corpus", tmp_path / "cache") == 130
    write_parquet(path, rows_of(range(10, 16)))
    assert build(tmp_path / "corpus", tmp_path / "cache") == 0
    assert_holds(tmp_path / "cache", range(10, 16))


def test_a_killed_build_goes_on(tmp_path, capsys):
    """kill -9 of the real command while two workers decode; then go on with one process."""
    rows = rows_of([0]) * (3 * stream.SHARD_CLIPS)
    rows = [row | {"caption": f"Caption {number}."} for number, row in enumerate(rows)]
    write_parquet(tmp_path / "corpus" / "train.parquet", rows)
    command = [sys.executable, str(ROOT / "data_prep" / "build_hub.py"), "--dataset", "corpus"]
    command += ["--num-proc", "2", "--sample-rate", str(RATE), "--output", "cache"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    report = tmp_path / "cache.partial" / "reports" / "development-00000.json"
    wait_for(report.exists, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cache").exists()
    before = report.stat().st_mtime_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(stream, "swap_folder", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert build("corpus", tmp_path / "cache") == 130
        assert report.stat().st_mtime_ns == before  # not decoded again
        patch.undo()
        patch.chdir(tmp_path)
        assert build("corpus", tmp_path / "cache") == 0
        assert f"{3 * stream.SHARD_CLIPS} clips of development are ready" in capsys.readouterr().out
        assert build("corpus", tmp_path / "whole") == 0
    assert arrow_files(tmp_path / "cache") == arrow_files(tmp_path / "whole")
    assert not (tmp_path / "cache.partial").exists()


# ---- bad input


def refused(tmp_path, capsys, expected: str, dataset: object, *arguments: object) -> str:
    """One line, exit code 2, and nothing left behind."""
    code = build(dataset, tmp_path / "cache", *arguments)
    line = capsys.readouterr().err
    assert code == 2 and line.startswith("error: ") and line.count("\n") == 1, line
    assert expected in line, line
    assert not list(tmp_path.glob("cache*")), line
    return line


@pytest.mark.parametrize(
    ("change", "expected", "arguments"),
    [
        (lambda row: row.pop("audio"), "no column of sounds", ()),
        (lambda row: row.pop("caption"), "no column of captions", ()),
        (lambda row: row.update(caption=[["a"], ["b"]]), "caption holds nested", ()),
        (lambda row: row.update(caption=[{"text": "a"}]), "caption holds nested", ()),
        (lambda row: row.update(caption=1.5), "no column of captions", ()),
        (lambda row: row.update(caption=1.5), "holds number", ("--caption-columns", "caption")),
        (lambda row: row.update(caption=None), "has no caption", ()),
        (lambda row: row.update(caption="  "), "has no caption", ()),
        (lambda row: row.update(audio=None), "no column of sounds", ()),
        (lambda row: row["audio"].update(bytes=b""), "has no sound (0 bytes)", ()),
        (lambda row: row["audio"].update(bytes=b"<html>404"), "a web page", ()),
        (
            lambda row: row.update(audio={"array": [0.1, 0.2], "sampling_rate": 16_000}),
            "samples as numbers",
            ("--audio-column", "audio"),
        ),
        (lambda row: row.update(second=row["audio"]), "no such column", ("--id-column", "third")),
        (lambda row: row.update(id=[1]), "--id-column id", ("--id-column", "id")),
        (lambda row: row.update(id=None), "has no id", ("--id-column", "id")),
        (lambda row: None, "no such column", ("--audio-column", "sound")),
        (lambda row: None, "no such column", ("--caption-columns", "caption", "text")),
        (lambda row: None, "--caption-separator", ("--caption-separator", "")),
        (lambda row: row.update(file_name="a"), "file_name", ("--keep-columns", "file_name")),
    ],
)
def test_rows_that_are_no_clips(tmp_path, change, expected, arguments, capsys):
    rows = rows_of(range(3))
    for row in rows:
        change(row)
    write_parquet(tmp_path / "corpus" / "train.parquet", rows)
    refused(tmp_path, capsys, expected, tmp_path / "corpus", *arguments)


def test_two_columns_of_sounds(tmp_path, capsys):
    table = pa.table({"left": [wav(0)], "right": [wav(1)], "caption": ["Caption of 1."]})
    (tmp_path / "corpus").mkdir()
    pq.write_table(table, tmp_path / "corpus" / "train.parquet")
    line = refused(tmp_path, capsys, "--audio-column", tmp_path / "corpus")
    assert "left (sound)" in line and "right (sound)" in line
    assert build(tmp_path / "corpus", tmp_path / "cache", "--audio-column", "right") == 0
    assert_holds(tmp_path / "cache", [1])


@pytest.mark.parametrize("inner", ["outside.wav", "missing.wav", "/etc/hostname", "..", ""])
def test_paths_in_place_of_sounds(tmp_path, inner, capsys):
    """A dataset of others must not read any file of this machine into the cache."""
    (tmp_path / "outside.wav").write_bytes(wav(0))
    paths = [inner, f"../{inner}", str(tmp_path / inner), f"file://{tmp_path / inner}"]
    paths += [f"zip://a.wav::{tmp_path / inner}", f"http://127.0.0.1:9/{inner}"]
    rows = rows_of(range(len(paths)))
    for row, path in zip(rows, paths, strict=True):
        row["audio"] = {"bytes": None, "path": path}
    write_paths(tmp_path / "corpus" / "train.parquet", rows)
    kept = rows_of([9])
    write_parquet(tmp_path / "corpus" / "train-2.parquet", kept)
    assert build(tmp_path / "corpus", tmp_path / "cache") == 2
    line = capsys.readouterr().err
    assert "6 of 7 clips are lost" in line and ("in place of a sound" in line or not inner)
    options = ("--allow-missing", "99")
    assert build(tmp_path / "corpus", tmp_path / "cache", *options) == 0
    assert [captions for captions, _ in clips(tmp_path / "cache").values()] == [["Caption of 9."]]


def test_many_bad_rows_end_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stream, "MOST_LOST_AT_FIRST", 5)
    rows = rows_of(range(10))
    for row in rows:
        row["audio"] = {"bytes": None, "path": "/data/of/another/machine.wav"}
    write_paths(tmp_path / "corpus" / "train.parquet", rows)
    line = refused(tmp_path, capsys, "machine.wav", tmp_path / "corpus")
    assert "none of its 5 clips" in line


def test_bad_sounds_are_counted(tmp_path, capsys):
    rows = rows_of(range(20))
    rows[3]["audio"]["bytes"] = b"no sound at all, but a text of some length" * 9
    rows[5]["audio"]["bytes"] = wav(5)[:700]  # cut off
    rows[7]["caption"] = ""
    write_parquet(tmp_path / "corpus" / "train.parquet", rows)
    code = build(tmp_path / "corpus", tmp_path / "cache")
    assert code == 2 and "3 of 20 clips are lost" in capsys.readouterr().err
    assert build(tmp_path / "corpus", tmp_path / "cache", "--allow-missing", "15") == 0
    assert_holds(tmp_path / "cache", [n for n in range(20) if n not in (3, 5, 7)])
    why = reasons(read_info(tmp_path / "cache")["skipped"])
    assert why.keys() == {"3.wav", "5.wav", "7.wav"} and why["7.wav"] == "has no caption"


def test_a_tar_with_half_samples(tmp_path, capsys):
    members = [("0.txt", "Text without sound."), *tar_members([1]), ("2.wav", wav(2))]
    members += tar_members([3]) + [("3x/._4.wav", b"mac"), ("README", "not a sample")]
    write_tar(tmp_path / "corpus" / "train.tar", members)
    assert build(tmp_path / "corpus", tmp_path / "cache") == 2
    assert "2 of 4 clips are lost" in capsys.readouterr().err and not (tmp_path / "cache").exists()
    assert build(tmp_path / "corpus", tmp_path / "cache", "--allow-missing", "50") == 0
    assert_holds(tmp_path / "cache", [1, 3])
    found = [item["reason"] for item in read_info(tmp_path / "cache")["skipped"]]
    assert found == ["has no sound", "has no caption"]


def test_damaged_files(tmp_path, capsys):
    path = write_tar(tmp_path / "tar" / "train.tar", tar_members(range(5)))
    path.write_bytes(path.read_bytes()[:5_000])
    refused(tmp_path, capsys, "train.tar", tmp_path / "tar")
    path = write_parquet(tmp_path / "parquet" / "train.parquet", rows_of(range(9)), batch_size=3)
    group = pq.ParquetFile(path).metadata.row_group(1)
    content = bytearray(path.read_bytes())
    start = group.column(0).dictionary_page_offset or group.column(0).data_page_offset
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)
    refused(tmp_path, capsys, "train.parquet", tmp_path / "parquet")
    path.write_bytes(bytes(content[:1000]))
    refused(tmp_path, capsys, "parquet", tmp_path / "parquet")


def test_checksums_of_a_parquet_file_are_checked(tmp_path, capsys):
    """Without them, damage within a sound is another sound."""
    for has_checksums in (False, True):
        path = write_parquet(tmp_path / "corpus" / "train.parquet", rows_of(range(9)))
        options = {"row_group_size": 3, "compression": "none", "use_dictionary": False}
        options["write_statistics"] = False  # a sound is nowhere but in its page
        pq.write_table(pq.read_table(path), path, write_page_checksum=has_checksums, **options)
        content = bytearray(path.read_bytes())
        place = content.index(wav(7)) + 700
        content[place : place + 20] = bytes(20)
        path.write_bytes(content)
        if has_checksums:
            refused(tmp_path, capsys, "train.parquet", tmp_path / "corpus")
        else:
            assert build(tmp_path / "corpus", tmp_path / "cache") == 0
            shutil.rmtree(tmp_path / "cache")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_tar(tmp_path, compress, capsys):
    """`datasets` takes any tar of the ending .tar.gz. Cut off, it is not a shorter one."""
    whole = write_tar(tmp_path / "whole.tar", tar_members(range(6))).read_bytes()
    path = tmp_path / "corpus" / "train.tar.gz"
    path.parent.mkdir()
    content = compress(whole)
    path.write_bytes(content[: len(content) // 2])
    refused(tmp_path, capsys, "train.tar.gz", tmp_path / "corpus")
    path.write_bytes(content)
    assert build(tmp_path / "corpus", tmp_path / "cache") == 0
    assert_holds(tmp_path / "cache", range(6))


@pytest.mark.parametrize("num_bytes", [2_560, 3_000, 3_072, 3_500])
def test_a_tar_that_is_cut_off(tmp_path, num_bytes, monkeypatch, capsys):
    """Also between two members, where Python's tarfile takes it for the end."""
    monkeypatch.setattr(stream, "SHARD_CLIPS", 2)
    write_tar(tmp_path / "corpus" / "train-0.tar", tar_members(range(4)))
    bad = write_tar(tmp_path / "corpus" / "train-1.tar", tar_members(range(4, 6)))
    whole = bad.read_bytes()
    bad.write_bytes(whole[:num_bytes])
    assert build(tmp_path / "corpus", tmp_path / "cache") == 2
    assert "train-1.tar" in capsys.readouterr().err and not (tmp_path / "cache").exists()
    bad.write_bytes(whole)
    assert build(tmp_path / "corpus", tmp_path / "cache") == 0
    assert_holds(tmp_path / "cache", range(6))


def test_folders_that_are_no_dataset(tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(tmp_path, capsys, str(empty), empty)
    (empty / "sounds.txt").write_text("no sounds")
    refused(tmp_path, capsys, "no column of sounds", empty)
    script = tmp_path / "script"
    script.mkdir()
    marker = tmp_path / "it_ran"
    (script / "script.py").write_text(f"open({str(marker)!r}, 'w')")
    write_parquet(script / "train.parquet", rows_of([0]))
    refused(tmp_path, capsys, "code of a dataset is not run", script)
    assert not marker.exists()
    refused(tmp_path, capsys, "--data-files", "parquet")
    refused(tmp_path, capsys, "one of parquet", empty, "--data-files", "x.parquet")
    refused(tmp_path, capsys, "x.parquet", "parquet", "--data-files", "x.parquet")
    refused(tmp_path, capsys, "ftp://", "parquet", "--data-files", "ftp://host/x.parquet")
    refused(tmp_path, capsys, "not a folder", "./no/such/folder")
    write_parquet(tmp_path / "good" / "train.parquet", rows_of([0]))
    assert build(tmp_path / "good", tmp_path / "ours") == 0
    refused(tmp_path, capsys, "Arrow cache of this project", tmp_path / "ours")


def made_empty(rows: list[dict]) -> datasets.Dataset:
    return dataset_of(rows).select([])


def test_an_empty_split(tmp_path, capsys):
    write_parquet(tmp_path / "corpus" / "train.parquet", rows_of(range(2)))
    made_empty(rows_of([0])).to_parquet(str(tmp_path / "corpus" / "test.parquet"))
    refused(tmp_path, capsys, "test is empty", tmp_path / "corpus")
    options = ("--split", "development=train")
    assert build(tmp_path / "corpus", tmp_path / "cache", *options) == 0


def test_an_empty_split_of_other_formats(tmp_path, capsys):
    parts = {"train": dataset_of(rows_of(range(2))), "test": made_empty(rows_of([0]))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    write_tar(tmp_path / "tar" / "train.tar", tar_members(range(2)))
    write_tar(tmp_path / "tar" / "test.tar", [])
    for number, name in enumerate(("saved", "tar")):
        refused(tmp_path, capsys, "test is empty", tmp_path / name)
        output = tmp_path / f"built_{number}"
        assert build(tmp_path / name, output, "--split", "development=train") == 0
        assert_holds(output, range(2))
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "train.jsonl").write_text("")
    refused(tmp_path, capsys, "empty", tmp_path / "json")


def test_names_of_files_in_a_column_of_text(tmp_path, capsys):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "0.wav").write_bytes(wav(0))
    line = json.dumps({"audio": "0.wav", "caption": "Caption of 0."})
    (tmp_path / "corpus" / "train.jsonl").write_text(line)
    refused(tmp_path, capsys, "as --audio-column", tmp_path / "corpus")
    assert build(tmp_path / "corpus", tmp_path / "cache", "--audio-column", "audio") == 0
    assert_holds(tmp_path / "cache", [0])


# ---- a server


class Files(BaseHTTPRequestHandler):
    """Serves `files` in parts; breaks off a number of times in the middle of an answer."""

    files: dict[str, bytes]
    num_breaks: int
    break_after = 2_000  # bytes
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        content = self.files.get(self.path.lstrip("/"))
        if content is None:
            return self.send_error(404)
        first, last, status = 0, len(content) - 1, 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, status = int(asked[1]), 206
            last = min(last, int(asked[2] or last))
        body = content[first : last + 1]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        if len(body) > self.break_after and type(self).num_breaks:
            type(self).num_breaks -= 1
            self.wfile.write(body[: self.break_after])
            self.wfile.flush()
            self.close_connection = True
            with contextlib.suppress(OSError):  # the other side may be faster
                self.connection.shutdown(socket.SHUT_RDWR)
            return None
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """A client that ends is no error."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0.01)
    monkeypatch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", 4)
    monkeypatch.setattr(datasets.config, "STREAMING_OPEN_RETRY_INTERVAL", 0.01)
    handler = type("Handler", (Files,), {"files": {}, "num_breaks": 0})
    with Server(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        handler.address = f"http://127.0.0.1:{running.server_port}"
        yield handler
        running.shutdown()


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_a_server_that_breaks_off(tmp_path, server, kind, monkeypatch, capsys):
    """A few breaks are retried; more of them end the build, and the next one goes on."""
    monkeypatch.setattr(stream, "SHARD_CLIPS", 3)
    ending = "parquet" if kind == "parquet" else "tar"
    for part in range(2):
        path = tmp_path / "corpus" / f"train-{part}.{ending}"
        numbers = range(6 * part, 6 * part + 6)
        if kind == "parquet":
            write_parquet(path, rows_of(numbers), batch_size=2)
        else:
            write_tar(path, tar_members(numbers))
        server.files[path.name] = path.read_bytes()
    assert build(tmp_path / "corpus", tmp_path / "local") == 0
    addresses = [f"{server.address}/train-{part}.{ending}" for part in range(2)]
    server.num_breaks = 2
    assert build(kind, tmp_path / "cache", "--data-files", *addresses) == 0
    assert server.num_breaks == 0
    assert arrow_files(tmp_path / "cache") == arrow_files(tmp_path / "local")
    # the second file is out of reach from some time on
    second = server.files.pop(f"train-1.{ending}")
    server.files[f"train-1.{ending}"] = second
    real = stream.run_stream

    def breaking(jobs, num_proc):
        for number, item in enumerate(real(jobs, num_proc)):
            if number == 1:
                server.num_breaks = 1_000
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(stream, "run_stream", breaking)
        code = build(kind, tmp_path / "late", "--data-files", *addresses)
    line = capsys.readouterr().err
    assert code == 2 and line.count("\n") == 1 and "run the same command again" in line, line
    assert not (tmp_path / "late").exists()
    server.num_breaks = 0
    assert build(kind, tmp_path / "late", "--data-files", *addresses) == 0
    assert "are ready" in capsys.readouterr().out
    assert arrow_files(tmp_path / "late") == arrow_files(tmp_path / "local")


def test_a_file_that_is_not_on_the_server(tmp_path, server, capsys):
    for kind in ("parquet", "webdataset"):
        address = f"{server.address}/missing.tar"
        refused(tmp_path, capsys, "missing.tar", kind, "--data-files", address)


# ---- the hub


@pytest.fixture
def hub():
    with running_hub() as running:
        yield running


def build_from_hub(tmp_path, address, *arguments):
    """The real command: huggingface_hub reads its endpoint when it is imported."""
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, str(ROOT / "data_prep" / "build_hub.py"), "--num-proc", "1"]
    command += ["--sample-rate", str(RATE), *arguments]
    return subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )


def test_a_dataset_on_the_hub(tmp_path, hub):
    """Downloaded, and read over the network: the same clips."""
    path = write_parquet(
        tmp_path / "local" / "data" / "train-00000-of-00001.parquet", rows_of([3, 4])
    )
    files = {"data/train-00000-of-00001.parquet": path.read_bytes(), "README.md": b"# Corpus"}
    hub.repos["me/corpus"] = files
    options = ("--dataset", "me/corpus", "--output")
    for way in ((), ("--streaming",)):
        done = build_from_hub(tmp_path, hub.address, *options, f"cache{len(way)}", *way)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert_holds(tmp_path / f"cache{len(way)}", [3, 4])
        assert f"me/corpus@{hub.sha('me/corpus')[:7]}" in done.stdout
    assert arrow_files(tmp_path / "cache0") == arrow_files(tmp_path / "cache1")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--dataset", "me/nothing"), "knows no dataset"),
        (("--dataset", "me/corpus", "--revision", "nowhere"), "no revision 'nowhere'"),
        (("--dataset", "me/corpus"), "is gated"),
        (("--dataset", "me/other"), "out of reach"),
    ],
)
def test_the_hub_refuses(tmp_path, hub, arguments, expected):
    hub.repos["me/corpus"] = {"train.parquet": b"PAR1"}
    hub.gated |= {"me/corpus"} if expected == "is gated" else set()
    address = "http://127.0.0.1:9" if expected == "out of reach" else hub.address
    done = build_from_hub(tmp_path, address, *arguments, "--output", "cache")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and expected in done.stderr
    assert not list(tmp_path.glob("cache*"))
