"""Schedules of the step size by name, which are torch's, and snapshots taken before each rise of the step."""

import contextlib
import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LRScheduler,
    MultiStepLR,
)

SCHEDULES: dict[str, Callable[..., LRScheduler]] = {
    "exponential": ExponentialLR,
    "piecewise": MultiStepLR,
    "cosine": CosineAnnealingLR,
    "restarts": CosineAnnealingWarmRestarts,
}
r"""Name -> constructor, called with the optimizer (M54-M56).

``cosine`` stepped after each of ``T_max`` epochs gives
:math:`\eta_j = \eta_{min} + \frac12 (\eta_{max} - \eta_{min})(1 + \cos\frac{j\pi}{T_{max}})` for
:math:`j = 0, \dots, T_{max} - 1` (erratum KU-21).
"""


class Snapshots:
    """A scheduler that keeps a copy of the network before each rise of a step size (M57).

    :func:`support.training.fit` takes it for a scheduler. A cosine with restarts rises after each cycle, the
    last one included. A warm-up rises too: a copy is taken at each of its steps.

    Parameters
    ----------
    scheduler
        Changes the step size.
    model
        What is copied, as the optimizer shows it for evaluation.
    """

    def __init__(self, scheduler: LRScheduler, model: nn.Module) -> None:
        self.scheduler, self.model = scheduler, model
        self.states: list[dict[str, Tensor]] = []
        """State dictionaries of the network, the oldest first."""

    def step(self) -> None:
        """Step the scheduler; if a step size has risen, copy the network."""
        optimizer = self.scheduler.optimizer
        before = [group["lr"] for group in optimizer.param_groups]
        self.scheduler.step()
        after = [group["lr"] for group in optimizer.param_groups]
        if any(new > old for new, old in zip(after, before, strict=True)):
            with getattr(optimizer, "evaluation", contextlib.nullcontext)():
                self.states.append(copy.deepcopy(self.model.state_dict()))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scheduler and the copies."""
        return {"scheduler": self.scheduler.state_dict(), "states": list(self.states)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of the scheduler and the copies."""
        self.scheduler.load_state_dict(state_dict["scheduler"])
        self.states = list(state_dict["states"])
