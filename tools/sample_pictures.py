"""Draw one test picture of each class of MNIST and CIFAR-10: ``make samples``.

Pages download nothing, so the two drawings are kept in ``book/_static``. The data sets are read from the folder
that ``SUPPORT_DATA`` names, in torchvision's layout.
"""

from io import BytesIO
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image
from torchvision import datasets
from torchvision.datasets import VisionDataset

from support import plotting
from support.data import files
from tools.build_book import ROOT

FOLDER = ROOT / "book" / "_static"
LARGEST = 60_000  # bytes


def first_of_each(dataset: VisionDataset) -> dict[str, Image.Image]:
    """Return name of a class -> its first picture, in the order of the classes."""
    first: dict[int, Image.Image] = {}
    for picture, label in dataset:
        first.setdefault(label, picture)
        if len(first) == len(dataset.classes):
            break
    return {dataset.classes[label].split(" - ")[0]: first[label] for label in sorted(first)}


def draw(pictures: dict[str, Image.Image]) -> bytes:
    """Return a row of pictures with their names below, as a PNG of at most 256 colours."""
    plotting.style()
    figure, axes = plt.subplots(1, len(pictures), figsize=(7.4, 1.0))
    for ax, (name, picture) in zip(axes, pictures.items(), strict=True):
        ax.imshow(picture, cmap="gray", interpolation="nearest")
        ax.set_xlabel(name, fontsize=8)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    drawn, packed = BytesIO(), BytesIO()
    figure.savefig(drawn, dpi=144)
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        packed, "PNG", optimize=True
    )
    return packed.getvalue()


def main() -> None:
    """Write both drawings."""
    root = files.root()
    for name, kind in (("mnist", datasets.MNIST), ("cifar10", datasets.CIFAR10)):
        png = draw(first_of_each(kind(root, train=False)))
        if len(png) > LARGEST:
            raise ValueError(f"{name}: {len(png)} bytes, more than {LARGEST}")
        target: Path = FOLDER / f"{name}.png"
        target.write_bytes(png)
        print(f"wrote {target.relative_to(ROOT)}, {len(png)} bytes")


if __name__ == "__main__":
    main()
