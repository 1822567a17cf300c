"""What K-FAC takes from an LSTM."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from support.optim.base import wide
from support.optim.kfac.blocks import Block, Rows, Use


class LSTM:
    """nn.LSTM: two linear maps into the gates in each layer and direction, of the input and of the last
    hidden state.

    The fused layer has no gradient of its gates. So it is run once more with inputs that are continued by
    zeros, which enter the gates through identity matrices: the output is the same, and the gradient in those
    zeros is the gradient in the gates. All sequences are handled as packed ones.
    """

    def __init__(self, module: nn.LSTM, block: Callable[..., Block], rows: Rows) -> None:
        self.rows = rows
        self.pairs = []  # for each layer and direction: of the input, of the hidden state
        for layer in range(module.num_layers):
            for suffix in ("", "_reverse")[: 1 + module.bidirectional]:
                names = (f"{kind}_l{layer}{suffix}" for kind in ("ih", "hh"))
                pair = [
                    block(
                        getattr(module, f"weight_{n}"), getattr(module, f"bias_{n}", None)
                    )
                    for n in names
                ]
                self.pairs.append(pair)
        self.blocks = [block for pair in self.pairs for block in pair]

    def run(self, module: nn.LSTM, inputs: tuple, kwargs: dict) -> tuple[Any, list[Use]]:
        """Return the output of the layer through the zeros, and what is needed of their gradients."""
        named = dict(zip(("input", "hx"), inputs, strict=False)) | kwargs
        packed, form = pack(module, named["input"])
        hx = named.get("hx")
        directions = 1 + module.bidirectional
        if hx is None:
            shape = (
                module.num_layers * directions,
                int(packed.batch_sizes[0]),
                module.hidden_size,
            )
            hx = (packed.data.new_zeros(shape),) * 2
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
        pairs = self.pairs[layer * directions : (layer + 1) * directions]
        probe = data.new_zeros(len(data), directions * gates, requires_grad=True)
        weights = []
        for index, (of_input, of_hidden) in enumerate(pairs):
            into = torch.zeros(
                gates, directions * gates, dtype=data.dtype, device=data.device
            )
            into[:, index * gates : (index + 1) * gates].fill_diagonal_(1)
            weights += [torch.cat([of_input.weight, into], 1), of_hidden.weight]
            if module.bias:
                weights += [of_input.bias, of_hidden.bias]
        layers, dropout = 1, 0.0
        output, *end = torch.lstm(
            torch.cat([data, probe], 1),
            sizes,
            start,
            weights,
            module.bias,
            layers,
            dropout,
            module.training,
            module.bidirectional,
        )
        hidden = output.detach().unflatten(1, (directions, -1))
        for index, (of_input, of_hidden) in enumerate(pairs):
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
                for pair, part in zip(pairs, parts, strict=True)
                for block in pair
            ]

        return output, end, (probe, gradients)


def pack(
    module: nn.LSTM, given: Tensor | PackedSequence
) -> tuple[PackedSequence, Callable]:
    """Return sequences as a packed one, and what brings an output into the form of the input."""
    if isinstance(given, PackedSequence):
        return given, lambda data, ends: (given._replace(data=data), tuple(ends))
    alone, steps_first = given.ndim == 2, given
    if alone:
        steps_first = given.unsqueeze(1)
    elif module.batch_first:
        steps_first = given.transpose(0, 1)
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
