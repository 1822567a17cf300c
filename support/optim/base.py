"""What the optimizers of this package share: checks, state that keeps its precision, points shown for
evaluation."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Closure = Callable[[], Any]
CACHED = 2**16  # numbers that the CPU's cache holds beside what belongs to them


class Method(Optimizer):
    """An optimizer that checks its hyper-parameters in every group, and loads its state uncast.

    State is kept in float32 for parameters of lower precision, otherwise in their own type.
    """

    _memory: Tensor | None = None

    def check(self, group: dict[str, Any]) -> None:
        """Raise ``ValueError`` if a hyper-parameter of a group is wrong."""
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with hyper-parameters of its own if it names any."""
        self.check(self.defaults | param_group)
        check_real(param_group)
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; unlike ``torch.optim`` does, none of its tensors is cast to the parameter's type."""
        super().load_state_dict(state_dict)
        names = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for name, parameter in zip(names, parameters(self), strict=True):
            if name in state_dict["state"]:
                self.state[parameter] = _copy(state_dict["state"][name], parameter.device)

    def evaluation(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the parameters show the point that the method returns."""
        return contextlib.nullcontext()

    def scratch(self, batch: Sequence[Tensor]) -> list[Tensor]:
        """Return tensors like those of a batch, with no particular values, to be used before the next call.

        On the CPU they lie in one memory that is kept: to ask the system for new memory costs more than the
        arithmetic.
        """
        if batch[0].device.type != "cpu":
            return [torch.empty_like(tensor) for tensor in batch]
        sizes, memory = [tensor.numel() for tensor in batch], self._memory
        if memory is None or memory.dtype != batch[0].dtype or len(memory) < sum(sizes):
            memory = self._memory = torch.empty(sum(sizes), dtype=batch[0].dtype)
        parts = memory[: sum(sizes)].split(sizes)
        return [part.view(tensor.shape) for part, tensor in zip(parts, batch, strict=True)]


def interpolate(
    results: Sequence[Tensor],
    starts: Sequence[Tensor],
    ends: Sequence[Tensor],
    weight: float,
) -> None:
    """Put start + weight (end - start) into tensors; on the CPU without fresh memory, if they are of one
    type."""
    if results[0].device.type == "cpu" and results[0].dtype == starts[0].dtype:
        for result, start, end in zip(results, starts, ends, strict=True):
            torch.lerp(start, end, weight, out=result)
    else:
        torch._foreach_copy_(results, torch._foreach_lerp(starts, ends, weight))


def parameters(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters of all groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def present(group: dict[str, Any]) -> list[Tensor]:
    """Return the parameters of a group that have a gradient and at least one entry.

    Raises
    ------
    RuntimeError
        If a gradient is sparse.
    """
    found = [p for p in group["params"] if p.grad is not None and p.numel()]
    if any(p.grad.layout != torch.strided for p in found):
        raise RuntimeError("gradients must be dense; got a sparse one")
    return found


def gradients(present: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of parameters, in float32 where theirs is of lower precision."""
    return [wide(parameter.grad) for parameter in present]


def batches(*lists: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    """Cut lists of equal length into lists of tensors to be worked on together, by the first of them.

    On the CPU small tensors come together and large ones alone, so that they stay in the cache from one
    operation to the next; elsewhere all come at once, so that few kernels are launched. Those of one batch
    are of one type.
    """
    start = size = 0
    for index, tensor in enumerate(lists[0]):
        first = lists[0][start]
        full = tensor.device.type == "cpu" and size + tensor.numel() > CACHED
        other = (tensor.dtype, tensor.device) != (first.dtype, first.device)
        if index > start and (full or other):
            yield tuple(list(some[start:index]) for some in lists)
            start, size = index, 0
        size += tensor.numel()
    if lists[0]:
        yield tuple(list(some[start:]) for some in lists)


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor, in float32 if it is of lower precision."""
    return tensor.float() if tensor.dtype in {torch.float16, torch.bfloat16} else tensor


def buffers(optimizer: Optimizer, name: str, present: Sequence[Tensor]) -> list[Tensor]:
    """Return the state of this name of each parameter, zeros at first."""
    for parameter in present:
        state = optimizer.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(wide(parameter.detach()))
    return [optimizer.state[parameter][name] for parameter in present]


def evaluate(closure: Closure | None) -> Any:
    """Return the loss of a closure, called with gradients switched on; ``None`` without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


@contextlib.contextmanager
def showing(points: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Show other values in parameters, and put their own back to the bit.

    ``points`` are pairs (parameter, what it shows).
    """
    points = list(points)
    own = [parameter.detach().clone() for parameter, _ in points]
    with torch.no_grad():
        for parameter, shown in points:
            parameter.copy_(shown)
    try:
        yield
    finally:
        with torch.no_grad():
            for (parameter, _), value in zip(points, own, strict=True):
                parameter.copy_(value)


def check_number(name: str, value: Any, interval: str) -> None:
    """Raise ``ValueError`` if a value is no real number in an interval such as ``"[0, inf)"``."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    real = isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)
    above = real and (value >= low if interval[0] == "[" else value > low)
    below = real and (value <= high if interval[-1] == "]" else value < high)
    if not (above and below):
        raise ValueError(f"{name} must be a number in {interval}; got {value!r}")


def check_count(name: str, value: Any) -> None:
    """Raise ``ValueError`` if a value is no whole number of at least 1."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}")


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise ``ValueError`` if a value is none of the choices."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}; got {value!r}")


def check_real(param_group: dict[str, Any]) -> None:
    """Raise ``ValueError`` if a parameter of a group is complex."""
    params = param_group["params"]
    params = param_group["params"] = (
        [params] if isinstance(params, Tensor) else list(params)
    )
    for parameter in params:
        tensor = (
            parameter[1] if isinstance(parameter, tuple) else parameter
        )  # named, or not
        if isinstance(tensor, Tensor) and tensor.is_complex():
            raise ValueError(f"parameters must be real; got one of type {tensor.dtype}")


def _copy(value: Any, device: torch.device) -> Any:
    """Copy tensors, also inside lists and dictionaries, to a device."""
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, list):
        return [_copy(part, device) for part in value]
    if isinstance(value, dict):
        return {name: _copy(part, device) for name, part in value.items()}
    return value
