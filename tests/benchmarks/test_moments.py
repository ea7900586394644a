"""The benchmark of ways to find moments, in miniature: joined recordings, groups, a whole run."""

import json
import re

import numpy as np
import pytest
import soundfile

from benchmarks import moments
from benchmarks.moments import (
    Query,
    columns_of,
    columns_without_a_model,
    groups_of,
    recordings_of,
    references,
    shortest_stretch,
    table,
)
from data_prep.cache.arrow_cache import CacheSettings, build_cache
from data_prep.cache.shards import Clip
from data_prep.cache.split_plan import SplitPlan
from retrieval.data import MomentQuery, open_cache
from retrieval.evaluation.metrics.audio_moment_retrieval.scoring import NAMES, moment_metrics
from retrieval.moments.spans import Moment
from tests.conftest import mistake, run_here
from tests.models.test_dual_encoder import RATE, make_model, text_folder  # noqa: F401

NUM_CLIPS = 6


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Clips of 2 to 4.5 s with two queries each; the second split has none."""
    root, plans = tmp_path_factory.mktemp("cache"), []
    for split, has_moments in (("evaluation", True), ("validation", False)):
        plan = SplitPlan(split, clips=[])
        for number in range(NUM_CLIPS):
            seconds, path = 2 + number / 2, root / f"{split}{number}.wav"
            samples = np.random.default_rng(number).uniform(-0.1, 0.1, round(seconds * RATE))
            soundfile.write(path, samples, RATE)
            queries = (
                MomentQuery(f"{number}_1of3", f"Sound {number}.", ((0.5, 1.0),)),
                MomentQuery(f"{number}_2of3", f"Two of {number}.", ((0.0, 0.4), (1.2, 2.0))),
            )
            caption = (f"Sound {number}.",)
            moments_of_clip = queries if has_moments else ()
            clip = Clip(f"{split}/{number}", path.name, str(path), caption, {}, moments_of_clip)
            plan.clips.append(clip)
        plans.append(plan)
    settings = CacheSettings("test", "pcm_s16le", RATE)
    build_cache(root / "cache", settings, plans, num_proc=1, max_lost=0.0, overwrite=False)
    return root / "cache"


@pytest.fixture(scope="module")
def checkpoint(text_folder, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("model") / "best"
    head = {"hidden": 8, "kernel": 3, "step_seconds": 0.12}
    make_model(text_folder, moment_head=head).save_pretrained(folder)
    return folder


def test_shortest_stretch_against_loops():
    random = np.random.default_rng(0)
    for num_frames in (1, 2, 7, 12):
        weights = random.dirichlet(np.full(num_frames, 0.3))
        enough = [
            (stop - first, first, stop)
            for first in range(num_frames)
            for stop in range(first + 1, num_frames + 1)
            if weights[first:stop].sum() >= 0.5 * (1 - 1e-9)
        ]
        assert shortest_stretch(weights) == min(enough)[1:]


def test_groups_are_named_by_qids():
    assert groups_of("evaluation_001_1_1of1") == ("all",)
    assert groups_of("evaluation_001_1_1of2") == ("all", "one event of 2 or more")
    both = ("all", "one event of 2 or more", "one event of 3 or more")
    assert groups_of("evaluation_001_1_1of4") == both
    assert groups_of("evaluation_001_1_2of3") == ("all", "two events of 3 or more")
    assert groups_of("--0w1YA1Hm4_1") == ("all",)


def test_joined_recordings_shift_the_windows(cache):
    split = open_cache(cache).split("evaluation")
    seconds = [2, 2.5, 3, 3.5, 4, 4.5]
    queries = [Query("x", ((0.5, 1.0),), clip, ("all",)) for clip in range(NUM_CLIPS)]
    assert [each.clips for each in recordings_of(split, None)] == [[n] for n in range(NUM_CLIPS)]
    joined = recordings_of(split, 0.17)  # 10 s of 19.5
    assert [each.clips for each in joined] == [[0, 1, 2], [3, 4, 5]]
    windows, lengths = references(joined, queries)
    assert lengths.tolist() == [7.5] * 3 + [12.0] * 3
    starts = [0, 2, 4.5, 0, 3.5, 7.5]
    assert windows == [[(start + 0.5, start + 1.0)] for start in starts]
    windows, lengths = references(recordings_of(split, 1_000), queries)
    assert lengths.tolist() == [sum(seconds)] * NUM_CLIPS
    assert windows[-1] == [(15.5, 16.0)]


def test_references_and_means_over_runs():
    windows = [[(1.0, 3.0)], [(0.0, 4.0), (6.0, 8.0)]]
    columns = columns_without_a_model(windows, np.array([4.0, 8.0]))
    whole = [[(0.0, 4.0, 1.0)], [(0.0, 8.0, 1.0)]]
    expected = moment_metrics(whole, windows)
    rows = table({"whole": [columns["whole"]]}, np.array([True, True]))["whole"]
    assert all(rows[name] == [pytest.approx(expected[name]), None] for name in NAMES)
    # a span with uniform ends against the middle half, by a sum over a grid
    ends = (np.arange(400) + 0.5) / 100
    first, last = np.minimum.outer(ends, ends), np.maximum.outer(ends, ends)
    shared = np.maximum(np.minimum(last, 3) - np.maximum(first, 1), 0)
    exact = (shared / (np.maximum(last, 3) - np.minimum(first, 1)).clip(1e-9)).mean()
    many = columns_without_a_model(windows[:1] * 300, np.full(300, 4.0))["random"]
    assert abs(many[:, NAMES.index("mIoU")].mean() - exact) < 0.02
    right = columns_of([[Moment(1, 3, 0.5)], [Moment(0, 4, 0.5)]], windows)
    rows = table({"way": [columns["whole"], right]}, np.array([True, False]))["way"]
    assert rows["R1@0.7"] == [0.5, pytest.approx(0.5**0.5)]


def test_all_ways_on_clips_and_joined_recordings(cache, checkpoint, tmp_path):
    output = tmp_path / "results.json"
    words = ["--checkpoint", str(checkpoint), "--cache", str(cache), "--output", str(output)]
    done = run_here(moments.main, *words, "--minutes", "0.17")
    assert done.returncode == 0, done.stderr
    for title in ("clips, all: 12 queries of 6 clips", "recordings of 0.2 min, all"):
        assert title in done.stdout
    assert re.search(r"head - half: R1@0.5 \S+ \[\S+, \S+\]", done.stdout)
    results = json.loads(output.read_text())["results"]
    assert len(results) == 2 * 4
    for result in results:
        assert set(result["metrics"]) == {"half", "contribution", "head", "random", "whole"}
        assert set(result["differences_to_half"]) == {"contribution", "head", "random", "whole"}
        values = [mean for row in result["metrics"].values() for mean, _ in row.values()]
        assert all(0 <= value <= 1 for value in values) and max(values) > 0


def test_runs_are_averaged(cache, checkpoint, tmp_path):
    output = tmp_path / "results.json"
    words = ["--checkpoint", str(checkpoint), str(checkpoint), "--cache", str(cache)]
    done = run_here(moments.main, *words, "--output", str(output), "--minutes")
    assert done.returncode == 0, done.stderr
    (first, *_) = json.loads(output.read_text())["results"]
    assert all(deviation == 0 for _, deviation in first["metrics"]["half"].values())
    assert all(deviation is None for _, deviation in first["metrics"]["whole"].values())


def test_mistakes_are_one_line(cache, checkpoint, text_folder, tmp_path):  # noqa: F811
    words = ["--checkpoint", str(checkpoint), "--cache", str(cache)]
    assert "'validation'" in mistake(moments.main, *words, "--split", "validation")
    assert "--minutes 0" in mistake(moments.main, *words, "--minutes", "0")
    absent = ["--checkpoint", str(tmp_path / "absent"), "--cache", str(cache)]
    assert "--checkpoint" in mistake(moments.main, *absent)
    make_model(text_folder).save_pretrained(tmp_path / "plain")
    assert "no moment head" in mistake(moments.main, *words, "--head", str(tmp_path / "plain"))
    make_model(text_folder, "mean").save_pretrained(tmp_path / "mean")
    words[1] = str(tmp_path / "mean")
    assert "TAP" in mistake(moments.main, *words)
