"""What holds for every optimizer of support.optim at once, by following it on one small network."""

import contextlib
import copy
import functools
import io
import itertools
import math
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

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

# --- the methods ----------------------------------------------------------------------------------------------


def sgd(p, lr=0.2, momentum=0.9):
    return torch.optim.SGD(p, lr=lr, momentum=momentum)


def kfac(net, p, **hyper):
    return KFAC(net, 0.05, damping=0.05, params=p, unknown="ignore", **hyper)


METHODS = {
    "ClippedSGD": lambda net, p: ClippedSGD(p, 0.2, 0.5),
    "ClippedSGD layer": lambda net, p: ClippedSGD(
        p, 0.2, 0.2, clip="layer", momentum=0.9, weight_decay=0.02
    ),
    "ClippedSGD coordinate": lambda net, p: ClippedSGD(
        p, 0.2, 0.05, clip="coordinate", momentum=0.9, nesterov=True, average=True
    ),
    "ClippedSGD velocity": lambda net, p: ClippedSGD(
        p, 0.2, 0.5, momentum=0.9, weight_decay=0.02, clip_momentum=True
    ),
    "ClippedSSTM": lambda net, p: ClippedSSTM(p, L=3.0, B=0.2),
    "ClippedSSTM layer": lambda net, p: ClippedSSTM(p, L=3.0, B=0.1, a=2.0, clip="layer"),
    "ClippedSSTM coordinate": lambda net, p: ClippedSSTM(
        p, L=3.0, B=0.02, clip="coordinate"
    ),
    "ClippedSSTM unclipped": lambda net, p: ClippedSSTM(p, L=3.0, B=math.inf),
    "Lion": lambda net, p: Lion(p, lr=0.02, weight_decay=0.1),
    "Shampoo": lambda net, p: Shampoo(p, lr=0.1, momentum=0.5),
    "Shampoo blocks": lambda net, p: Shampoo(p, weight_decay=0.02, interval=3, block=2),
    "Shampoo sgd": lambda net, p: Shampoo(p, interval=2, graft="sgd"),
    "Shampoo adagrad": lambda net, p: Shampoo(p, graft="adagrad"),
    "KFAC": lambda net, p: kfac(
        net, p, momentum=0.9, weight_decay=0.02, factor_interval=2, inverse_interval=3
    ),
    "KFAC type-2": lambda net, p: kfac(
        net, p, fisher="type-2", sharing="reduce", norm_constraint=1e-4
    ),
    "KFAC empirical": lambda net, p: kfac(net, p, fisher="empirical", inverse_interval=1),
    "KFAC rows": lambda net, p: kfac(net, p, rows=3),
    "SAM": lambda net, p: SAM(sgd(p), rho=0.3),
    "ASAM": lambda net, p: SAM(sgd(p), rho=0.5, adaptive=True),
    "AdaptiveClipping": lambda net, p: AdaptiveClipping(sgd(p), ratio=0.1),
    "AdaptiveClipping layer": lambda net, p: AdaptiveClipping(
        sgd(p), ratio=0.1, unit="layer"
    ),
    "AdaptiveClipping element": lambda net, p: AdaptiveClipping(
        sgd(p), ratio=0.1, unit="element"
    ),
    "GradientNoise": lambda net, p: GradientNoise(sgd(p)),
    "SAM of AdaptiveClipping": lambda net, p: SAM(
        AdaptiveClipping(torch.optim.Adam(p, lr=0.02), ratio=0.1)
    ),
    "AdaptiveClipping of SAM of Lion": lambda net, p: AdaptiveClipping(
        SAM(Lion(p, lr=0.02), rho=0.3), ratio=0.1
    ),
    "GradientNoise of SAM of ClippedSSTM": lambda net, p: GradientNoise(
        SAM(ClippedSSTM(p, L=3.0, B=0.2)), eta=0.01
    ),
    "SAM of GradientNoise of KFAC": lambda net, p: SAM(
        GradientNoise(kfac(net, p, momentum=0.5), eta=1e-4), rho=0.1
    ),
    "ASAM of Shampoo": lambda net, p: SAM(Shampoo(p), rho=0.5, adaptive=True),
}
WRAPPED = [
    name for name in METHODS if "SAM" in name or "AdaptiveC" in name or "Noi" in name
]
OWN = [name for name in METHODS if name not in WRAPPED]  # those that leave p.grad alone
SAMS = [name for name in METHODS if "SAM" in name]
NOISY = [name for name in METHODS if "GradientNoise" in name]
every_method = pytest.mark.parametrize("name", METHODS)

