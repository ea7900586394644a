"""1, 2 and 3 processes: the same loss, gradients, learning rates and scores; bytes that travel.

Letters: N pairs of all processes together, n of this one, D dimensions, T frames.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch

from retrieval.data import PairDataset, collate_pairs, open_cache
from retrieval.evaluation.score_files import write_scores
from retrieval.losses import LOSSES, arguments_of
from retrieval.models.text import TextEncoder, load_tokenizer, text_architecture
from retrieval.training.objective import CaptionSimilarity
from retrieval.training.optim import learning_rate
from retrieval.training.setup import Run
from tests import warm_processes
from tests.conftest import SCORING_RECORD
from tests.many_processes import (
    AUDIO_BATCH_SIZES,
    BATCH_SIZE,
    BLOCK_ELEMENTS,
    CASES,
    FAULTS,
    STEPS,
    TEXT_BATCH_SIZES,
    Inputs,
    collect,
    free_port,
    start,
    work,
)

NUM_PROCESSES = (1, 2, 3)
NUM_PAIRS, NUM_CLIPS, DIM = 24, 12, 32  # of the fixture `tiny`


@pytest.fixture(scope="module")
def inputs(tiny, tmp_path_factory) -> Inputs:
    teacher, sentence_encoder = (
        tmp_path_factory.mktemp("teacher"),
        tmp_path_factory.mktemp("sentence_encoder"),
    )
    scores = np.random.default_rng(0).uniform(-1, 1, (NUM_PAIRS, NUM_CLIPS)).astype(np.float32)
    split = open_cache(tiny / "cache").split("development")
    write_scores(
        teacher,
        [(torch.arange(NUM_CLIPS), torch.from_numpy(scores))],
        split,
        SCORING_RECORD,
    )
    architecture = text_architecture(str(tiny / "text_encoder"), dropout=0.1) | {
        "max_position_embeddings": 80,
        "initializer_range": 0.5,
    }
    torch.manual_seed(5)
    TextEncoder(architecture, 32).model.save_pretrained(sentence_encoder)
    load_tokenizer(tiny / "text_encoder").save_pretrained(sentence_encoder)
    return Inputs(tiny, teacher, sentence_encoder)


@pytest.fixture(scope="module")
def results(inputs, tmp_path_factory) -> dict[int, list[dict[str, Any]]]:
    """By number of processes, what each of them found."""
    from accelerate.state import AcceleratorState

    folder = tmp_path_factory.mktemp("many")
    warm_processes.spawn(
        work, ({number: free_port() for number in (3, 2)}, inputs, folder), nprocs=3
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        alone = collect(inputs, folder / "run_of_1")
    return {1: [alone]} | {
        number: [torch.load(folder / f"{rank}_of_{number}.pt") for rank in range(number)]
        for number in (2, 3)
    }


@pytest.fixture(scope="module")
def by_hand(
    inputs, results, tmp_path_factory
) -> dict[tuple[str, str], dict[str, tuple[float, dict[str, torch.Tensor]]]]:
    """Loss and gradients of the whole batches by plain PyTorch, without a call into
    retrieval.base.exchange or the training step.
    """
    folder = tmp_path_factory.mktemp("by_hand")
    pairs = PairDataset(open_cache(inputs.tiny / "cache").split("development"), 32_000, seed=123)
    vectors = CaptionSimilarity(
        str(inputs.sentence_encoder), pairs.captions, torch.device("cpu")
    ).embeddings
    targets = {
        "caption_similarity": vectors @ vectors.T,
        "teacher_scores": torch.from_numpy(np.load(inputs.teacher / "scores.npy")),
    }
    found: dict = {}
    for pooling, loss in CASES:
        run = start(inputs.tiny, folder / "run", inputs.settings(pooling, loss), torch.float64)
        steps = results[1][0]["steps"][pooling, loss]
        found[pooling, loss] = {
            name: step_by_hand(
                run, loss, [pairs[0, number] for number in steps[name]["pairs"]], targets
            )
            for name in STEPS
        }
    return found


def step_by_hand(
    run: Run, name: str, items: list[dict[str, Any]], targets: dict[str, torch.Tensor]
) -> tuple[float, dict[str, torch.Tensor]]:
    model, settings, batch = run.model, run.config.loss, collate_pairs(items)
    model.zero_grad()
    text, frames, mask = model(batch)
    scores = model.score(text, frames, mask)  # (N, N)
    clips, numbers = [item["clip"] for item in items], [item["pair"] for item in items]
    positives = torch.tensor([[a == b for b in clips] for a in clips])
    values = settings.model_dump() | {"temperature": model.temperature, **model.loss_parameters}
    values["caption_similarity"] = torch.tensor(
        [[targets["caption_similarity"][a, b] for b in numbers] for a in numbers]
    )
    values["teacher_scores"] = torch.tensor(
        [[targets["teacher_scores"][a, b] for b in clips] for a in numbers]
    )
    loss = LOSSES[name](
        scores, positives, **{argument: values[argument] for argument in arguments_of(name)}
    )
    if name == "distillation":
        loss = settings.distill_weight * loss + settings.loss_weight * LOSSES[settings.supervised](
            scores, positives, model.temperature
        )
    loss.backward()
    return loss.item(), {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def largest_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Relative to the largest entry of each gradient; of one that is zero but for rounding (key
    biases), to a millionth of the largest of all.
    """
    assert found.keys() == expected.keys()
    least = 1e-6 * max(value.abs().max().item() for value in expected.values())
    return max(
        (found[name] - value).abs().max().item() / max(value.abs().max().item(), least)
        for name, value in expected.items()
    )


