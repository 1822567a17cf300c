"""Adaptive clipping, SAM and gradient noise (M43, M47, M38) around other optimizers, and around each other."""

import copy
import io
import itertools
import math
import pickle
import warnings

import pytest
import pytorch_optimizer
import torch
from pytorch_optimizer.optimizer.agc import agc
from torch import Tensor, nn
from torch.optim import SGD, Optimizer, lr_scheduler
from toys import (
    STEPS,
    assert_close,
    assert_same,
    closure,
    copies,
    gradients,
    grouped,
    loss,
    parameters,
    spread,
    start,
    walk,
)

from support.optim import SAM, AdaptiveClipping, ClippedSGD, ClippedSSTM, GradientNoise

pytestmark = pytest.mark.usefixtures("untouched_random_state")

BASE = {"lr": 0.02, "momentum": 0.8, "weight_decay": 0.05}


class Midpoint(Optimizer):
    """A method that calls its closure twice: x <- x - lr f'(x - lr f'(x) / 2)."""

    def __init__(self, params, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.seen = []

    @torch.no_grad()
    def step(self, closure):
        before = copies(self._parameters())
        for share in (0.5, 1.0):
            with torch.enable_grad():
                value = closure()
            self.seen.append([p.grad.clone() for p in self._parameters()])
            for p, b in zip(self._parameters(), before, strict=True):
                p.copy_(b - share * self.param_groups[0]["lr"] * p.grad)
        return value

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]


class _Momentum:
    """SGD with momentum and weight decay, written out."""

    def __init__(self, hyper: list[dict]) -> None:
        self.hyper, self.buffers = hyper, [0.0] * len(hyper)

    def step(self, xs: list[Tensor], gs: list[Tensor]) -> list[Tensor]:
        result = []
        for i, (x, g, h) in enumerate(zip(xs, gs, self.hyper, strict=True)):
            self.buffers[i] = h["momentum"] * self.buffers[i] + g + h["weight_decay"] * x
            result.append(x - h["lr"] * self.buffers[i])
        return result


# --- adaptive clipping ----------------------------------------------------------------------------------------

UNITS = ["unit", "layer", "element"]
AGC = {"ratio": 1.5, "floor": 0.3}


def _shortened(g: Tensor, x: Tensor, ratio: float, floor: float) -> Tensor:
    length, limit = math.sqrt((g * g).sum()), ratio * max(math.sqrt((x * x).sum()), floor)
    return g * (limit / length) if length > limit else g


def _adaptively_clipped(
    g: Tensor, x: Tensor, ratio: float = 0.01, floor: float = 1e-3, unit: str = "unit"
) -> Tensor:
    if unit == "layer" or (unit == "unit" and x.ndim <= 1):
        return _shortened(g, x, ratio, floor)
    if unit == "element":
        g, x, shape = g.flatten(), x.flatten(), g.shape
    else:
        shape = g.shape
    parts = [_shortened(a, b, ratio, floor) for a, b in zip(g, x, strict=True)]
    return torch.stack(parts).reshape(shape)


def _agc(hyper: list[dict], unit: str) -> list[list[Tensor]]:
    xs, base, path, clipped, below = start(), _Momentum(hyper), [], 0, 0
    for t in range(STEPS):
        gs = gradients(xs, t)
        cs = [
            _adaptively_clipped(g, x, h["ratio"], h["floor"], unit)
            for g, x, h in zip(gs, xs, hyper, strict=True)
        ]
        clipped += sum(not torch.equal(c, g) for c, g in zip(cs, gs, strict=True))
        below += sum(x.abs().min() < h["floor"] for x, h in zip(xs, hyper, strict=True))
        xs = base.step(xs, cs)
        path.append(xs)
    assert 0 < clipped < 4 * STEPS
    assert below
    return path


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    "hyper", [AGC, {"ratio": 6.0, "floor": 0.01}, {"ratio": 4.0, "floor": 3.0}]
)
def test_adaptive_clipping_compares_each_gradient_with_its_parameter(unit, hyper):
    xs = parameters()
    optimizer = AdaptiveClipping(SGD(xs, **BASE), **hyper, unit=unit)
    assert_close(walk(optimizer, xs), _agc([{**BASE, **hyper}] * 4, unit))


@pytest.mark.parametrize("unit", UNITS)
def test_groups_have_their_own_ratio_and_floor_and_infinity_switches_one_off(unit):
    groups = [
        ("02", {"ratio": 1.0, "floor": 0.5}),
        ("3", {"ratio": math.inf, "lr": 0.01}),
        ("1", {"momentum": 0.0, "floor": 2.0}),
    ]
    xs = parameters()
    optimizer = AdaptiveClipping(SGD(grouped(xs, groups), **BASE), **AGC, unit=unit)
    assert_close(walk(optimizer, xs), _agc(spread(groups, **BASE, **AGC), unit))


