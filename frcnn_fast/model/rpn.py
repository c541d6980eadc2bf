"""Region proposal network: objectness and box deltas at every anchor (Ren et al. §3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frcnn_fast import ops
from frcnn_fast.model.config import DetectorConfig
from frcnn_fast.model.layers import gaussian_


class RpnOutput(NamedTuple):
    """The head's maps of every level, stored as its convolutions store them; k anchors a location."""

    logits: list[Tensor]  # [B, k, h, w] objectness
    deltas: list[Tensor]  # [B, 4k, h, w]
    anchors: ops.AnchorGrids
    locations: int  # places on the maps

    def tables(self) -> tuple[Tensor, Tensor]:
        """Logits [B, A] and deltas [B, A, 4], a row an anchor in the order of `anchors`: copies, for those who look at
        all of them."""
        logits = [m.permute(0, 2, 3, 1).flatten(1) for m in self.logits]
        deltas = [m.permute(0, 2, 3, 1).reshape(len(m), -1, 4) for m in self.deltas]
        return torch.cat(logits, 1), torch.cat(deltas, 1)


class RegionProposalNetwork(nn.Module):
    """3x3 convolutions with ReLU (the paper: one), then two sibling 1x1 convolutions; every level shares them.

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
        self.stride_of_image = config.anchor_stride == "image"
        for level, sizes in enumerate(config.anchor_sizes):
            anchors = ops.generate_anchors(sizes, config.anchor_ratios, convention=config.anchor_convention)
            # A buffer, so that it lies on the device; made from the config, so not in the checkpoint.
            self.register_buffer(f"cell_anchors_{level}", anchors, persistent=False)
        k = config.anchors_per_location
        width = config.rpn_channels
        self.convs = nn.ModuleList(
            [nn.Conv2d(width if i else channels, width, 3, padding=1) for i in range(config.rpn_convs)]
        )
        self.cls_logits = nn.Conv2d(width, k, 1)
        self.bbox_pred = nn.Conv2d(width, 4 * k, 1)
        for layer in (*self.convs, self.cls_logits, self.bbox_pred):
            gaussian_(layer, 0.01)

    def forward(self, features: Sequence[Tensor], image_size: tuple[int, int]) -> RpnOutput:
        """Maps, one for each stride, of images of `image_size` (height, width), padding included."""
        logits, deltas, grids = [], [], []
        for level, feature in enumerate(features):
            hidden = feature
            for conv in self.convs:
                hidden = F.relu(conv(hidden), inplace=True)
            logits.append(self.cls_logits(hidden))
            deltas.append(self.bbox_pred(hidden))
            size = feature.shape[2], feature.shape[3]
            stride = self.strides[level], self.strides[level]
            if self.stride_of_image:
                stride = image_size[0] // size[0], image_size[1] // size[1]
            grids.append((getattr(self, f"cell_anchors_{level}"), size, stride))
        return RpnOutput(
            logits,
            deltas,
            ops.AnchorGrids(grids, offset=self.offset),
            sum(h * w for _, (h, w), _ in grids),
        )
