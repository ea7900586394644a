"""No clip that a corpus tests with gets into the training split of another one; each time the same build without the exclusion lets it in.

Bells are the clips that must stay out, rain is what may be trained on.
"""

import json
from pathlib import Path

import build_audiocaps  # of data_prep, see conftest.py
import build_wavcaps
import pytest
from corpora import AUDIOCAPS_COLUMNS, write_csv, write_sound, write_wavcaps

from retrieval.data import open_cache

RAIN, BELL = "aaaaaaaaaaa", "Ybbbbbbbbbb"  # YouTube ids; one that begins with Y itself


def write_clotho(root: Path, validation: list[list], evaluation: list[list]) -> Path:
    for split, rows in (("validation", validation), ("evaluation", evaluation)):
        write_csv(root / f"clotho_metadata_{split}.csv", ["file_name", "keywords", "sound_id"], rows)
    return root


def captions_of(root: Path, *arguments: str) -> list[str]:
    """Build the cache of WavCaps at `root`; all captions that can be trained on."""
    assert build_wavcaps.main(["--root", str(root), "--num-proc", "1", "--overwrite", "--sample-rate", "16000", *arguments]) == 0
    return [caption for captions in open_cache(root / "cache").split("development").captions for caption in captions]


@pytest.fixture
def freesound(tmp_path: Path) -> Path:
    """WavCaps' FreeSound part: 1 and 2 are Clotho's by id, 4 by its name alone."""
    names = {1: "Bell.wav", 2: "Other bell.wav", 3: "Rain.wav", 4: " Church  BELL.aiff", 5: "Church bell 2.wav"}
    entries = [{"id": str(i) if i % 2 else i, "file_name": name, "caption": f"{name.strip()} is heard."} for i, name in names.items()]
    write_wavcaps(tmp_path / "wavcaps", "FreeSound", entries)
    return tmp_path / "wavcaps"


def test_clotho_clips_stay_out_of_wavcaps(tmp_path, freesound, capsys):
    validation = [["Some name.wav", "", "2"]]
    clotho = write_clotho(tmp_path / "clotho", validation, [["Bell.wav", "", "1"], ["Church Bell.wav", "", "Not found"], ["Wind.wav", "", "99"]])
    found = captions_of(freesound, "--sources", "FreeSound", "--exclude-clotho", str(clotho))
    assert found == ["Rain.wav is heard.", "Church bell 2.wav is heard."]
    output = capsys.readouterr().out
    assert "excluded from development: 1 clips, in Clotho's evaluation split (Freesound id)" in output
    assert "excluded from development: 1 clips, in Clotho's evaluation split (file name, its Freesound id is not known)" in output
    assert "clotho_metadata_evaluation.csv: 1 of 3 clips have no Freesound id there" in output and "warning" not in output
    info = json.loads((freesound / "cache" / "cache.json").read_text())
    assert info["splits"]["development"]["num_excluded"] == {
        "in Clotho's evaluation split (Freesound id)": 1,
        "in Clotho's validation split (Freesound id)": 1,
        "in Clotho's evaluation split (file name, its Freesound id is not known)": 1,
    }
    assert [item["file_name"] for item in info["excluded"]] == ["FreeSound/1", "FreeSound/2", "FreeSound/4"] and info["skipped"] == []

    control = captions_of(freesound, "--sources", "FreeSound")  # without the exclusion the evaluation clips are trained on
    assert len(control) == 5 and "Bell.wav is heard." in control
    lines = [line for line in capsys.readouterr().out.splitlines() if "warning: FreeSound holds clips of Clotho's" in line]
    assert len(lines) == 2 and all("--exclude-clotho ROOT" in line for line in lines)  # before the build, and in its report


def test_a_list_of_ids_stays_out_of_wavcaps(tmp_path, freesound, capsys):
    listed = write_csv(tmp_path / "excluded.csv", ["sound_id"], [["1"], ["Not found"], ["4"], ["77"]])
    found = captions_of(freesound, "--sources", "FreeSound", "--exclude-ids", str(listed))
    assert found == ["Other bell.wav is heard.", "Rain.wav is heard.", "Church bell 2.wav is heard."]
    output = capsys.readouterr().out
    assert "excluded from development: 2 clips, in excluded.csv" in output and "warning" not in output


def test_freesound_ids_are_not_looked_for_in_other_sources(tmp_path, freesound):
    write_wavcaps(freesound, "SoundBible", [{"id": "1", "caption": "A bell of SoundBible."}])
    clotho = write_clotho(tmp_path / "clotho", [["a.wav", "", "2"]], [["b.wav", "", "1"]])
    found = captions_of(freesound, "--sources", "FreeSound", "SoundBible", "--exclude-clotho", str(clotho))
    assert "A bell of SoundBible." in found and "Bell.wav is heard." not in found


