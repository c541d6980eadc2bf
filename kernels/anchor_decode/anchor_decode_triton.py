"""anchor_decode.h and anchor_decode.cu in Triton: anchors, deltas to boxes, boxes to deltas.

Every kernel: an element of a block is an anchor (or a row); nothing is shared between them.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ..common.box_triton import anchor_at, extent, is_finite_box, load_box, store_box
from ..common.launch_triton import anchor_maps, anchor_source, blocks_for, double_bits, launch
from ..common.map_triton import level_of, load_deltas
from ..common.mutant_triton import mutant
from ..common.numeric_triton import compute_type, divide, exp_, log_, narrow, scalar

BLOCK = 256


@triton.jit
def clip(x, limit):
    """Into [0, limit]; NaN stays NaN, and so does -0.0."""
    above = x > limit if not mutant("decode_clip_nan") else (x <= limit) == 0
    return tl.where(x < 0.0, 0.0, tl.where(above, limit, x))


@triton.jit
def clamped(growth, clamp):
    """At most clamp; NaN stays."""
    above = growth > clamp if not mutant("decode_clamp_nan") else (growth <= clamp) == 0
    return tl.where(above, clamp, growth) if not mutant("decode_clamp") else growth


@triton.jit
def decode(ax1, ay1, ax2, ay2, d0, d1, d2, d3, wx, wy, ww, wh, clamp, LEGACY: tl.constexpr):
    """The box that the deltas make of the anchor, neither clipped nor checked."""
    w, h = extent(ax1, ax2, LEGACY), extent(ay1, ay2, LEGACY)
    centre_x = divide(d0, wx) * w + (ax1 + 0.5 * w)
    centre_y = divide(d1, wy) * h + (ay1 + 0.5 * h)
    half_w = 0.5 * (exp_(clamped(divide(d2, ww), clamp)) * w)
    half_h = 0.5 * (exp_(clamped(divide(d3, wh), clamp)) * h)
    return centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h


@triton.jit
def decode_into(
    ax1, ay1, ax2, ay2, d0, d1, d2, d3, weights, clamp, right, bottom, min_side, LEGACY: tl.constexpr
):  # fmt: skip
    """(x1, y1, x2, y2, valid): decoded, clipped to the window, judged. weights: (wx, wy, ww, wh)."""
    wx, wy, ww, wh = weights
    x1, y1, x2, y2 = decode(ax1, ay1, ax2, ay2, d0, d1, d2, d3, wx, wy, ww, wh, clamp, LEGACY)
    finite = is_finite_box(x1, y1, x2, y2)
    x1, y1 = clip(x1, right), clip(y1, bottom)
    x2, y2 = clip(x2, right if not mutant("decode_clip_side") else bottom), clip(y2, bottom)
    w, h = extent(x1, x2, LEGACY), extent(y1, y2, LEGACY)
    large = (w >= min_side) & (h >= min_side) if not mutant("decode_min_side") else (w > min_side) & (h > min_side)
    return x1, y1, x2, y2, finite & large if not mutant("decode_finite") else large


@triton.jit
def load_window(image_sizes, image_scales, image, min_size, LEGACY: tl.constexpr):
    """(right, bottom, min_side) of an image. image_scales: pointer or None. min_size: in the compute type."""
    right, bottom = tl.load(image_sizes + 2 * image + 1), tl.load(image_sizes + 2 * image)
    if LEGACY and not mutant("decode_legacy_limit"):
        right, bottom = right - 1.0, bottom - 1.0
    if image_scales is not None and not mutant("proposals_scale"):
        min_size = min_size * tl.load(image_scales + image)
    return right, bottom, min_size


@triton.jit
def scalars4(b0, b1, b2, b3, dtype: tl.constexpr):
    return scalar(b0, dtype), scalar(b1, dtype), scalar(b2, dtype), scalar(b3, dtype)


@triton.jit
def encode_boxes(gx1, gy1, gx2, gy2, ax1, ay1, ax2, ay2, weights, LEGACY: tl.constexpr):
    """The deltas that decode to (gx1 ...)."""
    wx, wy, ww, wh = weights
    w, h = extent(ax1, ax2, LEGACY), extent(ay1, ay2, LEGACY)
    gw, gh = extent(gx1, gx2, LEGACY), extent(gy1, gy2, LEGACY)
    shift_x = (gx1 + 0.5 * gw) - (ax1 + 0.5 * w)
    shift_x = wx * shift_x if not mutant("encode_weight") else shift_x
    shift_y = wy * ((gy1 + 0.5 * gh) - (ay1 + 0.5 * h))
    return divide(shift_x, w), divide(shift_y, h), ww * log_(divide(gw, w)), wh * log_(divide(gh, h))


@triton.jit(do_not_specialize=["offset", "A"])
def grid_anchors_kernel(cells, levels, offset, A, boxes, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < A
    x1, y1, x2, y2 = anchor_at(cells, 0, levels, scalar(offset, boxes.dtype.element_ty), 0, index, mask)
    store_box(boxes, index, x1, y1, x2, y2, mask)


def grid_anchors(anchors: Tensor, anchor_grid: Sequence[int], anchor_offset: float, boxes: Tensor) -> None:
    A = boxes.shape[0]
    if A:
        source = anchor_source(anchors, anchor_grid, anchor_offset)
        launch(
            grid_anchors_kernel, (blocks_for(A, BLOCK),), anchors, source.levels, source.offset, A, boxes,
            like=boxes, BLOCK=BLOCK,
        )  # fmt: skip


@triton.jit
def decode_at(
    maps, anchors, image_stride, levels, offset, image_sizes, wx, wy, ww, wh, clamp, min_size, image_scales,
    image, level, index, mask, LEGACY: tl.constexpr,
):  # fmt: skip
    """(x1, y1, x2, y2, valid) of the anchors of that index [BLOCK], which are in that level of `maps`, the deltas'. The
    arguments before `image` as decode_clip_kernel takes them; image and index: in 64 bits."""
    U: tl.constexpr = compute_type(maps[0].tensor.dtype.element_ty)
    ax1, ay1, ax2, ay2 = anchor_at(anchors, image_stride, levels, scalar(offset, U), image, index, mask)
    d0, d1, d2, d3 = load_deltas(maps, level, image, index, mask)
    right, bottom, min_side = load_window(image_sizes, image_scales, image, scalar(min_size, U), LEGACY)
    weights = scalars4(wx, wy, ww, wh, U)
    return decode_into(ax1, ay1, ax2, ay2, d0, d1, d2, d3, weights, scalar(clamp, U), right, bottom, min_side, LEGACY)


@triton.jit(do_not_specialize=["image_stride", "offset", "wx", "wy", "ww", "wh", "clamp", "min_size", "A"])
def decode_clip_kernel(
    maps, anchors, image_stride, levels, offset, image_sizes, wx, wy, ww, wh, clamp, min_size, image_scales, A,
    boxes, valid, LEGACY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """boxes: pointer or None."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(1).to(tl.int64)
    mask = index < A
    x1, y1, x2, y2, fit = decode_at(
        maps, anchors, image_stride, levels, offset, image_sizes, wx, wy, ww, wh, clamp, min_size, image_scales,
        image, level_of(maps, index), index, mask, LEGACY,
    )  # fmt: skip
    if boxes is not None:
        store_box(boxes, image * A + index, x1, y1, x2, y2, mask)
    tl.store(valid + image * A + index, fit, mask=mask)


