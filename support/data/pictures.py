"""Pictures that are read from their files when they are asked for, and shown in a view: crops, flips, patches."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as views

VOID = 255
"""Class of the pixels that count neither in a loss nor in a metric."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the channels of ImageNet's training pictures, as torchvision's pre-trained networks expect them."""


class Pictures(Dataset):
    """A data set of pairs (inputs, targets) made from pictures at the moment when they are asked for.

    Parameters
    ----------
    source
        Map-style data set of pairs: a picture (PIL, or uint8 of shape (3, H, W)), and a class, a mask (PIL,
        or uint8 of shape (H, W)) or ``None``.
    plain, augmenting
        Views: functions of such a pair, as ``torchvision.tv_tensors.Image`` and, for masks, ``Mask``,
        to the tensors of an example. The first shows the example as it is judged, the second as it is
        learned from; what it draws comes from a seed of the example's own.
    classes
        Names of the classes.
    alike
        Whether plain views have one shape, so that they can be put into a batch.
    repeat
        How often an epoch shows each example in the augmenting view, such as that many patches of a picture.
    budget
        Bytes of decoded pictures that each process keeps, so that they are decoded once.
    """

    def __init__(
        self,
        source: Dataset,
        plain: Callable,
        augmenting: Callable,
        *,
        classes: Sequence[str] = (),
        alike: bool = True,
        repeat: int = 1,
        budget: int = 2**30,
    ) -> None:
        self.source, self.chosen = source, torch.arange(len(source))
        self.plain, self.augmenting, self.learning = plain, augmenting, False
        self.classes, self.alike, self.repeat = tuple(classes), alike, repeat
        self.budget, self._kept, self._used = budget, {}, [0]  # shared by subsets

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.chosen)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return an example; with (index, seed) the seed decides what an augmenting view draws."""
        index, seed = item if isinstance(item, tuple) else (item, 0)
        pair = self._read(int(self.chosen[index]))
        if not self.learning:
            return self.plain(*pair)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.augmenting(*pair)

    def subset(self, chosen: Tensor) -> "Pictures":
        """Return the data set of the examples with these indices."""
        other = copy.copy(self)
        other.chosen = self.chosen[chosen]
        return other

    def to_learn_from(self) -> "Pictures":
        """Return the same examples in the augmenting view, each ``repeat`` times."""
        other = self.subset(torch.arange(len(self)).repeat(self.repeat))
        other.learning = True
        return other

    def _read(self, index: int) -> tuple[Tensor, Any]:
        if index in self._kept:
            return self._kept[index]
        picture, target = self.source[index]
        picture = tv_tensors.Image(picture)
        if target is not None and not isinstance(target, int):
            target = tv_tensors.Mask(target)
        size = sum(part.numel() for part in (picture, target) if isinstance(part, Tensor))
        if self._used[0] + size <= self.budget:
            self._used[0] += size
            self._kept[index] = picture, target
        return picture, target


class Classified(nn.Module):
    """View of a picture with its class: standardised float32 of shape (3, size, size), and int64."""

    def __init__(self, size: int, *, augment: bool) -> None:
        super().__init__()
        crop = (
            [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
            if augment
            else [v2.Resize(round(size * 8 / 7), antialias=True), v2.CenterCrop(size)]
        )
        self.look = v2.Compose([*crop, _standardised()])

    def forward(self, picture: Tensor, target: int) -> tuple[Tensor, Tensor]:
        """Return inputs and target."""
        return self.look(picture).as_subclass(Tensor), torch.tensor(target)


class Masked(nn.Module):
    """View of a picture with a mask: standardised float32 of shape (3, H, W), and int64 of shape (H, W).

    Whole for judging; for learning a random crop of size x size pixels, flipped in half of the cases, and
    where the picture is smaller it is filled up with pixels of class ``VOID`` (255).
    """

    def __init__(self, size: int, *, augment: bool) -> None:
        super().__init__()
        fill = {tv_tensors.Image: 0, tv_tensors.Mask: VOID}
        crop = v2.RandomCrop(size, pad_if_needed=True, fill=fill)
        self.crop = (
            v2.Compose([crop, v2.RandomHorizontalFlip()]) if augment else v2.Identity()
        )
        self.standardised = _standardised()

    def forward(self, picture: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and target."""
        picture, target = self.crop(picture, target)
        inputs = self.standardised(picture).as_subclass(Tensor)
        return inputs, target.as_subclass(Tensor).view(target.shape[-2:]).long()


class Reduced(nn.Module):
    """View for super-resolution: the picture made smaller, and the picture, float32 with values in [0, 1].

    Shapes (3, H / factor, W / factor) and (3, H, W), after the sides were cut to multiples of the factor. For
    learning the picture is a random patch of size x size pixels, turned over in both directions at random.
    The reduction is bicubic with antialiasing, as Pillow does it; MATLAB's, which made the official small
    pictures of DIV2K, differs slightly.
    """

    def __init__(self, size: int, *, factor: int = 4, augment: bool) -> None:
        super().__init__()
        if size % factor:
            raise ValueError(f"size must be a multiple of {factor} pixels; got {size}")
        self.factor = factor
        patch = [v2.RandomCrop(size), v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
        self.crop = v2.Compose(patch) if augment else v2.Identity()

    def forward(self, picture: Tensor, target: None) -> tuple[Tensor, Tensor]:
        """Return inputs and target."""
        picture = self.crop(picture)
        height, width = (side - side % self.factor for side in picture.shape[-2:])
        large = picture[..., :height, :width].as_subclass(Tensor).float() / 255
        small = views.resize(
            large,
            [height // self.factor, width // self.factor],
            v2.InterpolationMode.BICUBIC,
            antialias=True,
        )
        return small.clamp(0, 1), large


def _standardised() -> v2.Transform:
    return v2.Compose(
        [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, DEVIATION)]
    )
