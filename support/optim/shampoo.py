"""Shampoo: a full-matrix preconditioner for each dimension of each parameter."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from support.optim.base import (
    Closure,
    Method,
    buffers,
    check_choice,
    check_count,
    check_number,
    evaluate,
    gradients,
    present,
)
from support.optim.gram import gram

GRAFTS = (None, "sgd", "adagrad")
LARGE = 256  # rows from which on half of a Gram matrix is computed and mirrored
SMALL = 64  # dimensions whose product is at most this are multiplied in one go


class Shampoo(Method):
    r"""Shampoo (Gupta, Koren, Singer 2018, Algorithms 1 and 2; method M48).

    For a parameter :math:`\theta` of order :math:`k` with the gradient :math:`G_t`, and :math:`G_{(i)}` its
    unfolding along dimension :math:`i`,

    .. math::

        H_t^i &= H_{t-1}^i + G_{(i)} G_{(i)}^\top, \qquad H_0^i = \varepsilon I \\
        U_t &= G_t \times_1 (H_t^1)^{-1/2k} \times_2 \dots \times_k (H_t^k)^{-1/2k} \\
        b_t &= \mu\, b_{t-1} + U_t, \qquad \theta_{t+1} = \theta_t - \eta\, b_t .

    For a matrix this is :math:`L^{-1/4}\, G\, R^{-1/4}`, for a vector full-matrix AdaGrad; a scalar counts
    as a vector of one entry. A gradient with NaN or infinities makes its parameter NaN.

    Parameters
    ----------
    params
        Parameters or groups of them.
    lr
        Step size :math:`\eta`; without grafting good ones are larger than for SGD.
    eps
        :math:`\varepsilon > 0`, in squared units of the gradient.
    momentum
        :math:`\mu`, of the preconditioned gradient.
    weight_decay
        Coupled: it is added to the gradient before everything else.
    interval
        The roots are renewed at the steps 1, 1 + interval, 1 + 2 interval, ...; the :math:`H^i` at every step.
        With a small ``eps`` the roots of the first step make the steps up to the next renewal very long.
    block
        Dimensions larger than this are cut, and each block of the tensor is preconditioned for itself.
    graft
        ``"sgd"`` or ``"adagrad"``: :math:`U_t` keeps its direction and gets the norm of the step of that
        method, of :math:`G_t` or of :math:`G_t / (\sqrt{\sum_s G_s^2} + 10^{-10})`, for each tensor (Agarwal
        et al. 2020).

    Raises
    ------
    ValueError
        If a number is out of its range or ``graft`` unknown.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.1,
        eps: float = 1e-4,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        interval: int = 1,
        block: int = 1024,
        graft: str | None = None,
    ) -> None:
        defaults = dict(
            lr=lr,
            eps=eps,
            momentum=momentum,
            weight_decay=weight_decay,
            interval=interval,
            block=block,
            graft=graft,
        )
        super().__init__(params, defaults)

    def check(self, group: dict[str, Any]) -> None:
        """Raise ``ValueError`` if a hyper-parameter of a group is wrong."""
        check_number("lr", group["lr"], "[0, inf)")
        check_number("eps", group["eps"], "(0, inf)")
        check_number("momentum", group["momentum"], "[0, 1)")
        check_number("weight_decay", group["weight_decay"], "[0, inf)")
        check_count("interval", group["interval"])
        check_count("block", group["block"])
        check_choice("graft", group["graft"], GRAFTS)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step; a closure, if there is one, computes the gradient first, and its loss is returned."""
        loss = evaluate(closure)
        for group in self.param_groups:
            params = present(group)
            if params:
                G = gradients(params)
                if group["weight_decay"]:
                    G = torch._foreach_add(G, params, alpha=group["weight_decay"])
                U = self._directions(group, params, G)
                if group["momentum"]:
                    b = buffers(self, "momentum", params)
                    torch._foreach_mul_(b, group["momentum"])
                    torch._foreach_add_(b, U)
                    U = b
                torch._foreach_add_(params, U, alpha=-group["lr"])
        return loss

    def _directions(
        self, group: dict[str, Any], params: Sequence[Tensor], G: Sequence[Tensor]
    ) -> list[Tensor]:
        """Renew the state of the parameters and return their preconditioned gradients."""
        blocks = [cut(gradient, group["block"]) for gradient in G]
        states = [self.state[parameter] for parameter in params]
        with record_function("Shampoo: statistics"):
            for state, pieces in zip(states, blocks, strict=True):
                accumulate(state, pieces, group["eps"])
        due = [state for state in states if (state["step"] - 1) % group["interval"] == 0]
        with record_function("Shampoo: roots"):
            renew_roots(due, group["eps"])
        with record_function("Shampoo: preconditioning"):
            U = [
                precondition(gradient, pieces, state["roots"], group["block"])
                for gradient, pieces, state in zip(G, blocks, states, strict=True)
            ]
        if group["graft"]:
            torch._foreach_mul_(U, self._grafts(group["graft"], params, G, U))
        return U

    def _grafts(
        self, graft: str, params: Sequence[Tensor], G: Sequence[Tensor], U: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return the factors that give the directions the norms of another method's steps."""
        steps = G
        if graft == "adagrad":
            sums = buffers(self, "sum", params)
            torch._foreach_addcmul_(sums, G, G)
            roots = torch._foreach_sqrt(sums)
            torch._foreach_add_(roots, 1e-10)
            steps = torch._foreach_div(G, roots)
        norms = zip(torch._foreach_norm(steps), torch._foreach_norm(U), strict=True)
        return [torch.where(own == 0, 0.0, wanted / own) for wanted, own in norms]


