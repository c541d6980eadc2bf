"""box.h and anchors.h in Triton. A box is four blocks x1, y1, x2, y2; LEGACY: inclusive pixels."""

import triton
import triton.language as tl

from .mutant_triton import mutant
from .numeric_triton import divide, is_finite, maximum, minimum, widen


@triton.jit
def load_box(boxes, row, mask):
    """Rows of `boxes` [rows, 4] in the compute type; 0 where masked. row: in 64 bits where it may be large."""
    at = boxes + 4 * row
    x1, y1 = tl.load(at, mask=mask, other=0.0), tl.load(at + 1, mask=mask, other=0.0)
    x2, y2 = tl.load(at + 2, mask=mask, other=0.0), tl.load(at + 3, mask=mask, other=0.0)
    return widen(x1), widen(y1), widen(x2), widen(y2)


@triton.jit
def store_box(boxes, row, x1, y1, x2, y2, mask):
    at = boxes + 4 * row
    tl.store(at, x1, mask=mask)
    tl.store(at + 1, y1, mask=mask)
    tl.store(at + 2, x2, mask=mask)
    tl.store(at + 3, y2, mask=mask)


@triton.jit
def is_finite_box(x1, y1, x2, y2):
    return is_finite(x1) & is_finite(y1) & is_finite(x2) & is_finite(y2)


@triton.jit
def extent(low, high, LEGACY: tl.constexpr):
    if LEGACY and not mutant("box_legacy"):
        return (high - low) + 1.0
    else:
        return high - low


@triton.jit
def area(x1, y1, x2, y2, LEGACY: tl.constexpr):
    return extent(x1, x2, LEGACY) * extent(y1, y2, LEGACY)


@triton.jit
def intersection(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, LEGACY: tl.constexpr):
    w = extent(maximum(ax1, bx1), minimum(ax2, bx2), LEGACY)
    h = extent(maximum(ay1, by1), minimum(ay2, by2), LEGACY)
    if not mutant("box_disjoint"):
        w, h = tl.where(w < 0.0, 0.0, w), tl.where(h < 0.0, 0.0, h)
    return w * h


@triton.jit
def iou(ax1, ay1, ax2, ay2, area_a, bx1, by1, bx2, by2, area_b, LEGACY: tl.constexpr):
    """0/0 is NaN. The areas come along: they are worked out once a box, not once a pair."""
    overlap = intersection(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, LEGACY)
    return divide(overlap, (area_a + area_b) - overlap)


@triton.jit
def plain(odd):
    """The number that came as launch_triton.odd."""
    return (odd - 3) >> 1


@triton.jit
def anchor_at(anchors, image_stride, levels, offset, image, index, mask):
    """The anchor of that index. anchors, image_stride, levels, offset: see launch_triton.AnchorSource; offset: in the
    compute type. With levels: index ((y * width + x) * k + a) within its level; products are exact, and there is one
    rounded sum a coordinate."""
    if len(levels) == 0:
        return load_box(anchors + image * image_stride, index, mask)
    else:
        start = tl.zeros_like(index)
        cell_start = tl.zeros_like(index)
        width = tl.full(index.shape, 1, index.dtype)
        per_cell, stride_y, stride_x = width, width, width
        for level in tl.static_range(len(levels)):
            first = plain(levels[level][0])
            here = index >= first if not mutant("anchor_level") else index > first
            start = tl.where(here, first, start)
            cell_start = tl.where(here, plain(levels[level][1]), cell_start)
            width = tl.where(here, plain(levels[level][2]), width)
            per_cell = tl.where(here, plain(levels[level][3]), per_cell)
            stride_y = tl.where(here, plain(levels[level][4]), stride_y)
            stride_x = tl.where(here, plain(levels[level][5]), stride_x)
        # A level has fewer than 2^32 anchors, and division in 64 bits is slow.
        local = (index - start).to(tl.uint32)
        cell = local // per_cell.to(tl.uint32)
        y = cell // width.to(tl.uint32)
        x = cell - y * width.to(tl.uint32)
        bx1, by1, bx2, by2 = load_box(anchors, cell_start + (local - cell * per_cell.to(tl.uint32)), mask)
        dx = (x.to(tl.int64) * stride_x).to(bx1.dtype) + offset * stride_x.to(bx1.dtype)
        dy = (y.to(tl.int64) * stride_y).to(bx1.dtype) + offset * stride_y.to(bx1.dtype)
        return dx + bx1, dy + by1, dx + bx2, dy + by2
