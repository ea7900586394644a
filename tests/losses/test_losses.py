"""Every loss against golden numbers of the reference and against loops written from its formula."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval.base.errors import UserError
from retrieval.losses import LOSSES, arguments_of, check_loss
from retrieval.losses.functions import info_nce, listnet, nt_xent, pmr, sigmoid, triplet

GOLDEN = np.load(Path(__file__).resolve().parents[1] / "golden" / "losses.npz")
TEMPERATURE = float(GOLDEN["tau"])
DUPLICATES, OWN = torch.from_numpy(GOLDEN["I"]), torch.eye(8, dtype=torch.bool)
SIMILARITY, TEACHER = (
    torch.from_numpy(GOLDEN["text_sim"]),
    torch.from_numpy(GOLDEN["C_teacher_f64"]).float(),
)

# name in the golden file: loss, positives, what else it takes
CASES = {
    "nt_xent": ("nt_xent", DUPLICATES, {"temperature": TEMPERATURE}),
    "nt_xent_nodup": ("nt_xent", OWN, {"temperature": TEMPERATURE}),
    "infonce": ("info_nce", DUPLICATES, {"temperature": TEMPERATURE}),
    "semi": ("triplet", OWN, {"temperature": TEMPERATURE, "margin": 1.0}),
    "semi_direct_m02": ("triplet", OWN, {"temperature": 1.0, "margin": 0.2}),
    # On scores / 0.05 with omega 0.5 and temperature 1, which is the same as on the scores with
    # these:
    "pmr": (
        "pmr",
        OWN,
        {"temperature": TEMPERATURE, "omega": 0.5 / TEMPERATURE, "prior_axis": "same"},
    ),
    "pmr_direct_o10_t005": ("pmr", OWN, {"temperature": 0.05, "omega": 10.0, "prior_axis": "same"}),
    "sigmoid": (
        "sigmoid",
        OWN,
        {"temperature": TEMPERATURE, "scale": torch.tensor(1.0), "bias": torch.tensor(-10.0)},
    ),
    "listnet": ("listnet", OWN, {"temperature": TEMPERATURE, "caption_similarity": SIMILARITY}),
    "distill_lw0": ("distillation", OWN, {"temperature": TEMPERATURE, "teacher_scores": TEACHER}),
}
WITH_TRANSPOSED = [
    f"{case}{suffix}" for case in CASES for suffix in ("", ".T") if f"{case}{suffix}.loss" in GOLDEN
]


def scores_of(name: str) -> torch.Tensor:
    return torch.from_numpy(
        GOLDEN["C"].T.copy() if name.endswith(".T") else GOLDEN["C"]
    ).requires_grad_()


def relative(found: np.ndarray, golden: np.ndarray) -> float:
    return float(np.linalg.norm(found - golden) / np.linalg.norm(golden))


@pytest.mark.parametrize("name", WITH_TRANSPOSED)
def test_losses_and_gradients_equal_the_reference(name: str):
    loss_name, positives, values = CASES[name.removesuffix(".T")]
    scores = scores_of(name)
    loss = LOSSES[loss_name](scores, positives, **values)
    loss.backward()
    for suffix in ("", "_f64"):
        assert abs(loss.item() / GOLDEN[f"{name}.loss{suffix}"] - 1) < 1e-5
        assert relative(scores.grad.numpy(), GOLDEN[f"{name}.grad_C{suffix}"]) < 1e-5


def test_negative_control_the_golden_values_tell_settings_apart():
    golden = {name: float(GOLDEN[f"{name}.loss"]) for name in CASES}

    def differs(name: str, **changed) -> bool:
        loss, positives, values = CASES[name]
        positives = changed.pop("positives", positives)
        return (
            abs(
                LOSSES[loss](scores_of(name).detach(), positives, **(values | changed)).item()
                / golden[name]
                - 1
            )
            > 1e-3
        )

    assert differs("nt_xent", positives=OWN) and differs("nt_xent_nodup", positives=DUPLICATES)
    assert differs("semi", margin=1.2)
    assert differs("pmr", omega=5.0) and differs("pmr", prior_axis="cross")
    assert differs("sigmoid", bias=torch.tensor(-9.0))
    assert differs("listnet", caption_similarity=SIMILARITY.flip(0))
    assert differs("distill_lw0", teacher_scores=TEACHER.T)


def test_the_sigmoid_s_parameters_get_the_reference_s_gradient():
    scale, bias = torch.tensor(1.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    sigmoid(scores_of("sigmoid"), OWN, temperature=TEMPERATURE, scale=scale, bias=bias).backward()
    assert abs(scale.grad.item() / GOLDEN["sigmoid.grad_t"] - 1) < 1e-5
    assert abs(bias.grad.item() / GOLDEN["sigmoid.grad_b"] - 1) < 1e-5


def test_supervised_and_distillation_loss_are_each_weighted_once():
    """The reference multiplies by loss_weight twice: 0.5 counts as 0.25 there."""
    _, _, values = CASES["distill_lw0"]
    supervised = nt_xent(scores_of("distill"), DUPLICATES, temperature=TEMPERATURE)
    distillation = LOSSES["distillation"](scores_of("distill"), DUPLICATES, **values)
    assert (
        abs((0.25 * supervised + 2 * distillation).item() / GOLDEN["distill_lw05_dw2.loss"] - 1)
        < 1e-5
    )


# --- slow references ---


def nt_xent_loops(scores: np.ndarray, positives: np.ndarray, temperature: float) -> float:
    total, count = 0.0, 0
    for n, b in zip(*np.nonzero(positives)):
        row, column = scores[n] / temperature, scores[:, b] / temperature
        total += row[b] - math.log(np.exp(row).sum()) + column[n] - math.log(np.exp(column).sum())
        count += 1
    return -0.5 * total / count


def triplet_loops(
    scores: np.ndarray, positives: np.ndarray, temperature: float, margin: float
) -> float:
    logits = scores / temperature
    costs = []
    for i in range(len(logits)):
        for line, taken in ((logits[i], positives[i]), (logits[:, i], positives[:, i])):
            negatives = [value for value, is_positive in zip(line, taken) if not is_positive]
            closest = min(negatives, key=lambda value: abs(value - logits[i, i]), default=-np.inf)
            costs.append(max(0.0, margin + closest - logits[i, i]))
    return sum(costs) / len(logits)


def pmr_loops(
    scores: np.ndarray, positives: np.ndarray, temperature: float, omega: float, prior_axis: str
) -> float:
    total = 0.0
    for matrix, taken in ((scores, positives), (scores.T, positives.T)):
        along, across = np.exp(omega * matrix), np.exp(omega * matrix)
        along, across = (
            along / along.sum(axis=1, keepdims=True),
            across / across.sum(axis=0, keepdims=True),
        )
        revised = matrix * (across if prior_axis == "cross" else along) / temperature
        total -= np.mean(
            [revised[n, b] - math.log(np.exp(revised[n]).sum()) for n, b in zip(*np.nonzero(taken))]
        )
    return total


def random_batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Six pairs of four clips, in float64."""
    clips = torch.tensor([0, 1, 2, 0, 3, 1])
    return (
        torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (6, 6))),
        clips[:, None] == clips[None, :],
    )


