"""No test clip of a corpus gets into another's training split; without exclusions it does.

Bells are the clips that must stay out, rain is what may be trained on.
"""

import csv
import json
from pathlib import Path

import pandas
import pytest

from data_prep import build_audiocaps, build_wavcaps
from data_prep.corpora.clip_ids import freesound_id, youtube_id
from retrieval.data import open_cache
from tests.corpora import AUDIOCAPS_COLUMNS, write_csv, write_sound, write_wavcaps

RAIN, BELL = "aaaaaaaaaaa", "Ybbbbbbbbbb"  # YouTube ids; one that begins with Y itself


def write_clotho(root: Path, validation: list[list], evaluation: list[list]) -> Path:
    for split, rows in (("validation", validation), ("evaluation", evaluation)):
        write_csv(
            root / f"clotho_metadata_{split}.csv", ["file_name", "keywords", "sound_id"], rows
        )
    return root


def captions_of(root: Path, *arguments: str) -> list[str]:
    """Build the cache of WavCaps at `root`; all captions that can be trained on."""
    assert (
        build_wavcaps.main(
            [
                "--root",
                str(root),
                "--num-proc",
                "1",
                "--overwrite",
                "--sample-rate",
                "16000",
                *arguments,
            ]
        )
        == 0
    )
    return [
        caption
        for captions in open_cache(root / "cache").split("development").captions
        for caption in captions
    ]


@pytest.fixture
def freesound(tmp_path: Path) -> Path:
    """WavCaps' FreeSound part: 1 and 2 are Clotho's by id, 4 by its name alone."""
    names = {
        1: "Bell.wav",
        2: "Other bell.wav",
        3: "Rain.wav",
        4: " Church  BELL.aiff",
        5: "Church bell 2.wav",
    }
    entries = [
        {"id": str(i) if i % 2 else i, "file_name": name, "caption": f"{name.strip()} is heard."}
        for i, name in names.items()
    ]
    write_wavcaps(tmp_path / "wavcaps", "FreeSound", entries)
    return tmp_path / "wavcaps"


def test_clotho_clips_stay_out_of_wavcaps(tmp_path, freesound, capsys):
    validation = [["Some name.wav", "", "2"]]
    clotho = write_clotho(
        tmp_path / "clotho",
        validation,
        [["Bell.wav", "", "1"], ["Church Bell.wav", "", "Not found"], ["Wind.wav", "", "99"]],
    )
    found = captions_of(freesound, "--sources", "FreeSound", "--exclude-clotho", str(clotho))
    assert found == ["Rain.wav is heard.", "Church bell 2.wav is heard."]
    output = capsys.readouterr().out
    assert (
        "excluded from development: 1 clips, in Clotho's evaluation split (Freesound id)" in output
    )
    assert (
        "excluded from development: 1 clips, in Clotho's evaluation split (file name, its Freesound"
        " id is not known)" in output
    )
    assert (
        "clotho_metadata_evaluation.csv: 1 of 3 clips have no Freesound id there" in output
        and "warning" not in output
    )
    info = json.loads((freesound / "cache" / "cache.json").read_text())
    assert info["splits"]["development"]["num_excluded"] == {
        "in Clotho's evaluation split (Freesound id)": 1,
        "in Clotho's validation split (Freesound id)": 1,
        "in Clotho's evaluation split (file name, its Freesound id is not known)": 1,
    }
    assert [item["file_name"] for item in info["excluded"]] == [
        "FreeSound/1",
        "FreeSound/2",
        "FreeSound/4",
    ] and info["skipped"] == []

    # without the exclusion the evaluation clips are trained on
    control = captions_of(freesound, "--sources", "FreeSound")
    assert len(control) == 5 and "Bell.wav is heard." in control
    lines = [
        line
        for line in capsys.readouterr().out.splitlines()
        if "warning: FreeSound holds clips of Clotho's" in line
    ]
    # before the build, and in its report
    assert len(lines) == 2 and all("--exclude-clotho ROOT" in line for line in lines)


def test_a_list_of_ids_stays_out_of_wavcaps(tmp_path, freesound, capsys):
    listed = write_csv(
        tmp_path / "excluded.csv", ["sound_id"], [["1"], ["Not found"], ["4"], ["77"]]
    )
    found = captions_of(freesound, "--sources", "FreeSound", "--exclude-ids", str(listed))
    assert found == [
        "Other bell.wav is heard.",
        "Rain.wav is heard.",
        "Church bell 2.wav is heard.",
    ]
    output = capsys.readouterr().out
    assert (
        "excluded from development: 2 clips, in excluded.csv" in output and "warning" not in output
    )


