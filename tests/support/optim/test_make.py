"""Optimizers by name."""

from functools import partial

import pytest
import torch
from torch import nn

from support.optim import (
    KFAC,
    OPTIMIZERS,
    SAM,
    AdaptiveClipping,
    ClippedSGD,
    ClippedSSTM,
    GradientNoise,
    Lion,
    Shampoo,
    hyper_parameters,
    make,
)

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
    "adamax": torch.optim.Adamax,
    "radam": torch.optim.RAdam,
    "asgd": torch.optim.ASGD,
    "rprop": torch.optim.Rprop,
    "adafactor": torch.optim.Adafactor,
    "clipped_sgd": ClippedSGD,
    "clipped_sstm": ClippedSSTM,
    "lion": Lion,
    "shampoo": Shampoo,
    "kfac": KFAC,
}
NEEDED = {"clipped_sgd": {"level": 2.0}, "clipped_sstm": {"L": 5.0, "B": 0.5}}
WRAPPERS = {
    "sam": SAM,
    "asam": SAM,
    "adaptive_clipping": AdaptiveClipping,
    "gradient_noise": GradientNoise,
}


def test_these_are_all_names():
    assert OPTIMIZERS.keys() == CLASSES.keys() | WRAPPERS.keys()


@pytest.mark.parametrize(("name", "kind"), CLASSES.items())
def test_make_builds_the_optimizer_of_this_name_with_the_given_step(name, kind):
    model = nn.Linear(3, 2)
    optimizer = make(name, model, lr=0.125, **NEEDED.get(name, {}))
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
        ("sam", {"adaptive": False, "momentum": 0}),
        ("asam", {"adaptive": True, "momentum": 0}),
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
    assert set(CLASSES) | set(WRAPPERS) == set(listed)
    assert listed == sorted(OPTIMIZERS)


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("adam", "betas"),
        ("nesterov", "momentum"),
        ("sgd", "weight_decay"),
        ("clipped_sstm", "B"),
        ("kfac", "damping"),
        ("sam", "rho"),
        ("asam", "eta"),
        ("adaptive_clipping", "unit"),
        ("gradient_noise", "base"),
    ],
)
def test_an_unknown_hyper_parameter_is_refused_with_the_list_of_the_right_ones(name, right):
    with pytest.raises(
        ValueError, match=f"{name} has no hyper-parameter 'learning_rate'"
    ) as caught:
        make(name, nn.Linear(3, 2), learning_rate=0.1)
    listed = str(caught.value).partition("it has ")[2].split(", ")
    assert {"lr", right} <= set(listed)
    assert listed[0] not in {"params", "model", "optimizer"}


@pytest.mark.parametrize("name", CLASSES)
def test_every_listed_hyper_parameter_is_taken_by_the_constructor(name):
    model = nn.Linear(3, 2)
    (group,) = make(name, model, lr=0.1, **NEEDED.get(name, {})).param_groups
    known = hyper_parameters(OPTIMIZERS[name])
    assert "lr" in known
    defaults = {a: group[a] for a in known if a in group and a != "params"}
    assert make(name, model, **defaults).param_groups == [group]


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("base", [None, *CLASSES])
def test_a_wrapper_wraps_the_named_optimizer(name, base):
    model = nn.Linear(3, 2)
    hyper = {"lr": 0.125, **NEEDED.get(base, {})} | ({"base": base} if base else {})
    optimizer = make(name, model, **hyper)
    assert type(optimizer) is WRAPPERS[name]
    assert type(optimizer.optimizer) is (CLASSES[base] if base else torch.optim.SGD)
    (group,) = optimizer.param_groups
    assert group["lr"] == 0.125
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


