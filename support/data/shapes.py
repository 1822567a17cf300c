"""Generated pictures of coloured shapes, for smoke runs of experiments whose data sets are large."""

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from support.data.pictures import VOID, Classified, Masked, Pictures, Reduced

KINDS = ("disc", "square", "triangle", "ring")
COLOURS = {"red": (0.8, 0.2, 0.2), "green": (0.2, 0.7, 0.3), "blue": (0.2, 0.3, 0.8)}
PARTS = (256, 64)
"""Pictures to learn from and to judge on."""


def shapes(root: str | Path | None = None, *, size: int = 32) -> tuple[Pictures, Pictures]:
    """Return generated pictures of one shape each, in twelve classes: four kinds in three colours.

    Parameters
    ----------
    root
        Not used; here so that all data sets are called alike.
    size
        Side of the inputs in pixels.

    Returns
    -------
    tuple
        256 and 64 pairs of inputs, standardised float32 of shape (3, size, size), and classes, int64 scalars.
    """
    names = [f"{colour} {kind}" for kind in KINDS for colour in COLOURS]
    looks = [Classified(size, augment=augment) for augment in (False, True)]
    return tuple(
        Pictures(source, *looks, classes=names) for source in _parts(size, "class")
    )


def shape_masks(
    root: str | Path | None = None, *, size: int = 64
) -> tuple[Pictures, Pictures]:
    """Return generated pictures of a shape each with the classes of their pixels: background and four kinds.

    The border of a shape is of class 255 and does not count. Arguments and numbers as :func:`shapes` has them;
    pairs of shapes (3, 3/2 size, 3/2 size) and (3/2 size, 3/2 size), in crops of ``size`` for learning.
    """
    looks = [Masked(size, augment=augment) for augment in (False, True)]
    names = ("background", *KINDS)
    return tuple(
        Pictures(source, *looks, classes=names) for source in _parts(size * 3 // 2, "mask")
    )


def shape_patches(
    root: str | Path | None = None, *, size: int = 48
) -> tuple[Pictures, Pictures]:
    """Return generated pictures of a shape each, made smaller by 4, and as they are.

    Arguments and numbers as :func:`shapes` has them; large pictures of (3, 3/2 size, 3/2 size), in patches of
    ``size``, a multiple of 4, for learning.
    """
    looks = [Reduced(size, augment=augment) for augment in (False, True)]
    return tuple(Pictures(source, *looks) for source in _parts(size * 3 // 2, "none"))


def _parts(side: int, target: str) -> list["Drawn"]:
    return [
        Drawn(side, range(PARTS[0]), target),
        Drawn(side, range(10**6, 10**6 + PARTS[1]), target),
    ]


class Drawn(Dataset):
    """Pictures drawn from a seed each: a shape with stripes before a background of changing brightness.

    Parameters
    ----------
    side
        Of the pictures, in pixels.
    seeds
        One for each picture.
    target
        ``"class"`` (of :func:`shapes`), ``"mask"`` (of :func:`shape_masks`) or ``"none"``.
    """

    def __init__(self, side: int, seeds: range, target: str) -> None:
        self.side, self.seeds, self.target = side, seeds, target

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.seeds)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor | None]:
        """Return the picture, uint8 of shape (3, side, side), and its target."""
        random = torch.Generator().manual_seed(self.seeds[index])
        kind, colour = (
            int(torch.randint(high, (), generator=random))
            for high in (len(KINDS), len(COLOURS))
        )
        distance, stripes, ground = self._fields(KINDS[kind], random)
        paint = torch.tensor(list(COLOURS.values())[colour])[:, None, None]
        inside = (0.5 - distance * self.side).clamp(0, 1)  # one pixel of transition
        picture = inside * paint * (0.8 + 0.4 * stripes) + (1 - inside) * ground
        noise = 0.03 * torch.randn(picture.shape, generator=random)
        picture = ((picture + noise).clamp(0, 1) * 255).to(torch.uint8)
        if self.target == "none":
            return picture, None
        if self.target == "class":
            return picture, kind * len(COLOURS) + colour
        mask = torch.where(distance < 0, kind + 1, 0).to(torch.uint8)
        mask[distance.abs() * self.side < 1] = VOID
        return picture, mask

    def _fields(self, kind: str, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return over the picture: distance from the shape (negative inside), stripes and background."""
        shift, tilt, wave, light = torch.rand(4, 2, generator=random)
        line = (torch.arange(self.side) + 0.5) / self.side - 0.5
        y, x = torch.meshgrid(line, line, indexing="ij")
        turn = 2 * math.pi * tilt[0]
        x, y = x - 0.3 * (shift[0] - 0.5), y - 0.3 * (shift[1] - 0.5)
        u, v = turn.cos() * x + turn.sin() * y, turn.cos() * y - turn.sin() * x
        radius = 0.2 + 0.15 * tilt[1]
        round_ = (u**2 + v**2).sqrt()
        corners = [2 * math.pi * k / 3 for k in range(3)]
        distance = {
            "disc": round_ - radius,
            "square": torch.maximum(u.abs(), v.abs()) - 0.85 * radius,
            "triangle": torch.stack(
                [math.cos(a) * u + math.sin(a) * v for a in corners]
            ).amax(0)
            - 0.6 * radius,
            "ring": (round_ - 0.8 * radius).abs() - 0.25 * radius,
        }[kind]
        stripes = torch.sin(2 * math.pi * (4 + 8 * wave[0]) * u + 6 * wave[1])
        ground = 0.5 + 0.4 * torch.stack(
            [light[0] * x + light[1] * y, light[1] * x - light[0] * y, x * y]
        )
        return distance, stripes, ground
