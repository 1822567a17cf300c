"""The Hessian of the loss through its products with vectors: eigenvalues, their density, the trace."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from support import training
from support.data import Batches
from support.landscape.plane import check_vector, trained
from support.landscape.points import in_order
from support.tasks import Task, classification


def hessian_vector_product(
    model: nn.Module, batches: Batches, vector: Tensor, task: Task = classification
) -> Tensor:
    r"""Return :math:`\nabla^2 L(\theta)\, v` by differentiating twice (Pearlmutter 1994).

    Parameters
    ----------
    model
        The network, judged in evaluation mode.
    batches
        Examples over which the loss is the mean.
    vector
        v, of shape (P,).
    task
        Its loss.

    Raises
    ------
    ValueError
        If the vector has another shape.
    """
    check_vector(model, vector)
    parameters = [value for value in model.parameters() if value.requires_grad]
    parts = vector.split([value.numel() for value in parameters])
    product = torch.zeros_like(vector)
    with training.evaluation(model), torch.enable_grad():
        for inputs, targets in in_order(batches):
            loss = task.loss(model(inputs), targets) * (len(targets) / batches.examples)
            gradient = torch.autograd.grad(
                loss, parameters, create_graph=True, materialize_grads=True
            )
            along = sum(
                (g.flatten() * v).sum() for g, v in zip(gradient, parts, strict=True)
            )
            if along.requires_grad:  # else the loss of this batch is linear
                rows = torch.autograd.grad(along, parameters, materialize_grads=True)
                product += torch.cat([row.flatten() for row in rows])
    return product


@dataclass(frozen=True)
class Ritz:
    """What the Lanczos iteration found of a symmetric matrix of shape (P, P)."""

    values: np.ndarray
    """Ritz values, which approximate eigenvalues, of shape (m,), ascending."""
    weights: np.ndarray
    """Squares of the start vector's components along the Ritz vectors, of shape (m,), with sum 1."""
    residuals: np.ndarray
    """An eigenvalue lies within so much of each Ritz value; of shape (m,)."""
    basis: Tensor
    """Orthonormal Lanczos vectors of shape (m, P)."""
    rotation: Tensor
    """The columns are the Ritz vectors in the basis; of shape (m, m)."""

    def vector(self, index: int) -> Tensor:
        """Return a Ritz vector of shape (P,) and length 1; index -1 is that of the largest value."""
        return self.rotation[:, index].to(self.basis) @ self.basis


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Ritz:
    r"""Lanczos iteration with full reorthogonalisation, twice in each step (Golub and Van Loan, section 10.3).

    The m vectors stay orthonormal to rounding, so that no eigenvalue appears twice and no Ritz value leaves
    the spectrum; of a multiple eigenvalue one is found. It stops early where the vectors so far span an
    invariant subspace. Memory: m P numbers.

    Parameters
    ----------
    product
        A v of a vector v of shape (P,), with A symmetric.
    start
        Start vector, not zero; its type is that of the arithmetic.
    steps
        m, at most P.

    Raises
    ------
    ValueError
        If ``steps`` or ``start`` is wrong, or a product is not finite.
    """
    if not 1 <= steps <= start.numel():
        raise ValueError(f"steps must lie between 1 and {start.numel()}; got {steps}")
    if not (start.dim() == 1 and torch.isfinite(start).all() and start.any()):
        raise ValueError(
            f"start must be a finite vector other than zero; got shape {tuple(start.shape)}"
        )
    basis = start.new_empty(steps, start.numel())
    q = start / torch.linalg.vector_norm(start)
    alphas, betas = [], []
    tolerance = 100 * torch.finfo(start.dtype).eps
    for m in range(steps):
        basis[m] = q
        w = product(q)
        alphas.append((q @ w).item())
        if not math.isfinite(alphas[-1]):
            raise ValueError(f"product must be finite; step {m + 1} gave {alphas[-1]}")
        for _ in range(2):
            w = w - (basis[: m + 1] @ w) @ basis[: m + 1]
        beta = torch.linalg.vector_norm(w)
        betas.append(beta.item())
        if betas[-1] <= tolerance * max(map(abs, alphas + betas[:-1])):
            break
        q = w / beta
    off = torch.tensor(betas[:-1], dtype=torch.float64)
    matrix = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    matrix += torch.diag(off, 1) + torch.diag(off, -1)
    values, rotation = torch.linalg.eigh(matrix)
    return Ritz(
        values.numpy(),
        rotation[0].square().numpy(),
        (betas[-1] * rotation[-1].abs()).numpy(),
        basis[: len(alphas)],
        rotation,
    )


