"""iou_kinds.h and iou_kinds.cu in Triton: generalized, distance and complete IoU of every pair, as a loss of two boxes
in a row, and the gradients of one side."""

import triton
import triton.language as tl
from torch import Tensor

from ..common.box_triton import load_box, store_box
from ..common.launch_triton import blocks_for, double_bits, launch
from ..common.mutant_triton import mutant
from ..common.numeric_triton import atan_, compute_type, divide, folded, maximum, minimum, narrow, scalar
from .box_iou_triton import finite_area, share_of_larger

PAIRS = 1024  # in a program's tile
COLUMNS = 128  # in a tile, at most
LANES = 32  # partial sums of a row's gradient
ROWS = 8  # per program of the gradient
LOSS_ROWS = 64 if triton.knobs.runtime.interpret else 256  # small cases have several programs


@triton.jit
def angle(x1, y1, x2, y2, KIND: tl.constexpr):
    """Of complete IoU alone."""
    if KIND == "complete":
        return atan_(divide(x2 - x1, y2 - y1))
    else:
        return x1


@triton.jit
def union_and_iou(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, eps, LOSS: tl.constexpr):
    """(union; what the overlap is divided by, and that; width and height of the overlap, negative apart)."""
    w, h = minimum(ax2, bx2) - maximum(ax1, bx1), minimum(ay2, by2) - maximum(ay1, by1)
    overlap = tl.where(w < 0.0, 0.0, w) * tl.where(h < 0.0, 0.0, h)
    joined = (finite_area(ax1, ay1, ax2, ay2, False) + finite_area(bx1, by1, bx2, by2, False)) - overlap
    whole = joined + eps if mutant("iou_kind_eps") != LOSS else joined
    return joined, whole, divide(overlap, whole), w, h


@triton.jit
def penalty_of(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, joined, eps, KIND: tl.constexpr, LOSS: tl.constexpr):
    """(penalty, and what it is divided by; width and height of the hull; of the centres' distance)."""
    hull_w, hull_h = maximum(ax2, bx2) - minimum(ax1, bx1), maximum(ay2, by2) - minimum(ay1, by1)
    if mutant("iou_kind_inverted") == LOSS:  # below 0 only where both boxes are inverted
        hull_w, hull_h = maximum(tl.zeros_like(hull_w), hull_w), maximum(tl.zeros_like(hull_h), hull_h)
    dx, dy = (ax1 + ax2) * 0.5 - (bx1 + bx2) * 0.5, (ay1 + ay2) * 0.5 - (by1 + by2) * 0.5
    if KIND == "generalized":
        size = hull_w * hull_h
        hull = size + eps if mutant("iou_kind_hull_eps") != LOSS else size
        penalty = divide(size - joined, hull)
    else:
        hull = (hull_w * hull_w + hull_h * hull_h) + eps
        penalty = divide(dx * dx + dy * dy, hull)
    return penalty, hull, hull_w, hull_h, dx, dy


@triton.jit
def shape_of(angle_a, angle_b, iou, eps):
    """(difference of the angles, what it costs, and the weight of that)."""
    turn = angle_a - angle_b
    shape = (turn * turn) * 0.40528473456935109  # 4 / pi^2
    return turn, shape, divide(shape, ((1.0 - iou) + shape) + eps)


@triton.jit
def iou_score(
    ax1, ay1, ax2, ay2, angle_a, bx1, by1, bx2, by2, angle_b, eps, KIND: tl.constexpr, LOSS: tl.constexpr
):  # fmt: skip
    """The IoU of that kind, or its loss."""
    joined, _, iou, _, _ = union_and_iou(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, eps, LOSS)
    penalty, _, _, _, _, _ = penalty_of(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, joined, eps, KIND, LOSS)
    if not LOSS:
        score = iou - penalty
    elif KIND == "generalized":
        score = 1.0 - (iou - penalty)
    else:
        score = (1.0 - iou) + penalty
    if KIND == "complete":
        _, shape, alpha = shape_of(angle_a, angle_b, iou, eps)
        score = score + alpha * shape if LOSS else score - alpha * shape
    return score