# --- the batches are what the tests below speak of ---


@pytest.mark.parametrize("num_processes", [2, 3])
def test_batches_are_uneven_and_their_clips_come_on_several_processes(results, num_processes):
    steps = [process["steps"]["tap", "nt_xent"] for process in results[num_processes]]
    assert BATCH_SIZE % num_processes and NUM_PAIRS % BATCH_SIZE
    sizes = {name: [len(step[name]["pairs"]) for step in steps] for name in STEPS}
    assert (
        sizes
        == {2: {"full": [4, 3], "last": [2, 1]}, 3: {"full": [3, 2, 2], "last": [1, 1, 1]}}[
            num_processes
        ]
    )
    clips = [set(step["full"]["clips"]) for step in steps]
    assert any(a & b for a in clips for b in clips if a is not b)
    whole = results[1][0]["steps"]["tap", "nt_xent"]
    for name in STEPS:
        assert sorted(sum((step[name]["pairs"] for step in steps), [])) == sorted(
            whole[name]["pairs"]
        )


# --- loss and gradients ---


@pytest.mark.parametrize("num_processes", NUM_PROCESSES)
@pytest.mark.parametrize(("pooling", "loss"), CASES)
def test_loss_and_gradients_are_those_of_one_process_with_the_whole_batch(
    results, by_hand, pooling, loss, num_processes
):
    for process in results[num_processes]:
        for name in STEPS:
            found, (expected_loss, expected) = (
                process["steps"][pooling, loss][name],
                by_hand[pooling, loss][name],
            )
            assert found["loss"] == pytest.approx(expected_loss, rel=1e-6, abs=1e-6)
            assert largest_difference(found["gradients"], expected) < 1e-5
            assert {"temperature"} <= expected.keys() and (
                loss != "sigmoid" or "loss_parameters.bias" in expected
            )


@pytest.mark.parametrize("fault", FAULTS)
def test_negative_controls_every_fault_is_seen(results, by_hand, fault):
    for process in results[2]:
        assert (
            largest_difference(
                process["faults"][fault]["gradients"], by_hand["tap", "nt_xent"]["full"][1]
            )
            > 1e-2
        )