# --- following one --------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Parameters of the orders 0 to 4, of one entry and of none, and layers that K-FAC knows."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 2)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.shift = nn.Parameter(torch.tensor([0.5]))
        self.gate = nn.Parameter(torch.randn(3, 2, 2))
        self.nothing = nn.Parameter(torch.empty(0))
        self.no_rows = nn.Parameter(torch.empty(0, 3))
        self.linear = nn.Linear(12, 3)

    def forward(self, x):
        hidden = torch.tanh(self.scale * self.gate * self.conv(x) + self.shift).flatten(1)
        lone = self.nothing.sum() + self.no_rows.sum()
        return self.linear(hidden.to(self.linear.weight.dtype)) + lone


def network(dtype=torch.double):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Net().to(dtype)


STEPS = 7
SIZE = len(list(network().parameters()))
generator = torch.Generator().manual_seed(1)
X = 2 * torch.randn(STEPS, 5, 2, 3, 3, generator=generator, dtype=torch.double)
Y = torch.randint(3, (STEPS, 5), generator=generator)


def point(net):
    return torch.cat([p.detach().double().flatten() for p in net.parameters()])


def gradient(net, k):
    """Put the gradient of step k into the parameters and return the loss."""
    loss = F.cross_entropy(net(X[k].to(net.conv.weight.dtype)), Y[k])
    loss.backward()
    return loss


def follow(net, optimizer, steps=range(STEPS), change=None):
    """Return the points after each step; ``change(net, k)`` may change the gradients first."""
    path = []
    for k in steps:

        def closure(k=k):
            optimizer.zero_grad()
            loss = gradient(net, k)
            if change:
                change(net, k)
            return loss

        optimizer.step(closure)
        path.append(point(net))
    return path


def build(name, net, params=None):
    return METHODS[name](net, list(net.parameters()) if params is None else params)


@functools.cache
def path_of(name, dtype=torch.double):
    net = network(dtype)
    path = follow(net, build(name, net))
    assert all(p.isfinite().all() for p in path)
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(path))
    return path


def assert_same(path, other, tolerance=0.0):
    assert len(path) == len(other)
    for k, (a, b) in enumerate(zip(path, other, strict=True)):
        assert (a - b).abs().max() <= tolerance, f"step {k + 1} from the start of the path"


