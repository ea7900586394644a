"""data_prep/build_audiocaps.py: rows, names that downloads give, lost clips, and bad input."""

import csv
from pathlib import Path

import pytest

from data_prep import build_audiocaps
from retrieval.data import open_cache
from tests.corpora import (
    AUDIOCAPS_COLUMNS,
    assert_refused,
    load,
    read_info,
    reasons,
    run_build,
    truncate,
    write_csv,
    write_sound,
)

HEAD = Path(__file__).resolve().parents[3] / "shared" / "data" / "audiocaps_val_head.csv"
A, B, C = "aaaaaaaaaaa", "bbbbbbbbbbb", "ccccccccccc"
NAMES = [
    "{}",
    "Y{}",
    "{}_30",
    "Y{}_30",
    "{}_30_40",
    "Y{}_30_40",
    "{}_30.000",
    "{}_30.000_40.000",
    "{}_000030",
    "{}_30000",
    "Y{}_30000_40000",
]


def build(root: Path, *arguments: object) -> int:
    """Exit code of a build of the training split, unless `arguments` say otherwise."""
    return run_build(build_audiocaps, {"--root": root, "--splits": "development"}, *arguments)


def write_audiocaps(
    root: Path, rows: list[tuple], files: list[str], table: str = "train.csv"
) -> Path:
    """`rows` of (youtube_id, start_time, caption), numbered from 100 on."""
    write_csv(
        root / table, AUDIOCAPS_COLUMNS, [[100 + number, *row] for number, row in enumerate(rows)]
    )
    for name in files:
        write_sound(root / "audio" / name)
    return root


def names_used(root: Path, rows: list[tuple], files: list[str]) -> dict[str, str]:
    """Clip -> file that the build took for it; clips may be lost."""
    assert build(write_audiocaps(root, rows, files), "--allow-missing") == 0
    split = load(root / "cache", "development")
    return dict(zip(split["clip_id"][:], split["file_name"][:], strict=True))


# ---- what the cache holds


def test_cache_matches_the_contract(tmp_path, capsys):
    train = [
        (A, 30, "Rain  falls. "),
        (B, "0", 'Wind, a "storm"\nand rain.'),
        (A, "30.0", "It rains."),
        (A, 30, "Rain falls."),
        (A, 30, " "),
    ]
    write_audiocaps(
        tmp_path, train, [f"{A}_30.wav", f"Y{B}.flac", f"{C}_120.wav", f"{C}_5.5.wav", "notes.wav"]
    )
    write_audiocaps(tmp_path, [(C, 120, "A dog.")], [], "val.csv")
    write_audiocaps(tmp_path, [(C, 5.5, "A cat.")], [], "test.csv")
    assert build(tmp_path, "--splits", "evaluation", "development", "validation") == 0
    assert list(read_info(tmp_path / "cache")["splits"]) == [
        "development",
        "validation",
        "evaluation",
    ]
    clips = open_cache(tmp_path / "cache", 16_000).split("development")
    assert clips.clip_ids == [f"development/{A}_30", f"development/{B}_0"] and clips.file_names == [
        f"{A}_30.wav",
        f"Y{B}.flac",
    ]
    assert clips.captions == [
        ["Rain falls.", "It rains.", "Rain falls."],
        ['Wind, a "storm" and rain.'],
    ]
    assert clips.num_samples.tolist() == [1_600, 1_600]
    row = load(tmp_path / "cache", "development")[0]
    assert (row["youtube_id"], row["start_time"], row["audiocap_ids"]) == (A, "30", "100 102 103")
    assert load(tmp_path / "cache", "evaluation")[0]["clip_id"] == f"evaluation/{C}_5.5"
    info = read_info(tmp_path / "cache")
    assert (info["corpus"], info["codec"], info["sample_rate"]) == (
        "audiocaps",
        "pcm_s16le",
        16_000,
    ) and "max_seconds" not in info
    numbers = {
        "num_clips": 2,
        "num_captions": 4,
        "num_lost": 0,
        "num_unused": 0,
        "num_excluded": {},
        "num_cut_clips": 0,
    }
    assert numbers.items() <= info["splits"]["development"].items()
    assert (
        "1 of 5 audio files belong to no clip of the CSV files, or have names that tell no video"
        in capsys.readouterr().out
    )


