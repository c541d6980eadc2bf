"""torchvision's steps on our workloads: its own classes and functions, called as its detectors call them.

Anchors are given to it, ready: making them is not counted against it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision.ops as tv
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from bench.case import Call, Competitor
from bench.workloads import THRESHOLD, Scene


class Rpn:
    """A RegionProposalNetwork without its convolutions, on the outputs of a batch."""

    def __init__(
        self,
        anchors: Tensor,
        logits: Tensor,
        deltas: Tensor,
        sizes: list[tuple[int, int]],
        level_sizes: list[int],
        *,
        before: int = 2000,
        after: int = 2000,
        min_size: float = 1e-3,
        threshold: float = THRESHOLD,
        gt_boxes: Tensor | None = None,
    ) -> None:
        nothing = torch.nn.Identity()
        top_n = [{"training": n, "testing": n} for n in (before, after)]
        self.rpn = RegionProposalNetwork(nothing, nothing, 0.7, 0.3, 256, 0.5, *top_n, threshold).eval()
        self.rpn.min_size = min_size
        self.B, self.sizes, self.level_sizes = len(logits), sizes, level_sizes
        self.anchors = [anchors] * self.B
        self.logits, self.deltas = logits.reshape(-1, 1), deltas.reshape(-1, 4)
        self.targets = [{"boxes": boxes} for boxes in gt_boxes] if gt_boxes is not None else []

    @classmethod
    def of(cls, scene: Scene, before: int = 2000, after: int = 2000, min_size: float = 1e-3) -> Rpn:
        """On one of the benchmark's scenes."""
        sizes = [(scene.shape.height, scene.shape.width)] * len(scene.logits)
        return cls(
            scene.anchors,
            scene.logits,
            scene.deltas,
            sizes,
            scene.shape.level_sizes,
            before=before,
            after=after,
            min_size=min_size,
            gt_boxes=scene.gt_boxes,
        )

    def decode(self) -> Tensor:
        """box_coder.decode, [B, A, 4]."""
        return self.rpn.box_coder.decode(self.deltas, self.anchors).view(self.B, -1, 4)

    def decode_and_clip(self) -> Tensor:
        """The same, clipped to the image."""
        return tv.clip_boxes_to_image(self.decode(), self.sizes[0])

    def proposals(self) -> Any:
        """box_coder.decode + filter_proposals."""
        return self.rpn.filter_proposals(self.decode(), self.logits, self.sizes, self.level_sizes)

    def staged_proposals(self, stage: Callable[[str], Any]) -> Any:
        """The same calls in the same order, under a stopwatch."""
        with stage("decode"):
            boxes = self.decode()
        with stage("top-N"):
            scores = self.logits.reshape(self.B, -1)
            levels = torch.cat([torch.full((n,), i, device=boxes.device) for i, n in enumerate(self.level_sizes)])
            best = self.rpn._get_top_n_idx(scores, self.level_sizes)
            batch = torch.arange(self.B, device=boxes.device)[:, None]
            scores, levels, boxes = scores[batch, best].sigmoid(), levels[best], boxes[batch, best]
        found = []
        for b, size in enumerate(self.sizes):
            with stage("decode"):
                clipped = tv.clip_boxes_to_image(boxes[b], size)
                keep = tv.remove_small_boxes(clipped, self.rpn.min_size)
                clipped, score, level = clipped[keep], scores[b][keep], levels[b][keep]
            with stage("NMS"):
                keep = tv.batched_nms(clipped, score, level, self.rpn.nms_thresh)
            with stage("merge"):
                keep = keep[: self.rpn.post_nms_top_n()]
                found.append((clipped[keep], score[keep]))
        return found

    def assign(self) -> Any:
        """assign_targets_to_anchors."""
        return self.rpn.assign_targets_to_anchors(self.anchors, self.targets)

    def targets_of_a_sample(self) -> Any:
        """assign_targets_to_anchors + fg_bg_sampler + encode."""
        labels, matched = self.assign()
        return self.rpn.fg_bg_sampler(labels), self.rpn.box_coder.encode(matched, self.anchors)


def nms_to_depth(boxes: Tensor, scores: Tensor, depth: int) -> Competitor:
    """torchvision's nms on the `depth` best boxes only, already cut out and sorted: early exit set aside, kernel
    against kernel.
    """
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
