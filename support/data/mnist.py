"""MNIST: 60,000 and 10,000 handwritten digits of 28 x 28 pixels."""

import gzip
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from support.data import files

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}


def mnist(
    root: str | Path | None = None, *, size: int = 28
) -> tuple[TensorDataset, TensorDataset]:
    """Return the training and the test part of MNIST.

    Parameters
    ----------
    root
        Folder with ``MNIST/raw/*.gz`` (see :func:`support.data.files.root`); missing files are downloaded.
    size
        Side of the pictures in pixels, at least 28; a larger picture gets a black border on all sides.

    Returns
    -------
    tuple
        Two data sets of pairs: pictures as float32 of shape (N, 1, size, size) with values in [0, 1],
        classes as int64 of shape (N,).

    Raises
    ------
    DataUnavailableError
        If a file is missing or damaged and cannot be downloaded.
    ValueError
        If ``size`` is below 28 or odd.
    """
    if size < 28 or size % 2:
        raise ValueError(f"size must be an even number of pixels, 28 or more; got {size}")
    folder = files.root(root) / "MNIST" / "raw"
    return tuple(
        TensorDataset(_pictures(folder, part, (size - 28) // 2), _classes(folder, part))
        for part in ("train", "t10k")
    )


def _pictures(folder: Path, part: str, border: int) -> Tensor:
    pixels = _payload(folder / f"{part}-images-idx3-ubyte.gz", header=16).view(
        -1, 1, 28, 28
    )
    return F.pad(pixels, (border,) * 4).float().div_(255)


def _classes(folder: Path, part: str) -> Tensor:
    return _payload(folder / f"{part}-labels-idx1-ubyte.gz", header=8).long()


def _payload(path: Path, header: int) -> Tensor:
    """Return the bytes of an idx file behind its header; the checksum has already vouched for the header."""
    with gzip.open(files.fetch(path, MD5[path.name], MIRRORS)) as file:
        return torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)[header:]
