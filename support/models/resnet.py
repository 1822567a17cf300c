"""ResNet-18 with two stems, and the thin residual networks for CIFAR with and without skips."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from support.models.seeded import seeded


@seeded
def resnet18(
    shape: Sequence[int] = (3, 224, 224), classes: int = 100, stem: str = "imagenet"
) -> nn.Module:
    """ResNet-18 (He et al., 2016, Table 1), torchvision's, without trained weights.

    Inputs of shape (N, 3, H, W), outputs (N, classes): logits. 11.2 million parameters with 100 classes.

    Parameters
    ----------
    shape
        Of one example.
    classes
        Number of classes.
    stem
        ``"imagenet"``: a convolution 7 x 7 of stride 2 and a pooling of stride 2, for pictures of 64 pixels
        and more; ``"cifar"``: a convolution 3 x 3 of stride 1, as is usual for 32 x 32 pixels.

    Raises
    ------
    ValueError
        If the pictures have not three channels, or the stem is another.
    """
    if len(shape) != 3 or shape[0] != 3:
        raise ValueError(f"shape must be (3, height, width); got {tuple(shape)}")
    if stem not in ("imagenet", "cifar"):
        raise ValueError(f'stem must be "imagenet" or "cifar"; got {stem!r}')
    model = models.resnet18(num_classes=classes)
    if stem == "cifar":
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model


class Block(nn.Module):
    """Two convolutions 3 x 3 with batch normalisation, and a skip past them that has no parameters."""

    def __init__(self, inputs: int, maps: int, stride: int, skips: bool) -> None:
        super().__init__()
        self.stride, self.added, self.skips = stride, maps - inputs, skips
        self.conv1 = nn.Conv2d(inputs, maps, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(maps)
        self.conv2 = nn.Conv2d(maps, maps, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(maps)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (N, maps, H / stride, W / stride) for maps (N, inputs, H, W)."""
        residual = F.relu(self.norm1(self.conv1(x)))
        residual = self.norm2(self.conv2(residual))
        return F.relu(residual + self.skip(x) if self.skips else residual)

    def skip(self, x: Tensor) -> Tensor:
        """Return every ``stride``-th pixel, with maps of zeros added (option A of the paper)."""
        kept = x[:, :, :: self.stride, :: self.stride]
        return F.pad(kept, (0, 0, 0, 0, 0, self.added))


@seeded
def cifar_resnet(
    shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    depth: int = 20,
    skips: bool = True,
) -> nn.Module:
    """Residual network for CIFAR (He et al., 2016, section 4.2), with skips of option A or without any.

    Inputs of shape (N, channels, H, W), outputs (N, classes): logits. A convolution 3 x 3 with 16 maps, three
    stages of (depth - 2) / 6 blocks with 16, 32 and 64 maps, of which the second and the third halve the sides,
    the mean over the pixels, and a dense layer. Skips have no parameters: 0.27, 0.85 and 1.73 million with depth
    20, 56 and 110, with or without them. Weights are drawn as He et al. (2015) say, biases are zero.

    Parameters
    ----------
    shape
        Of one example.
    classes
        Number of classes.
    depth
        Layers with weights, 6 n + 2.
    skips
        Whether each block adds its input to its output; without, these are the "noshort" networks of
        Li et al. (2018).

    Raises
    ------
    ValueError
        If ``depth`` is not 6 n + 2, or ``shape`` has not three entries.
    """
    if len(shape) != 3:
        raise ValueError(f"shape must be (channels, height, width); got {tuple(shape)}")
    blocks, left = divmod(depth - 2, 6)
    if blocks < 1 or left:
        raise ValueError(f"depth must be 6 n + 2, such as 20, 56 or 110; got {depth}")
    layers: list[nn.Module] = [
        nn.Conv2d(shape[0], 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
    ]
    inputs = 16
    for maps in (16, 32, 64):
        for _ in range(blocks):
            layers.append(Block(inputs, maps, 1 if inputs == maps else 2, skips))
            inputs = maps
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)]
    model = nn.Sequential(*layers)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(model[-1].bias)
    return model
