"""What K-FAC takes from each kind of layer: its inputs, and the gradient in its outputs.

Both come as tensors of shape (groups, numbers, rows), where a row is one use of the weights: one example at one
position.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from support.optim.base import wide
from support.optim.kfac.blocks import Block, Rows, Use
from support.optim.kfac.lstm import LSTM


class Linear:
    """nn.Linear: with inputs of more than two dimensions all but the last count as positions."""

    def __init__(self, module: nn.Linear, block: Callable[..., Block], rows: Rows) -> None:
        self.block, self.rows = block(module.weight, module.bias), rows
        self.blocks = [self.block]

    def columns(self, tensor: Tensor, mean: bool) -> Tensor:
        """Return a tensor (examples, ..., d) as columns, its positions averaged or summed if they are
        reduced."""
        tensor = wide(tensor)
        if self.rows.sharing == "reduce" and tensor.ndim > 2:
            tensor = tensor.flatten(1, -2)
            tensor = tensor.mean(1) if mean else tensor.sum(1)
        return tensor.reshape(-1, tensor.shape[-1]).mT[None]

    def use(self, module: nn.Linear, inputs: tuple, kwargs: dict, output: Tensor) -> Use:
        """Take the inputs, and return what is needed of the gradients."""
        (given,) = inputs or kwargs.values()
        columns = self.columns(given.detach(), mean=True)
        total = columns.shape[-1]
        columns, share = self.rows.choose(columns)
        self.block.see_inputs(columns, total, share)
        return output, lambda g: [
            (self.block, *self.rows.choose(self.columns(g, mean=False)))
        ]


class Conv2d:
    """nn.Conv2d: a linear map of patches, one row for each example and position (Grosse and Martens 2016)."""

    def __init__(self, module: nn.Conv2d, block: Callable[..., Block], rows: Rows) -> None:
        self.block, self.rows = block(module.weight, module.bias, module.groups), rows
        self.blocks = [self.block]

    def use(self, module: nn.Conv2d, inputs: tuple, kwargs: dict, output: Tensor) -> Use:
        """Take the inputs, and return what is needed of the gradients."""
        (given,) = inputs or kwargs.values()
        if given.ndim != 4:
            raise ValueError(
                f"K-FAC needs inputs (N, C, H, W) of a convolution; got {given.shape}"
            )
        given = wide(given.detach())
        height, width = output.shape[-2:]
        examples, groups = len(output), module.groups
        reduce = self.rows.sharing == "reduce"
        *grid, share = self.rows.grid(examples, height, width)
        patches = unfold(module, given, (height, width), grid)
        if reduce:
            patches = patches.mean((-2, -1))
        rows = examples if reduce else examples * height * width
        d = module.weight[0].numel()
        self.block.see_inputs(patches.reshape(groups, d, -1), rows, share)

        def gradients(g: Tensor) -> list[tuple[Block, Tensor, float]]:
            g, share = wide(g), 1.0
            if reduce:
                g = g.sum((-2, -1))
            else:
                step, top, left, share = self.rows.grid(examples, height, width)
                g = g[..., top::step, left::step]
            columns = g.transpose(0, 1).reshape(groups, g.shape[1] // groups, -1)
            return [(self.block, columns, share)]

        return output, gradients


def unfold(
    module: nn.Conv2d, given: Tensor, sides: tuple[int, int], grid: list[int]
) -> Tensor:
    """Return the patches under the positions of a grid, of shape (channels, kernel, kernel, examples, rows,
    columns).

    It is a view of the padded input; no number is copied.
    """
    step, top, left = grid
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    given = F.pad(given, padding(module), mode)
    examples, channels = given.shape[:2]
    n, c, y, x = given.stride()
    (stride_y, stride_x), (dilation_y, dilation_x) = module.stride, module.dilation
    rows, columns = -(-(sides[0] - top) // step), -(-(sides[1] - left) // step)
    shape = (channels, *module.kernel_size, examples, rows, columns)
    inside, between = (
        (y * dilation_y, x * dilation_x),
        (y * stride_y * step, x * stride_x * step),
    )
    strides = (c, *inside, n, *between)
    start = given.storage_offset() + top * stride_y * y + left * stride_x * x
    return given.as_strided(shape, strides, start)


def padding(module: nn.Conv2d) -> list[int]:
    """Return the padding of a convolution as F.pad wants it: left, right, top, bottom."""
    if module.padding == "valid":
        return [0, 0, 0, 0]
    if module.padding == "same":
        totals = [
            d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)
        ]
        return [part for total in totals[::-1] for part in (total // 2, total - total // 2)]
    vertical, horizontal = module.padding
    return [horizontal, horizontal, vertical, vertical]


def kind_of(module: nn.Module) -> type | None:
    """Return what takes the statistics of a layer; ``None`` for one that K-FAC does not know."""
    trained = all(p.requires_grad for p in module.parameters(recurse=False))
    kinds = {nn.Linear: Linear, nn.Conv2d: Conv2d, nn.LSTM: LSTM}
    kind = kinds.get(type(module))
    if not trained or (kind is LSTM and module.proj_size):
        return None
    return kind
