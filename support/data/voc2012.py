"""PASCAL VOC2012: pictures whose pixels are labelled with twenty classes and a background."""

from pathlib import Path

from torchvision.datasets import VOCSegmentation

from support.data import files
from support.data.pictures import Masked, Pictures

CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""Class 0 is the background; 255 marks pixels that do not count."""


def voc2012(
    root: str | Path | None = None, *, size: int = 320
) -> tuple[Pictures, Pictures]:
    """Return the segmentation pictures of VOC2012: 1,464 of the training and 1,449 of the validation part.

    Of the 17,125 pictures of the set, only these 2,913 have masks (erratum ZH-26).

    Parameters
    ----------
    root
        Folder with ``VOCdevkit/VOC2012/``; the official archive (2 GB) is downloaded if that is not there.
    size
        Side of the crops to learn from, in pixels. Pictures are judged whole.

    Returns
    -------
    tuple
        Pairs of inputs, standardised float32 of shape (3, H, W), and classes of the pixels, int64 of shape
        (H, W) in the order of ``CLASSES``, 255 for pixels that do not count.

    Raises
    ------
    DataUnavailableError
        If it is not there and cannot be downloaded.
    """
    folder = files.root(root)
    there = (folder / "VOCdevkit" / "VOC2012" / "SegmentationClass").is_dir()
    with files.unavailable("VOC2012", folder, "VOCdevkit/VOC2012"):
        sources = [
            VOCSegmentation(
                folder, "2012", image_set=part, download=not there and part == "train"
            )
            for part in ("train", "val")
        ]
    return tuple(
        Pictures(
            source,
            Masked(size, augment=False),
            Masked(size, augment=True),
            classes=CLASSES,
            alike=False,
        )
        for source in sources
    )
