"""data_prep/build_clotho.py: tiny corpora in Clotho's layout, bad input, and interruption."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep import build_clotho
from data_prep.cache import shards
from data_prep.cache.audio_codec import UnreadableSound, encode_clip
from retrieval.base.locks import LOCK, locked
from retrieval.base.sound_files import normalise_name
from retrieval.config import load_config
from tests.conftest import PATIENCE, ROOT, wait_for
from tests.corpora import error_line, load, running_processes, write_csv

EXCERPT = ROOT.parent / "shared" / "data" / "clotho_excerpt"
BUILD = [
    sys.executable,
    str(ROOT / "data_prep" / "build_clotho.py"),
    "--splits",
    "evaluation",
    "--num-proc",
    "2",
    "--root",
]
METADATA = ["keywords", "sound_id", "sound_link", "start_end_samples", "manufacturer", "license"]


def tone(seconds=0.1, sample_rate=44_100, channels=1, frequency=1000.0):
    """Sine of amplitude 0.5 that fades in and out, (S, channels)."""
    time_axis = np.arange(round(seconds * sample_rate)) / sample_rate
    wave = 0.5 * np.sin(2 * np.pi * frequency * time_axis) * np.hanning(time_axis.size)
    return np.repeat(wave[:, None], channels, axis=1)


def write_split(root, split="evaluation", names=("a.wav", "b.wav"), seconds=0.1):
    (root / split).mkdir(parents=True)
    for index, name in enumerate(names):
        soundfile.write(root / split / name, tone(seconds, frequency=500 + 10 * index), 44_100)
    captions = [
        [name, *(f"Caption {number} of {name}." for number in range(1, 6))] for name in names
    ]
    write_csv(
        root / f"clotho_captions_{split}.csv",
        ["file_name", *(f"caption_{number}" for number in range(1, 6))],
        captions,
    )
    metadata = [[name, "bell;dog", "17", "link", "[0, 9]", "m", "cc0"] for name in names]
    write_csv(root / f"clotho_metadata_{split}.csv", ["file_name", *METADATA], metadata)
    return root


def build(root, *arguments):
    defaults = {"--splits": "evaluation", "--num-proc": "1"}
    given = [
        word
        for option, value in defaults.items()
        if option not in arguments
        for word in (option, value)
    ]
    return build_clotho.main(["--root", str(root), *given, *arguments])


def assert_nothing_built(root):
    assert not (root / "cache").exists()


# ---- what the cache holds


def test_cache_matches_the_contract(tmp_path, capsys):
    import datasets

    for split in ("development", "validation", "evaluation"):
        write_split(tmp_path, split)
    assert build_clotho.main(["--root", str(tmp_path), "--num-proc", "1"]) == 0
    loaded = datasets.load_from_disk(str(tmp_path / "cache"))
    assert list(loaded) == ["development", "validation", "evaluation"]
    split = loaded["validation"]
    types = {name: feature.dtype for name, feature in split.features.items() if name != "captions"}
    strings = dict.fromkeys(["clip_id", "file_name", *METADATA], "string")
    assert types == {**strings, "audio": "large_binary", "num_samples": "int64"}
    assert split.features["captions"].feature.dtype == "string"
    row = split[1]
    assert row["clip_id"] == "validation/b.wav" and row["file_name"] == "b.wav"
    assert row["captions"] == [f"Caption {number} of b.wav." for number in range(1, 6)]
    assert row["num_samples"] == 3200 == len(row["audio"]) // 2
    assert (row["keywords"], row["sound_id"], row["license"]) == ("bell;dog", "17", "cc0")
    info = json.loads((tmp_path / "cache" / "cache.json").read_text())
    assert (
        info["schema"],
        info["corpus"],
        info["codec"],
        info["sample_rate"],
        info["skipped"],
    ) == (1, "clotho", "pcm_s16le", 32_000, [])
    assert (
        info["splits"]["development"]["num_clips"] == 2
        and info["splits"]["development"]["num_captions"] == 10
    )
    assert info["splits"]["development"]["hours"] == pytest.approx(0.2 / 3600, rel=1e-2)
    assert not (tmp_path / "cache.partial").exists()
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in table[1:4]] == [
        [name, "2", "0.00", "10"] for name in loaded
    ]


def test_shards_are_read_without_copy_and_in_order(tmp_path):
    names = [f"clip {index:02d}.wav" for index in range(20)]
    assert build(write_split(tmp_path, names=names)) == 0
    split = load(tmp_path / "cache")
    assert split["file_name"][:] == names and len(split.cache_files) == 3
    column = split.data.column("audio")
    assert column.num_chunks == 20
    samples = np.frombuffer(column.chunk(7)[0].as_buffer(), np.int16)
    assert not samples.flags.owndata and samples.size == 3200


@pytest.mark.parametrize("codec", ["pcm", "flac"])
def test_sixteen_bit_audio_at_the_cache_rate_is_kept_bit_for_bit(tmp_path, codec):
    import io

    root = write_split(tmp_path, names=["a.wav"])
    samples = np.random.default_rng(0).integers(-32768, 32768, 5000, dtype=np.int16)
    soundfile.write(root / "evaluation" / "a.wav", samples, 32_000)
    assert build(root, "--codec", codec) == 0
    row = load(root / "cache")[0]
    read = (
        np.frombuffer(row["audio"], "<i2")
        if codec == "pcm"
        else soundfile.read(io.BytesIO(row["audio"]), dtype="int16")[0]
    )
    assert row["num_samples"] == 5000 and np.array_equal(read, samples)
    assert (
        json.loads((root / "cache" / "cache.json").read_text())["codec"]
        == {"pcm": "pcm_s16le", "flac": "flac"}[codec]
    )


@pytest.mark.parametrize(
    ("sample_rate", "channels", "subtype", "tolerance"),
    [
        (44_100, 1, "PCM_16", 2e-4),
        (8_000, 1, "PCM_U8", 1e-2),
        (96_000, 2, "PCM_24", 2e-4),
        (48_000, 6, "FLOAT", 2e-4),
    ],
)
def test_audio_equals_the_formula_at_the_cache_rate(
    tmp_path, sample_rate, channels, subtype, tolerance
):
    path = tmp_path / "a.wav"
    # longer than a decoding block
    soundfile.write(path, tone(7.0, sample_rate, channels), sample_rate, subtype=subtype)
    clip = encode_clip(str(path), 32_000, "pcm_s16le")
    read = np.frombuffer(clip.audio, "<i2") / 32768
    expected = tone(7.0, 32_000)[:, 0]
    assert clip.num_samples == expected.size and clip.num_clipped == 0
    assert np.abs(read - expected).max() < tolerance
    assert np.abs(read[1:] - expected[:-1]).max() > 10 * tolerance  # one sample late would be seen


def test_channels_are_averaged_and_overshoot_is_cut_and_counted(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(
        path, np.array([[0.5, 0.0], [1.5, 1.5], [-1.5, -1.5], [1.0, 1.0]]), 32_000, subtype="FLOAT"
    )
    clip = encode_clip(str(path), 32_000, "pcm_s16le")
    assert (
        np.frombuffer(clip.audio, "<i2").tolist() == [8192, 32767, -32768, 32767]
        and clip.num_clipped == 2
    )


def test_names_are_joined_in_every_spelling(tmp_path):
    (tmp_path / "evaluation").mkdir()
    on_disk = ["Cafe\u0301 [1].wav", "carpenter's  saw .wav", "Door.WAV", "na\u00efve.wav"]
    in_captions = ["Caf\u00e9 [1].wav", "carpenter&#39;s saw.wav ", "Door.wav", "na\u00efve.wav"]
    for name in on_disk:
        soundfile.write(tmp_path / "evaluation" / name, tone(), 44_100, format="WAV")
    write_csv(
        tmp_path / "clotho_captions_evaluation.csv",
        ["file_name", *build_columns(6)],
        [[name, *"abcdef"] for name in in_captions],
    )
    metadata = [[name, name, *"12345"] for name in in_captions[::-1]]
    write_csv(
        tmp_path / "clotho_metadata_evaluation.csv",
        ["file_name", *METADATA],
        metadata,
        "iso-8859-1",
    )
    assert build(tmp_path) == 0
    split = load(tmp_path / "cache")
    assert split["file_name"][:] == on_disk
    normalised = ("Caf\u00e9 [1].wav", "carpenter's saw.wav", "Door.wav", "na\u00efve.wav")
    assert split["clip_id"][:] == [f"evaluation/{name}" for name in normalised]
    assert split["keywords"][:] == [name.strip() for name in in_captions]
    assert split["captions"][0] == list("abcdef")
    assert normalise_name("a.wav") != normalise_name("b.wav")


def build_columns(number):
    return [f"caption_{index}" for index in range(1, number + 1)]


def test_utf8_metadata_and_missing_metadata_row(tmp_path, capsys):
    root = write_split(tmp_path)
    metadata = [["b.wav", "caf\u00e9", *"12345"], ["b.wav", "second", *"12345"]]
    write_csv(root / "clotho_metadata_evaluation.csv", ["file_name", *METADATA], metadata)
    assert build(root) == 0
    assert load(root / "cache")["keywords"][:] == ["", "caf\u00e9"]
    output = capsys.readouterr().out
    assert (
        "1 of 2 clips have no row in clotho_metadata_evaluation.csv" in output
        and "a second row for 'b.wav'" in output
    )


# ---- bad input: one line, exit code 2, nothing half-written


def break_captions(root, text):
    (root / "clotho_captions_evaluation.csv").write_bytes(text)


HEADER = b"file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
BAD_CORPORA = {
    "split folder": (
        lambda r: os.rename(r / "evaluation", r / "other"),
        "evaluation is missing: fetch it with --download",
    ),
    "no audio": (
        lambda r: [path.unlink() for path in (r / "evaluation").iterdir()],
        "holds no .wav file",
    ),
    "captions CSV": (
        lambda r: (r / "clotho_captions_evaluation.csv").unlink(),
        "clotho_captions_evaluation.csv is missing",
    ),
    "metadata CSV": (
        lambda r: (r / "clotho_metadata_evaluation.csv").unlink(),
        "clotho_metadata_evaluation.csv is missing",
    ),
    "empty CSV": (lambda r: break_captions(r, b""), "column file_name must occur once"),
    "no rows": (lambda r: break_captions(r, HEADER), "has no rows"),
    "no column": (
        lambda r: break_captions(r, b"file_name,caption_1\na.wav,x\n"),
        "column caption_2 must occur once",
    ),
    "metadata column": (
        lambda r: write_csv(r / "clotho_metadata_evaluation.csv", ["file_name", "keywords"], []),
        "column sound_id must",
    ),
    "cut row": (
        lambda r: break_captions(r, HEADER + b"a.wav,1,2,3,4,5\nb.wav,1,2\n"),
        "line 3: 3 fields, expected 6",
    ),
    "open quote": (
        lambda r: break_captions(r, HEADER + b'a.wav,1,"2,3,4,5\nb.wav,1,2,3,4,5\n'),
        "is a quote missing",
    ),
    "not UTF-8": (lambda r: break_captions(r, HEADER + b"a.wav,\xe9,2,3,4,5\n"), "is not UTF-8"),
    "two rows": (
        lambda r: break_captions(r, HEADER + b"a.wav,1,2,3,4,5\na .WAV,1,2,3,4,5\n"),
        "one clip, 'a.wav' and 'a .WAV'",
    ),
    "two files": (
        lambda r: soundfile.write(r / "evaluation" / "a .wav", tone(), 8000),
        "'a .wav' and 'a.wav' are one name",
    ),
    "lost clip": (
        lambda r: (r / "evaluation" / "a.wav").unlink(),
        "1 of 2 clips are lost, at most 1% may be; first 'a.wav': named in",
    ),
    "no captions": (
        lambda r: break_captions(r, HEADER + b"a.wav, ,,,,\nb.wav,1,2,3,4,5\n"),
        "first 'a.wav': all captions are empty",
    ),
    "nothing usable": (
        lambda r: break_captions(r, HEADER + b"c.wav,1,2,3,4,5\n"),
        "none of its 1 clips is usable; first 'c.wav'",
    ),
}


@pytest.mark.parametrize("name", BAD_CORPORA)
def test_bad_corpus_is_one_line(tmp_path, capsys, name):
    damage, expected = BAD_CORPORA[name]
    damage(write_split(tmp_path))
    assert build(tmp_path) == 2
    assert expected in error_line(capsys)
    assert_nothing_built(tmp_path)


def test_the_default_root_is_where_the_configurations_look(tmp_path, monkeypatch, capsys):
    assert (
        Path(load_config(ROOT / "configs" / "tap.yaml").data.cache) == build_clotho.ROOT / "cache"
    )
    monkeypatch.chdir(tmp_path)
    assert build_clotho.main([]) == 2
    line = error_line(capsys)
    assert f"data/clotho_v2 (in {tmp_path})" in line and "--download" in line and "11.1 GB" in line
    assert build_clotho.main(["--splits", "evaluation"]) == 2
    assert "2.0 GB" in error_line(capsys) and list(tmp_path.iterdir()) == []
    write_split(tmp_path / "data" / "clotho_v2")
    assert build_clotho.main(["--splits", "evaluation", "--num-proc", "1"]) == 0
    assert (tmp_path / "data" / "clotho_v2" / "cache" / "cache.json").is_file()


def test_missing_root_and_the_splits_that_are_there(tmp_path, capsys):
    assert build_clotho.main(["--root", str(tmp_path / "nowhere")]) == 2
    line = error_line(capsys)
    assert (
        str(tmp_path / "nowhere") in line
        and "--download" in line
        and "zenodo.org" in line
        and " GB" in line
        and "--root" in line
    )
    write_split(tmp_path)
    assert build_clotho.main(["--root", str(tmp_path)]) == 2
    assert error_line(capsys).endswith(
        "development is missing: fetch it with --download, or leave the split out: --splits"
        " evaluation"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        "--sample-rate 100",
        "--num-proc 0",
        "--splits test",
        "--codec opus",
        "--codec mp3 --sample-rate 96000",
        "--allow-missing 101",
    ]
    + ["--max-seconds -1", "--base-url http://x", "--output ROOT", "--nonsense"],
)
def test_bad_arguments_are_one_line(tmp_path, capsys, arguments):
    write_split(tmp_path)
    arguments = arguments.replace("ROOT", str(tmp_path)).split()
    try:
        code = build_clotho.main(["--root", str(tmp_path), "--splits", "evaluation", *arguments])
    except SystemExit as end:
        code = end.code
    assert code == 2
    error_line(capsys)


def damaged_audio(folder):
    """Name -> expected reason, for one file of each kind of damage."""
    whole = folder / "whole.wav"
    soundfile.write(whole, tone(0.5), 44_100)
    content = whole.read_bytes()
    whole.unlink()
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_bytes(b"this is no audio" * 50)
    (folder / "cut.wav").write_bytes(content[: len(content) // 2])
    (folder / "header.wav").write_bytes(content[:44])
    soundfile.write(folder / "zero.wav", np.zeros(0), 44_100)
    samples = tone(0.5)
    soundfile.write(folder / "long.flac", tone(3.0), 44_100, format="FLAC")
    flac = (folder / "long.flac").read_bytes()
    (folder / "long.flac").unlink()
    (folder / "cutflac.wav").write_bytes(flac[: len(flac) // 2])
    for name, value in (("nan.wav", np.nan), ("inf.wav", np.inf)):
        samples[100] = value
        soundfile.write(folder / name, samples, 44_100, subtype="FLOAT")
    return {
        "empty.wav": "empty file (0 bytes)",
        "text.wav": "is not a sound file",
        "cut.wav": "truncated: the header announces 44100 bytes of audio, the file holds 22028",
        "header.wav": "truncated",
        "zero.wav": "no samples",
        "cutflac.wav": "cannot be decoded",
        "nan.wav": "NaN or infinite",
        "inf.wav": "NaN or infinite",
    }


def test_damaged_audio_is_listed_with_reason(tmp_path):
    for name, reason in damaged_audio(tmp_path).items():
        with pytest.raises(UnreadableSound) as caught:
            encode_clip(str(tmp_path / name), 32_000, "pcm_s16le")
        assert reason in str(caught.value)
    with pytest.raises(UnreadableSound, match="cannot be read: No such file"):
        encode_clip(str(tmp_path / "gone.wav"), 32_000, "pcm_s16le")


def test_a_wav_of_unknown_length_is_read(tmp_path):
    path = tmp_path / "piped.wav"
    soundfile.write(path, tone(), 44_100)
    content = bytearray(path.read_bytes())
    content[40:44] = b"\xff\xff\xff\xff"  # what ffmpeg writes to a pipe
    path.write_bytes(content)
    assert encode_clip(str(path), 32_000, "pcm_s16le").num_samples == 3200


def test_more_than_one_percent_lost_stops_unless_allowed(tmp_path, capsys):
    root = write_split(tmp_path, names=["a.wav", "b.wav", "empty.wav", "nan.wav"])
    damaged_audio(root / "evaluation")
    assert build(root) == 2
    captured = capsys.readouterr()
    assert "2 of 4 clips are lost" in captured.err and captured.err.count("\n") == 1
    assert "evaluation/nan.wav: holds samples that are NaN" in captured.out
    assert_nothing_built(root)
    assert build(root, "--allow-missing") == 0
    output = capsys.readouterr().out
    assert (
        "going on with an interrupted build: 1 of 1 shards" in output
        and "evaluation/empty.wav: empty file" in output
    )
    assert load(root / "cache")["file_name"][:] == ["a.wav", "b.wav"]
    info = json.loads((root / "cache" / "cache.json").read_text())
    assert (
        info["splits"]["evaluation"]["num_lost"] == 2
        and info["splits"]["evaluation"]["num_unused"] == 6
    )
    reasons = {item["file_name"]: item["reason"] for item in info["skipped"]}
    assert reasons["cut.wav"] == "no row in the captions CSV" and "NaN" in reasons["nan.wav"]


def test_one_percent_lost_is_accepted(tmp_path, capsys):
    root = write_split(tmp_path, names=[f"{index}.wav" for index in range(100)], seconds=0.01)
    (root / "evaluation" / "5.wav").write_bytes(b"")
    assert build(root) == 0
    assert len(load(root / "cache")) == 99
    assert "evaluation/5.wav: empty file (0 bytes)" in capsys.readouterr().out


def test_a_shard_without_a_usable_clip_is_left_out(tmp_path):
    root = write_split(tmp_path, names=[f"{index:02d}.wav" for index in range(16)])
    for index in range(8):
        (root / "evaluation" / f"{index:02d}.wav").write_bytes(b"")
    assert build(root, "--allow-missing") == 0
    assert load(root / "cache")["file_name"][:] == [f"{index:02d}.wav" for index in range(8, 16)]


# ---- existing caches


def test_a_finished_cache_is_left_alone_until_overwritten(tmp_path, capsys):
    root = write_split(tmp_path)
    assert build(root) == 0
    info = root / "cache" / "cache.json"
    before = info.stat()
    assert build(root) == 0
    assert "already built" in capsys.readouterr().out
    after = info.stat()  # reading changes st_atime
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert build(root, "--sample-rate", "16000") == 2
    assert "its sample_rate is 32000, not 16000: add --overwrite" in error_line(capsys)
    soundfile.write(root / "evaluation" / "a.wav", tone(0.3), 44_100)
    assert build(root) == 2
    assert "the files or captions of evaluation have changed since" in error_line(capsys)
    assert build(root, "--overwrite", "--sample-rate", "16000") == 0
    assert load(root / "cache")["num_samples"][:] == [4800, 1600]
    assert not (root / ".cache.old").exists() and not (root / "cache.partial").exists()


def test_a_split_that_is_not_in_the_cache_is_named(tmp_path, capsys):
    write_split(write_split(tmp_path), "validation")
    assert build(tmp_path) == 0
    capsys.readouterr()
    assert build(tmp_path, "--splits", "evaluation", "validation") == 2
    assert "it has no split validation: add --overwrite" in error_line(capsys)


def test_a_folder_that_is_no_cache_is_never_replaced(tmp_path, capsys):
    root = write_split(tmp_path)
    (root / "cache").mkdir()
    (root / "cache" / "notes.txt").write_text("someone's file")
    assert build(root, "--overwrite") == 2
    assert "exists and is not a finished cache" in error_line(capsys)
    assert (root / "cache" / "notes.txt").exists()


@pytest.mark.parametrize("damage", ['{"schema": 1', "[]", "{}", '{"splits": {}, "skipped": [{}]}'])
def test_a_damaged_cache_can_be_overwritten(tmp_path, capsys, damage):
    root = write_split(tmp_path)
    assert build(root) == 0
    (root / "cache" / "cache.json").write_text(damage)
    capsys.readouterr()
    assert build(root) == 2
    assert "its cache.json is damaged: add --overwrite" in error_line(capsys)
    assert build(root, "--overwrite") == 0
    assert len(load(root / "cache")) == 2


# ---- interruption


def interrupt_after(monkeypatch, num_clips, error):
    """Raise `error` in place of the clip after `num_clips`."""
    calls = []

    def encode_or_fail(*arguments):
        calls.append(arguments)
        if len(calls) > num_clips:
            raise error
        return encode_clip(*arguments)

    monkeypatch.setattr(shards, "encode_clip", encode_or_fail)
    return calls


def test_ctrl_c_keeps_finished_shards(tmp_path, capsys, monkeypatch):
    root = write_split(tmp_path, names=[f"{index:02d}.wav" for index in range(24)])
    interrupt_after(monkeypatch, 18, KeyboardInterrupt())
    assert build(root) == 130
    assert capsys.readouterr().err == "interrupted: run the same command again to go on from here\n"
    assert_nothing_built(root)
    calls = interrupt_after(monkeypatch, 99, None)
    assert build(root) == 0
    assert len(calls) == 8 and "2 of 3 shards are ready" in capsys.readouterr().out


def test_only_shards_of_the_same_settings_and_files_are_reused(tmp_path, monkeypatch):
    root = write_split(tmp_path, names=[f"{index:02d}.wav" for index in range(24)])
    interrupt_after(monkeypatch, 20, KeyboardInterrupt())
    assert build(root) == 130
    calls = interrupt_after(monkeypatch, 10, KeyboardInterrupt())
    assert build(root, "--sample-rate", "16000") == 130
    # the two shards at 32 kHz were not used; the first at 16 kHz is finished
    assert len(calls) == 11
    os.utime(root / "evaluation" / "03.wav", (1, 1))
    calls = interrupt_after(monkeypatch, 99, None)
    assert build(root, "--sample-rate", "16000") == 0
    assert len(calls) == 24  # nor the shard with a changed file
    assert set(load(root / "cache")["num_samples"][:]) == {1600}


def test_a_damaged_shard_is_not_reused(tmp_path, monkeypatch):
    root = write_split(tmp_path, names=[f"{index:02d}.wav" for index in range(16)])
    interrupt_after(monkeypatch, 8, KeyboardInterrupt())
    assert build(root) == 130
    shard = next((root / "cache.partial").rglob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-100])
    calls = interrupt_after(monkeypatch, 99, None)
    assert build(root) == 0 and len(calls) == 16


def test_disk_full_is_one_line_and_resumable(tmp_path, capsys, monkeypatch):
    root = write_split(tmp_path)
    monkeypatch.setattr(
        os,
        "fsync",
        lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")),
    )
    assert build(root) == 2
    assert "cannot be written (No space left on device)" in error_line(capsys)
    assert_nothing_built(root)
    assert not [
        path
        for path in (root / "cache.partial").rglob("*")
        if path.suffix in (".arrow", ".json", ".tmp")
    ]
    monkeypatch.undo()
    assert build(root) == 0


@pytest.mark.parametrize("num_proc", ["1", "2"])
def test_file_size_limit_is_one_line(tmp_path, capsys, num_proc):
    root = write_split(tmp_path, names=[f"{index:02d}.wav" for index in range(16)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))  # a shard needs 51 kB
    try:
        assert build(root, "--num-proc", num_proc) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written (File too large)" in error_line(capsys)
    assert not list((root / "cache.partial").rglob("*.arrow"))


def write_long_split(folder, num_clips=240):
    """A split whose build takes seconds, so that a slow test finds it at work."""
    root = write_split(
        folder, names=[f"{index:03d}.wav" for index in range(num_clips)], seconds=0.001
    )
    first, *others = sorted((root / "evaluation").iterdir())
    soundfile.write(first, tone(10.0), 44_100)
    for path in others:
        path.unlink()
        os.link(first, path)
    return root


def test_ctrl_c_with_workers_is_one_line(tmp_path):
    root = write_long_split(tmp_path)
    process = subprocess.Popen(
        [*BUILD, str(root)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: list((root / "cache.partial").rglob("*.tmp")), process)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to the workers too
    assert (
        process.communicate(timeout=PATIENCE)[1]
        == "interrupted: run the same command again to go on from here\n"
    )
    assert process.returncode == 130
    assert_nothing_built(root)


def test_two_builds_at_once_are_refused(tmp_path, capsys):
    root = write_split(tmp_path)
    with locked(root / "cache.partial" / LOCK):
        assert build(root) == 2
    assert f"is at work in {root / 'cache.partial'}" in error_line(capsys)


def test_a_killed_build_goes_on_and_gives_the_same_cache(tmp_path):
    root = write_long_split(tmp_path / "corpus")
    process = subprocess.Popen(
        [*BUILD, str(root)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    reports = root / "cache.partial" / "reports"
    wait_for(lambda: list(reports.glob("*.json")), process)
    workers = [pid for pid, (_, parent) in running_processes().items() if parent == process.pid]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert_nothing_built(root)
    # they end with their parent
    wait_for(lambda: all(running_processes().get(pid, "Z")[0] == "Z" for pid in workers))
    shards = (root / "cache.partial" / "cache").rglob("*.arrow")
    ready = {
        path: path.stat().st_ino
        for path in shards
        if (reports / f"evaluation{path.stem[4:]}.json").exists()
    }
    assert ready
    assert build(root) == 0
    for path, inode in ready.items():
        assert (root / "cache" / "evaluation" / path.name).stat().st_ino == inode
    assert build(root, "--output", str(tmp_path / "uninterrupted")) == 0
    for path in (root / "cache" / "evaluation").iterdir():
        assert (
            path.read_bytes()
            == (tmp_path / "uninterrupted" / "evaluation" / path.name).read_bytes()
        ), path.name


def test_a_killed_worker_costs_no_clip(tmp_path):
    root = write_long_split(tmp_path / "corpus", num_clips=48)
    process = subprocess.Popen(
        [*BUILD, str(root), "--quiet"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: list((root / "cache.partial").rglob("*.tmp")), process)
    children = [pid for pid, (_, parent) in running_processes().items() if parent == process.pid]
    worker = next(
        pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    os.kill(worker, signal.SIGKILL)  # as the system does where memory is short
    lines = process.communicate(timeout=PATIENCE)[1].splitlines()
    assert (
        process.returncode == 0
        and len(lines) == 1
        and "worker process was killed" in lines[0]
        and "continuing with 1" in lines[0]
    )
    assert build(root, "--output", str(tmp_path / "uninterrupted")) == 0
    files = sorted((root / "cache" / "evaluation").iterdir())
    assert [path.name for path in files] == sorted(
        path.name for path in (tmp_path / "uninterrupted" / "evaluation").iterdir()
    )
    for path in files:
        assert (
            path.read_bytes()
            == (tmp_path / "uninterrupted" / "evaluation" / path.name).read_bytes()
        ), path.name


def test_a_last_worker_that_is_killed_is_one_line(tmp_path, monkeypatch, capsys):
    """Each of them, so that there is no going on."""
    root = write_split(tmp_path, names=[f"{index:03d}.wav" for index in range(20)])

    def killed(jobs, num_proc, num_ready, progress):
        numbers.append(num_proc)
        raise shards.BrokenProcessPool

    numbers = []
    monkeypatch.setattr(shards, "_run_pool", killed)
    assert (
        build_clotho.main(
            ["--root", str(root), "--splits", "evaluation", "--num-proc", "3", "--quiet"]
        )
        == 2
    )
    note, error = capsys.readouterr().err.splitlines()
    assert numbers == [3, 1] and "continuing with 1" in note
    assert error.startswith("error: ") and "000.wav to 007.wav" in error


@pytest.mark.skipif(not EXCERPT.is_dir(), reason="the excerpt of real Clotho clips is not here")
def test_real_clotho_clips(tmp_path, capsys):
    assert build(EXCERPT, "--output", str(tmp_path / "cache")) == 0
    split = load(tmp_path / "cache")
    assert len(split) == 7 and all(len(captions) == 5 for captions in split["captions"])
    for row in split:
        announced = json.loads(row["start_end_samples"])[1]  # at 44.1 kHz
        assert abs(row["num_samples"] - announced * 32_000 / 44_100) <= 2, row["file_name"]
    assert capsys.readouterr().out.splitlines()[1].split()[:5] == [
        "evaluation",
        "7",
        "0.04",
        "35",
        "0",
    ]
