"""Optimizers by name: torch's, and those that torch lacks.

The lectures derive the methods and check that these are they.
"""

import inspect
from collections.abc import Callable, Mapping
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
]

Constructor = Callable[..., Optimizer]


def around(wrapper: Constructor, **fixed: Any) -> Constructor:
    """Return a constructor of a wrapper around the optimizer that ``base`` names (``"sgd"`` unless given).

    It takes the hyper-parameters of both.
    """

    def build(model: nn.Module, base: str = "sgd", **hyper: Any) -> Optimizer:
        own = set(hyper_parameters(wrapper)) - set(fixed)
        inner = make(base, model, **{k: v for k, v in hyper.items() if k not in own})
        return wrapper(inner, **fixed, **{k: v for k, v in hyper.items() if k in own})

    build.wrapper, build.fixed = wrapper, fixed
    return build


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
    "sam": around(SAM),
    "asam": around(SAM, adaptive=True),
    "adaptive_clipping": around(AdaptiveClipping),
    "gradient_noise": around(GradientNoise),
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
    if name not in optimizers:
        raise ValueError(
            f"no optimizer is called {name!r}; there are {', '.join(sorted(optimizers))}"
        )
    constructor = optimizers[name]
    signature = inspect.signature(constructor).parameters
    known = hyper_parameters(constructor, hyper.get("base", "sgd"))
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.values())
    for argument in hyper:
        if argument not in known and not (
            takes_any and not hasattr(constructor, "wrapper")
        ):
            raise ValueError(
                f"{name} has no hyper-parameter {argument!r}; it has {', '.join(known)}"
            )
    takes_model = next(iter(signature)) == "model"
    return constructor(model if takes_model else model.parameters(), **hyper)


def hyper_parameters(constructor: Constructor, base: str = "sgd") -> list[str]:
    """Return the names of the hyper-parameters that a constructor takes, those of a wrapper around ``base``
    first."""
    if not hasattr(constructor, "wrapper"):
        return list(inspect.signature(constructor).parameters)[1:]
    own = [
        name
        for name in hyper_parameters(constructor.wrapper)
        if name not in constructor.fixed
    ]
    inner = hyper_parameters(OPTIMIZERS[base]) if base in OPTIMIZERS else []
    return ["base", *own, *inner]
