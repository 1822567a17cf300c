"""Optimizers by name."""

import pytest
import torch
from torch import nn

from support.optim import OPTIMIZERS, hyper_parameters, make

CLASSES = {
    "sgd": torch.optim.SGD,
    "momentum": torch.optim.SGD,
    "nesterov": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "adadelta": torch.optim.Adadelta,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "amsgrad": torch.optim.Adam,
}


@pytest.mark.parametrize(("name", "kind"), CLASSES.items())
def test_make_builds_torchs_optimizer_with_the_given_step(name, kind):
    model = nn.Linear(3, 2)
    optimizer = make(name, model, lr=0.125)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert group["lr"] == 0.125
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", {"momentum": 0, "nesterov": False, "weight_decay": 0}),
        ("momentum", {"momentum": 0.9, "nesterov": False}),
        ("nesterov", {"momentum": 0.9, "nesterov": True}),
        ("adam", {"amsgrad": False, "weight_decay": 0}),
        ("amsgrad", {"amsgrad": True}),
    ],
)
def test_names_of_variants_set_what_they_say(name, expected):
    (group,) = make(name, nn.Linear(3, 2), lr=0.1).param_groups
    assert {key: group[key] for key in expected} == expected


def test_hyper_parameters_reach_the_optimizer_over_the_variants_own():
    (group,) = make(
        "momentum", nn.Linear(3, 2), lr=0.1, momentum=0.5, weight_decay=1e-3
    ).param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.5, 1e-3)


def test_an_unknown_name_is_refused_with_the_list_of_names():
    with pytest.raises(ValueError, match="no optimizer is called 'sdg'") as caught:
        make("sdg", nn.Linear(3, 2), lr=0.1)
    listed = str(caught.value).partition("there are ")[2].split(", ")
    assert set(CLASSES) <= set(listed)
    assert listed == sorted(OPTIMIZERS)


@pytest.mark.parametrize(
    ("name", "right"),
    [("adam", "betas"), ("nesterov", "momentum"), ("sgd", "weight_decay")],
)
def test_an_unknown_hyper_parameter_is_refused_with_the_list_of_the_right_ones(name, right):
    with pytest.raises(
        ValueError, match=f"{name} has no hyper-parameter 'learning_rate'"
    ) as caught:
        make(name, nn.Linear(3, 2), learning_rate=0.1)
    listed = str(caught.value).partition("it has ")[2].split(", ")
    assert {"lr", right} <= set(listed)
    assert "params" not in listed


@pytest.mark.parametrize("name", CLASSES)
def test_every_listed_hyper_parameter_is_taken_by_the_constructor(name):
    model = nn.Linear(3, 2)
    (group,) = make(name, model, lr=0.1).param_groups
    known = hyper_parameters(OPTIMIZERS[name])
    defaults = {argument: group[argument] for argument in known if argument in group}
    assert make(name, model, **defaults).param_groups == [group]