KINDS_OF_LAYERS = {
    "scalar": (),
    "bias": (6,),
    "dense": (4, 6),
    "convolution 1d": (4, 3, 5),
    "convolution 2d": (4, 3, 2, 5),
    "convolution 3d": (4, 3, 2, 2, 2),
}


def _given(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return a parameter and a gradient, in some units a hundred times as long as the parameter's."""
    generator = torch.Generator().manual_seed(0)
    x, g = torch.randn(2, *shape, generator=generator, dtype=torch.double)
    if x.ndim:
        x[0], g[-1] = x[0] / 1e6, g[-1] / 1e4
    return x.requires_grad_(), g


def _gradient_after_adaptive_clipping(x: Tensor, g: Tensor, **hyper) -> Tensor:
    x.grad = g.clone()
    AdaptiveClipping(SGD([x], lr=0.0), **hyper).step()
    return x.grad


def _timm(x: Tensor, g: Tensor, clip_factor: float = 0.01, eps: float = 1e-3) -> Tensor:
    """The formula of timm's adaptive_clip_grad."""

    def norm(t: Tensor) -> Tensor:
        return (
            t.norm()
            if t.ndim <= 1
            else t.norm(2.0, dim=tuple(range(1, t.ndim)), keepdim=True)
        )

    longest, length = norm(x.detach()).clamp(min=eps) * clip_factor, norm(g)
    return torch.where(length < longest, g, g * (longest / length.clamp(min=1e-6)))


@pytest.mark.parametrize("layer", KINDS_OF_LAYERS)
def test_by_default_a_unit_is_that_of_timm(layer):
    x, g = _given(KINDS_OF_LAYERS[layer])
    found = _gradient_after_adaptive_clipping(x, g)
    assert_close(found, _timm(x, g))
    assert_close(found, _adaptively_clipped(g, x.detach()))
    assert not torch.equal(found, g)


@pytest.mark.parametrize("layer", KINDS_OF_LAYERS)
def test_pytorch_optimizer_has_the_same_units_but_for_convolutions_of_one_dimension(layer):
    x, g = _given(KINDS_OF_LAYERS[layer])
    found = _gradient_after_adaptive_clipping(x, g)
    theirs = agc(x.detach(), g)
    if layer == "convolution 1d":  # there a unit is one position of a filter
        assert not torch.allclose(theirs, found, rtol=0.1)
        by_position = torch.stack(
            [
                torch.stack(
                    [
                        _shortened(g[i, :, k], x.detach()[i, :, k], 0.01, 1e-3)
                        for k in range(5)
                    ],
                    1,
                )
                for i in range(4)
            ]
        )
        assert_close(theirs, by_position)
    else:
        assert_close(theirs, found)


def test_zero_parameters_can_leave_zero_because_of_the_floor():
    x = torch.zeros(2, 3, dtype=torch.double, requires_grad=True)
    x.grad = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.double)
    AdaptiveClipping(SGD([x], lr=1.0), ratio=0.1, floor=0.5).step()
    expected = torch.tensor([[-0.03, -0.04, 0.0], [0.0, 0.0, 0.0]], dtype=torch.double)
    assert_close(x.detach(), expected)


def test_the_step_of_sgd_is_bounded_by_lr_times_ratio_times_the_norm():
    xs = parameters()
    optimizer = AdaptiveClipping(SGD(xs, lr=0.5), ratio=0.1, floor=0.2, unit="layer")
    for t in range(STEPS):
        before = copies(xs)
        optimizer.step(closure(optimizer, xs, t))
        for x, b in zip(xs, before, strict=True):
            bound = 0.5 * 0.1 * max(b.norm().item(), 0.2)
            assert (x.detach() - b).norm() <= bound * (1 + 1e-12)


def test_the_gradient_of_every_call_of_a_closure_is_clipped_at_its_own_point():
    xs, ys = parameters(), start()
    optimizer = AdaptiveClipping(Midpoint(xs, lr=0.05), **AGC)
    path = walk(optimizer, xs)
    for t in range(STEPS):
        middle = ys
        for share in (0.5, 1.0):
            gs = [
                _adaptively_clipped(g, m, **AGC)
                for g, m in zip(gradients(middle, t), middle, strict=True)
            ]
            middle = [y - share * 0.05 * g for y, g in zip(ys, gs, strict=True)]
        ys = middle
        assert_close(path[t], ys)


def test_adaptive_clipping_works_without_a_closure_on_the_gradient_in_place():
    xs, ys = parameters(), parameters()
    ours = AdaptiveClipping(SGD(xs, **BASE), **AGC)
    with_closure = AdaptiveClipping(SGD(ys, **BASE), **AGC)
    for t in range(10):
        closure(ours, xs, t)()
        given, tensors = copies([x.grad for x in xs]), [x.grad for x in xs]
        before = copies(xs)
        assert ours.step() is None
        assert all(x.grad is g for x, g in zip(xs, tensors, strict=True))
        expected = [
            _adaptively_clipped(g, b, **AGC) for g, b in zip(given, before, strict=True)
        ]
        assert_close(tensors, expected)
        with_closure.step(closure(with_closure, ys, t))
    assert_same(copies(xs), copies(ys))