def test_freesound_ids_are_not_looked_for_in_other_sources(tmp_path, freesound):
    write_wavcaps(freesound, "SoundBible", [{"id": "1", "caption": "A bell of SoundBible."}])
    clotho = write_clotho(tmp_path / "clotho", [["a.wav", "", "2"]], [["b.wav", "", "1"]])
    found = captions_of(
        freesound, "--sources", "FreeSound", "SoundBible", "--exclude-clotho", str(clotho)
    )
    assert "A bell of SoundBible." in found and "Bell.wav is heard." not in found


def test_audiocaps_clips_stay_out_of_audioset(tmp_path, capsys):
    root = tmp_path / "wavcaps"
    write_wavcaps(
        root,
        "AudioSet_SL",
        [{"id": f"Y{RAIN}.wav", "caption": "Rain."}, {"id": f"Y{BELL}.wav", "caption": "A bell."}],
    )
    test = write_csv(tmp_path / "test.csv", AUDIOCAPS_COLUMNS, [[1, BELL, 30, "A bell rings."]])
    assert captions_of(root, "--sources", "AudioSet_SL", "--exclude-audiocaps", str(test)) == [
        "Rain."
    ]
    assert "excluded from development: 1 clips, in AudioCaps' test.csv" in capsys.readouterr().out
    assert captions_of(root, "--sources", "AudioSet_SL") == ["Rain.", "A bell."]
    assert "warning: AudioSet_SL holds clips that AudioCaps tests with" in capsys.readouterr().out


def test_a_cache_without_exclusions_is_not_taken_for_one_with_them(tmp_path, freesound, capsys):
    clotho = write_clotho(tmp_path / "clotho", [["a.wav", "", "2"]], [["b.wav", "", "1"]])
    captions_of(freesound, "--sources", "FreeSound")
    capsys.readouterr()
    options = f"--sources FreeSound --sample-rate 16000 --exclude-clotho {clotho}"
    assert build_wavcaps.main(f"--root {freesound} {options}".split()) == 2
    assert (
        "the files or captions of development have changed since it was built: add --overwrite"
        in capsys.readouterr().err
    )


def test_test_videos_stay_out_of_audiocaps_training(tmp_path, capsys):
    root = tmp_path / "audiocaps"
    other = "ccccccccccc"
    for video in (RAIN, BELL, other):
        write_sound(root / "audio" / f"Y{video}_30.wav")
        write_sound(root / "audio" / f"Y{video}_90.wav")
    write_csv(
        root / "train.csv",
        AUDIOCAPS_COLUMNS,
        [[1, RAIN, 30, "Rain."], [2, BELL, 90, "A bell, later."], [3, other, 30, "Another bell."]],
    )
    build = (
        f"--root {root} --splits development --num-proc 1 --sample-rate 16000 --overwrite".split()
    )

    def captions() -> list[list[str]]:
        return open_cache(root / "cache").split("development").captions

    assert build_audiocaps.main(build) == 0
    # the negative control: no test set is known
    assert captions() == [["Rain."], ["A bell, later."], ["Another bell."]]
    write_csv(root / "test.csv", AUDIOCAPS_COLUMNS, [[9, BELL, 30, "A bell rings."]])
    assert build_audiocaps.main(build) == 0
    assert captions() == [["Rain."], ["Another bell."]]
    older = write_csv(
        tmp_path / "older_test.csv", AUDIOCAPS_COLUMNS, [[9, other, 30, "A bell rings."]]
    )
    capsys.readouterr()
    assert build_audiocaps.main([*build, "--exclude-audiocaps", str(older)]) == 0
    assert captions() == [["Rain."]]
    output = capsys.readouterr().out
    assert (
        "1 clips, in AudioCaps' test.csv" in output
        and "1 clips, in AudioCaps' older_test.csv" in output
    )