def test_nt_xent_of_a_matrix_that_is_not_square_equals_loops():
    generator = np.random.default_rng(0)
    scores, positives = generator.uniform(-1, 1, (7, 4)), np.zeros((7, 4), dtype=bool)
    positives[np.arange(7), [0, 1, 1, 2, 3, 3, 0]] = True
    found = nt_xent(torch.from_numpy(scores), torch.from_numpy(positives), temperature=0.1)
    assert abs(found.item() - nt_xent_loops(scores, positives, 0.1)) < 1e-12


@pytest.mark.parametrize("margin", [0.3, 5.0])
def test_triplets_of_clips_that_occur_twice_equal_loops(margin: float):
    scores, positives = random_batch()
    assert (
        abs(
            triplet(scores, positives, 0.5, margin).item()
            - triplet_loops(scores.numpy(), positives.numpy(), 0.5, margin)
        )
        < 1e-12
    )


def test_a_batch_of_one_clip_has_no_triplets():
    scores = torch.rand(3, 3).requires_grad_()
    loss = triplet(scores, torch.ones(3, 3, dtype=torch.bool), 0.05, 1.0)
    loss.backward()
    assert loss.item() == 0 and scores.grad.abs().max() == 0


@pytest.mark.parametrize("prior_axis", ["cross", "same"])
def test_pmr_of_clips_that_occur_twice_equals_loops(prior_axis: str):
    scores, positives = random_batch()
    found = pmr(scores, positives, 0.1, 4.0, prior_axis)
    assert (
        abs(found.item() - pmr_loops(scores.numpy(), positives.numpy(), 0.1, 4.0, prior_axis))
        < 1e-12
    )