# --- SAM ------------------------------------------------------------------------------------------------------


def _recorded(optimizer: Optimizer, xs: list[Tensor], t: int, points: list) -> float:
    """Step, add to ``points`` where the closure is called, and return what step returns."""
    call = closure(optimizer, xs, t)

    def recording():
        points.append(copies(xs))
        return call()

    return optimizer.step(recording)


def _flat(tensors) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


@pytest.mark.parametrize("rho", [1e-3, 0.5])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("t", [0, 3])
def test_the_perturbation_maximises_the_linearised_loss(adaptive, rho, t):
    xs, points = parameters(), []
    _recorded(SAM(SGD(xs, lr=0.1), rho=rho, adaptive=adaptive), xs, t, points)
    x, perturbed = (_flat(point) for point in points)
    g = _flat(gradients(start(), t))
    T = x.abs() + 0.01 if adaptive else torch.ones_like(x)
    eps = perturbed - x
    assert (eps / T).norm().item() == pytest.approx(rho, rel=1e-10)

    generator = torch.Generator().manual_seed(0)
    random = torch.randn(1000, len(x), generator=generator, dtype=torch.double)
    near = eps / T / rho + random * torch.logspace(-5, 0, 1000, dtype=torch.double)[:, None]
    for directions in (random, near):
        rivals = rho * T * directions / directions.norm(dim=1, keepdim=True)
        assert torch.all(rivals @ g < g @ eps)
    assert (g @ eps).item() == pytest.approx(rho * (T * g).norm().item(), rel=1e-10)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_gradient_is_taken_at_the_perturbed_point(adaptive):
    xs = parameters()
    optimizer = SAM(SGD(xs, **BASE), rho=0.3, adaptive=adaptive)
    for t in range(10):
        before, points = copies(xs), []
        value = _recorded(optimizer, xs, t, points)
        at, perturbed = points
        assert_same(at, before)
        assert value.item() == loss(before, t).item()
        assert_same([x.grad for x in xs], gradients(perturbed, t))


@pytest.mark.parametrize("dtype", [torch.double, torch.float, torch.bfloat16])
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_parameters_are_put_back_to_the_bit(adaptive, dtype):
    xs = [x.to(dtype).requires_grad_() for x in start()]
    optimizer = SAM(SGD(xs, lr=0.0), rho=1000.0, adaptive=adaptive)
    points = []
    for t in range(5):
        _recorded(optimizer, xs, t, points)
        assert_same(copies(xs), points[0])
        assert not any(
            torch.equal(a, b) for a, b in zip(points[-2], points[-1], strict=True)
        )


SAM_GROUPS = [
    ("02", {"rho": 0.2, "lr": 0.03}),
    ("3", {"rho": 0.0, "momentum": 0.5}),
    ("1", {"weight_decay": 0.0}),
]


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("eta", [0.01, 0.5])
@pytest.mark.parametrize("groups", [[("0123", {})], SAM_GROUPS])
def test_sam_takes_the_steps_of_its_paper(adaptive, eta, groups):
    xs = parameters()
    base = SGD(grouped(xs, groups), **BASE)
    path = walk(SAM(base, rho=0.1, adaptive=adaptive, eta=eta), xs)
    hyper = spread(groups, **BASE, rho=0.1)
    ys, by_hand = start(), _Momentum(hyper)
    for t in range(STEPS):
        gs = gradients(ys, t)
        Ts = [y.abs() + eta if adaptive else torch.ones_like(y) for y in ys]
        norm = math.sqrt(sum(((T * g) ** 2).sum() for T, g in zip(Ts, gs, strict=True)))
        perturbed = [
            y + h["rho"] * T**2 * g / norm
            for y, T, g, h in zip(ys, Ts, gs, hyper, strict=True)
        ]
        ys = by_hand.step(ys, gradients(perturbed, t))
        assert_close(path[t], ys)


@pytest.mark.parametrize("adaptive", [False, True])
def test_pytorch_optimizers_sam_goes_the_same_way(adaptive):
    # without ASAM's eta, which it lacks; its norm is of single precision
    xs, ys = parameters(), parameters()
    ours = SAM(SGD(xs, **BASE), rho=0.1, adaptive=adaptive, eta=0.0)
    theirs = pytorch_optimizer.SAM(ys, SGD, rho=0.1, adaptive=adaptive, **BASE)
    for t in range(STEPS):
        ours.step(closure(ours, xs, t))
        closure(theirs, ys, t)()
        theirs.step(closure(theirs, ys, t))
        assert_close(copies(xs), copies(ys), 1e-6)


