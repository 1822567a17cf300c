"""DIV2K: photographs of about 2,000 pixels for super-resolution."""

import os
import tempfile
import zipfile
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from support.data import files
from support.data.pictures import Pictures, Reduced

MIRRORS = ("https://data.vision.ee.ethz.ch/cvl/DIV2K/",)
MD5 = {
    "DIV2K_train_HR": "bdc2d9338d4e574fe81bf7d158758658",
    "DIV2K_valid_HR": "9fcdda83005c5e5997799b69f955ff88",
}
"""Name and checksum of the official archives, 3.5 and 0.4 GB."""

PATCHES = 16
"""Patches of each picture in an epoch."""


def div2k(root: str | Path | None = None, *, size: int = 192) -> tuple[Pictures, Pictures]:
    """Return the training part (800 pictures) and the validation part (100) of DIV2K, made smaller by 4.

    The small pictures are made here from the large ones (:class:`support.data.pictures.Reduced`); the 100
    pictures of the test part have not been published.

    Parameters
    ----------
    root
        Folder with ``DIV2K/DIV2K_train_HR/*.png`` and ``DIV2K/DIV2K_valid_HR/*.png`` (or a part of them as
        ``DIV2K/train_HR`` and ``DIV2K/valid_HR``); if neither is there the official archives are downloaded
        and unpacked.
    size
        Side of the large patches to learn from, in pixels; 16 of each picture an epoch. Pictures are judged
        whole.

    Returns
    -------
    tuple
        Pairs of a small and a large picture, float32 with values in [0, 1] and channels red, green, blue.

    Raises
    ------
    DataUnavailableError
        If it is not there and cannot be downloaded.
    """
    folder = files.root(root) / "DIV2K"
    return tuple(
        Pictures(
            _Photographs(_folder(folder, name)),
            Reduced(size, augment=False),
            Reduced(size, augment=True),
            alike=False,
            repeat=PATCHES,
        )
        for name in MD5
    )


def _folder(folder: Path, name: str) -> Path:
    for there in (folder / name, folder / name.removeprefix("DIV2K_")):
        if there.is_dir():
            return there
    archive = files.fetch(folder / f"{name}.zip", MD5[name], MIRRORS)
    with (
        zipfile.ZipFile(archive) as file,
        tempfile.TemporaryDirectory(dir=folder) as scratch,
    ):
        file.extractall(
            scratch
        )  # and moved in one step, so that a folder that is there is whole
        os.replace(Path(scratch) / name, folder / name)
    return folder / name


class _Photographs(Dataset):
    """The PNG files of a folder in the order of their names, as pairs (picture, None)."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.png"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, None]:
        with Image.open(self.paths[index]) as picture:
            return picture.convert("RGB"), None