def saved(state):
    """Return a state as it comes back from a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def names(net):
    """Return the place of each parameter in the points, by name."""
    ends = itertools.accumulate((p.numel() for p in net.parameters()), initial=0)
    spans = [slice(a, b) for a, b in itertools.pairwise(ends)]
    return dict(zip((name for name, _ in net.named_parameters()), spans, strict=True))


PLACES = names(network())

# --- order and groups -----------------------------------------------------------------------------------------


@st.composite
def arrangements(draw):
    """Draw an order of the parameters, cut into groups."""
    order = draw(st.permutations(range(SIZE)))
    cuts = [0, *sorted(draw(st.sets(st.integers(1, SIZE - 1)))), SIZE]
    return [order[a:b] for a, b in itertools.pairwise(cuts)]


@pytest.mark.parametrize("name", [name for name in METHODS if name not in NOISY])
@settings(max_examples=8)
@given(arrangement=arrangements())
def test_neither_order_nor_groups_of_the_parameters_matter(name, arrangement):
    net = network()
    p = list(net.parameters())
    groups = [{"params": [p[i] for i in group]} for group in arrangement]
    assert_same(follow(net, build(name, net, groups)), path_of(name), 1e-12)


@every_method
def test_named_parameters_are_taken(name):
    net = network()
    assert_same(follow(net, build(name, net, net.named_parameters())), path_of(name))


@pytest.mark.parametrize("name", [name for name in METHODS if "KFAC" not in name])
def test_a_group_may_mix_types(name):
    def mixed():
        net = network()
        net.linear.to(torch.bfloat16)
        net.gate.data = net.gate.data.float()
        return net

    net = mixed()
    path = follow(net, build(name, net))
    assert all(p.isfinite().all() for p in path)
    assert not torch.equal(path[0], path[-1])
    if name not in NOISY:
        net = mixed()
        by_type = {}
        for p in net.parameters():
            by_type.setdefault(p.dtype, []).append(p)
        groups = [{"params": params} for params in by_type.values()]
        # the forward pass is in single precision: a last digit may grow to one of bfloat16
        assert_same(follow(net, build(name, net, groups)), path, 0.02)


# --- copies and restarts --------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("dtype", [torch.double, torch.float, torch.bfloat16], ids=str)
@settings(max_examples=6)
@given(restarts=st.sets(st.integers(0, STEPS - 1), min_size=1))
def test_a_restart_from_a_saved_state_gives_the_same_path(name, dtype, restarts):
    net = network(dtype)
    optimizer = build(name, net)
    path = []
    for k in range(STEPS):
        if k in restarts:
            weights, state = saved((net.state_dict(), optimizer.state_dict()))
            net = network(dtype)
            net.load_state_dict(weights)
            optimizer = build(name, net)
            optimizer.load_state_dict(state)
        path += follow(net, optimizer, [k])
    assert_same(path, path_of(name, dtype))


@pytest.mark.parametrize("name", OWN)  # torch's own share the tensors
def test_a_loaded_state_shares_nothing_with_the_one_it_comes_from(name):
    net, other = network(), network()
    optimizer, loaded = build(name, net), build(name, other)
    start = follow(net, optimizer, range(3))
    other.load_state_dict(net.state_dict())
    state = optimizer.state_dict()
    before = saved(state)
    loaded.load_state_dict(state)
    assert_same(start + follow(other, loaded, range(3, STEPS)), path_of(name))
    assert_same(start + follow(net, optimizer, range(3, STEPS)), path_of(name))
    for _ in range(2):  # what was loaded once can be loaded again
        loaded.load_state_dict(before)
        nn.utils.vector_to_parameters(start[-1].clone(), other.parameters())
        assert_same(start + follow(other, loaded, range(3, STEPS)), path_of(name))


def tensors(value):
    """Yield all tensors of a nested state."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        (torch.bfloat16, torch.float),
        (torch.half, torch.float),
        (torch.float, torch.float),
        (torch.double, torch.double),
    ],
    ids=str,
)
def test_state_is_kept_in_float32_or_better_and_loaded_as_it_was(name, dtype, kept):
    net = network(dtype)
    optimizer = build(name, net)
    follow(net, optimizer, range(3))
    state = saved(optimizer.state_dict())
    for p in optimizer.state:
        found = [t.dtype for t in tensors(optimizer.state[p]) if t.is_floating_point()]
        assert set(found) <= {kept}
    loaded = build(name, net)
    loaded.load_state_dict(state)
    own, theirs = tensors(loaded.state_dict()), tensors(state)
    for a, b in zip(own, theirs, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", [name for name in OWN if "KFAC" not in name])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half], ids=str)
def test_low_precision_rounds_nothing_but_the_parameter(name, dtype):
    net = network(dtype)
    optimizer = build(name, net)
    singles = [nn.Parameter(p.detach().float()) for p in net.parameters()]
    single = METHODS[name](None, singles)
    for k in range(STEPS):
        optimizer.zero_grad()
        gradient(net, k)
        for p, wide in zip(net.parameters(), singles, strict=True):
            wide.data = p.detach().float()
            wide.grad = p.grad.float()
        optimizer.step()
        single.step()
        for p, wide in zip(net.parameters(), singles, strict=True):
            assert torch.equal(p, wide.to(dtype))


@every_method
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))]
)
@settings(max_examples=3)
@given(when=st.integers(0, STEPS - 1))
def test_a_copy_with_its_model_goes_on_alike_and_independently(name, duplicate, when):
    net = network()
    optimizer = build(name, net)
    start = follow(net, optimizer, range(when))
    other, twin = duplicate((net, optimizer))
    assert type(twin) is type(optimizer)
    assert_same(start + follow(other, twin, range(when, STEPS)), path_of(name))
    assert_same(start + follow(net, optimizer, range(when, STEPS)), path_of(name))


