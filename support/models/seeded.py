"""Initial weights that depend on nothing but a seed."""

from collections.abc import Callable
from functools import wraps

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
