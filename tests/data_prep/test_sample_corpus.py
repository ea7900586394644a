"""data_prep/make_sample_corpus.py: bytes, Clotho's layout, true captions, audible events."""

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import wave

import numpy as np
import pytest

from data_prep import build_clotho, make_sample_corpus
from data_prep.sample_corpus import captions, scenes
from data_prep.sample_corpus.events import EVENTS
from data_prep.sample_corpus.signals import SAMPLE_RATE, band, filtered
from retrieval.data import open_cache
from tests.conftest import PATIENCE, ROOT, digests, wait_for
from tests.corpora import load, run_build

SIZES = {"development": 16, "validation": 4, "evaluation": 4}
SIZE_ARGUMENTS = ["--sizes", *map(str, SIZES.values())]


def make(output, *arguments):
    return make_sample_corpus.main(["--output", str(output), *map(str, arguments)])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    output = tmp_path_factory.mktemp("sample") / "corpus"
    assert make(output, "--num-proc", 2, *SIZE_ARGUMENTS) == 0
    return output


@pytest.fixture(scope="module")
def clips(corpus):
    return json.loads((corpus / "scenes.json").read_text(encoding="utf-8"))["clips"]


def read_table(path, encoding="utf-8"):
    with open(path, encoding=encoding, newline="") as file:
        return list(csv.DictReader(file))