def test_the_radius_of_a_group_may_be_changed_on_the_way():
    xs, points = parameters(), []
    optimizer = SAM(SGD(xs, lr=0.0), rho=0.1)
    for rho in (0.1, 0.4):
        optimizer.param_groups[0]["rho"] = rho
        _recorded(optimizer, xs, 0, points)
        assert (_flat(points[-1]) - _flat(points[-2])).norm().item() == pytest.approx(rho)


def test_without_a_gradient_nothing_is_perturbed():
    xs, points = parameters(), []
    optimizer = SAM(SGD(xs, lr=0.0), rho=0.1)

    def flat():
        optimizer.zero_grad()
        points.append(copies(xs))
        value = 0 * xs[0].sum()
        value.backward()
        return value

    optimizer.step(flat)
    assert_same(points, [start(), start()])
    assert_same(copies(xs), start())


def test_a_parameter_without_a_gradient_is_not_perturbed():
    xs, points = parameters(), []
    xs[2].requires_grad_(False)
    _recorded(SAM(SGD(xs, **BASE), rho=0.1), xs, 0, points)
    assert_same(points[1][2], start()[2])
    assert (_flat(points[1]) - _flat(points[0])).norm().item() == pytest.approx(0.1)
    assert_same(xs[2], start()[2])


def test_sam_without_a_closure_is_refused():
    xs = parameters()
    optimizer = SAM(SGD(xs, lr=0.1))
    closure(optimizer, xs, 0)()
    with pytest.raises(RuntimeError, match="closure"):
        optimizer.step()
    assert_same(copies(xs), start())


def test_an_exception_in_the_second_evaluation_leaves_the_parameters_where_they_were():
    xs, calls = parameters(), itertools.count()
    optimizer = SAM(SGD(xs, **BASE), rho=0.1)

    def interrupted():
        if next(calls):
            raise KeyboardInterrupt
        return closure(optimizer, xs, 0)()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(interrupted)
    assert_same(copies(xs), start())


