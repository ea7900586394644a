"""Times in a cache: written with its clips, read back, repaired and counted, refused if damaged."""

import json
import math
import pickle
import random
import shutil
from collections import Counter

import datasets
import numpy as np
import pyarrow as pa
import pytest

from data_prep.cache.arrow_cache import CacheSettings, build_cache
from data_prep.cache.moments import clean
from data_prep.cache.shards import Clip
from data_prep.cache.split_plan import SplitPlan, print_report
from retrieval.base.errors import UserError
from retrieval.data import JoinedSplit, MomentQuery, open_cache
from retrieval.models.frame_cache import FrameSplit
from tests.corpora import load, read_info, write_sound

DOG = MomentQuery("q1", "a dog", ((0.5, 0.75), (0.0, 0.25)))
CAT = MomentQuery("q2", "a cat", ((0.1, 0.2),))


def build(root, moments: dict[str, list[tuple[MomentQuery, ...]]], name: str = "cache", **options):
    """A cache of sounds of a second, with these moments for the clips of each split."""
    plans = []
    for split, of_clips in moments.items():
        plan = SplitPlan(split, clips=[])
        for number, queries in enumerate(of_clips):
            path = root / split / f"{number}.wav"
            if not path.exists():
                write_sound(path, seconds=1.0)
            caption = (f"Caption {number}.",)
            plan.clips.append(Clip(f"{split}/{number}", path.name, str(path), caption, {}, queries))
        plans.append(plan)
    settings = CacheSettings("test", "pcm_s16le", 16_000, **options)
    info = build_cache(root / name, settings, plans, num_proc=1, max_lost=0.0, overwrite=False)
    print_report(info, plans)
    return root / name


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("moments")
    return build(root, {"development": [(DOG, CAT), ()], "validation": [()]})


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return build(tmp_path_factory.mktemp("plain"), {"development": [(), ()], "validation": [()]})


def damaged(cache, tmp_path, change):
    """A copy of the cache whose queries of the first development clip are changed."""
    shutil.copytree(cache, tmp_path / "damaged")
    table = load(cache, "development")
    rows = table["moments"][:]
    change(rows[0])
    table = table.remove_columns("moments").add_column(
        "moments", rows, feature=table.features["moments"]
    )
    shutil.rmtree(tmp_path / "damaged" / "development")
    table.save_to_disk(str(tmp_path / "damaged" / "development"))
    return tmp_path / "damaged"


# ---- writing and reading


def test_queries_come_back_sorted(cache):
    split = open_cache(cache).split("development")
    dog = MomentQuery("q1", "a dog", ((0.0, 0.25), (0.5, 0.75)))
    assert split.moments == [[dog, CAT], []] and split.has_moments
    again = pickle.loads(pickle.dumps(split))
    assert again.moments == split.moments
    # another split of the same cache has the column, and no queries
    other = open_cache(cache).split("validation")
    assert other.moments == [[]] and not other.has_moments


def test_the_library_datasets_reads_the_column(cache):
    table = load(cache, "development")
    assert table["moments"][0][1] == {
        "qid": "q2",
        "query": "a cat",
        "windows": [{"start": 0.1, "end": 0.2}],
    }
    features = table.features["moments"].feature
    assert features["windows"] == datasets.List(
        {"start": datasets.Value("float64"), "end": datasets.Value("float64")}
    )
    assert datasets.load_from_disk(str(cache))["validation"]["moments"][:] == [[]]


def test_a_cache_without_times_is_what_it_was(plain):
    assert "moments" not in load(plain, "development").column_names
    assert "moments" not in json.dumps(read_info(plain)["splits"])
    split = open_cache(plain).split("development")
    assert split.moments == [[], []] and not split.has_moments


def test_times_are_part_of_the_fingerprint(cache, plain, tmp_path):
    timed, bare = (open_cache(path).split("development") for path in (cache, plain))
    assert timed.fingerprint(with_moments=True) != bare.fingerprint(with_moments=True)
    assert timed.fingerprint() == bare.fingerprint()
    moved = damaged(cache, tmp_path, lambda row: row[1]["windows"][0].update(end=0.3))
    moved = open_cache(moved).split("development")
    assert moved.fingerprint(with_moments=True) != timed.fingerprint(with_moments=True)
    # no queries: the column makes no difference
    both = {
        open_cache(path).split("validation").fingerprint(with_moments=True)
        for path in (cache, plain)
    }
    assert len(both) == 1


def test_frames_and_joined_splits_carry_them(cache, plain, tmp_path):
    timed, bare = (open_cache(path).split("development") for path in (cache, plain))
    joined = JoinedSplit([bare, timed])
    assert joined.moments == [[], [], *timed.moments] and joined.has_moments
    assert not JoinedSplit([bare]).has_moments
    np.save(tmp_path / "frames.npy", np.zeros((4, 3), np.float16))
    frames = FrameSplit(timed, tmp_path / "frames.npy", np.array([2, 2]))
    assert frames.moments == timed.moments and frames.has_moments
    assert JoinedSplit([frames]).moments == timed.moments


def test_a_text_column_of_that_name_is_metadata(plain, tmp_path):
    """build_hub.py --keep-columns could write one."""
    shutil.copytree(plain, tmp_path / "old")
    table = load(plain, "development").add_column("moments", ["first", "second"])
    shutil.rmtree(tmp_path / "old" / "development")
    table.save_to_disk(str(tmp_path / "old" / "development"))
    split = open_cache(tmp_path / "old").split("development")
    assert not split.has_moments and split.column("moments") == ["first", "second"]


# ---- building


