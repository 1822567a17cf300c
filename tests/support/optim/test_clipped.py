"""Clipping, clipped-SGD and clipped-SSTM (M39-M42) against the formulas, step by step."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler
from toys import (
    STEPS,
    assert_close,
    assert_same,
    closure,
    copies,
    gradients,
    grouped,
    parameters,
    spread,
    start,
    walk,
)

from support.optim import ClippedSGD, ClippedSSTM, clip

pytestmark = pytest.mark.usefixtures("untouched_random_state")

KINDS = ["norm", "layer", "coordinate"]

# --- clip -----------------------------------------------------------------------------------------------------


def _clipped(vectors: list[Tensor], levels: list[float], kinds: list[str]) -> list[Tensor]:
    """Clip each tensor in its own way, by the definitions (M39, M40, ZH-23)."""
    together = math.sqrt(
        sum(
            e * e
            for v, k in zip(vectors, kinds, strict=True)
            if k == "norm"
            for e in _numbers(v)
        )
    )
    result = []
    for v, level, kind in zip(vectors, levels, kinds, strict=True):
        if kind == "coordinate":
            numbers = [min(1, level / abs(e)) * e if e else 0.0 for e in _numbers(v)]
            result.append(torch.tensor(numbers, dtype=v.dtype).reshape(v.shape))
            continue
        norm = together if kind == "norm" else math.sqrt(sum(e * e for e in _numbers(v)))
        result.append(v * min(1, level / norm) if norm else v)
    return result


def _numbers(tensor: Tensor) -> list[float]:
    return tensor.flatten().tolist()


def _number_changed(before: list[Tensor], after: list[Tensor]) -> int:
    return sum(not torch.equal(b, a) for b, a in zip(before, after, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [0.1, 1.0, 3.0, 1e3, math.inf])
def test_clip_is_what_the_definition_says(kind, level):
    given = gradients(start(), 0)
    before = copies(given)
    found = clip(given, level, kind)
    assert_close(found, _clipped(given, [level] * 4, [kind] * 4))
    assert_same(given, before)
    assert not {g.data_ptr() for g in given} & {f.data_ptr() for f in found}


def test_kinds_of_clipping_differ_as_erratum_zh_23_says():
    gradient = [torch.tensor([3.0, -0.05, 0.4])]
    (by_norm,), (by_coordinate,) = clip(gradient, 0.1), clip(gradient, 0.1, "coordinate")
    assert_close(by_norm, torch.tensor([0.0991, -0.0017, 0.0132]), 1e-4)
    assert_close(by_coordinate, torch.tensor([0.1, -0.05, 0.1]), 1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [0.1, math.inf])
def test_zero_stays_zero(kind, level):
    zeros = [torch.zeros(3, 2), torch.zeros(1)]
    assert_same(clip(zeros, level, kind), zeros)


@pytest.mark.parametrize(
    ("level", "kind", "message"),
    [
        (1.0, "global", "global"),
        (0.0, "norm", r"level .* 0\.0"),
        (-2.0, "layer", r"level .* -2\.0"),
        (math.nan, "coordinate", "level .* nan"),
    ],
)
def test_a_wrong_kind_or_level_is_refused(level, kind, message):
    with pytest.raises(ValueError, match=message):
        clip([torch.ones(2)], level, kind)
    with pytest.raises(ValueError, match=message):
        ClippedSGD([torch.ones(2, requires_grad=True)], lr=0.1, level=level, clip=kind)


# --- clipped-SGD ----------------------------------------------------------------------------------------------

SGD = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "clip": "norm"}
LEVEL = {"norm": 25.0, "layer": 12.0, "coordinate": 3.0}


def _clipped_sgd(hyper: list[dict], clip_momentum: bool) -> list[list[Tensor]]:
    xs = start()
    bs = [torch.zeros_like(x) for x in xs]
    levels, kinds = [h["level"] for h in hyper], [h["clip"] for h in hyper]
    path, fired = [], 0
    for t in range(STEPS):
        gs = gradients(xs, t)
        if not clip_momentum:
            cs = _clipped(gs, levels, kinds)
            fired += _number_changed(gs, cs)
            gs = cs
        us = []
        for i, (x, g, h) in enumerate(zip(xs, gs, hyper, strict=True)):
            d = g + h["weight_decay"] * x
            bs[i] = h["momentum"] * bs[i] + d
            us.append(d + h["momentum"] * bs[i] if h["nesterov"] else bs[i])
        if clip_momentum:
            cs = _clipped(us, levels, kinds)
            fired += _number_changed(us, cs)
            us = cs
        xs = [x - h["lr"] * u for x, u, h in zip(xs, us, hyper, strict=True)]
        path.append(xs)
    assert 0 < fired < 4 * STEPS
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip_momentum", [False, True])
@pytest.mark.parametrize(
    "inertia", [{}, {"momentum": 0.8}, {"momentum": 0.8, "nesterov": True}]
)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_clipped_sgd_takes_the_steps_of_algorithm_3_2(
    kind, clip_momentum, inertia, weight_decay
):
    hyper = {"lr": 0.02, "level": LEVEL[kind], "clip": kind, "weight_decay": weight_decay}
    xs = parameters()
    path = walk(ClippedSGD(xs, **hyper, **inertia, clip_momentum=clip_momentum), xs)
    assert_close(path, _clipped_sgd([{**SGD, **hyper, **inertia}] * 4, clip_momentum))


@pytest.mark.parametrize("clip_momentum", [False, True])
@pytest.mark.parametrize("kinds", ["nnn", "nln", "cnn", "lcn", "lll", "ccc"])
def test_groups_of_clipped_sgd_have_one_norm_and_their_own_hyper_parameters(
    kinds, clip_momentum
):
    names = dict(zip("nlc", KINDS, strict=True))
    of_group = [names[k] for k in kinds]
    groups = [
        ("02", {"lr": 0.03, "level": 60.0, "momentum": 0.9, "nesterov": True}),
        ("3", {"lr": 0.01, "level": 25.0, "weight_decay": 0.2}),
        ("1", {"level": 12.0, "momentum": 0.5, "weight_decay": 0.01}),
    ]
    groups = [(w, {**h, "clip": k}) for (w, h), k in zip(groups, of_group, strict=True)]
    xs = parameters()
    optimizer = ClippedSGD(
        grouped(xs, groups), lr=0.02, level=4.0, clip_momentum=clip_momentum
    )
    expected = _clipped_sgd(spread(groups, **{**SGD, "lr": 0.02}), clip_momentum)
    assert_close(walk(optimizer, xs), expected)


@pytest.mark.parametrize("nesterov", [False, True])
def test_clipped_sgd_is_clip_grad_norm_and_torchs_sgd(nesterov):
    hyper = {"lr": 0.02, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.1}
    xs, ys = parameters(), parameters()
    ours, theirs = ClippedSGD(xs, level=20.0, **hyper), torch.optim.SGD(ys, **hyper)
    for t in range(STEPS):
        ours.step(closure(ours, xs, t))
        closure(theirs, ys, t)()
        norm = torch.nn.utils.get_total_norm([y.grad for y in ys])
        # clip_grad_norm_ divides by norm + 1e-6
        torch.nn.utils.clip_grads_with_norm_(ys, 20.0, norm - 1e-6)
        theirs.step()
        assert_close(copies(xs), copies(ys))


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_clipping_after_momentum_bounds_every_step_by_lr_times_level(
    kind, nesterov, weight_decay
):
    xs = [
        torch.full((3, 2), 50.0).double().requires_grad_(),
        torch.ones(4).double().requires_grad_(),
    ]
    hyper = {"momentum": 0.9, "nesterov": nesterov, "weight_decay": weight_decay}
    optimizer = ClippedSGD(xs, lr=0.1, level=2.0, clip=kind, clip_momentum=True, **hyper)
    generator = torch.Generator().manual_seed(0)
    longest = 0.0
    for _ in range(30):
        before = copies(xs)
        for x in xs:
            x.grad = 1 + torch.randn(x.shape, generator=generator, dtype=torch.double)
        optimizer.step()
        steps = [x.detach() - b for x, b in zip(xs, before, strict=True)]
        lengths = {
            "norm": [torch.cat([s.flatten() for s in steps]).norm()],
            "layer": [s.norm() for s in steps],
            "coordinate": [s.abs().max() for s in steps],
        }[kind]
        longest = max(longest, *(length.item() for length in lengths))
    assert longest == pytest.approx(0.2, rel=1e-12)


def test_clipping_before_momentum_lets_the_step_grow_to_the_sum_of_the_series():
    x = torch.zeros(3, dtype=torch.double, requires_grad=True)
    optimizer = ClippedSGD([x], lr=0.1, level=2.0, momentum=0.9)
    for _ in range(300):
        before = x.detach().clone()
        x.grad = torch.full_like(x, 100)
        optimizer.step()
    assert (x.detach() - before).norm().item() == pytest.approx(0.1 * 2 / (1 - 0.9))


@pytest.mark.parametrize("clip_momentum", [False, True])
def test_average_is_the_mean_of_the_points_before_the_steps(clip_momentum):
    level = 100.0 if clip_momentum else 20.0
    hyper = {"lr": 0.02, "level": level, "momentum": 0.9}
    xs = parameters()
    optimizer = ClippedSGD(xs, **hyper, clip_momentum=clip_momentum, average=True)
    shown = []

    def show():
        with optimizer.evaluation():
            shown.append(copies(xs))

    path = walk(optimizer, xs, after=show)
    assert_close(path, _clipped_sgd([{**SGD, **hyper}] * 4, clip_momentum))
    points = [start(), *path[:-1]]
    for N in range(1, STEPS + 1):
        mean = [sum(p[i] for p in points[:N]) / N for i in range(4)]
        assert_close(shown[N - 1], mean)


def test_without_average_evaluation_shows_the_iterate():
    xs = parameters()
    optimizer = ClippedSGD(xs, lr=0.02, level=20.0)
    walk(optimizer, xs, range(3))
    before = copies(xs)
    with optimizer.evaluation():
        assert_same(copies(xs), before)


def test_nesterov_needs_momentum():
    with pytest.raises(ValueError, match="momentum"):
        ClippedSGD(parameters(), lr=0.1, level=1.0, nesterov=True)
    with pytest.raises(ValueError, match="momentum"):
        ClippedSGD(grouped(parameters(), [("01", {"nesterov": True})]), lr=0.1, level=1.0)


# --- clipped-SSTM ---------------------------------------------------------------------------------------------

SSTM = {"a": 1.0, "lr": 1.0, "clip": "norm"}


class _ClippedSSTM:
    """Algorithm 3.3 of zholobov2021, its variables in lists over the parameters."""

    def __init__(self, hyper: list[dict]) -> None:
        self.hyper, self.k, self.clipped = hyper, 0, 0
        self.y, self.z, self.x = start(), start(), start()
        self.A = [0.0] * len(hyper)
        self.alpha = [h["lr"] * 2 / (2 * h["a"] * h["L"]) for h in hyper]

    def step(self, t: int) -> None:
        """Take the step whose gradient is that of loss t."""
        alpha, A, y, z = self.alpha, self.A, self.y, self.z
        gs = gradients(self.x, t)
        levels = [h["B"] / a for h, a in zip(self.hyper, alpha, strict=True)]
        cs = _clipped(gs, levels, [h["clip"] for h in self.hyper])
        self.clipped += _number_changed(gs, cs)
        for i, g in enumerate(cs):
            z[i] = z[i] - alpha[i] * g
            y[i] = (A[i] * y[i] + alpha[i] * z[i]) / (A[i] + alpha[i])
            A[i] = A[i] + alpha[i]
        self.k += 1
        for i, h in enumerate(self.hyper):
            alpha[i] = h["lr"] * (self.k + 2) / (2 * h["a"] * h["L"])
            self.x[i] = (A[i] * y[i] + alpha[i] * z[i]) / (A[i] + alpha[i])


def _walk_sstm(
    optimizer: ClippedSSTM, xs: list[Tensor], steps=range(STEPS), after=lambda: None
):
    """Return the points x and y after each step."""
    shown = []

    def show():
        with optimizer.evaluation():
            shown.append(copies(xs))
        after()

    return walk(optimizer, xs, steps, show), shown


B = {"norm": 40.0, "layer": 20.0, "coordinate": 6.0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hyper", [{"L": 8.0}, {"L": 3.0, "a": 4.0}, {"L": 8.0, "lr": 0.7}])
def test_clipped_sstm_takes_the_steps_of_algorithm_3_3(kind, hyper):
    hyper = {**hyper, "B": B[kind], "clip": kind}
    xs = parameters()
    x, y = _walk_sstm(ClippedSSTM(xs, **hyper), xs)
    reference = _ClippedSSTM([{**SSTM, **hyper}] * 4)
    for t in range(STEPS):
        reference.step(t)
        assert_close(x[t], reference.x)
        assert_close(y[t], reference.y)
    assert 0 < reference.clipped < 4 * STEPS


@pytest.mark.parametrize("kinds", ["nnn", "nln", "cnn", "lcn"])
def test_groups_of_clipped_sstm_have_one_norm_and_their_own_schedule(kinds):
    names = dict(zip("nlc", KINDS, strict=True))
    groups = [
        ("02", {"L": 9.0, "a": 1.5, "B": 30.0}),
        ("3", {"L": 20.0, "B": 6.0}),
        ("1", {"a": 3.0, "B": 9.0, "lr": 0.5}),
    ]
    groups = [(w, {**h, "clip": names[k]}) for (w, h), k in zip(groups, kinds, strict=True)]
    xs = parameters()
    optimizer = ClippedSSTM(grouped(xs, groups), L=8.0, B=1.0)
    x, y = _walk_sstm(optimizer, xs)
    reference = _ClippedSSTM(spread(groups, **{**SSTM, "L": 8.0}))
    for t in range(STEPS):
        reference.step(t)
        assert_close(x[t], reference.x)
        assert_close(y[t], reference.y)
    assert 0 < reference.clipped < 4 * STEPS
    sums = [group["A"] for group in optimizer.param_groups]
    assert sums == pytest.approx([reference.A[i] for i in (0, 3, 1)], rel=1e-12)


@pytest.mark.parametrize(("L", "a"), [(1.0, 1.0), (7.0, 2.5)])
def test_sums_of_the_steps_have_the_closed_form(L, a):
    xs = parameters()
    optimizer = ClippedSSTM(xs, L=L, B=1.0, a=a)
    (group,) = optimizer.param_groups
    assert (group["step"], group["A"]) == (0, 0)
    for k in range(1, 101):
        optimizer.step(closure(optimizer, xs, k))
        assert group["step"] == k
        assert group["A"] == pytest.approx(k * (k + 3) / (4 * a * L), rel=1e-13)


def test_clipped_sstm_is_the_authors_scheme_on_a_noisy_quadratic():
    n, N, L, a, level = 20, 200, 4.0, 2.0, 30.0
    H = np.diag(np.linspace(0.1, L, n))
    noise = np.random.default_rng(0).standard_t(1.5, size=(N, n))
    x0 = np.arange(1.0, n + 1) / n

    A, y, z, clipped = 0.0, x0.copy(), x0.copy(), 0
    for k in range(N):
        alpha = (k + 2) / (2 * a * L)
        A_next = A + alpha
        x = (A * y + alpha * z) / A_next
        gradient = H @ x + noise[k]
        norm = np.linalg.norm(gradient)
        if norm > level / alpha:
            gradient = gradient / norm * level / alpha
            clipped += 1
        z = z - alpha * gradient
        y = (A * y + alpha * z) / A_next
        A = A_next
    assert N / 10 < clipped < N

    p = torch.tensor(x0, requires_grad=True)
    optimizer = ClippedSSTM([p], L=L, B=level, a=a)
    for k in range(N):
        p.grad = torch.tensor(H @ p.detach().numpy() + noise[k])
        optimizer.step()
    with optimizer.evaluation():
        assert_close(p.detach(), torch.tensor(y))


def _spectra() -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> eigenvalues and the point of start minus the solution."""
    n = 60
    wide = torch.logspace(-7, 0, n, dtype=torch.double)
    chain = 2 - 2 * torch.cos(torch.pi * torch.arange(1, n + 1) / (n + 1)).double()
    return {
        "equal mass at all scales": (wide, torch.ones(n).double()),
        "one flat direction": (wide[[10, -1]], torch.tensor([30.0, 1.0]).double()),
        "well conditioned": (torch.linspace(0.5, 1, n).double(), torch.randn(
            n, generator=torch.Generator().manual_seed(0)
        ).double()),
        "chain": (5 * chain, torch.linspace(1, -1, n).double()),
    }  # fmt: skip