def _normalised(kind: str, momentum: float | None) -> nn.Module:
    """Return a network with running statistics for inputs of shape (N, 3, 4)."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        norm = {
            "batch": lambda: nn.BatchNorm1d(5, momentum=momentum),
            "batch without weights": lambda: nn.BatchNorm1d(5, momentum=momentum, affine=False),
            "instance": lambda: nn.InstanceNorm1d(5, momentum=momentum, track_running_stats=True),
            "two": lambda: nn.Sequential(nn.BatchNorm1d(5, momentum=momentum), nn.Tanh(), nn.BatchNorm1d(5)),
        }[kind]()  # fmt: skip
        layers = nn.Conv1d(3, 5, 1), norm, nn.Tanh(), nn.Flatten(), nn.Linear(20, 1)
        return nn.Sequential(*layers).double()


def _batch(t: int) -> Tensor:
    generator = torch.Generator().manual_seed(t)
    return 1 + t + torch.randn(6, 3, 4, generator=generator, dtype=torch.double)


def _objective(optimizer: Optimizer | None, model: nn.Module, t: int):
    def call():
        model.zero_grad()
        value = model(_batch(t)).square().mean()
        value.backward()
        return value

    return call


@pytest.mark.parametrize(
    ("kind", "momentum"),
    [
        ("batch", 0.1),
        ("batch", None),
        ("batch without weights", 0.1),
        ("two", None),
        ("instance", 0.1),
    ],
)
def test_running_statistics_are_those_of_the_first_evaluation_alone(kind, momentum):
    model = _normalised(kind, momentum)
    optimizer = SAM(SGD(model.parameters(), lr=0.05, momentum=0.9), rho=0.5)
    for t in range(4):
        once = copy.deepcopy(model)
        once(_batch(t))
        optimizer.step(_objective(optimizer, model, t))
        found, expected = dict(model.named_buffers()), dict(once.named_buffers())
        assert found.keys() == expected.keys()
        assert len(found) >= 3
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
            if name.endswith("num_batches_tracked") and kind != "instance":
                assert value == t + 1
        assert all(module.training for module in model.modules())
        assert not nn.modules.module._global_forward_pre_hooks
        assert (
            next(m.momentum for m in model.modules() if hasattr(m, "momentum")) == momentum
        )


@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_second_evaluation_normalises_by_the_statistics_of_the_batch(momentum):
    model, points = _normalised("batch", momentum), []
    optimizer = SAM(SGD(model.parameters(), lr=0.05), rho=0.5)
    call = _objective(optimizer, model, 0)
    by_hand = copy.deepcopy(model)

    def recording():
        points.append(copies(model.parameters()))
        return call()

    optimizer.step(recording)
    with torch.no_grad():
        for p, value in zip(by_hand.parameters(), points[1], strict=True):
            p.copy_(value)
    _objective(None, by_hand, 0)()
    assert_close(
        [p.grad for p in model.parameters()], [p.grad for p in by_hand.parameters()]
    )


def test_frozen_statistics_stay_frozen():
    model = _normalised("batch", 0.1)
    model(_batch(7))
    model[1].eval()
    before = copies(model.buffers())
    optimizer = SAM(SGD(model.parameters(), lr=0.05), rho=0.5)
    optimizer.step(_objective(optimizer, model, 0))
    assert_same(copies(model.buffers()), before)
    assert [module.training for module in model] == [True, False, True, True, True]


def test_statistics_run_again_after_an_exception_in_the_second_evaluation():
    model, calls = _normalised("batch", 0.1), itertools.count()
    optimizer = SAM(SGD(model.parameters(), lr=0.05), rho=0.5)

    def interrupted():
        if next(calls):
            model(_batch(0))
            raise KeyboardInterrupt
        return _objective(optimizer, model, 0)()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(interrupted)
    assert model[1].num_batches_tracked == 1
    once = copy.deepcopy(model)
    F = nn.functional
    normalised = model[0](_batch(1))
    F.batch_norm(
        normalised, once[1].running_mean, once[1].running_var, training=True, momentum=0.1
    )
    model(_batch(1))
    assert model[1].num_batches_tracked == 2
    assert_close(model[1].running_mean, once[1].running_mean)


# --- gradient noise -------------------------------------------------------------------------------------------

NUMBERS = 100_000


def _noises(optimizer: GradientNoise, xs: list[Tensor]) -> list[Tensor]:
    for x in xs:
        x.grad = torch.zeros_like(x)
    optimizer.step()
    return copies([x.grad for x in xs])


@pytest.mark.parametrize("hyper", [{}, {"eta": 0.01}, {"eta": 1.0, "gamma": 1.5}])
def test_noise_is_normal_with_the_variance_of_its_step(hyper):
    xs = [torch.zeros(NUMBERS, requires_grad=True) for _ in range(2)]
    optimizer = GradientNoise(SGD(xs, lr=0.1), **hyper)
    eta, gamma = hyper.get("eta", 0.3), hyper.get("gamma", 0.55)
    earlier = torch.zeros(NUMBERS)
    for t in range(12):
        noises = _noises(optimizer, xs)
        for noise in noises:
            # five standard errors: one in a million for each of the checks
            z = noise / math.sqrt(eta / (1 + t) ** gamma)
            assert abs(z.mean()) < 5 / math.sqrt(NUMBERS)
            assert abs(z.square().mean() - 1) < 5 * math.sqrt(2 / NUMBERS)
            assert abs(z.pow(4).mean() - 3) < 5 * math.sqrt(96 / NUMBERS)
        for a, b in [noises, (noises[0], earlier)]:
            assert abs((a * b).mean()) < 5 * a.std() * b.std() / math.sqrt(NUMBERS) + 1e-30
        earlier = noises[0]


def test_noise_is_added_to_the_gradient():
    xs, ys = parameters(), parameters()
    noisy, silent = GradientNoise(SGD(xs, lr=0.0)), GradientNoise(SGD(ys, lr=0.0))
    noisy.step(closure(noisy, xs, 3))
    given = gradients(start(), 3)
    noise = _noises(silent, ys)
    assert_close([x.grad for x in xs], [g + n for g, n in zip(given, noise, strict=True)])


def test_the_base_steps_with_the_noisy_gradient():
    xs = parameters()
    optimizer = GradientNoise(SGD(xs, **BASE))
    ys, by_hand = start(), _Momentum([BASE] * 4)
    for t in range(STEPS):
        optimizer.step(closure(optimizer, xs, t))
        ys = by_hand.step(ys, copies([x.grad for x in xs]))
        assert_close(copies(xs), ys)


def _noisy_path(seed: int, steps: int = 10, **hyper) -> list[list[Tensor]]:
    xs = parameters()
    return walk(GradientNoise(SGD(xs, **BASE), seed=seed, **hyper), xs, range(steps))


def test_the_path_is_that_of_the_seed_whatever_the_global_random_state():
    path = _noisy_path(5)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(123)
        before = torch.get_rng_state()
        assert_same(_noisy_path(5), path)
        assert torch.equal(torch.get_rng_state(), before)
    for other in (0, 6):
        assert not any(
            torch.equal(a, b) for a, b in zip(_noisy_path(other)[0], path[0], strict=True)
        )


def test_every_call_of_a_closure_gets_fresh_noise_of_the_variance_of_the_step():
    x = torch.zeros(NUMBERS, requires_grad=True)
    base = Midpoint([x], lr=0.1)
    optimizer = GradientNoise(base)

    def flat():
        optimizer.zero_grad()
        (0 * x).sum().backward()

    for t in range(3):
        optimizer.step(flat)
        (first,), (second,) = base.seen[-2:]
        for noise in (first, second):
            variance = 0.3 / (1 + t) ** 0.55
            assert abs(noise.square().mean() / variance - 1) < 5 * math.sqrt(2 / NUMBERS)
        assert abs((first * second).mean()) < 5 * 0.3 / math.sqrt(NUMBERS)


def test_noise_without_variance_changes_nothing():
    xs, ys = parameters(), parameters()
    silent = GradientNoise(SGD(xs, **BASE), eta=0.0)
    assert_close(walk(silent, xs), walk(SGD(ys, **BASE), ys))


# --- all wrappers, alone and around each other ----------------------------------------------------------------

ONE = {
    "clipping": lambda base: AdaptiveClipping(base, ratio=2.0, floor=0.1),
    "sam": lambda base: SAM(base, rho=0.1),
    "asam": lambda base: SAM(base, rho=0.1, adaptive=True),
    "noise": lambda base: GradientNoise(base, eta=0.1, seed=3),
}
NESTED = [(name,) for name in ONE]
NESTED += list(itertools.permutations(["clipping", "sam", "noise"], 2))
NESTED += [("clipping", "sam", "noise"), ("noise", "sam", "clipping"), ("noise", "noise")]
one = pytest.mark.parametrize("name", ONE)
nested = pytest.mark.parametrize("names", NESTED, ids=" of ".join)


def _wrapped(names: tuple[str, ...], base: Optimizer) -> Optimizer:
    for name in reversed(names):
        base = ONE[name](base)
    return base


def _momentum(xs, **hyper) -> Optimizer:
    return SGD(xs, **{**BASE, **hyper})


def _innermost(optimizer: Optimizer) -> Optimizer:
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


@nested
def test_wrappers_share_groups_and_state_with_the_base(names):
    xs = parameters()
    base = _momentum([{"params": xs[:1]}, {"params": xs[1:], "lr": 0.01}])
    optimizer = _wrapped(names, base)
    assert isinstance(optimizer, Optimizer)
    assert _innermost(optimizer) is base
    walk(optimizer, xs, range(2))
    assert [id(g) for g in optimizer.param_groups] == [id(g) for g in base.param_groups]
    assert optimizer.state[xs[0]]["momentum_buffer"] is base.state[xs[0]]["momentum_buffer"]
    optimizer.param_groups[1]["lr"] = 0.0
    before = copies(xs)
    walk(optimizer, xs, range(1))
    moved = [not torch.equal(x, b) for x, b in zip(xs, before, strict=True)]
    assert moved == [True, False, False, False]
    optimizer.zero_grad()
    assert all(x.grad is None for x in xs)


@nested
def test_the_state_dictionary_is_that_of_the_base_and_what_the_wrappers_keep(names):
    xs = parameters()
    optimizer = _wrapped(names, _momentum(xs))
    walk(optimizer, xs, range(3))
    saved, of_base = optimizer.state_dict(), _innermost(optimizer).state_dict()
    assert saved.keys() == of_base.keys() | {"wrappers"}
    assert saved["param_groups"] == of_base["param_groups"]
    assert saved["state"].keys() == {0, 1, 2, 3}
    for i, x in enumerate(xs):
        assert_same(saved["state"][i], of_base["state"][i])
        assert saved["state"][i]["momentum_buffer"].shape == x.shape


@nested
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_a_wrapper_restored_from_its_state_goes_on_to_the_bit(names, stop):
    xs, ys = parameters(), parameters()
    whole = walk(_wrapped(names, _momentum(xs)), xs, range(15))
    first = _wrapped(names, _momentum(ys))
    walk(first, ys, range(stop))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    zs = [y.detach().clone().requires_grad_() for y in ys]
    second = _wrapped(names, _momentum(zs, lr=0.5))
    second.load_state_dict(torch.load(file, weights_only=True))
    groups = zip(second.param_groups, _innermost(second).param_groups, strict=True)
    assert all(ours is of_base for ours, of_base in groups)
    assert_same(walk(second, zs, range(stop, 15)), whole[stop:])


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda pair: pickle.loads(pickle.dumps(pair)),
}


@nested
@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_a_copy_goes_its_own_way_from_the_same_place(names, duplicate):
    xs = parameters()
    optimizer = _wrapped(names, _momentum(xs))
    walk(optimizer, xs, range(5))
    ys, other = duplicate((xs, optimizer))
    here = copies(xs)
    path = walk(other, ys, range(5, 10))
    assert_same(copies(xs), here)
    assert_same(walk(optimizer, xs, range(5, 10)), path)
    groups = zip(other.param_groups, _innermost(other).param_groups, strict=True)
    assert all(ours is of_base for ours, of_base in groups)


@nested
@pytest.mark.parametrize("target", ["wrapper", "base"])
def test_a_scheduler_of_wrapper_or_base_takes_effect_without_a_warning(names, target):
    xs, ys = parameters(), parameters()
    optimizer, by_hand = (_wrapped(names, _momentum(ps)) for ps in (xs, ys))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of = optimizer if target == "wrapper" else _innermost(optimizer)
        scheduler = lr_scheduler.StepLR(of, 4, gamma=0.25)
        path = walk(optimizer, xs, range(12), scheduler.step)
    expected = []
    for k in range(0, 12, 4):
        by_hand.param_groups[0]["lr"] = BASE["lr"] * 0.25 ** (k // 4)
        expected += walk(by_hand, ys, range(k, k + 4))
    assert_same(path, expected)


@nested
def test_a_scheduler_that_cycles_momentum_finds_it(names):
    xs, momenta = parameters(), []
    optimizer = _wrapped(names, _momentum(xs))
    scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    group = _innermost(optimizer).param_groups[0]
    walk(
        optimizer,
        xs,
        range(8),
        lambda: momenta.append(group["momentum"]) or scheduler.step(),
    )
    assert momenta[0] == pytest.approx(0.95)
    assert min(momenta) == momenta[2] == pytest.approx(0.85)


@nested
@pytest.mark.parametrize("before", [0, 3])
def test_a_group_can_be_added(names, before):
    xs, ys = parameters(), parameters()
    added = {"lr": 0.05, "rho": 0.3, "ratio": 1.0, "floor": 0.2}
    whole = _wrapped(names, _momentum([{"params": ys[:2]}, {"params": ys[2:], **added}]))
    grown = _wrapped(names, _momentum(xs[:2]))
    for p in (*xs[2:], *ys[2:]):
        p.requires_grad_(before == 0)
    for t in range(before):
        for optimizer, ps in ((whole, ys), (grown, xs)):
            optimizer.step(closure(optimizer, ps, t))
    for p in (*xs[2:], *ys[2:]):
        p.requires_grad_()
    grown.add_param_group({"params": xs[2:], **added})
    steps = range(before, 10)
    assert_same(walk(grown, xs, steps), walk(whole, ys, steps))
    assert len(_innermost(grown).param_groups) == 2


@one
def test_a_group_can_be_added_to_the_base(name):
    xs, ys = parameters(), parameters()
    whole, grown = ONE[name](_momentum(ys)), ONE[name](_momentum(xs[:2]))
    grown.optimizer.add_param_group({"params": xs[2:]})
    assert_close(walk(grown, xs, range(10)), walk(whole, ys, range(10)))


@nested
def test_an_added_group_has_the_wrappers_own_values_where_it_gives_none(names):
    xs, ys = parameters(), parameters()
    grown = _wrapped(names, _momentum(xs[:2]))
    grown.add_param_group({"params": xs[2:]})
    whole = _wrapped(names, _momentum(ys))
    assert_close(walk(grown, xs, range(10)), walk(whole, ys, range(10)))


@nested
def test_evaluation_is_that_of_the_base(names):
    xs = parameters()
    base = ClippedSSTM(xs, L=8.0, B=30.0)
    optimizer = _wrapped(names, base)
    walk(optimizer, xs, range(5))
    iterate = copies(xs)
    with base.evaluation():
        shown = copies(xs)
    with optimizer.evaluation():
        assert_same(copies(xs), shown)
    assert_same(copies(xs), iterate)
    assert not torch.equal(shown[2], iterate[2])


@nested
def test_evaluation_shows_the_iterate_of_a_base_that_has_no_other_point(names):
    xs = parameters()
    with _wrapped(names, _momentum(xs)).evaluation():
        assert_same(copies(xs), start())


@nested
def test_hooks_and_losses_of_a_step_come_once(names):
    xs, calls = parameters(), []
    optimizer = _wrapped(names, _momentum(xs))
    optimizer.register_step_post_hook(lambda *_: calls.append("step"))
    value = optimizer.step(closure(optimizer, xs, 0))
    assert value.item() == loss(start(), 0).item()
    assert calls == ["step"]


def test_clipping_of_sam_clips_both_gradients_and_sam_of_clipping_the_second():
    for names in (("clipping", "sam"), ("sam", "clipping")):
        xs = parameters()
        path = walk(_wrapped(names, _momentum(xs)), xs)
        ys, by_hand = start(), _Momentum([BASE] * 4)
        agc = {"ratio": 2.0, "floor": 0.1}
        for t in range(STEPS):
            gs = gradients(ys, t)
            if names[0] == "clipping":
                gs = [_adaptively_clipped(g, y, **agc) for g, y in zip(gs, ys, strict=True)]
            norm = _flat(gs).norm()
            perturbed = [y + 0.1 * g / norm for y, g in zip(ys, gs, strict=True)]
            at = perturbed if names[0] == "clipping" else ys
            gs = gradients(perturbed, t)
            gs = [_adaptively_clipped(g, y, **agc) for g, y in zip(gs, at, strict=True)]
            ys = by_hand.step(ys, gs)
            assert_close(path[t], ys)


def test_sam_of_clipped_sgd_clips_the_gradient_of_the_perturbed_point():
    xs, ys = parameters(), start()
    path = walk(SAM(ClippedSGD(xs, lr=0.02, level=20.0), rho=0.1), xs)
    for t in range(STEPS):
        gs = gradients(ys, t)
        norm = _flat(gs).norm()
        gs = gradients([y + 0.1 * g / norm for y, g in zip(ys, gs, strict=True)], t)
        scale = min(1, 20 / _flat(gs).norm().item())
        ys = [y - 0.02 * scale * g for y, g in zip(ys, gs, strict=True)]
        assert_close(path[t], ys)


def _radius(optimizer: SAM, xs: list[Tensor]) -> float:
    points = []
    _recorded(optimizer, xs, 0, points)
    return (_flat(points[1]) - _flat(points[0])).norm().item()


def test_a_hyper_parameter_of_the_base_with_the_same_name_is_another_one():
    xs, ys = parameters(), parameters()
    optimizer = SAM(torch.optim.Adadelta(xs, rho=0.7), rho=0.05)
    assert _radius(optimizer, xs) == pytest.approx(0.05)
    other = torch.optim.Adadelta(ys, rho=0.7)
    points = []
    _recorded(SAM(torch.optim.SGD(ys, lr=0.0), rho=0.05), ys, 0, points)
    for y, g in zip(ys, gradients(points[1], 0), strict=True):
        y.grad = g
    other.step()
    assert_close(copies(xs), copies(ys))


def test_the_last_of_two_wrappers_around_one_optimizer_has_its_own_radius():
    xs = parameters()
    base = SGD(xs, lr=0.0)
    SAM(base, rho=0.1)
    assert _radius(SAM(base, rho=0.7), xs) == pytest.approx(0.7)
    assert _radius(SAM(base), xs) == pytest.approx(0.05)


def test_two_clippings_around_each_other_keep_apart():
    xs = parameters()
    layers = {"ratio": 0.5, "floor": 0.3, "unit": "layer"}
    elements = {"ratio": 2.0, "floor": 0.1, "unit": "element"}
    optimizer = AdaptiveClipping(AdaptiveClipping(SGD(xs, **BASE), **layers), **elements)
    path = walk(optimizer, xs)
    ys, by_hand = start(), _Momentum([BASE] * 4)
    for t in range(STEPS):
        gs = gradients(ys, t)
        for hyper in (elements, layers):
            gs = [_adaptively_clipped(g, y, **hyper) for g, y in zip(gs, ys, strict=True)]
        ys = by_hand.step(ys, gs)
        assert_close(path[t], ys)


@one
def test_complex_parameters_are_refused(name):
    x = torch.zeros(2, dtype=torch.cdouble, requires_grad=True)
    with pytest.raises(ValueError, match=r"complex128"):
        ONE[name](SGD([x], lr=0.1))


@one
def test_only_optimizers_are_wrapped(name):
    with pytest.raises(TypeError, match="optimizer must be"):
        ONE[name](parameters())


@pytest.mark.parametrize(
    ("wrapper", "hyper", "message"),
    [
        (AdaptiveClipping, {"ratio": -0.1}, r"ratio .*-0\.1"),
        (AdaptiveClipping, {"floor": -1.0}, r"floor .*-1\.0"),
        (AdaptiveClipping, {"unit": "row"}, "unit .*row"),
        (SAM, {"rho": -0.5}, r"rho .*-0\.5"),
        (SAM, {"eta": -0.5}, r"eta .*-0\.5"),
        (GradientNoise, {"eta": -2.0}, r"eta .*-2\.0"),
        (GradientNoise, {"gamma": -2.0}, r"gamma .*-2\.0"),
    ],
)
def test_a_bad_hyper_parameter_is_refused_with_its_name_and_value(wrapper, hyper, message):
    with pytest.raises(ValueError, match=message):
        wrapper(_momentum(parameters()), **hyper)


@pytest.mark.parametrize(
    ("wrapper", "hyper", "message"),
    [
        (AdaptiveClipping, {"ratio": -0.1}, r"ratio .*-0\.1"),
        (AdaptiveClipping, {"floor": -1.0}, r"floor .*-1\.0"),
        (SAM, {"rho": -0.5}, r"rho .*-0\.5"),
    ],
)
def test_a_bad_hyper_parameter_of_a_group_is_refused_with_its_name_and_value(
    wrapper, hyper, message
):
    xs = parameters()
    with pytest.raises(ValueError, match=message):
        wrapper(_momentum([{"params": xs, **hyper}]))
    optimizer = wrapper(_momentum(xs[:2]))
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": xs[2:], **hyper})
    assert len(optimizer.param_groups) == len(optimizer.optimizer.param_groups) == 1
