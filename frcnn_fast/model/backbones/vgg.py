"""VGG-16: its convolutions, and the two fully connected layers that follow them."""

from __future__ import annotations

from torch import Tensor, nn

from frcnn_fast.model.backbones.features import Features
from frcnn_fast.model.layers import gaussian_


class VGG16(Features):
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

    def head(self, pool_size: int, width: int, dropout: float) -> nn.Module | None:
        return VGG16Head(dropout) if (pool_size, width) == (7, 4096) else None


class VGG16Head(nn.Module):
    """fc6 and fc7 of VGG-16 under torchvision's names, `classifier.0` and `classifier.3`."""

    out_features = 4096
    flattens = True  # see RoIHead

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        fc6, fc7 = nn.Linear(512 * 7 * 7, 4096), nn.Linear(4096, 4096)
        for layer in (fc6, fc7):
            gaussian_(layer, 0.01)
        self.classifier = nn.Sequential(
            fc6, nn.ReLU(inplace=True), nn.Dropout(dropout), fc7, nn.ReLU(inplace=True), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x.flatten(1))
