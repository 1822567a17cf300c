"""The networks of the experiments, with initial weights that depend on nothing but a seed."""

from collections.abc import Callable
from functools import partial

from torch import nn

from support.models.espcn import espcn
from support.models.fcn32s import fcn32s
from support.models.plain import cnn, deep_cnn, deep_mlp, lenet5, mlp
from support.models.resnet import cifar_resnet, resnet18
from support.models.seeded import seeded
from support.models.tagger import tagger

__all__ = [
    "MODELS",
    "cifar_resnet",
    "cnn",
    "deep_cnn",
    "deep_mlp",
    "espcn",
    "fcn32s",
    "lenet5",
    "mlp",
    "resnet18",
    "seeded",
    "tagger",
]

_SOURCE = {"mlp": mlp, "deep_mlp": deep_mlp, "cnn": cnn, "deep_cnn": deep_cnn}
MODELS: dict[str, Callable[..., nn.Module]] = (
    {
        "espcn": espcn,
        "espcn_skip": partial(espcn, skip=True),
        "fcn32s": fcn32s,
        "lenet5": lenet5,
        "resnet18": resnet18,
        "resnet18_cifar": partial(resnet18, stem="cifar"),
        "tagger": tagger,
    }
    | {
        f"resnet{depth}{name}": partial(cifar_resnet, depth=depth, skips=skips)
        for depth in (20, 56, 110)
        for name, skips in (("", True), ("_noskip", False))
    }
    | _SOURCE
    | {f"{name}_bn": partial(build, batchnorm=True) for name, build in _SOURCE.items()}
)
"""Name in a configuration -> constructor, called with the shape of one example; ``_bn`` normalises batches."""