@triton.jit
def iou_slopes(
    ax1, ay1, ax2, ay2, angle_a, bx1, by1, bx2, by2, angle_b, eps, KIND: tl.constexpr, LOSS: tl.constexpr
):  # fmt: skip
    """d (IoU of that kind) / d a, four coordinates; of a loss, with its eps, the negative of the loss' own. Boxes that
    only touch pass nothing through the intersection; alpha is a constant."""
    joined, whole, iou, w, h = union_and_iou(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, eps, LOSS)
    penalty, hull, hull_w, hull_h, dx, dy = penalty_of(
        ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, joined, eps, KIND, LOSS
    )  # fmt: skip
    # iou = o / W with W = A + B - o + eps : d iou = do * (1 + iou) / W - dA * iou / W
    per_overlap, per_area = divide(1.0 + iou, whole), divide(iou, whole)
    if KIND == "generalized":
        # The penalty is 1 - W / H : its derivative is dH* W / H ^ 2 - (dA - do) / H.
        per_union, per_hull = divide(tl.zeros_like(hull) + 1.0, hull), divide(divide(whole, hull), hull)
        per_overlap, per_area = per_overlap - per_union, per_area - per_union
        hull_x, hull_y = per_hull * hull_h, per_hull * hull_w
    else:
        per_hull = divide(penalty, hull)
        hull_x, hull_y = -(per_hull * (hull_w + hull_w)), -(per_hull * (hull_h + hull_h))
    meets_x = w > 0.0 if not mutant("iou_kind_touch_x") else w >= 0.0
    meets_y = h > 0.0 if not mutant("iou_kind_touch_y") else h >= 0.0
    along_x = tl.where(meets_x, per_overlap * tl.where(h < 0.0, 0.0, h), 0.0)
    along_y = tl.where(meets_y, per_overlap * tl.where(w < 0.0, 0.0, w), 0.0)
    width, height = ax2 - ax1, ay2 - ay1
    area_x, area_y = per_area * height, per_area * width
    g1 = (area_x - along_x * share_of_larger(ax1, bx1)) + hull_x * share_of_larger(bx1, ax1)
    g2 = (area_y - along_y * share_of_larger(ay1, by1)) + hull_y * share_of_larger(by1, ay1)
    g3 = (along_x * share_of_larger(bx2, ax2) - area_x) - hull_x * share_of_larger(ax2, bx2)
    g4 = (along_y * share_of_larger(by2, ay2) - area_y) - hull_y * share_of_larger(ay2, by2)
    if KIND != "generalized":
        centre_x, centre_y = divide(dx, hull), divide(dy, hull)
        g1, g2, g3, g4 = g1 - centre_x, g2 - centre_y, g3 - centre_x, g4 - centre_y
    if KIND == "complete":  # d atan(w / h) = (h dw - w dh) / (w^2 + h^2)
        turn, _, alpha = shape_of(angle_a, angle_b, iou, eps)
        bend = divide(alpha * (turn * 0.81056946913870218), width * width + height * height)
        bend_x, bend_y = bend * height, bend * width
        g1, g2, g3, g4 = g1 + bend_x, g2 - bend_y, g3 - bend_x, g4 + bend_y
    return g1, g2, g3, g4