def test_flac_and_the_cut(tmp_path):
    write_audiocaps(tmp_path, [(A, 30, "Rain.")], [f"{A}_30.wav"])
    assert build(tmp_path, "--codec", "flac", "--max-seconds", "0.05") == 0
    cache = open_cache(tmp_path / "cache")
    assert (
        cache.info["codec"],
        cache.info["max_seconds"],
        cache.info["splits"]["development"]["num_cut_clips"],
    ) == ("flac", 0.05, 1)
    assert len(cache.split("development").read(0)) == 800


# ---- names of files


def test_every_known_name_is_found(tmp_path):
    kinds = [
        "Y{:02d}bcdefgh",
        "YY{:02d}bcdefg",
        "_{:02d}bcdefg_",
        "-{:02d}bc_-fg-",
        "_{:02d}_30_300",
        "Ya_{:02d}_3000",
    ]
    expected = {}
    for name in NAMES:
        for kind in kinds:
            number = len(expected)
            video = kind.format(number)[:11].ljust(11, "x")
            folder = ["", "sub/", "sub/deeper/"][number % 3]
            ending = [".wav", ".flac", ".mp3", ".WAV"][number % 4]
            expected[video] = f"{folder}{name.format(video)}{ending}"
    rows = [(video, 30, f"Caption of {video}.") for video in expected]
    write_audiocaps(tmp_path, rows, list(expected.values()))
    assert build(tmp_path, "--allow-missing", "0") == 0
    split = load(tmp_path / "cache", "development")
    assert len(expected) == 66
    assert dict(zip(split["youtube_id"][:], split["file_name"][:], strict=True)) == {
        video: Path(path).name for video, path in expected.items()
    }


def test_other_names_are_not_taken(tmp_path):
    wrong = [
        "{}_31",
        "{}_3",
        "{}_300",
        "{}_30s",
        "{}-30",
        "x{}_30",
        "YY{}_30",
        "{}_30_40_50",
        "{}x",
        "{}_",
        "{}_30_",
        "{}_x",
    ]
    videos = [f"video{number:06d}" for number in range(len(wrong) + 1)]
    files = [f"{name.format(video)}.wav" for name, video in zip(wrong, videos)]
    found = names_used(
        tmp_path, [(video, 30, "A sound.") for video in videos], [*files, f"{videos[-1]}_30.wav"]
    )
    assert found == {f"development/{videos[-1]}_30": f"{videos[-1]}_30.wav"}
    lost = reasons(read_info(tmp_path / "cache")["skipped"])
    assert (
        lost[f"{videos[0]}_30"] == "its video's files are of other times, or do not tell"
        and lost[f"{videos[4]}_30"] == "no such audio file"
    )


@pytest.mark.parametrize(
    ("starts", "files", "expected"),
    [
        (
            (30, 90),
            [f"{A}_30.wav", f"Y{A}_90000.wav", f"{A}.wav"],
            {30: f"{A}_30.wav", 90: f"Y{A}_90000.wav"},
        ),
        # a name without a start does not tell which of the two
        ((30, 90), [f"{A}.wav", f"{A}_90.wav"], {90: f"{A}_90.wav"}),
        ((30,), [f"{A}.wav", f"{A}_90.wav"], {30: f"{A}.wav"}),
        ((30,), [f"{A}.wav", f"{A}_30.flac"], {30: f"{A}_30.flac"}),
        ((30, 30000), [f"{A}_30000.wav"], {30: f"{A}_30000.wav", 30000: f"{A}_30000.wav"}),
        ((30,), [f"{A}_30000.wav", f"{A}_30.wav"], {30: f"{A}_30.wav"}),
        ((0,), [f"{A}_0_10.wav"], {0: f"{A}_0_10.wav"}),
        ((30,), [f"{A}_30.m4a", f"{A}_30.mp3", f"Y{A}_30.flac"], {30: f"Y{A}_30.flac"}),
        (
            (1234567, 1234568),
            [f"{A}_1234567.wav", f"{A}_1234568.wav"],
            {1234567: f"{A}_1234567.wav", 1234568: f"{A}_1234568.wav"},
        ),
    ],
)
def test_the_clips_of_one_video(tmp_path, starts, files, expected):
    found = names_used(tmp_path, [(A, start, f"From {start} s.") for start in starts], files)
    assert found == {f"development/{A}_{start}": name for start, name in expected.items()}


def test_one_clip_in_two_tables_is_two_clips_of_its_video(tmp_path):
    write_audiocaps(tmp_path, [(A, 90, "Later.")], [], "val.csv")
    write_audiocaps(
        tmp_path, [(A, 30, "Rain."), (B, 30, "Wind.")], [f"{A}.wav", f"{B}.wav"], "test.csv"
    )
    assert build(tmp_path, "--splits", "evaluation", "--allow-missing", "50") == 0
    assert load(tmp_path / "cache")["youtube_id"][:] == [B]


