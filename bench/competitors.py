"""The same steps as torchvision does them, where it is installed. A missing competitor is named, never left out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.workloads import Scene

try:
    import torchvision
    from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
    from torchvision.models.detection.roi_heads import RoIHeads
    from torchvision.models.detection.rpn import RegionProposalNetwork

    TORCHVISION: str | None = torchvision.__version__
except (ImportError, RuntimeError) as error:  # a torchvision of another torch raises RuntimeError
    TORCHVISION = None
    MISSING = f"torchvision: {error}"


def missing() -> list[str]:
    """What could not be imported, and why."""
    return [] if TORCHVISION else [MISSING]


class TorchvisionRpn:
    """torchvision's region proposal network without its head: decoding, filtering, targets."""

    def __init__(self, scene: Scene, pre: int, post: int, iou_threshold: float = 0.7, min_size: float = 1e-3) -> None:
        self.rpn = RegionProposalNetwork(
            torch.nn.Identity(), torch.nn.Identity(), 0.7, 0.3, 256, 0.5,
            {"training": pre, "testing": pre}, {"training": post, "testing": post}, iou_threshold,
        ).eval()  # fmt: skip
        self.rpn.min_size = min_size
        self.sizes = [(scene.shape.height, scene.shape.width)] * scene.logits.shape[0]
        self.levels = scene.grids.level_sizes
        self.anchors = [scene.anchors] * scene.logits.shape[0]
        self.logits, self.deltas = scene.logits, scene.deltas
        self.targets = [{"boxes": boxes} for boxes in scene.gt_boxes]

    def proposals(self) -> Any:
        """box_coder.decode + filter_proposals on flattened head outputs."""
        B = self.logits.shape[0]
        boxes = self.rpn.box_coder.decode(self.deltas.reshape(-1, 4), self.anchors).view(B, -1, 4)
        return self.rpn.filter_proposals(boxes, self.logits.reshape(-1, 1), self.sizes, self.levels)

    def assign_sample_encode(self) -> Any:
        """assign_targets_to_anchors + fg_bg_sampler + encode."""
        labels, matched = self.rpn.assign_targets_to_anchors(self.anchors, self.targets)
        targets = self.rpn.box_coder.encode(matched, self.anchors)
        return self.rpn.fg_bg_sampler(labels), targets


def postprocess_detections(
    class_logits: Tensor, box_deltas: Tensor, proposals: Tensor, size: tuple[int, int], score: float, iou: float
) -> Any:
    """RoIHeads.postprocess_detections of one image."""
    heads = RoIHeads(None, None, None, 0.5, 0.5, 512, 0.25, (10.0, 10.0, 5.0, 5.0), score, iou, 100)
    return lambda: heads.postprocess_detections(class_logits, box_deltas, [proposals], [size])


__all__ = [
    "TORCHVISION", "BalancedPositiveNegativeSampler", "BoxCoder", "Matcher", "TorchvisionRpn", "missing",
    "postprocess_detections",
]  # fmt: skip
