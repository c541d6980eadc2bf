"""Detection head: pooled features of each region to class scores and class-wise box deltas (Girshick 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from frcnn_fast import ops
from frcnn_fast.model.config import DetectorConfig
from frcnn_fast.model.protocol import BackboneShape


def gaussian_(layer: nn.Linear | nn.Conv2d, std: float) -> None:
    """The paper's start of a new layer: Gaussian weights, no bias (Ren et al. §3.1.3)."""
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class TwoLayerHead(nn.Module):
    """fc6 and fc7 of any width, with torchvision's names; He initialisation."""

    def __init__(self, in_features: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.out_features = width
        self.fc6 = nn.Linear(in_features, width)
        self.fc7 = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(torch.relu(self.fc6(x.flatten(1))))
        return self.dropout(torch.relu(self.fc7(x)))


class VGG16Head(nn.Module):
    """fc6 and fc7 of VGG-16 under torchvision's names, `classifier.0` and `classifier.3`."""

    out_features = 4096

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


def rows_of_images(boxes: Tensor, counts: Tensor) -> Tensor:
    """Boxes [B, N, 4] with counts [B] as rows (image, x1, y1, x2, y2) [B*N, 5]; image -1 marks padding."""
    batch, size = boxes.shape[:2]
    image = torch.arange(batch, device=boxes.device)[:, None]
    exists = torch.arange(size, device=boxes.device) < counts[:, None]
    index = torch.where(exists, image, -1).to(boxes.dtype)
    return torch.cat([index[..., None], boxes], -1).flatten(0, 1)


class RoIHead(nn.Module):
    """Pools each region to pool_size x pool_size, runs the body, and predicts classes and boxes.

    Args:
        body: module from [R, C, pool, pool] to [R, body.out_features].
        shape: of the backbone's maps; those at its `roi_levels` are pooled.
        num_classes: K + 1, the background included.
        config: pooling and predictor settings.
    """

    def __init__(self, body: nn.Module, shape: BackboneShape, num_classes: int, config: DetectorConfig) -> None:
        super().__init__()
        if config.pooling == "roi_pool" and len(shape.roi_levels) > 1:
            raise ValueError(
                f"pooling: 'roi_pool' reads one feature level, the backbone offers {len(shape.roi_levels)}; "
                "use 'roi_align'"
            )
        self.body = body
        self.levels = shape.roi_levels
        self.scales = [1.0 / stride for stride in shape.roi_strides]
        self.config = config
        width = getattr(body, "out_features", None)
        if not isinstance(width, int):
            raise TypeError(f"head: {type(body).__name__} has out_features {width!r}, expected an int")
        self.cls_score = nn.Linear(width, num_classes)
        self.bbox_pred = nn.Linear(width, 4 if config.class_agnostic else 4 * num_classes)
        gaussian_(self.cls_score, 0.01)
        gaussian_(self.bbox_pred, 0.001)

    def pool(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Pooled features of rows (image, x1, y1, x2, y2) [R, 5]: [R, C, pool, pool], zero for padded rows."""
        size, config = self.config.pool_size, self.config
        features = [features[level] for level in self.levels]
        if config.pooling == "roi_pool":
            return ops.roi_pool(features[0], rois, size, self.scales[0])
        if len(features) == 1:
            return ops.roi_align(features[0], rois, size, self.scales[0], config.sampling_ratio, config.aligned)
        return ops.multiscale_roi_align(
            features,
            rois,
            output_size=size,
            spatial_scales=self.scales,
            sampling_ratio=config.sampling_ratio,
            aligned=config.aligned,
            canonical_scale=config.canonical_scale,
            canonical_level=config.canonical_level,
        )

    def forward(self, features: Sequence[Tensor], boxes: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [B, N, 4], counts [B] -> class logits [B, N, K+1], deltas [B, N, 4(K+1)] (or [B, N, 4])."""
        batch, size = boxes.shape[:2]
        hidden = self.body(self.pool(features, rows_of_images(boxes, counts)))
        return self.cls_score(hidden).view(batch, size, -1), self.bbox_pred(hidden).view(batch, size, -1)
