"""data_prep/build_wavcaps.py: four sources in one split, ids, MP3, exclusions, and bad input."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep import build_wavcaps
from retrieval.data import open_cache
from tests.corpora import (
    assert_refused,
    load,
    read_info,
    reasons,
    run_build,
    truncate,
    write_csv,
    write_json,
    write_sound,
    write_wavcaps,
)

EXCLUDED = (
    Path(__file__).resolve().parents[3]
    / "shared"
    / "data"
    / "dcase2025_task6_excluded_freesound_ids.csv"
)


def build(root: Path, *arguments: object) -> int:
    """Exit code of a build of SoundBible, unless `arguments` say otherwise."""
    return run_build(build_wavcaps, {"--root": root, "--sources": "SoundBible"}, *arguments)


def entries(*ids: object) -> list[dict]:
    return [{"id": id, "caption": f"Caption of {id}."} for id in ids]


def captions_by_id(cache: Path) -> dict[str, list[str]]:
    split = load(cache, "development")
    return dict(zip(split["sound_id"][:], split["captions"][:], strict=True))


# ---- what the cache holds


def test_four_sources_are_one_split(tmp_path, capsys):
    freesound = {
        "id": "180913",
        "file_name": "Gate.wav",
        "href": "x",
        "tags": ["a"],
        "caption": " A  gate\nopens. ",
    }
    write_wavcaps(tmp_path, "FreeSound", [freesound, *entries(17)])
    write_wavcaps(tmp_path, "BBC_Sound_Effects", entries("NHU05104086", "17"))
    write_wavcaps(tmp_path, "SoundBible", entries(2219, 0, "Yellow (5.1)"))
    write_wavcaps(
        tmp_path,
        "AudioSet_SL",
        entries("Yb0RFKhbpFJA.wav", "Ybbbbbbbbbb.wav", "YYcccccccccc.wav", "aaaaaaaaa-_"),
    )
    assert run_build(build_wavcaps, {"--root": tmp_path}) == 0
    clips = open_cache(tmp_path / "cache", 16_000).split("development")
    names = [
        "FreeSound/180913",
        "FreeSound/17",
        "BBC_Sound_Effects/NHU05104086",
        "BBC_Sound_Effects/17",
    ]
    names += ["SoundBible/2219", "SoundBible/0", "SoundBible/Yellow (5.1)"]
    videos = ["b0RFKhbpFJA", "Ybbbbbbbbbb", "Ycccccccccc", "aaaaaaaaa-_"]
    assert clips.clip_ids == [
        f"development/{name}" for name in [*names, *(f"AudioSet_SL/{video}" for video in videos)]
    ]
    files = ["Yb0RFKhbpFJA", "Ybbbbbbbbbb", "YYcccccccccc", "aaaaaaaaa-_"]
    assert clips.file_names == [
        f"{name}.flac" for name in [*names, *(f"AudioSet_SL/{file}" for file in files)]
    ]
    assert clips.captions[:2] == [["A gate opens."], ["Caption of 17."]] and clips.captions[5] == [
        "Caption of 0."
    ]
    split = load(tmp_path / "cache", "development")
    assert split["source"][:] == [name.split("/")[1] for name in clips.clip_ids]
    assert split["sound_id"][:] == [
        "180913",
        "17",
        "NHU05104086",
        "17",
        "2219",
        "0",
        "Yellow (5.1)",
        *videos,
    ]
    info = read_info(tmp_path / "cache")
    assert (
        list(info["splits"]) == ["development"] and info["skipped"] == [] and info["excluded"] == []
    )
    numbers = {
        "num_clips": 11,
        "num_captions": 11,
        "num_lost": 0,
        "num_unused": 0,
        "num_excluded": {},
        "num_cut_clips": 0,
    }
    assert numbers.items() <= info["splits"]["development"].items()
    assert (
        "note: AudioSet_SL: 4 clips to read, 0 without file or caption, 0 excluded"
        in capsys.readouterr().out
    )


def test_mp3_and_30_seconds_are_the_default(tmp_path, capsys):
    write_wavcaps(tmp_path, "SoundBible", entries(1, 2))
    write_sound(tmp_path / "audio" / "SoundBible" / "1.flac", seconds=31)
    assert (
        build_wavcaps.main(["--root", str(tmp_path), "--sources", "SoundBible", "--num-proc", "1"])
        == 0
    )
    cache = open_cache(tmp_path / "cache")
    assert (
        cache.info["corpus"],
        cache.info["codec"],
        cache.sample_rate,
        cache.info["max_seconds"],
    ) == ("wavcaps", "mp3", 32_000, 30)
    assert cache.info["splits"]["development"]["num_cut_clips"] == 1
    clips = cache.split("development")
    assert clips.num_samples.tolist() == [30 * 32_000, 3_200] and len(clips.read(0)) == 30 * 32_000
    # MPEG layer 3
    assert load(tmp_path / "cache", "development")[0]["audio"][:2] in (b"\xff\xfb", b"ID")
    assert "note: development: 1 clips were longer than 30 s and are cut" in capsys.readouterr().out


def test_flac_of_whole_clips(tmp_path):
    write_wavcaps(tmp_path, "SoundBible", entries(1))
    path = write_sound(tmp_path / "audio" / "SoundBible" / "1.flac", seconds=31)
    assert build(tmp_path, "--codec", "flac", "--max-seconds", "0") == 0
    cache = open_cache(tmp_path / "cache")
    assert (
        cache.info["codec"] == "flac"
        and "max_seconds" not in cache.info
        and cache.info["splits"]["development"]["num_cut_clips"] == 0
    )
    assert np.array_equal(
        cache.split("development").read(0), soundfile.read(path, dtype="float32")[0]
    )


def test_sub_folders_other_folder_names_and_endings(tmp_path):
    write_json(tmp_path, "SoundBible", {"data": entries(1, 2, 3)})
    write_json(tmp_path, "AudioSet_SL", {"data": entries("Yaaaaaaaaaaa.wav", "Ybbbbbbbbbbb.wav")})
    for name in (
        "SoundBible_flac/1.wav",
        "SoundBible_flac/a/b/2.FLAC",
        "SoundBible_flac/3.m4a",
        "SoundBible_flac/a/3.mp3",
    ):
        write_sound(tmp_path / "sounds" / name)
    for name in ("Yaaaaaaaaaaa.flac", "x/bbbbbbbbbbb.wav"):
        write_sound(tmp_path / "sounds" / "AudioSet_SL" / name)
    assert (
        build(
            tmp_path,
            "--audio",
            tmp_path / "sounds",
            "--sources",
            "AudioSet_SL",
            "SoundBible",
            "--output",
            tmp_path / "mine",
        )
        == 0
    )
    files = [
        "SoundBible/1.wav",
        "SoundBible/2.FLAC",
        "SoundBible/3.mp3",
        "AudioSet_SL/Yaaaaaaaaaaa.flac",
        "AudioSet_SL/bbbbbbbbbbb.wav",
    ]
    assert open_cache(tmp_path / "mine").split("development").file_names == files
    assert load(tmp_path / "mine", "development")["sound_id"][:] == [
        "1",
        "2",
        "3",
        "a" * 11,
        "b" * 11,
    ]


def test_an_id_that_is_repeated_counts_once(tmp_path, capsys):
    write_wavcaps(tmp_path, "SoundBible", entries(1, "2"))
    again = [
        {"id": "1", "caption": "Another caption."},
        {"id": "1.flac", "caption": "A third one."},
        *entries(3, 3),
    ]
    write_json(tmp_path, "SoundBible", {"data": again}, "final_2s.json")
    write_sound(tmp_path / "audio" / "SoundBible" / "3.wav")
    # as macOS leaves it
    (tmp_path / "json_files" / "SoundBible" / "._final.json").write_bytes(b"\0\5\x16\xff")
    assert build(tmp_path) == 0
    assert captions_by_id(tmp_path / "cache") == {id: [f"Caption of {id}."] for id in "123"}
    assert (
        "note: SoundBible: 3 entries repeat the id of an earlier one and are not used"
        in capsys.readouterr().out
    )


def test_halves_of_characters_are_replaced(tmp_path):
    data = (
        '{"data": [{"id": "1", "caption": "A bell \\ud83d rings \\ud83d\\udd14."}, {"id":'
        ' "\\ud83d", "caption": "x"}]}'
    )
    write_json(tmp_path, "SoundBible", data)
    write_sound(tmp_path / "audio" / "SoundBible" / "1.flac")
    assert build(tmp_path, "--allow-missing", "50") == 0
    assert captions_by_id(tmp_path / "cache") == {"1": ["A bell ? rings \U0001f514."]}
    assert reasons(read_info(tmp_path / "cache")["skipped"]) == {
        "SoundBible/?": "named in the JSON file, no such audio file"
    }


# ---- what is missing, unused or excluded


def test_what_cannot_be_used_is_listed(tmp_path, capsys):
    good = entries(*range(10, 29))
    write_wavcaps(tmp_path, "SoundBible", [*good, *entries("cut")])
    truncate(tmp_path / "audio" / "SoundBible" / "cut.flac")
    write_sound(tmp_path / "audio" / "SoundBible" / "sub" / "extra.wav")
    assert build(tmp_path) == 0  # one of twenty
    found = reasons(read_info(tmp_path / "cache")["skipped"])
    assert (
        found["SoundBible/extra.wav"] == "no entry in the JSON files"
        and "SoundBible/cut.flac" in found
        and len(found) == 2
    )
    split = read_info(tmp_path / "cache")["splits"]["development"]
    assert (split["num_clips"], split["num_lost"], split["num_unused"]) == (19, 1, 1)

    (tmp_path / "audio" / "SoundBible" / "film.m4a").write_bytes(bytes(100))
    bad = [
        {"id": 1, "caption": " "},
        {"id": 2},
        {"id": 3, "caption": None},
        {"id": 4, "caption": ["x"]},
        {"caption": "x"},
        "x",
        *entries("", None),
    ]
    write_json(tmp_path, "SoundBible", {"data": [*good, *entries("cut", "gone", "film"), *bad]})
    other = tmp_path / "other"
    assert_refused(
        build(tmp_path, "--output", other),
        " of 30 clips are lost, at most 5% may be; first",
        other,
        capsys,
    )
    assert build(tmp_path, "--output", other, "--allow-missing", "40") == 0
    lost = [
        item["reason"]
        for item in read_info(other)["skipped"]
        if item["file_name"] not in ("SoundBible/cut.flac", "SoundBible/extra.wav")
    ]
    assert sorted(lost) == sorted(
        ["has no caption"] * 4
        + [f"entry {number} has no id" for number in range(27, 31)]
        + [
            "named in the JSON file, no such audio file",
            "is not a sound file: its first bytes match no known kind of sound file",
        ]
    )
    assert read_info(other)["splits"]["development"]["num_lost"] == 11


@pytest.mark.skipif(
    not EXCLUDED.is_file(), reason="DCASE's list of excluded Freesound ids is not here"
)
def test_the_real_exclusion_list(tmp_path):
    with EXCLUDED.open(newline="", encoding="utf-8") as file:
        listed = [row["sound_id"] for row in csv.DictReader(file) if row["sound_id"].isdigit()]
    assert len(set(listed)) > 3_000
    ids = [listed[0], int(listed[1_500]), listed[-1], f"{listed[0]}0000", 1]
    write_wavcaps(tmp_path, "FreeSound", entries(*ids))
    assert build(tmp_path, "--sources", "FreeSound", "--exclude-ids", EXCLUDED) == 0
    assert list(captions_by_id(tmp_path / "cache")) == [f"{listed[0]}0000", "1"]
    info = read_info(tmp_path / "cache")
    assert (
        info["splits"]["development"]["num_excluded"] == {f"in {EXCLUDED.name}": 3}
        and info["splits"]["development"]["num_lost"] == 0
    )
    assert [item["file_name"] for item in info["excluded"]] == [f"FreeSound/{id}" for id in ids[:3]]


# ---- a cache that is there


def test_a_second_run_has_nothing_to_do_until_something_changes(tmp_path, capsys):
    write_wavcaps(tmp_path, "FreeSound", entries(1, 2))
    assert build(tmp_path, "--sources", "FreeSound") == 0
    capsys.readouterr()
    assert build(tmp_path, "--sources", "FreeSound") == 0
    assert "already built with these settings; nothing to do" in capsys.readouterr().out
    excluded = write_csv(tmp_path / "excluded.csv", ["sound_id"], [["2"]])
    assert build(tmp_path, "--sources", "FreeSound", "--exclude-ids", excluded) == 2
    assert "development have changed since it was built: add --overwrite" in capsys.readouterr().err
    assert build(tmp_path, "--sources", "FreeSound", "--max-seconds", "10") == 2
    assert "its max_seconds is 30.0, not 10.0: add --overwrite" in capsys.readouterr().err
    assert build(tmp_path, "--sources", "FreeSound", "--codec", "flac") == 2
    assert "its codec is mp3, not flac: add --overwrite" in capsys.readouterr().err
    write_wavcaps(tmp_path, "FreeSound", [{"id": 1, "caption": "Corrected."}])
    assert build(tmp_path, "--sources", "FreeSound") == 2
    assert "development have changed since it was built" in capsys.readouterr().err
    assert build(tmp_path, "--sources", "FreeSound", "--overwrite") == 0
    assert captions_by_id(tmp_path / "cache") == {"1": ["Corrected."]}


# ---- bad input

EXPECTED = (
    'final.json: expected {"data": [{"id": ..., "caption": ...}, ...]}, with one entry or more'
)
BAD_JSON = {
    "empty": (
        "",
        (
            "final.json cannot be understood (Expecting value: line 1 column 1 (char 0)): is it cut"
            " off? fetch it again"
        ),
    ),
    "cut off": ('{"data": [{"id": "1", "caption": "A be', "is it cut off? fetch it again"),
    "a page of HTML": ("<html>\n<body>404</body></html>\n", "cannot be understood"),
    "far too deep": (
        "[" * 100_000,
        "cannot be understood (its lists and objects are nested too deep",
    ),
    "a list": ('[{"id": "1", "caption": "x"}]', EXPECTED),
    "no data": ('{"entries": []}', EXPECTED),
    "data of a wrong kind": ('{"data": {"1": "x"}}', EXPECTED),
    "no entries": ('{"data": []}', EXPECTED),
    "no ids": (
        '{"data": [{"caption": "x"}]}',
        "none of its 1 clips is usable; first 'SoundBible/final.json': entry 1 has no id",
    ),
    "empty captions": (
        '{"data": [{"id": "1", "caption": ""}]}',
        "none of its 1 clips is usable; first 'SoundBible/1': has no caption",
    ),
    "other ids": (
        '{"data": [{"id": "a\\nb", "caption": "x"}]}',
        "first 'SoundBible/a\\nb': named in the JSON file, no such audio file",
    ),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_a_bad_json_file_is_one_line(tmp_path, capsys, name):
    content, expected = BAD_JSON[name]
    write_json(tmp_path, "SoundBible", content)
    write_sound(tmp_path / "audio" / "SoundBible" / "1.flac")
    assert_refused(build(tmp_path), expected, tmp_path / "cache", capsys)


def test_a_bad_folder_is_one_line(tmp_path, capsys):
    cache = tmp_path / "cache"
    missing = (
        "SoundBible holds no .json file: fetch it from WavCaps, or leave the source out with"
        " --sources"
    )
    assert_refused(build(tmp_path / "nowhere"), missing, cache, capsys)
    (tmp_path / "json_files" / "SoundBible").mkdir(parents=True)
    assert_refused(build(tmp_path), missing, cache, capsys)
    (tmp_path / "json_files" / "SoundBible" / "final.json").write_bytes(
        b'{"data": [{"id": "1", "caption": "\xe9t\xe9"}]}'
    )
    assert_refused(
        build(tmp_path),
        "final.json cannot be understood ('utf-8' codec can't decode",
        cache,
        capsys,
    )
    write_json(tmp_path, "SoundBible", {"data": entries(1)})
    assert_refused(
        build(tmp_path),
        "SoundBible is not a folder: unpack the audio of SoundBible there, or leave the source out",
        cache,
        capsys,
    )
    (tmp_path / "audio" / "SoundBible").mkdir(parents=True)
    assert_refused(build(tmp_path), "SoundBible holds no audio file", cache, capsys)
    (tmp_path / "audio" / "SoundBible" / "1.m4a").write_bytes(bytes(100))
    assert_refused(build(tmp_path), "first 'SoundBible/1.m4a': is not a sound file", cache, capsys)


BAD_OPTIONS = {
    "--sources Freesound": "invalid choice: 'Freesound'",
    "--sources FreeSound SoundBible": "FreeSound holds no .json file",
    "--audio ROOT/nowhere": "SoundBible is not a folder: unpack the audio of SoundBible there",
    "--exclude-ids ROOT/nowhere.csv": "nowhere.csv cannot be read: No such file or directory",
    "--exclude-clotho ROOT": "clotho_metadata_validation.csv is missing; give Clotho's folder",
    "--exclude-audiocaps ROOT/audio": "audio cannot be read: Is a directory",
    "--allow-missing 200": "--allow-missing 200: expected a percentage, 0 to 100",
    "--max-seconds -1": "--max-seconds -1: expected seconds, or 0 for whole clips",
    "--max-seconds inf": "--max-seconds inf: expected seconds",
    "--sample-rate 96000": "codec mp3 knows no 96000 Hz: use --sample-rate 8000, 11025",
    "--output ROOT": "would replace --root",
    "--output ROOT/audio": "would replace --audio",
}


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_a_bad_option_is_one_line(tmp_path, capsys, options):
    write_wavcaps(tmp_path, "SoundBible", entries(1))
    assert_refused(
        build(tmp_path, *options.replace("ROOT", str(tmp_path)).split()),
        BAD_OPTIONS[options],
        tmp_path / "cache",
        capsys,
    )
    assert (tmp_path / "audio" / "SoundBible" / "1.flac").is_file() and (
        tmp_path / "json_files" / "SoundBible" / "final.json"
    ).is_file()