def _gaps(
    eigenvalues: Tensor, start: Tensor, a: float, N: int
) -> tuple[list[float], float]:
    """Return f(y_k) - f* for k = 1..N, without noise and clipping, and L."""
    L = eigenvalues.max().item()
    x = start.clone().requires_grad_()
    optimizer = ClippedSSTM([x], L=L, B=math.inf, a=a)
    gaps = []
    for _ in range(N):
        x.grad = eigenvalues * x.detach()
        optimizer.step()
        with optimizer.evaluation():
            gaps.append((eigenvalues * x.detach().square()).sum().item() / 2)
    return gaps, L


@pytest.mark.parametrize("name", _spectra())
@pytest.mark.parametrize("a", [1.0, 3.0])
def test_without_noise_and_clipping_the_bound_of_the_method_holds_at_all_times(name, a):
    eigenvalues, x0 = _spectra()[name]
    gaps, L = _gaps(eigenvalues, x0, a, 400)
    R = x0.square().sum().item()
    for N, gap in enumerate(gaps, 1):
        assert gap <= 2 * a * L * R / (N * (N + 3))


def test_the_rate_of_the_method_is_the_square_of_the_number_of_steps():
    gaps, _ = _gaps(*_spectra()["equal mass at all scales"], 1.0, 400)
    N = np.arange(10, 401)
    slope, _ = np.polyfit(np.log(N), np.log(gaps[9:]), 1)
    assert -2.15 < slope < -1.85


