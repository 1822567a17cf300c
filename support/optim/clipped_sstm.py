"""Clipped SSTM: the accelerated method of similar triangles with a clipped gradient."""

import contextlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from support.optim.base import (
    Closure,
    Method,
    batches,
    check_choice,
    check_number,
    evaluate,
    interpolate,
    present,
    showing,
    wide,
)
from support.optim.clipping import KINDS, clipped, norm_over_groups


class ClippedSSTM(Method):
    r"""Clipped stochastic similar triangles (zholobov2021, Algorithm 3.3; Gorbunov et al. 2020; method M42).

    From :math:`A_0 = \alpha_0 = 0` and :math:`y^0 = z^0 = x^0`, for :math:`k = 0, 1, \dots`

    .. math::

        \alpha_{k+1} &= \frac{k+2}{2aL}\,\eta, \qquad A_{k+1} = A_k + \alpha_{k+1}, \qquad
        \lambda_{k+1} = \frac{B}{\alpha_{k+1}} \\
        x^{k+1} &= \frac{A_k y^k + \alpha_{k+1} z^k}{A_{k+1}} \\
        z^{k+1} &= z^k - \alpha_{k+1} \operatorname{clip}\big(\nabla f(x^{k+1}, \xi^k), \lambda_{k+1}\big) \\
        y^{k+1} &= \frac{A_k y^k + \alpha_{k+1} z^{k+1}}{A_{k+1}} .

    With the factor :math:`\eta = 1` this is the method of the theorem, and :math:`A_k = \frac{k(k+3)}{4aL}`.
    The parameters hold :math:`x^{k+1}`, where the gradient is taken; :meth:`evaluation` shows :math:`y^k`,
    the point that the method returns. A parameter without a gradient counts as one with a zero gradient.

    Parameters
    ----------
    params
        Parameters or groups of them.
    L
        Smoothness of the objective: Lipschitz constant of its gradient.
    B
        Clipping parameter, in the unit of a distance: :math:`\alpha_{k+1}` times a clipped gradient is never
        longer. Infinite for no clipping.
    a
        Step parameter; the guarantee without noise needs :math:`a \ge 1`.
    lr
        Factor :math:`\eta` of all :math:`\alpha`, there for schedulers. The next point is mixed with the
        next :math:`\alpha` at the end of a step, so a change takes effect one step later.
    clip
        ``"norm"`` (of all groups together), ``"layer"`` or ``"coordinate"``; see :func:`support.optim.clip`.

    Raises
    ------
    ValueError
        If a number is out of its range or ``clip`` unknown.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        L: float,
        B: float,
        a: float = 1.0,
        lr: float = 1.0,
        clip: str = "norm",
    ) -> None:
        super().__init__(
            params, dict(L=L, B=B, a=a, lr=lr, clip=clip, step=0, A=0.0, alpha=None)
        )

    def check(self, group: dict[str, Any]) -> None:
        """Raise ``ValueError`` if a hyper-parameter of a group is wrong."""
        check_number("L", group["L"], "(0, inf)")
        check_number("B", group["B"], "(0, inf]")
        check_number("a", group["a"], "(0, inf)")
        check_number("lr", group["lr"], "[0, inf)")
        check_choice("clip", group["clip"], KINDS)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step; a closure, if there is one, computes the gradient first, and its loss is returned."""
        loss = evaluate(closure)
        params = [[p for p in group["params"] if p.numel()] for group in self.param_groups]
        g = [
            self._gradients(group, some)
            for group, some in zip(self.param_groups, params, strict=True)
        ]
        norm = norm_over_groups(self.param_groups, g)
        for group, some, gradients in zip(self.param_groups, params, g, strict=True):
            if some:
                self._step(group, some, gradients, norm)
        return loss

    def _gradients(self, group: dict[str, Any], params: Sequence[Tensor]) -> list[Tensor]:
        present(group)  # refuses sparse ones
        return [
            torch.zeros_like(wide(x.detach())) if x.grad is None else wide(x.grad)
            for x in params
        ]

    def _step(
        self, group: dict[str, Any], x: list[Tensor], g: list[Tensor], norm: Tensor
    ) -> None:
        """Take the step of one group, and mix its next point."""
        if group["alpha"] is None:
            group["alpha"] = self._alpha(group)
        alpha, A = group["alpha"], group["A"] + group["alpha"]
        group["step"] += 1
        group["A"], group["alpha"] = A, self._alpha(group)
        level = group["B"] / alpha if alpha else math.inf
        mix, next_mix = (
            part / whole if part else 0.0
            for part, whole in ((alpha, A), (group["alpha"], A + group["alpha"]))
        )
        for some, vectors in batches(x, g):
            y, z = self._points(some)
            direction, factor = clipped(vectors, level, group["clip"], norm)
            torch._foreach_add_(z, direction, alpha=-alpha * factor)
            torch._foreach_lerp_(y, z, mix)
            interpolate(some, y, z, next_mix)

    def _points(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return y and z of parameters, which start where the parameters do."""
        for parameter in params:
            state = self.state[parameter]
            if not state:
                state["y"] = wide(parameter.detach()).clone()
                state["z"] = state["y"].clone()
        y, z = ([self.state[parameter][name] for parameter in params] for name in "yz")
        return y, z

    def _alpha(self, group: dict[str, Any]) -> float:
        return group["lr"] * (group["step"] + 2) / (2 * group["a"] * group["L"])

    def evaluation(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the parameters show y, the point that the method returns."""
        return showing(
            (parameter, self.state[parameter]["y"])
            for group in self.param_groups
            for parameter in group["params"]
            if "y" in self.state.get(parameter, {})
        )