# --- gradients that are zero, missing, infinite ---------------------------------------------------------------


def decays(optimizer):
    return any(group.get("weight_decay") for group in optimizer.param_groups)


@every_method
def test_zero_gradients_move_nothing_and_leave_no_trace(name):
    def zero(net, k):
        if k < 3:
            for p in net.parameters():
                p.grad.zero_()

    net = network()
    optimizer = build(name, net)
    path = [point(net), *follow(net, optimizer, change=zero)]
    assert all(p.isfinite().all() for p in path)
    assert not torch.equal(path[3], path[4])
    if name not in NOISY and not decays(optimizer):
        assert_same(path[:4], 4 * path[:1])


@every_method
def test_missing_gradients_move_nothing(name):
    def drop(net, k):
        if k < 3:
            net.zero_grad()

    net = network()
    path = [point(net), *follow(net, build(name, net), change=drop)]
    assert_same(path[:4], 4 * path[:1])
    assert path[-1].isfinite().all()
    assert not torch.equal(path[3], path[4])


@every_method
@pytest.mark.parametrize("how", ["missing", "frozen"])
@pytest.mark.parametrize("left_out", [["conv", "scale"], ["linear"], ["gate", "shift"]])
def test_parameters_without_gradients_are_as_good_as_not_there(name, how, left_out):
    def chosen(net, out):
        found = [
            p for n, p in net.named_parameters() if (n.split(".")[0] in left_out) == out
        ]
        assert found
        return found

    def drop(net, k):
        for p in chosen(net, True):
            p.grad = None

    net = network()
    change = drop
    if how == "frozen":
        for p in chosen(net, True):
            p.requires_grad_(False)
        change = None
    path = follow(net, build(name, net), change=change)
    net = network()
    start = point(net)
    without = follow(net, build(name, net, chosen(net, False)), change=drop)
    if name != "KFAC rows":  # which draws rows for the layers that it has: other numbers
        assert_same(path, without, 1e-12)
    for n, place in PLACES.items():
        if n.split(".")[0] in left_out:
            assert torch.equal(path[-1][place], start[place])


@every_method
@settings(max_examples=5)
@given(gone=st.lists(st.sets(st.integers(0, SIZE - 1)), min_size=STEPS, max_size=STEPS))
def test_gradients_may_be_missing_now_and_then(name, gone):
    def drop(net, k):
        for i, p in enumerate(net.parameters()):
            if i in gone[k]:
                p.grad = None

    net = network()
    path = [point(net), *follow(net, build(name, net), change=drop)]
    assert all(p.isfinite().all() for p in path)
    if "SSTM" not in name:  # which takes such a gradient for zero, and goes on along z
        places = list(PLACES.values())
        for k, some in enumerate(gone):
            for i in some:
                assert torch.equal(path[k][places[i]], path[k + 1][places[i]])


@every_method
def test_parameters_without_entries_alone_are_no_trouble(name):
    net = network()
    optimizer = build(name, net, [net.nothing, net.no_rows])
    before = point(net)
    assert torch.equal(follow(net, optimizer)[-1], before)
    optimizer.load_state_dict(saved(optimizer.state_dict()))
    follow(net, optimizer)


