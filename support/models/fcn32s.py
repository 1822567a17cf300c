"""FCN-32s: a classifier's convolutions, its dense layers as convolutions, and one interpolation of factor 32."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.models.vgg import cfgs, make_layers

from support.models.seeded import seeded

STRIDE = 32
"""Pixels of the picture to one place of the last map."""


class FCN32s(nn.Module):
    """The network of :func:`fcn32s`."""

    def __init__(self, classes: int, width: float) -> None:
        super().__init__()
        plan = [
            entry if entry == "M" else max(1, round(entry * width)) for entry in cfgs["D"]
        ]
        maps, dense = max(1, round(512 * width)), max(1, round(4096 * width))
        self.features = make_layers(plan)
        self.fc6 = nn.Conv2d(maps, dense, 7, padding=3)
        self.fc7 = nn.Conv2d(dense, dense, 1)
        self.dropout = nn.Dropout2d(0.5)
        self.score = nn.Conv2d(dense, classes, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.score.weight)  # as in the paper: every class starts alike
        self.register_buffer("kernel", bilinear(STRIDE).repeat(classes, 1, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) of pictures (N, 3, H, W)."""
        height, width = pictures.shape[-2:]
        maps = self.features(F.pad(pictures, (0, -width % STRIDE, 0, -height % STRIDE)))
        maps = self.dropout(F.relu(self.fc6(maps)))
        maps = self.dropout(F.relu(self.fc7(maps)))
        scores = F.conv_transpose2d(
            self.score(maps),
            self.kernel,
            stride=STRIDE,
            padding=STRIDE // 2,
            groups=len(self.kernel),
        )
        return scores[..., :height, :width]

    def load_vgg16(self, vgg16: nn.Module) -> None:
        """Take over the weights of torchvision's VGG16: its dense layers become convolutions."""
        self.features.load_state_dict(vgg16.features.state_dict())
        for layer, dense in (
            (self.fc6, vgg16.classifier[0]),
            (self.fc7, vgg16.classifier[3]),
        ):
            with torch.no_grad():
                layer.weight.copy_(dense.weight.view_as(layer.weight))
                layer.bias.copy_(dense.bias)


@seeded
def fcn32s(
    shape: Sequence[int] = (3, 320, 320),
    classes: int = 21,
    width: float = 1.0,
    pretrained: bool = False,
) -> FCN32s:
    """FCN-32s on VGG16 (Long, Shelhamer and Darrell, 2015, section 4).

    Inputs of shape (N, 3, H, W), outputs (N, classes, H, W): logits. The 13 convolutions of VGG16, its dense
    layers as convolutions 7 x 7 and 1 x 1 with dropout, a score of each class that starts at zero, and a
    transposed convolution of stride 32 whose kernels are fixed to bilinear interpolation, as in the paper.
    Pictures are filled up with zeros to multiples of 32 pixels (the paper adds 100 pixels on each side).

    Parameters
    ----------
    shape
        Of one example; used for nothing but a check.
    classes
        Number of classes, the background among them.
    width
        Factor of the number of maps of every layer; 134 million parameters with 1.
    pretrained
        Whether the weights of VGG16 come from torchvision's training on ImageNet, which are downloaded.

    Raises
    ------
    ValueError
        If the pictures have not three channels, or trained weights are wanted for another width.
    """
    if len(shape) != 3 or shape[0] != 3:
        raise ValueError(f"shape must be (3, height, width); got {tuple(shape)}")
    if pretrained and width != 1:
        raise ValueError(f"trained weights exist for width 1 only; got {width}")
    model = FCN32s(classes, width)
    if pretrained:
        weights = models.VGG16_Weights.IMAGENET1K_V1
        model.load_vgg16(models.vgg16(weights=weights))
    return model


def bilinear(factor: int) -> Tensor:
    """Return the kernel, of shape (1, 2 factor, 2 factor), of bilinear interpolation by an even factor."""
    places = (torch.arange(2 * factor) + 0.5 - factor).abs() / factor
    return torch.outer(1 - places, 1 - places)[None]