def test_a_wrapper_takes_the_hyper_parameters_of_both():
    sam = make("sam", nn.Linear(3, 2), base="adam", lr=0.1, rho=0.3, betas=(0.5, 0.6))
    (group,) = sam.param_groups
    assert (group["lr"], group["rho"], group["betas"]) == (0.1, 0.3, (0.5, 0.6))
    hyper = {"base": "nesterov", "lr": 0.1, "ratio": 0.2, "unit": "layer"}
    (group,) = make("adaptive_clipping", nn.Linear(3, 2), **hyper).param_groups
    assert (group["momentum"], group["nesterov"]) == (0.9, True)
    assert (group["ratio"], group["unit"]) == (0.2, "layer")
    noises = []
    for seed in (3, 3, 4):
        model = nn.Linear(3, 2)
        optimizer = make("gradient_noise", model, lr=0.1, eta=5.0, seed=seed)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        noises.append(model.weight.grad)
    assert torch.equal(noises[0], noises[1])
    assert not torch.equal(noises[0], noises[2])
    assert noises[0].abs().max() > 1


def test_a_wrapper_lists_the_hyper_parameters_of_its_base():
    with pytest.raises(ValueError, match="sam has no hyper-parameter 'momentum'") as caught:
        make("sam", nn.Linear(3, 2), base="adam", lr=0.1, momentum=0.9)
    listed = str(caught.value).partition("it has ")[2].split(", ")
    assert {"base", "rho", "adaptive", "eta", "lr", "betas"} <= set(listed)
    with pytest.raises(
        ValueError, match="asam has no hyper-parameter 'adaptive'"
    ) as caught:
        make("asam", nn.Linear(3, 2), lr=0.1, adaptive=False)
    listed = str(caught.value).partition("it has ")[2].split(", ")
    assert {"base", "rho", "eta", "lr", "momentum"} <= set(listed)
    assert "adaptive" not in listed


@pytest.mark.parametrize("name", WRAPPERS)
def test_an_unknown_base_is_refused_with_the_list_of_names(name):
    with pytest.raises(ValueError, match="no optimizer is called 'sdg'") as caught:
        make(name, nn.Linear(3, 2), base="sdg", lr=0.1)
    listed = str(caught.value).partition("there are ")[2].split(", ")
    assert set(CLASSES) <= set(listed)


def test_a_wrapper_may_be_the_base_of_another_around_sgd():
    hyper = {"lr": 0.1, "rho": 0.3, "ratio": 0.2, "momentum": 0.5}
    sam = make("sam", nn.Linear(3, 2), base="adaptive_clipping", **hyper)
    assert type(sam.optimizer) is AdaptiveClipping
    assert type(sam.optimizer.optimizer) is torch.optim.SGD
    (group,) = sam.param_groups
    assert {key: group[key] for key in hyper} == hyper


def test_only_wrappers_take_a_base():
    with pytest.raises(ValueError, match="adam has no hyper-parameter 'base'"):
        make("adam", nn.Linear(3, 2), base="sgd", lr=0.1)


class Own(torch.optim.SGD):
    """A reader's own method."""

    def __init__(self, params, lr: float, courage: float = 1.0) -> None:
        super().__init__(params, lr=lr * courage)


def test_a_readers_own_mapping_is_used_and_listed():
    mapping = {"mine": Own, "bold": partial(Own, courage=3.0)}
    (group,) = make("bold", nn.Linear(3, 2), mapping, lr=0.5).param_groups
    assert group["lr"] == 1.5
    with pytest.raises(
        ValueError, match="no optimizer is called 'sgd'; there are bold, mine"
    ):
        make("sgd", nn.Linear(3, 2), mapping, lr=0.5)
    with pytest.raises(ValueError, match="it has lr, courage"):
        make("mine", nn.Linear(3, 2), mapping, lr=0.5, fear=1.0)


def test_a_base_is_looked_up_in_the_readers_own_mapping():
    mapping = {**OPTIMIZERS, "mine": Own}
    optimizer = make("sam", nn.Linear(3, 2), mapping, base="mine", lr=0.5, courage=2.0)
    assert type(optimizer.optimizer) is Own
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_a_constructor_that_asks_for_the_model_gets_it():
    model, seen = nn.Linear(3, 2), []

    def build(model, lr):
        seen.append(model)
        return torch.optim.SGD(model.parameters(), lr=lr)

    make("whole", model, {"whole": build}, lr=0.1)
    assert seen == [model]
