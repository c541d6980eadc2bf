"""Detection head: pooled features of each region to class scores and class-wise box deltas (Girshick 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from frcnn_fast import ops
from frcnn_fast.kernels.roi_pool.roi_levels import level_thresholds
from frcnn_fast.model.config import DetectorConfig
from frcnn_fast.model.layers import ConvNorm, gaussian_
from frcnn_fast.model.protocol import BackboneShape


def build_head(backbone: nn.Module, channels: int, config: DetectorConfig) -> nn.Module:
    """The head's layers that `config.head` names, for maps of `channels`."""
    if config.head == "conv":
        return ConvHead(channels, config.pool_size, config.head_channels)
    if config.pool_levels:
        return TwoLayerHead(
            channels * sum(size**2 for size in config.pool_levels), config.head_channels, config.dropout
        )
    own = getattr(backbone, "head", None) if config.head == "own" else None
    head = own(config.pool_size, config.head_channels, config.dropout) if own else None
    if head is not None:
        return head
    return TwoLayerHead(channels * config.pool_size**2, config.head_channels, config.dropout)


class TwoLayerHead(nn.Module):
    """fc6 and fc7 of any width, with torchvision's names; He initialisation."""

    flattens = True  # see RoIHead

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


class ConvHead(nn.Module):
    """Four 3 x 3 convolutions of 256 channels with batch normalisation, then one fully connected layer."""

    def __init__(self, channels: int, pool_size: int, width: int) -> None:
        super().__init__()
        self.out_features = width
        self.convs = nn.Sequential()
        for _ in range(4):
            conv = nn.Conv2d(channels, 256, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            self.convs.append(ConvNorm(conv, "batch", nn.ReLU(inplace=True)))
            channels = 256
        self.fc6 = nn.Linear(256 * pool_size**2, width)
        nn.init.kaiming_normal_(self.fc6.weight, nonlinearity="relu")
        nn.init.zeros_(self.fc6.bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc6(self.convs(x).flatten(1)))


def rows_of_images(boxes: Tensor, counts: Tensor) -> Tensor:
    """Boxes [B, N, 4] with counts [B] as rows (image, x1, y1, x2, y2) [B*N, 5]; image -1 marks padding."""
    batch, size = boxes.shape[:2]
    image = torch.arange(batch, device=boxes.device)[:, None]
    exists = torch.arange(size, device=boxes.device) < counts[:, None]
    index = torch.where(exists, image, -1).to(boxes.dtype)
    return torch.cat([index[..., None], boxes], -1).flatten(0, 1)


class RoIHead(nn.Module):
    """Pools each region to pool_size x pool_size, runs the body, and predicts classes and boxes.

    With config.pool_levels it is spatial pyramid pooling (He et al. 2014): a region is pooled once for every size, and
    the bins of all sizes are one vector. One size is the paper's pooling.

    Args:
        body: module from [R, C, pool, pool] to [R, body.out_features]; from [R, C * bins] with a pyramid. One whose
            `flattens` is true begins by flattening its input, which is then pooled contiguous; any other gets it in
            the maps' memory format.
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
        flattens = bool(config.pool_levels) or getattr(body, "flattens", False)
        self.memory_format = torch.contiguous_format if flattens else None
        self.levels = shape.roi_levels
        self.level_areas: Tensor
        self.scales = [1.0 / stride for stride in shape.roi_strides]
        thresholds: tuple[float, ...] = ()
        if config.pooling == "prroi_pool":
            thresholds = level_thresholds(tuple(self.scales), config.canonical_scale, config.canonical_level)
        # Areas from which on a region belongs to the next level; made from the config, so not in the checkpoint.
        self.register_buffer("level_areas", torch.tensor(thresholds), persistent=False)
        self.config = config
        width = getattr(body, "out_features", None)
        if not isinstance(width, int):
            raise TypeError(f"head: {type(body).__name__} has out_features {width!r}, expected an int")
        self.cls_score = nn.Linear(width, num_classes)
        self.bbox_pred = nn.Linear(width, 4 if config.class_agnostic else 4 * num_classes)
        gaussian_(self.cls_score, 0.01)
        gaussian_(self.bbox_pred, 0.001)

    def pool(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Pooled features of rows (image, x1, y1, x2, y2) [R, 5]: [R, C, pool, pool], zero for padded rows; of a
        pyramid [R, C * bins], size by size."""
        features = [features[level] for level in self.levels]
        if self.config.pool_levels:
            return torch.cat([self._pooled(features, rois, size).flatten(1) for size in self.config.pool_levels], 1)
        return self._pooled(features, rois, self.config.pool_size)

    def _pooled(self, features: Sequence[Tensor], rois: Tensor, size: int) -> Tensor:
        config = self.config
        if config.pooling == "roi_pool":
            return ops.roi_pool(features[0], rois, size, self.scales[0])
        if config.pooling == "prroi_pool":
            return self._precise(features, rois, size)
        if len(features) == 1:
            return ops.roi_align(
                features[0],
                rois,
                size,
                self.scales[0],
                config.sampling_ratio,
                config.aligned,
                memory_format=self.memory_format,
            )
        return ops.multiscale_roi_align(
            features,
            rois,
            output_size=size,
            spatial_scales=self.scales,
            sampling_ratio=config.sampling_ratio,
            aligned=config.aligned,
            canonical_scale=config.canonical_scale,
            canonical_level=config.canonical_level,
            memory_format=self.memory_format,
        )

    def _precise(self, features: Sequence[Tensor], rois: Tensor, size: int) -> Tensor:
        """Every region from the level that `multiscale_roi_align` would take."""
        if len(features) == 1:
            return ops.prroi_pool(features[0], rois, size, self.scales[0])
        image, boxes = rois.split([1, 4], 1)
        area = (boxes[:, 2:] - boxes[:, :2]).detach().prod(1, keepdim=True)
        level = (area >= self.level_areas).sum(1, keepdim=True)
        pooled = []
        for place, (feature, scale) in enumerate(zip(features, self.scales, strict=True)):
            # A row of another level is padding: it gives zeros.
            rows = torch.cat([torch.where(level == place, image, -1), boxes], 1)
            pooled.append(ops.prroi_pool(feature, rows, size, scale))
        return torch.stack(pooled).sum(0)

    def forward(self, features: Sequence[Tensor], boxes: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [B, N, 4], counts [B] -> class logits [B, N, K+1], deltas [B, N, 4(K+1)] (or [B, N, 4])."""
        return self.predict(self.pool(features, rows_of_images(boxes, counts)), *boxes.shape[:2])

    def predict(self, pooled: Tensor, batch: int, size: int) -> tuple[Tensor, Tensor]:
        """What `pool` made of B x N regions -> class logits [B, N, K+1], deltas [B, N, 4(K+1)] (or [B, N, 4])."""
        hidden = self.body(pooled)
        return self.cls_score(hidden).view(batch, size, -1), self.bbox_pred(hidden).view(batch, size, -1)
