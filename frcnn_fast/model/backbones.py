"""The backbones that come with the library (`frcnn_fast.model.protocol` says what a backbone is).

The two published ones keep torchvision's parameter names (`features.0.weight`, ...), so ImageNet weights load without
renaming.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Features(nn.Module):
    """One map of 512 channels at stride 16, from one list of layers under torchvision's name for it."""

    out_channels = 512
    strides = (16,)
    frozen_stages = 0
    stage_ends: tuple[int, ...]  # a stage: the layers between two poolings
    features: nn.Sequential

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.features(images),)

    def freeze(self, stages: int) -> None:
        if not 0 < stages <= len(self.stage_ends):
            raise ValueError(f"freeze: got {stages} stages, but {type(self).__name__} has {len(self.stage_ends)}")
        for parameter in self.features[: self.stage_ends[stages - 1]].parameters():
            parameter.requires_grad_(False)


class VGG16(_Features):
    """conv1_1 ... conv5_3 of VGG-16: one map of 512 channels at stride 16 (the fifth pooling is left out)."""

    stage_ends = (4, 9, 16, 23, 30)
    frozen_stages = 2  # the paper tunes conv3_1 and up

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for block, (width, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
            if block:
                layers.append(nn.MaxPool2d(2, 2))
            for _ in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
        self.features = nn.Sequential(*layers)


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


class SqueezeNet(_Features):
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


BACKBONES: dict[str, type[nn.Module]] = {"vgg16": VGG16, "squeezenet1_0": SqueezeNet, "small": SmallBackbone}


def build_backbone(name: str) -> nn.Module:
    """The backbone called `name`, randomly initialised. ValueError names the known ones."""
    if name not in BACKBONES:
        raise ValueError(f"backbone: got {name!r}, expected one of {', '.join(sorted(BACKBONES))}")
    return BACKBONES[name]()
