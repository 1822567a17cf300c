"""What K-FAC takes from each kind of layer: its inputs, and the gradient in its outputs.

Both come as tensors of shape (groups, numbers, rows), where a row is one use of the weights: one example at
one position.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from support.optim.base import wide
from support.optim.kfac.algebra import gram


class Block:
    """A weight and its bias, with the sums of the passes since the factors were last renewed.

    The gradient of the weight is a matrix of shape (outputs, inputs) for each group; the bias is the last
    column (the homogeneous coordinate of erratum KU-2).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, groups: int = 1) -> None:
        self.weight, self.bias, self.groups = weight, bias, groups
        self.forget()

    def forget(self) -> None:
        """Drop the sums."""
        self.inputs = self.gradients = None
        self.rows = 0.0

    def see_inputs(self, columns: Tensor, rows: float, share: float) -> None:
        """Add inputs: ``columns`` are a ``share`` of all ``rows``."""
        added = gram(columns, ones=self.bias is not None) / share
        self.inputs = added if self.inputs is None else self.inputs.add_(added)
        self.rows += rows

    def see_gradients(self, columns: Tensor, weight: float) -> None:
        """Add gradients in the outputs, of which each product counts ``weight`` times."""
        added = gram(columns) * weight
        self.gradients = added if self.gradients is None else self.gradients.add_(added)

    def join(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the gradient as matrices of shape (groups, outputs, inputs + 1)."""
        matrix = weight.reshape(self.groups, len(weight) // self.groups, -1)
        if self.bias is None:
            return matrix
        bias = torch.zeros_like(weight[..., 0]) if bias is None else bias
        return torch.cat([matrix, bias.reshape(self.groups, -1, 1)], dim=2)

    def part(self, matrix: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the weight and the bias, each with its part of a matrix."""
        if self.bias is None:
            yield self.weight, matrix.reshape(self.weight.shape)
        else:
            yield self.weight, matrix[..., :-1].reshape(self.weight.shape)
            yield self.bias, matrix[..., -1].reshape(self.bias.shape)


Use = tuple[Tensor, Callable[[Tensor], list[tuple[Block, Tensor, float]]]]
"""A tensor in whose gradient K-FAC is interested, and what makes columns for blocks of that gradient, with
their share of all."""


class Rows:
    """How positions are shared, and how many rows enter a factor."""

    def __init__(self, sharing: str, limit: int | None, seed: int) -> None:
        self.sharing, self.limit = sharing, limit
        self.generator = torch.Generator().manual_seed(seed)

    def choose(self, columns: Tensor) -> tuple[Tensor, float]:
        """Return a random part of the columns, and the share of all that it is."""
        rows = columns.shape[-1]
        if self.limit is None or rows <= self.limit:
            return columns, 1.0
        chosen = torch.randperm(rows, generator=self.generator)[: self.limit]
        return columns[..., chosen.to(columns.device)], self.limit / rows

    def grid(self, examples: int, height: int, width: int) -> tuple[int, int, int, float]:
        """Return the step of a regular grid of positions, its random corner, and the share of all positions
        that it is on average."""
        step = 1
        if self.limit is not None and self.sharing == "expand":
            while examples * height * width > self.limit * step**2 and step < min(
                height, width
            ):
                step += 1
        top, left = (
            torch.randint(step, (2,), generator=self.generator).tolist()
            if step > 1
            else (0, 0)
        )
        return step, top, left, 1 / step**2


class Linear:
    """nn.Linear: with inputs of more than two dimensions all but the last count as positions."""

    def __init__(self, module: nn.Linear, block: Callable[..., Block], rows: Rows) -> None:
        self.block, self.rows = block(module.weight, module.bias), rows

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

    def use(self, module: nn.Conv2d, inputs: tuple, kwargs: dict, output: Tensor) -> Use:
        """Take the inputs, and return what is needed of the gradients."""
        (given,) = inputs or kwargs.values()
        given = wide(given.detach())
        height, width = output.shape[-2:]
        examples, groups, reduce = (
            output.shape[0],
            module.groups,
            self.rows.sharing == "reduce",
        )
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
    given = F.pad(
        given,
        padding(module),
        "constant" if module.padding_mode == "zeros" else module.padding_mode,
    )
    examples, channels = given.shape[:2]
    n, c, y, x = given.stride()
    (stride_y, stride_x), (dilation_y, dilation_x) = module.stride, module.dilation
    shape = (
        channels,
        *module.kernel_size,
        examples,
        *(
            -(-(side - corner) // step)
            for side, corner in zip(sides, (top, left), strict=True)
        ),
    )
    strides = (
        c,
        y * dilation_y,
        x * dilation_x,
        n,
        y * stride_y * step,
        x * stride_x * step,
    )
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


class LSTM:
    """nn.LSTM: two linear maps into the gates in each layer and direction, of the input and of the last
    hidden state.

    The fused layer has no gradient of its gates. So it is run once more with inputs that are continued by
    zeros, which enter the gates through identity matrices: the output is the same, and the gradient in those
    zeros is the gradient in the gates. All sequences are handled as packed ones.
    """

    def __init__(self, module: nn.LSTM, block: Callable[..., Block], rows: Rows) -> None:
        self.rows = rows
        self.blocks = []  # for each layer and direction: of the input, of the hidden state
        for layer in range(module.num_layers):
            for suffix in ("", "_reverse")[: 1 + module.bidirectional]:
                names = (f"{kind}_l{layer}{suffix}" for kind in ("ih", "hh"))
                pair = [
                    block(
                        getattr(module, f"weight_{n}"), getattr(module, f"bias_{n}", None)
                    )
                    for n in names
                ]
                self.blocks.append(pair)

    def run(self, module: nn.LSTM, inputs: tuple, kwargs: dict) -> tuple[Any, list[Use]]:
        """Return the output of the layer through the zeros, and what is needed of their gradients."""
        named = dict(zip(("input", "hx"), inputs, strict=False)) | kwargs
        packed, form = pack(module, named["input"])
        hx = named.get("hx")
        directions = 1 + module.bidirectional
        if hx is None:
            zeros = packed.data.new_zeros(
                module.num_layers * directions,
                int(packed.batch_sizes[0]),
                module.hidden_size,
            )
            hx = (zeros, zeros)
        elif hx[0].ndim == 2:
            hx = tuple(part.unsqueeze(1) for part in hx)
        if packed.sorted_indices is not None:
            hx = tuple(part.index_select(1, packed.sorted_indices) for part in hx)
        data, uses, ends = packed.data, [], []
        for layer in range(module.num_layers):
            some = slice(layer * directions, (layer + 1) * directions)
            if layer and module.dropout and module.training:
                data = F.dropout(data, module.dropout)
            start = tuple(part[some] for part in hx)
            data, end, use = self._layer(module, layer, data, packed.batch_sizes, start)
            ends.append(end)
            uses.append(use)
        ends = [torch.cat(parts) for parts in zip(*ends, strict=True)]
        if packed.unsorted_indices is not None:
            ends = [part.index_select(1, packed.unsorted_indices) for part in ends]
        return form(data, ends), uses

    def _layer(
        self, module: nn.LSTM, layer: int, data: Tensor, sizes: Tensor, start: tuple
    ) -> tuple:
        directions, gates = 1 + module.bidirectional, 4 * module.hidden_size
        blocks = self.blocks[layer * directions : (layer + 1) * directions]
        probe = data.new_zeros(len(data), directions * gates, requires_grad=True)
        weights = []
        for index, (of_input, of_hidden) in enumerate(blocks):
            into = torch.zeros(
                gates, directions * gates, dtype=data.dtype, device=data.device
            )
            into[:, index * gates : (index + 1) * gates].fill_diagonal_(1)
            weights += [torch.cat([of_input.weight, into], 1), of_hidden.weight]
            if module.bias:
                weights += [of_input.bias, of_hidden.bias]
        output, *end = torch.lstm(
            torch.cat([data, probe], 1),
            sizes,
            start,
            weights,
            module.bias,
            1,
            0.0,
            module.training,
            module.bidirectional,
        )
        hidden = output.detach().unflatten(1, (directions, -1))
        for index, (of_input, of_hidden) in enumerate(blocks):
            before = torch.cat([start[0][index].detach(), hidden[:, index]])[
                earlier(sizes, bool(index)).to(data.device)
            ]
            for block, columns in ((of_input, data.detach()), (of_hidden, before)):
                columns, share = self.rows.choose(wide(columns).mT[None])
                block.see_inputs(columns, len(data), share)

        def gradients(g: Tensor) -> list[tuple[Block, Tensor, float]]:
            parts = wide(g).unflatten(1, (directions, gates)).permute(1, 2, 0)
            return [
                (block, *self.rows.choose(part[None]))
                for pair, part in zip(blocks, parts, strict=True)
                for block in pair
            ]

        return output, end, (probe, gradients)


def pack(
    module: nn.LSTM, given: Tensor | PackedSequence
) -> tuple[PackedSequence, Callable]:
    """Return sequences as a packed one, and what brings an output into the form of the input."""
    if isinstance(given, PackedSequence):
        return given, lambda data, ends: (given._replace(data=data), tuple(ends))
    alone = given.ndim == 2
    steps_first = (
        given.unsqueeze(1)
        if alone
        else given.transpose(0, 1)
        if module.batch_first
        else given
    )
    steps, examples = steps_first.shape[:2]

    def form(data: Tensor, ends: list[Tensor]) -> tuple:
        output = data.view(steps, examples, -1)
        if alone:
            return output.squeeze(1), tuple(part.squeeze(1) for part in ends)
        return output.transpose(0, 1) if module.batch_first else output, tuple(ends)

    return PackedSequence(steps_first.flatten(0, 1), torch.full((steps,), examples)), form


def earlier(sizes: Tensor, reverse: bool) -> Tensor:
    """Return for each row of a packed sequence the place of the hidden state that it starts from.

    Places count the initial states first, then the rows. A reversed sequence starts at its own end.
    """
    examples, offsets = (
        int(sizes[0]),
        torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]).tolist(),
    )
    places, sizes = [], sizes.tolist()
    for step, size in enumerate(sizes):
        other = step + 1 if reverse else step - 1
        known = sizes[other] if 0 <= other < len(sizes) else 0
        places += [
            examples + offsets[other] + row if row < known else row for row in range(size)
        ]
    return torch.tensor(places)


def kind_of(module: nn.Module) -> type | None:
    """Return what takes the statistics of a layer; ``None`` for one that K-FAC does not know."""
    trained = all(p.requires_grad for p in module.parameters(recurse=False))
    kinds = {nn.Linear: Linear, nn.Conv2d: Conv2d, nn.LSTM: LSTM}
    kind = kinds.get(type(module))
    if not trained or (kind is LSTM and module.proj_size):
        return None
    return kind
