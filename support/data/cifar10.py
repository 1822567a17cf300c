"""CIFAR-10: 50,000 and 10,000 colour pictures of 32 x 32 pixels in ten classes."""

import hashlib
import io
import os
import pickle
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import TensorDataset

from support.data import files

MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)
ARCHIVE = ("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")
"""Name and checksum of the official archive."""
FOLDER = "cifar-10-batches-py"
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


def cifar10(
    root: str | Path | None = None, *, size: int = 32
) -> tuple[TensorDataset, TensorDataset]:
    """Return the training and the test part of CIFAR-10.

    Parameters
    ----------
    root
        Folder with ``cifar-10-batches-py/`` (see :func:`support.data.files.root`); if a file in it is missing
        or damaged, the official archive is downloaded to ``root`` and unpacked.
    size
        Side of the pictures in pixels, which is 32; here so that all data sets are called alike.

    Returns
    -------
    tuple
        Two data sets of pairs: pictures as float32 of shape (N, 3, 32, 32), the channels red, green and blue,
        with values in [0, 1], classes as int64 of shape (N,).

    Raises
    ------
    DataUnavailableError
        If a file is missing or damaged and the archive cannot be downloaded.
    ValueError
        If ``size`` is not 32.
    """
    if size != 32:
        raise ValueError(f"size of the pictures of CIFAR-10 must be 32 pixels; got {size}")
    batches = _contents(files.root(root))
    train = [name for name in MD5 if name.startswith("data_batch")]
    return tuple(
        _dataset([batches[name] for name in names]) for names in (train, ["test_batch"])
    )


def _dataset(batches: list[bytes]) -> TensorDataset:
    read = [
        _Unpickler(io.BytesIO(content), encoding="latin1").load() for content in batches
    ]
    pixels = torch.from_numpy(np.concatenate([batch["data"] for batch in read]))
    classes = torch.tensor([label for batch in read for label in batch["labels"]])
    return TensorDataset(pixels.view(-1, 3, 32, 32).float().div_(255), classes)


def _contents(root: Path) -> dict[str, bytes]:
    """Return what the right files hold, after unpacking those that are missing or damaged."""
    folder = root / FOLDER
    found = {name: _right(folder / name) for name in MD5}
    wrong = [name for name, content in found.items() if content is None]
    if wrong:
        try:
            archive = files.fetch(root / ARCHIVE[0], ARCHIVE[1], MIRRORS)
        except files.DataUnavailableError as error:
            raise files.DataUnavailableError(
                f"{folder}: missing or damaged: {', '.join(wrong)}. The archive that holds "
                f"them cannot be had either.\n{error}"
            ) from error
        _unpack(archive, folder, wrong)
        found |= {name: (folder / name).read_bytes() for name in wrong}
    return found


def _right(path: Path) -> bytes | None:
    """Return the content of a file if it has the right checksum."""
    content = path.read_bytes() if path.is_file() else b""
    return content if hashlib.md5(content).hexdigest() == MD5[path.name] else None


def _unpack(archive: Path, folder: Path, names: list[str]) -> None:
    """Write the named files of the archive, whose checksum vouches for them, and nothing else of it.

    Each is moved into place in one step, as :func:`support.data.files.fetch` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar, tempfile.TemporaryDirectory(dir=folder) as scratch:
        for name in names:
            whole = Path(scratch) / name
            with tar.extractfile(f"{FOLDER}/{name}") as member:
                whole.write_bytes(member.read())
            os.replace(whole, folder / name)


class _Unpickler(pickle.Unpickler):
    """Reads texts, numbers, lists, dictionaries and arrays of numpy; a file that asks for more is refused."""

    def find_class(self, module: str, name: str) -> object:
        try:
            return {
                "numpy.core.multiarray._reconstruct": np.empty(0).__reduce__()[0],
                "numpy.ndarray": np.ndarray,
                "numpy.dtype": lambda code, *_: np.dtype(code),
            }[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(
                f"a batch of CIFAR-10 holds only arrays of numpy; this file asks for {module}.{name}"
            ) from None
