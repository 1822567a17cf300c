"""Wrong arguments, parameters, gradients and calls are refused by name and value, and change nothing."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from support.optim import (
    KFAC,
    SAM,
    AdaptiveClipping,
    ClippedSGD,
    ClippedSSTM,
    GradientNoise,
    Lion,
    Shampoo,
)

pytestmark = pytest.mark.usefixtures("untouched_random_state")

# --- the table ------------------------------------------------------------------------------------------------

RATE = [-1.0, -1e-300, math.nan, math.inf, "0.1", None]  # allowed: 0 and more
POSITIVE = [0, 0.0, -1.0, -math.inf, math.nan, "1", None]
SHARE = [1.0, 1, 1.5, -0.1, math.nan, None]  # allowed: [0, 1)
COUNT = [0, -1, 1.5, math.nan, "3"]
BETAS = [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, -0.1), (math.nan, 0.9), (0.9, 2)]
BETAS += [(0.9,), (0.9, 0.99, 0.999), 0.9, None]

RIGHT = {  # constructor, arguments that it needs
    "ClippedSGD": (ClippedSGD, {"lr": 0.1, "level": 1.0}),
    "ClippedSSTM": (ClippedSSTM, {"L": 1.0, "B": 1.0}),
    "Lion": (Lion, {}),
    "Shampoo": (Shampoo, {}),
    "KFAC": (KFAC, {"lr": 0.1}),
    "SAM": (SAM, {}),
    "AdaptiveClipping": (AdaptiveClipping, {}),
    "GradientNoise": (GradientNoise, {}),
}
WRONG = {
    "ClippedSGD": {
        "lr": RATE,
        "level": POSITIVE,
        "clip": ["global", "", None, 2],
        "momentum": SHARE,
        "weight_decay": RATE,
    },
    "ClippedSSTM": {
        "L": [*POSITIVE, math.inf],
        "B": POSITIVE,
        "a": [*POSITIVE, math.inf],
        "lr": RATE,
        "clip": ["global", None],
    },
    "Lion": {"lr": RATE, "betas": BETAS, "weight_decay": RATE},
    "Shampoo": {
        "lr": RATE,
        "eps": POSITIVE,
        "momentum": SHARE,
        "weight_decay": RATE,
        "interval": [*COUNT, None],
        "block": [*COUNT, None],
        "graft": ["adam", "none", False],
    },
    "KFAC": {
        "lr": RATE,
        "damping": POSITIVE,
        "loss": ["l1", "cross_entropy", None],
        "fisher": ["true", "type2", None],
        "sharing": ["both", None],
        "momentum": SHARE,
        "weight_decay": RATE,
        "decay": SHARE,
        "factor_interval": [*COUNT, None],
        "inverse_interval": [*COUNT, None],
        "norm_constraint": [0, -1.0, math.nan, "1"],
        "rows": COUNT,
        "unknown": ["skip", None],
    },
    "SAM": {"rho": RATE, "eta": RATE},
    "AdaptiveClipping": {
        "ratio": POSITIVE,
        "floor": POSITIVE,
        "unit": ["row", "norm", None],
    },
    "GradientNoise": {"eta": RATE, "gamma": RATE},
}
CASES = [
    pytest.param(name, argument, value, id=f"{name} {argument}={value!r}")
    for name, arguments in WRONG.items()
    for argument, values in arguments.items()
    for value in values
]
WRAPPERS = ["SAM", "AdaptiveClipping", "GradientNoise"]
every_method = pytest.mark.parametrize("name", RIGHT)


def network():
    return nn.Sequential(
        nn.utils.skip_init(nn.Linear, 3, 2), nn.utils.skip_init(nn.Linear, 2, 2)
    )


def build(name, net, params=None, base=torch.optim.SGD, **hyper):
    constructor, needed = RIGHT[name]
    hyper = needed | hyper
    if name == "KFAC":
        return KFAC(net, params=params, **({"unknown": "ignore"} | hyper))
    params = list(net.parameters()) if params is None else params
    return constructor(base(params, lr=0.1) if name in WRAPPERS else params, **hyper)


def naming(argument, value):
    """Return what the message must contain: the argument, and the value or the wrong part of it."""
    if isinstance(value, tuple) and len(value) == 2:
        (value,) = (part for part in value if not 0 <= part < 1)
    return rf"\b{argument}\b.*{re.escape(repr(value))}"


@pytest.mark.parametrize(("name", "argument", "value"), CASES)
def test_a_wrong_argument_is_named_with_its_value(name, argument, value):
    with pytest.raises(ValueError, match=naming(argument, value)):
        build(name, network(), **{argument: value})


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (name, argument)
        for name, arguments in WRONG.items()
        for argument in arguments
        if name
        != "GradientNoise"  # whose hyper-parameters, like most of KFAC's, hold for all
        and (name != "KFAC" or argument in {"lr", "momentum", "weight_decay"})
    ],
)
def test_a_wrong_value_in_a_group_is_refused_as_well(name, argument):
    for value in WRONG[name][argument]:
        net = network()
        first, second = net
        groups = [
            {"params": first.parameters()},
            {"params": list(second.parameters()), argument: value},
        ]
        with pytest.raises(ValueError, match=naming(argument, value)):
            build(name, net, groups)
        optimizer = build(name, net, list(first.parameters()))
        with pytest.raises(ValueError, match=naming(argument, value)):
            optimizer.add_param_group(
                {"params": list(second.parameters()), argument: value}
            )
        assert len(optimizer.param_groups) == 1
        optimizer.add_param_group({"params": list(second.parameters())})
        assert optimizer.param_groups[1].keys() == optimizer.param_groups[0].keys()


def test_the_right_ends_of_the_intervals_are_taken():
    net = network()
    for name, hyper in [
        ("ClippedSGD", {"lr": 0, "level": math.inf, "momentum": 0, "weight_decay": 0}),
        ("ClippedSSTM", {"B": math.inf, "lr": 0, "L": 1, "a": 1}),
        ("Lion", {"lr": 0, "betas": [0, 0], "weight_decay": 0}),
        ("Shampoo", {"lr": 0, "interval": 1, "block": 1}),
        ("KFAC", {"lr": 0, "decay": 0, "rows": 1, "factor_interval": 1}),
        ("SAM", {"rho": 0, "eta": 0}),
        ("AdaptiveClipping", {"ratio": math.inf}),
        ("GradientNoise", {"eta": 0, "gamma": 0}),
    ]:
        build(name, net, **hyper)


def test_nesterov_needs_momentum():
    net = network()
    p = list(net.parameters())
    with pytest.raises(ValueError, match=r"nesterov.*momentum.*0"):
        ClippedSGD(p, 0.1, 1.0, nesterov=True)
    with pytest.raises(ValueError, match=r"nesterov.*momentum.*0"):
        ClippedSGD([{"params": p, "nesterov": True}], 0.1, 1.0)
    optimizer = ClippedSGD(p[:2], 0.1, 1.0)
    with pytest.raises(ValueError, match=r"nesterov.*momentum.*0"):
        optimizer.add_param_group({"params": p[2:], "nesterov": True})
    optimizer.add_param_group({"params": p[2:], "nesterov": True, "momentum": 0.9})


# --- parameters and gradients ---------------------------------------------------------------------------------


@every_method
def test_complex_parameters_are_refused(name):
    net = network()
    net[1].weight = nn.Parameter(torch.ones(2, 2, dtype=torch.cfloat))
    with pytest.raises(ValueError, match=r"real.*complex64"):
        build(name, net)
    optimizer = build(name, net, list(net[0].parameters()))
    with pytest.raises(ValueError, match=r"real.*complex64"):
        optimizer.add_param_group({"params": list(net[1].parameters())})
    assert len(optimizer.param_groups) == 1


@every_method
def test_no_parameters_are_refused(name):
    with pytest.raises(ValueError, match="empty"):
        build(name, network(), [])


@every_method
def test_a_parameter_may_be_in_one_group_only(name):
    net = network()
    with pytest.raises(ValueError, match="more than one"):
        build(name, net, [{"params": net[0].parameters()}, {"params": net.parameters()}])
    optimizer = build(name, net, list(net[0].parameters()))
    with pytest.raises(ValueError, match="more than one"):
        optimizer.add_param_group({"params": list(net.parameters())})
    assert len(optimizer.param_groups) == 1


@every_method
def test_sparse_gradients_are_refused_and_nothing_has_moved(name):
    weight = torch.arange(8.0).reshape(4, 2)
    net = nn.Sequential(
        nn.Embedding.from_pretrained(weight.clone(), freeze=False, sparse=True),
        nn.utils.skip_init(nn.Linear, 2, 2),
    )
    nn.init.ones_(net[1].weight)
    nn.init.ones_(net[1].bias)
    optimizer = build(name, net)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(net(torch.tensor([0, 2])), torch.tensor([0, 1]))
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step(closure)
    assert torch.equal(net[0].weight, weight)
    assert torch.equal(net[1].weight, torch.ones(2, 2))
    assert torch.equal(net[1].bias, torch.ones(2))


# --- wrong calls ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda sgd: SAM(sgd),
        lambda sgd: SAM(sgd, adaptive=True),
        lambda sgd: AdaptiveClipping(SAM(sgd)),
        lambda sgd: SAM(GradientNoise(SAM(sgd))),
    ],
)
def test_sam_needs_a_closure(wrap):
    net = network()
    for p in net.parameters():
        nn.init.ones_(p)
        p.grad = torch.ones_like(p)
    optimizer = wrap(torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(RuntimeError, match=r"SAM.*closure.*None"):
        optimizer.step()
    assert all((p == 1).all() for p in net.parameters())


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize(
    "wrong", [None, "sgd", torch.optim.SGD, [torch.ones(2, requires_grad=True)]], ids=str
)
def test_a_wrapper_wraps_optimizers_only(name, wrong):
    with pytest.raises(TypeError, match=rf"Optimizer.*{re.escape(repr(wrong))}"):
        RIGHT[name][0](wrong)


def test_a_wrapper_of_a_model_is_refused():
    with pytest.raises(TypeError, match=r"Optimizer.*Sequential"):
        SAM(network())


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_loads_no_state_without_an_entry_for_it(name):
    net = network()
    optimizer = build(name, net)
    optimizer.param_groups[0]["lr"] = 0.25
    bare = torch.optim.SGD(net.parameters(), lr=0.1).state_dict()
    with pytest.raises(ValueError, match=rf"state_dict.*{name}"):
        optimizer.load_state_dict(bare)
    twice = build(name, net)
    outer = AdaptiveClipping(twice)
    with pytest.raises(ValueError, match="state_dict"):
        outer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_loads_no_state_of_more_wrappers_than_there_are(name):
    net = network()
    state = GradientNoise(build(name, net)).state_dict()
    with pytest.raises(ValueError, match="state_dict"):
        build(name, net).load_state_dict(state)


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        ("AdaptiveClipping", "GradientNoise"),
        ("GradientNoise", "SAM"),
        ("SAM", "AdaptiveClipping"),
    ],
)
def test_a_wrapper_loads_no_state_of_another_kind(saved, loaded):
    net = network()
    state = build(saved, net).state_dict()
    with pytest.raises(ValueError, match=rf"state_dict.*{loaded}"):
        build(loaded, net).load_state_dict(state)


@every_method
def test_a_state_of_other_groups_is_refused(name):
    net = network()
    state = build(name, net, [{"params": m.parameters()} for m in net]).state_dict()
    with pytest.raises(ValueError, match="different number"):
        build(name, net).load_state_dict(state)


class Two(nn.Module):
    """A network with two outputs."""

    def __init__(self, kind):
        super().__init__()
        self.inner, self.kind = network(), kind

    def forward(self, x):
        return self.kind((self.inner(x), self.inner(x)))


@pytest.mark.parametrize("kind", [tuple, list, lambda pair: {"logits": pair[0]}])
def test_kfac_needs_a_network_with_one_output(kind):
    net = Two(kind)
    optimizer = build("KFAC", net)
    assert not optimizer.unknown
    with pytest.raises(TypeError, match=r"one tensor; got (tuple|list|dict)"):
        net(torch.ones(1, 3))


def test_kfac_needs_a_forward_pass_with_gradients_before_a_step():
    net = network()
    optimizer = build("KFAC", net, factor_interval=2)
    for p in net.parameters():
        nn.init.ones_(p)
        p.grad = torch.zeros_like(p)
    with pytest.raises(RuntimeError, match="forward pass"):
        optimizer.step()
    with torch.no_grad():
        net(torch.ones(1, 3))
    with pytest.raises(RuntimeError, match="forward pass"):
        optimizer.step()
    net(torch.ones(1, 3))
    optimizer.step()
    optimizer.step()  # no factors are due


def test_kfac_names_the_layers_that_it_does_not_know():
    net = nn.Sequential(network(), nn.LayerNorm(2))
    with pytest.raises(ValueError, match=r"1\.weight.*1\.bias"):
        build("KFAC", net, unknown="raise")
    with pytest.warns(UserWarning, match=r"1\.weight.*1\.bias") as caught:
        build("KFAC", net, unknown="warn")
    assert len(caught) == 1


def test_kfac_steps_parameters_of_its_model_only():
    with pytest.raises(ValueError, match="params must be parameters of the model"):
        KFAC(network(), 0.1, params=[torch.ones(2, requires_grad=True)], unknown="ignore")
