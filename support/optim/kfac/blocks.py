"""A weight with its bias, the sums over its inputs and gradients, and how many rows enter them."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from support.optim.gram import gram


class Block:
    """A weight and its bias, with the sums of the passes since the factors were last renewed.

    The gradient of the weight is a matrix of shape (outputs, inputs) for each group; the bias is the last
    column (the homogeneous coordinate of erratum KU-2).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, groups: int = 1) -> None:
        self.weight, self.bias, self.groups = weight, bias, groups
        self.forget()

    def forget(self) -> None:
        """Drop the sums."""
        self.inputs = self.gradients = None
        self.rows = 0.0

    def see_inputs(self, columns: Tensor, rows: float, share: float) -> None:
        """Add inputs: ``columns`` are a ``share`` of all ``rows``."""
        added = gram(columns, ones=self.bias is not None) / share
        self.inputs = added if self.inputs is None else self.inputs.add_(added)
        self.rows += rows

    def see_gradients(self, columns: Tensor, weight: float) -> None:
        """Add gradients in the outputs, of which each product counts ``weight`` times."""
        added = gram(columns) * weight
        self.gradients = added if self.gradients is None else self.gradients.add_(added)

    def join(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the gradient as matrices of shape (groups, outputs, inputs + 1)."""
        matrix = weight.reshape(self.groups, len(weight) // self.groups, -1)
        if self.bias is None:
            return matrix
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        return torch.cat([matrix, bias.reshape(self.groups, -1, 1)], dim=2)

    def part(self, matrix: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the weight and the bias, each with its part of a matrix."""
        if self.bias is None:
            yield self.weight, matrix.reshape(self.weight.shape)
        else:
            yield self.weight, matrix[..., :-1].reshape(self.weight.shape)
            yield self.bias, matrix[..., -1].reshape(self.bias.shape)


Use = tuple[Tensor, Callable[[Tensor], list[tuple[Block, Tensor, float]]]]
"""A tensor in whose gradient K-FAC is interested, and what makes columns for blocks of that gradient, with
their share of all."""


class Rows:
    """How positions are shared, and how many rows enter a factor."""

    def __init__(self, sharing: str, limit: int | None, seed: int) -> None:
        self.sharing, self.limit = sharing, limit
        self.generator = torch.Generator().manual_seed(seed)

    def choose(self, columns: Tensor) -> tuple[Tensor, float]:
        """Return a random part of the columns, and the share of all that it is."""
        rows = columns.shape[-1]
        if self.limit is None or rows <= self.limit:
            return columns, 1.0
        chosen = torch.randperm(rows, generator=self.generator)[: self.limit]
        return columns[..., chosen.to(columns.device)], self.limit / rows

    def grid(self, examples: int, height: int, width: int) -> tuple[int, int, int, float]:
        """Return the step of a regular grid of positions, its random corner, and the share of all positions
        that it is on average."""
        if self.limit is None or self.sharing == "reduce":
            return 1, 0, 0, 1.0
        step = math.ceil(math.sqrt(examples * height * width / self.limit))
        step = max(1, min(step, height, width))
        top, left = torch.randint(step, (2,), generator=self.generator).tolist()
        return step, top, left, 1 / step**2
