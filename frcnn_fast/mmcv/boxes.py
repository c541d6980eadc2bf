"""NMS, its relatives, and overlaps. Signatures are those of mmcv's compiled functions."""

from __future__ import annotations

import torch
from torch import Tensor

from frcnn_fast import ops
from frcnn_fast.mmcv.numbers import c_float, just_below

SOFT_METHODS = ("hard", "linear", "gaussian")  # by mmcv's numbers


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Rows kept, by descending score. offset 1: inclusive pixels."""
    if boxes.numel() == 0:
        return torch.empty(0, dtype=torch.int64, device=boxes.device)
    threshold, scores = c_float(iou_threshold), scores.to(boxes.dtype)
    if not offset:
        return ops.nms(boxes, scores, threshold)
    keep, num_keep = ops.nms_padded(boxes[None], scores[None], threshold, len(boxes), legacy=True)
    return keep[0, : int(num_keep)]


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Rows kept, in the order in which they were; their boxes and lowered scores go into the first rows of dets [N, 5].

    A score takes part while it is at least min_score; the first box stays whatever its score.
    """
    if boxes.numel() == 0:
        return torch.empty(0, dtype=torch.int64, device=boxes.device)
    scores, floor = scores.to(boxes.dtype), c_float(min_score)
    keep, kept_scores, num_keep = ops.soft_nms(
        boxes[None],
        scores[None],
        len(boxes),
        method=SOFT_METHODS[method],
        iou_threshold=just_below(iou_threshold),
        sigma=c_float(sigma),
        score_threshold=just_below(floor),
        legacy=bool(offset),
    )
    keep, kept_scores = keep[0, : int(num_keep)], kept_scores[0, : int(num_keep)]
    if not len(keep):
        keep = scores.argmax()[None]
        kept_scores = scores[keep]
    if floor <= 0 and len(keep) < len(boxes):
        # Scores that were lowered to 0, or began there, are not below min_score.
        others = torch.ones_like(scores, dtype=torch.bool)
        others[keep] = False
        keep = torch.cat([keep, others.nonzero()[:, 0]])
        kept_scores = torch.cat([kept_scores, kept_scores.new_zeros(len(boxes) - len(kept_scores))])
    dets[: len(keep), :4] = boxes[keep]
    dets[: len(keep), 4] = kept_scores
    return keep


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """For each box that NMS of dets [N, 5] keeps: its row, then those that it suppressed, all by descending score."""
    boxes, scores = dets[:, :4].contiguous(), dets[:, 4].contiguous()
    threshold = just_below(iou_threshold)
    keep = ops.nms(boxes, scores, threshold)
    groups = [[row] for row in keep.tolist()]
    if not groups:
        return groups
    # The first kept box that overlaps a row enough has suppressed it.
    overlaps = ops.box_iou(boxes, boxes[keep]) > threshold
    overlaps[keep] = False
    suppressor = overlaps.byte().argmax(1).tolist()
    order = scores.argsort(descending=True, stable=True)
    for row in order[overlaps.any(1)[order]].tolist():
        groups[suppressor[row]].append(row)
    return groups


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Into ious: [N, M], or [N] of pairs (aligned). mode 0: over the union; 1: over the first box's own area."""
    if mode == 0 and not aligned:
        ious.copy_(ops.box_iou(bboxes1, bboxes2, legacy=bool(offset)))
        return
    first = bboxes1 if aligned else bboxes1[:, None]
    corner = torch.max(first[..., :2], bboxes2[..., :2])
    sides = (torch.min(first[..., 2:], bboxes2[..., 2:]) - corner + offset).clamp(min=0)
    inter, whole = sides.prod(-1), _area(first, offset)
    if mode == 0:
        whole = whole + _area(bboxes2, offset) - inter
    ious.copy_(inter / whole)


def _area(boxes: Tensor, offset: int) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2] + offset).prod(-1)
