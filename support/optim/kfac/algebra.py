"""Damped inverses of the factors.

Every matrix has a leading dimension for the groups of a convolution; for other layers it is 1.
"""

import torch
from torch import Tensor


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
