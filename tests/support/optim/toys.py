"""A bumpy loss of four tensors with bursts in its gradient, and walks on it, for the tests of the methods."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

SHAPES = [(1,), (5,), (4, 3), (3, 2, 2, 2)]
STEPS = 50


def start() -> list[Tensor]:
    """Return the initial parameters, one of each shape."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator, dtype=torch.double) for s in SHAPES]


def loss(xs: Sequence[Tensor], t: int) -> Tensor:
    """Return the loss of step t; every seventh gradient is about twenty times as large."""
    burst = 20.0 if t % 7 == 3 else 1.0
    value = sum(x.sum() for x in xs).square() / 50
    for i, x in enumerate(xs):
        n = torch.arange(x.numel(), dtype=x.dtype).reshape(x.shape)
        curvature = 1 + (n + i) % 3
        value = value + (curvature * (x - torch.cos(n)).square() / 2).sum()
        value = (
            value + (torch.sin(3 * x) / 5 + burst * torch.cos(n + i + 1.7 * t) * x).sum()
        )
    return value


def gradients(xs: Sequence[Tensor], t: int) -> list[Tensor]:
    xs = [x.detach().clone().requires_grad_() for x in xs]
    return list(torch.autograd.grad(loss(xs, t), xs))


def parameters() -> list[Tensor]:
    return [x.requires_grad_() for x in start()]


def grouped(xs: Sequence[Tensor], groups: Sequence[tuple[str, dict]]) -> list[dict]:
    """Return parameter groups: ("02", {...}) holds the parameters 0 and 2 and the hyper-parameters."""
    return [{"params": [xs[int(i)] for i in which], **hyper} for which, hyper in groups]


def spread(groups: Sequence[tuple[str, dict]], **defaults: object) -> list[dict]:
    """Return the hyper-parameters of each parameter."""
    hyper = {int(i): {**defaults, **own} for which, own in groups for i in which}
    return [hyper[i] for i in range(len(SHAPES))]


def closure(optimizer: Optimizer, xs: Sequence[Tensor], t: int) -> Callable[[], Tensor]:
    def call() -> Tensor:
        optimizer.zero_grad()
        value = loss(xs, t)
        value.backward()
        return value

    return call


def walk(
    optimizer: Optimizer,
    xs: Sequence[Tensor],
    steps: Sequence[int] = range(STEPS),
    after: Callable[[], object] = lambda: None,
) -> list[list[Tensor]]:
    """Step with a closure, call ``after``; returns the parameters after each step."""
    path = []
    for t in steps:
        optimizer.step(closure(optimizer, xs, t))
        path.append(copies(xs))
        after()
    return path


def copies(xs: Sequence[Tensor]) -> list[Tensor]:
    return [x.detach().clone() for x in xs]


def assert_close(found: object, expected: object, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def assert_same(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
