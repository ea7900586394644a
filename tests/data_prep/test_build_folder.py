"""data_prep/build_folder.py: captions as text or CSV, spellings of names, splits, bad input."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep import build_folder
from retrieval.base import decoder_process
from retrieval.base.errors import UserError
from retrieval.data import open_cache
from tests.conftest import PATIENCE
from tests.corpora import (
    assert_refused,
    load,
    read_info,
    reasons,
    run_build,
    truncate,
    write_csv,
    write_sound,
)


def build(audio: Path, *arguments: object) -> int:
    return run_build(build_folder, {"--audio": audio}, *arguments)


def captions_by_name(cache: Path, split: str = "development") -> dict[str, list[str]]:
    clips = open_cache(cache).split(split)
    return dict(zip(clips.file_names, clips.captions, strict=True))


def write_numbered(root: Path, num_clips: int) -> list[list[str]]:
    """Sounds, and two rows for each of them that do not stand side by side."""
    names = [write_sound(root / "audio" / f"{number:02d}.wav").name for number in range(num_clips)]
    return [[name, f"Caption {number} of {name}."] for number in (1, 2) for name in names]


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    """A folder with the sounds a.wav and b.wav."""
    return write_sound(write_sound(tmp_path / "audio" / "a.wav").with_name("b.wav")).parent


# ---- what the cache holds


def test_text_files_beside_the_audio(tmp_path, capsys):
    for name in (
        "dog.WAV",
        "sub/folder/cat 1.5.flac",
        "sub/bird.mp3",
        "silent.wav",
        ".hidden.wav",
        "._dog.wav",
    ):
        write_sound(tmp_path / name)
    (tmp_path / "dog.txt").write_text(
        "\ufeffA dog  barks.\r\n\r\n A dog\thowls. \n", encoding="utf-8"
    )
    (tmp_path / "sub/folder/cat 1.5.txt").write_text("A cat.", encoding="utf-8")
    (tmp_path / "sub/bird.txt").write_text("Ein Käuzchen.\n", encoding="utf-8")
    assert build(tmp_path) == 0
    clips = open_cache(tmp_path / "cache", 16_000).split("development")
    assert clips.file_names == ["dog.WAV", "sub/bird.mp3", "sub/folder/cat 1.5.flac"]
    assert clips.clip_ids == [f"development/{name}" for name in clips.file_names]
    assert clips.captions == [["A dog barks.", "A dog howls."], ["Ein Käuzchen."], ["A cat."]]
    assert clips.num_samples[[0, 2]].tolist() == [1_600, 1_600]
    info = read_info(tmp_path / "cache")
    assert (info["schema"], info["corpus"], info["codec"], info["sample_rate"]) == (
        1,
        "folder",
        "pcm_s16le",
        16_000,
    )
    assert "max_seconds" not in info and list(info["splits"]) == ["development"]
    numbers = {
        "num_clips": 3,
        "num_captions": 4,
        "num_lost": 0,
        "num_unused": 1,
        "num_excluded": {},
        "num_cut_clips": 0,
    }
    assert numbers.items() <= info["splits"]["development"].items()
    assert info["skipped"] == [
        {"split": "development", "file_name": "silent.wav", "reason": "no captions"}
    ]
    assert "development/silent.wav: no captions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("header", "rows", "expected"),
    [
        ("file_name,caption", ["a.wav,One.", "b.wav,Other.", "a.wav,  Two\t "], ["One.", "Two"]),
        (
            "caption_10,note,caption_2,file_name,caption_1",
            ["ten,x,two,a.wav,one", "ten,x,two,b.wav,one"],
            ["one", "two", "ten"],
        ),
        (
            "file_name,caption_1,caption_2",
            ["a.wav,,two", "b.wav,one,", 'a.wav,"three, or\nmore",'],
            ["two", "three, or more"],
        ),
        (
            "\ufefffile_name , caption,caption_1",
            ["a.wav,plain,numbered", "b.wav,x,y"],
            ["plain", "numbered"],
        ),
    ],
)
def test_captions_of_a_csv(tmp_path, audio, header, rows, expected):
    (tmp_path / "captions.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
    assert build(audio, "--csv", tmp_path / "captions.csv", "--output", tmp_path / "mine") == 0
    found = captions_by_name(tmp_path / "mine")
    assert (
        found["a.wav"] == expected
        and list(found) == ["a.wav", "b.wav"]
        and not (audio / "cache").exists()
    )


def test_names_are_found_in_every_spelling(tmp_path):
    on_disk = [
        "Cafe\u0301.wav",
        "na\u00efve.wav",
        "sub/a.wav",
        "sub/deep er/b.wav",
        "c.wav",
        "sub/c.wav",
    ]
    in_csv = [
        "Caf\u00e9.wav",
        "nai\u0308ve.wav",
        "sub\\a.wav",
        " sub//deep er\\b.wav ",
        "./c.wav",
        "sub/c.wav",
    ]
    for name in on_disk:
        write_sound(tmp_path / "audio" / name)
    os.rename(
        write_sound(tmp_path / "audio" / "latin.wav"),
        os.fsencode(tmp_path / "audio") + b"/b\xe9b\xe9.wav",
    )
    rows = [[name, str(number)] for number, name in enumerate([*in_csv, "b\u00e9b\u00e9.wav"])]
    table = write_csv(tmp_path / "captions.csv", ["file_name", "caption"], rows)
    assert build(tmp_path / "audio", "--csv", table) == 0
    names = [
        "Caf\u00e9.wav",
        "na\u00efve.wav",
        "sub/a.wav",
        "sub/deep er/b.wav",
        "c.wav",
        "sub/c.wav",
        "b\u00e9b\u00e9.wav",
    ]
    assert captions_by_name(tmp_path / "audio" / "cache") == {
        name: [str(number)] for number, name in enumerate(names)
    }


def test_of_several_formats_of_a_clip_one_is_read(tmp_path):
    for name in ("a.m4a", "a.mp3", "a.wav", "b.flac", "b.m4a"):
        write_sound(tmp_path / name)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("A sound.")
    assert build(tmp_path) == 0
    assert list(captions_by_name(tmp_path / "cache")) == ["a.wav", "b.flac"]


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    write_sound(tmp_path / "elsewhere" / "a.wav")
    (tmp_path / "elsewhere" / "a.txt").write_text("A sound.")
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "linked").symlink_to("../elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to("../audio")
    assert build(tmp_path / "audio") == 0
    assert list(captions_by_name(tmp_path / "audio" / "cache")) == ["linked/a.wav"]


@pytest.mark.parametrize(("codec", "error"), [("flac", 0), ("mp3", 500)])
def test_codecs_and_the_cut(tmp_path, codec, error):
    samples = np.round(8_000 * np.sin(np.arange(4_000) / 10)).astype(np.int16)
    for name, size in (("long", 4_000), ("short", 800)):
        soundfile.write(tmp_path / f"{name}.wav", samples[:size], 16_000)
        (tmp_path / f"{name}.txt").write_text("A tone.")
    assert build(tmp_path, "--codec", codec, "--max-seconds", "0.1") == 0
    cache = open_cache(tmp_path / "cache")
    clips = cache.split("development")
    assert clips.num_samples.tolist() == [1_600, 800]
    assert np.abs(32_768 * clips.read(0) - samples[:1_600]).max() <= error
    assert (
        cache.info["codec"],
        cache.info["max_seconds"],
        cache.info["splits"]["development"]["num_cut_clips"],
    ) == (codec, 0.1, 1)


def test_what_cannot_be_used_is_listed(tmp_path, capsys):
    for name in ("good.wav", "mute.wav"):
        write_sound(tmp_path / name)
    for name in ("cut.wav", "film.m4a"):
        truncate(write_sound(tmp_path / name))
    (tmp_path / "nowhere.wav").symlink_to("gone.wav")
    rows = [
        [name, "A sound."]
        for name in ("good.wav", "cut.wav", "film.m4a", "nowhere.wav", "absent.wav")
    ]
    table = write_csv(
        tmp_path / "captions.csv", ["file_name", "caption"], [*rows, ["mute.wav", " "]]
    )
    assert_refused(
        build(tmp_path, "--csv", table),
        "3 of 6 clips are lost, at most 1% may be; first ",
        tmp_path / "cache",
        capsys,
    )
    assert build(tmp_path, "--csv", table, "--allow-missing", "84") == 0
    found = reasons(read_info(tmp_path / "cache")["skipped"])
    assert found.pop("cut.wav").startswith("truncated: the header announces 3200 bytes")
    assert "truncated" in found.pop("film.m4a")
    assert found == {
        "nowhere.wav": "is a link that leads nowhere",
        "absent.wav": "named in the CSV, no such audio file",
        "mute.wav": "all captions are empty",
    }
    assert list(captions_by_name(tmp_path / "cache")) == ["good.wav"]


def test_a_file_that_is_there_is_never_called_absent(tmp_path, audio, capsys):
    outside = write_sound(tmp_path / "outside.wav")
    soundfile.write(audio / "c.dat", np.zeros(1_600), 16_000, format="WAV")
    write_sound(audio / ".hidden.wav")
    (audio / "notes.pdf").write_bytes(b"%PDF-1.7")
    (audio / "sub.wav").mkdir()
    names = {
        "c.dat": None,
        str(audio / "a.wav"): "relative to --audio",
        "../outside.wav": "relative to --audio",
        str(outside): "relative to --audio",
        ".hidden.wav": "hidden",
        "notes.pdf": "is not a sound file",
        "sub.wav": "not a file",
        "gone.wav": "no such audio file",
    }
    table = write_csv(
        tmp_path / "captions.csv", ["file_name", "caption"], [[name, "A sound."] for name in names]
    )
    assert build(audio, "--csv", table, "--allow-missing") == 0
    found = reasons(read_info(audio / "cache")["skipped"])
    assert [name for name, reason in names.items() if reason and reason not in found[name]] == []
    assert list(captions_by_name(audio / "cache")) == ["c.dat"]
    assert "passed over, since they are not sound files: 1 .pdf" in capsys.readouterr().out


def test_channels_that_cancel_are_counted(tmp_path, capsys):
    wave = np.sin(np.arange(16_000) / 20) / 2
    soundfile.write(tmp_path / "a.wav", np.stack([wave, -wave], axis=1), 16_000)
    soundfile.write(tmp_path / "b.wav", np.stack([wave, wave], axis=1), 16_000)
    assert build(tmp_path, "--without-captions") == 0
    assert read_info(tmp_path / "cache")["splits"]["evaluation"]["num_one_channel_clips"] == 1
    assert "the channels of 1 clips cancel" in capsys.readouterr().out
    clips = open_cache(tmp_path / "cache").split("evaluation", need_captions=False)
    assert np.abs(clips.read(0) - wave).max() < 1e-3 and np.abs(clips.read(1) - wave).max() < 1e-3


def test_without_captions_every_file_is_a_clip(tmp_path, capsys):
    """Which of two formats is meant the labels say."""
    for name in ("a.wav", "a.mp3", "sub/b.flac", "film.m4a", "film.wav"):
        write_sound(tmp_path / "audio" / name)
    (tmp_path / "audio" / "a.txt").write_text("Not read.")
    cache = tmp_path / "audio" / "cache"
    assert build(tmp_path / "audio", "--without-captions") == 0
    clips = open_cache(cache).split("evaluation", need_captions=False)
    assert clips.file_names == ["a.mp3", "a.wav", "film.m4a", "film.wav", "sub/b.flac"]
    assert clips.captions == [[]] * 5 and clips.num_samples.min() > 0
    assert (
        read_info(cache)["skipped"] == []
        and read_info(cache)["splits"]["evaluation"]["num_captions"] == 0
    )
    with pytest.raises(UserError, match="has no captions"):
        open_cache(cache).split("evaluation")
    assert (
        build(tmp_path / "audio", "--without-captions", "--overwrite", "--fractions", 0.5, 0, 0.5)
        == 0
    )
    assert list(splits_of(cache).values()) == ["development"] * 2 + ["evaluation"] * 3
    (tmp_path / "audio" / "other.m4a").write_text("<!DOCTYPE html><title>404</title>")
    code = build(tmp_path / "audio", "--without-captions", "--output", tmp_path / "x")
    assert_refused(
        code, "first 'other.m4a': is not a sound file, it is a web page", tmp_path / "x", capsys
    )


# ---- who goes to which split


def splits_of(cache: Path) -> dict[str, str]:
    """File name -> split; a clip in two of them would be an error."""
    found = {split: load(cache, split)["file_name"][:] for split in open_cache(cache).split_names}
    assert len({name for names in found.values() for name in names}) == sum(
        map(len, found.values())
    )
    return {name: split for split, names in found.items() for name in names}


def test_a_column_says_the_split(tmp_path):
    rows = [
        [*row, ["evaluation", "development", " validation"][int(row[0][:2]) % 3]]
        for row in write_numbered(tmp_path, 6)
    ]
    table = write_csv(tmp_path / "captions.csv", ["file_name", "caption", "split"], rows)
    assert build(tmp_path / "audio", "--csv", table) == 0
    assert list(read_info(tmp_path / "audio" / "cache")["splits"]) == [
        "development",
        "validation",
        "evaluation",
    ]
    assert splits_of(tmp_path / "audio" / "cache") == {row[0]: row[2].strip() for row in rows}
    clip = load(tmp_path / "audio" / "cache", "validation")[0]
    assert clip["clip_id"] == "validation/02.wav" and clip["captions"] == [
        "Caption 1 of 02.wav.",
        "Caption 2 of 02.wav.",
    ]


def test_all_clips_go_to_the_split_that_is_asked_for(tmp_path):
    table = write_csv(
        tmp_path / "captions.csv", ["file_name", "caption"], write_numbered(tmp_path, 2)
    )
    assert build(tmp_path / "audio", "--csv", table, "--split", "evaluation") == 0
    assert splits_of(tmp_path / "audio" / "cache") == {
        "00.wav": "evaluation",
        "01.wav": "evaluation",
    }


def test_fractions_deal_out_clips_whatever_their_order(tmp_path):
    rows = write_numbered(tmp_path, 20)

    def dealt(rows: list[list[str]], *arguments: object) -> dict[str, str]:
        table = write_csv(tmp_path / "captions.csv", ["file_name", "caption"], rows)
        assert (
            build(
                tmp_path / "audio",
                "--csv",
                table,
                "--overwrite",
                "--fractions",
                0.7,
                0.2,
                0.1,
                *arguments,
            )
            == 0
        )
        assert all(
            len(captions) == 2
            for captions in captions_by_name(tmp_path / "audio" / "cache").values()
        )
        return splits_of(tmp_path / "audio" / "cache")

    first = dealt(rows)
    assert [list(first.values()).count(split) for split in build_folder.SPLITS] == [14, 4, 2]
    assert dealt(rows[::-1]) == dealt(rows[::2] + rows[1::2], "--seed", 0) == first
    assert dealt(rows, "--seed", 1) != first  # the negative control
    assert [name for name in sorted(first) if first[name] != "development"] != [
        f"{number:02d}.wav" for number in range(14, 20)
    ]


def test_a_share_of_zero_leaves_a_split_out(tmp_path):
    for row in write_numbered(tmp_path, 4):
        (tmp_path / "audio" / row[0]).with_suffix(".txt").write_text(row[1])
    assert build(tmp_path / "audio", "--fractions", 0.5, 0, 0.5) == 0
    assert (
        sorted(splits_of(tmp_path / "audio" / "cache").values())
        == ["development"] * 2 + ["evaluation"] * 2
    )


def test_text_behind_a_closed_quote_is_kept(tmp_path):
    """As pandas and spreadsheets read it; a quote that is not closed is an error (below)."""
    write_sound(tmp_path / "audio" / "a.wav")
    (tmp_path / "captions.csv").write_text('file_name,caption\na.wav,"Bark" of a "dog".\n')
    assert build(tmp_path / "audio", "--csv", tmp_path / "captions.csv") == 0
    assert load(tmp_path / "audio" / "cache", "development")["captions"][:] == [
        ['Bark of a "dog".']
    ]


# ---- a cache that is there


def test_a_lost_clip_that_is_new_in_the_csv_is_a_change(tmp_path, capsys):
    header, rows = ["file_name", "caption"], write_numbered(tmp_path, 8)
    table = write_csv(tmp_path / "captions.csv", header, [*rows, ["absent.wav", "A caption."]])
    arguments = [tmp_path / "audio", "--csv", table, "--split", "evaluation"]
    assert build(*arguments, "--allow-missing") == 0 and build(*arguments) == 0
    capsys.readouterr()
    write_csv(table, header, [*rows, *([name, "A caption."] for name in ("absent.wav", "new.wav"))])
    assert build(*arguments) == 2
    expected = "1 clips are lost that were not when it was built, first 'new.wav'"
    assert expected in capsys.readouterr().err


def test_a_second_run_has_nothing_to_do_until_something_changes(tmp_path, capsys):
    table = write_csv(
        tmp_path / "captions.csv", ["file_name", "caption"], rows := write_numbered(tmp_path, 8)
    )
    arguments = [tmp_path / "audio", "--csv", table, "--fractions", 0.5, 0.25, 0.25]
    assert build(*arguments) == 0
    before = read_info(tmp_path / "audio" / "cache")
    capsys.readouterr()
    assert build(*arguments) == 0
    assert "already built with these settings; nothing to do" in capsys.readouterr().out
    assert build(*arguments, "--seed", 1) == 2
    assert "have changed since it was built: add --overwrite" in capsys.readouterr().err
    write_csv(table, ["file_name", "caption"], [*rows, ["00.wav", "A third caption."]])
    assert build(*arguments) == 2
    assert "have changed since it was built" in capsys.readouterr().err
    assert build(*arguments, "--max-seconds", "0.05") == 2
    assert "its max_seconds is None, not 0.05: add --overwrite" in capsys.readouterr().err
    assert read_info(tmp_path / "audio" / "cache") == before
    assert build(*arguments, "--overwrite") == 0
    assert (
        sum(
            split["num_captions"]
            for split in read_info(tmp_path / "audio" / "cache")["splits"].values()
        )
        == 17
    )


# ---- bad input

GOOD = b"file_name,caption\na.wav,One.\nb.wav,Two.\n"
BAD_TABLES = {
    "absent": (None, "captions.csv cannot be read: No such file or directory"),
    "empty": (b"", "column file_name must occur once in its first line, found: nothing"),
    "no rows": (b"file_name,caption\n", "captions.csv has no rows"),
    "no captions": (
        b"file_name,text\na.wav,One.\n",
        "expected a column caption, or caption_1, caption_2, ...; found: file_name, text",
    ),
    "semicolons": (
        b"file_name;caption\na.wav;One.\n",
        "must occur once in its first line, found: file_name;caption",
    ),
    "two of a column": (
        b"file_name,caption,caption\na.wav,One.,Two.\n",
        "column caption must occur once",
    ),
    "break in a column": (
        b'"file\nname",caption\na.wav,One.\n',
        "column file_name must occur once",
    ),
    "not UTF-8": (
        b"file_name,caption\na.wav,\xe9t\xe9\n",
        "captions.csv is not UTF-8: invalid continuation byte at byte 24",
    ),
    "cut off": (GOOD[:-6], "line 3: 1 fields, expected 2; is a quote missing or the file cut off?"),
    "cut off in quotes": (
        GOOD + b'a.wav,"Rain, fal',
        "line 4: unexpected end of data; is a quote missing or the file cut off?",
    ),
    "quote not closed, old Mac": (
        b'file_name,caption\ra.wav,"One.\rb.wav,"Two"\r',
        "is a quote missing",
    ),
    "quote not closed": (
        b'file_name,caption\na.wav,"One.\nb.wav,"Two."\n',
        "line 3: ',' expected after '\"'; is a quote missing",
    ),
    "too many fields": (
        b"file_name,caption\na.wav,Rain, falling.\n",
        "line 2: 3 fields, expected 2",
    ),
    "unknown split": (
        b"file_name,caption,split\na.wav,One.,train\n",
        "split 'train' of 'a.wav' is none of development, validation, evaluation",
    ),
    "two splits": (
        b"file_name,caption,split\na.wav,x,evaluation\n./a.wav,x,validation\n",
        "'./a.wav' is in evaluation and in validation",
    ),
    "empty captions": (
        b"file_name,caption\na.wav,One.\nb.wav, \n",
        "1 of 2 clips are lost, at most 1% may be; first 'b.wav': all captions are",
    ),
    "no such file": (
        GOOD + b'"c\n.wav",x\n',
        (
            "1 of 3 clips are lost, at most 1% may be; first 'c\\n.wav': named in the CSV, no such"
            " audio file"
        ),
    ),
    "nothing usable": (
        b"file_name,caption\nc.wav,One.\n",
        "none of its 1 clips is usable; first 'c.wav'",
    ),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_one_line(tmp_path, audio, capsys, name):
    content, expected = BAD_TABLES[name]
    if content is not None:
        (tmp_path / "captions.csv").write_bytes(content)
    assert_refused(
        build(audio, "--csv", tmp_path / "captions.csv"), expected, audio / "cache", capsys
    )


def test_bad_folders_are_one_line(tmp_path, capsys):
    assert_refused(
        build(tmp_path / "audio"),
        "audio is not a folder: expected the folder with the audio",
        tmp_path / "audio",
        capsys,
    )
    (tmp_path / "audio" / "sub").mkdir(parents=True)
    cache = tmp_path / "audio" / "cache"
    assert_refused(build(tmp_path / "audio"), "audio holds no audio file", cache, capsys)
    (tmp_path / "audio" / "sub" / "a.m4a").write_bytes(bytes(100))
    assert_refused(
        build(tmp_path / "audio"),
        "no audio file has a .txt file of the same name beside it",
        cache,
        capsys,
    )
    (tmp_path / "audio" / "sub" / "a.txt").write_text("A sound.")
    assert_refused(
        build(tmp_path / "audio"),
        "none of its 1 clips is usable; first 'sub/a.m4a': is not a sound file",
        cache,
        capsys,
    )
    (tmp_path / "audio" / "sub" / "a.txt").write_bytes(b"\xe9t\xe9")
    assert_refused(
        build(tmp_path / "audio"), "a.txt cannot be read: it is not UTF-8", cache, capsys
    )
    for name in ("Cafe\u0301.wav", "Caf\u00e9.wav"):
        write_sound(tmp_path / "audio" / name)
    assert_refused(
        build(tmp_path / "audio"),
        "two files are named 'Caf\u00e9.wav', in two spellings",
        cache,
        capsys,
    )


BAD_OPTIONS = {
    "--fractions 0.8 0.1 0.2": (
        "--fractions 0.8 0.1 0.2: expected three shares of 0 or more that add up to 1"
    ),
    "--fractions 1.5 -0.5 0": "expected three shares of 0 or more",
    "--fractions nan 0.5 0.5": "expected three shares of 0 or more",
    "--fractions 0.98 0.01 0.01": (
        "--fractions: 0.01 of 2 clips gives no clip for validation; give more clips"
    ),
    "--split evaluation --fractions 1 0 0": "not allowed with argument",
    "--seed 3": "--seed has no effect without --fractions",
    "--allow-missing 200": "--allow-missing 200: expected a percentage, 0 to 100",
    "--allow-missing nan": "--allow-missing nan: expected a percentage",
    "--max-seconds -1": "--max-seconds -1: expected seconds, or 0 for whole clips",
    "--max-seconds 1e-9": "none of its 2 clips is usable; first 'a.wav': holds no samples",
    "--codec mp3 --sample-rate 96000": "codec mp3 knows no 96000 Hz: use --sample-rate 8000, 11025",
    "--without-captions": "argument --without-captions: not allowed with argument --csv",
    "--output ROOT": "would replace --audio",
    "--output ROOT/audio": "would replace --audio",
    "--output ROOT/tables": "would replace --csv",
}


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_a_bad_option_is_one_line(tmp_path, audio, capsys, options):
    table = tmp_path / "tables" / "captions.csv"
    table.parent.mkdir()
    table.write_bytes(GOOD)
    assert_refused(
        build(audio, "--csv", table, *options.replace("ROOT", str(tmp_path)).split()),
        BAD_OPTIONS[options],
        audio / "cache",
        capsys,
    )
    assert (
        sorted(path.name for path in tmp_path.iterdir()) == ["audio", "tables"]
        and table.read_bytes() == GOOD
    )


@pytest.mark.parametrize("option", [["--split", "evaluation"], ["--fractions", 0.5, 0.5, 0]])
def test_a_column_and_an_option_that_both_say_the_split(tmp_path, audio, capsys, option):
    table = write_csv(
        tmp_path / "captions.csv", ["file_name", "caption", "split"], [["a.wav", "x", "validation"]]
    )
    assert_refused(
        build(audio, "--csv", table, *option),
        "has a column split: leave out --split and --fractions",
        audio / "cache",
        capsys,
    )


# ---- a decoder that dies


def write_ten(root: Path, bad: str) -> Path:
    """Ten sounds with captions, of which one kills its decoder."""
    for number in range(10):
        path = write_sound(root / f"{number}.wav")
        path.with_suffix(".txt").write_text(f"Sound {number}.")
    (root / "4.wav").write_text(bad)
    return root


def assert_nine(cache: Path, reason: str) -> None:
    assert open_cache(cache).split("development").file_names == [
        f"{number}.wav" for number in range(10) if number != 4
    ]
    assert reason in reasons(read_info(cache)["skipped"])["4.wav"]


def test_a_decoder_that_dies_costs_one_clip(tmp_path, crashing, capfd):
    folder = write_ten(tmp_path / "audio", "die SIGSEGV 2")
    assert build(folder, "--output", tmp_path / "cache", "--allow-missing") == 0
    assert_nine(tmp_path / "cache", "its decoder crashed (SIGSEGV)")
    output = capfd.readouterr()
    assert "4.wav: its decoder crashed (SIGSEGV)" in output.out and output.err == ""


def test_a_decoder_that_dies_in_a_worker_costs_one_clip(tmp_path):
    folder = write_ten(tmp_path / "audio", "die SIGABRT 0")
    script = Path(__file__).resolve().parents[1] / "crashing_build.py"
    options = (
        "--audio",
        folder,
        "--output",
        tmp_path / "cache",
        "--allow-missing",
        "--num-proc",
        "2",
    )
    ended = subprocess.run(
        [sys.executable, script, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert_nine(tmp_path / "cache", "its decoder crashed (SIGABRT)")


def test_a_decoder_that_cannot_be_started_is_no_fault_of_the_files(
    tmp_path, audio, monkeypatch, capsys
):
    decoder_process.close_all()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "absent"))
    assert_refused(build(audio, "--without-captions"), "cannot be started", audio / "cache", capsys)
    monkeypatch.undo()
    assert build(audio, "--without-captions") == 0 and read_info(audio / "cache")["skipped"] == []