# ---- clips that are gone


def test_a_fifth_may_be_lost_and_is_listed(tmp_path, capsys):
    videos = [f"video{number:06d}" for number in range(10)]
    rows = [(video, 30, "" if video == videos[1] else "A sound.") for video in videos]
    write_audiocaps(tmp_path, rows, [f"{video}_30.wav" for video in videos if video != videos[3]])
    assert build(tmp_path) == 0
    info = read_info(tmp_path / "cache")
    assert (
        info["splits"]["development"]["num_clips"],
        info["splits"]["development"]["num_lost"],
    ) == (8, 2)
    expected = {
        f"{videos[1]}_30": "all captions are empty",
        f"{videos[3]}_30": "no such audio file",
    }
    assert reasons(info["skipped"]) == expected
    assert f"  development/{videos[3]}_30: no such audio file" in capsys.readouterr().out
    truncate(tmp_path / "audio" / f"{videos[5]}_30.wav")
    other = tmp_path / "other"
    assert_refused(
        build(tmp_path, "--output", other),
        "3 of 10 clips are lost, at most 20% may be; first",
        other,
        capsys,
    )
    assert_refused(
        build(tmp_path, "--output", other, "--allow-missing", "29"),
        "at most 29% may be",
        other,
        capsys,
    )
    assert build(tmp_path, "--output", other, "--allow-missing", "30") == 0
    found = reasons(read_info(other)["skipped"])
    assert found.pop(f"{videos[5]}_30.wav").startswith("truncated: ") and found == expected


@pytest.mark.skipif(
    not HEAD.is_file(), reason="the excerpt of AudioCaps' validation table is not here"
)
def test_real_rows(tmp_path):
    with HEAD.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    (tmp_path / "val.csv").write_bytes(HEAD.read_bytes())
    captions = {}
    for row in rows:
        captions.setdefault((row["youtube_id"], row["start_time"]), []).append(row["caption"])
    gone = list(captions)[::6]
    for number, (video, start) in enumerate(captions):
        if (video, start) not in gone:
            write_sound(
                tmp_path
                / "audio"
                / f"{'Y' * (number % 2)}{video}_{int(start) * [1, 1000][number % 3 == 0]}.wav",
                seconds=0.02,
            )
    assert build(tmp_path, "--splits", "validation") == 0
    split = load(tmp_path / "cache", "validation")
    found = {(row["youtube_id"], row["start_time"]): row["captions"] for row in split}
    # a repeated row is a query of its own
    assert found == {key: texts for key, texts in captions.items() if key not in gone}
    assert any(len(texts) > 1 for texts in found.values()) and 100 < len(found) < len(rows)
    assert read_info(tmp_path / "cache")["splits"]["validation"]["num_lost"] == len(gone)


# ---- a cache that is there


def test_a_second_run_has_nothing_to_do_until_something_changes(tmp_path, capsys):
    rows = [(A, 30, "Rain."), (B, 30, "Wind.")]
    assert build(write_audiocaps(tmp_path, rows, [f"{A}_30.wav", f"{B}_30.wav"])) == 0
    capsys.readouterr()
    assert build(tmp_path) == 0
    assert "already built with these settings; nothing to do" in capsys.readouterr().out
    write_audiocaps(tmp_path, [(B, 30, "A test.")], [], "test.csv")
    assert build(tmp_path) == 2
    assert (
        "the files or captions of development have changed since it was built: add --overwrite"
        in capsys.readouterr().err
    )
    assert build(tmp_path, "--overwrite") == 0
    assert read_info(tmp_path / "cache")["splits"]["development"]["num_excluded"] == {
        "in AudioCaps' test.csv": 1
    }
    write_audiocaps(tmp_path, [*rows, (A, 30, "More rain.")], [])
    assert build(tmp_path) == 2
    assert "have changed since it was built" in capsys.readouterr().err
    assert build(tmp_path, "--overwrite") == 0
    assert load(tmp_path / "cache", "development")["captions"][:] == [["Rain.", "More rain."]]


# ---- bad input

