"""ResNet-18 with two stems."""

from collections.abc import Sequence

from torch import nn
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
