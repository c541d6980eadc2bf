"""SqueezeNet 1.0."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frcnn_fast.model.backbones.features import Features


class Fire(nn.Module):
    """SqueezeNet's block: a 1x1 bottleneck, then 1x1 and 3x3 convolutions side by side."""

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x), inplace=True)
        return F.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], 1), inplace=True)


class SqueezeNet(Features):
    """The convolutions of SqueezeNet 1.0: one map of 512 channels at stride 16; cell (y, x) lies on pixel (16y, 16x).

    The published network pads neither its first convolution nor its poolings, so that its cells would look 17 pixels
    past the place where anchors and RoI pooling take them to be, right and down: further than a small object is wide.
    Here all are padded by half their size. Maps are as large as the image / 16, rounded up; the weights fit as they
    are.
    """

    stage_ends = (2, 6, 11, 13)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 7, stride=2, padding=3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, padding=1),
            Fire(96, 16, 64),
            Fire(128, 16, 64),
            Fire(128, 32, 128),
            nn.MaxPool2d(3, 2, padding=1),
            Fire(256, 32, 128),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            nn.MaxPool2d(3, 2, padding=1),
            Fire(512, 64, 256),
        )
