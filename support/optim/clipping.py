"""The clipping operators, which clipped-SGD and clipped-SSTM share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from support.optim.base import check_choice, check_number

KINDS = ("norm", "layer", "coordinate")


def clip(
    gradients: Sequence[Tensor],
    level: float,
    kind: str = "norm",
    norm: Tensor | None = None,
) -> list[Tensor]:
    r"""Return gradients clipped to a level :math:`\lambda > 0`, as new tensors.

    ``"norm"`` scales them all by :math:`\min\{1, \lambda / \lVert g \rVert_2\}` with the norm of the whole
    gradient (M39: the projection on a ball), ``"layer"`` scales each tensor with its own norm,
    ``"coordinate"`` projects on the cube :math:`[-\lambda, \lambda]^n` (M40). A zero gradient stays zero
    (erratum ZH-28). A norm that is infinite or NaN makes the tensors that it scales NaN; on the cube
    infinities become :math:`\pm\lambda`.

    Parameters
    ----------
    gradients
        Tensors of any shapes.
    level
        :math:`\lambda`.
    kind
        What is clipped.
    norm
        For ``"norm"``: the norm of a larger gradient of which these tensors are a part.

    Raises
    ------
    ValueError
        If the level is not positive or the kind unknown.
    """
    check_number("level", level, "(0, inf]")
    check_choice("clip", kind, KINDS)
    vectors, factor = clipped(gradients, level, kind, norm)
    return list(torch._foreach_mul(vectors, factor)) if vectors else []


def clipped(
    gradients: Sequence[Tensor], level: float, kind: str, norm: Tensor | None = None
) -> tuple[Sequence[Tensor], float]:
    """Return the clipped gradients of :func:`clip` as tensors and a factor of all of them.

    On the CPU one factor for all does the scaling, and costs no pass over the tensors; elsewhere it is 1, so
    that nothing waits for the device.
    """
    if kind == "coordinate":
        return [gradient.clamp(-level, level) for gradient in gradients], 1.0
    if not gradients:
        return gradients, 1.0
    if kind == "norm":
        norms = [total_norm(gradients) if norm is None else norm] * len(gradients)
    else:
        norms = [total_norm([gradient]) for gradient in gradients]
    if gradients[0].device.type == "cpu" and (kind == "norm" or len(gradients) == 1):
        return gradients, at_most_one(level, norms[0]).item()
    factors = [
        at_most_one(level, own.to(gradient.device))
        for own, gradient in zip(norms, gradients, strict=True)
    ]
    return torch._foreach_mul(gradients, factors), 1.0


def at_most_one(level: float | Tensor, norm: Tensor) -> Tensor:
    """Return min(1, level / norm), and NaN for an infinite norm: what it scales must not look healthy."""
    return torch.where(norm.isinf(), torch.nan, (level / norm).clamp(max=1.0))


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all tensors together (0 if there are none).

    On the CPU it is computed again in float64 if the squares have overflown; elsewhere it is infinite then.
    """
    if not tensors:
        return torch.zeros(())
    norms = torch._foreach_norm(tensors)
    device, dtype = norms[0].device, max((n.dtype for n in norms), key=lambda t: t.itemsize)
    norm = torch.linalg.vector_norm(torch.stack([n.to(device, dtype) for n in norms]))
    if device.type == "cpu" and norm.isinf() and dtype != torch.float64:
        return total_norm([tensor.double() for tensor in tensors])
    return norm


def norm_over_groups(groups: Sequence[dict], vectors: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the norm over all groups that are clipped by the norm."""
    chosen = [
        tensor
        for group, some in zip(groups, vectors, strict=True)
        if group["clip"] == "norm"
        for tensor in some
    ]
    return total_norm(chosen)
