"""Several corpora in one training: which pairs an epoch has, and clips that are mixed."""

import json
import shutil

import datasets
import numpy as np
import pytest

from retrieval.base.errors import UserError
from retrieval.config import load_config
from retrieval.data import EpochBatches, JoinedSplit, PairDataset, as_float, open_cache
from retrieval.training.setup import make_pairs, open_splits, prepare
from tests.conftest import write_cache, write_rows


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpora")
    return [
        open_cache(write_cache(root / str(seed), {"development": num}, seed=seed)).split(
            "development"
        )
        for seed, num in ((1, 3), (2, 5))
    ]


def drawn(batches: EpochBatches, epoch: int) -> list[int]:
    batches.start(epoch)
    return [index for batch in batches for _, index in batch]


def test_clips_of_several_splits_follow_each_other(splits):
    joined = JoinedSplit(splits)
    assert len(joined) == 8 and joined.captions == splits[0].captions + splits[1].captions
    for clip in range(8):
        split, index = (splits[0], clip) if clip < 3 else (splits[1], clip - 3)
        assert np.array_equal(joined.read_stored(clip, 5, 50), split.read_stored(index, 5, 50))
        assert (
            np.array_equal(joined.read(clip, 5, 50), split.read(index, 5, 50))
            and joined.num_samples[clip] == split.num_samples[index]
        )
    assert joined.fingerprint() != JoinedSplit(splits[::-1]).fingerprint()


def test_an_epoch_goes_through_each_corpus_as_often_as_its_weight_says():
    batches = EpochBatches([10, 40, 7], 6, seed=1, weights=[2.0, 0.25, 1.5])
    assert batches.num_pairs == 20 + 10 + 10 and len(batches) == 7
    counts = np.bincount(drawn(batches, 0), minlength=57)
    assert (
        (counts[:10] == 2).all()
        and sorted(set(counts[10:50])) == [0, 1]
        and counts[10:50].sum() == 10
    )
    assert counts[50:].sum() == 10 and set(counts[50:]) == {1, 2}
    other = np.bincount(drawn(batches, 1), minlength=57)
    assert not np.array_equal(counts[10:50], other[10:50])  # another quarter every epoch
    assert drawn(batches, 0) == drawn(
        EpochBatches([10, 40, 7], 6, seed=1, weights=[2.0, 0.25, 1.5]), 0
    )


def test_without_weights_several_corpora_are_shuffled_as_one():
    assert drawn(EpochBatches([10, 13], 5, seed=3), 2) == drawn(EpochBatches(23, 5, seed=3), 2)


def test_the_configuration_s_caches_are_joined(splits, tiny, tmp_path):
    other = write_cache(tmp_path / "other", {"development": 5, "validation": 2}, seed=9)
    config = load_config(
        tiny / "tiny.yaml",
        [f"train.caches=[{tiny}/cache, {other}]", "train.cache_weights=[1, 0.5]"],
    )
    opened = open_splits(config)
    assert opened.sizes == [24, 10] and len(opened.validation) == 8
    assert len(make_pairs(opened, config)) == 34


