"""Cluttered MNIST: a digit somewhere on a larger canvas, among pieces of other digits."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from support.data.digits import digits
from support.data.mnist import mnist

PIECES = {60: 4, 100: 8}
"""Side of the canvas -> number of pieces, the two settings of the paper."""
SIDE = 8
"""Side of a piece in pixels."""


def cluttered_mnist(
    root: str | Path | None = None, *, size: int = 60, seed: int = 0
) -> tuple[TensorDataset, TensorDataset]:
    """Return MNIST with its digits shifted and cluttered, one picture for each digit.

    The recipe is that of Mnih, Heess, Graves, "Recurrent Models of Visual Attention" (2014), section 4.1; see
    :func:`clutter`. The test part is made of test digits alone, the training part of training digits alone.
    The paper draws new pictures as training goes on; here they are drawn once, so that there are epochs.

    Parameters
    ----------
    root
        Folder of MNIST; see :func:`support.data.mnist`.
    size
        Side of the canvas in pixels: 60, with 4 pieces, or 100, with 8.
    seed
        Of the places and pieces. The same pictures come of a seed everywhere.

    Returns
    -------
    tuple
        Two data sets of pairs: pictures as float32 of shape (N, 1, size, size) with values in [0, 1], classes
        as int64 of shape (N,); N is 60,000 and 10,000.

    Raises
    ------
    DataUnavailableError
        If a file of MNIST is missing or damaged and cannot be downloaded.
    ValueError
        If ``size`` is neither 60 nor 100.
    """
    _check(size)
    return _both(mnist(root), size, seed)


def cluttered_digits(
    root: str | Path | None = None, *, size: int = 60, seed: int = 0
) -> tuple[TensorDataset, TensorDataset]:
    """Return scikit-learn's digits, cluttered as :func:`cluttered_mnist` is: for trials without a download.

    The digits are enlarged from 8 x 8 to 20 x 20 pixels and get a border of 4, which are the proportions of
    MNIST. 1,437 pictures to learn from and 360 to test; the parameters are those of :func:`cluttered_mnist`.
    """
    _check(size)
    parts = [
        TensorDataset(F.pad(part.tensors[0], (4,) * 4), part.tensors[1])
        for part in digits(root, size=20)
    ]
    return _both(parts, size, seed)


def clutter(
    pictures: Tensor, size: int, pieces: int, *, generator: torch.Generator
) -> Tensor:
    """Put each picture at a random place of a black canvas and random pieces of the others over it.

    A piece is cut out of another picture (N - 1 equally likely ones) at a random place and put at a random
    place of the canvas, each place equally likely and all of the piece inside. A piece may be black, if it is
    cut out beside the stroke. The paper leaves open how a piece joins what it falls upon: here each pixel
    takes the larger value.

    Parameters
    ----------
    pictures
        Shape (N, 1, h, w), N at least 2, black is 0.
    size
        Side of the canvas, not smaller than the pictures.
    pieces
        Number of pieces for each picture, each of 8 x 8 pixels.
    generator
        Gives the places and pieces; on the CPU.

    Returns
    -------
    Tensor
        Shape (N, 1, size, size).

    Raises
    ------
    ValueError
        If a picture does not fit the canvas, is smaller than a piece, or has no other beside it.
    """
    number, channels, height, width = pictures.shape
    if channels != 1 or number < 2 or min(height, width) < SIDE:
        raise ValueError(
            f"pictures must be of shape (N, 1, h, w) with N at least 2 and h, w at least {SIDE}; "
            f"got {tuple(pictures.shape)}"
        )
    if max(height, width) > size:
        raise ValueError(
            f"size of the canvas must be {max(height, width)} or more; got {size}"
        )
    if pieces < 0:
        raise ValueError(f"pieces must be 0 or more; got {pieces}")
    sources, own = pictures.squeeze(1), torch.arange(number)
    canvas = pictures.new_zeros(number, size, size)

    def corners(down: int, across: int) -> tuple[Tensor, Tensor]:
        """Draw for each picture a corner from which so many pixels are left in both directions."""
        return tuple(
            torch.randint(room + 1, (number,), generator=generator)
            for room in (down, across)
        )

    _put(canvas, sources, corners(size - height, size - width))
    for _ in range(pieces):
        other = (own + torch.randint(1, number, (number,), generator=generator)) % number
        cut = corners(height - SIDE, width - SIDE)
        piece = sources[_windows(other, cut, SIDE, SIDE)]
        _put(canvas, piece, corners(size - SIDE, size - SIDE))
    return canvas.unsqueeze(1)


def _windows(
    which: Tensor, corner: tuple[Tensor, Tensor], height: int, width: int
) -> tuple:
    """Return the index of windows of pictures: three tensors that broadcast to (N, height, width)."""
    rows, columns = (place[:, None, None] for place in corner)
    return (
        which[:, None, None],
        rows + torch.arange(height)[:, None],
        columns + torch.arange(width),
    )


def _put(canvas: Tensor, pieces: Tensor, corner: tuple[Tensor, Tensor]) -> None:
    """Raise each canvas (size, size) to the values of its piece (h, w) where that is larger."""
    for chosen in torch.arange(len(canvas)).split(1000):  # indices are larger than pixels
        where = _windows(chosen, tuple(c[chosen] for c in corner), *pieces.shape[1:])
        canvas[where] = torch.maximum(canvas[where], pieces[chosen])


def _check(size: int) -> None:
    if size not in PIECES:
        raise ValueError(f"size of the canvas must be 60 or 100 pixels; got {size}")


def _both(parts: tuple | list, size: int, seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Clutter the training part and then the test part, each with pieces of its own pictures."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        TensorDataset(
            clutter(part.tensors[0], size, PIECES[size], generator=generator),
            part.tensors[1],
        )
        for part in parts
    )
