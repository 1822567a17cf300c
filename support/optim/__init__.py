"""Optimizers by name: torch's, and those that torch lacks.

The lectures derive the methods and check that these are they.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from support.optim.adaptive_clipping import AdaptiveClipping
from support.optim.clipped_sgd import ClippedSGD
from support.optim.clipped_sstm import ClippedSSTM
from support.optim.clipping import clip
from support.optim.gradient_noise import GradientNoise
from support.optim.kfac import KFAC
from support.optim.lion import Lion
from support.optim.sam import SAM
from support.optim.schedules import SCHEDULES, Snapshots
from support.optim.shampoo import Shampoo

__all__ = [
    "KFAC",
    "OPTIMIZERS",
    "SAM",
    "SCHEDULES",
    "AdaptiveClipping",
    "ClippedSGD",
    "ClippedSSTM",
    "GradientNoise",
    "Lion",
    "Shampoo",
    "Snapshots",
    "clip",
    "hyper_parameters",
    "make",
    "unwrapped",
]

Constructor = Callable[..., Optimizer]


@dataclass(frozen=True)
class Around:
    """Constructor of a wrapper around the optimizer that ``base`` names, with hyper-parameters of both."""

    wrapper: Constructor
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, model: nn.Module, base: str = "sgd", **hyper: Any) -> Optimizer:
        """Build it around an optimizer of :data:`OPTIMIZERS`."""
        return self.build(model, OPTIMIZERS, base, **hyper)

    def build(
        self,
        model: nn.Module,
        optimizers: Mapping[str, Constructor],
        base: str,
        **hyper: Any,
    ) -> Optimizer:
        """Build it around one of the given optimizers."""
        own = {name: hyper.pop(name) for name in self.names() if name in hyper}
        return self.wrapper(make(base, model, optimizers, **hyper), **self.fixed, **own)

    def names(self) -> list[str]:
        """Return the hyper-parameters of the wrapper itself."""
        return [name for name in hyper_parameters(self.wrapper) if name not in self.fixed]


OPTIMIZERS: dict[str, Constructor] = {
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "nesterov": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "adadelta": torch.optim.Adadelta,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "amsgrad": partial(torch.optim.Adam, amsgrad=True),
    "adafactor": torch.optim.Adafactor,
    "asgd": torch.optim.ASGD,
    "rprop": torch.optim.Rprop,
    "clipped_sgd": ClippedSGD,
    "clipped_sstm": ClippedSSTM,
    "lion": Lion,
    "shampoo": Shampoo,
    "kfac": KFAC,
    "sam": Around(SAM),
    "asam": Around(SAM, {"adaptive": True}),
    "adaptive_clipping": Around(AdaptiveClipping),
    "gradient_noise": Around(GradientNoise),
}
"""Name in a configuration -> constructor, called with the model if that is the name of its first argument,
otherwise with the parameters, and with the hyper-parameters."""


def make(
    name: str,
    model: nn.Module,
    optimizers: Mapping[str, Constructor] = OPTIMIZERS,
    **hyper: Any,
) -> Optimizer:
    """Build the optimizer of this name for a model.

    Names of wrappers (``sam``, ``asam``, ``adaptive_clipping``, ``gradient_noise``) take ``base``, the name
    of the optimizer that they wrap, and the hyper-parameters of both.

    Raises
    ------
    ValueError
        If there is no such optimizer, or it has no such hyper-parameter; the message lists the right ones.
    """
    constructor = _look_up(name, optimizers)
    known, inner = hyper_parameters(constructor), constructor
    if isinstance(constructor, Around):
        everything, base = {**OPTIMIZERS, **optimizers}, hyper.setdefault("base", "sgd")
        build = partial(constructor.build, model, everything)
        while isinstance(inner, Around):  # a wrapper around a wrapper is one around SGD
            inner, base = _look_up(base, everything), "sgd"
            known += hyper_parameters(inner)
    else:
        takes_model = next(iter(inspect.signature(constructor).parameters)) == "model"
        build = partial(constructor, model if takes_model else model.parameters())
    kinds = {p.kind for p in inspect.signature(inner).parameters.values()}
    for argument in hyper:
        if argument not in known and inspect.Parameter.VAR_KEYWORD not in kinds:
            right = ", ".join(dict.fromkeys(known))
            raise ValueError(f"{name} has no hyper-parameter {argument!r}; it has {right}")
    return build(**hyper)


def _look_up(name: str, optimizers: Mapping[str, Constructor]) -> Constructor:
    if name not in optimizers:
        raise ValueError(
            f"no optimizer is called {name!r}; there are {', '.join(sorted(optimizers))}"
        )
    return optimizers[name]


def hyper_parameters(constructor: Constructor) -> list[str]:
    """Return the names of the hyper-parameters that a constructor takes after the model or the parameters.

    Those of the wrapped optimizer of a wrapper are not among them.
    """
    if isinstance(constructor, Around):
        return ["base", *constructor.names()]
    return list(inspect.signature(constructor).parameters)[1:]


def unwrapped(constructor: Constructor) -> tuple[Constructor, dict[str, Any]]:
    """Return the function or class behind a ``functools.partial``, and its keywords."""
    keywords = {}
    while hasattr(constructor, "func"):
        keywords = constructor.keywords | keywords
        constructor = constructor.func
    return constructor, keywords
