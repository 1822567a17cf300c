"""ImageNet-100, the first hundred classes of ImageNet, and Imagenette, a stand-in that anybody may download."""

from importlib import resources
from pathlib import Path

from torchvision.datasets import ImageFolder, Imagenette

from support.data import files
from support.data.pictures import Classified, Pictures

CLASSES = tuple((resources.files("support.data") / "imagenet100.txt").read_text().split())
"""The first hundred of ImageNet's thousand classes in sorted order, as WordNet ids: n01440764 to n01855672."""


def imagenet100(
    root: str | Path | None = None, *, size: int = 224
) -> tuple[Pictures, Pictures]:
    """Return the pictures of ImageNet's first hundred classes, of the training and of the validation part.

    About 129,000 and 5,000 pictures in 100 classes, read from their files.

    Parameters
    ----------
    root
        Folder with ``imagenet/train/CLASS/*.JPEG`` and ``imagenet/val/CLASS/*.JPEG`` (see
        :func:`support.data.files.root`), or a folder with ``train/`` and ``val/`` itself. The folder may hold
        the other 900 classes too. ImageNet is given out after a registration only, so that nothing is
        downloaded here.
    size
        Side of the inputs in pixels.

    Returns
    -------
    tuple
        Pairs of inputs, standardised float32 of shape (3, size, size), and classes, int64 scalars in the order
        of ``CLASSES``.

    Raises
    ------
    DataUnavailableError
        If a class is missing.
    """
    folder = files.root(root)
    folder = folder if (folder / "train").is_dir() else folder / "imagenet"
    return tuple(_classified(_first(folder / part), size) for part in ("train", "val"))


def imagenette(
    root: str | Path | None = None, *, size: int = 224
) -> tuple[Pictures, Pictures]:
    """Return Imagenette: 9,469 and 3,925 pictures of ten classes of ImageNet, their shorter side 160 pixels.

    Parameters
    ----------
    root
        Folder with ``imagenette-160/`` (a part of it, as ``train/CLASS/`` and ``val/CLASS/``) or
        ``imagenette2-160/`` (all of it; downloaded if neither is there).
    size
        Side of the inputs in pixels.

    Returns
    -------
    tuple
        As :func:`imagenet100` does.

    Raises
    ------
    DataUnavailableError
        If it is not there and cannot be downloaded.
    """
    folder = files.root(root)
    part = folder / "imagenette-160"
    if part.is_dir():
        sources = [ImageFolder(part / name) for name in ("train", "val")]
    else:
        with files.unavailable("Imagenette", folder, "imagenette2-160"):
            sources = [
                Imagenette(
                    folder,
                    name,
                    "160px",
                    download=not (folder / "imagenette2-160").is_dir(),
                )
                for name in ("train", "val")
            ]
    return tuple(_classified(source, size) for source in sources)


def _first(folder: Path) -> ImageFolder:
    missing = [name for name in CLASSES if not (folder / name).is_dir()]
    if missing:
        raise files.DataUnavailableError(
            f"{folder}: {len(missing)} of the 100 folders of classes are missing; the first: {missing[0]}. "
            "ImageNet needs a registration at image-net.org; after that put its folders `train` and `val` into "
            "a folder `imagenet` and point the argument `root` or the variable SUPPORT_DATA at what holds it. "
            'The data set "imagenette" can be downloaded by anybody.'
        )
    return _FirstHundred(folder)


class _FirstHundred(ImageFolder):
    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        return list(CLASSES), {name: place for place, name in enumerate(CLASSES)}


def _classified(source: ImageFolder | Imagenette, size: int) -> Pictures:
    names = [
        name if isinstance(name, str) else name[0] for name in source.classes
    ]  # Imagenette has tuples of synonyms
    return Pictures(
        source,
        Classified(size, augment=False),
        Classified(size, augment=True),
        classes=names,
    )
