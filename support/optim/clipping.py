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
    if not gradients:
        return []
    if kind == "coordinate":
        return [gradient.clamp(-level, level) for gradient in gradients]
    if kind == "layer":
        factors = [_factor(level, own) for own in torch._foreach_norm(gradients)]
        return list(torch._foreach_mul(gradients, factors))
    whole = total_norm(gradients) if norm is None else norm.to(gradients[0].device)
    return list(torch._foreach_mul(gradients, _factor(level, whole)))


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all tensors together (0 if there are none)."""
    if not tensors:
        return torch.zeros(())
    norms = torch._foreach_norm(tensors)
    device, dtype = norms[0].device, max((n.dtype for n in norms), key=lambda t: t.itemsize)
    return torch.linalg.vector_norm(torch.stack([n.to(device, dtype) for n in norms]))


def norm_over_groups(groups: Sequence[dict], vectors: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the norm over all groups that are clipped by the norm."""
    chosen = [
        tensor
        for group, some in zip(groups, vectors, strict=True)
        if group["clip"] == "norm"
        for tensor in some
    ]
    return total_norm(chosen)


def _factor(level: float, norm: Tensor) -> float | Tensor:
    """Return min(1, level / norm): a number on the CPU, elsewhere a tensor, so that nothing waits for the
    device."""
    factor = (level / norm).clamp(max=1.0)
    return factor.item() if norm.device.type == "cpu" else factor
