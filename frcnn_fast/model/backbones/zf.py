"""The network of Zeiler and Fergus, as Caffe's Faster R-CNN has it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ZF(nn.Module):
    """conv1 ... conv5: one map of 256 channels at stride 16, under Caffe's names (`conv1.weight`, ...).

    Its fc6 and fc7 are the head's two layers of 4,096, on regions of 6 x 6 cells. Caffe's poolings round a map's size
    up, which adds a row of cells beyond the border; here they round down.
    """

    out_channels = 256
    strides = (16,)
    stages = 5  # freeze(n): conv1 ... convn

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, stride=2, padding=3)
        self.conv2 = nn.Conv2d(96, 256, 5, stride=2, padding=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = F.max_pool2d(local_response(F.relu(self.conv1(images))), 3, 2, padding=1)
        x = F.max_pool2d(local_response(F.relu(self.conv2(x))), 3, 2, padding=1)
        for conv in (self.conv3, self.conv4, self.conv5):
            x = F.relu(conv(x), inplace=True)
        return (x,)

    def freeze(self, stages: int) -> None:
        if not 0 < stages <= self.stages:
            raise ValueError(f"freeze: got {stages} stages, but ZF has {self.stages}")
        for number in range(1, stages + 1):
            getattr(self, f"conv{number}").requires_grad_(False)


def local_response(x: Tensor, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> Tensor:
    """x / (1 + alpha m)^beta, m the mean of x² over the size x size cells around, zero beyond the border.

    Caffe's normalisation within a channel; `torch.nn.LocalResponseNorm` is the one across channels.
    """
    mean = F.avg_pool2d(x * x, size, stride=1, padding=size // 2)
    return x * torch.pow(1 + alpha * mean, -beta)