def cut(tensor: Tensor, size: int) -> list[Tensor]:
    """Return views of a tensor, of order at least 1, cut so that no dimension is larger than ``size``."""
    parts = [tensor if tensor.ndim else tensor.reshape(1)]
    for dimension in range(max(tensor.ndim, 1)):
        if parts[0].shape[dimension] > size:
            parts = [piece for part in parts for piece in part.split(size, dimension)]
    return parts


def accumulate(state: dict[str, Any], blocks: Sequence[Tensor], eps: float) -> None:
    """Add the Gram matrices of the unfoldings of each block to the statistics, which start at eps times I."""
    if not state.get("step"):
        state["step"] = 0
        state["statistics"] = [
            [
                eps * torch.eye(n, dtype=block.dtype, device=block.device)
                for n in block.shape
            ]
            for block in blocks
        ]
        state["roots"] = [[] for _ in blocks]
    state["step"] += 1
    for block, statistics in zip(blocks, state["statistics"], strict=True):
        for dimension, H in enumerate(statistics):
            unfolded = block.movedim(dimension, 0).reshape(len(H), -1)
            if len(H) < LARGE:
                H.addmm_(unfolded, unfolded.mT)
            else:
                H.add_(gram(unfolded[None])[0])


def renew_roots(states: Sequence[dict[str, Any]], eps: float) -> None:
    """Compute all inverse roots of the statistics, the matrices of one size together."""
    places: dict[tuple, list[tuple[list[Tensor], int, Tensor]]] = {}
    for state in states:
        for index, statistics in enumerate(state["statistics"]):
            state["roots"][index] = roots = [None] * len(statistics)
            for dimension, H in enumerate(statistics):
                key = (len(H), len(statistics), H.dtype, H.device)
                places.setdefault(key, []).append((roots, dimension, H))
    for (_, order, *_), some in places.items():
        computed = inverse_roots(torch.stack([H for *_, H in some]), 2 * order, eps)
        for (roots, dimension, _), root in zip(some, computed, strict=True):
            roots[dimension] = root.clone()


def inverse_roots(matrices: Tensor, p: int, eps: float) -> Tensor:
    r"""Return the :math:`H^{-1/p}` of symmetric matrices :math:`H \succeq \varepsilon I` of shape (N, n, n).

    Eigenvalues that rounding has put below :math:`\varepsilon` count as :math:`\varepsilon`. A matrix with a
    NaN or an infinity gives NaN. If the eigendecomposition fails it is tried again in float64.
    """
    finite = matrices.isfinite().flatten(1).all(1)[:, None, None]
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    safe = torch.where(finite, matrices, identity)
    try:
        eigenvalues, Q = torch.linalg.eigh(safe)
    except torch.linalg.LinAlgError:
        eigenvalues, Q = (part.to(safe.dtype) for part in torch.linalg.eigh(safe.double()))
    powers = eigenvalues.clamp(min=eps) ** (-1 / p)
    return torch.where(finite, (Q * powers[:, None, :]) @ Q.mT, torch.nan)


def precondition(
    gradient: Tensor, blocks: Sequence[Tensor], roots: Sequence[list[Tensor]], size: int
) -> Tensor:
    """Return the gradient with each of its blocks multiplied by its roots along every dimension."""
    direction = torch.empty_like(gradient, memory_format=torch.contiguous_format)
    for place, block, some in zip(cut(direction, size), blocks, roots, strict=True):
        multiply(block, some, place)
    return direction


def multiply(tensor: Tensor, matrices: Sequence[Tensor], result: Tensor) -> None:
    """Multiply a tensor along each dimension by a symmetric matrix, and write it into ``result``.

    Each product contracts the first dimension and puts it last. Small dimensions at the end, as those of the
    kernels of a convolution, are left to one product with the Kronecker product of their matrices.
    """
    small, last = 0, torch.ones(1, 1, dtype=tensor.dtype, device=tensor.device)
    while small < len(matrices) and len(matrices[-1 - small]) * len(last) <= SMALL:
        small += 1
        last = torch.kron(matrices[-small], last)
    for matrix in matrices[: len(matrices) - small]:
        shape = (*tensor.shape[1:], len(matrix))
        tensor = (tensor.reshape(len(matrix), -1).mT @ matrix).reshape(shape)
    if small:
        tensor = (last @ tensor.reshape(len(last), -1)).reshape(tensor.shape)
    order = [(dimension + small) % tensor.ndim for dimension in range(tensor.ndim)]
    result.copy_(tensor.permute(order))