def read_wav(path):
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (44_100, 1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


# ---------------------------------------------------------------- bytes


def test_same_seed_same_bytes_for_any_number_of_processes(corpus, tmp_path):
    assert make(tmp_path / "again", "--num-proc", 1, *SIZE_ARGUMENTS) == 0
    assert digests(tmp_path / "again") == digests(corpus)


def test_another_seed_gives_other_bytes(tmp_path):
    for seed in (0, 1):
        assert make(tmp_path / str(seed), "--seed", seed, "--num-proc", 1, "--sizes", 1, 1, 1) == 0
    sounds = [
        {value for name, value in digests(tmp_path / str(seed)).items() if name.endswith(".wav")}
        for seed in (0, 1)
    ]
    assert not sounds[0] & sounds[1]


def test_a_clip_does_not_depend_on_how_many_there_are(corpus, tmp_path, clips):
    assert make(tmp_path / "few", "--num-proc", 1, "--sizes", 2, 1, 1) == 0
    name = clips[0]["file_name"]
    assert (tmp_path / "few/development" / name).read_bytes() == (
        corpus / "development" / name
    ).read_bytes()


def test_bytes_are_those_of_this_version(corpus, clips):
    """If a change of synthesis or grammar fails here: raise VERSION, then renew the digest."""
    digest = hashlib.sha256(json.dumps(clips).encode())
    for clip in clips:
        samples = read_wav(corpus / clip["split"] / clip["file_name"])
        # eight bits: another processor's last digit must not matter here
        digest.update((samples >> 8).tobytes())
    found = digest.hexdigest()[:16]
    assert (make_sample_corpus.VERSION, found) == (1, "6f20b0dcfe25869f")


# ---------------------------------------------------------------- layout


@pytest.mark.parametrize("split", SIZES)
def test_tables_and_files_agree(corpus, split):
    rows = read_table(corpus / f"clotho_captions_{split}.csv")
    metadata = read_table(corpus / f"clotho_metadata_{split}.csv", "iso-8859-1")
    assert list(rows[0]) == ["file_name", *(f"caption_{i}" for i in range(1, 6))]
    assert list(metadata[0]) == [
        "file_name",
        "keywords",
        "sound_id",
        "sound_link",
        "start_end_samples",
        "manufacturer",
        "license",
    ]
    names = [row["file_name"] for row in rows]
    assert names == [row["file_name"] for row in metadata] and sorted(names) == sorted(
        os.listdir(corpus / split)
    )
    assert len(names) == SIZES[split]
    for row in metadata:
        assert (
            row["start_end_samples"] == f"[0, {len(read_wav(corpus / split / row['file_name']))}]"
        )
        assert set(row["keywords"].split(";")) <= {kind.keyword for kind in EVENTS.values()}
        assert (
            row["sound_id"] == row["sound_link"] == "Not found"
            and "publicdomain/zero" in row["license"]
        )


def test_file_names_are_unique_and_odd():
    from data_prep.sample_corpus.file_names import file_name

    rng, taken = np.random.default_rng(0), set()
    names = [file_name(rng, scenes.plan_scene(rng), taken) for _ in range(420)]
    keys = {re.sub(r"[\W_]", "", name.casefold()) for name in names}
    assert len(keys) == len(names)
    for oddity in (" ", "(", "[", "'", "&", ",", " .wav", "  ", "ü", "ã", "ø"):
        assert any(oddity in name for name in names), oddity
    for name in names:
        name.encode("iso-8859-1")
        assert name.endswith(".wav") and not set(name) & set('/\\:*?"<>|')


def test_clips_last_4_to_20_seconds_and_do_not_clip(corpus, clips):
    for clip in clips:
        samples = read_wav(corpus / clip["split"] / clip["file_name"])
        assert (
            len(samples) == clip["num_samples"]
            and 4 * SAMPLE_RATE <= len(samples) <= 20 * SAMPLE_RATE
        )
        peak = np.abs(samples.astype(int)).max()
        assert 300 < peak < 32_767 and samples.any()
        assert 1 <= len(clip["events"]) <= 4
        for event in clip["events"]:
            assert (
                event["onset"] >= 0
                and event["onset"] + event["duration"] <= len(samples) / SAMPLE_RATE
            )


def test_plans_are_varied():
    rng = np.random.default_rng(0)
    planned = [scenes.plan_scene(rng) for _ in range(400)]
    assert len(EVENTS) >= 25 and {event.kind for scene in planned for event in scene.events} == set(
        EVENTS
    )
    assert {scene.background for scene in planned} == set(scenes.BACKGROUNDS)
    assert {len(scene.events) for scene in planned} == {1, 2, 3, 4}
    sets = {
        frozenset(event.kind for event in scene.events)
        for scene in planned
        if len(scene.events) > 1
    }
    # scenes mostly differ in their events
    assert len(sets) > 0.85 * sum(len(scene.events) > 1 for scene in planned)


# ---------------------------------------------------------------- captions


def named_kinds(text):
    """Kinds in the order of the caption: subject, perhaps with an adjective, and verb."""
    found = {}
    for name, kind in EVENTS.items():
        for subject, verb, participle in kind.phrases:
            article, noun = re.fullmatch(r"(?:(an?) )?(.*)", subject).groups()
            start = rf"an? (?:[\w]+ ){{0,2}}{re.escape(noun)}" if article else re.escape(noun)
            match = re.search(
                rf"\b{start} (?:{re.escape(verb)}|{re.escape(participle)})\b", text.lower()
            )
            if match:
                found[name] = match.start()
    return sorted(found, key=found.get)


ATTRIBUTE_WORDS = [
    (
        "count",
        {
            1: "once",
            2: "twice|two times",
            3: "three times",
            4: "four times",
            5: "five times",
            6: "six times",
        },
    ),
    (
        "loudness",
        {"loud": "loud|loudly|very loudly", "faint": "faintly|quietly|softly|quiet|barely audible"},
    ),
    (
        "pitch",
        {
            "low": "low pitched|low pitch|deep tone|big",
            "high": "high pitched|high pitch|high tone|small",
        },
    ),
    (
        "rate",
        {
            "slow": "slowly|slow pace|long pauses|pauses in between",
            "fast": "quickly|rapidly|fast pace|quick succession|rapid succession",
        },
    ),
    ("length", {"short": "for a moment|short moment", "long": "for a while|several seconds"}),
]
BACKGROUND_WORDS = {
    "room": "electric|electricity|appliance",
    "street": "traffic|road",
    "static": "soft static|static in|hissing",
    "hall": "hall|echo|reverberant",
    "fan": "fan",
}
POSITION_WORDS = {
    0: "first of|at first|begins with|before anything else",
    1: "second of",
    2: "third of",
    3: "fourth of",
    -1: "last of all|last sound",
}


def false_claims(text, names, clip):
    """What the caption says and scenes.json does not bear out."""
    events, has = clip["events"], lambda words: re.search(rf"\b(?:{words})\b", text.lower())
    kinds = [event["kind"] for event in events]
    named = named_kinds(text)
    claims = [f"{kind} is not in the scene" for kind in named if kind not in kinds] + [
        "names nothing"
    ] * (not named)
    here = [event for event in events if event["kind"] in named]
    order = [kinds.index(kind) for kind in named if kind in kinds]
    if order != sorted(order):
        claims.append("wrong order")
    if names == "all" and len(named) != len(events):
        claims.append("not all events are named")
    for attribute, table in ATTRIBUTE_WORDS:
        claims += [
            f"{attribute} {value}"
            for value, words in table.items()
            if has(words) and all(event[attribute] != value for event in here)
        ]
    claims += [
        background
        for background, words in BACKGROUND_WORDS.items()
        if has(words) and clip["background"] != background
    ]
    total = has(r"(two|three|four) (?:different )?sounds")
    if total and ["two", "three", "four"].index(
        re.search("(two|three|four) (?:different )?sounds", text.lower())[1]
    ) + 2 != len(events):
        claims.append("number of sounds")
    claims += [
        f"position {at}"
        for at, words in POSITION_WORDS.items()
        if has(words) and order != [at % len(events)]
    ]
    return claims


def test_captions_are_true(clips):
    for clip in clips:
        for caption in clip["captions"]:
            assert not false_claims(caption["text"], caption["names"], clip), caption
            assert sorted(named_kinds(caption["text"])) == sorted(
                clip["events"][index]["kind"] for index in caption["events"]
            )


def test_captions_are_false_of_another_clip(clips):
    """Negative control: the check above finds captions that do not belong to the clip."""
    pairs = [
        (caption, clips[number - 1])
        for number, clip in enumerate(clips)
        for caption in clip["captions"]
    ]
    assert (
        np.mean(
            [bool(false_claims(caption["text"], caption["names"], clip)) for caption, clip in pairs]
        )
        > 0.95
    )
    dog = {
        "kind": "dog",
        "count": 3,
        "rate": "fast",
        "pitch": "medium",
        "loudness": "medium",
        "length": None,
    }
    clip = {"events": [dog], "background": "street"}
    assert not false_claims("A dog barks three times in quick succession.", "all", clip)
    for text in (
        "A cat meows.",
        "A dog barks twice.",
        "A dog barks slowly.",
        "A big dog barks.",
        "A dog barks loudly.",
        "A dog barks near a running fan.",
    ):
        assert false_claims(text, "all", clip), text


def test_captions_have_8_to_20_words_and_full_sentences(corpus, clips):
    for split in SIZES:
        for row, clip in zip(
            read_table(corpus / f"clotho_captions_{split}.csv"),
            [clip for clip in clips if clip["split"] == split],
            strict=True,
        ):
            texts = [row[f"caption_{i}"] for i in range(1, 6)]
            assert (
                texts == [caption["text"] for caption in clip["captions"]] and len(set(texts)) == 5
            )
            for text in texts:
                assert (
                    8 <= len(text.split()) <= 20
                    and re.fullmatch(r"[A-Z][a-z ,]*[a-z]\.", text)
                    and "  " not in text
                )
            names = [caption["names"] for caption in clip["captions"]]
            assert names.count("all") >= 2 and (len(clip["events"]) == 1 or names.count("one") >= 2)


def test_a_fitting_caption_exists_for_any_four_events():
    """The longest phrases of every kind leave room for four of them in 20 words."""
    rng = np.random.default_rng(0)
    for start in range(len(EVENTS)):
        kinds = [list(EVENTS)[(start + step) % len(EVENTS)] for step in range(4)]
        events = [
            scenes.Event(
                kind, count=(EVENTS[kind].count or (None,))[-1], onset=5.0 * number, duration=3.0
            )
            for number, kind in enumerate(kinds)
        ]
        assert len(captions.write_captions(rng, scenes.Scene(events, "hall"))) == 5


# ---------------------------------------------------------------- sound


def loudest(x):
    """Highest RMS of a 50 ms frame between 60 and 7800 Hz, what a mel front end hears."""
    x = filtered(x, band(60, 7800, 6))
    frames = np.pad(x, (0, -len(x) % 2205)).reshape(-1, 2205)
    return np.sqrt(np.mean(frames**2, axis=1).max())


@pytest.mark.parametrize("kind", EVENTS)
def test_the_faintest_event_is_heard_above_the_background(kind):
    rng = np.random.default_rng(0)
    count = EVENTS[kind].count
    event = scenes.Event(
        kind, loudness="faint", count=count and count[0], length=None if count else "short"
    )
    sound = scenes.render_event(rng, event)
    assert (
        np.isfinite(sound).all() and np.abs(sound).max() < 1 and 0.15 < len(sound) / SAMPLE_RATE < 8
    )
    assert loudest(sound) > 3 * 1.3 * scenes.BACKGROUND_LEVEL  # 10 dB


def test_every_event_stands_out_in_its_scene():
    rng = np.random.default_rng(1)
    for _ in range(8):
        scene = scenes.plan_scene(rng)
        mix, tracks, background = scenes.render_scene(rng, scene)
        np.testing.assert_allclose(mix, background + sum(tracks), atol=1e-12)
        for event, track in zip(scene.events, tracks, strict=True):
            start, stop = (
                int(seconds * SAMPLE_RATE)
                for seconds in (event.onset, event.onset + event.duration)
            )
            assert loudest(track[start:stop]) > 2 * loudest(background[start:stop])
            # negative control: nothing of it before its onset
            assert not track[: max(0, start - 1)].any()


@pytest.mark.parametrize(
    ("attribute", "low", "high"),
    [("pitch", "low", "high"), ("rate", "slow", "fast"), ("loudness", "faint", "loud")],
)
def test_attributes_are_in_the_sound(attribute, low, high):
    sounds = [
        scenes.render_event(
            np.random.default_rng(0), scenes.Event("dog", count=3, **{attribute: value})
        )
        for value in (low, high)
    ]
    spectra = [np.abs(np.fft.rfft(sound, 1 << 18)) for sound in sounds]
    centroids = [np.sum(np.arange(len(s)) * s) / np.sum(s) for s in spectra]
    lengths, levels = (
        [len(sound) for sound in sounds],
        [np.sqrt(np.mean(sound**2)) for sound in sounds],
    )
    assert (centroids[1] > 1.3 * centroids[0]) == (attribute == "pitch")
    assert (lengths[0] > 1.3 * lengths[1]) == (attribute == "rate")
    assert (levels[1] > 3 * levels[0]) == (attribute == "loudness")


# ---------------------------------------------------------------- times


def test_moments_are_the_events_that_a_caption_names(corpus, clips):
    """Against milliseconds marked one by one."""
    for split in SIZES:
        of_split = [clip for clip in clips if clip["split"] == split]
        expected, found = {}, {}
        for number, clip in enumerate(of_split, start=1):
            for index, caption in enumerate(clip["captions"], start=1):
                events = [clip["events"][event] for event in caption["events"]]
                qid = f"{split}_{number:03d}_{index}_{len(events)}of{len(clip['events'])}"
                expected[clip["file_name"], caption["text"], qid] = {
                    step
                    for event in events
                    for step in range(
                        round(1000 * event["onset"]),
                        round(1000 * (event["onset"] + event["duration"])),
                    )
                }
        for row in read_table(corpus / f"clotho_moments_{split}.csv"):
            window = range(round(1000 * float(row["start"])), round(1000 * float(row["end"])))
            marked = found.setdefault((row["file_name"], row["query"], row["qid"]), set())
            assert window and not marked & set(window)  # windows of a query do not overlap
            marked |= set(window)
        assert found == expected


def test_times_reach_the_cache(corpus, clips, tmp_path, capsys):
    code = run_build(build_clotho, {"--root": corpus}, "--output", tmp_path / "cache")
    assert code == 0 and "note: development: " not in capsys.readouterr().out  # nothing to repair
    for split in SIZES:
        table = open_cache(tmp_path / "cache").split(split)
        captions_of = dict(zip(table.file_names, table.captions, strict=True))
        for name, queries in zip(table.file_names, table.moments, strict=True):
            assert [query.query for query in queries] == captions_of[name]
            (clip,) = (c for c in clips if c["split"] == split and c["file_name"].strip() == name)
            for query, caption in zip(queries, clip["captions"], strict=True):
                events = [clip["events"][event] for event in caption["events"]]
                assert query.windows[0][0] == min(event["onset"] for event in events)


def test_a_corpus_of_an_earlier_version_gets_its_times(corpus, tmp_path, capsys):
    shutil.copytree(corpus, tmp_path / "old")
    for split in SIZES:
        (tmp_path / "old" / f"clotho_moments_{split}.csv").unlink()
    build = ["--num-proc", 1, "--splits", "evaluation"]
    assert run_build(build_clotho, {"--root": tmp_path / "old"}, *build) == 0
    assert "moments" not in load(tmp_path / "old" / "cache").column_names
    assert make(tmp_path / "old", *SIZE_ARGUMENTS) == 0
    assert "reused" in capsys.readouterr().out
    shutil.move(tmp_path / "old" / "cache", tmp_path / "cache")
    assert digests(tmp_path / "old") == digests(corpus)
    # the cache of before is named as another one: the Makefile's --overwrite
    shutil.move(tmp_path / "cache", tmp_path / "old" / "cache")
    assert run_build(build_clotho, {"--root": tmp_path / "old"}, *build) == 2
    assert "--overwrite" in error_line(capsys)
    assert run_build(build_clotho, {"--root": tmp_path / "old"}, *build, "--overwrite") == 0
    assert open_cache(tmp_path / "old" / "cache").split("evaluation").has_moments


def test_times_of_an_unknown_file_are_refused(corpus, tmp_path, capsys):
    shutil.copytree(corpus, tmp_path / "other")
    table = tmp_path / "other" / "clotho_moments_evaluation.csv"
    table.write_text("file_name,query,start,end\ngone.wav,a dog,1,2\n", encoding="utf-8")
    assert run_build(build_clotho, {"--root": tmp_path / "other"}) == 2
    line = error_line(capsys)
    assert "line 2" in line and "'gone.wav'" in line


# ---------------------------------------------------------------- command line


def test_a_second_run_reuses_what_is_there(corpus, capsys):
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    assert make(corpus, *SIZE_ARGUMENTS) == 0
    assert "reused" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}


