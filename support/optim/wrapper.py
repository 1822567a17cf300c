"""What the methods that wrap another optimizer share."""

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from support.optim.base import Closure


class Wrapper(Optimizer):
    """An optimizer around another, ``optimizer``, whose parameter groups and state it shows as its own.

    So schedulers may be attached to either. Its hyper-parameters stand in the same groups. ``state_dict()``
    is the one of the wrapped optimizer with an entry ``wrappers``, a list with what each wrapper keeps, the
    innermost first.
    """

    def __init__(self, optimizer: Optimizer, defaults: dict[str, Any]) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer; got {optimizer!r}")
        self.optimizer = optimizer
        super().__init__(optimizer.param_groups, defaults)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the wrapped optimizer."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        """Do nothing: the constructor of torch assigns an empty list."""

    @property
    def state(self) -> dict[Tensor, Any]:
        """The state of the wrapped optimizer."""
        return self.optimizer.state

    @state.setter
    def state(self, state: dict[Tensor, Any]) -> None:
        """Do nothing: the constructor of torch assigns an empty one."""

    def check(self, group: dict[str, Any]) -> None:
        """Raise ``ValueError`` if a hyper-parameter of a group is wrong."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters to the wrapped optimizer."""
        self.check(self.defaults | param_group)
        if not any(param_group is group for group in self.optimizer.param_groups):
            self.optimizer.add_param_group(param_group)
            param_group = self.optimizer.param_groups[-1]
        for name, value in self.defaults.items():
            param_group.setdefault(name, value)

    def change_gradients(self) -> None:
        """Change the gradients, after they are computed and before the wrapped optimizer uses them."""

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step; the gradients are changed after each call of the closure, or at once without one."""
        if closure is None:
            self.change_gradients()
            return self.optimizer.step()

        def changed() -> Any:
            loss = closure()
            with torch.no_grad():
                self.change_gradients()
            return loss

        return self.optimizer.step(changed)

    def evaluation(self) -> contextlib.AbstractContextManager[None]:
        """Return the context of the wrapped optimizer in which the parameters show the point that it
        returns."""
        return getattr(self.optimizer, "evaluation", contextlib.nullcontext)()

    def own_state(self) -> dict[str, Any]:
        """Return what the wrapper itself keeps."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Load what :meth:`own_state` returned."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the wrapped optimizer and, in ``wrappers``, that of the wrappers around it."""
        inner = self.optimizer.state_dict()
        return inner | {"wrappers": [*inner.get("wrappers", []), self.own_state()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state.

        Raises
        ------
        ValueError
            If it is not the state of a wrapper.
        """
        if not state_dict.get("wrappers"):
            raise ValueError(
                f"state_dict must come from a {type(self).__name__}; it has no entry for a wrapper"
            )
        *inner, own = state_dict["wrappers"]
        self.optimizer.load_state_dict(state_dict | {"wrappers": inner})
        self.load_own_state(own)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs."""
        return super().__getstate__() | {"optimizer": self.optimizer}
