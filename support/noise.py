"""Laws of noise with mean 0 and variance 1, from light tails to heavy ones."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Noise:
    """A law of independent random numbers with mean 0 and variance 1.

    Called with a shape and a generator it returns as many numbers, float64 and on the CPU. A gradient with
    noise of the variance :math:`\\sigma^2` is ``gradient + sigma / d**0.5 * law(gradient.shape, generator)`` for
    a gradient with d entries.
    """

    name: str
    tail_index: float
    """Moments of the absolute value are finite below this order and infinite above; infinite if all exist."""
    raw: Callable[[Sequence[int], torch.Generator], Tensor]
    """Draws before they are centred and scaled."""
    mean: float = 0.0
    variance: float = 1.0
    """Mean and variance of the raw draws."""

    def __call__(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Return independent draws of this shape."""
        return (self.raw(shape, generator) - self.mean) / math.sqrt(self.variance)


def _uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return numbers in (0, 1], so that their logarithm is finite."""
    return 1 - torch.rand(shape, generator=generator, dtype=torch.float64)


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def gaussian() -> Noise:
    """Return the normal law."""
    return Noise("Gaussian", math.inf, _normal)


def student(degrees: float = 3.0) -> Noise:
    r"""Return Student's law, symmetric, whose density falls like :math:`|x|^{-\nu-1}` with :math:`\nu` degrees.

    It is drawn by Bailey's (1994) polar method.

    Raises
    ------
    ValueError
        If ``degrees`` is not above 2, where the variance is finite.
    """
    if not 2 < degrees < math.inf:
        raise ValueError(f"degrees must be a number above 2; got {degrees}")

    def raw(shape: Sequence[int], generator: torch.Generator) -> Tensor:
        radius = (
            degrees * torch.expm1(-2 / degrees * _uniform(shape, generator).log())
        ).sqrt()
        return radius * torch.cos(2 * math.pi * _uniform(shape, generator))

    return Noise("Student", degrees, raw, 0.0, degrees / (degrees - 2))


def weibull(shape: float = 0.5) -> Noise:
    r"""Return Weibull's law, :math:`\mathbb P(X > x) = e^{-x^k}`, centred: all moments exist, though for a
    shape :math:`k < 1` the tail is heavier than any exponential.

    Raises
    ------
    ValueError
        If ``shape`` is not positive.
    """
    if not 0 < shape < math.inf:
        raise ValueError(f"shape must be a positive number; got {shape}")

    def raw(size: Sequence[int], generator: torch.Generator) -> Tensor:
        return (-_uniform(size, generator).log()) ** (1 / shape)

    mean = math.gamma(1 + 1 / shape)
    return Noise("Weibull", math.inf, raw, mean, math.gamma(1 + 2 / shape) - mean**2)


def burr(c: float = 1.0, d: float = 2.5) -> Noise:
    r"""Return the law of Burr (type XII), :math:`\mathbb P(X > x) = (1 + x^c)^{-d}`, centred, with tail index
    :math:`cd`; for :math:`c = 1` it is that of Lomax (Pareto, type II).

    Raises
    ------
    ValueError
        If ``c`` or ``d`` is not positive, or their product not above 2, where the variance is finite.
    """
    if not (0 < c < math.inf and 0 < d < math.inf and c * d > 2):
        raise ValueError(
            f"c and d must be positive and their product above 2; got {c} and {d}"
        )

    def moment(order: int) -> float:
        log = math.lgamma(d - order / c) + math.lgamma(1 + order / c) - math.lgamma(d + 1)
        return d * math.exp(log)

    def raw(shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.expm1(-_uniform(shape, generator).log() / d) ** (1 / c)

    return Noise("Burr", c * d, raw, moment(1), moment(2) - moment(1) ** 2)


def log_normal(spread: float = 1.0) -> Noise:
    """Return the law of the exponential of a normal number with this standard deviation, centred: all moments
    exist, though the tail is heavier than any exponential.

    Raises
    ------
    ValueError
        If ``spread`` is not positive.
    """
    if not 0 < spread < math.inf:
        raise ValueError(f"spread must be a positive number; got {spread}")

    def raw(shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return (spread * _normal(shape, generator)).exp()

    mean = math.exp(spread**2 / 2)
    return Noise("log-normal", math.inf, raw, mean, mean**2 * math.expm1(spread**2))