def test_the_cross_prior_lowers_a_pair_that_the_other_direction_disputes():
    scores = torch.tensor([[0.6, 0.0], [0.9, 0.5]]).requires_grad_()  # text 1 wants audio 0 as well
    cross = pmr(scores, torch.eye(2, dtype=torch.bool), 0.05, 10.0, "cross")
    same = pmr(scores, torch.eye(2, dtype=torch.bool), 0.05, 10.0, "same")
    assert cross.item() != pytest.approx(same.item(), rel=1e-2)


def test_sigmoid_and_soft_targets_equal_loops():
    scores, positives = random_batch()
    expected = -sum(
        math.log(
            1
            / (
                1
                + math.exp(
                    -(1 if positives[n, b] else -1)
                    * (scores[n, b].item() / 0.1 * math.exp(0.3) - 2)
                )
            )
        )
        for n in range(6)
        for b in range(6)
    )
    assert (
        abs(
            sigmoid(scores, positives, 0.1, torch.tensor(0.3), torch.tensor(-2.0)).item()
            - expected / 6
        )
        < 1e-5
    )
    similarity = random_batch(1)[0]
    total = 0.0
    for logits, relevance in (
        (scores.numpy() / 0.1, similarity.numpy()),
        (scores.numpy().T / 0.1, similarity.numpy().T),
    ):
        target = np.exp(1 / (1 + np.exp(2.73 - 4.58 * relevance)) / 0.05)
        target /= target.sum(axis=1, keepdims=True)
        total -= (
            0.5
            * (target * (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))))
            .sum(axis=1)
            .mean()
        )
    assert abs(listnet(scores, positives, 0.1, similarity).item() - total) < 1e-10


# --- what all have in common ---


GOLDEN_LOSSES = list(dict.fromkeys(loss for loss, _, _ in CASES.values()))


@pytest.mark.parametrize("name", GOLDEN_LOSSES)
def test_losses_compute_in_float32(name: str):
    _, positives, values = next(case for case in CASES.values() if case[0] == name)
    scores = scores_of(name).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(
            LOSSES[name](scores, positives, **values), LOSSES[name](scores, positives, **values)
        )
        in_autocast = LOSSES[name](scores, positives, **values)
    assert torch.equal(in_autocast, LOSSES[name](scores, positives, **values))
    assert LOSSES[name](scores.half(), positives, **values).dtype == torch.float32


@pytest.mark.parametrize("name", GOLDEN_LOSSES)
def test_losses_teach_a_learnable_temperature(name: str):
    _, positives, values = next(case for case in CASES.values() if case[0] == name)
    scores = scores_of(name).detach().double()
    values = {
        key: value.double() if isinstance(value, torch.Tensor) else value
        for key, value in values.items()
    }

    def at(temperature) -> torch.Tensor:
        return LOSSES[name](scores, positives, **(values | {"temperature": temperature}))

    temperature = torch.tensor(TEMPERATURE, dtype=torch.float64, requires_grad=True)
    at(temperature).backward()
    if name == "distillation":  # the teacher's share of the temperature is no part of the gradient
        values["teacher_scores"] = TEACHER.double() / TEMPERATURE
        original = values["teacher_scores"]

        def at(value):
            values["teacher_scores"] = original * value
            return LOSSES[name](scores, positives, **(values | {"temperature": value}))

    slope = (at(TEMPERATURE + 1e-6) - at(TEMPERATURE - 1e-6)) / 2e-6
    assert abs(temperature.grad.item() / slope.item() - 1) < 1e-4


def test_positives_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"one shape, found \(3, 4\) and \(4, 3\)"):
        nt_xent(torch.zeros(3, 4), torch.zeros(4, 3, dtype=torch.bool), 0.05)
    with pytest.raises(ValueError, match="3 texts and 4 audios"):
        info_nce(torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.bool), 0.05)


def test_the_settings_of_a_loss_are_its_arguments():
    assert arguments_of("triplet") == ["temperature", "margin"]


def test_an_unknown_loss_is_named():
    with pytest.raises(
        UserError,
        match="loss.name='nt_xnt' is unknown; there is: nt_xent, info_nce",
    ):
        check_loss("nt_xnt")
