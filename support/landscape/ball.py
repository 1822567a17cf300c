"""Sharpness: how much the loss can rise in a small ball around a network."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from support import training
from support.data import Batches
from support.landscape.plane import as_direction, as_vector, trained
from support.landscape.points import in_order
from support.optim.base import check_number
from support.tasks import Task, classification


@dataclass(frozen=True)
class Sharpness:
    """The loss of a network, and its rise in a ball."""

    loss: float
    """At the network."""
    first_order: float
    """Rise at the point to which SAM goes."""
    ascent: float
    """Largest rise that the ascent met, at least ``first_order``, and at most the true one."""


def sharpness(
    model: nn.Module,
    batches: Batches,
    rho: float = 0.05,
    *,
    steps: int = 10,
    adaptive: bool = False,
    eta: float = 0.01,
    task: Task = classification,
) -> Sharpness:
    r"""Bound the largest rise of the loss in a ball from below (Foret et al. 2021, section 2).

    It is :math:`\max_{\|\epsilon\| \le \rho} L(\theta + \epsilon) - L(\theta)`. First at
    :math:`\bar\epsilon = \rho\, \nabla L(\theta) / \|\nabla L(\theta)\|` (eq. 2), the point of
    :class:`~support.optim.SAM`. From there projected gradient ascent: each step adds :math:`\rho` times the
    direction of the gradient at :math:`\theta + \epsilon`, and goes back to the ball where it has left it; the
    largest rise counts. The adaptive form (Kwon et al. 2021) bounds :math:`\|T^{-1} \epsilon\|`, with
    :math:`T = |\theta| + \eta` entry by entry.

    Parameters
    ----------
    model
        The network, judged in evaluation mode.
    batches
        Examples over which the loss is the mean.
    rho
        Radius of the ball.
    steps
        Of the ascent, after the first point.
    adaptive, eta
        Whether the ball is relative to the weights, and :math:`\eta`.
    task
        Its loss.

    Raises
    ------
    ValueError
        If ``rho``, ``eta`` or ``steps`` is negative.
    """
    check_number("rho", rho, "[0, inf)")
    check_number("eta", eta, "[0, inf)")
    if steps < 0:
        raise ValueError(f"steps must not be negative; got {steps}")
    theta = as_vector(model, trained(model))
    T = theta.abs() + eta if adaptive else torch.ones_like(theta)
    loss, gradient = _gradient(model, batches, theta, task)
    u, rises = torch.zeros_like(theta), []  # epsilon = T u
    for _ in range(steps + 1):
        u = u + rho * _unit(T * gradient)
        norm = torch.linalg.vector_norm(u)
        u = u * (rho / norm) if norm > rho else u
        risen, gradient = _gradient(model, batches, theta + T * u, task)
        rises.append(risen - loss)
    return Sharpness(loss, rises[0], max(rises))


def _unit(vector: Tensor) -> Tensor:
    """Return the direction of a vector; zero stays zero."""
    norm = torch.linalg.vector_norm(vector)
    return vector / norm if norm > 0 else vector


def _gradient(
    model: nn.Module, batches: Batches, point: Tensor, task: Task
) -> tuple[float, Tensor]:
    """Return the mean loss over all examples and its gradient of shape (P,) at a point."""
    parameters = as_direction(model, point)
    own: Mapping[str, Tensor] = {k: v.requires_grad_() for k, v in parameters.items()}
    total, gradient = 0.0, torch.zeros_like(point)
    with training.evaluation(model), torch.enable_grad():
        for inputs, targets in in_order(batches):
            outputs = functional_call(model, dict(own), (inputs,))
            loss = task.loss(outputs, targets) * (len(targets) / batches.examples)
            rows = torch.autograd.grad(loss, list(own.values()), materialize_grads=True)
            gradient += torch.cat([row.flatten() for row in rows])
            total += loss.item()
    return total, gradient