HEADER = ",".join(AUDIOCAPS_COLUMNS).encode() + b"\n"
BAD_TABLES = {
    "absent": (
        None,
        "train.csv is missing: fetch it from AudioCaps, or leave development out with --splits",
    ),
    "empty": (b"", "column audiocap_id must occur once in its first line, found: nothing"),
    "no rows": (HEADER, "train.csv has no rows"),
    "other columns": (
        b"youtube_id,caption\n",
        "column audiocap_id must occur once in its first line, found: youtube_id, caption",
    ),
    "not UTF-8": (HEADER + b"1,aaaaaaaaaaa,30,\xe9t\xe9\n", "train.csv is not UTF-8"),
    "cut off": (
        HEADER + b"1,aaaaaaaaaaa,30,Rain.\n2,bbbb",
        "line 3: 2 fields, expected 4; is a quote missing or the file cut off?",
    ),
    "cut off in quotes": (
        HEADER + b'1,aaaaaaaaaaa,30,"Rain, fal',
        "line 2: unexpected end of data; is a quote missing",
    ),
    "an id that is none": (
        HEADER + b'"1\n2",aaaa,30,x\n',
        "audiocap_id '1\\n2': youtube_id 'aaaa', start_time '30'; expected the 11 characters",
    ),
    "another address": (
        HEADER + b"1,https://example.org/aaaaaaaaaaaa,30,x\n",
        "expected the 11 characters of a YouTube id, and seconds",
    ),
    "no start": (HEADER + b"1,aaaaaaaaaaa,,x\n", "start_time ''; expected"),
    "a time of day": (HEADER + b"1,aaaaaaaaaaa,0:30,x\n", "start_time '0:30'; expected"),
    "before the start": (HEADER + b"1,aaaaaaaaaaa,-1,x\n", "start_time '-1'; expected"),
    "NaN": (HEADER + b"1,aaaaaaaaaaa,nan,x\n", "start_time 'nan'; expected"),
    "empty captions": (
        HEADER + b"1,aaaaaaaaaaa,30, \n",
        "none of its 1 clips is usable; first 'aaaaaaaaaaa_30': all captions are empty",
    ),
    "no such file": (
        HEADER + b"1,bbbbbbbbbbb,30,x\n",
        "none of its 1 clips is usable; first 'bbbbbbbbbbb_30': no such audio file",
    ),
    "no sound": (HEADER + b"1,ccccccccccc,30,x\n", "'ccccccccccc_30.m4a': is not a sound file"),
    "all excluded": (
        HEADER + b"1,aaaaaaaaaaa,90,x\n",
        "no clip is left; 1 are excluded, since other corpora test with them",
    ),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_one_line(tmp_path, capsys, name):
    content, expected = BAD_TABLES[name]
    write_sound(tmp_path / "audio" / f"{A}_30.wav")
    (tmp_path / "audio" / f"{C}_30.m4a").write_bytes(bytes(100))
    if content is not None:
        (tmp_path / "train.csv").write_bytes(content)
    excluded = (
        [write_csv(tmp_path / "old.csv", ["youtube_id"], [[A]])] if name == "all excluded" else []
    )
    code = build(tmp_path, *(["--exclude-audiocaps", *excluded] if excluded else []))
    assert_refused(code, expected, tmp_path / "cache", capsys)


BAD_OPTIONS = {
    "--root ROOT/nowhere": "nowhere/train.csv is missing",
    "--audio ROOT/nowhere": "nowhere is not a folder: expected the folder with the audio files",
    "--audio ROOT/empty": "empty holds no audio file",
    "--splits train": "invalid choice: 'train'",
    "--splits validation": (
        "val.csv is missing: fetch it from AudioCaps, or leave validation out with --splits"
    ),
    "--exclude-audiocaps ROOT/nowhere.csv": "nowhere.csv cannot be read: No such file or directory",
    "--allow-missing 200": "--allow-missing 200: expected a percentage, 0 to 100",
    "--max-seconds -1": "--max-seconds -1: expected seconds",
    "--codec mp3 --sample-rate 96000": "codec mp3 knows no 96000 Hz",
    "--output ROOT": "would replace --root",
    "--audio ROOT/audio --output ROOT/audio": "would replace --audio",
}


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_a_bad_option_is_one_line(tmp_path, capsys, options):
    write_audiocaps(tmp_path, [(A, 30, "Rain.")], [f"{A}_30.wav"])
    (tmp_path / "empty").mkdir()
    assert_refused(
        build(tmp_path, *options.replace("ROOT", str(tmp_path)).split()),
        BAD_OPTIONS[options],
        tmp_path / "cache",
        capsys,
    )
    assert (tmp_path / "train.csv").is_file() and (tmp_path / "audio" / f"{A}_30.wav").is_file()