def test_negative_control_a_missing_gather_is_seen_in_the_loss(results, by_hand):
    assert all(
        abs(process["faults"]["own negatives only"]["loss"] - by_hand["tap", "nt_xent"]["full"][0])
        > 1e-2
        for process in results[2]
    )


def test_no_two_losses_and_poolings_are_the_same(by_hand):
    """Else a case would prove nothing of its own."""
    values = sorted(steps["full"][0] for steps in by_hand.values())
    assert min(b - a for a, b in zip(values, values[1:])) > 1e-3


# --- steps and learning rates ---


@pytest.mark.parametrize("num_processes", NUM_PROCESSES)
def test_an_epoch_has_the_same_steps_learning_rates_and_losses_on_any_number_of_processes(
    results, num_processes
):
    alone = results[1][0]["epoch"]
    epochs = [process["epoch"] for process in results[num_processes]]
    pairs = [
        sorted(sum(parts, [])) for parts in zip(*(epoch["pairs"] for epoch in epochs), strict=True)
    ]
    assert pairs == [sorted(step) for step in alone["pairs"]]
    assert sorted(sum(pairs, [])) == list(range(NUM_PAIRS))
    for epoch in epochs:
        assert epoch["steps_per_epoch"] == len(epoch["rates"]) == math.ceil(NUM_PAIRS / BATCH_SIZE)
        assert epoch["rates"] == alone["rates"]
        assert epoch["losses"] == pytest.approx(alone["losses"], rel=1e-6)


def test_learning_rates_are_those_of_the_schedule(results):
    settings = {
        "shape": "cosine",
        "warmup_epochs": 0.5,
        "rampdown_start": 0.6,
        "rampdown_stop": 20.0,
        "min_lr": 1e-7,
    }
    settings |= {"step_epochs": 5.0, "step_factor": 0.5}
    expected = [learning_rate(step / 4, 2e-3, **settings) for step in range(4)]
    assert len(set(expected)) == 4
    assert all(
        rates == [rate] * 5
        for rates, rate in zip(results[1][0]["epoch"]["rates"], expected, strict=True)
    )


@pytest.mark.parametrize("num_processes", NUM_PROCESSES)
def test_every_process_holds_the_average_of_one_process_s_weights(results, num_processes):
    alone = results[1][0]["averages"]
    first = results[num_processes][0]["averages"]
    for process in results[num_processes]:
        assert process["averages"].keys() == alone.keys()
        for name, average in process["averages"].items():
            assert torch.equal(average, first[name])
            assert torch.allclose(average, alone[name], rtol=0, atol=1e-9)


# --- what travels ---


def bytes_beside_gradients(num_pairs: int, num_processes: int, dim: int) -> int:
    """What a process hands to collectives in one step, in float32 scores and texts, padded to the
    largest share n of the N pairs.

    Texts n x D, and back their gradient N x D; score columns N x n, whose gradient needs nothing;
    clip and pair numbers, 2 n of 8 bytes; and before each of the three gathers the size of a share,
    8 bytes.
    """
    share = math.ceil(num_pairs / num_processes)
    return 4 * (share * dim + num_pairs * dim + num_pairs * share) + 8 * 2 * share + 3 * 8


def split_calls(count: dict[str, Any], dim: int = DIM) -> tuple[int, int]:
    """Bytes beside the reduction of gradients, and of it: all_reduce of anything but the gathered
    texts' gradient.
    """
    reduced = [
        size
        for name, size in count["calls"]
        if name.startswith("allreduce") and size != 4 * BATCH_SIZE * dim
    ]
    return sum(size for _, size in count["calls"]) - sum(reduced), sum(reduced)