def test_audiocaps_clips_stay_out_of_audioset(tmp_path, capsys):
    root = tmp_path / "wavcaps"
    write_wavcaps(root, "AudioSet_SL", [{"id": f"Y{RAIN}.wav", "caption": "Rain."}, {"id": f"Y{BELL}.wav", "caption": "A bell."}])
    test = write_csv(tmp_path / "test.csv", AUDIOCAPS_COLUMNS, [[1, BELL, 30, "A bell rings."]])
    assert captions_of(root, "--sources", "AudioSet_SL", "--exclude-audiocaps", str(test)) == ["Rain."]
    assert "excluded from development: 1 clips, in AudioCaps' test.csv" in capsys.readouterr().out
    assert captions_of(root, "--sources", "AudioSet_SL") == ["Rain.", "A bell."]
    assert "warning: AudioSet_SL holds clips that AudioCaps tests with" in capsys.readouterr().out


def test_a_cache_without_exclusions_is_not_taken_for_one_with_them(tmp_path, freesound, capsys):
    clotho = write_clotho(tmp_path / "clotho", [["a.wav", "", "2"]], [["b.wav", "", "1"]])
    captions_of(freesound, "--sources", "FreeSound")
    capsys.readouterr()
    assert build_wavcaps.main(f"--root {freesound} --sources FreeSound --sample-rate 16000 --exclude-clotho {clotho}".split()) == 2
    assert "the files or captions of development have changed since it was built: add --overwrite" in capsys.readouterr().err


def test_test_videos_stay_out_of_audiocaps_training(tmp_path, capsys):
    root = tmp_path / "audiocaps"
    other = "ccccccccccc"
    for video in (RAIN, BELL, other):
        write_sound(root / "audio" / f"Y{video}_30.wav")
        write_sound(root / "audio" / f"Y{video}_90.wav")
    write_csv(root / "train.csv", AUDIOCAPS_COLUMNS, [[1, RAIN, 30, "Rain."], [2, BELL, 90, "A bell, later."], [3, other, 30, "Another bell."]])
    build = f"--root {root} --splits development --num-proc 1 --sample-rate 16000 --overwrite".split()

    def captions() -> list[list[str]]:
        return open_cache(root / "cache").split("development").captions

    assert build_audiocaps.main(build) == 0
    assert captions() == [["Rain."], ["A bell, later."], ["Another bell."]]  # the negative control: no test set is known
    write_csv(root / "test.csv", AUDIOCAPS_COLUMNS, [[9, BELL, 30, "A bell rings."]])
    assert build_audiocaps.main(build) == 0
    assert captions() == [["Rain."], ["Another bell."]]
    older = write_csv(tmp_path / "older_test.csv", AUDIOCAPS_COLUMNS, [[9, other, 30, "A bell rings."]])
    capsys.readouterr()
    assert build_audiocaps.main([*build, "--exclude-audiocaps", str(older)]) == 0
    assert captions() == [["Rain."]]
    output = capsys.readouterr().out
    assert "1 clips, in AudioCaps' test.csv" in output and "1 clips, in AudioCaps' older_test.csv" in output


@pytest.mark.parametrize(
    ("option", "content", "expected"),
    [
        ("--exclude-ids", "id\n1\n", "column sound_id must occur once"),
        ("--exclude-ids", "sound_id\nNot found\n", "holds no id in its column sound_id"),
        ("--exclude-ids", None, "cannot be read"),
        ("--exclude-audiocaps", "sound_id\n1\n", "column youtube_id must occur once"),
        ("--exclude-clotho", None, "clotho_metadata_validation.csv is missing; give Clotho's folder"),
    ],
)
def test_an_exclusion_that_cannot_be_read_stops_the_build(tmp_path, freesound, capsys, option, content, expected):
    path = tmp_path / "list"
    if content is not None:
        path.write_text(content)
    assert build_wavcaps.main(["--root", str(freesound), "--sources", "FreeSound", option, str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line and not (freesound / "cache").exists()


def test_clotho_metadata_without_rows_is_an_error(tmp_path, freesound, capsys):
    clotho = write_clotho(tmp_path / "clotho", [], [["b.wav", "", "1"]])
    assert build_wavcaps.main(["--root", str(freesound), "--sources", "FreeSound", "--exclude-clotho", str(clotho)]) == 2
    assert "clotho_metadata_validation.csv has no rows" in capsys.readouterr().err
