"""The 1,797 scanned digits of 8 x 8 pixels that come with scikit-learn: real data without a download."""

from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from support.data.batches import split


def digits(
    root: str | Path | None = None, *, size: int = 8
) -> tuple[TensorDataset, TensorDataset]:
    """Return a training part (1,437) and a test part (360) of scikit-learn's digits.

    They are the test part of the UCI collection "Optical Recognition of Handwritten Digits". The split is
    fixed: the same pictures are in the test part everywhere.

    Parameters
    ----------
    root
        Not used; here so that all data sets are called alike.
    size
        Side of the pictures in pixels, at least 8; a larger picture is interpolated bilinearly.

    Returns
    -------
    tuple
        Two data sets of pairs: pictures as float32 of shape (N, 1, size, size) with values in [0, 1],
        classes as int64 of shape (N,).

    Raises
    ------
    ValueError
        If ``size`` is below 8.
    """
    if size < 8:
        raise ValueError(f"size must be 8 pixels or more; got {size}")
    bunch = load_digits()
    pictures = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1).div_(16)
    if size != 8:
        pictures = F.interpolate(
            pictures, size=(size, size), mode="bilinear", align_corners=False
        )
    whole = TensorDataset(pictures, torch.tensor(bunch.target, dtype=torch.int64))
    test, train = split(whole, 360, seed=0)
    return train, test