# --- both -----------------------------------------------------------------------------------------------------

OURS = {
    "averaging": lambda xs: ClippedSGD(xs, lr=0.02, level=20.0, momentum=0.9, average=True),
    "sstm": lambda xs: ClippedSSTM(xs, L=8.0, B=30.0),
}
ours = pytest.mark.parametrize("build", OURS.values(), ids=OURS)


@ours
def test_evaluation_shows_another_point_and_puts_the_iterate_back_to_the_bit(build):
    xs, ys = parameters(), parameters()
    optimizer, undisturbed = build(xs), build(ys)
    for t in range(20):
        optimizer.step(closure(optimizer, xs, t))
        undisturbed.step(closure(undisturbed, ys, t))
        for _ in range(2):
            before = copies(xs)
            with optimizer.evaluation():
                moved = [not torch.equal(b, x) for b, x in zip(before, xs, strict=True)]
                assert all(moved) or t < 2
            assert_same(copies(xs), before)
    assert_same(copies(xs), copies(ys))


@ours
def test_an_exception_in_the_context_does_not_lose_the_iterate(build):
    xs = parameters()
    optimizer = build(xs)
    walk(optimizer, xs, range(5))
    before = copies(xs)
    with pytest.raises(KeyboardInterrupt), optimizer.evaluation():
        raise KeyboardInterrupt
    assert_same(copies(xs), before)


