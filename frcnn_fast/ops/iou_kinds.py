"""Generalized, distance and complete IoU: of every pair of boxes, and as a loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from frcnn_fast import reference
from frcnn_fast.ops import _checks
from frcnn_fast.ops._arrays import accepts_arrays
from frcnn_fast.ops._operator import Operator, contiguous_saved

EPS = 1e-7
REDUCTIONS = ("none", "mean", "sum")


def _setup(ctx: Any, a: Any, output: Tensor) -> None:
    ctx.kind, ctx.eps = a.kind, a.eps
    ctx.wanted = (a.boxes1.requires_grad, a.boxes2.requires_grad)
    ctx.save_for_backward(a.boxes1, a.boxes2)


def _pairwise_gradient(ctx: Any, grad: Tensor) -> dict[str, Tensor]:
    boxes1, boxes2 = contiguous_saved(ctx)
    grad, found = grad.contiguous(), {}
    if ctx.wanted[0]:
        found["boxes1"] = _pairwise_iou_backward(grad, boxes1, boxes2, ctx.kind, ctx.eps, False)
    if ctx.wanted[1]:
        found["boxes2"] = _pairwise_iou_backward(grad, boxes2, boxes1, ctx.kind, ctx.eps, True)
    return found


def _loss_gradient(ctx: Any, grad: Tensor) -> dict[str, Tensor]:
    boxes1, boxes2 = contiguous_saved(ctx)
    grad, found = grad.contiguous(), {}
    if ctx.wanted[0]:
        found["boxes1"] = _iou_loss_backward(grad, boxes1, boxes2, ctx.kind, ctx.eps)
    if ctx.wanted[1]:
        found["boxes2"] = _iou_loss_backward(grad, boxes2, boxes1, ctx.kind, ctx.eps)
    return found


_pairwise_iou = Operator(
    "pairwise_iou(Tensor boxes1, Tensor boxes2, str kind, float eps) -> Tensor iou",
    outputs=lambda a: (
        a.boxes1.new_empty(a.boxes1.shape[0], a.boxes2.shape[0], dtype=_checks.compute_dtype(a.boxes1)),
    ),
    oracle=reference.pairwise_iou,
    triton="nms.iou_kinds_triton:pairwise_iou",
    setup_context=_setup,
    backward=_pairwise_gradient,
)

# The gradient of boxes1; grad is [boxes1, boxes2], or transposed.
_pairwise_iou_backward = Operator(
    "pairwise_iou_backward(Tensor grad, Tensor boxes1, Tensor boxes2, str kind, float eps, bool transposed) "
    "-> Tensor grad_boxes",
    outputs=lambda a: (torch.empty_like(a.boxes1),),
    oracle=reference.pairwise_iou_backward,
    triton="nms.iou_kinds_triton:pairwise_iou_backward",
)

_iou_loss = Operator(
    "iou_loss(Tensor boxes1, Tensor boxes2, str kind, float eps) -> Tensor loss",
    outputs=lambda a: (a.boxes1.new_empty(a.boxes1.shape[0], dtype=_checks.compute_dtype(a.boxes1)),),
    oracle=reference.iou_loss,
    triton="nms.iou_kinds_triton:iou_loss",
    setup_context=_setup,
    backward=_loss_gradient,
)

# The gradient of boxes1.
_iou_loss_backward = Operator(
    "iou_loss_backward(Tensor grad, Tensor boxes1, Tensor boxes2, str kind, float eps) -> Tensor grad_boxes",
    outputs=lambda a: (torch.empty_like(a.boxes1),),
    oracle=reference.iou_loss_backward,
    triton="nms.iou_kinds_triton:iou_loss_backward",
)


def _pairwise(kind: str, boxes1: Tensor, boxes2: Tensor, eps: float, backend: str | None) -> Tensor:
    eps = _checks.check_threshold("eps", eps)
    if isinstance(boxes1, Tensor) and boxes1.dtype in _checks.INTEGERS:
        _checks.check_int("boxes2", boxes2, "[M, 4]", (len(boxes2), 4), boxes1.dtype)
        return _pairwise(kind, boxes1.double(), boxes2.double(), eps, backend).float()
    _checks.check_float("boxes1", boxes1, "[N, 4]", 2, 4)
    _checks.check_float("boxes2", boxes2, "[M, 4]", 2, 4)
    _checks.check_same("boxes2", boxes2, "boxes1", boxes1)
    return _pairwise_iou(boxes1.contiguous(), boxes2.contiguous(), kind, eps, backend=backend)


@accepts_arrays
def generalized_box_iou(boxes1: Tensor, boxes2: Tensor, *, backend: str | None = None) -> Tensor:
    """Generalized IoU of every pair, [N, M], in [-1, 1]: the IoU less the share of the hull that neither box covers.

    boxes1 [N, 4] and boxes2 [M, 4] as in `box_iou`, and so are the result's dtype, NaN, errors, determinism and cost.

    giou = iou - (hull - union) / hull; the hull is the smallest box around both, of sides of at least 0. Two points in
    one place give NaN (0/0). No boxes: an empty matrix. Differentiable in both boxes once, ties of max and min split
    evenly; boxes that only touch pass nothing through the intersection. Forward and backward make no matrix but the
    result. torchvision's signature.

    Rezatofighi et al., Generalized Intersection over Union (2019).
    """
    return _pairwise("generalized", boxes1, boxes2, 0.0, backend)


@accepts_arrays
def distance_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = EPS, *, backend: str | None = None) -> Tensor:
    """Distance IoU of every pair, [N, M]: the IoU less how far apart the centres are, measured by the hull.

    diou = iou - d^2 / (c^2 + eps): d from centre to centre ((x1 + x2) / 2, (y1 + y2) / 2), c the diagonal of the hull.
    All else as in `generalized_box_iou`. ValueError: eps below 0, too.

    Zheng et al., Distance-IoU Loss (2020).
    """
    return _pairwise("distance", boxes1, boxes2, eps, backend)


@accepts_arrays
def complete_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = EPS, *, backend: str | None = None) -> Tensor:
    """Complete IoU of every pair, [N, M]: the distance IoU, less a penalty for shapes that differ.

    ciou = diou - alpha * v, v = 4 / pi^2 * (atan(w1 / h1) - atan(w2 / h2))^2, alpha = v / (((1 - iou) + v) + eps); a
    box without width and height has no shape: NaN. The gradient takes alpha for a constant, as the authors do. atan is
    one polynomial on every backend, within 2 units in the last place. All else as in `distance_box_iou`.

    Zheng et al., Distance-IoU Loss (2020).
    """
    return _pairwise("complete", boxes1, boxes2, eps, backend)


def _loss(kind: str, boxes1: Tensor, boxes2: Tensor, reduction: str, eps: float, backend: str | None) -> Tensor:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    eps = _checks.check_threshold("eps", eps)
    _checks.check_float("boxes1", boxes1, "[N, 4]", 2, 4)
    _checks.check_float("boxes2", boxes2, "[N, 4]", 2, 4)
    _checks.check_size("boxes2", boxes2, "[N, 4]", boxes1.shape)
    _checks.check_same("boxes2", boxes2, "boxes1", boxes1)
    loss = _iou_loss(boxes1.contiguous(), boxes2.contiguous(), kind, eps, backend=backend)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / max(loss.shape[0], 1)


@accepts_arrays
def generalized_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = EPS, *, backend: str | None = None
) -> Tensor:
    """1 - generalized IoU of the two boxes in each row: [N], or their sum or mean, 0 of no boxes.

    boxes1 and boxes2 [N, 4] hold (x1, y1, x2, y2), in any unit, of one floating dtype. The result is float64 for
    float64 boxes and float32 for all others; the gradients have the boxes' dtype. eps keeps both divisors from 0, and
    adds to the loss of boxes that are not much larger than it:

        iou = inter / (union + eps);  loss = 1 - (iou - (hull - union) / (hull + eps))

    Every operation is rounded by itself. A box with a non-finite coordinate gives NaN; two points in one place give 1.
    The sides of the hull are what they are, also below 0 (of two inverted boxes). Differentiable in both boxes once;
    ties of max and min split evenly, and boxes that only touch pass nothing through the intersection. reduction:
    "none", "sum" or "mean". The losses and the gradients are bitwise repeatable and the same bits on every backend; a
    sum or a mean is torch's own. O(N) time, one pass forward and one for each gradient that is asked for. torchvision's
    signature.

    TypeError: not tensors, other dtypes, dtypes that differ. ValueError: shapes other than [N, 4] or that differ,
    different devices, another reduction, eps below 0.

    Rezatofighi et al., Generalized Intersection over Union (2019).
    """
    return _loss("generalized", boxes1, boxes2, reduction, eps, backend)


@accepts_arrays
def distance_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = EPS, *, backend: str | None = None
) -> Tensor:
    """1 - distance IoU of the two boxes in each row: [N], or their sum or mean, 0 of no boxes.

        iou = inter / (union + eps);  loss = (1 - iou) + d^2 / (c^2 + eps)

    d and c as in `distance_box_iou`, all else as in `generalized_box_iou_loss`.

    Zheng et al., Distance-IoU Loss (2020).
    """
    return _loss("distance", boxes1, boxes2, reduction, eps, backend)


@accepts_arrays
def complete_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = EPS, *, backend: str | None = None
) -> Tensor:
    """1 - complete IoU of the two boxes in each row: [N], or their sum or mean, 0 of no boxes.

    The distance loss, with this eps, and alpha * v, both as in `complete_box_iou`; a box without width and height gives
    NaN. All else as in `generalized_box_iou_loss`. (torchvision gives another eps than 1e-7 to alpha alone.)

    Zheng et al., Distance-IoU Loss (2020).
    """
    return _loss("complete", boxes1, boxes2, reduction, eps, backend)
