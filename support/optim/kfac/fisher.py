"""The gradients at the network's output whose second moment is the Hessian of the loss there."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from support.optim.base import wide

LOSSES = ("cross-entropy", "mse")
FISHERS = ("sampled", "empirical", "type-2")


def terms(output: Tensor, loss: str) -> int:
    """Return of how many terms the loss is the mean: predictions for cross-entropy, examples for the squared
    error.

    The squared error of an example is itself a mean, over its outputs.
    """
    return output.numel() // output.shape[1] if loss == "cross-entropy" else len(output)


def sampled(output: Tensor, loss: str, generator: torch.Generator) -> Tensor:
    """Return the gradient of each term's loss for one label that is drawn from the network's own distribution.

    For the squared error it is drawn from the normal distribution whose Fisher matrix is the Hessian of the
    loss.
    """
    if loss == "mse":
        noise = torch.empty_like(output, memory_format=torch.contiguous_format)
        noise.normal_(generator=generator)
        return noise * (2 * len(output) / output.numel()) ** 0.5
    p = wide(output).movedim(1, -1).softmax(-1)
    rows = p.reshape(-1, p.shape[-1])
    # a network that has diverged gives NaN, from which no label can be drawn
    labels = torch.multinomial(rows.nan_to_num(1.0), 1, generator=generator)
    vectors = rows.scatter_add(1, labels, -torch.ones_like(rows[:, :1]))
    return vectors.view(p.shape).movedim(-1, 1).to(output.dtype)


def exact(output: Tensor, loss: str) -> Iterator[Tensor]:
    r"""Return vectors :math:`v` with :math:`\sum v v^\top = H`, the Hessian of each term's loss in the outputs.

    For cross-entropy :math:`H = \sum_c p_c (e_c - p)(e_c - p)^\top`; for the squared error
    :math:`\frac2D I`. Each vector touches one place of the output of each example only, because places of
    one example are not independent of one another.
    """
    places = output.shape[1 + (loss == "cross-entropy") :]
    for place in range(math.prod(places)):
        if loss == "mse":
            vector = torch.zeros_like(output, memory_format=torch.contiguous_format)
            vector = vector.view(len(output), -1)
            vector[:, place] = (2 / vector.shape[1]) ** 0.5
            yield vector.view_as(output)
            continue
        p = output.flatten(2)[:, :, place] if places else output
        p = p.softmax(1)
        for c in range(p.shape[1]):
            difference = -p
            difference[:, c] += 1
            difference *= p[:, c : c + 1].sqrt()
            vector = torch.zeros(
                *p.shape, max(math.prod(places), 1), dtype=p.dtype, device=p.device
            )
            vector[:, :, place] = difference
            yield vector.view_as(output)
