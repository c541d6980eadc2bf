"""Pairwise IoU and greedy non-maximum suppression."""

from __future__ import annotations

import numpy as np

from . import boxes as box
from .top_n import ranked


def box_iou(boxes1: np.ndarray, boxes2: np.ndarray, *, legacy: bool = False) -> np.ndarray:
    """IoU of every pair, [N, M]. Integer boxes are computed in float64 and returned as float32."""
    if np.issubdtype(boxes1.dtype, np.integer):
        wide = box_iou(boxes1.astype(np.float64), boxes2.astype(np.float64), legacy=legacy)
        return wide.astype(np.float32)
    return box.iou(boxes1[:, None, :], boxes2[None, :, :], legacy)


def box_iou_backward(grad: np.ndarray, boxes: np.ndarray, others: np.ndarray, *, legacy: bool = False) -> np.ndarray:
    """Gradient in boxes [N, 4] of box_iou(boxes, others), grad [N, M]; ties of max and min split evenly."""
    half = boxes.dtype.type(0.5)
    mine, theirs = boxes[:, None, :], others[None, :, :]
    with np.errstate(all="ignore"):
        overlap = box.intersection(mine, theirs, legacy)
        union = (box.area(mine, legacy) + box.area(theirs, legacy)) - overlap
        in_overlap = grad * (union + overlap) / (union * union)
        in_area = -grad * overlap / (union * union)
        result = np.zeros_like(boxes)
        for axis in (0, 1):
            low, high, other = axis, axis + 2, 1 - axis
            across = box.side(mine[..., other], mine[..., other + 2], legacy)
            shared = [
                box.side(
                    box.larger(mine[..., k], theirs[..., k]), box.smaller(mine[..., k + 2], theirs[..., k + 2]), legacy
                )
                for k in (axis, other)
            ]
            through = np.where(shared[0] >= 0, in_overlap * box.larger(np.zeros_like(shared[1]), shared[1]), 0)
            low_share = np.where(mine[..., low] == theirs[..., low], half, mine[..., low] > theirs[..., low])
            high_share = np.where(mine[..., high] == theirs[..., high], half, mine[..., high] < theirs[..., high])
            result[:, low] = (-(in_area * across) - through * low_share).sum(axis=1)
            result[:, high] = ((in_area * across) + through * high_share).sum(axis=1)
        return result


def greedy(
    boxes: np.ndarray,
    order: np.ndarray,
    iou_threshold: float,
    class_ids: np.ndarray | None = None,
    legacy: bool = False,
) -> np.ndarray:
    """Rows of boxes [N, 4] kept when visited in `order`.

    A kept box drops the later ones of its class whose IoU with it is above the threshold. IoU is compared
    with the threshold rounded to the boxes' precision; NaN suppresses nothing.
    """
    limit = boxes.dtype.type(iou_threshold)
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        suppressed = box.iou(boxes[best], boxes[order], legacy) > limit
        if class_ids is not None:
            suppressed &= class_ids[order] == class_ids[best]
        order = order[~suppressed]
    return np.asarray(kept, np.int64)


def batched_nms(boxes: np.ndarray, scores: np.ndarray, idxs: np.ndarray | None, iou_threshold: float) -> np.ndarray:
    """NMS within each class of idxs [N]; kept indices int64 by descending score over all classes."""
    order = ranked(scores)
    return greedy(boxes, order[box.finite(boxes)[order]], iou_threshold, idxs)


def nms(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Kept rows of boxes [N, 4], int64, by descending score. NaN scores and non-finite boxes are never kept."""
    return batched_nms(boxes, scores, None, iou_threshold)


def nms_padded(
    boxes: np.ndarray,
    scores: np.ndarray,
    iou_threshold: float,
    max_output: int,
    *,
    class_ids: np.ndarray | None = None,
    counts: np.ndarray | None = None,
    legacy: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The first max_output kept rows of each image: keep int64 [B, max_output], num_keep int64 [B]."""
    batch, rows = scores.shape
    keep = np.full((batch, max_output), -1, np.int64)
    num_keep = np.zeros(batch, np.int64)
    for image in range(batch):
        count = rows if counts is None else int(counts[image])
        order = ranked(scores[image, :count])
        order = order[box.finite(boxes[image])[order]]
        classes = None if class_ids is None else class_ids[image]
        kept = greedy(boxes[image], order, iou_threshold, classes, legacy)[:max_output]
        keep[image, : len(kept)] = kept
        num_keep[image] = len(kept)
    return keep, num_keep
