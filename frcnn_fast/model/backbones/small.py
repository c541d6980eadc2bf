"""The backbone of the embedded digits."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def _conv_bn_relu(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


class SmallBackbone(nn.Module):
    """Six 3x3 convolutions with batch normalisation, for training from nothing on a processor.

    Two maps of 64 channels at strides 4 and 8; the coarse map is added into the fine one (a two-level pyramid).
    """

    out_channels = 64
    strides = (4, 8)

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(_conv_bn_relu(3, 24, 2), _conv_bn_relu(24, 48, 2), _conv_bn_relu(48, 48, 1))
        self.coarse = nn.Sequential(_conv_bn_relu(48, 96, 2), _conv_bn_relu(96, 96, 1), _conv_bn_relu(96, 128, 1))
        self.lateral_fine = nn.Conv2d(48, self.out_channels, 1)
        self.lateral_coarse = nn.Conv2d(128, self.out_channels, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        fine = self.fine(images)
        top = self.lateral_coarse(self.coarse(fine))
        return self.lateral_fine(fine) + F.interpolate(top, size=fine.shape[-2:], mode="nearest"), top