@triton.jit(do_not_specialize=["N", "M", "across", "eps"])
def pairwise_iou_kernel(
    boxes1, N, boxes2, M, across, eps, out, KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """A program owns a tile of the matrix: ROWS x COLUMNS. Grid: tiles across x tiles down, in one dimension."""
    eps = scalar(eps, out.dtype.element_ty)
    tile = tl.program_id(0)
    i = (tile // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    j = (tile % across).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    ax1, ay1, ax2, ay2 = load_box(boxes1, i[:, None], (i < N)[:, None])
    bx1, by1, bx2, by2 = load_box(boxes2, j[None, :], (j < M)[None, :])
    angle_a, angle_b = angle(ax1, ay1, ax2, ay2, KIND), angle(bx1, by1, bx2, by2, KIND)
    score = iou_score(ax1, ay1, ax2, ay2, angle_a, bx1, by1, bx2, by2, angle_b, eps, KIND, False)
    tl.store(out + (i[:, None] * M + j[None, :]), score, mask=(i < N)[:, None] & (j < M)[None, :])


def pairwise_iou(boxes1: Tensor, boxes2: Tensor, kind: str, eps: float, iou: Tensor) -> None:
    N, M = iou.shape
    if N * M:
        columns = min(COLUMNS, max(16, triton.next_power_of_2(M)))
        rows = PAIRS // columns
        across = blocks_for(M, columns)
        launch(
            pairwise_iou_kernel, (across * blocks_for(N, rows),), boxes1, N, boxes2, M, across, double_bits(eps), iou,
            like=iou, KIND=kind, ROWS=rows, COLUMNS=columns,
        )  # fmt: skip


@triton.jit(do_not_specialize=["row_stride", "column_stride", "N", "M", "eps"])
def pairwise_iou_backward_kernel(
    grad, row_stride, column_stride, boxes1, N, boxes2, M, eps, grad_boxes1,
    KIND: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """A program owns ROWS rows; lane l of a row sums columns l, l + LANES, ..., then the lanes are folded in halves."""
    T: tl.constexpr = boxes1.dtype.element_ty
    U: tl.constexpr = compute_type(T)
    eps = scalar(eps, U)
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    ax1, ay1, ax2, ay2 = load_box(boxes1, i[:, None], (i < N)[:, None])
    angle_a = angle(ax1, ay1, ax2, ay2, KIND)
    sum1 = tl.zeros([ROWS, LANES], U)
    sum2, sum3, sum4 = sum1, sum1, sum1
    for first in range(0, M, LANES):
        j = first + tl.arange(0, LANES).to(tl.int64)
        bx1, by1, bx2, by2 = load_box(boxes2, j[None, :], (j < M)[None, :])
        angle_b = angle(bx1, by1, bx2, by2, KIND)
        g1, g2, g3, g4 = iou_slopes(ax1, ay1, ax2, ay2, angle_a, bx1, by1, bx2, by2, angle_b, eps, KIND, False)
        mask = (i < N)[:, None] & (j < M)[None, :]
        weight = tl.load(grad + (i[:, None] * row_stride + j[None, :] * column_stride), mask=mask, other=0.0)
        sum1 = tl.where(mask, sum1 + weight * g1, sum1)
        sum2 = tl.where(mask, sum2 + weight * g2, sum2)
        sum3 = tl.where(mask, sum3 + weight * g3, sum3)
        sum4 = tl.where(mask, sum4 + weight * g4, sum4)
    store_box(
        grad_boxes1,
        i,
        narrow(folded(sum1, LANES), T),
        narrow(folded(sum2, LANES), T),
        narrow(folded(sum3, LANES), T),
        narrow(folded(sum4, LANES), T),
        i < N,
    )


def pairwise_iou_backward(
    grad: Tensor, boxes1: Tensor, boxes2: Tensor, kind: str, eps: float, transposed: bool, grad_boxes: Tensor
) -> None:
    N, M = boxes1.shape[0], boxes2.shape[0]
    if N:
        row_stride, column_stride = (1, N) if transposed else (M, 1)
        launch(
            pairwise_iou_backward_kernel, (blocks_for(N, ROWS),), grad, row_stride, column_stride, boxes1, N, boxes2,
            M, double_bits(eps), grad_boxes, like=boxes1, KIND=kind, ROWS=ROWS, LANES=LANES,
        )  # fmt: skip


@triton.jit(do_not_specialize=["N", "eps"])
def iou_loss_kernel(boxes1, boxes2, N, eps, loss, KIND: tl.constexpr, ROWS: tl.constexpr):
    """A program owns ROWS rows."""
    eps = scalar(eps, loss.dtype.element_ty)
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    ax1, ay1, ax2, ay2 = load_box(boxes1, i, i < N)
    bx1, by1, bx2, by2 = load_box(boxes2, i, i < N)
    angle_a, angle_b = angle(ax1, ay1, ax2, ay2, KIND), angle(bx1, by1, bx2, by2, KIND)
    found = iou_score(ax1, ay1, ax2, ay2, angle_a, bx1, by1, bx2, by2, angle_b, eps, KIND, True)
    tl.store(loss + i, found, mask=i < N)


def iou_loss(boxes1: Tensor, boxes2: Tensor, kind: str, eps: float, loss: Tensor) -> None:
    N = boxes1.shape[0]
    if N:
        launch(
            iou_loss_kernel, (blocks_for(N, LOSS_ROWS),), boxes1, boxes2, N, double_bits(eps), loss,
            like=loss, KIND=kind, ROWS=LOSS_ROWS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["N", "eps"])
def iou_loss_backward_kernel(grad, boxes1, boxes2, N, eps, grad_boxes1, KIND: tl.constexpr, ROWS: tl.constexpr):
    """A program owns ROWS rows."""
    T: tl.constexpr = boxes1.dtype.element_ty
    eps = scalar(eps, compute_type(T))
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    ax1, ay1, ax2, ay2 = load_box(boxes1, i, i < N)
    bx1, by1, bx2, by2 = load_box(boxes2, i, i < N)
    angle_a, angle_b = angle(ax1, ay1, ax2, ay2, KIND), angle(bx1, by1, bx2, by2, KIND)
    g1, g2, g3, g4 = iou_slopes(ax1, ay1, ax2, ay2, angle_a, bx1, by1, bx2, by2, angle_b, eps, KIND, True)
    weight = -tl.load(grad + i, mask=i < N, other=0.0)
    store_box(
        grad_boxes1,
        i,
        narrow(weight * g1, T),
        narrow(weight * g2, T),
        narrow(weight * g3, T),
        narrow(weight * g4, T),
        i < N,
    )


def iou_loss_backward(grad: Tensor, boxes1: Tensor, boxes2: Tensor, kind: str, eps: float, grad_boxes: Tensor) -> None:
    N = boxes1.shape[0]
    if N:
        launch(
            iou_loss_backward_kernel, (blocks_for(N, LOSS_ROWS),), grad, boxes1, boxes2, N, double_bits(eps),
            grad_boxes, like=boxes1, KIND=kind, ROWS=LOSS_ROWS,
        )  # fmt: skip