@ours
def test_before_the_first_step_evaluation_shows_the_start(build):
    xs = parameters()
    with build(xs).evaluation():
        assert_same(copies(xs), start())
    assert_same(copies(xs), start())


@ours
def test_the_gradient_is_left_as_it_was(build):
    xs = parameters()
    optimizer = build(xs)
    for t in (0, 1, 3):
        expected = gradients(xs, t)
        optimizer.step(closure(optimizer, xs, t))
        assert_close([x.grad for x in xs], expected, 1e-15)


@ours
def test_a_step_with_a_closure_is_backward_and_a_step_and_returns_the_loss(build):
    xs, ys = parameters(), parameters()
    optimizer, other = build(xs), build(ys)
    for t in range(10):
        value = closure(other, ys, t)()
        assert other.step() is None
        assert optimizer.step(closure(optimizer, xs, t)).item() == value.item()
    assert_same(copies(xs), copies(ys))


@ours
def test_a_bfloat16_parameter_is_rounded_once_a_step(build):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, generator=generator).bfloat16().requires_grad_()
    y = x.detach().float().requires_grad_()
    optimizer, precise = build([x]), build([y])
    for _ in range(10):
        x.grad = torch.randn(2000, generator=generator).bfloat16()
        y.grad = x.grad.float()
        optimizer.step()
        precise.step()
        assert (y.detach().bfloat16() != x.detach()).sum() <= 4  # near a tie
        if isinstance(
            optimizer, ClippedSGD
        ):  # its parameter is all that it keeps of the point
            y.data.copy_(x.data)
        for state in optimizer.state[x].values():
            assert state.dtype == torch.float


