"""Lion (M49 with errata KU-18 to KU-20) against its formulas and two other implementations."""

import lion_pytorch
import pytest
import pytorch_optimizer
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

from support.optim import Lion

pytestmark = pytest.mark.usefixtures("untouched_random_state")

DEFAULTS = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0}
GROUPS = [
    ("02", {"lr": 0.02, "weight_decay": 0.3}),
    ("3", {"betas": (0.5, 0.8)}),
    ("1", {"lr": 0.005, "betas": (0.95, 0.98), "weight_decay": 0.01}),
]


def _lion(hyper: list[dict]) -> list[list[Tensor]]:
    xs = start()
    ms = [torch.zeros_like(x) for x in xs]
    path = []
    for t in range(STEPS):
        gs = gradients(xs, t)
        for i, (g, h) in enumerate(zip(gs, hyper, strict=True)):
            beta1, beta2 = h["betas"]
            c = beta1 * ms[i] + (1 - beta1) * g
            xs[i] = xs[i] - h["lr"] * (torch.sign(c) + h["weight_decay"] * xs[i])
            ms[i] = beta2 * ms[i] + (1 - beta2) * g
        path.append(list(xs))
    return path


@pytest.mark.parametrize(
    "hyper",
    [
        {},
        {"lr": 0.01},
        {"lr": 0.01, "weight_decay": 0.5},
        {"lr": 0.01, "betas": (0.3, 0.6)},
        {"lr": 0.01, "betas": (0.0, 0.0)},
    ],
)
def test_lion_takes_the_steps_of_its_paper(hyper):
    xs = parameters()
    assert_close(walk(Lion(xs, **hyper), xs), _lion([{**DEFAULTS, **hyper}] * 4))


def test_groups_of_lion_have_their_own_hyper_parameters():
    xs = parameters()
    optimizer = Lion(grouped(xs, GROUPS), lr=0.01)
    expected = _lion(spread(GROUPS, **{**DEFAULTS, "lr": 0.01}))
    assert_close(walk(optimizer, xs), expected)


@pytest.mark.parametrize("other", [lion_pytorch.Lion, pytorch_optimizer.Lion])
def test_two_other_implementations_go_the_same_way(other):
    xs, ys = parameters(), parameters()
    ours, theirs = Lion(grouped(xs, GROUPS), lr=0.01), other(grouped(ys, GROUPS), lr=0.01)
    assert_close(walk(ours, xs), walk(theirs, ys))


def _direction(optimizer: Lion, x: Tensor, gradient: float) -> float:
    before = x.item()
    x.grad = torch.full_like(x, gradient)
    optimizer.step()
    return (x.item() - before) / optimizer.param_groups[0]["lr"]


def test_the_betas_are_not_exchanged():
    # m = 0.01, so that c = 0.9 * 0.01 + 0.1 g changes its sign at g = -0.09; exchanged it would do so at -9.9
    for gradient, expected in [(-0.08, -1), (-0.1, 1), (-9, 1)]:
        x = torch.zeros(1, dtype=torch.double, requires_grad=True)
        optimizer = Lion([x], lr=0.5)
        assert _direction(optimizer, x, 1.0) == -1  # the first step is not lost (KU-19)
        assert _direction(optimizer, x, gradient) == expected


def test_the_memory_is_as_long_as_the_second_beta_says():
    # m = 0.99^n after n zero gradients, so that 0.9 m - 0.1 * 5 changes its sign between n = 58 and 59
    for zeros, expected in [(58, -1), (59, 1)]:
        x = torch.zeros(1, dtype=torch.double, requires_grad=True)
        optimizer = Lion([x], lr=0.5)
        _direction(optimizer, x, 100.0)
        assert [_direction(optimizer, x, 0.0) for _ in range(zeros)] == [-1] * zeros
        assert _direction(optimizer, x, -5.0) == expected


def test_weight_decay_is_decoupled():
    x = torch.tensor([3.0, -2.0], dtype=torch.double, requires_grad=True)
    optimizer = Lion([x], lr=0.1, weight_decay=0.5)
    for k in range(1, 20):
        x.grad = torch.zeros_like(x)
        optimizer.step()
        expected = torch.tensor([3.0, -2.0]).double() * (1 - 0.1 * 0.5) ** k
        assert_close(x.detach(), expected)


def test_a_step_moves_every_coordinate_by_lr_whatever_the_size_of_the_gradient():
    xs = parameters()
    optimizer = Lion(xs, lr=0.01)
    for t in range(STEPS):
        before = copies(xs)
        optimizer.step(closure(optimizer, xs, t))
        for x, b in zip(xs, before, strict=True):
            assert_close((x.detach() - b).abs(), torch.full_like(b, 0.01))


def test_a_scheduler_sets_the_step():
    xs, ys = parameters(), parameters()
    ours, theirs = Lion(xs, lr=0.02), lion_pytorch.Lion(ys, lr=0.02)
    found = walk(ours, xs, after=lr_scheduler.StepLR(ours, 10, gamma=0.5).step)
    for k in range(0, STEPS, 10):
        theirs.param_groups[0]["lr"] = 0.02 * 0.5 ** (k // 10)
        assert_close(found[k : k + 10], walk(theirs, ys, range(k, k + 10)))


def test_a_step_with_a_closure_is_backward_and_a_step_and_leaves_the_gradient():
    xs, ys = parameters(), parameters()
    ours, other = Lion(xs, lr=0.01), Lion(ys, lr=0.01)
    for t in range(10):
        value = closure(other, ys, t)()
        expected = [y.grad.clone() for y in ys]
        assert other.step() is None
        assert_same([y.grad for y in ys], expected)
        assert ours.step(closure(ours, xs, t)).item() == value.item()
    assert_same(copies(xs), copies(ys))


def test_a_parameter_without_a_gradient_stands_still():
    xs = parameters()
    xs[2].requires_grad_(False)
    walk(Lion(xs, lr=0.01, weight_decay=0.5), xs, range(5))
    assert_same(xs[2], start()[2])


def test_a_bfloat16_parameter_is_rounded_once_a_step():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, generator=generator).bfloat16().requires_grad_()
    optimizer, m = Lion([x], lr=0.02, weight_decay=0.5), torch.zeros(2000)
    for _ in range(10):
        before = x.detach().float()
        x.grad = torch.randn(2000, generator=generator).bfloat16()
        g = x.grad.float()
        optimizer.step()
        expected = before - 0.02 * (torch.sign(0.9 * m + 0.1 * g) + 0.5 * before)
        m = 0.99 * m + 0.01 * g
        differing = expected.bfloat16() != x.detach()
        assert differing.sum() <= 4  # near a tie


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"lr": -1.0}, r"lr must .* got -1\.0"),
        ({"betas": (1.0, 0.9)}, r"betas.*1\.0"),
        ({"betas": (0.9, -0.1)}, r"betas.*-0\.1"),
        ({"weight_decay": -0.5}, r"weight_decay.*-0\.5"),
    ],
)
def test_a_bad_hyper_parameter_is_refused_with_its_name_and_value(hyper, message):
    xs = parameters()
    with pytest.raises(ValueError, match=message):
        Lion(xs, **hyper)
    with pytest.raises(ValueError, match=message):
        Lion([{"params": xs, **hyper}])
    optimizer = Lion(xs[:1])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": xs[1:], **hyper})
