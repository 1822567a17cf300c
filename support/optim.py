"""Optimizers by name.

The standard methods are ``torch.optim``'s; the lectures derive them and check that they are.
"""

import inspect
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.optim import Optimizer

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "nesterov": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "adadelta": torch.optim.Adadelta,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "amsgrad": partial(torch.optim.Adam, amsgrad=True),
}
"""Name in a configuration -> constructor, called with the parameters and the hyper-parameters."""


def make(name: str, model: nn.Module, **hyper: float | bool) -> Optimizer:
    """Build the optimizer of this name for the parameters of a model.

    Raises
    ------
    ValueError
        If there is no such optimizer, or it has no such hyper-parameter; the message lists the right ones.
    """
    if name not in OPTIMIZERS:
        raise ValueError(
            f"no optimizer is called {name!r}; there are {', '.join(sorted(OPTIMIZERS))}"
        )
    constructor = OPTIMIZERS[name]
    known = hyper_parameters(constructor)
    for argument in hyper:
        if argument not in known:
            raise ValueError(
                f"{name} has no hyper-parameter {argument!r}; it has {', '.join(known)}"
            )
    return constructor(model.parameters(), **hyper)


def hyper_parameters(constructor: Callable[..., Optimizer]) -> list[str]:
    """Return the names of the hyper-parameters that a constructor takes after the parameters."""
    return list(inspect.signature(constructor).parameters)[1:]
