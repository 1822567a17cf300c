"""Test surfaces on which a path can be seen, and the path of any optimizer on any function."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Surface:
    """A function of two variables with what is known about it.

    Calling it maps points of shape (..., 2) to values of shape (...).
    """

    name: str
    formula: str
    """In LaTeX, with x and y for the two coordinates."""
    function: Function
    domain: tuple[tuple[float, float], tuple[float, float]]
    """The part worth drawing, as ((left, right), (bottom, top))."""
    minima: tuple[tuple[float, float], ...] = ()
    """The local minima in the domain, the lowest first; empty if there are none."""

    def __call__(self, points: Tensor) -> Tensor:
        """Return the values at points of shape (..., 2)."""
        return self.function(points)

    def gradient(self, points: Tensor) -> Tensor:
        """Return the gradients at points of shape (..., 2), of the same shape."""
        points = points.detach().requires_grad_()
        return torch.autograd.grad(self(points).sum(), points)[0]

    def hessian(self, point: Tensor) -> Tensor:
        """Return the Hessian at one point of shape (2,), of shape (2, 2)."""
        return torch.autograd.functional.hessian(self.function, point.detach())


def ravine(condition: float = 50.0) -> Surface:
    """Quadratic with curvature 1 along x and ``condition`` along y: a valley along the x axis.

    Raises
    ------
    ValueError
        If ``condition`` is below 1.
    """
    if not condition >= 1:
        raise ValueError(f"condition must be 1 or more; got {condition}")
    return Surface(
        "ravine",
        rf"\tfrac12 (x^2 + {condition:g}\, y^2)",
        lambda points: (points[..., 0] ** 2 + condition * points[..., 1] ** 2) / 2,
        ((-1.2, 1.2), (-0.6, 0.6)),
        ((0.0, 0.0),),
    )


def double_well(tilt: float = 0.3) -> Surface:
    """Two valleys along x, near -1 and 1; a positive tilt makes the left one deeper.

    Raises
    ------
    ValueError
        If the tilt is negative, or so large (1.54) that only one valley is left.
    """
    if not 0 <= tilt < 1.539:
        raise ValueError(f"tilt must lie in [0, 1.539), where two minima exist; got {tilt}")
    left, _, right = sorted(np.roots([4, 0, -4, tilt]).real)
    return Surface(
        "double well",
        rf"(x^2 - 1)^2 + {tilt:g}\, x + y^2",
        lambda points: (
            (points[..., 0] ** 2 - 1) ** 2 + tilt * points[..., 0] + points[..., 1] ** 2
        ),
        ((-1.8, 1.8), (-1.2, 1.2)),
        ((float(left), 0.0), (float(right), 0.0)),
    )


rosenbrock = Surface(
    "Rosenbrock",
    r"(1 - x)^2 + 100\,(y - x^2)^2",
    lambda points: (
        (1 - points[..., 0]) ** 2 + 100 * (points[..., 1] - points[..., 0] ** 2) ** 2
    ),
    ((-2.0, 2.0), (-1.0, 3.0)),
    ((1.0, 1.0),),
)
"""A curved valley with a flat floor and steep walls."""

himmelblau = Surface(
    "Himmelblau",
    r"(x^2 + y - 11)^2 + (x + y^2 - 7)^2",
    lambda points: (
        (points[..., 0] ** 2 + points[..., 1] - 11) ** 2
        + (points[..., 0] + points[..., 1] ** 2 - 7) ** 2
    ),
    ((-5.0, 5.0), (-5.0, 5.0)),
    ((3.0, 2.0), (-2.805118, 3.131313), (-3.779310, -3.283186), (3.584428, -1.848127)),
)
"""Four minima, all of value 0."""

saddle = Surface(
    "saddle",
    r"x^2 - y^2",
    lambda points: points[..., 0] ** 2 - points[..., 1] ** 2,
    ((-1.5, 1.5), (-1.5, 1.5)),
)
"""A saddle point at the origin, and no minimum."""


def descend(
    function: Function,
    start: Sequence[float] | Tensor,
    optimizer: Callable[..., Optimizer],
    steps: int,
) -> Tensor:
    """Follow an optimizer on a function.

    Parameters
    ----------
    function
        Maps a point of shape (d,) to a number; a :class:`Surface` is one.
    start
        The first point, d numbers.
    optimizer
        Called with the list of parameters, for instance ``functools.partial(torch.optim.SGD, lr=0.1)``.
    steps
        Number of steps T.

    Returns
    -------
    Tensor
        The points, float64, of shape (T + 1, d). If they diverge, infinities and NaN are among them.
    """
    point = torch.as_tensor(start, dtype=torch.float64).clone().requires_grad_()
    method = optimizer([point])

    def closure() -> Tensor:
        method.zero_grad()
        value = function(point)
        value.backward()
        return value

    path = [point.detach().clone()]
    for _ in range(steps):
        method.step(closure)
        path.append(point.detach().clone())
    return torch.stack(path)