def test_a_build_with_other_times_is_another_cache(tmp_path):
    build(tmp_path, {"development": [(DOG,)]})
    build(tmp_path, {"development": [(DOG,)]})  # the same: nothing to do
    for other in [(), (CAT,), (MomentQuery("q1", "a dog", ((0.5, 0.76), (0.0, 0.25))),)]:
        with pytest.raises(UserError, match="have changed since it was built"):
            build(tmp_path, {"development": [other]})


def test_repairs_are_counted_in_the_report(tmp_path, capsys):
    queries = (
        MomentQuery("a", "cut", ((0.5, 2.0), (0.1, 1.0))),  # joined, then up to the end
        MomentQuery("b", "late and empty", ((1.0, 3.0), (0.5, 0.5))),
        MomentQuery("c", "inverted", ((0.5, 0.4), (0.2, 0.3), (0.3, 0.4))),
        MomentQuery("d", "none", ()),
    )
    cache = build(tmp_path, {"development": [queries], "evaluation": [(CAT,)]})
    assert [
        (query.qid, query.windows) for query in open_cache(cache).split("development").moments[0]
    ] == [("a", ((0.1, 1.0),)), ("c", ((0.2, 0.3), (0.3, 0.4)))]
    counts = read_info(cache)["splits"]
    first = counts["development"]["moments"].pop("first")
    assert first["num_cut_windows"] == "query 'a' of '0.wav'" and len(first) == 5
    assert counts["development"]["moments"] == {
        "num_queries": 2,
        "num_windows": 3,
        "num_cut_windows": 1,
        "num_joined_windows": 1,
        "num_late_windows": 1,
        "num_empty_windows": 2,
        "num_lost_queries": 2,
    }
    assert counts["evaluation"]["moments"] == {
        "num_queries": 1,
        "num_windows": 1,
        "first": {},
    }
    lines = capsys.readouterr().out.splitlines()
    assert "moments of development: 2 queries, 3 windows" in lines
    assert sum(line.startswith("note: development: ") for line in lines) == 5
    assert not any(line.startswith("note: evaluation: ") for line in lines)


def test_times_end_where_a_clip_is_cut(tmp_path):
    cache = build(tmp_path, {"development": [(DOG, CAT)]}, max_seconds=0.6)
    split = open_cache(cache).split("development")
    assert [query.windows for query in split.moments[0]] == [((0.0, 0.25), (0.5, 0.6)), CAT.windows]


def test_cleaning_against_a_slow_reference():
    """Windows on a grid of steps, marked one by one."""
    rng = random.Random(0)
    for _ in range(300):
        length = rng.randint(1, 12)
        windows = [(rng.randint(0, 14), rng.randint(0, 14)) for _ in range(rng.randint(0, 5))]
        found, repairs = clean([MomentQuery("q", "x", tuple(windows))], length)
        marked = {i for start, end in windows for i in range(start, min(end, length))}
        kept = found[0].windows if found else ()
        assert {i for start, end in kept for i in range(start, end)} == marked
        assert all(0 <= start < end <= length for start, end in kept)
        assert all(first[1] <= second[0] for first, second in zip(kept, kept[1:], strict=False))
        counts = Counter(name for name, _ in repairs)
        assert counts["num_lost_queries"] == 1 - len(found)
        left_out = ("num_empty_windows", "num_late_windows", "num_joined_windows")
        assert sum(counts[name] for name in left_out) + len(kept) == len(windows)


# ---- damage by another program


@pytest.mark.parametrize(
    "window",
    [(0.4, 0.3), (0.2, 0.2), (math.nan, 0.2), (0.1, math.inf), (-0.5, 0.2), (0.5, 1.2), (5.0, 6.0)],
)
def test_a_window_that_breaks_a_rule_is_refused(cache, tmp_path, window):
    def change(row):
        row[1]["windows"][0] = {"start": window[0], "end": window[1]}

    with pytest.raises(UserError, match="'q2'") as caught:
        open_cache(damaged(cache, tmp_path, change)).split("development")
    assert "\n" not in str(caught.value) and "'development'" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        (lambda row: row[1].update(windows=[]), "'q2' has no window"),
        (lambda row: row[1].update(windows=None), "moments has another form"),
        (lambda row: row[1].update(qid="q1"), "'q1' is there twice"),
        (lambda row: row[0]["windows"].reverse(), "'q1'"),
        (lambda row: row[0]["windows"][0].update(end=0.6), "'q1'"),
        (lambda row: row[0]["windows"][0].update(end=None), "moments"),
        (lambda row: row[0].update(query=None), "None is no text"),
        (lambda row: row[0].update(qid=""), "'' is no text"),
    ],
    ids=[
        "no window",
        "null",
        "qid twice",
        "unsorted",
        "overlapping",
        "no end",
        "no text",
        "no qid",
    ],
)
def test_other_damage_is_refused(cache, tmp_path, change, culprit):
    with pytest.raises(UserError, match=culprit) as caught:
        open_cache(damaged(cache, tmp_path, change)).split("development")
    assert "\n" not in str(caught.value)


def test_a_column_of_other_fields_is_refused(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "other")
    rows = [[{"text": "a dog"}], []]
    table = load(plain, "development").add_column("moments", pa.array(rows).to_pylist())
    shutil.rmtree(tmp_path / "other" / "development")
    table.save_to_disk(str(tmp_path / "other" / "development"))
    with pytest.raises(UserError, match="moments lacks 'qid'"):
        open_cache(tmp_path / "other").split("development")


def test_the_unchanged_copy_opens(cache, tmp_path):
    """Negative control of the tests of damage."""
    split = open_cache(damaged(cache, tmp_path, lambda row: None)).split("development")
    assert split.has_moments