def decode_clip(
    deltas: Tensor, anchors: Tensor, anchor_grid: Sequence[int], anchor_offset: float, image_sizes: Tensor,
    image_scales: Tensor | None, weights: Sequence[float], clamp: float, min_size: float, legacy: bool, boxes: Tensor,
    valid: Tensor,
) -> None:  # fmt: skip
    B, A = valid.shape
    if B * A:
        launch(
            decode_clip_kernel, (blocks_for(A, BLOCK), B), anchor_maps([deltas], (0, A), 4),
            *anchor_source(anchors, anchor_grid, anchor_offset), image_sizes, *map(double_bits, weights),
            double_bits(clamp), double_bits(min_size), image_scales, A, boxes, valid, like=deltas, LEGACY=legacy,
            BLOCK=BLOCK,
        )  # fmt: skip


@triton.jit
def pass_through(x, limit, gradient):
    """Nothing passes a clipped coordinate."""
    beyond = x > limit if not mutant("decode_gradient_clip") else x >= limit
    return tl.where((x < 0.0) | beyond, 0.0, gradient)


@triton.jit(do_not_specialize=["image_stride", "offset", "wx", "wy", "ww", "wh", "clamp", "A"])
def decode_clip_backward_kernel(
    grad_boxes, deltas, anchors, image_stride, levels, offset, image_sizes, wx, wy, ww, wh, clamp, A, grad_deltas,
    LEGACY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    T: tl.constexpr = deltas.dtype.element_ty
    U: tl.constexpr = compute_type(T)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(1).to(tl.int64)
    mask = index < A
    row = image * A + index
    ax1, ay1, ax2, ay2 = anchor_at(anchors, image_stride, levels, scalar(offset, U), image, index, mask)
    d0, d1, d2, d3 = load_box(deltas, row, mask)
    wx, wy, ww, wh = scalars4(wx, wy, ww, wh, U)
    clamp = scalar(clamp, U)
    right, bottom, _ = load_window(image_sizes, None, image, 0.0, LEGACY)
    x1, y1, x2, y2 = decode(ax1, ay1, ax2, ay2, d0, d1, d2, d3, wx, wy, ww, wh, clamp, LEGACY)
    g1, g2, g3, g4 = load_box(grad_boxes, row, mask)
    x1, x2 = pass_through(x1, right, g1), pass_through(x2, right, g3)
    y1, y2 = pass_through(y1, bottom, g2), pass_through(y2, bottom, g4)
    w, h = extent(ax1, ax2, LEGACY), extent(ay1, ay2, LEGACY)
    dw, dh = divide(d2, ww), divide(d3, wh)
    half_w = 0.5 * (exp_(clamped(dw, clamp)) * w)
    half_h = 0.5 * (exp_(clamped(dh, clamp)) * h)
    most = clamp if not mutant("decode_gradient_clamp") else float("inf")
    store_box(
        grad_deltas,
        row,
        narrow(divide((x1 + x2) * w, wx), T),
        narrow(divide((y1 + y2) * h, wy), T),
        narrow(tl.where(dw > most, 0.0, divide((x2 - x1) * half_w, ww)), T),
        narrow(tl.where(dh > most, 0.0, divide((y2 - y1) * half_h, wh)), T),
        mask,
    )


def decode_clip_backward(
    grad_boxes: Tensor, deltas: Tensor, anchors: Tensor, anchor_grid: Sequence[int], anchor_offset: float,
    image_sizes: Tensor, weights: Sequence[float], clamp: float, legacy: bool, grad_deltas: Tensor,
) -> None:  # fmt: skip
    B, A, _ = deltas.shape
    if B * A:
        launch(
            decode_clip_backward_kernel, (blocks_for(A, BLOCK), B), grad_boxes, deltas,
            *anchor_source(anchors, anchor_grid, anchor_offset), image_sizes, *map(double_bits, weights),
            double_bits(clamp), A, grad_deltas, like=deltas, LEGACY=legacy, BLOCK=BLOCK,
        )  # fmt: skip


@triton.jit(do_not_specialize=["wx", "wy", "ww", "wh", "N"])
def encode_kernel(gt_boxes, anchors, wx, wy, ww, wh, N, deltas, LEGACY: tl.constexpr, BLOCK: tl.constexpr):
    U: tl.constexpr = compute_type(gt_boxes.dtype.element_ty)
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = row < N
    gx1, gy1, gx2, gy2 = load_box(gt_boxes, row, mask)
    ax1, ay1, ax2, ay2 = load_box(anchors, row, mask)
    weights = scalars4(wx, wy, ww, wh, U)
    d0, d1, d2, d3 = encode_boxes(gx1, gy1, gx2, gy2, ax1, ay1, ax2, ay2, weights, LEGACY)
    store_box(deltas, row, d0, d1, d2, d3, mask)


def encode(gt_boxes: Tensor, anchors: Tensor, weights: Sequence[float], legacy: bool, targets: Tensor) -> None:
    N = gt_boxes.numel() // 4
    if N:
        launch(
            encode_kernel, (blocks_for(N, BLOCK),), gt_boxes, anchors, *map(double_bits, weights), N, targets,
            like=gt_boxes, LEGACY=legacy, BLOCK=BLOCK,
        )  # fmt: skip
