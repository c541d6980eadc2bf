"""Generalized, distance and complete IoU: of every pair, and as the loss of two boxes in a row, with gradients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import boxes as box
from .arithmetic import atan_

KINDS = ("generalized", "distance", "complete")
_SHAPE_SCALE = 0.40528473456935109  # 4 / pi^2


@dataclass
class _Terms:
    """What two boxes have between them. w, h: sides of the intersection, negative apart. whole, hull: what the IoU and
    the penalty are divided by. turn: the difference of the angles."""

    w: np.ndarray
    h: np.ndarray
    whole: np.ndarray
    iou: np.ndarray
    hull_w: np.ndarray
    hull_h: np.ndarray
    hull: np.ndarray
    penalty: np.ndarray
    dx: np.ndarray
    dy: np.ndarray
    turn: np.ndarray
    shape: np.ndarray
    alpha: np.ndarray


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.where(box.finite(boxes), box.area(boxes), boxes.dtype.type(np.nan))


def _angle(boxes: np.ndarray) -> np.ndarray:
    return atan_((boxes[..., 2] - boxes[..., 0]) / (boxes[..., 3] - boxes[..., 1]))


def _terms(a: np.ndarray, b: np.ndarray, kind: str, eps: float, loss: bool) -> _Terms:
    """a and b broadcast against each other. A loss has eps below the IoU and the hull's area, too, and takes sides of
    the hull as they are; of a pair they are at least 0."""
    number = a.dtype.type
    zero, one, little = number(0), number(1), number(eps)
    w = box.smaller(a[..., 2], b[..., 2]) - box.larger(a[..., 0], b[..., 0])
    h = box.smaller(a[..., 3], b[..., 3]) - box.larger(a[..., 1], b[..., 1])
    overlap = box.larger(zero, w) * box.larger(zero, h)
    union = (_area(a) + _area(b)) - overlap
    whole = union + little if loss else union
    iou = overlap / whole
    hull_w = box.larger(a[..., 2], b[..., 2]) - box.smaller(a[..., 0], b[..., 0])
    hull_h = box.larger(a[..., 3], b[..., 3]) - box.smaller(a[..., 1], b[..., 1])
    if not loss:
        hull_w, hull_h = box.larger(zero, hull_w), box.larger(zero, hull_h)
    dx = (a[..., 0] + a[..., 2]) * number(0.5) - (b[..., 0] + b[..., 2]) * number(0.5)
    dy = (a[..., 1] + a[..., 3]) * number(0.5) - (b[..., 1] + b[..., 3]) * number(0.5)
    if kind == "generalized":
        area = hull_w * hull_h
        hull = area + little if loss else area
        penalty = (area - union) / hull
    else:
        hull = (hull_w * hull_w + hull_h * hull_h) + little
        penalty = (dx * dx + dy * dy) / hull
    turn = _angle(a) - _angle(b) if kind == "complete" else np.zeros_like(iou)
    shape = number(_SHAPE_SCALE) * (turn * turn)
    alpha = shape / (((one - iou) + shape) + little)
    return _Terms(w, h, whole, iou, hull_w, hull_h, hull, penalty, dx, dy, turn, shape, alpha)


def pairwise_iou(boxes1: np.ndarray, boxes2: np.ndarray, *, kind: str, eps: float) -> np.ndarray:
    """[N, M]: the IoU less a penalty. generalized: the share of the hull, the smallest box around both, that neither
    covers. distance: (distance of the centres)^2 / ((diagonal of the hull)^2 + eps). complete: that, and alpha * shape;
    shape = 4 / pi^2 * (atan(w1 / h1) - atan(w2 / h2))^2, alpha = shape / (((1 - iou) + shape) + eps)."""
    with np.errstate(all="ignore"):
        t = _terms(boxes1[:, None, :], boxes2[None, :, :], kind, eps, loss=False)
        score = t.iou - t.penalty
        return score - t.alpha * t.shape if kind == "complete" else score


def iou_loss(boxes1: np.ndarray, boxes2: np.ndarray, *, kind: str, eps: float) -> np.ndarray:
    """[N]: 1 less the IoU of that kind of each row. eps: beside the above, of the union and of the hull's area."""
    with np.errstate(all="ignore"):
        t = _terms(boxes1, boxes2, kind, eps, loss=True)
        one = boxes1.dtype.type(1)
        if kind == "generalized":
            return one - (t.iou - t.penalty)
        loss = (one - t.iou) + t.penalty
        return loss + t.alpha * t.shape if kind == "complete" else loss


