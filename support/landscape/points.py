"""The loss at the points of a grid: one after the other, or many at once where that is faster."""

import copy
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from support import training
from support.data import Batches
from support.landscape.plane import as_vector, trained
from support.tasks import Task, classification

TOGETHER = 32
"""Points at once, where that is faster."""
WORTH = 100_000
"""Examples, times points, from which on it is worth measuring what is faster."""
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORM = nn.modules.batchnorm._BatchNorm


def surface(
    model: nn.Module,
    batches: Batches,
    directions: Sequence[Mapping[str, Tensor]],
    grid: Sequence[Sequence[float]],
    *,
    task: Task = classification,
    statistics: str = "kept",
    together: int | None = None,
    checkpoint: str | Path | None = None,
) -> dict[str, np.ndarray]:
    r"""Measure :math:`L(\theta + a\, d_1 + b\, d_2)` at the points of a grid (Li et al. 2018, eq. 1).

    Parameters
    ----------
    model
        The network, which stands at the origin.
    batches
        Examples over which the loss is the mean. On a CPU batches of about 250 suit small networks best.
    directions
        One for a line, two for a surface, or more.
    grid
        For each direction its coordinates.
    task
        Its loss and its ``metrics`` are measured; what it gathers is not.
    statistics
        Of batch normalisation. ``"kept"``: those of the network, at every point. ``"re-estimated"``: at each
        point the means over ``batches`` of the means and (unbiased) variances of a batch, as
        ``torch.optim.swa_utils.update_bn`` takes them; the point is then judged with these.
    together
        So many points at once; 1 is a plain loop. By default the faster of 1 and 32 by a measurement on the
        first batch; 1 where points times examples are fewer than 100,000, and where ``torch.func.vmap``
        cannot do what the network does. Memory: the activations of a batch at so many points.
    checkpoint
        File for what is done, written once a second and at an interruption. If it is there, the rest is
        measured, in the same way as before, to the same numbers to the bit.

    Returns
    -------
    dict
        ``"loss"`` and each metric -> float64 array of shape (len(grid[0]), len(grid[1]), ...).

    Raises
    ------
    ValueError
        If an argument is wrong, or the checkpoint is that of another surface.
    """
    _check(directions, grid, statistics, together)
    axes = [torch.as_tensor(np.asarray(axis, dtype=np.float64)) for axis in grid]
    points = torch.cartesian_prod(*axes).view(-1, len(axes))
    values = _Points(model, batches, directions, task, statistics)
    file = _Checkpoint(checkpoint, values, points)
    size = file.together or together or (TOGETHER if values.pays(points) else 1)
    try:
        for start in range(file.done, len(points), size):
            file.add(size, values(points[start : start + size], size > 1))
    finally:
        file.save()
    shape = tuple(len(axis) for axis in axes)
    return {name: value.view(shape).numpy() for name, value in file.values.items()}


def _check(
    directions: Sequence, grid: Sequence, statistics: str, together: int | None
) -> None:
    if isinstance(directions, Mapping) or not len(directions):
        raise ValueError("directions must be a list of at least one direction")
    if len(directions) != len(grid):
        raise ValueError(
            f"grid must hold coordinates for each of the {len(directions)} directions; "
            f"got {len(grid)} entries"
        )
    for place, axis in enumerate(grid):
        numbers = np.asarray(axis, dtype=np.float64)
        if numbers.ndim != 1 or not len(numbers) or not np.isfinite(numbers).all():
            raise ValueError(
                f"grid[{place}] must be a list of finite coordinates; got {axis!r}"
            )
    if statistics not in ("kept", "re-estimated"):
        raise ValueError(f'statistics must be "kept" or "re-estimated"; got {statistics!r}')
    if together is not None and together < 1:
        raise ValueError(f"together must be positive or None; got {together}")


