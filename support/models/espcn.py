"""ESPCN: super-resolution by convolutions on the small picture and a shuffle of its channels."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from support.models.seeded import seeded


class ESPCN(nn.Module):
    """The network of :func:`espcn`."""

    def __init__(self, channels: int, factor: int, skip: bool) -> None:
        super().__init__()
        self.factor, self.skip = factor, skip
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 64, 5, padding=2),
            nn.Tanh(),
            nn.Conv2d(64, 32, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(32, channels * factor**2, 3, padding=1),
            nn.PixelShuffle(factor),
        )

    def forward(self, small: Tensor) -> Tensor:
        """Return large pictures (N, channels, factor H, factor W) for small ones (N, channels, H, W)."""
        large = self.layers(small)
        return large + bicubic(small, self.factor) if self.skip else large


@seeded
def espcn(shape: Sequence[int] = (3, 48, 48), factor: int = 4, skip: bool = False) -> ESPCN:
    """ESPCN (Shi et al., 2016, section 3.1): convolutions 5 x 5, 3 x 3 and 3 x 3, tanh between them, shuffle.

    Inputs of shape (N, channels, H, W), outputs (N, channels, factor H, factor W). 37 thousand parameters with
    three channels and factor 4.

    Parameters
    ----------
    shape
        Of one small picture.
    factor
        Of the sides.
    skip
        Whether the network adds to the bicubic interpolation instead of making the whole picture.
    """
    return ESPCN(shape[0], factor, skip)


def bicubic(small: Tensor, factor: int = 4) -> Tensor:
    """Return pictures (N, channels, factor H, factor W) by bicubic interpolation: the baseline of no network."""
    return F.interpolate(small, scale_factor=factor, mode="bicubic", align_corners=False)
