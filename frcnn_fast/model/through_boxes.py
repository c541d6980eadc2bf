"""Gradients through the proposals' coordinates: non-approximate joint training (Ren et al. §3.2).

The head's losses depend on the proposals twice: the features are pooled inside them, and the regression targets are
measured from them. Which boxes become proposals, and which of those are sampled, is a choice and has no derivative; the
corners of the chosen ones are functions of the RPN's deltas.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from frcnn_fast import ops
from frcnn_fast.model.rpn import RpnOutput


@dataclasses.dataclass(frozen=True)
class ThroughBoxes:
    """Makes of sampled regions, which are constants, the same regions as functions of the RPN's deltas.

    Args:
        rpn: whose deltas get gradients.
        proposals: what was proposed from them; the selection, held fixed.
        image_sizes: [B, 2], those that the proposals were clipped to.
        gt_boxes: [B, G, 4].
        weights: of the head's regression targets.
    """

    rpn: RpnOutput
    proposals: ops.Proposals
    image_sizes: Tensor
    gt_boxes: Tensor
    weights: Sequence[float]

    def __call__(self, sampled: ops.RoiTargets) -> tuple[Tensor, Tensor]:
        """Regions [B, S, 4] and their targets [B, S, 4], equal to those sampled but for the targets' last bits."""
        rois = self.rois(sampled.rois)
        return rois, self.targets(rois, sampled)

    def rois(self, sampled: Tensor) -> Tensor:
        """The sampled regions, decoded anew where they are proposals; the ground truth among them stays constant."""
        # A proposal is found again by its corners: NMS has left no other box in the same place.
        boxes, real = self.proposals.boxes, self.proposals.indices >= 0
        same = (sampled[:, :, None] == boxes[:, None]).all(-1) & real[:, None]
        proposed = same.any(-1)
        anchor = self.proposals.indices.gather(1, same.to(torch.uint8).argmax(-1)).where(proposed, -1)
        deltas = ops.gather_anchors(self.rpn.deltas, anchor, 4)
        anchors = self.rpn.anchors.at(anchor.clamp(min=0))
        decoded, _ = ops.decode_clip(deltas, anchors, self.image_sizes)
        return torch.where(proposed[..., None], decoded, sampled)

    def targets(self, rois: Tensor, sampled: ops.RoiTargets) -> Tensor:
        """The regression targets of `ops.encode`, with their derivative; 0 where there is no object."""
        is_object = (sampled.labels > 0)[..., None]
        row = sampled.matched.clamp(min=0).long()[..., None].expand(-1, -1, 4)
        gt_boxes = self.gt_boxes.to(rois.dtype).gather(1, row) if self.gt_boxes.shape[1] else torch.zeros_like(rois)
        # Elsewhere a box of one pixel stands in, so that no logarithm of nothing spoils the gradient.
        (centre, side), (centre_of, side_of) = (_centre_and_side(b, is_object) for b in (gt_boxes, rois))
        shift, scale = (centre - centre_of) / side_of, (side / side_of).log()
        # By number, not by a tensor of them: that would have to be brought onto the device.
        parts = (*shift.unbind(-1), *scale.unbind(-1))
        return torch.stack([part * weight for part, weight in zip(parts, self.weights, strict=True)], -1)


def _centre_and_side(boxes: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    low, high = torch.where(real, boxes[..., :2], 0.0), torch.where(real, boxes[..., 2:], 1.0)
    return (low + high) / 2, high - low