@pytest.mark.parametrize("num_processes", [2, 3])
@pytest.mark.parametrize("pooling", ["mean", "tap"])
def test_texts_scores_and_numbers_travel_and_frames_do_not(results, pooling, num_processes):
    for process in results[num_processes]:
        short, long = (process["bytes"][pooling, seconds] for seconds in (1.0, 2.0))
        assert {name.removesuffix("_.default") for name, _ in short["calls"]} == {
            "allgather",
            "allreduce",
        }
        assert split_calls(short) == (
            bytes_beside_gradients(BATCH_SIZE, num_processes, DIM),
            4 * short["num_trained"],
        )
        assert long["calls"] == short["calls"]
        # clips twice as long, nothing more to send
        assert pooling == "mean" or long["frames"][1] == 2 * short["frames"][1]


@pytest.mark.parametrize("num_processes", [2, 3])
def test_negative_control_frames_that_travel_are_seen(results, num_processes):
    for process in results[num_processes]:
        short, long = (
            split_calls(process["bytes"]["frames gathered", seconds])[0] for seconds in (1.0, 2.0)
        )
        num_frames = process["bytes"]["frames gathered", 1.0]["frames"][1]
        share = math.ceil(BATCH_SIZE / num_processes)
        assert (
            short
            == bytes_beside_gradients(BATCH_SIZE, num_processes, DIM)
            + 4 * share * num_frames * DIM
            + 8
        )
        assert long - short == 4 * share * num_frames * DIM


def test_at_real_sizes_less_travels_than_a_tenth_of_one_clip_s_frames():
    """16 pairs, 1024 dimensions, 30 s of 25 frames a second; from 2 processes to one pair each."""
    one_clip = 4 * 750 * 1024
    assert all(
        bytes_beside_gradients(16, num_processes, 1024) < one_clip / 10
        for num_processes in (2, 4, 8, 16)
    )


def test_alone_nothing_travels(results):
    assert all(count["calls"] == [] for count in results[1][0]["bytes"].values())


def test_processes_draw_their_own_dropout(results):
    drawn = [process["drawn"].tolist() for process in results[3]]
    assert len(set(map(tuple, drawn))) == 3
    assert drawn[0] == results[1][0]["drawn"].tolist()


# --- evaluation ---


def decisive_gap(scores: torch.Tensor) -> float:
    """The smallest distance of a right candidate's score from a wrong one's, over the queries of
    both directions: two captions a clip.
    """
    # (N, B)
    right = torch.arange(scores.shape[0])[:, None] // 2 == torch.arange(scores.shape[1])[None]
    directions = ((scores, right), (scores.T, right.T))
    return min(
        (row[is_right][:, None] - row[~is_right]).abs().min().item()
        for matrix, mask in directions
        for row, is_right in zip(matrix, mask)
    )


@pytest.mark.parametrize("num_processes", NUM_PROCESSES)
@pytest.mark.parametrize("pooling", ["mean", "tap"])
def test_evaluation_does_not_depend_on_processes_batches_and_blocks(
    results, pooling, num_processes
):
    scores, metrics = results[1][0]["scores"][pooling][16, 256, BLOCK_ELEMENTS[-1]]
    assert decisive_gap(scores) > 1e-5  # so that metrics hang on no rounding
    assert metrics["text_to_audio"] != metrics["audio_to_text"]
    for process in results[num_processes]:
        assert len(process["scores"][pooling]) == len(AUDIO_BATCH_SIZES) * len(TEXT_BATCH_SIZES) * (
            2 if pooling == "tap" else 1
        )
        for found, found_metrics in process["scores"][pooling].values():
            assert (found - scores).abs().max() < 1e-6
            assert found_metrics == metrics


@pytest.mark.parametrize("num_processes", NUM_PROCESSES)
@pytest.mark.parametrize("pooling", ["mean", "tap"])
def test_moments_do_not_depend_on_processes(results, pooling, num_processes):
    """To the last bit: a clip is heard by itself on any of them."""
    expected = results[1][0]["moments"][pooling]
    assert list(expected) == [1, 8] and len(expected[8]) == 16 and len(expected[1]) == 2
    assert len({tuple(moments) for _, moments in expected[8]}) > 8  # not all alike
    for process in results[num_processes]:
        assert process["moments"][pooling] == expected
