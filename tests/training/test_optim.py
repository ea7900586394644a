"""Learning rates against golden numbers of the reference; parameter groups."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from retrieval.config import ScheduleConfig
from retrieval.training.optim import learning_rate, parameter_groups, set_learning_rates

GOLDEN = np.load(Path(__file__).resolve().parents[1] / "golden" / "lr.npz")
DEFAULT = ScheduleConfig().model_dump()
RATES = {
    "audio_encoder": 4e-6,
    "text_encoder": 2e-5,
    "audio_projection": 3e-5,
    "text_projection": 4e-5,
    "pooling": 5e-5,
}


class Model(nn.Module):
    """The parts of a DualEncoder, in small."""

    def __init__(self, pooling: bool = True):
        super().__init__()
        self.audio_encoder = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.text_encoder = nn.Linear(2, 2)
        self.audio_projection = nn.Linear(2, 2)
        self.text_projection = nn.Linear(2, 2)
        self.pooling = nn.Linear(2, 2) if pooling else nn.Identity()
        self.temperature = nn.Parameter(torch.tensor(0.05))


# --- schedule ---


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cosine", {}),
        ("linear", {"shape": "linear"}),
        ("step_2_0.5", {"shape": "step", "step_epochs": 2, "step_factor": 0.5}),
        ("cosine.rampdown_stop_0", {"rampdown_stop": 20}),
        ("cosine.warm3_start5", {"warmup_epochs": 3, "rampdown_start": 5}),
    ],
)
def test_learning_rates_equal_the_reference(name: str, settings: dict):
    found = [
        [learning_rate(epoch, base, **(DEFAULT | settings)) for base in GOLDEN["base_lrs"]]
        for epoch in GOLDEN["epochs"]
    ]
    np.testing.assert_allclose(found, GOLDEN[name], rtol=1e-9, atol=0)
    others = [other for other in ("cosine", "linear", "step_2_0.5") if other != name]
    # negative control
    assert all(not np.allclose(found, GOLDEN[other], rtol=1e-3, atol=0) for other in others)


def test_learning_rate_at_every_step_equals_the_reference():
    for probe, golden in zip(GOLDEN["step.probe"], GOLDEN["step.lr_tap_soft"]):
        epoch = probe[0] + probe[1] / 1200
        found = [learning_rate(epoch, base, **DEFAULT) for base in (4e-6, 2e-5, 2e-5, 2e-5, 3e-5)]
        np.testing.assert_allclose(found, golden, rtol=1e-9, atol=0)


def test_base_below_the_minimum_stays():
    assert learning_rate(10.0, 0.0, **DEFAULT) == 0.0
    assert learning_rate(18.0, 5e-8, **DEFAULT) == 5e-8


def test_no_warmup_starts_at_the_base():
    assert learning_rate(0.0, 2e-5, **(DEFAULT | {"warmup_epochs": 0})) == 2e-5


def test_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="cosine, linear or step, found 'exp'"):
        learning_rate(2.0, 2e-5, **(DEFAULT | {"shape": "exp"}))


def test_set_learning_rates_sets_every_group():
    optimizer = torch.optim.AdamW(parameter_groups(Model(), RATES))
    for epoch in (0.5, 1.0, 7.25):  # from base_lr each time, not from the rate of the step before
        set_learning_rates(optimizer, epoch, DEFAULT)
        assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {
            name: learning_rate(epoch, rate, **DEFAULT) for name, rate in RATES.items()
        }


# --- groups ---


def test_each_trainable_parameter_is_in_one_group():
    model = Model()
    model.text_projection.bias.requires_grad_(False)
    groups = parameter_groups(model, RATES)
    assert [(group["name"], group["lr"], group["base_lr"]) for group in groups] == [
        (name, rate, rate) for name, rate in RATES.items()
    ]
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert {
        group["name"]: [names[parameter] for parameter in group["params"]] for group in groups
    } == {
        "audio_encoder": [
            "audio_encoder.0.weight",
            "audio_encoder.0.bias",
            "audio_encoder.1.weight",
            "audio_encoder.1.bias",
        ],
        "text_encoder": ["text_encoder.weight", "text_encoder.bias"],
        "audio_projection": ["temperature", "audio_projection.weight", "audio_projection.bias"],
        "text_projection": ["text_projection.weight"],
        "pooling": ["pooling.weight", "pooling.bias"],
    }


def test_groups_without_parameters_are_left_out():
    assert [group["name"] for group in parameter_groups(Model(pooling=False), RATES)] == list(
        RATES
    )[:4]


def test_weights_shared_within_a_group_are_listed_once():
    model = Model()
    model.audio_encoder[1].weight = model.audio_encoder[0].weight
    assert len(parameter_groups(model, RATES)[0]["params"]) == 3


def test_parameter_in_no_group_is_named():
    model = Model()
    model.adapter = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="adapter.weight is in no group"):
        parameter_groups(model, RATES)


def test_parameter_in_two_groups_is_named():
    model = Model()
    model.text_projection.weight = model.audio_projection.weight
    with pytest.raises(ValueError, match="text_projection.weight.*audio_projection.weight"):
        parameter_groups(model, RATES)


def test_group_without_a_learning_rate_is_named():
    with pytest.raises(ValueError, match="pooling.weight.*learning rate"):
        parameter_groups(Model(), {name: rate for name, rate in RATES.items() if name != "pooling"})
