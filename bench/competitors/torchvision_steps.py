"""torchvision's steps on our workloads: its own classes and functions, called as its detectors call them.

Anchors are given to it, ready: making them is not counted against it.
"""

from __future__ import annotations

from typing import Any

import torch
import torchvision.ops as tv
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from bench.registry import Call, Competitor
from bench.workloads import THRESHOLD, Scene


class Rpn:
    """A RegionProposalNetwork without its convolutions, on one scene."""

    def __init__(self, scene: Scene, pre: int = 2000, post: int = 2000, min_size: float = 1e-3) -> None:
        nothing = torch.nn.Identity()
        before, after = {"training": pre, "testing": pre}, {"training": post, "testing": post}
        self.rpn = RegionProposalNetwork(nothing, nothing, 0.7, 0.3, 256, 0.5, before, after, THRESHOLD).eval()
        self.rpn.min_size = min_size
        self.B = len(scene.logits)
        self.sizes = [(scene.shape.height, scene.shape.width)] * self.B
        self.level_sizes = scene.shape.level_sizes
        self.anchors = [scene.anchors] * self.B
        self.logits, self.deltas = scene.logits.reshape(-1, 1), scene.deltas.reshape(-1, 4)
        self.targets = [{"boxes": boxes} for boxes in scene.gt_boxes]

    def decode(self) -> Tensor:
        """box_coder.decode, [B, A, 4]."""
        return self.rpn.box_coder.decode(self.deltas, self.anchors).view(self.B, -1, 4)

    def decode_and_clip(self) -> Tensor:
        """The same, clipped to the image."""
        return tv.clip_boxes_to_image(self.decode(), self.sizes[0])

    def proposals(self) -> Any:
        """box_coder.decode + filter_proposals."""
        return self.rpn.filter_proposals(self.decode(), self.logits, self.sizes, self.level_sizes)

    def assign(self) -> Any:
        """assign_targets_to_anchors."""
        return self.rpn.assign_targets_to_anchors(self.anchors, self.targets)

    def targets_of_a_sample(self) -> Any:
        """assign_targets_to_anchors + fg_bg_sampler + encode."""
        labels, matched = self.assign()
        return self.rpn.fg_bg_sampler(labels), self.rpn.box_coder.encode(matched, self.anchors)


def nms_to_depth(boxes: Tensor, scores: Tensor, depth: int) -> Competitor:
    """torchvision's nms on the `depth` best boxes only, already cut out and sorted: early exit set aside, kernel against
    kernel."""
    order = scores.argsort(descending=True, stable=True)[:depth]
    best, best_scores = boxes[order], scores[order]
    note = f"is told beforehand that {depth} boxes will do, and gets them sorted"
    return Competitor(lambda: tv.nms(best, best_scores, THRESHOLD), note)


def _heads(score: float = 0.05, iou: float = 0.5, sampled: int = 128) -> RoIHeads:
    return RoIHeads(None, None, None, 0.5, 0.5, sampled, 0.25, (10.0, 10.0, 5.0, 5.0), score, iou, 100)


def detections(logits: Tensor, deltas: Tensor, proposals: Tensor, size: tuple[int, int], iou: float) -> Call:
    """RoIHeads.postprocess_detections of a batch."""
    heads, B = _heads(iou=iou), len(logits)
    flat_logits, flat_deltas = logits.flatten(0, 1), deltas.flatten(0, 1)
    return lambda: heads.postprocess_detections(flat_logits, flat_deltas, list(proposals), [size] * B)


def sampled_rois(proposals: Tensor, gt_boxes: Tensor, gt_labels: Tensor, sampled: int) -> Call:
    """RoIHeads.select_training_samples of a batch."""
    heads = _heads(sampled=sampled).train()
    targets = [{"boxes": b, "labels": k} for b, k in zip(gt_boxes, gt_labels)]
    return lambda: heads.select_training_samples(list(proposals), targets)
