"""Pairwise IoU and greedy non-maximum suppression."""

from __future__ import annotations

import numpy as np

from . import boxes as box
from .arithmetic import exp_
from .top_n import ranked


def box_iou(boxes1: np.ndarray, boxes2: np.ndarray, *, legacy: bool = False) -> np.ndarray:
    """IoU of every pair, [N, M]. Integer boxes are computed in float64 and returned as float32."""
    if np.issubdtype(boxes1.dtype, np.integer):
        wide = box_iou(boxes1.astype(np.float64), boxes2.astype(np.float64), legacy=legacy)
        return wide.astype(np.float32)
    return box.iou(boxes1[:, None, :], boxes2[None, :, :], legacy)


def box_iou_backward(
    grad: np.ndarray, boxes1: np.ndarray, boxes2: np.ndarray, *, transposed: bool = False, legacy: bool = False
) -> np.ndarray:
    """Gradient of boxes1 [N, 4], given that of the IoU [N, M], or transposed, [M, N].

    Through max and min it goes to the side that was taken, half to each in a tie; boxes that only touch pass
    nothing through the intersection. Lane l of 32 sums columns l, l + 32, ... in turn; lanes are then
    folded in halves.
    """
    grad = grad.T if transposed else grad
    dtype = boxes1.dtype.type
    with np.errstate(all="ignore"):
        a, b = boxes1[:, None, :], boxes2[None, :, :]
        w = box.side(box.larger(a[..., 0], b[..., 0]), box.smaller(a[..., 2], b[..., 2]), legacy)
        h = box.side(box.larger(a[..., 1], b[..., 1]), box.smaller(a[..., 3], b[..., 3]), legacy)
        zero = dtype(0)
        overlap = box.larger(zero, w) * box.larger(zero, h)
        union = (box.area(a, legacy) + box.area(b, legacy)) - overlap
        square = union * union
        per_overlap, per_area = (union + overlap) / square, overlap / square
        along_x = np.where(w > 0, per_overlap * box.larger(zero, h), zero)
        along_y = np.where(h > 0, per_overlap * box.larger(zero, w), zero)
        height = per_area * box.side(a[..., 1], a[..., 3], legacy)
        width = per_area * box.side(a[..., 0], a[..., 2], legacy)

        def taken(mine: np.ndarray, other: np.ndarray) -> np.ndarray:
            return np.where(mine > other, dtype(1), np.where(mine == other, dtype(0.5), zero))

        parts = (
            height - along_x * taken(a[..., 0], b[..., 0]),
            width - along_y * taken(a[..., 1], b[..., 1]),
            along_x * taken(b[..., 2], a[..., 2]) - height,
            along_y * taken(b[..., 3], a[..., 3]) - width,
        )
        partial = np.zeros((len(boxes1), 4, 32), boxes1.dtype)
        for j in range(len(boxes2)):
            for k, part in enumerate(parts):
                partial[:, k, j % 32] = partial[:, k, j % 32] + grad[:, j] * part[:, j]
        half = 16
        while half:
            partial[..., :half] = partial[..., :half] + partial[..., half : 2 * half]
            half //= 2
    return partial[..., 0]


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
    class_ids: np.ndarray | None = None,
    counts: np.ndarray | None = None,
    *,
    iou_threshold: float,
    max_output: int,
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


def soft_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    counts: np.ndarray | None = None,
    *,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
    max_output: int,
    method: str,
    legacy: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first max_output rows that soft-NMS keeps of each image, their scores when kept, and how many they are.

    The row with the highest score as it is now is kept, the first of equals; the others' scores are then multiplied by
    a weight of their IoU with it. A row takes part while its score is above score_threshold.
    """
    batch, rows = scores.shape
    number = boxes.dtype.type
    keep = np.full((batch, max_output), -1, np.int64)
    kept_scores = np.zeros((batch, max_output), boxes.dtype)
    num_keep = np.zeros(batch, np.int64)
    for image in range(batch):
        corners = boxes[image]
        count = rows if counts is None else int(counts[image])
        current = scores[image].copy()
        left = np.flatnonzero(box.finite(corners[:count]) & (current[:count] > number(score_threshold)))
        while len(left) and num_keep[image] < max_output:
            best = left[np.argmax(current[left])]
            keep[image, num_keep[image]], kept_scores[image, num_keep[image]] = best, current[best]
            num_keep[image] += 1
            left = left[left != best]
            iou = box.iou(corners[best], corners[left], legacy)
            with np.errstate(all="ignore"):
                if method == "gaussian":
                    weight = np.where(iou > 0, exp_(-(iou * iou) / number(sigma)), number(1))
                else:
                    lowered = number(1) - iou if method == "linear" else np.zeros_like(iou)
                    weight = np.where(iou > number(iou_threshold), lowered, number(1))
                current[left] = current[left] * weight
                left = left[current[left] > number(score_threshold)]
    return keep, kept_scores, num_keep
