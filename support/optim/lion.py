"""Lion: steps of one size in every coordinate, with the sign of an interpolated momentum."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from support.optim.base import (
    Closure,
    Method,
    batches,
    buffers,
    check_number,
    evaluate,
    gradients,
    interpolate,
    present,
)


class Lion(Method):
    r"""EvoLved Sign Momentum (Chen et al. 2023, Algorithm 2; method M49).

    .. math::

        c_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t \\
        \theta_t &= \theta_{t-1} - \eta\,(\operatorname{sign}(c_t) + \lambda\,\theta_{t-1}) \\
        m_t &= \beta_2 m_{t-1} + (1 - \beta_2)\, g_t , \qquad m_0 = 0

    The decay is decoupled: it is no part of the gradient. An entry whose gradient is NaN stands still from
    then on, because its momentum stays NaN and torch's sign of NaN is 0.

    Parameters
    ----------
    params
        Parameters or groups of them.
    lr
        Step size :math:`\eta`: what each entry moves in a step, about a tenth of a good step for Adam.
    betas
        :math:`\beta_1` of the direction and :math:`\beta_2` of the memory.
    weight_decay
        :math:`\lambda`.

    Raises
    ------
    ValueError
        If ``lr`` or ``weight_decay`` is negative or a beta lies outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay))

    def check(self, group: dict[str, Any]) -> None:
        """Raise ``ValueError`` if a hyper-parameter of a group is wrong."""
        check_number("lr", group["lr"], "[0, inf)")
        check_number("weight_decay", group["weight_decay"], "[0, inf)")
        if not isinstance(group["betas"], Sequence) or len(group["betas"]) != 2:
            raise ValueError(f"betas must be two numbers; got {group['betas']!r}")
        for beta in group["betas"]:
            check_number("betas", beta, "[0, 1)")

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step; a closure, if there is one, computes the gradient first, and its loss is returned."""
        loss = evaluate(closure)
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for (params,) in batches(present(group)):
                g, m = gradients(params), buffers(self, "momentum", params)
                c = self.scratch(m)
                interpolate(c, m, g, 1 - beta1)
                torch._foreach_sign_(c)
                if group["weight_decay"]:
                    torch._foreach_add_(c, params, alpha=group["weight_decay"])
                torch._foreach_add_(params, c, alpha=-lr)
                torch._foreach_lerp_(m, g, 1 - beta2)
        return loss
