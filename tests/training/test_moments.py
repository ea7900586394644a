"""Training of a moment head: items, labels, loss, N processes, parts, resume, what it leaves alone.

Letters: n pairs of a process, T frames.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval.base.errors import UserError
from retrieval.config import load_config
from retrieval.data import open_cache
from retrieval.data.moment_pairs import MomentDataset, collate_moments, frame_labels
from retrieval.evaluation.result import evaluate_split
from retrieval.losses.moments import moment_loss
from retrieval.models.dual_encoder import DualEncoder
from retrieval.moments.locator import Locator
from retrieval.moments.result import score_answers
from retrieval.moments.split import answer_split, truths_of
from retrieval.training import loop
from retrieval.training.moments import THRESHOLDS
from tests import many_processes, warm_processes
from tests.conftest import SAMPLE_RATE
from tests.timed_tones import write_timed_cache
from tests.training.test_micro_batches import assert_equal

HEAD = ["moment_head={hidden: 8, kernel: 3, step_seconds: 0.08, dropout: 0}"]
FROZEN = ["audio_encoder.frozen=true", "text_encoder.frozen=true"]
BATCH = ["train.batch_size=8", "evaluation.num_pictures=0", "text_encoder.dropout=0"]


@pytest.fixture(scope="module")
def timed(tmp_path_factory) -> Path:
    splits = {"development": 12, "validation": 6, "evaluation": 6}
    return write_timed_cache(tmp_path_factory.mktemp("timed") / "cache", splits)


@pytest.fixture(scope="module")
def started(tiny, timed, tmp_path_factory) -> Path:
    """A retrieval model of the small sizes, to start from."""
    output = tmp_path_factory.mktemp("started") / "run"
    settings = [f"data.cache={timed}", f"train.output={output}", "train.max_steps=3", *BATCH]
    loop.train(load_config(tiny / "tiny.yaml", settings))
    return output / "last"


def settings_of(timed: Path, *more: str) -> list[str]:
    return [f"data.cache={timed}", *HEAD, *BATCH, *more]


def train(tiny: Path, timed: Path, output: Path, *more: str, resume: bool = False) -> dict:
    settings = settings_of(timed, f"train.output={output}", *more)
    loop.train(load_config(tiny / "tiny.yaml", settings), resume=resume)
    return json.loads((output / "metrics.json").read_text())


# --- items ---


def items_of(split, **settings):
    defaults = {"max_samples": 2 * SAMPLE_RATE, "seed": 1, "sample_rate": SAMPLE_RATE}
    return MomentDataset(split, **(defaults | {"negatives": 0.25} | settings))


def test_items_depend_on_seed_epoch_and_number_alone(timed):
    split = open_cache(timed).split("development")
    first, second = items_of(split), items_of(split)
    later = [second[1, place] for place in range(24)][::-1][::-1]
    for place, item in enumerate([first[1, place] for place in range(24)]):
        assert item["caption"] == later[place]["caption"]
        assert np.array_equal(item["waveform"], later[place]["waveform"])
    others = [first[2, place]["caption"] for place in range(24)]
    assert others != [item["caption"] for item in later]


def test_negatives_ask_for_queries_that_the_clip_does_not_have(timed):
    split = open_cache(timed).split("development")
    items = items_of(split, negatives=0.5)
    drawn = [items[epoch, place] for epoch in range(20) for place in range(len(items))]
    foreign = [item for item in drawn if not item["windows"]]
    assert 0.4 < len(foreign) / len(drawn) < 0.6
    for item in foreign:
        assert item["caption"] not in split.captions[item["clip"]]
    for item in drawn:
        if item["windows"]:
            (own,) = [q for q in split.moments[item["clip"]] if q.query == item["caption"]]
            assert item["windows"] == list(own.windows)


def test_a_cut_holds_a_part_of_a_window_and_moves_its_times(tmp_path):
    split = open_cache(write_timed_cache(tmp_path / "cache", {"development": 3}, 4, 6.0)).split(
        "development"
    )
    items = items_of(split, negatives=0.0, max_samples=SAMPLE_RATE)
    starts = set()
    for epoch in range(40):
        for place in range(len(items)):
            item = items[epoch, place]
            query = split.moments[item["clip"]][place % 2]
            samples = split.read_stored(item["clip"])
            ((start, end),), (whole,) = item["windows"], query.windows
            first = round((whole[0] - start) * SAMPLE_RATE)
            assert np.array_equal(item["waveform"], samples[first : first + SAMPLE_RATE])
            assert len(item["waveform"]) == SAMPLE_RATE
            assert end - start == pytest.approx(whole[1] - whole[0])
            assert min(end, 1.0) - max(start, 0.0) > 0
            starts.add(first)
    assert len(starts) > 100


def test_one_query_for_all_clips_leaves_no_negative(timed):
    split = open_cache(timed).split("development")
    split.moments = [queries[:1] for queries in split.moments]
    split.moments = [[split.moments[0][0]] for _ in split.moments]
    with pytest.raises(UserError, match="negatives"):
        items_of(split)
    assert len(items_of(split, negatives=0.0)) == 12


def test_labels_against_a_loop():
    rng = np.random.default_rng(0)
    centres, width = (np.arange(20) + 0.5) * 0.1, 0.1
    for _ in range(200):
        windows = np.sort(rng.uniform(-0.5, 2.5, (2, 2)), axis=1)
        windows[rng.random(2) < 0.3] = 0
        windows[0, 1] = windows[0, 0] + rng.choice([0.01, 0.5])
        found = frame_labels(torch.from_numpy(windows)[None], torch.from_numpy(centres), width)[0]
        for centre, label in zip(centres, found.tolist(), strict=True):
            expected = any(
                start <= centre < end
                or (end > start and centre - 0.05 <= (start + end) / 2 < centre + 0.05)
                for start, end in windows
            )
            assert label == expected


def test_the_loss_against_loops():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 9, generator=rng, dtype=torch.float64)
    labels = (torch.rand(4, 9, generator=rng) > 0.6).double()
    labels[3] = 0
    lengths = [9, 4, 1, 6]
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    found = moment_loss(logits, labels, mask, dice_weight=0.7)
    for row, length in enumerate(lengths):
        p = [1 / (1 + np.exp(-float(logits[row, t]))) for t in range(length)]
        y = [float(labels[row, t]) for t in range(length)]
        entropy = -np.mean([np.log(a if b else 1 - a) for a, b in zip(p, y, strict=True)])
        dice = 1 - 2 * np.dot(p, y) / (sum(p) + sum(y)) if sum(y) else 0
        assert found[row].item() == pytest.approx(entropy + 0.7 * dice, abs=1e-9)


def test_a_batch_pads_windows():
    item = {"waveform": np.zeros(3, np.float32), "caption": "a", "clip": 0, "pair": 0}
    batch = collate_moments([item | {"windows": own} for own in ([], [(0, 1), (2, 3)], [(1, 2)])])
    assert batch["windows"].tolist() == [[[0, 0]] * 2, [[0, 1], [2, 3]], [[1, 2], [0, 0]]]
    assert collate_moments([item | {"windows": []}])["windows"].shape == (1, 1, 2)


# --- training ---


@pytest.fixture(scope="module")
def learnt(tiny, timed, started, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("learnt") / "run"
    more = [f"train.init_from={started}", *FROZEN, "optimizer.lr.moment_head=1e-2"]
    train(tiny, timed, output, *more, "train.epochs=5", "evaluation.num_pictures=1")
    return output


def test_the_head_learns_and_chooses_its_threshold_on_validation(learnt, timed):
    final = json.loads((learnt / "metrics.json").read_text())
    lines = (learnt / "history.jsonl").read_text().splitlines()
    losses = [json.loads(line)["train/mean_loss"] for line in lines]
    assert losses[-1] < 0.95 * losses[0]
    model = DualEncoder.from_pretrained(learnt / "best")
    assert any(abs(model.moment_head.threshold.item() - own) < 1e-6 for own in THRESHOLDS)
    validation, evaluation = (
        score_answers(answer_split(Locator(model, alternatives=True), split), truths_of(split))
        for split in map(open_cache(timed).split, ("validation", "evaluation"))
    )
    assert validation.metrics["R1@0.7"] == pytest.approx(final["validation_R1@0.7"])
    assert {"moments": evaluation.metrics} == final["best"]
    assert model.record.evaluation.metrics == final["best"]
    card = (learnt / "best" / "README.md").read_text()
    assert "| evaluation | moments |" in card and "from retrieval.moments" in card


def test_a_head_on_frozen_encoders_leaves_retrieval_as_it_was(learnt, started, timed):
    split = open_cache(timed).split("evaluation")
    before, after = (
        evaluate_split(DualEncoder.from_pretrained(folder), split)
        for folder in (started, learnt / "best")
    )
    assert torch.equal(before.scores, after.scores)


def test_pictures_and_curves_reach_tensorboard(learnt):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(learnt), size_guidance={"images": 0})
    events.Reload()
    assert any("validation_moments/" in name for name in events.Tags()["images"])
    assert "validation/moments/R1@0.7" in events.Tags()["scalars"]


def test_cached_frames_give_the_same_loss(tiny, timed, started, tmp_path):
    more = [f"train.init_from={started}", *FROZEN]
    losses = []
    for name, frames in (("sounds", []), ("frames", [f"data.frame_cache={tmp_path / 'cache'}"])):
        settings = settings_of(timed, *more, *frames)
        run = many_processes.start(tiny, tmp_path / name, settings)
        losses.append(many_processes.step(run, 0)["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)  # frames are kept in half precision


def first_step(tiny: Path, timed: Path, started: Path, output: Path, *more: str):
    settings = settings_of(timed, f"train.init_from={started}", *more)
    run = many_processes.start(tiny, output, settings, torch.float64)
    result = many_processes.step(run, 0)
    return result["loss"], result["gradients"]


CASES = {"frozen": FROZEN, "all": [], "mean": ["pooling.name=mean", "train.init_from=null"]}
OF_TWO = ("frozen", "all")  # also on two processes


def work(rank: int, size: int, port: int, tiny: Path, timed: Path, started: Path, folder: Path):
    many_processes.join(rank, size, port)
    found = {
        name: first_step(tiny, timed, started, folder / f"{name}_of_{size}", *more)
        for name, more in CASES.items()
        if name in OF_TWO
    }
    torch.save(found, folder / f"{rank}_of_{size}.pt")
    many_processes.leave()


@pytest.fixture(scope="module")
def of_two(tiny, timed, started, tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("of_two")
    arguments = (2, many_processes.free_port(), tiny, timed, started, folder)
    warm_processes.spawn(work, arguments, nprocs=2)
    return [torch.load(folder / f"{rank}_of_2.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_processes_and_parts_give_loss_and_gradients_of_the_whole(
    tiny, timed, started, tmp_path, of_two, name
):
    whole = first_step(tiny, timed, started, tmp_path / "whole", *CASES[name])
    parts = {key.partition(".")[0] for key in whole[1]}
    if name == "frozen":
        assert parts == {"moment_head"}
    else:
        assert parts >= {"moment_head", "audio_encoder", "text_encoder", "audio_projection"}
    for found in of_two if name in OF_TWO else ():
        assert_equal(found[name], whole)
    size = "train.micro_batch_size=3"
    assert_equal(first_step(tiny, timed, started, tmp_path / "parts", *CASES[name], size), whole)
    # control: another weight of the dice loss has other gradients
    other = [*CASES[name], "moment_head.dice_weight=2"]
    with pytest.raises(AssertionError):
        assert_equal(first_step(tiny, timed, started, tmp_path / "other", *other), whole)


def test_an_interrupted_run_goes_on_to_the_same_weights(tiny, timed, started, tmp_path):
    weights = []
    for folder, stop in (("undisturbed", ""), ("interrupted", "within an epoch")):
        more = [f"train.init_from={started}", *FROZEN, "moment_head.dropout=0.2"]
        settings = settings_of(timed, f"train.output={tmp_path / folder}", *more)
        arguments = ["--config", str(tiny / "tiny.yaml"), *settings]
        many_processes.run_script(arguments, stop)
        if stop:
            assert not (tmp_path / folder / "metrics.json").exists()
            assert many_processes.run_script([*arguments, "--resume"]) == "0"
        weights.append(DualEncoder.from_pretrained(tmp_path / folder / "last").state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


# --- mistakes ---


def error_of(tiny: Path, *settings: str) -> str:
    with pytest.raises(UserError) as caught:
        loop.train(load_config(tiny / "tiny.yaml", list(settings)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mistakes_are_named_before_the_run_starts(tiny, timed, started, tmp_path):
    output = f"train.output={tmp_path / 'run'}"
    assert "no times" in error_of(tiny, *HEAD, output)
    shift = settings_of(timed, "augmentation.shift_seconds=1", output)
    assert "augmentation.shift_seconds" in error_of(tiny, *shift)
    frames = [f"data.frame_cache={tmp_path / 'frames'}", *FROZEN, "data.max_seconds=1.5"]
    assert "data.max_seconds" in error_of(tiny, *settings_of(timed, *frames, output))
    even = [f"data.cache={timed}", "moment_head={kernel: 4}", output]
    assert "moment_head.kernel" in error_of(tiny, *even)
    huge = [f"data.cache={timed}", "moment_head={hidden: 100000000}", output]
    assert "hidden" in error_of(tiny, *huge)
    assert not (tmp_path / "run").exists()


def test_a_head_of_another_size_is_no_start(tiny, timed, learnt, tmp_path):
    more = [f"train.init_from={learnt / 'best'}", f"train.output={tmp_path / 'run'}"]
    larger = [f"data.cache={timed}", "moment_head={hidden: 16, kernel: 3}", *BATCH, *more]
    assert "moment_head" in error_of(tiny, *larger)


def test_retrieval_goes_on_from_a_model_with_a_head(tiny, timed, learnt, tmp_path):
    settings = [f"data.cache={timed}", f"train.init_from={learnt / 'best'}", *BATCH]
    settings += [f"train.output={tmp_path / 'run'}", "train.max_steps=1"]
    loop.train(load_config(tiny / "tiny.yaml", settings))
    assert DualEncoder.from_pretrained(tmp_path / "run/last").moment_head is None