def _slopes(a: np.ndarray, b: np.ndarray, kind: str, eps: float, loss: bool) -> list[np.ndarray]:
    """d score / d a by coordinate; a loss's are these, negated.

    As in box_iou_backward: through max and min to the side that was taken, half to each in a tie; nothing through the
    intersection of boxes that only touch. alpha is a constant, as its authors have it.
    """
    number = a.dtype.type
    zero, one = number(0), number(1)
    t = _terms(a, b, kind, eps, loss)
    per_overlap, per_area = (one + t.iou) / t.whole, t.iou / t.whole
    if kind == "generalized":
        per_union = one / t.hull
        per_overlap, per_area = per_overlap - per_union, per_area - per_union
        per_hull = (t.whole / t.hull) / t.hull
        hull_x, hull_y = per_hull * t.hull_h, per_hull * t.hull_w
    else:
        per_hull = t.penalty / t.hull
        hull_x, hull_y = -(per_hull * (t.hull_w + t.hull_w)), -(per_hull * (t.hull_h + t.hull_h))
    along_x = np.where(t.w > 0, per_overlap * box.larger(zero, t.h), zero)
    along_y = np.where(t.h > 0, per_overlap * box.larger(zero, t.w), zero)
    width, height = a[..., 2] - a[..., 0], a[..., 3] - a[..., 1]
    area_x, area_y = per_area * height, per_area * width

    def taken(mine: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.where(mine > other, one, np.where(mine == other, number(0.5), zero))

    found = [
        (area_x - along_x * taken(a[..., 0], b[..., 0])) + hull_x * taken(b[..., 0], a[..., 0]),
        (area_y - along_y * taken(a[..., 1], b[..., 1])) + hull_y * taken(b[..., 1], a[..., 1]),
        (along_x * taken(b[..., 2], a[..., 2]) - area_x) - hull_x * taken(a[..., 2], b[..., 2]),
        (along_y * taken(b[..., 3], a[..., 3]) - area_y) - hull_y * taken(a[..., 3], b[..., 3]),
    ]
    if kind != "generalized":
        centre_x, centre_y = t.dx / t.hull, t.dy / t.hull
        found = [part - (centre_x, centre_y)[k % 2] for k, part in enumerate(found)]
    if kind == "complete":
        bend = (t.alpha * (number(2 * _SHAPE_SCALE) * t.turn)) / (width * width + height * height)
        bend_x, bend_y = bend * height, bend * width
        found = [found[0] + bend_x, found[1] - bend_y, found[2] - bend_x, found[3] + bend_y]
    return found


def pairwise_iou_backward(
    grad: np.ndarray, boxes1: np.ndarray, boxes2: np.ndarray, *, kind: str, eps: float, transposed: bool = False
) -> np.ndarray:
    """Gradient of boxes1 [N, 4], given that of pairwise_iou [N, M], or transposed, [M, N]. Sums as in
    box_iou_backward: lane l of 32 sums columns l, l + 32, ... in turn; lanes are then folded in halves."""
    grad = grad.T if transposed else grad
    with np.errstate(all="ignore"):
        parts = _slopes(boxes1[:, None, :], boxes2[None, :, :], kind, eps, loss=False)
        partial = np.zeros((len(boxes1), 4, 32), boxes1.dtype)
        for j in range(len(boxes2)):
            for k, part in enumerate(parts):
                partial[:, k, j % 32] = partial[:, k, j % 32] + grad[:, j] * part[:, j]
        half = 16
        while half:
            partial[..., :half] = partial[..., :half] + partial[..., half : 2 * half]
            half //= 2
    return partial[..., 0]


def iou_loss_backward(grad: np.ndarray, boxes1: np.ndarray, boxes2: np.ndarray, *, kind: str, eps: float) -> np.ndarray:
    """Gradient of boxes1 [N, 4], given that of iou_loss [N]; boxes2's is this one with the boxes swapped."""
    with np.errstate(all="ignore"):
        return np.stack([-grad * part for part in _slopes(boxes1, boxes2, kind, eps, loss=True)], axis=-1)
