"""Sharpness-aware minimization: the gradient is taken at the worst point of a small ball."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from support.optim.base import Closure, check_number, gradients, present, wide
from support.optim.clipping import total_norm
from support.optim.wrapper import Wrapper


class SAM(Wrapper):
    r"""Sharpness-aware minimization around any optimizer (Foret et al. 2021, eqs. 2, 3; method M47).

    .. math::

        \bar\epsilon = \rho\, \frac{\nabla L(\theta)}{\lVert \nabla L(\theta) \rVert_2}, \qquad
        g = \nabla L(\theta + \bar\epsilon) ,

    and the wrapped optimizer takes its step from :math:`\theta` with :math:`g`. The norm is over all groups.
    The adaptive form (ASAM, Kwon et al. 2021, section 4) measures the ball relative to the weights: with
    :math:`T = |\theta| + \eta` entry by entry,
    :math:`\bar\epsilon = \rho\, T^2 \nabla L / \lVert T \nabla L \rVert_2`. Where the gradient is zero
    nothing is perturbed.

    The closure is called twice in each step; it must clear the gradients and compute the same loss. Buffers
    that a network changes in training (running means and variances of batch normalisation) are changed by
    the first call only. Afterwards ``grad`` holds :math:`g`.

    Parameters
    ----------
    optimizer
        Takes the step.
    rho
        Radius :math:`\rho` of the ball.
    adaptive
        Whether the ball is relative to the weights.
    eta
        :math:`\eta` of the adaptive form.

    Raises
    ------
    ValueError
        If ``rho`` or ``eta`` is negative.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        rho: float = 0.05,
        adaptive: bool = False,
        eta: float = 0.01,
    ) -> None:
        super().__init__(optimizer, dict(rho=rho, adaptive=adaptive, eta=eta))

    def check(self, group: dict[str, Any]) -> None:
        """Raise ``ValueError`` if a hyper-parameter of a group is wrong."""
        check_number("rho", group["rho"], "[0, inf)")
        check_number("eta", group["eta"], "[0, inf)")

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step and return the loss at the unperturbed point.

        Raises
        ------
        RuntimeError
            Without a closure.
        """
        if closure is None:
            raise RuntimeError(
                "SAM needs a closure that computes loss and gradient: step(closure); got None"
            )
        closure = torch.enable_grad()(closure)
        loss = closure()
        params = [p for group in self.param_groups for p in present(group)]
        if params:
            own = [parameter.clone() for parameter in params]
            torch._foreach_add_(params, self.perturbation())
            try:
                with unchanged_buffers():
                    closure()
            finally:
                torch._foreach_copy_(params, own)
        self.optimizer.step()
        return loss

    @torch.no_grad()
    def perturbation(self) -> list[Tensor]:
        """Return the perturbation of each parameter that has a gradient, from the present gradients."""
        vectors, metrics = [], []
        for group in self.param_groups:
            params = present(group)
            vectors.append(gradients(params))
            metrics.append([])
            if self.own(group, "adaptive") and params:
                T = torch._foreach_abs([wide(parameter) for parameter in params])
                torch._foreach_add_(T, self.own(group, "eta"))
                vectors[-1], metrics[-1] = torch._foreach_mul(vectors[-1], T), T
        norm = total_norm([vector for some in vectors for vector in some])
        moved: list[Tensor] = []
        for group, some, T in zip(self.param_groups, vectors, metrics, strict=True):
            if some:
                scale = torch.where(norm == 0, 0.0, self.own(group, "rho") / norm)
                scale = scale.item() if norm.device.type == "cpu" else scale
                some = torch._foreach_mul(some, T) if T else some
                moved += torch._foreach_mul(some, scale)
        return moved


@contextlib.contextmanager
def unchanged_buffers() -> Iterator[None]:
    """Put back, at the end, the buffers of every module in training mode that is called inside."""
    saved: dict[tuple[int, str], tuple[nn.Module, Tensor, Tensor]] = {}

    def save(module: nn.Module, inputs: Any) -> None:
        if module.training:
            for name, buffer in module._buffers.items():
                if buffer is not None and (id(module), name) not in saved:
                    saved[id(module), name] = (module, buffer, buffer.clone())

    handle = nn.modules.module.register_module_forward_pre_hook(save)
    try:
        yield
    finally:
        handle.remove()
        for (_, name), (module, buffer, value) in saved.items():
            module._buffers[name] = buffer.copy_(value)