SPOILT = {  # what is not finite, after the gradient of linear.weight was NaN or infinite at [1, 2]
    "ClippedSGD": "all",
    "ClippedSGD layer": "parameter",
    "ClippedSGD velocity": "all",
    "ClippedSSTM": "all",
    "ClippedSSTM layer": "parameter",
    "Shampoo": "parameter",
    "Shampoo blocks": "block",
    "Shampoo sgd": "parameter",
    "Shampoo adagrad": "parameter",
    "KFAC": "layer",
    "KFAC type-2": "layers",
    "SAM": "all",
    "ASAM": "all",
    "AdaptiveClipping": "row",
    "AdaptiveClipping layer": "parameter",
    "AdaptiveClipping element": "entry",
    "GradientNoise of SAM of ClippedSSTM": "all",
    "SAM of GradientNoise of KFAC": "all",
    "ASAM of Shampoo": "all",
}


def spoil(value, when=1):
    """Return a change of one entry, in the first call of the closure in that step."""
    waiting = [when]

    def change(net, k):
        if waiting == [k]:
            net.linear.weight.grad[1, 2] = value
            waiting.clear()

    return change


@pytest.mark.parametrize(("name", "reach"), SPOILT.items())
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_shows_in_the_parameters(name, reach, value):
    net = network()
    path = follow(net, build(name, net), change=spoil(value))
    assert path[0].isfinite().all()
    expected = network()
    whole = {
        "all": list(PLACES),
        "layers": [n for n in PLACES if "." in n],
        "layer": ["linear.weight", "linear.bias"],
        "parameter": ["linear.weight"],
    }
    for n, p in expected.named_parameters():
        p.data.fill_(n in whole.get(reach, []))
    part = {"row": (1, slice(None)), "entry": (1, 2), "block": (slice(0, 2), slice(2, 4))}
    if reach in part:
        expected.linear.weight.data[part[reach]] = 1
    assert torch.equal((~path[1].isfinite()).double(), point(expected))


@pytest.mark.parametrize("name", [n for n in METHODS if "coordinate" in n])
def test_on_the_cube_an_infinite_gradient_is_clipped_and_nan_stays(name):
    paths = []
    for value in (math.inf, 1e9):
        net = network()
        paths.append(follow(net, build(name, net), change=spoil(value)))
    assert_same(*paths)
    assert paths[0][-1].isfinite().all()
    net = network()
    path = follow(net, build(name, net), [0, 1], change=spoil(math.nan))
    start = PLACES["linear.weight"].start
    assert path[1].isnan().nonzero().flatten().tolist() == [start + 12 + 2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_entry_of_lion_with_a_gradient_that_is_not_finite_stays_finite(value):
    net = network()
    start = follow(net, Lion(net.parameters(), lr=0.02), [0])[-1]
    path = follow(net, Lion(net.parameters(), lr=0.02), range(1, 7), change=spoil(value))
    entry = PLACES["linear.weight"].start + 14
    at = [start[entry].item(), *(p[entry].item() for p in path)]
    first = 0 if math.isnan(value) else -math.copysign(0.02, value)
    assert at[1] == pytest.approx(at[0] + first, abs=1e-15)
    if math.isnan(value):
        assert at[1:] == at[:1] * 6  # and stands still
    assert all(p.isfinite().all() for p in path)


@pytest.mark.parametrize(
    "name", ["GradientNoise", "SAM of AdaptiveClipping", "KFAC rows", *SPOILT, "Lion"]
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.double, torch.bfloat16], ids=str)
def test_a_gradient_that_is_not_finite_raises_nothing_in_later_steps(name, value, dtype):
    net = network(dtype)
    follow(net, build(name, net), change=spoil(value, when=0))


# --- schedulers -----------------------------------------------------------------------------------------------


def innermost(optimizer):
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


