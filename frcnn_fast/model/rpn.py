"""Region proposal network: objectness and box deltas at every anchor (Ren et al. §3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frcnn_fast import ops
from frcnn_fast.model.config import DetectorConfig


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
        self.cell_anchors = [
            ops.generate_anchors(sizes, config.anchor_ratios, convention=config.anchor_convention)
            for sizes in config.anchor_sizes
        ]
        k = config.anchors_per_location
        self.conv = nn.Conv2d(channels, config.rpn_channels, 3, padding=1)
        self.cls_logits = nn.Conv2d(config.rpn_channels, k, 1)
        self.bbox_pred = nn.Conv2d(config.rpn_channels, 4 * k, 1)
        for layer in (self.conv, self.cls_logits, self.bbox_pred):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor]) -> RpnOutput:
        logits, deltas, grids = [], [], []
        for level, feature in enumerate(features):
            hidden = F.relu(self.conv(feature), inplace=True)
            # [B, k, h, w] -> [B, h*w*k]: the anchor index runs over the cell's anchors first.
            logits.append(self.cls_logits(hidden).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.bbox_pred(hidden).permute(0, 2, 3, 1).reshape(len(feature), -1, 4))
            stride = self.strides[level]
            grids.append((self.cell_anchors[level], tuple(feature.shape[-2:]), (stride, stride)))
        return RpnOutput(
            torch.cat(logits, 1),
            torch.cat(deltas, 1),
            ops.AnchorGrids(grids, offset=self.offset),
            sum(h * w for _, (h, w), _ in grids),
        )
