"""box_iou.h and box_iou.cu in Triton: IoU of every pair, and the gradient of one side."""

import triton
import triton.language as tl
from torch import Tensor

from ..common.box_triton import area, extent, iou, is_finite_box, load_box, store_box
from ..common.launch_triton import blocks_for, launch
from ..common.mutant_triton import mutant
from ..common.numeric_triton import compute_type, divide, folded, maximum, minimum, narrow

PAIRS = 1024  # in a program's tile
COLUMNS = 128  # in a tile, at most
LANES = 32  # partial sums of a row's gradient
ROWS = 8  # per program of the gradient


@triton.jit
def finite_area(x1, y1, x2, y2, LEGACY: tl.constexpr):
    """A non-finite box has a NaN area, which makes its every IoU NaN."""
    size = area(x1, y1, x2, y2, LEGACY)
    return tl.where(is_finite_box(x1, y1, x2, y2), size, float("nan")) if not mutant("box_iou_non_finite") else size


@triton.jit(do_not_specialize=["N", "M", "across"])
def box_iou_kernel(
    boxes1, N, boxes2, M, across, out, LEGACY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """A program owns a tile of the matrix: ROWS x COLUMNS. Grid: tiles across x tiles down, in one dimension."""
    tile = tl.program_id(0)
    i = (tile // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    j = (tile % across).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    ax1, ay1, ax2, ay2 = load_box(boxes1, i[:, None], (i < N)[:, None])
    bx1, by1, bx2, by2 = load_box(boxes2, j[None, :], (j < M)[None, :])
    area_a, area_b = finite_area(ax1, ay1, ax2, ay2, LEGACY), finite_area(bx1, by1, bx2, by2, LEGACY)
    overlap = iou(ax1, ay1, ax2, ay2, area_a, bx1, by1, bx2, by2, area_b, LEGACY)
    tl.store(out + (i[:, None] * M + j[None, :]), overlap, mask=(i < N)[:, None] & (j < M)[None, :])


def box_iou(boxes1: Tensor, boxes2: Tensor, legacy: bool, iou: Tensor) -> None:
    N, M = iou.shape
    if N * M:
        columns = min(COLUMNS, max(16, triton.next_power_of_2(M)))
        rows = PAIRS // columns
        across = blocks_for(M, columns)
        launch(
            box_iou_kernel, (across * blocks_for(N, rows),), boxes1, N, boxes2, M, across, iou,
            like=iou, LEGACY=legacy, ROWS=rows, COLUMNS=columns,
        )  # fmt: skip


@triton.jit
def share_of_larger(mine, other):
    """Half of a tie's gradient goes to either side, as torch.maximum and torch.minimum do."""
    tie: tl.constexpr = 0.5 if not mutant("box_iou_tie") else 1.0
    return tl.where(mine > other, 1.0, tl.where(mine == other, tie, 0.0)).to(mine.dtype)


@triton.jit
def iou_gradient(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, LEGACY: tl.constexpr):
    """d iou(a, b) / d a, four coordinates. Boxes that only touch pass nothing through the intersection."""
    w = extent(maximum(ax1, bx1), minimum(ax2, bx2), LEGACY)
    h = extent(maximum(ay1, by1), minimum(ay2, by2), LEGACY)
    inner_w, inner_h = tl.where(w < 0.0, 0.0, w), tl.where(h < 0.0, 0.0, h)
    overlap = inner_w * inner_h
    joined = (area(ax1, ay1, ax2, ay2, LEGACY) + area(bx1, by1, bx2, by2, LEGACY)) - overlap
    # iou = o / j with j = A + B - o: d iou = (do * (j + o) - dA * o) / j^2
    square = joined * joined
    per_overlap, per_area = divide(joined + overlap, square), divide(overlap, square)
    meets_x, meets_y = (w > 0.0, h > 0.0) if not mutant("box_iou_touch") else (w >= 0.0, h >= 0.0)
    along_x = tl.where(meets_x, per_overlap * inner_h, 0.0)
    along_y = tl.where(meets_y, per_overlap * inner_w, 0.0)
    height, width = per_area * extent(ay1, ay2, LEGACY), per_area * extent(ax1, ax2, LEGACY)
    return (
        height - along_x * share_of_larger(ax1, bx1),
        width - along_y * share_of_larger(ay1, by1),
        along_x * share_of_larger(bx2, ax2) - height,
        along_y * share_of_larger(by2, ay2) - width,
    )


@triton.jit(do_not_specialize=["row_stride", "column_stride", "N", "M"])
def box_iou_backward_kernel(
    grad, row_stride, column_stride, boxes1, N, boxes2, M, grad_boxes1,
    LEGACY: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """A program owns ROWS rows; lane l of a row sums columns l, l + LANES, ..., then the lanes are folded in halves."""
    T: tl.constexpr = boxes1.dtype.element_ty
    U: tl.constexpr = compute_type(T)
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    ax1, ay1, ax2, ay2 = load_box(boxes1, i[:, None], (i < N)[:, None])
    sum1 = tl.zeros([ROWS, LANES], U)
    sum2, sum3, sum4 = sum1, sum1, sum1
    for first in range(0, M, LANES):
        j = first + tl.arange(0, LANES).to(tl.int64)
        bx1, by1, bx2, by2 = load_box(boxes2, j[None, :], (j < M)[None, :])
        g1, g2, g3, g4 = iou_gradient(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, LEGACY)
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


def box_iou_backward(
    grad: Tensor, boxes1: Tensor, boxes2: Tensor, transposed: bool, legacy: bool, grad_boxes: Tensor
) -> None:
    N, M = boxes1.shape[0], boxes2.shape[0]
    if N:
        row_stride, column_stride = (1, N) if transposed else (M, 1)
        launch(
            box_iou_backward_kernel, (blocks_for(N, ROWS),), grad, row_stride, column_stride, boxes1, N, boxes2, M,
            grad_boxes, like=boxes1, LEGACY=legacy, ROWS=ROWS, LANES=LANES,
        )  # fmt: skip