@every_method
@pytest.mark.parametrize("attached", [lambda optimizer: optimizer, innermost])
def test_a_scheduler_acts_as_rates_set_by_hand_do_and_warns_of_nothing(name, attached):
    net = network()
    optimizer = build(name, net)
    rate = optimizer.param_groups[0]["lr"]
    path = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = lr_scheduler.MultiStepLR(attached(optimizer), [1, 2, 5], gamma=0.5)
        for k in range(STEPS):
            path += follow(net, optimizer, [k])
            scheduler.step()
    net = network()
    optimizer = build(name, net)
    by_hand = []
    for k, factor in enumerate([1, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125]):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        by_hand += follow(net, optimizer, [k])
    assert_same(path, by_hand)
    assert torch.equal(path[0], path_of(name)[0])
    assert not torch.equal(path[1], path_of(name)[1])


@pytest.mark.parametrize("name", ["SAM", "AdaptiveClipping", "GradientNoise"])
def test_a_cycle_of_rate_and_momentum_reaches_the_wrapped_optimizer(name):
    paths = []
    for attached in (lambda optimizer: optimizer, innermost):
        net = network()
        optimizer = build(name, net)
        scheduler = lr_scheduler.OneCycleLR(attached(optimizer), 0.3, total_steps=STEPS)
        path = []
        for k in range(STEPS):
            path += follow(net, optimizer, [k])
            if k < STEPS - 1:
                scheduler.step()
        paths.append(path)
    assert_same(*paths)


# --- closures -------------------------------------------------------------------------------------------------


@every_method
def test_the_loss_of_the_closure_is_returned_and_its_gradient_may_be_needed_anywhere(name):
    net = network()
    optimizer = build(name, net)
    path = []
    with torch.no_grad():
        for k in range(STEPS):
            losses = []

            def closure(k=k, losses=losses):
                assert torch.is_grad_enabled()
                optimizer.zero_grad()
                losses.append(gradient(net, k))
                return losses[-1]

            assert optimizer.step(closure) is losses[0]
            assert len(losses) == (2 if name in SAMS else 1)
            assert not torch.is_grad_enabled()
            path.append(point(net))
    assert torch.is_grad_enabled()
    assert_same(path, path_of(name))


@pytest.mark.parametrize("name", [name for name in METHODS if name not in SAMS])
def test_a_step_without_closure_is_the_same_step(name):
    net = network()
    optimizer = build(name, net)
    path = []
    for k in range(STEPS):
        optimizer.zero_grad()
        gradient(net, k)
        assert optimizer.step() is None
        path.append(point(net))
    assert_same(path, path_of(name))


@every_method
def test_an_error_in_the_closure_reaches_the_caller_and_a_new_try_gives_the_same_path(name):
    net = network()
    optimizer = build(name, net)
    start = follow(net, optimizer, range(3))

    def closure():
        raise KeyError

    with pytest.raises(KeyError):
        optimizer.step(closure)
    assert_same(start + follow(net, optimizer, range(3, STEPS)), path_of(name))


# --- what a step does to the gradients, and their layout ------------------------------------------------------


def one_gradient(net):
    gradient(net, 0)
    return [(p.grad, p.grad.data_ptr(), p.grad.clone()) for p in net.parameters()]


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("dtype", [torch.double, torch.bfloat16], ids=str)
def test_a_step_leaves_the_gradients_alone(name, dtype):
    net = network(dtype)
    optimizer = build(name, net)
    for _ in range(3):
        net.zero_grad()
        before = one_gradient(net)
        optimizer.step()
        for p, (grad, place, value) in zip(net.parameters(), before, strict=True):
            assert p.grad is grad
            assert p.grad.data_ptr() == place
            assert torch.equal(p.grad, value)


@pytest.mark.parametrize(
    "name",
    ["GradientNoise", *(n for n in METHODS if n[:10] == "AdaptiveCl" and "SAM" not in n)],
)
@pytest.mark.parametrize("dtype", [torch.double, torch.bfloat16], ids=str)
def test_clipping_and_noise_change_the_gradients_in_place(name, dtype):
    net = network(dtype)
    before = one_gradient(net)
    build(name, net).step()
    changed = 0
    for p, (grad, place, value) in zip(net.parameters(), before, strict=True):
        assert p.grad is grad
        assert p.grad.dtype == dtype
        assert p.grad.data_ptr() == place
        changed += not torch.equal(p.grad, value)
    assert changed