class _Points:
    r"""The network at points :math:`\theta + \sum_k c_k d_k`, and what is measured there."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        directions: Sequence[Mapping[str, Tensor]],
        task: Task,
        statistics: str,
    ) -> None:
        own = trained(model)
        self.batches, self.task, self.statistics = in_order(batches), task, statistics
        self.shapes = {name: value.shape for name, value in own.items()}
        self.basis = torch.stack(  # the network, then the directions: (1 + k, P)
            [as_vector(model, parts) for parts in (own, *directions)]
        )
        sizes = [shape.numel() for shape in self.shapes.values()]
        self.parts = dict(zip(own, self.basis.split(sizes, dim=1), strict=True))
        self.model = copy.deepcopy(model).eval()
        self.buffers = dict(self.model.named_buffers())
        self.norms = [part for part in self.model.modules() if isinstance(part, BATCH_NORM)]
        self.coordinates: Tensor | None = None
        first = next(iter(self.batches))[0][:1]
        shared = self._share_first_layers(first)
        rest = [name for name in own if name not in shared]
        matrix = [self.parts[name] for name in rest] or [self.basis[:, :0]]
        self.moved = {False: (list(own), self.basis), True: (rest, torch.cat(matrix, 1))}
        if shared and not self._agree(first):
            self.moved[True] = self.moved[False]

    def _share_first_layers(self, first: Tensor) -> set[str]:
        """Let points at once share the layers that see the data as they are; return their parameters.

        A layer sees the data if its inputs depend on no parameter. Its outputs are linear in the coordinates:
        those at all points follow from 1 + k of them, for the network and for each direction.
        """
        calls: dict[nn.Module, list[bool]] = {}

        def note(layer: nn.Module, inputs: tuple) -> None:
            calls.setdefault(layer, []).append(not inputs or inputs[0].requires_grad)

        hooks = [
            layer.register_forward_pre_hook(note)
            for layer in self.model.modules()
            if type(layer) in LAYERS
        ]
        with torch.enable_grad():
            self.model.requires_grad_(True)(first)
        self.model.requires_grad_(False)
        for hook in hooks:
            hook.remove()
        every = [
            id(value) for _, value in self.model.named_parameters(remove_duplicate=False)
        ]
        shared: set[str] = set()
        for place, layer in self.model.named_modules():
            own = dict(layer.named_parameters(place, recurse=False))
            once = all(every.count(id(value)) == 1 for value in own.values())
            sees = type(layer) in LAYERS and calls.get(layer) == [False]
            if sees and once and own.keys() <= self.shapes.keys():
                shared |= own.keys()
                layer.forward = partial(self._combined, layer, list(own), layer.forward)
        return shared

    @torch.no_grad()
    def _agree(self, first: Tensor) -> bool:
        """Return whether sharing changes nothing, which it does where a layer's weights have a second use."""
        point = torch.ones_like(self.basis[:, 0])
        plain, shared = (
            self._outputs(point, self.buffers, first, share) for share in (False, True)
        )
        close = 1e-3 * plain.abs().max().item()
        return torch.allclose(plain, shared, rtol=1e-3, atol=close, equal_nan=True)

    def _combined(
        self, layer: nn.Module, names: list[str], plain: Callable, inputs: Tensor
    ) -> Tensor:
        """Return a shared layer's outputs at one point; a map over the points computes those of the basis once."""
        if self.coordinates is None:
            return plain(inputs)
        weights = [self.parts[name].view(-1, *self.shapes[name]) for name in names]
        outputs = torch.stack(
            [_apply(layer, inputs, *row) for row in zip(*weights, strict=True)]
        )
        return torch.tensordot(self.coordinates, outputs, 1)

    def _outputs(
        self, point: Tensor, buffers: Mapping[str, Tensor], inputs: Tensor, share: bool
    ) -> Tensor:
        """Return the outputs at one point (1, c_1, ..., c_k)."""
        names, matrix = self.moved[share]
        sizes = [self.shapes[name].numel() for name in names]
        parameters = {
            name: part.view(self.shapes[name])
            for name, part in zip(names, (point @ matrix).split(sizes), strict=True)
        }
        self.coordinates = point if names is not self.moved[False][0] else None
        return functional_call(self.model, parameters | buffers, (inputs,))

    def _measure(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return for loss and metrics the sums over the examples."""
        sums = {"loss": self.task.loss(outputs, targets) * len(targets)}
        return sums | {
            name: metric(outputs, targets) for name, metric in self.task.metrics.items()
        }

    @torch.no_grad()
    def __call__(
        self, points: Tensor, share: bool, batches: Iterable | None = None
    ) -> dict[str, Tensor]:
        """Return the means over all examples at points (T, k): name -> float64 tensor (T,) on the CPU.

        With ``share`` all points go through the network at once; otherwise there must be one.
        """
        batches = self.batches if batches is None else batches
        points = torch.cat([torch.ones_like(points[:, :1]), points], dim=1).to(self.basis)
        estimate = self.statistics == "re-estimated" and self.norms
        outputs, measure = self._outputs, self._measure
        if share:
            outputs = vmap(outputs, (0, 0 if estimate else None, None, None))
            measure = vmap(measure, (0, None))
        else:
            points = points[0]
        buffers = self.buffers
        if estimate:
            buffers = {
                name: value.expand((*points.shape[:-1], *value.shape)).clone()
                for name, value in buffers.items()
            }
            self._estimate(batches, lambda inputs: outputs(points, buffers, inputs, share))
        sums: dict[str, Tensor] = {}
        examples = 0
        for inputs, targets in batches:
            examples += len(targets)
            found = measure(outputs(points, buffers, inputs, share), targets)
            for name, value in found.items():
                sums[name] = sums[name] + value if name in sums else value
        return {
            name: value.cpu().double().view(-1) / examples for name, value in sums.items()
        }

    def _estimate(self, batches: Iterable, outputs: Callable[[Tensor], Tensor]) -> None:
        """Pass all batches, and take the means of their statistics into the buffers."""
        for norm in self.norms:
            norm.train()
        for number, (inputs, _) in enumerate(batches, 1):
            for norm in self.norms:
                norm.momentum = 1 / number
            outputs(inputs)
        self.model.eval()

    def pays(self, points: Tensor) -> bool:
        """Measure whether points at once take less time than one by one, on the first batch.

        A few of its examples often show that they do not; else the whole batch is asked. Where there is not
        much to do, a measurement does not pay either.
        """
        if len(points) * self.batches.examples < WORTH:
            return False
        whole, several = next(iter(self.batches)), points[:TOGETHER]
        for examples, times in ((32, 2), (len(whole[0]), 1)):
            some = [tuple(part[:examples] for part in whole)]
            alone = self._seconds(several if times > 1 else several[:8], False, some, times)
            try:
                together = self._seconds(several, True, some, times)
            except (
                RuntimeError
            ):  # vmap has no rule for a layer, or there is not so much memory
                return False
            if together >= alone:
                return False
        return True

    def _seconds(self, points: Tensor, share: bool, batches: Iterable, times: int) -> float:
        """Return the seconds for one point, the shortest of some times."""
        taken = []
        for _ in range(times):
            began = time.perf_counter()
            for some in [points] if share else points.split(1):
                self(some, share, batches)  # it ends with numbers on the CPU
            taken.append(time.perf_counter() - began)
        return min(taken) / len(points)

    def fingerprint(self, points: Tensor) -> str:
        """Return what tells this surface from others: all numbers that go into it."""
        seen = hashlib.sha256()
        numbers = [self.basis, points, *self.buffers.values(), *self.batches.tensors]
        for value in numbers:
            seen.update(str((value.shape, value.dtype)).encode())
            seen.update(
                value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            )
        about = (self.batches.examples, self.batches.size, self.statistics)
        names = [*self.shapes, "loss", *self.task.metrics]
        seen.update(str((about, names)).encode())
        return seen.hexdigest()


class _Checkpoint:
    """What is measured so far, in a file where one is named."""

    def __init__(self, path: str | Path | None, job: _Points, points: Tensor) -> None:
        self.path = Path(path) if path else None
        self.values: dict[str, Tensor] = {}
        self.together, self.saved = None, 0
        self.written = time.monotonic()
        if not self.path:
            return
        self.fingerprint = job.fingerprint(points)
        if self.path.exists():
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            if state.get("fingerprint") != self.fingerprint:
                raise ValueError(
                    f"checkpoint must be of this surface; {self.path} is of another network, "
                    "grid or data: name another file, or remove it"
                )
            self.together, self.values = state["together"], state["values"]
            self.saved = self.done

    @property
    def done(self) -> int:
        """Number of points that are measured."""
        return min(map(len, self.values.values()), default=0)

    def add(self, together: int, values: Mapping[str, Tensor]) -> None:
        """Add the values of the next points."""
        self.together = together
        self.values = {
            name: torch.cat([self.values[name], value]) if self.values else value
            for name, value in values.items()
        }
        if time.monotonic() - self.written > 1:
            self.save()

    def save(self) -> None:
        """Write the file, if there is something new."""
        if self.path and self.done > self.saved:
            state = {"fingerprint": self.fingerprint, "together": self.together}
            training.save(self.path, state | {"values": self.values})
            self.saved, self.written = self.done, time.monotonic()


def in_order(batches: Batches) -> Batches:
    """Return the same batches in the order of their data set, whatever the seed; it draws nothing."""
    batches = copy.copy(batches)
    batches.generator = None
    return batches


def _apply(
    layer: nn.Module, inputs: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Return the outputs of a dense layer or a convolution with other weights."""
    if isinstance(layer, nn.Linear):
        return F.linear(inputs, weight, bias)
    return layer._conv_forward(inputs, weight, bias)
