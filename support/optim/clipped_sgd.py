"""Clipped SGD, with momentum on either side of the clipping, and averaging of the iterates."""

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from support.optim.base import (
    Closure,
    Method,
    batches,
    buffers,
    check_choice,
    check_number,
    evaluate,
    gradients,
    present,
    showing,
    wide,
)
from support.optim.clipping import KINDS, clipped, norm_over_groups


class ClippedSGD(Method):
    r"""Stochastic gradient descent with a clipped gradient (zholobov2021, Algorithm 3.2; methods M39-M41).

    .. math::

        d_k &= \operatorname{clip}(g_k, \lambda) + \omega\, x^k \\
        b_k &= \mu\, b_{k-1} + d_k \qquad (b_{-1} = 0) \\
        x^{k+1} &= x^k - \eta\, b_k \qquad (\text{Nesterov: } x^k - \eta\,(d_k + \mu\, b_k))

    With ``clip_momentum`` the velocity is clipped instead of the gradient: :math:`d_k = g_k + \omega x^k` and
    :math:`x^{k+1} = x^k - \eta \operatorname{clip}(b_k, \lambda)`. Then no step is longer than
    :math:`\eta\lambda`. The literature has both.

    Parameters
    ----------
    params
        Parameters or groups of them.
    lr
        Step size :math:`\eta`.
    level
        Clipping level :math:`\lambda`, in the unit of the gradient; infinite for none.
    clip
        ``"norm"`` (of all groups together), ``"layer"`` (each tensor by its own norm) or ``"coordinate"``;
        see :func:`support.optim.clip`.
    momentum, nesterov
        :math:`\mu`, and whether the step looks ahead.
    weight_decay
        :math:`\omega`, coupled; it is not clipped unless the velocity is.
    clip_momentum
        Clip the velocity instead of the gradient.
    average
        Keep the mean :math:`\bar x^N = \frac1N \sum_{k=0}^{N-1} x^k` of the points at which gradients were
        taken (M26), which :meth:`evaluation` then shows.

    Raises
    ------
    ValueError
        If a number is out of its range or ``clip`` unknown; if ``nesterov`` comes without momentum.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        level: float,
        clip: str = "norm",
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        clip_momentum: bool = False,
        average: bool = False,
    ) -> None:
        defaults = dict(
            lr=lr,
            level=level,
            clip=clip,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            clip_momentum=clip_momentum,
            average=average,
            step=0,
        )
        super().__init__(params, defaults)

    def check(self, group: dict[str, Any]) -> None:
        """Raise ``ValueError`` if a hyper-parameter of a group is wrong."""
        check_number("lr", group["lr"], "[0, inf)")
        check_number("level", group["level"], "(0, inf]")
        check_choice("clip", group["clip"], KINDS)
        check_number("momentum", group["momentum"], "[0, 1)")
        check_number("weight_decay", group["weight_decay"], "[0, inf)")
        if group["nesterov"] and not group["momentum"]:
            raise ValueError(
                f"nesterov needs a momentum above 0; got {group['momentum']!r}"
            )

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step; a closure, if there is one, computes the gradient first, and its loss is returned."""
        loss = evaluate(closure)
        params = [present(group) for group in self.param_groups]
        vectors = [gradients(some) for some in params]
        for index, group in enumerate(self.param_groups):
            if group["average"]:
                self._average(group)
            if group["clip_momentum"] and params[index]:
                vectors[index], _ = self._direction(group, params[index], vectors[index])
        norm = norm_over_groups(self.param_groups, vectors)
        for group, some, all_vectors in zip(
            self.param_groups, params, vectors, strict=True
        ):
            for x, vector in batches(some, all_vectors):
                direction, factor = clipped(vector, group["level"], group["clip"], norm)
                if not group["clip_momentum"]:
                    direction, factor = self._direction(group, x, direction, factor)
                torch._foreach_add_(x, direction, alpha=-group["lr"] * factor)
        return loss

    def _direction(
        self,
        group: dict[str, Any],
        x: Sequence[Tensor],
        vectors: Sequence[Tensor],
        factor: float = 1.0,
    ) -> tuple[Sequence[Tensor], float]:
        """Return what decay and momentum make of vectors times a factor, again as tensors and a factor."""
        momentum, decay = group["momentum"], group["weight_decay"]
        if decay:
            vectors = torch._foreach_mul(vectors, factor)
            torch._foreach_add_(vectors, x, alpha=decay)
            factor = 1.0
        if not momentum:
            return vectors, factor
        b = buffers(self, "momentum", x)
        torch._foreach_mul_(b, momentum)
        torch._foreach_add_(b, vectors, alpha=factor)
        if not group["nesterov"]:
            return b, 1.0
        ahead = torch._foreach_mul(b, momentum)
        torch._foreach_add_(ahead, vectors, alpha=factor)
        return ahead, 1.0

    def _average(self, group: dict[str, Any]) -> None:
        group["step"] += 1
        if group["params"]:
            means = buffers(self, "average", group["params"])
            points = [wide(parameter) for parameter in group["params"]]
            torch._foreach_lerp_(means, points, 1 / group["step"])

    def evaluation(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the parameters show the mean of the iterates, where it is kept."""
        return showing(
            (parameter, self.state[parameter]["average"])
            for group in self.param_groups
            if group["average"] and group["step"]
            for parameter in group["params"]
        )
