"""What the methods that wrap another optimizer share."""

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from support.optim.base import Closure, check_real


class Wrapper(Optimizer):
    """An optimizer around another, ``optimizer``, whose parameter groups and state it shows as its own.

    So schedulers may be attached to either. Its own hyper-parameters stand in the same groups under their
    names; where the wrapped optimizer has one of that name too, with the class and an underscore before it.
    ``state_dict()`` is that of the wrapped optimizer with an entry ``wrappers``, a list with what each
    wrapper keeps, the innermost first.
    """

    def __init__(self, optimizer: Optimizer, own: dict[str, Any]) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer; got {optimizer!r}")
        self.optimizer = optimizer
        self.keys = {name: name for name in own}
        for name in own:
            while self.keys[name] in optimizer.defaults:
                self.keys[name] = f"{type(self).__name__}_{self.keys[name]}"
        defaults = {self.keys[name]: value for name, value in own.items()}
        # what an earlier wrapper around the same optimizer has filled in does not count as given
        filled = vars(optimizer).setdefault("_filled", {})
        for group in optimizer.param_groups:
            for key in defaults:
                if key in filled and group.get(key) == filled[key]:
                    del group[key]
        super().__init__(optimizer.param_groups, optimizer.defaults | defaults)
        filled.update(defaults)

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

    def own(self, group: dict[str, Any], name: str) -> Any:
        """Return a hyper-parameter of the wrapper in a group."""
        key = self.keys[name]
        return group.get(
            key, self.defaults[key]
        )  # the wrapped optimizer may have got a group

    def check(self, own: dict[str, Any]) -> None:
        """Raise ``ValueError`` if a hyper-parameter of the wrapper is wrong."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters to the wrapped optimizer."""
        given = self.defaults | param_group
        self.check({name: given[key] for name, key in self.keys.items()})
        check_real(param_group)
        if not any(param_group is group for group in self.optimizer.param_groups):
            self.optimizer.add_param_group(param_group)
            param_group = self.optimizer.param_groups[-1]
        for key in self.keys.values():
            param_group.setdefault(key, self.defaults[key])

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
        own = {"class": type(self).__name__} | self.own_state()
        return inner | {"wrappers": [*inner.get("wrappers", []), own]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state.

        Raises
        ------
        ValueError
            If it comes from other wrappers.
        """
        saved = [state["class"] for state in state_dict.get("wrappers", [])]
        if saved != self._classes():
            raise ValueError(
                f"state_dict must come from the wrappers {self._classes()}, innermost first; got {saved}"
            )
        *inner, own = state_dict["wrappers"]
        self.optimizer.load_state_dict(state_dict | {"wrappers": inner})
        self.load_own_state(own)

    def _classes(self) -> list[str]:
        inner = self.optimizer
        below = inner._classes() if isinstance(inner, Wrapper) else []
        return [*below, type(self).__name__]

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs."""
        return super().__getstate__() | {"optimizer": self.optimizer, "keys": self.keys}
