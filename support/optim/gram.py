"""Gram matrices, which K-FAC and Shampoo sum up."""

from torch import Tensor


def gram(columns: Tensor, ones: bool = False) -> Tensor:
    r"""Return :math:`\sum_r x_r x_r^\top` for the columns of tensors of shape (groups, d, rows).

    With ``ones`` each column has a 1 appended, and the result has d + 1 rows. A large matrix is multiplied out
    strip by strip up to the diagonal and mirrored, which saves almost half of the work.
    """
    groups, d, rows = columns.shape
    result = columns.new_empty(groups, d + ones, d + ones)
    strip = max(d // 8, 128)
    for start in range(0, d, strip):
        stop = min(start + strip, d)
        product = columns[:, start:] @ columns[:, start:stop].mT
        result[:, start:d, start:stop] = product
        result[:, start:stop, stop:d] = product[:, stop - start :].mT
    if ones:
        result[:, :d, d] = result[:, d, :d] = columns.sum(-1)
        result[:, d, d] = rows
    return result
