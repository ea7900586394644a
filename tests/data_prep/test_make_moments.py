"""data_prep/make_moments.py: recipe, levels, windows, leaks of splits, same bytes, bad input."""

import json
import signal
import subprocess
import sys
import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile

from data_prep import build_folder, make_moments
from data_prep.moment_scenes.backgrounds import deal, draw_cut, make_noise, read_cut
from data_prep.moment_scenes.foregrounds import Foreground, active_seconds, open_split
from data_prep.moment_scenes.plan import Placement, Recipe, draw_scene, queries_of
from data_prep.moment_scenes.render import LOWEST_RMS, Scene, rms
from data_prep.seeds import generator
from retrieval.data import open_cache
from retrieval.data.schema import SPLITS
from tests.conftest import ROOT, wait_for
from tests.corpora import (
    assert_refused,
    error_line,
    read_info,
    run_build,
    running_processes,
    write_csv,
)

RATE = 8_000
NUM_CLIPS = {"development": 12, "validation": 5, "evaluation": 5}
SIZES = ("--num-scenes", 24, 4, 4)
SCENES = ("--seconds", 30, "--mean-gap", 5)


def write_noise(path: Path, seed: int, seconds: float, quiet: float = 0.0) -> None:
    """Noise of its own, with a quiet second at both ends if `quiet` is its level."""
    samples = 0.3 * np.random.default_rng(seed).uniform(-1, 1, round(seconds * RATE))
    if quiet:
        samples[:RATE] *= quiet
        samples[-RATE:] *= quiet
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, RATE)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A folder with `cache`, clips of 4 to 10 s with two captions, and `walks`, backgrounds."""
    root = tmp_path_factory.mktemp("corpus")
    rows = []
    for split, number_of_clips in NUM_CLIPS.items():
        for number in range(number_of_clips):
            name = f"{split[:3]}{number}.wav"
            seed = SPLITS.index(split) * 100 + number
            write_noise(root / "clips" / name, seed, 4.4 + number % 7, quiet=0.01)
            rows.append([name, f"Caption {name} one.", f"Caption {name} two.", split])
    table = write_csv(root / "captions.csv", ["file_name", "caption_1", "caption_2", "split"], rows)
    options = {"--audio": root / "clips", "--csv": table, "--output": root / "cache"}
    assert run_build(build_folder, options, "--sample-rate", RATE) == 0
    for number, seconds in enumerate((7, 12, 45, 100)):
        write_noise(root / "walks" / "city" / f"walk {number}.wav", 1_000 + number, seconds)
    return root


def make(corpus: Path, output: Path, *arguments: object) -> int:
    """The exit code. Backgrounds are the walks unless `arguments` say otherwise."""
    words = [*map(str, arguments)]
    defaults = {"--cache": corpus / "cache", "--output": output, "--num-proc": 1, "--seed": 7}
    if not {"--background", "--background-noise"} & set(words):
        defaults["--background"] = corpus / "walks"
    for option, value in defaults.items():
        if option not in words:
            words = [option, str(value), *words]
    try:
        return make_moments.main(words)
    except SystemExit as end:  # argparse's errors
        return end.code


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("made") / "moments"
    assert make(corpus, output, *SIZES, *SCENES) == 0
    return output


def bytes_of(cache: Path) -> dict[str, bytes]:
    """All files but cache.json, which names the command and the time."""
    return {
        path.relative_to(cache).as_posix(): path.read_bytes()
        for path in sorted(cache.rglob("*"))
        if path.is_file() and path.name != "cache.json"
    }


# ---- the recipe


def long_scene(recipe: Recipe, seed: int = 0) -> list[Placement]:
    """A scene of days: the end cuts off a vanishing share of its clips."""
    foregrounds = [Foreground(number, tuple(range(2, 4 + number % 20))) for number in range(30_000)]
    return draw_scene(generator(seed), foregrounds, [5] * len(foregrounds), recipe)


def test_gaps_lengths_levels_and_captions_follow_the_recipe():
    placements = long_scene(Recipe(seconds=120_000.0))
    assert len(placements) > 2_500
    ends = [0.0, *(placed.end for placed in placements)]
    gaps = np.array([placed.start - end for placed, end in zip(placements, ends, strict=False)])
    assert gaps.min() >= 0  # no overlap
    # exponential: mean and deviation of 30 s, half of them below 30 ln 2
    deviation = 30 / np.sqrt(len(gaps))
    assert abs(gaps.mean() - 30) < 4 * deviation
    assert abs(gaps.std() - 30) < 8 * deviation
    assert abs(np.mean(gaps < 30 * np.log(2)) - 0.5) < 0.04
    assert len({placed.clip for placed in placements}) == len(placements)  # none twice
    whole = [placed for placed in placements if placed.length == 2 + placed.clip % 20]
    cropped = [placed for placed in placements if placed.length != 2 + placed.clip % 20]
    assert all(placed.offset == 2 for placed in whole)
    # a crop that would be longer than the active part is not made
    could_be = [placed for placed in placements if placed.clip % 20 >= 3]
    share = np.mean([placed.length != 2 + placed.clip % 20 for placed in could_be])
    assert abs(share - 0.55) < 0.04
    lengths = np.array([placed.length for placed in cropped if placed.clip % 20 >= 3])
    assert 1 <= lengths.min() < 1.1 and 4.9 < lengths.max() <= 5
    assert abs(lengths.mean() - 3) < 0.15
    for placed in cropped:
        assert placed.offset >= 2 and placed.offset + placed.length <= 4 + placed.clip % 20
    levels = np.array([placed.snr_db for placed in placements])
    assert 5 <= levels.min() < 5.2 and 24.8 < levels.max() <= 25
    assert abs(levels.mean() - 15) < 0.5
    captions = Counter(placed.caption for placed in placements)
    assert set(captions) == set(range(5)) and min(captions.values()) > len(placements) / 6
    # negative control: other gaps are seen
    other = long_scene(Recipe(seconds=20_000.0, mean_gap=20.0))
    gaps = [after.start - before.end for before, after in pairwise(other)]
    assert abs(np.mean(gaps) - 30) > 4 * 30 / np.sqrt(len(gaps))


def test_a_crop_holds_an_active_second():
    foregrounds = [Foreground(number, (3, 9, 17)) for number in range(3_000)]
    recipe = Recipe(seconds=60_000.0, short_share=1.0)
    placements = draw_scene(generator(1), foregrounds, [1] * len(foregrounds), recipe)
    held = Counter()
    for placed in placements:
        whole = [
            second
            for second in (3, 9, 17)
            if placed.offset <= second and second + 1 <= placed.offset + placed.length
        ]
        assert whole and placed.offset >= 3 and placed.offset + placed.length <= 18
        held.update(whole)
    assert min(held[second] for second in (3, 9, 17)) > len(placements) / 6


def test_the_first_clip_that_does_not_fit_ends_the_scene():
    long, short = Foreground(0, tuple(range(50))), Foreground(1, (0,))
    recipe = Recipe(seconds=20.0, mean_gap=0.5, short_share=0.0)
    scenes = [draw_scene(generator(seed), [long, short], [1, 1], recipe) for seed in range(200)]
    # the long one never fits: where it is drawn first, the short one is not tried any more
    assert {tuple(placed.clip for placed in scene) for scene in scenes} == {(), (1,)}


@pytest.mark.parametrize("seconds", [1.0, 2.5, 9.0])
def test_active_seconds_against_a_loop(seconds):
    random = np.random.default_rng(round(seconds))
    level = np.repeat(10 ** random.uniform(-1.5, 0, 10), RATE)[: round(seconds * RATE)]
    samples = (level * random.uniform(-1, 1, len(level))).astype(np.float32)
    powers = []
    for second in range(int(seconds)):
        powers.append(sum(float(x) ** 2 for x in samples[second * RATE : (second + 1) * RATE]))
    mean = sum(powers) / len(powers)
    decibels = [10 * np.log10(power / mean) for power in powers]
    expected = tuple(second for second, level in enumerate(decibels) if level > -5)
    assert active_seconds(samples, RATE) == expected


def test_clips_without_an_active_second():
    assert active_seconds(np.ones(RATE - 1, np.float32), RATE) == "shorter than a second"
    assert active_seconds(np.zeros(3 * RATE, np.float32), RATE) == "silent"


def test_clips_with_the_same_caption_are_one_query():
    placements = [
        Placement(clip, caption, 0.0, start, 2.0, 10.0)
        for clip, caption, start in ((0, 0, 1.0), (1, 1, 5.0), (2, 0, 9.0))
    ]
    captions = [["A dog.", "A cat."], ["A cow.", "A hen."], ["A dog."]]
    queries = queries_of("x", placements, captions)
    assert [(query.qid, query.query, query.windows) for query in queries] == [
        ("x_1", "A dog.", ((1.0, 3.0), (9.0, 11.0))),
        ("x_2", "A hen.", ((5.0, 7.0),)),
    ]


# ---- backgrounds


def test_every_recording_goes_to_one_split_in_proportion():
    names = [f"{number}.wav" for number in range(50)]
    dealt = deal(names, {"development": 80, "validation": 10, "evaluation": 10}, seed=0)
    assert sorted(name for part in dealt.values() for name in part) == sorted(names)
    sizes = [len(part) for part in dealt.values()]
    assert sizes[0] > 30 and min(sizes) >= 4
    assert deal(names[::-1], {"development": 80, "validation": 10, "evaluation": 10}, 0) == dealt
    assert deal(names, {"development": 80, "validation": 10, "evaluation": 10}, 1) != dealt
    fewest = deal(names[:3], {"development": 10_000, "validation": 1, "evaluation": 1}, 0)
    assert [len(part) for part in fewest.values()] == [1, 1, 1]


def test_a_cut_is_a_slice_or_a_loop(made):
    backgrounds = made.with_name("moments.backgrounds")
    num_samples, seen = 30 * RATE, set()
    for split in SPLITS:
        clips = open_split(backgrounds, split)
        cuts = [
            draw_cut(generator(number), clips.num_samples, RATE, num_samples)
            for number in range(20)
        ]
        for cut in cuts:
            samples = clips.read(cut.recording)
            places = (cut.start + np.arange(num_samples)) % len(samples)
            assert np.array_equal(read_cut(backgrounds, split, cut, num_samples), samples[places])
            is_long = len(samples) >= num_samples
            assert cut.start + num_samples <= len(samples) or not is_long
            seen.add(is_long)
    assert seen == {True, False}


def test_recordings_are_drawn_by_their_length():
    lengths = np.array([10 * RATE, 4 * RATE, 90 * RATE])
    cuts = [draw_cut(generator(number), lengths, RATE, 6 * RATE) for number in range(1_000)]
    shares = Counter(cut.recording for cut in cuts)
    assert 50 < shares[0] < 150 and shares[1] == 0  # 4 s are too few


@pytest.mark.parametrize(("kind", "rise"), [("pink", 0.0), ("white", 3.01)])
def test_noise_by_octave(kind, rise):
    """Power in an octave against that in the one below it, in dB."""
    noise = make_noise(generator(3), kind, 60 * RATE, RATE)
    assert noise.dtype == np.float32 and abs(rms(noise) - 0.05) < 1e-6
    power = np.abs(np.fft.rfft(noise)) ** 2
    octaves = [power[round(60 * f) : round(120 * f)].sum() for f in (100, 200, 400, 800, 1_600)]
    assert np.allclose(np.diff(10 * np.log10(octaves)), rise, atol=0.4)


def test_a_silent_background_counts_as_quiet_noise(corpus, tmp_path):
    for number in range(3):
        path = tmp_path / "silence" / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, np.zeros(40 * RATE), RATE)
    output = tmp_path / "moments"
    assert make(corpus, output, "--background", path.parent, *SCENES, "--num-scenes", 1, 1, 1) == 0
    (scene, *_) = scenes_of(corpus, output, "development")
    background, foregrounds = scene.parts()
    assert not background.any()
    for (_, samples), placed in zip(foregrounds, scene.placements, strict=True):
        level = 20 * np.log10(rms(samples) / LOWEST_RMS)
        assert abs(level - placed.snr_db) < 0.01
    assert np.isfinite(open_cache(output).split("development").read(0)).all()


def scenes_of(corpus: Path, output: Path, split: str) -> list[Scene]:
    """The scenes of a finished cache, planned again."""
    words = ["--cache", str(corpus / "cache"), "--output", str(output), "--seed", "7"]
    words += [*map(str, SCENES), "--num-proc", "1"]
    arguments = make_moments.parse_arguments([*words, "--background", "unused"])
    recipe = make_moments.check_options(arguments)
    background = output.with_name(f"{output.name}.backgrounds")
    number = read_info(output)["splits"][split]["num_clips"]
    cache = open_cache(arguments.cache)
    plan = make_moments.plan_split(cache, split, number, recipe, background, arguments)
    return [clip.made for clip in plan.clips]


# ---- the cache, measured from outside


def windows_of(queries) -> list[tuple[float, float]]:
    return sorted(window for query in queries for window in query.windows)


def test_windows_hold_the_clips_at_their_levels(corpus, made):
    """From the cache and the WAV files: each clip is found by correlation, its level by regression.

    Negative control: another clip of the split does not correlate.
    """
    clips = open_cache(made).split("development")
    columns = {name: clips.column(name) for name in ("sources", "snr_db", "background")}
    num_windows = 0
    for index in range(len(clips)):
        mix = clips.read(index).astype(np.float64)
        name, _, start = columns["background"][index].rpartition(" ")
        recording, _ = soundfile.read(corpus / "walks" / name)
        places = (round(float(start) * RATE) + np.arange(len(mix))) % len(recording)
        background = recording[places]
        windows = windows_of(clips.moments[index])
        sources = json.loads(columns["sources"][index])
        levels = json.loads(columns["snr_db"][index])
        assert len(windows) == len(sources) == len(levels) > 0
        for (first, last), source, level in zip(windows, sources, levels, strict=True):
            inside = slice(round(first * RATE), round(last * RATE))
            heard = mix[inside]
            clean, _ = soundfile.read(corpus / "clips" / source.partition("/")[2])
            correlations = correlate(clean, heard)
            offset = int(correlations.argmax())
            part = clean[offset : offset + len(heard)].copy()
            ramp = np.linspace(0, 1, round(0.01 * RATE))
            part[: len(ramp)] *= ramp
            part[-len(ramp) :] *= ramp[::-1]
            both = np.stack([part, background[inside]], axis=1)  # (S, 2)
            weights, *_ = np.linalg.lstsq(both, heard, rcond=None)
            scaled = both * weights
            assert rms(heard - scaled.sum(1)) < 2e-5  # 16 bits
            assert abs(20 * np.log10(rms(scaled[:, 0]) / rms(scaled[:, 1])) - level) < 0.1
            other, _ = soundfile.read(corpus / "clips" / other_than(source))
            assert np.abs(correlate(other, heard)).max() < 0.3 * correlations.max()
            num_windows += 1
    assert num_windows > 40


def correlate(long: np.ndarray, short: np.ndarray) -> np.ndarray:
    """The dot product of `short` with each part of `long` of its length, by FFT."""
    size = len(long) + len(short)
    spectrum = np.fft.rfft(long, size) * np.conj(np.fft.rfft(short, size))
    return np.fft.irfft(spectrum, size)[: len(long) - len(short) + 1]


def other_than(source: str) -> str:
    return "dev5.wav" if source.endswith("dev6.wav") else "dev6.wav"


def test_scenes_are_whole_and_hold_no_clip_of_another_split(corpus, made):
    loaded, used = datasets.load_from_disk(str(made)), {}
    assert list(loaded) == list(SPLITS)
    source = open_cache(corpus / "cache")
    for split in SPLITS:
        clips = open_cache(made).split(split)
        assert clips.has_moments
        assert set(clips.num_samples.tolist()) == {30 * RATE}
        captions = dict(zip(*(getattr(source.split(split), x) for x in ("clip_ids", "captions"))))
        for index, queries in enumerate(clips.moments):
            row = loaded[split][index]
            assert row["captions"] == [query.query for query in queries]
            assert 0.9 < np.abs(clips.read(index)).max() < 1
            sources = json.loads(row["sources"])
            assert len(set(sources)) == len(sources) and set(sources) <= captions.keys()
            known = {text for clip_id in sources for text in captions[clip_id]}
            assert set(row["captions"]) <= known
            windows = windows_of(queries)
            assert all(before[1] <= after[0] for before, after in pairwise(windows))
            assert windows[0][0] >= 0 and windows[-1][1] <= 30
        used[split] = {name.rpartition(" ")[0] for name in clips.column("background")}
    assert all(used.values())
    assert sum(map(len, used.values())) == len(set().union(*used.values()))
    assert len({row for split in SPLITS for row in loaded[split]["clip_id"]}) == 32


def test_the_cached_samples_are_the_planned_scene(corpus, made):
    clips = open_cache(made).split("validation")
    for index, scene in enumerate(scenes_of(corpus, made, "validation")):
        background, foregrounds = scene.parts()
        mix = background.astype(np.float64)
        for start, samples in foregrounds:
            mix[start : start + len(samples)] += samples
        expected = 0.95 * mix / np.abs(mix).max()
        assert np.abs(clips.read(index) - expected).max() < 1 / 32768


def test_a_scene_needs_memory_for_itself_only(corpus):
    clip = Placement(0, 0, 1.0, 20.0, 2.0, 10.0)
    for kind in ("pink", "white"):
        scene = Scene(corpus / "cache", "development", 300 * RATE, (clip,), kind, None, (0,), ("",))
        scene.samples()  # opens the cache
        tracemalloc.start()
        scene.samples()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8 * 4 * scene.num_samples


# ---- the same bytes


def test_same_bytes_for_any_number_of_processes_and_after_a_kill(corpus, made, tmp_path):
    expected = bytes_of(made)
    assert sum(name.endswith(".arrow") for name in expected) >= 5
    output = tmp_path / "three"
    assert make(corpus, output, *SIZES, *SCENES, "--num-proc", 3) == 0
    assert bytes_of(output) == expected

    output = tmp_path / "killed"
    words = ["--cache", corpus / "cache", "--background", corpus / "walks", "--output", output]
    words += [*SIZES, *SCENES, "--seed", 7, "--num-proc", 2]
    script = ROOT / "data_prep" / "make_moments.py"
    process = subprocess.Popen(
        [sys.executable, str(script), *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    reports = tmp_path / "killed.partial" / "reports"
    wait_for(lambda: list(reports.glob("*.json")), process)
    workers = [pid for pid, (_, parent) in running_processes().items() if parent == process.pid]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    # they end with their parent
    wait_for(lambda: all(running_processes().get(pid, "Z")[0] == "Z" for pid in workers))
    ready = len(list(reports.glob("*.json")))
    assert make(corpus, output, *SIZES, *SCENES) == 0
    assert ready >= 1 and bytes_of(output) == expected


def test_another_seed_gives_other_scenes_and_replaces_on_request_only(corpus, tmp_path, capsys):
    output, noise = tmp_path / "moments", ("--background-noise", "white")
    few = (*noise, "--num-scenes", 3, 0, 0)
    assert make(corpus, output, *few, *SCENES) == 0
    first = bytes_of(output)
    assert list(open_cache(output).split_names) == ["development"]
    assert make(corpus, output, *few, *SCENES) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert make(corpus, output, *few, *SCENES, "--seed", 8) == 2
    assert "--overwrite" in error_line(capsys) and bytes_of(output) == first
    assert make(corpus, output, *few, *SCENES, "--seed", 8, "--overwrite") == 0
    assert bytes_of(output) != first
    # a scene does not depend on the number of scenes
    assert make(corpus, tmp_path / "more", *noise, *SCENES, "--num-scenes", 5, 1, 0) == 0
    assert make(corpus, output, *few, *SCENES, "--overwrite") == 0
    more, fewer = (open_cache(path).split("development") for path in (tmp_path / "more", output))
    assert more.moments[:3] == fewer.moments
    assert all(np.array_equal(more.read(index), fewer.read(index)) for index in range(3))


def test_backgrounds_of_a_cache_keep_their_splits(corpus, made, tmp_path):
    backgrounds = made.with_name("moments.backgrounds")
    assert list(open_cache(backgrounds).split_names) == list(SPLITS)
    output = tmp_path / "again"
    assert make(corpus, output, *SIZES, *SCENES, "--background", backgrounds) == 0
    assert bytes_of(output) == bytes_of(made)
    assert not (tmp_path / "again.backgrounds").exists()


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (("--snr", 25, 5), "--snr"),
        (("--snr", "nan", 5), "--snr"),
        (("--seconds", 0.5), "--seconds"),
        (("--seconds", "nan"), "--seconds"),
        (("--seconds", 100_000), "--seconds"),
        (("--mean-gap", 0), "--mean-gap"),
        (("--mean-gap", "inf"), "--mean-gap"),
        (("--mean-gap", 1e308), "--mean-gap"),
        (("--short-share", 1.5), "--short-share"),
        (("--short-seconds", 5, 1), "--short-seconds"),
        (("--short-seconds", 0.1, 1), "--short-seconds"),
        (("--short-seconds", 1, 1e308), "--short-seconds"),
        (("--num-scenes", 0, 0, 0), "--num-scenes"),
        (("--num-scenes", -1, 1, 1), "--num-scenes"),
        (("--seed", -1), "--seed"),
        (("--num-proc", 0), "--num-proc"),
        (("--seconds", 2, "--short-share", 0, "--background-noise", "pink"), "--seconds"),
        (("--mean-gap", 1e9, "--background-noise", "pink"), "--mean-gap"),
        (("--cache", "absent"), "absent"),
    ],
)
def test_numbers_out_of_range(corpus, tmp_path, capsys, arguments, culprit):
    code = make(corpus, tmp_path / "moments", *arguments)
    assert_refused(code, culprit, tmp_path / "moments", capsys)
    assert not list(tmp_path.iterdir())


def test_output_within_or_above_an_input(corpus, capsys):
    within = corpus / "cache" / "moments"
    assert_refused(make(corpus, within), str(within), within, capsys)
    assert make(corpus, corpus / "cache") == 2
    assert "--cache" in error_line(capsys)
    within = corpus / "walks" / "moments"
    assert_refused(make(corpus, within), "--background", within, capsys)
    assert make(corpus, corpus) == 2
    assert "--cache" in error_line(capsys) and (corpus / "cache" / "cache.json").is_file()


def test_backgrounds_that_are_missing_too_few_or_too_short(corpus, tmp_path, capsys):
    output, folder = tmp_path / "moments", tmp_path / "sounds"
    assert_refused(make(corpus, output, "--background", folder), "sounds", output, capsys)
    folder.mkdir()
    (folder / "notes.txt").write_text("none")
    assert_refused(make(corpus, output, "--background", folder), "no audio file", output, capsys)
    write_noise(folder / "0.wav", 0, 4.9)
    write_noise(folder / "1.wav", 1, 4.9)
    assert_refused(make(corpus, output, "--background", folder), "2 recordings", output, capsys)
    write_noise(folder / "2.wav", 2, 60)
    code = make(corpus, output, "--background", folder)
    assert code == 2 and "4.90 s" in error_line(capsys) and not output.exists()


def test_backgrounds_of_another_rate_or_without_a_split(corpus, tmp_path, capsys):
    output, folder = tmp_path / "moments", tmp_path / "backgrounds"
    options = {"--audio": corpus / "walks", "--output": folder, "--split": "evaluation"}
    assert run_build(build_folder, options, "--without-captions") == 0
    capsys.readouterr()
    code = make(corpus, output, "--background", folder)
    assert_refused(code, "--sample-rate 8000", output, capsys)
    assert (
        run_build(build_folder, options, "--without-captions", "--overwrite", "--sample-rate", RATE)
        == 0
    )
    capsys.readouterr()
    code = make(corpus, output, "--background", folder)
    assert_refused(code, "'development'", output, capsys)


def test_clips_that_no_scene_can_use(corpus, tmp_path, capsys):
    """Without captions, silent, or shorter than a second; splits that are not there."""
    clips = tmp_path / "clips"
    write_noise(clips / "short.wav", 0, 0.9)
    write_noise(clips / "silent.wav", 0, 3)
    soundfile.write(clips / "silent.wav", np.zeros(3 * RATE), RATE)
    (clips / "short.txt").write_text("A click.")
    (clips / "silent.txt").write_text("Nothing.")
    options = {"--audio": clips, "--output": tmp_path / "cache"}
    assert run_build(build_folder, options, "--sample-rate", RATE) == 0
    capsys.readouterr()
    output = tmp_path / "moments"
    noise = "--background-noise", "pink", "--cache", tmp_path / "cache"
    code = make(corpus, output, *noise)
    assert_refused(code, "1 shorter than a second, 1 silent", output, capsys)
    assert_refused(make(corpus, output, *noise, *SIZES), "'validation'", output, capsys)
    assert (
        run_build(build_folder, options, "--without-captions", "--overwrite", "--sample-rate", RATE)
        == 0
    )
    capsys.readouterr()
    assert_refused(make(corpus, output, *noise), "2 without captions", output, capsys)
    # one usable clip is enough
    write_noise(clips / "loud.wav", 0, 5)
    (clips / "loud.txt").write_text("A hiss.")
    assert run_build(build_folder, options, "--overwrite", "--sample-rate", RATE) == 0
    assert make(corpus, output, *noise, *SCENES) == 0
    assert "1 clips silent" in capsys.readouterr().out
    assert open_cache(output).split("development").captions == [["A hiss."]] * 3


def test_both_backgrounds_or_neither(corpus, tmp_path, capsys):
    both = "--background", corpus / "walks", "--background-noise", "pink"
    assert make(corpus, tmp_path / "moments", *both) == 2
    assert "--background" in error_line(capsys)
    words = ["--cache", str(corpus / "cache"), "--output", str(tmp_path / "moments")]
    with pytest.raises(SystemExit) as end:
        make_moments.main(words)
    assert end.value.code == 2 and "--background" in error_line(capsys)