@dataclass(frozen=True)
class Spectrum:
    """Nodes and weights of a quadrature that stands for the density of a Hessian's eigenvalues."""

    values: np.ndarray
    """Ritz values of all start vectors, of shape (n,), ascending."""
    weights: np.ndarray
    """Share of the eigenvalues that each stands for, of shape (n,), with sum 1."""

    def density(self, points: np.ndarray, width: float) -> np.ndarray:
        """Return the density, each value smoothed to a Gaussian of standard deviation ``width``.

        Of the same shape as ``points``; its integral is 1.
        """
        if not width > 0:
            raise ValueError(f"width must be positive; got {width}")
        distances = (np.asarray(points)[..., None] - self.values) / width
        bells = np.exp(-(distances**2) / 2) / (width * math.sqrt(2 * math.pi))
        return bells @ self.weights


def spectrum(
    model: nn.Module,
    batches: Batches,
    *,
    seed: int,
    steps: int = 30,
    starts: int = 4,
    task: Task = classification,
) -> Spectrum:
    """Stochastic Lanczos quadrature of the Hessian's spectrum (Ghorbani et al. 2019, section 2 and algorithm 2).

    Costs ``steps`` times ``starts`` Hessian-vector products. The extreme values converge first: the smallest
    and the largest are those of the Hessian after a few dozen steps.

    Parameters
    ----------
    model, batches, task
        See :func:`hessian_vector_product`.
    seed
        Of the Gaussian start vectors, drawn on the CPU.
    steps, starts
        Lanczos steps from each start vector, and number of these.
    """
    if starts < 1:
        raise ValueError(f"starts must be positive; got {starts}")
    generator = torch.Generator().manual_seed(seed)
    found = [
        lanczos(
            lambda v: hessian_vector_product(model, batches, v, task),
            _drawn(model, torch.randn, generator),
            steps,
        )
        for _ in range(starts)
    ]
    values = np.concatenate([ritz.values for ritz in found])
    weights = np.concatenate([ritz.weights for ritz in found]) / starts
    order = np.argsort(values)
    return Spectrum(values[order], weights[order])


@dataclass(frozen=True)
class Estimate:
    """A mean of random values with its standard error."""

    value: float
    standard_error: float


def trace(
    model: nn.Module,
    batches: Batches,
    *,
    seed: int,
    probes: int = 30,
    task: Task = classification,
) -> Estimate:
    r"""Hutchinson's estimate of the Hessian's trace: the mean of :math:`z^\top H z`, signs z drawn at random.

    One Hessian-vector product a probe. The variance of one probe is :math:`2 \sum_{i \ne j} H_{ij}^2`.

    Parameters
    ----------
    model, batches, task
        See :func:`hessian_vector_product`.
    seed
        Of the signs, drawn on the CPU.
    probes
        Number of them, at least two.
    """
    if probes < 2:
        raise ValueError(f"probes must be at least 2; got {probes}")
    generator = torch.Generator().manual_seed(seed)

    def signs(size: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        return torch.randint(2, (size,), generator=generator).to(dtype) * 2 - 1

    found = []
    for _ in range(probes):
        z = _drawn(model, signs, generator)
        found.append((z @ hessian_vector_product(model, batches, z, task)).item())
    return Estimate(float(np.mean(found)), float(np.std(found, ddof=1) / probes**0.5))


def _drawn(model: nn.Module, draw: Callable, generator: torch.Generator) -> Tensor:
    """Return a random vector of shape (P,), of the type and on the device of the parameters."""
    own = list(trained(model).values())
    size = sum(value.numel() for value in own)
    return draw(size, generator=generator, dtype=own[0].dtype).to(own[0].device)