def test_clipped_sgd_skips_parameters_without_a_gradient():
    xs = parameters()
    xs[2].requires_grad_(False)
    walk(ClippedSGD(xs, lr=0.02, level=20.0, weight_decay=0.1, momentum=0.9), xs, range(5))
    assert_same(xs[2], start()[2])
    assert not torch.equal(xs[3], start()[3])


def test_clipped_sstm_takes_a_missing_gradient_for_zero():
    xs, ys = parameters(), parameters()
    optimizer, other = OURS["sstm"](xs), OURS["sstm"](ys)
    for t in range(20):
        for x, y, g in zip(xs, ys, gradients(xs, t), strict=True):
            missing = x.ndim == 2 and t % 3 == 1
            x.grad = None if missing else g
            y.grad = torch.zeros_like(g) if missing else g.clone()
        optimizer.step()
        other.step()
        assert_same(copies(xs), copies(ys))


def test_a_scheduler_sets_the_step_of_clipped_sgd():
    xs, ys = parameters(), start()
    optimizer = ClippedSGD(xs, lr=0.04, level=20.0)
    path = walk(optimizer, xs, after=lr_scheduler.StepLR(optimizer, 10, gamma=0.5).step)
    for t in range(STEPS):
        cs = _clipped(gradients(ys, t), [20.0] * 4, ["norm"] * 4)
        ys = [y - 0.04 * 0.5 ** (t // 10) * c for y, c in zip(ys, cs, strict=True)]
        assert_close(path[t], ys)


SCHEDULERS = {
    "steps": lambda optimizer: lr_scheduler.StepLR(optimizer, 7, gamma=0.5),
    "warm-up": lambda optimizer: lr_scheduler.LinearLR(optimizer, 0.1, total_iters=10),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_scheduler_sets_the_alphas_that_are_not_yet_mixed_into_x(kind):
    xs = parameters()
    optimizer = ClippedSSTM(xs, L=8.0, B=30.0)
    scheduler = SCHEDULERS[kind](optimizer)
    hyper = {**SSTM, "L": 8.0, "B": 30.0}
    rates = [scheduler.get_last_lr()[0]]
    path, shown = _walk_sstm(
        optimizer,
        xs,
        after=lambda: scheduler.step() or rates.extend(scheduler.get_last_lr()),
    )
    hyper["lr"] = rates[0]  # of alpha_1, which x^1 = x^0 does not depend on, and of alpha_2
    reference = _ClippedSSTM([hyper] * 4)
    for t in range(STEPS):
        hyper["lr"] = rates[t]
        reference.step(t)
        assert_close(path[t], reference.x)
        assert_close(shown[t], reference.y)
    assert len(set(rates)) > 5
