"""Data sets as pairs of tensors, and mini-batches that live on the device."""

from support.data.batches import Batches, split, standardise
from support.data.cifar10 import cifar10
from support.data.cluttered_mnist import clutter, cluttered_digits, cluttered_mnist
from support.data.digits import digits
from support.data.files import DataUnavailableError
from support.data.mnist import mnist

__all__ = [
    "DATASETS",
    "Batches",
    "DataUnavailableError",
    "cifar10",
    "clutter",
    "cluttered_digits",
    "cluttered_mnist",
    "digits",
    "mnist",
    "split",
    "standardise",
]

DATASETS = {
    "cifar10": cifar10,
    "cluttered_digits": cluttered_digits,
    "cluttered_mnist": cluttered_mnist,
    "digits": digits,
    "mnist": mnist,
}
"""Name in a configuration -> function ``(root, size) -> (train, test)``."""