def error_line(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def test_another_corpus_is_replaced_only_on_request(tmp_path, capsys):
    output = tmp_path / "corpus"
    assert make(output, "--num-proc", 1, "--sizes", 1, 1, 1) == 0
    capsys.readouterr()
    assert make(output, "--seed", 5, "--num-proc", 1, "--sizes", 1, 1, 1) == 2
    assert "--overwrite" in error_line(capsys)
    next((output / "validation").iterdir()).unlink()
    assert make(output, "--num-proc", 1, "--sizes", 1, 1, 1) == 2
    assert "missing" in error_line(capsys)
    assert make(output, "--seed", 5, "--num-proc", 1, "--sizes", 1, 1, 1, "--overwrite") == 0
    assert json.loads((output / "scenes.json").read_text())["seed"] == 5
    assert os.listdir(tmp_path) == ["corpus"]


@pytest.mark.parametrize(
    "arguments", [["--seed", "-1"], ["--sizes", "0", "1", "1"], ["--num-proc", "0"]]
)
def test_wrong_numbers_are_one_line(tmp_path, capsys, arguments):
    assert make(tmp_path / "corpus", *arguments) == 2
    assert arguments[0] in error_line(capsys) and not os.listdir(tmp_path)


def test_foreign_folders_and_files_are_left_alone(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    for output in (tmp_path / "mine", tmp_path / "file", tmp_path / "file/below"):
        assert make(output, "--num-proc", 1, "--sizes", 1, 1, 1, "--overwrite") == 2
        assert output.name in error_line(capsys)
    assert (tmp_path / "mine/letter.txt").read_text() == (tmp_path / "file").read_text() == "keep"


def test_an_interrupted_run_leaves_no_corpus(tmp_path):
    output = tmp_path / "corpus"
    command = [
        sys.executable,
        str(ROOT / "data_prep/make_sample_corpus.py"),
        "--output",
        str(output),
        "--num-proc",
        "2",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    partial = tmp_path / ".corpus.partial"
    wait_for(lambda: list(partial.glob("development/*.wav")), process)
    assert not output.exists()
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    assert not os.listdir(tmp_path)


def test_the_current_folder_cannot_be_the_output(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert make(".") == 2
    assert "give the folder by its own name" in error_line(capsys)
