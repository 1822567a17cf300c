"""Adaptive gradient clipping: each unit's gradient is bounded relative to the unit's own weights."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from support.optim.base import check_choice, check_number, present, wide
from support.optim.clipping import at_most_one
from support.optim.wrapper import Wrapper

UNITS = ("unit", "layer", "element")


class AdaptiveClipping(Wrapper):
    r"""Adaptive gradient clipping, AGC, around any optimizer (Brock et al. 2021, eq. 3; method M43).

    .. math::

        g_i \leftarrow \min\Big\{1,\; \lambda\, \frac{\max(\lVert\theta_i\rVert, \nu)}{\lVert g_i
        \rVert}\Big\}\; g_i

    so that a step of SGD without momentum changes unit :math:`i` by at most
    :math:`\eta\lambda\max(\lVert\theta_i\rVert, \nu)` (erratum KI-8). The gradients are changed in place,
    after every call of the closure where there is one. A NaN or an infinity makes its unit NaN.

    Parameters
    ----------
    optimizer
        Takes the step.
    ratio
        :math:`\lambda`; in a group, an infinite one exempts the group (the paper exempts the last layer).
    floor
        :math:`\nu > 0`, which lets units leave zero.
    unit
        What is bounded: ``"unit"`` is a row of a matrix or a filter of a convolution, that is, all
        dimensions but the first (tensors of one dimension count whole); ``"layer"`` a tensor; ``"element"``
        a single number.

    Raises
    ------
    ValueError
        If a number is not positive or ``unit`` unknown.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        ratio: float = 0.01,
        floor: float = 1e-3,
        unit: str = "unit",
    ) -> None:
        super().__init__(optimizer, dict(ratio=ratio, floor=floor, unit=unit))

    def check(self, group: dict[str, Any]) -> None:
        """Raise ``ValueError`` if a hyper-parameter of a group is wrong."""
        check_number("ratio", group["ratio"], "(0, inf]")
        check_number("floor", group["floor"], "(0, inf)")
        check_choice("unit", group["unit"], UNITS)

    @torch.no_grad()
    def change_gradients(self) -> None:
        """Clip the gradients in place."""
        for group in self.param_groups:
            ratio, floor, unit = (
                self.own(group, name) for name in ("ratio", "floor", "unit")
            )
            for x in present(group) if ratio < math.inf else []:
                bound = _norm(x, unit).clamp_(min=floor).mul_(ratio)
                x.grad.mul_(at_most_one(bound, _norm(x.grad, unit)))


def _norm(tensor: Tensor, unit: str) -> Tensor:
    """Return the norms of the units of a tensor, in a shape that broadcasts over it."""
    tensor = wide(tensor)
    if unit == "element":
        return tensor.abs()
    if unit == "layer" or tensor.ndim < 2:
        return torch.linalg.vector_norm(tensor)
    return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)), keepdim=True)
