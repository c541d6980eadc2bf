"""Region proposal network: objectness and box deltas at every anchor (Ren et al. §3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frcnn_fast import ops
from frcnn_fast.model.config import DetectorConfig
from frcnn_fast.model.head import gaussian_


class RpnOutput(NamedTuple):
    """One row per anchor, over all levels; A anchors in the order of `anchors`."""

    logits: Tensor  # [B, A] objectness
    deltas: Tensor  # [B, A, 4]
    anchors: ops.AnchorGrids
    locations: int  # places on the maps: A / (anchors per location)


class RegionProposalNetwork(nn.Module):
    """A 3x3 convolution with ReLU, then two sibling 1x1 convolutions; every level shares them.

    One logit per anchor (object against not), four deltas per anchor. All layers start Gaussian with standard
    deviation 0.01 (§3.1.3).
    """

    def __init__(self, channels: int, strides: Sequence[int], config: DetectorConfig) -> None:
        super().__init__()
        if len(strides) != len(config.anchor_sizes):
            raise ValueError(
                f"anchor_sizes: got {len(config.anchor_sizes)} levels, expected {len(strides)}, one for each map of "
                f"the backbone (strides {tuple(strides)})"
            )
        self.strides = tuple(strides)
        self.offset = config.anchor_offset
        for level, sizes in enumerate(config.anchor_sizes):
            anchors = ops.generate_anchors(sizes, config.anchor_ratios, convention=config.anchor_convention)
            # A buffer, so that it lies on the device; made from the config, so not in the checkpoint.
            self.register_buffer(f"cell_anchors_{level}", anchors, persistent=False)
        k = config.anchors_per_location
        self.conv = nn.Conv2d(channels, config.rpn_channels, 3, padding=1)
        self.cls_logits = nn.Conv2d(config.rpn_channels, k, 1)
        self.bbox_pred = nn.Conv2d(config.rpn_channels, 4 * k, 1)
        for layer in (self.conv, self.cls_logits, self.bbox_pred):
            gaussian_(layer, 0.01)

    def forward(self, features: Sequence[Tensor]) -> RpnOutput:
        logits, deltas, grids = [], [], []
        for level, feature in enumerate(features):
            hidden = F.relu(self.conv(feature), inplace=True)
            # [B, k, h, w] -> [B, h*w*k]: the anchor index runs over the cell's anchors first.
            logits.append(self.cls_logits(hidden).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.bbox_pred(hidden).permute(0, 2, 3, 1).reshape(len(feature), -1, 4))
            size = feature.shape[2], feature.shape[3]
            grids.append((getattr(self, f"cell_anchors_{level}"), size, self.strides[level]))
        return RpnOutput(
            torch.cat(logits, 1),
            torch.cat(deltas, 1),
            ops.AnchorGrids(grids, offset=self.offset),
            sum(h * w for _, (h, w), _ in grids),
        )