@pytest.mark.parametrize("name", ["SAM", "ASAM"])
def test_after_sam_the_gradient_is_that_of_the_second_call(name):
    net = network()
    seen = []

    def note(net, k):
        seen.append([p.grad.clone() for p in net.parameters()])

    follow(net, build(name, net), [0], change=note)
    assert len(seen) == 2
    for p, first, second in zip(net.parameters(), *seen, strict=True):
        assert torch.equal(p.grad, second)
        assert not p.numel() or not torch.equal(first, second)


@every_method
def test_gradients_set_to_zero_or_to_none_between_steps_give_the_same_path(name):
    net = network()
    optimizer = build(name, net)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    kept = [p.grad for p in net.parameters()]
    path = []
    for k in range(STEPS):

        def closure(k=k):
            optimizer.zero_grad(set_to_none=False)
            return gradient(net, k)

        optimizer.step(closure)
        path.append(point(net))
    assert all(p.grad is grad for p, grad in zip(net.parameters(), kept, strict=True))
    assert_same(path, path_of(name))
    optimizer.zero_grad()
    assert all(p.grad is None for p in net.parameters())


@every_method
def test_the_layout_of_gradients_does_not_matter(name):
    def scatter(net, k):
        for p in net.parameters():
            spread = torch.empty(*p.shape[::-1], 2, dtype=p.dtype)[..., 0]
            p.grad = spread.permute(tuple(reversed(range(p.ndim)))).copy_(p.grad)
        assert not net.linear.weight.grad.is_contiguous()
        assert not net.conv.weight.grad.is_contiguous()

    net = network()
    assert_same(follow(net, build(name, net), change=scatter), path_of(name), 1e-12)


@every_method
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_layout_of_parameters_does_not_matter(name, when):
    def turned():
        net.to(memory_format=torch.channels_last)
        net.linear.weight.data = net.linear.weight.data.t().contiguous().t()
        assert not net.conv.weight.is_contiguous()
        assert not net.linear.weight.is_contiguous()

    net = network()
    if when == "before":
        turned()
    optimizer = build(name, net)
    start = follow(net, optimizer, range(3))
    if when == "after":
        turned()
    path = start + follow(net, optimizer, range(3, STEPS))
    assert_same(path, path_of(name), 1e-12)


# --- groups that come later -----------------------------------------------------------------------------------


def with_late_group(name, steps=STEPS, **hyper):
    net = network()
    first = [p for n, p in net.named_parameters() if "linear" not in n]
    optimizer = build(name, net, first)
    path = [point(net), *follow(net, optimizer, range(2))]
    optimizer.add_param_group({"params": list(net.linear.parameters()), **hyper})
    return optimizer, path + follow(net, optimizer, range(2, steps))


@every_method
def test_a_group_added_later_is_stepped_from_then_on(name):
    optimizer, path = with_late_group(name)
    first, second = optimizer.param_groups
    assert first.keys() == second.keys()
    place = slice(PLACES["linear.weight"].start, None)
    assert torch.equal(path[0][place], path[2][place])
    for a, b in itertools.pairwise(path[2:]):
        assert not torch.equal(a[place], b[place])
    assert path[-1].isfinite().all()


@pytest.mark.parametrize(
    "name", [n for n in METHODS if not {"KFAC", "ClippedSSTM"} & {*n.split()}]
)
def test_a_group_added_later_is_as_good_as_one_without_gradients_until_then(name):
    def drop(net, k):
        if k < 2:
            net.linear.zero_grad()

    net = network()
    path = follow(net, build(name, net), change=drop)
    assert_same(with_late_group(name)[1][1:], path, 1e-12)


@every_method
def test_a_group_added_later_keeps_its_own_rate(name):
    optimizer, path = with_late_group(name, lr=0.0)
    assert optimizer.param_groups[1]["lr"] == 0.0
    place = slice(PLACES["linear.weight"].start, None)
    assert torch.equal(path[0][place], path[-1][place])
    assert not torch.equal(path[2], path[-1])