@pytest.mark.parametrize(
    ("option", "content", "expected"),
    [
        ("--exclude-ids", "id\n1\n", "expected a column sound_id"),
        ("--exclude-ids", "sound_id\nNot found\n", "holds no id in its column sound_id"),
        ("--exclude-ids", None, "cannot be read"),
        ("--exclude-audiocaps", "sound_id\n1\n", "expected a column youtube_id"),
        (
            "--exclude-clotho",
            None,
            "clotho_metadata_validation.csv is missing; give Clotho's folder",
        ),
    ],
)
def test_an_exclusion_that_cannot_be_read_stops_the_build(
    tmp_path, freesound, capsys, option, content, expected
):
    path = tmp_path / "list"
    if content is not None:
        path.write_text(content)
    assert (
        build_wavcaps.main(["--root", str(freesound), "--sources", "FreeSound", option, str(path)])
        == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line and not (freesound / "cache").exists()


def test_clotho_metadata_without_rows_is_an_error(tmp_path, freesound, capsys):
    clotho = write_clotho(tmp_path / "clotho", [], [["b.wav", "", "1"]])
    assert (
        build_wavcaps.main(
            ["--root", str(freesound), "--sources", "FreeSound", "--exclude-clotho", str(clotho)]
        )
        == 2
    )
    assert "clotho_metadata_validation.csv has no rows" in capsys.readouterr().err


# --- one id in many spellings ---

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.mark.parametrize(
    "written",
    [
        *(
            "354184",
            " 354184\t",
            "\ufeff354184",
            "'354184",
            '"354184"',
            '="354184"',
            "0354184",
            "354184.0",
            "354184.",
            "354184.00",
        ),
        *(
            "3.54184E+05",
            "3.54184e5",
            "3.541840e+05",
            "354184.flac",
            "354184.WAV",
            "audio/FreeSound/354184.mp3",
            "audio\\354184.wav",
        ),
        *(
            "354184__user__rain, heavy.v2.wav",
            "354184_4486188-hq.mp3",
            "https://freesound.org/people/user/sounds/354184/",
        ),
        *("https://freesound.org/s/354184", "freesound/354184.0"),
    ],
)
def test_spellings_of_a_freesound_id(written: str):
    assert freesound_id(written) == "354184"


@pytest.mark.parametrize(
    "written",
    [
        *(
            "354184.5",
            "3.5418E+05",
            "1E+06",
            "0.354184E+06",
            "-354184",
            "+354184",
            "354,184",
            "354.184",
            "354184 265492",
            "354184_rain.wav",
            "rain.wav",
        ),
        *(
            "0",
            "0.0",
            "id",
            "1" * 5000,
            "1e999999",
            "\u0663\u0665",
            "inf",
            "True",
            "[354184]",
            "https://example.org/people/user/sounds/354184/",
        ),
    ],
)
def test_texts_that_are_no_freesound_id(written: str):
    assert freesound_id(written) is None


# As YouTube gives them out: with Y in front, with _ and -, ending in digits or looking like a
# start, only digits.
TRICKY = [
    "vfY_TJq7n_U",
    "Ybbbbbbbbbb",
    "YYYYYYYYYYY",
    "abcdefgh_30",
    "abcdefghi_3",
    "Y12345678_3",
    "_-_-_-_-_-_",
    "-ABCDEFGHIJ",
    "12345678901",
    "a_10_20_30_",
]


@pytest.mark.parametrize("video", TRICKY)
def test_spellings_of_a_youtube_id(video: str):
    assert len(video) == 11
    ends = ("", "_30", "_30.000", "_000030", "_30000", "_30_40", "_30.000_40.000", "_1_2")
    names = [f"{prefix}{video}{end}" for prefix in ("", "Y") for end in ends]
    assert {
        youtube_id(f"{folder}{name}{ending}")
        for folder in ("", "audio/x/")
        for name in names
        for ending in ("", ".wav", ".FLAC", ".m4a")
    } == {video}
    links = (
        "https://www.youtube.com/watch?v=%s",
        "https://youtube.com/watch?list=x&v=%s&t=30s",
        "https://youtu.be/%s?t=30",
        "//m.youtube.com/shorts/%s",
    )
    assert {youtube_id(text % video) for text in (*links, " %s\n", "'%s'", "\ufeff%s")} == {video}
    others = {video.swapcase(), video[:-1] + ("x" if video[-1] != "x" else "y")} - {video}
    # case matters, and so does each character
    assert all(youtube_id(other) == other for other in others)


NO_VIDEOS = [
    "a" * 10,
    "a" * 12,
    "Y" + "a" * 12,
    "aaaaaaaaaaa_",
    "aaaaaaaaaaa_x",
    "aaaaa aaaaa",
    "#NAME?",
    "aaaaaaaaaaa__30",
    "a" * 99,
]


@pytest.mark.parametrize("written", NO_VIDEOS)
def test_texts_that_are_no_youtube_id(written: str):
    assert youtube_id(written) is None


def test_negative_control_names_are_read_in_one_way():
    """A slow search: no name of a video, with Y or without, is that of another video too."""
    alphabet = "Y_3a"
    ids = [
        f"{first}{'Y' * 7}{a}{b}{c}"
        for first in "Ya"
        for a in alphabet
        for b in alphabet
        for c in alphabet
    ]
    videos_of_name: dict[str, set[str]] = {}
    for video in ids:
        for name in (
            video,
            f"Y{video}",
            *(f"{prefix}{video}_{start}" for prefix in ("", "Y") for start in ("3", "33", "3_3")),
        ):
            videos_of_name.setdefault(name, set()).add(video)
    assert all(videos == {youtube_id(name)} for name, videos in videos_of_name.items())


def pandas_list(path: Path, **options) -> None:
    """Ids beside a clip without one: pandas makes floats of them all."""
    pandas.DataFrame({"sound_id": [1, None, 4]}).to_csv(path, index=False, **options)


FREESOUND_LISTS = {
    "floats by pandas": pandas_list,
    "floats by pandas, nan written out": lambda path: pandas_list(path, na_rep="nan"),
    "floats by pandas, BOM": lambda path: pandas_list(path, encoding="utf-8-sig"),
    "floats by pandas, with index": (
        lambda path: pandas.DataFrame({"sound_id": [1.0, 4.0]}).to_csv(path)
    ),
    "floats by pandas, exponents": lambda path: pandas_list(path, float_format="%.6E"),
    "nullable integers by pandas": (
        lambda path: pandas.DataFrame(
            {"sound_id": pandas.array([1, None, 4], dtype="Int64")}
        ).to_csv(path, index=False)
    ),
    "all in quotes": lambda path: pandas_list(path, quoting=csv.QUOTE_ALL),
    "leading zeros": (
        lambda path: pandas.DataFrame({"Sound_ID": ["000001", "000004"]}).to_csv(path, index=False)
    ),
    "file names": (
        lambda path: pandas.DataFrame({"freesound_id": ["a/1.flac", "4__user__bell.wav"]}).to_csv(
            path, index=False
        )
    ),
    "quotes in quotes": lambda path: write_csv(path, ["sound_id"], [['"1"'], ["'4"]]),
}


@pytest.mark.parametrize("name", FREESOUND_LISTS)
def test_freesound_lists_exclude_however_they_are_written(tmp_path, freesound, capsys, name):
    FREESOUND_LISTS[name](listed := tmp_path / "listed.csv")
    found = captions_of(freesound, "--sources", "FreeSound", "--exclude-ids", str(listed))
    assert found == [
        "Other bell.wav is heard.",
        "Rain.wav is heard.",
        "Church bell 2.wav is heard.",
    ]
    output = capsys.readouterr().out
    assert "2 clips, in listed.csv" in output and "warning" not in output


@pytest.mark.parametrize(
    "ids", [[1.0, 2.0, 3.0], ["001", "02", "3"], ["1.flac", "2.wav", "FreeSound/3.mp3"]]
)
def test_wavcaps_entries_are_found_however_they_are_written(tmp_path, ids):
    root = tmp_path / "wavcaps"
    write_wavcaps(
        root,
        "FreeSound",
        [{"id": str(number), "caption": f"Bell {number}."} for number in (1, 2, 3)],
    )
    content = {
        "data": [
            {"id": written, "caption": f"Bell {number}."} for number, written in enumerate(ids, 1)
        ]
    }
    (root / "json_files" / "FreeSound" / "final.json").write_text(json.dumps(content))
    listed = write_csv(tmp_path / "listed.csv", ["sound_id"], [["1"], ["2"]])
    assert captions_of(root, "--sources", "FreeSound", "--exclude-ids", str(listed)) == ["Bell 3."]
    assert len(captions_of(root, "--sources", "FreeSound")) == 3  # the control


def test_an_entry_that_cannot_be_told_is_lost_not_trained_on(tmp_path, freesound, capsys):
    write_wavcaps(
        freesound,
        "FreeSound",
        [{"id": "bell", "caption": "A bell."}, {"id": "3", "caption": "Rain."}],
    )
    assert captions_of(freesound, "--sources", "FreeSound", "--allow-missing") == ["Rain."]
    assert "'bell' is not an id of FreeSound" in capsys.readouterr().out


YOUTUBE_SPELLINGS = {
    "ids": [BELL],
    "with Y": [f"Y{BELL}"],
    "file names": [f"Y{BELL}.wav"],
    "starts": [f"{BELL}_30"],
    "starts and ends": [f"audio/test/Y{BELL}_30.000_40.000.flac"],
    "links": [f"https://www.youtube.com/watch?v={BELL}"],
}


@pytest.mark.parametrize("name", YOUTUBE_SPELLINGS)
@pytest.mark.parametrize("column", ["youtube_id", "YTID"])
def test_youtube_lists_exclude_however_they_are_written(tmp_path, capsys, name, column):
    root = tmp_path / "wavcaps"
    write_wavcaps(
        root,
        "AudioSet_SL",
        [{"id": f"Y{RAIN}.wav", "caption": "Rain."}, {"id": f"Y{BELL}.wav", "caption": "A bell."}],
    )
    pandas.DataFrame({column: YOUTUBE_SPELLINGS[name], "caption": "x"}).to_csv(
        tmp_path / "test.csv", encoding="utf-8-sig"
    )
    assert captions_of(
        root, "--sources", "AudioSet_SL", "--exclude-audiocaps", str(tmp_path / "test.csv")
    ) == ["Rain."]
    assert "warning" not in capsys.readouterr().out


def test_clotho_metadata_saved_again_by_pandas(tmp_path, freesound, capsys):
    """Ids become floats where a clip has none; names keep their entities and accents."""
    cafe = {"id": 5, "file_name": "Cafe\u0301 d'e\u0301te\u0301.wav", "caption": "A caf\u00e9."}
    write_wavcaps(
        freesound,
        "FreeSound",
        [cafe, {"id": 7, "caption": "A bell."}, {"id": 3, "caption": "Rain."}],
    )
    columns = {
        "file_name": ["Caf\u00e9 d&#39;\u00e9t\u00e9.wav", "a.wav"],
        "keywords": "",
        "sound_id": [None, 7],
    }
    for split in ("validation", "evaluation"):
        pandas.DataFrame(columns).to_csv(
            tmp_path / f"clotho_metadata_{split}.csv", index=False, encoding="iso-8859-1"
        )
    assert captions_of(freesound, "--sources", "FreeSound", "--exclude-clotho", str(tmp_path)) == [
        "Rain."
    ]
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "content", "expected"),
    [
        ("--exclude-ids", "sound_id\n101\nrain\n", ["list, line 3", "'rain'", "Freesound id"]),
        ("--exclude-ids", "sound_id\n3.5418E+05\n", ["list, line 2", "'3.5418E+05'", "rounded"]),
        ("--exclude-ids", 'title,sound_id\n"two\nlines",1\nx,2.5\n', ["list, line 4", "'2.5'"]),
        ("--exclude-ids", "sound_id,sound_id\n1,2\n", ["sound_id"]),
        ("--exclude-ids", "354184\n265492\n", ["expected a column sound_id", "354184"]),
        ("--exclude-ids", "sound_id\n", ["sound_id"]),
        ("--exclude-audiocaps", "youtube_id\n#NAME?\n", ["list, line 2", "'#NAME?'", "YouTube id"]),
        ("--exclude-audiocaps", "youtube_id\naaaaaaaaaaa\n101\n", ["list, line 3", "'101'"]),
    ],
)
def test_a_list_of_other_things_is_refused(tmp_path, freesound, capsys, option, content, expected):
    (tmp_path / "list").write_text(content)
    assert (
        build_wavcaps.main(
            ["--root", str(freesound), "--sources", "FreeSound", option, str(tmp_path / "list")]
        )
        == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert all(part in line for part in expected), line
    assert not (freesound / "cache").exists()


def test_clotho_metadata_with_ids_that_are_none_is_refused(tmp_path, freesound, capsys):
    clotho = write_clotho(
        tmp_path / "clotho", [["a.wav", "", "2"]], [["b.wav", "", "1"], ["c.wav", "", "bell"]]
    )
    assert (
        build_wavcaps.main(
            ["--root", str(freesound), "--sources", "FreeSound", "--exclude-clotho", str(clotho)]
        )
        == 2
    )
    assert "clotho_metadata_evaluation.csv, line 3: 'bell'" in capsys.readouterr().err


def test_a_list_that_leaves_nothing_out_is_said(tmp_path, freesound, capsys):
    hit = write_csv(tmp_path / "hit.csv", ["sound_id"], [["1"]])
    again = write_csv(tmp_path / "again.csv", ["sound_id"], [["1"]])
    miss = write_csv(tmp_path / "miss.csv", ["sound_id"], [["999"], ["998"]])
    clotho = write_clotho(
        tmp_path / "clotho", [["a.wav", "", "901"]], [["nowhere.wav", "", "Not found"]]
    )
    arguments = ["--exclude-ids", *map(str, (hit, again, miss)), "--exclude-clotho", str(clotho)]
    captions_of(freesound, "--sources", "FreeSound", *arguments)
    lines = [line for line in capsys.readouterr().out.splitlines() if "leaves nothing out" in line]
    assert len(lines) == 4  # each before the build and in its report
    assert {line.split("warning: ")[1].split(" leaves")[0] for line in lines} == {
        f"--exclude-ids {miss}",
        f"--exclude-clotho {clotho}",
    }
    video = write_csv(tmp_path / "videos.csv", ["youtube_id"], [[BELL]])
    captions_of(
        freesound,
        "--sources",
        "FreeSound",
        "--exclude-ids",
        str(hit),
        "--exclude-audiocaps",
        str(video),
    )  # of a source that is not built
    assert f"--exclude-audiocaps {video} leaves nothing out" in capsys.readouterr().out


def test_videos_of_another_list_stay_out_of_audiocaps_and_lower_case_is_another_video(
    tmp_path, capsys
):
    root = tmp_path / "audiocaps"
    for video in (RAIN, BELL):
        write_sound(root / "audio" / f"{video}.wav")
    write_csv(
        root / "train.csv",
        AUDIOCAPS_COLUMNS,
        [[1, f"Y{RAIN}", 30, "Rain."], [2, f"{BELL}.wav", 30, "A bell."]],
    )
    build = (
        f"--root {root} --splits development --num-proc 1 --sample-rate 16000 --overwrite"
        " --exclude-audiocaps".split()
    )
    for spelling, left in (
        (f"Y{BELL}_30_40.wav", [["Rain."]]),
        (BELL.lower(), [["Rain."], ["A bell."]]),
    ):
        listed = write_csv(tmp_path / "other.csv", ["youtube_id"], [[spelling]])
        assert build_audiocaps.main([*build, str(listed)]) == 0
        assert open_cache(root / "cache").split("development").captions == left
        assert ("leaves nothing out" in capsys.readouterr().out) == (len(left) == 2)


# --- the real lists ---

needs_lists = pytest.mark.skipif(not SHARED.is_dir(), reason="the real lists are not here")


@needs_lists
def test_the_list_of_dcase_saved_again_excludes_the_same(tmp_path):
    path = SHARED / "dcase2025_task6_excluded_freesound_ids.csv"
    original = pandas.read_csv(path, dtype=str)["sound_id"]
    numbers = pandas.to_numeric(original, errors="coerce")
    assert numbers.isna().sum() == (original == "Not found").sum() > 0 and numbers.dtype == float
    numbers.to_csv(tmp_path / "saved.csv", index=False)
    saved = (tmp_path / "saved.csv").read_text().splitlines()[1:]
    assert all(text.endswith(".0") for text in saved if text not in ("", '""'))
    ids = [freesound_id(text) for text in saved if text not in ("", '""')]
    assert ids == [text for text in original if text != "Not found"] and None not in ids


@needs_lists
def test_videos_of_audiocaps_are_ids_in_all_spellings():
    videos = pandas.read_csv(SHARED / "audiocaps_val_head.csv")
    assert len(videos) > 100
    for video, start in zip(videos["youtube_id"], videos["start_time"]):
        names = (
            video,
            f"Y{video}",
            f"{video}_{start}",
            f"Y{video}_{start}.000_{start + 10}.000.wav",
            f"{video}_{start * 1000}_{start * 1000 + 10000}.flac",
        )
        assert {youtube_id(name) for name in names} == {video}


@needs_lists
def test_clotho_excerpt_is_told_by_name(tmp_path, freesound):
    content = (SHARED / "clotho_excerpt" / "clotho_metadata_evaluation.csv").read_bytes()
    for split in ("validation", "evaluation"):
        (tmp_path / f"clotho_metadata_{split}.csv").write_bytes(content)
    write_wavcaps(
        freesound,
        "FreeSound",
        [
            {"id": 8, "file_name": "02-bakken_rollercoaster.mp3", "caption": "A ride."},
            {"id": 3, "caption": "Rain."},
        ],
    )
    assert captions_of(freesound, "--sources", "FreeSound", "--exclude-clotho", str(tmp_path)) == [
        "Rain."
    ]
