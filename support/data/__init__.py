"""Data sets as pairs of tensors or as pictures in files, and mini-batches of them on the device."""

from support.data.batches import Batches, Streamed, batches, split, standardise
from support.data.cifar10 import cifar10
from support.data.cluttered_mnist import clutter, cluttered_digits, cluttered_mnist
from support.data.conll2003 import conll2003
from support.data.digits import digits
from support.data.div2k import div2k
from support.data.files import DataUnavailableError
from support.data.imagenet import imagenet100, imagenette
from support.data.mnist import mnist
from support.data.named_sentences import named_sentences
from support.data.pictures import Pictures
from support.data.shapes import shape_masks, shape_patches, shapes
from support.data.voc2012 import voc2012

__all__ = [
    "DATASETS",
    "Batches",
    "DataUnavailableError",
    "Pictures",
    "Streamed",
    "batches",
    "cifar10",
    "clutter",
    "cluttered_digits",
    "cluttered_mnist",
    "conll2003",
    "digits",
    "div2k",
    "imagenet100",
    "imagenette",
    "mnist",
    "named_sentences",
    "shape_masks",
    "shape_patches",
    "shapes",
    "split",
    "standardise",
    "voc2012",
]

DATASETS = {
    "cifar10": cifar10,
    "cluttered_digits": cluttered_digits,
    "cluttered_mnist": cluttered_mnist,
    "conll2003": conll2003,
    "digits": digits,
    "div2k": div2k,
    "imagenet100": imagenet100,
    "imagenette": imagenette,
    "mnist": mnist,
    "named_sentences": named_sentences,
    "shape_masks": shape_masks,
    "shape_patches": shape_patches,
    "shapes": shapes,
    "voc2012": voc2012,
}
"""Name in a configuration -> function ``(root, size) -> (train, test)``."""
