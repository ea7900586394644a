"""Stretches as files, read back by readers that know the formats: csv, pandas, json, soundfile."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile

from retrieval.base.errors import UserError
from retrieval.moments import export
from retrieval.moments.export import Stretch, write_clips, write_labels
from retrieval.moments.spans import Moment
from retrieval.search import __main__ as command
from tests.conftest import digests

QUERY = 'a "dog"\tbarks,\ntwice \\ 🐕 =1+1'
PLAIN = 'a "dog" barks, twice \\ 🐕 =1+1'
SECONDS = {"dog.wav": 5.0, "night/owl;  <b>.flac": 3.0, "night/deep/dog.wav": 2.0}
RATES = {"dog.wav": 16_000, "night/owl;  <b>.flac": 44_100, "night/deep/dog.wav": 8_000}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    folder, random = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    for number, (name, seconds) in enumerate(SECONDS.items(), 1):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (round(seconds * RATES[name]), number)
        samples = random.integers(-(2**15), 2**15, shape, dtype=np.int16)
        soundfile.write(path, samples, RATES[name], subtype="PCM_16")
    return folder


@pytest.fixture
def stretches() -> list[Stretch]:
    found = [
        ("dog.wav", 1, Moment(3.25, 4.5, 0.75)),
        ("dog.wav", 1, Moment(0.125, 1.0, 0.5)),
        ("night/owl;  <b>.flac", 2, Moment(0.0, 3.0, 0.25)),
        ("night/deep/dog.wav", 3, Moment(1.5, 2.0, -0.125)),
    ]
    return [Stretch(QUERY, file, SECONDS[file], rank, moment) for file, rank, moment in found]


def times_by_file(stretches: list[Stretch]) -> dict[str, list[tuple[float, float]]]:
    names = {own.file for own in stretches}
    return {name: sorted(own.moment[:2] for own in stretches if own.file == name) for name in names}


def test_labels_of_audacity(sounds, stretches, tmp_path):
    written = write_labels("audacity", tmp_path / "out", stretches, sounds.joinpath)
    found = {}
    for path in written:
        name = path.relative_to(tmp_path / "out").as_posix().removesuffix(".labels.txt")
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        assert all(len(row) == 3 and row[2] == PLAIN for row in rows)
        found[name] = [(float(start), float(end)) for start, end, _ in rows]
        assert path.read_bytes().endswith(b"\n") and b"\r" not in path.read_bytes()
    assert found == times_by_file(stretches)


def test_tables_of_raven(sounds, stretches, tmp_path):
    written = write_labels("raven", tmp_path / "out", stretches, sounds.joinpath)
    found = {}
    for path in written:
        name = path.relative_to(tmp_path / "out").as_posix()
        name = name.removesuffix(".Table.1.selections.txt")
        table = pandas.read_csv(path, sep="\t")
        assert list(table)[:7] == [
            *("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)"),
            *("Low Freq (Hz)", "High Freq (Hz)"),
        ]
        assert table["Selection"].tolist() == list(range(1, len(table) + 1))
        assert set(table["View"]) == {"Spectrogram 1"} and set(table["Channel"]) == {1}
        assert set(table["Low Freq (Hz)"]) == {0} and set(table["Begin File"]) == {Path(name).name}
        assert set(table["High Freq (Hz)"]) == {RATES[name] / 2}
        assert set(table["Annotation"]) == {PLAIN.replace('"', "'")}
        found[name] = list(zip(table["Begin Time (s)"], table["End Time (s)"], strict=True))
        scores = {own.moment[:2]: own.moment.score for own in stretches if own.file == name}
        assert table["Score"].tolist() == [scores[times] for times in found[name]]
    assert found == times_by_file(stretches)


def test_tables(sounds, stretches, tmp_path):
    for kind in ("csv", "json"):
        path = tmp_path / f"all.{kind}"
        assert write_labels(kind, path, stretches, sounds.joinpath) == [path]
    with open(tmp_path / "all.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    objects = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    for row, own, stretch in zip(rows, objects, stretches, strict=True):
        assert own == {
            "query": QUERY,
            "file": stretch.file,
            "from": stretch.moment.start,
            "to": stretch.moment.end,
            "score": stretch.moment.score,
            "rank": stretch.rank,
            "file_seconds": stretch.seconds,
            "matches": True,
        }
        assert row == {key: str(value) for key, value in own.items()} | {"matches": "true"}
    assert io.StringIO(export.csv_table([]), newline="").read() == ",".join(export.COLUMNS) + "\r\n"


def test_labels_of_an_earlier_run_are_replaced_and_other_files_stay(sounds, stretches, tmp_path):
    out = tmp_path / "out"
    write_labels("audacity", out, stretches, sounds.joinpath)
    (out / "mine.txt").write_text("mine")
    write_labels("audacity", out, stretches[:1], sounds.joinpath)
    assert len((out / "dog.wav.labels.txt").read_text().splitlines()) == 1
    assert (out / "mine.txt").read_text() == "mine"


def test_clips_have_the_samples_of_their_recordings(sounds, stretches, tmp_path):
    before = digests(sounds)
    written = write_clips(tmp_path / "clips", stretches, sounds.joinpath)
    assert sorted(written) == written == sorted((tmp_path / "clips").iterdir())
    assert [path.name for path in written] == [
        "001 dog 3.25-4.50.wav",
        "002 dog 0.12-1.00.wav",
        "003 owl_  _b_ 0.00-3.00.wav",
        "004 dog 1.50-2.00.wav",
    ]
    for path, own in zip(written, stretches, strict=True):
        whole, rate = soundfile.read(sounds / own.file, dtype="int16", always_2d=True)
        part, own_rate = soundfile.read(path, dtype="int16", always_2d=True)
        first, stop = (round(time * rate) for time in own.moment[:2])
        assert own_rate == rate and np.array_equal(part, whole[first:stop])
    assert digests(sounds) == before


def test_clips_replace_nothing_and_come_whole(sounds, stretches, tmp_path):
    for folder in (sounds, tmp_path / "file"):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(UserError, match="--clips"):
            write_clips(folder, stretches, sounds.joinpath)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    paths = {"night/deep/dog.wav": tmp_path / "broken.wav"}
    with pytest.raises(UserError, match="broken.wav") as error:
        write_clips(tmp_path / "clips", stretches, lambda file: paths.get(file, sounds / file))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="absent.wav"):
        write_clips(tmp_path / "clips", stretches, lambda file: tmp_path / "absent.wav")
    with pytest.raises(UserError, match="broken.wav"):
        write_labels("raven", tmp_path / "out", stretches, lambda file: tmp_path / "broken.wav")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.wav", "file"]


def test_a_clip_that_its_recording_no_longer_holds_is_an_error(sounds, tmp_path):
    for moment in (Moment(5.2, 6.0, 0.5), Moment(4.0, 6.0, 0.5)):
        with pytest.raises(UserError, match="dog.wav"):
            write_clips(
                tmp_path / "new", [Stretch(QUERY, "dog.wav", 6, 1, moment)], sounds.joinpath
            )
        assert not list(tmp_path.iterdir())
    moment = Moment(4.5, 5.05, 0.5)  # by the decoder's way to count
    (clip,) = write_clips(
        tmp_path / "new", [Stretch(QUERY, "dog.wav", 5, 1, moment)], sounds.joinpath
    )
    assert soundfile.info(clip).duration == 0.5


def test_a_full_disk_is_said_in_one_line(sounds, stretches, tmp_path, monkeypatch):
    def write(*_: object) -> None:
        raise soundfile.LibsndfileError(2)  # as libsndfile does on a full disk

    monkeypatch.setattr(soundfile.SoundFile, "write", write)
    with pytest.raises(UserError, match=r"new cannot be written .*make room"):
        write_clips(tmp_path / "new", stretches, sounds.joinpath)
    assert not list(tmp_path.iterdir())


def test_a_clip_beyond_the_size_of_a_wav_is_rf64(sounds, stretches, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "WAV_LIMIT", 100_000)
    clips = write_clips(tmp_path / "new", stretches, sounds.joinpath)
    assert [soundfile.info(clip).format for clip in clips] == ["WAV", "WAV", "RF64", "WAV"]
    assert soundfile.info(clips[2]).frames == 3 * 44_100


def test_no_label_is_written_where_one_cannot_be(sounds, stretches, tmp_path):
    wrong = tmp_path / "night" / "deep" / "dog.wav.labels.txt"
    wrong.mkdir(parents=True)
    with pytest.raises(UserError, match="dog.wav.labels.txt is a folder"):
        write_labels("audacity", tmp_path, stretches, sounds.joinpath)
    assert [path for path in tmp_path.rglob("*.txt") if path.is_file()] == []


def test_a_quotation_mark_in_a_name_breaks_no_table(sounds, tmp_path):
    name = '"dog.wav'
    (tmp_path / name).write_bytes((sounds / "dog.wav").read_bytes())
    stretches = [Stretch(QUERY, name, 5.0, 1, Moment(start, 4.0, 0.5)) for start in (1.0, 2.0)]
    (path,) = write_labels("raven", tmp_path / "out", stretches, tmp_path.joinpath)
    table = pandas.read_csv(path, sep="\t")
    assert table["Begin Time (s)"].tolist() == [1.0, 2.0]
    assert set(table["Begin File"]) == {"'dog.wav"}


def test_names_are_safe_and_short(tmp_path):
    moment = Moment(0.0, 1.0, 0.5)
    for file, expected in (
        ("..", "recording"),
        ("a/.hidden.wav", "hidden"),
        ("CON: | ?.wav", "CON_ _ _"),
        ("a\nb\0.wav", "a_b_"),
    ):
        assert export.clip_name(Stretch("", file, 1.0, 1, moment)) == f"{expected} 0.00-1.00.wav"
    long = [f"night/{letter * 120}.wav" for letter in "é狗"]  # two and three bytes each
    twins = [f"night/{'x' * 248}{number}.wav" for number in (1, 2)]
    own = [Stretch("", file, 1.0, 1, moment) for file in [long[0], *twins]]
    written = write_labels("audacity", tmp_path, own, Path)
    assert len(set(written)) == 3 and all(len(path.name.encode()) <= 200 for path in written)
    for file in long:
        assert len(export.clip_name(Stretch("", file, 1.0, 1, moment)).encode()) < 200


def test_the_command_offers_these_formats():
    assert command.LABELS == export.FORMATS
