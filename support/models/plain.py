"""LeNet-5, and the multilayer perceptrons and convolutional networks of E14-E17."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from support.models.seeded import seeded


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
    batchnorm: bool = False,
) -> nn.Module:
    """Multilayer perceptron with ReLU; the default hidden layers are those of experiments E14-E16.

    Inputs of shape (N, \\*shape), outputs (N, classes): logits. With ``batchnorm`` a batch normalisation
    stands after each hidden linear map and before its activation (chabanenko, section 3).
    """
    widths = [math.prod(shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += _dense(inputs, outputs, batchnorm)
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def deep_mlp(
    shape: Sequence[int] = (1, 28, 28),
    classes: int = 10,
    *,
    batchnorm: bool = False,
    seed: int,
) -> nn.Module:
    """Multilayer perceptron with 20 hidden layers of 30, of experiment E17; see :func:`mlp`."""
    return mlp(shape, classes, hidden=[30] * 20, batchnorm=batchnorm, seed=seed)


@seeded
def cnn(
    shape: Sequence[int] = (1, 28, 28),
    classes: int = 10,
    maps: Sequence[int] = (32, 32),
    convolutions: int = 1,
    kernel: int = 5,
    dense: int = 256,
    batchnorm: bool = False,
) -> nn.Module:
    """Convolutional network with ReLU; the defaults are the network of experiments E14-E16.

    Inputs of shape (N, \\*shape), outputs (N, classes): logits. For each entry of ``maps`` stand
    ``convolutions`` convolutions of that width and a max-pooling of 2 x 2, then a hidden dense layer.
    Convolutions keep the size of the picture, which the source leaves open (erratum CH-19). With ``batchnorm``
    a batch normalisation stands after each of them and after the hidden linear map, before the activation.

    Raises
    ------
    ValueError
        If the poolings leave nothing of the picture.
    """
    channels, *sides = shape
    left = [side // 2 ** len(maps) for side in sides]
    if 0 in left:
        raise ValueError(
            f"{len(maps)} poolings of 2 x 2 leave nothing of a picture of shape {tuple(shape)}"
        )
    layers: list[nn.Module] = []
    for width in maps:
        for _ in range(convolutions):
            convolution = nn.Conv2d(channels, width, kernel, padding="same")
            layers += [
                convolution,
                *([nn.BatchNorm2d(width)] if batchnorm else []),
                nn.ReLU(),
            ]
            channels = width
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), *_dense(channels * math.prod(left), dense, batchnorm)]
    return nn.Sequential(*layers, nn.Linear(dense, classes))


def deep_cnn(
    shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    *,
    batchnorm: bool = False,
    seed: int,
) -> nn.Module:
    """Convolutional network with 5 x (3 convolutions 3 x 3, pooling), of experiment E17; see :func:`cnn`.

    7,989,770 parameters on pictures of 3 x 32 x 32 without batch normalisation.
    """
    return cnn(
        shape,
        classes,
        maps=(32, 64, 128, 256, 512),
        convolutions=3,
        kernel=3,
        batchnorm=batchnorm,
        seed=seed,
    )


def _dense(inputs: int, outputs: int, batchnorm: bool) -> list[nn.Module]:
    norm = [nn.BatchNorm1d(outputs)] if batchnorm else []
    return [nn.Linear(inputs, outputs), *norm, nn.ReLU()]