# --- wrappers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapper_shows_groups_and_state_of_what_it_wraps(name):
    net = network()
    optimizer = build(name, net)
    follow(net, optimizer, range(2))
    inner = innermost(optimizer)
    assert all(
        a is b for a, b in zip(optimizer.param_groups, inner.param_groups, strict=True)
    )
    assert optimizer.state is inner.state
    assert inner.state
    optimizer.load_state_dict(saved(optimizer.state_dict()))
    inner = innermost(optimizer)
    assert all(
        a is b for a, b in zip(optimizer.param_groups, inner.param_groups, strict=True)
    )
    assert type(optimizer).__name__ in repr(optimizer)


@every_method
def test_the_point_for_evaluation_is_that_of_the_innermost_and_the_iterate_comes_back(name):
    net = network()
    optimizer = build(name, net)
    follow(net, optimizer, range(4))
    before = point(net)
    with optimizer.evaluation():
        shown = point(net)
    assert torch.equal(point(net), before)
    with getattr(innermost(optimizer), "evaluation", contextlib.nullcontext)():
        assert torch.equal(point(net), shown)
    averages = "SSTM" in name or name == "ClippedSGD coordinate"
    assert torch.equal(shown, before) != averages


BASES = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "Adafactor": lambda p: torch.optim.Adafactor(p),
    "Adagrad": lambda p: torch.optim.Adagrad(p),
    "ASGD": lambda p: torch.optim.ASGD(p),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "Rprop": lambda p: torch.optim.Rprop(p),
    "RAdam": lambda p: torch.optim.RAdam(p),
}


def entries(net):
    """Return the parameters that are not empty, since Adafactor divides by their size."""
    return [p for p in net.parameters() if p.numel()]


def by_hand(base, change):
    """Follow a base optimizer whose gradients are changed by hand."""
    net = network()
    optimizer = BASES[base](entries(net))
    path = []
    for k in range(STEPS):
        net.zero_grad()
        gradient(net, k)
        change(net, k)
        optimizer.step()
        path.append(point(net))
    return path


@pytest.mark.parametrize("base", BASES)
def test_sam_uses_its_own_radius_around_every_optimizer(base):
    def perturb(net, k):
        own = [p.detach().clone() for p in net.parameters()]
        norm = torch.cat([p.grad.flatten() for p in net.parameters()]).norm()
        with torch.no_grad():
            for p in net.parameters():
                p += 0.3 * p.grad / norm
        net.zero_grad()
        gradient(net, k)
        for p, value in zip(net.parameters(), own, strict=True):
            p.data.copy_(value)

    net = network()
    path = follow(net, SAM(BASES[base](entries(net)), rho=0.3))
    assert_same(path, by_hand(base, perturb), 1e-12)


@pytest.mark.parametrize("base", BASES)
def test_adaptive_clipping_uses_its_own_ratio_around_every_optimizer(base):
    def clip(net, k):
        for p in net.parameters():
            if p.numel():
                p.grad *= min(1, 0.1 * max(p.norm(), 1e-3) / p.grad.norm())

    net = network()
    optimizer = AdaptiveClipping(BASES[base](entries(net)), ratio=0.1, unit="layer")
    assert_same(follow(net, optimizer), by_hand(base, clip), 1e-12)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda o, rate: SAM(o, rho=rate),
        lambda o, rate: AdaptiveClipping(o, ratio=rate),
        lambda o, rate: GradientNoise(o, eta=rate),
    ],
    ids=["SAM", "AdaptiveClipping", "GradientNoise"],
)
def test_a_second_wrapper_around_the_same_optimizer_has_its_own_hyper_parameters(wrap):
    net = network()
    base = sgd(net.parameters())
    wrap(base, 0.3)
    path = follow(net, wrap(base, 0.1))
    net = network()
    assert_same(path, follow(net, wrap(sgd(net.parameters()), 0.1)))