@pytest.mark.parametrize(("weights", "num_pairs"), [("[]", 34), ("[0.5, 1.5]", 12 + 15)])
def test_an_epoch_of_training_has_as_many_pairs_as_the_weights_say(
    tiny, tmp_path, weights, num_pairs
):
    other = write_cache(tmp_path / "other", {"development": 5}, seed=9)
    settings = [
        f"train.caches=[{tiny}/cache, {other}]",
        f"train.cache_weights={weights}",
        f"train.output={tmp_path}/run",
    ]
    run = prepare(
        load_config(tiny / "tiny.yaml", settings), tmp_path / "run", resume=False, overwrite=False
    )
    run.batches.start(0)
    assert sum(
        len(batch["captions"]) for batch in run.loader
    ) == num_pairs and run.steps_per_epoch == -(-num_pairs // 4)


def test_a_corpus_that_is_named_twice_is_refused(tiny):
    with pytest.raises(
        UserError, match="caches names one twice, whose clips would be their own negatives"
    ):
        load_config(
            tiny / "tiny.yaml", [f"train.caches=[{tiny}/cache, {tiny}/../{tiny.name}/cache]"]
        )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.cache_weights=[1, 2]", "cache_weights has 2 numbers for 0 caches"),
        ("train.cache_weights=[0]", "cache_weights"),
        ("train.caches=a", "train.caches='a': input should be a valid list"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tiny, override, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        load_config(tiny / "tiny.yaml", [override])


def test_an_absent_corpus_is_named(tiny):
    with pytest.raises(UserError, match="cache data/absent does not exist"):
        open_splits(load_config(tiny / "tiny.yaml", ["train.caches=[data/absent]"]))


# --- mixed clips ---


def test_a_mixed_item_holds_both_sounds_and_both_captions(splits):
    plain, mixed = (
        PairDataset(splits[1], 10**6, seed=0),
        PairDataset(splits[1], 10**6, seed=0, mix_probability=1.0),
    )
    item = mixed[0, 4]
    first = plain[0, 4]
    assert item["caption"].startswith(first["caption"].rstrip(".") + " and ")
    other = next(
        index
        for index in range(len(plain))
        if item["caption"].endswith(" and " + plain[0, index]["caption"])
    )
    waveforms = [as_float(first["waveform"]), as_float(plain[0, other]["waveform"])]
    assert len(item["waveform"]) == max(map(len, waveforms)) and np.abs(item["waveform"]).max() <= 1
    basis = np.zeros((len(item["waveform"]), 2))
    for column, waveform in enumerate(waveforms):
        basis[: len(waveform), column] = waveform / np.sqrt(np.mean(waveform**2))
    weights, residual, *_ = np.linalg.lstsq(basis, item["waveform"], rcond=None)
    assert residual[0] < 1e-6 and weights[0] == pytest.approx(weights[1], rel=1e-3)  # equal power
    # a clip of its own
    assert item["clip"] >= len(splits[1]) and item["clip"] != mixed[0, 3]["clip"]


def test_mixing_is_drawn_for_each_item_anew_and_repeatable(splits):
    mixed = PairDataset(splits[1], 10**6, seed=0, mix_probability=0.5)
    captions = [[mixed[epoch, index]["caption"] for index in range(10)] for epoch in range(6)]
    share = np.mean([" and " in caption for epoch in captions for caption in epoch])
    assert 0.3 < share < 0.7 and captions[0] != captions[1]
    assert captions[1] == [
        PairDataset(splits[1], 10**6, seed=0, mix_probability=0.5)[1, index]["caption"]
        for index in range(10)
    ]
    assert not any(
        " and " in PairDataset(splits[1], 10**6, seed=0)[0, index]["caption"] for index in range(10)
    )


def test_silence_can_be_mixed(splits, monkeypatch):
    monkeypatch.setattr(type(splits[0]), "read_stored", lambda *_: np.zeros(100, np.float32))
    item = PairDataset(splits[0], 100, seed=0, mix_probability=1.0)[0, 0]
    assert not item["waveform"].any() and np.isfinite(item["waveform"]).all()


# --- the same clips twice ---


def test_a_copy_of_a_cache_is_refused(tiny, tmp_path):
    """Under another name and built at another time, as cache.json says: its clips tell."""
    shutil.copytree(tiny / "cache", tmp_path / "copy")
    (tmp_path / "copy" / "cache.json").write_text(
        (tiny / "cache" / "cache.json").read_text() + "\n"
    )
    config = load_config(
        tiny / "tiny.yaml",
        [f"train.caches=[{tiny}/cache, {tmp_path}/copy]", f"train.output={tmp_path}/run"],
    )
    with pytest.raises(
        UserError,
        match="train.caches: development of .*cache and development of .*copy hold the same clips",
    ) as caught:
        prepare(config, tmp_path / "run", resume=False, overwrite=False)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
    # Without the original it is the corpus, once; the other splits are those of data.cache.
    opened = open_splits(load_config(tiny / "tiny.yaml", [f"train.caches=[{tmp_path}/copy]"]))
    assert opened.sizes == [24] and opened.warnings == []


def test_training_on_a_split_that_is_scored_is_refused(tiny, tmp_path):
    """The evaluation split, built once more as a corpus to train on."""
    (tmp_path / "leak").mkdir()
    shutil.copytree(tiny / "cache" / "evaluation", tmp_path / "leak" / "development")
    info = json.loads((tiny / "cache" / "cache.json").read_text())
    (tmp_path / "leak" / "cache.json").write_text(
        json.dumps(info | {"splits": {"development": info["splits"]["evaluation"]}})
    )
    with pytest.raises(
        UserError,
        match=(
            "train.caches: development of .*leak and evaluation of .*cache hold the same"
            " clips.*scored on"
        ),
    ):
        open_splits(
            load_config(tiny / "tiny.yaml", [f"train.caches=[{tiny}/cache, {tmp_path}/leak]"])
        )


def test_clips_that_two_caches_share_are_counted(tiny, tmp_path, capsys):
    """Part of a corpus and part of what is scored, among other clips: said, not refused."""

    def rows(split: str, clips: range) -> list[dict]:
        table = datasets.load_from_disk(str(tiny / "cache" / split))
        return [table[clip] for clip in clips]

    shared = write_rows(
        tmp_path / "shared",
        {"development": [*rows("development", range(4)), *rows("evaluation", range(3))]},
    )
    config = load_config(
        tiny / "tiny.yaml",
        [f"train.caches=[{tiny}/cache, {shared}]", f"train.output={tmp_path}/run"],
    )
    run = prepare(config, tmp_path / "run", resume=False, overwrite=False)
    run.lock.close()
    run.tracker.close()
    printed = capsys.readouterr().out
    assert (
        "warning: train.caches: 4 clips of development of" in printed
        and "warning: train.caches: 3 clips of evaluation of" in printed
    )
    # negative control: names and captions of a corpus, other sounds
    other = write_cache(tmp_path / "other", {"development": 12}, seed=9)
    assert (
        open_splits(
            load_config(tiny / "tiny.yaml", [f"train.caches=[{tiny}/cache, {other}]"])
        ).warnings
        == []
    )


def test_what_one_cache_holds_twice_is_its_builder_s_to_say(tiny, tmp_path):
    """As without train.caches: builds warn of clips in two splits."""
    table = datasets.load_from_disk(str(tiny / "cache" / "development"))
    own = write_rows(
        tmp_path / "own", {"development": [table[0], table[1]], "validation": [table[1], table[2]]}
    )
    other = write_cache(tmp_path / "other", {"development": 3}, seed=9)
    assert (
        open_splits(
            load_config(tiny / "tiny.yaml", [f"data.cache={own}", f"train.caches=[{own}, {other}]"])
        ).warnings
        == []
    )
