"""The networks of the experiments, with initial weights that depend on nothing but a seed."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise

import torch
from torch import nn


def seeded(constructor: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Give a constructor a keyword ``seed`` from which torch draws the initial weights.

    The global random state is left as it was.
    """

    @wraps(constructor)
    def build(*args, seed: int, **kwargs) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed every GPU too
            torch.default_generator.manual_seed(seed)
            return constructor(*args, **kwargs)

    return build


@seeded
def lenet5(shape: Sequence[int] = (1, 32, 32), classes: int = 10) -> nn.Module:
    """LeNet-5 with ReLU and max-pooling, as experiments E4-E6 use it (kuznetsova2023, Fig. 5).

    Inputs of shape (N, channels, 32, 32), outputs (N, classes): logits, since the softmax is part of the loss.
    All convolutions are 5 x 5 and C3 sees all maps of S2: 61,706 parameters with the defaults.

    Raises
    ------
    ValueError
        If the ``shape`` of an example is not (channels, 32, 32).
    """
    channels, *sides = shape
    if sides != [32, 32]:
        raise ValueError(f"shape must be (channels, 32, 32); got {tuple(shape)}")
    return nn.Sequential(
        OrderedDict(
            c1=nn.Conv2d(channels, 6, 5),  # 6 @ 28 x 28
            relu1=nn.ReLU(),
            s2=nn.MaxPool2d(2),  # 6 @ 14 x 14
            c3=nn.Conv2d(6, 16, 5),  # 16 @ 10 x 10
            relu3=nn.ReLU(),
            s4=nn.MaxPool2d(2),  # 16 @ 5 x 5
            c5=nn.Conv2d(16, 120, 5),  # 120 @ 1 x 1
            relu5=nn.ReLU(),
            flatten=nn.Flatten(),
            f6=nn.Linear(120, 84),
            relu6=nn.ReLU(),
            output=nn.Linear(84, classes),
        )
    )


@seeded
def mlp(
    shape: Sequence[int] = (1, 28, 28),
    classes: int = 10,
    hidden: Sequence[int] = (100, 100, 100),
) -> nn.Module:
    """Multilayer perceptron with ReLU; the default hidden layers are those of experiments E14-E16.

    Inputs of shape (N, \\*shape), outputs (N, classes): logits.
    """
    widths = [math.prod(shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


MODELS: dict[str, Callable[..., nn.Module]] = {"lenet5": lenet5, "mlp": mlp}
"""Name in a configuration -> constructor, called with the shape of one example."""
