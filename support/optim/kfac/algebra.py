"""Sums of outer products, damped inverses, and the product of a gradient with them.

Every matrix has a leading dimension for the groups of a convolution; for other layers it is 1.
"""

import torch
from torch import Tensor

PARTS = 4  # strips into which a large Gram matrix is cut, so that only about 5/8 of it is multiplied out
LARGE = 256  # rows from which on that pays


def gram(columns: Tensor, ones: bool = False) -> Tensor:
    r"""Return :math:`\sum_r x_r x_r^\top` for the columns of tensors of shape (groups, d, rows).

    With ``ones`` each column has a 1 appended, and the result has d + 1 rows.
    """
    groups, d, rows = columns.shape
    result = columns.new_empty(groups, d + ones, d + ones)
    strip = -(-d // PARTS) if d >= LARGE else max(d, 1)
    for start in range(0, d, strip):
        stop = min(start + strip, d)
        product = columns[:, start:] @ columns[:, start:stop].mT
        result[:, start:d, start:stop] = product
        result[:, start:stop, stop:d] = product[:, stop - start :].mT
    if ones:
        result[:, :d, d] = result[:, d, :d] = columns.sum(-1)
        result[:, d, d] = rows
    return result


def damped_inverses(A: Tensor, G: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    r"""Return :math:`(A + \pi\sqrt\lambda I)^{-1}` and :math:`(G + \frac1\pi\sqrt\lambda I)^{-1}` for the
    damping :math:`\lambda`.

    :math:`\pi^2 = \frac{\operatorname{tr} A / \dim A}{\operatorname{tr} G / \dim G}` (Martens and Grosse
    2015, section 6.3), and 1 if one of the traces is zero.
    """
    pi = (_mean_eigenvalue(A) / _mean_eigenvalue(G)).sqrt()
    pi = torch.where(pi.isfinite() & (pi > 0), pi, 1.0)
    root = damping**0.5
    return damped_inverse(A, pi * root), damped_inverse(G, root / pi)


def _mean_eigenvalue(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=1, dim2=2).mean(1)


def damped_inverse(matrices: Tensor, shifts: Tensor) -> Tensor:
    """Return the inverses of positive semidefinite matrices of shape (groups, d, d), their diagonals shifted.

    Cholesky's method gives them. Where rounding has made a matrix so indefinite that it fails, the eigenvalues
    are computed in float64, and negative ones count as zero. A matrix with a NaN or an infinity gives NaN.
    """
    shifted = matrices.clone()
    shifted.diagonal(dim1=1, dim2=2).add_(shifts[:, None])
    if not shifted.isfinite().all():
        return torch.full_like(matrices, torch.nan)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if not failed.any():
        return torch.cholesky_inverse(factor)
    eigenvalues, Q = torch.linalg.eigh(matrices.double())
    powers = 1 / (eigenvalues.clamp(min=0) + shifts.double()[:, None])
    return ((Q * powers[:, None, :]) @ Q.mT).to(matrices.dtype)
