"""Anchors, and the map between boxes and regression deltas (Ren et al. 2015, section 3.1.1 and eq. 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from . import boxes as box
from .arithmetic import exp_, log_

DELTA_CLAMP = math.log(1000.0 / 16.0)


def generate_anchors(
    sizes: Sequence[float],
    ratios: Sequence[float],
    *,
    convention: str = "torchvision",
    base_size: int = 16,
) -> np.ndarray:
    """Anchor shapes of one cell, float32 [k, 4]; sizes in pixels, ratio = height / width.

    "torchvision": ratio-major, corners rounded half to even, computed in float32. "detectron2": size-major,
    not rounded, computed in float64. "legacy": ratio-major, the base box's sides are rounded before they are
    scaled.
    """
    if convention == "torchvision":
        root = np.sqrt(np.asarray(ratios, np.float32))
        side = np.asarray(sizes, np.float32)
        widths = ((np.float32(1) / root)[:, None] * side[None, :]).reshape(-1)
        heights = (root[:, None] * side[None, :]).reshape(-1)
        return np.rint(np.stack([-widths, -heights, widths, heights], axis=1) / np.float32(2))
    rows: list[list[float]] = []
    if convention == "detectron2":
        for size in sizes:
            for ratio in ratios:
                w = math.sqrt(float(size) ** 2 / ratio)
                h = ratio * w
                rows.append([-w / 2, -h / 2, w / 2, h / 2])
    elif convention == "legacy":
        centre = 0.5 * (base_size - 1)
        for ratio in ratios:
            base_w = float(np.rint(math.sqrt(base_size * base_size / ratio)))
            base_h = float(np.rint(base_w * ratio))
            for size in sizes:
                half_w = 0.5 * (base_w * (size / base_size) - 1)
                half_h = 0.5 * (base_h * (size / base_size) - 1)
                rows.append([centre - half_w, centre - half_h, centre + half_w, centre + half_h])
    else:
        raise ValueError(f"convention: got {convention!r}, expected 'torchvision', 'detectron2' or 'legacy'")
    return np.asarray(rows, np.float64).reshape(-1, 4).astype(np.float32)


def grid_anchors(
    cell_anchors: np.ndarray,
    grid_size: tuple[int, int],
    stride: int | tuple[int, int],
    *,
    offset: float = 0.0,
) -> np.ndarray:
    """cell_anchors [k, 4] at every cell of an (h, w) grid: [h*w*k, 4], index (y*w + x)*k + a."""
    dtype = cell_anchors.dtype.type
    height, width = grid_size
    stride_y, stride_x = (stride, stride) if isinstance(stride, int) else stride
    xs = np.arange(width).astype(dtype) * dtype(stride_x) + dtype(offset) * dtype(stride_x)
    ys = np.arange(height).astype(dtype) * dtype(stride_y) + dtype(offset) * dtype(stride_y)
    shift = np.stack(np.broadcast_arrays(xs[None, :], ys[:, None], xs[None, :], ys[:, None]), axis=-1)
    return (shift[:, :, None, :] + cell_anchors).reshape(-1, 4)


def explicit_anchors(anchors: np.ndarray, anchor_grid: Sequence[int], anchor_offset: float) -> np.ndarray:
    """The anchors that an op was given, or, of a grid with levels, all those of its cell anchors, [A, 4].

    anchor_grid: height, width, anchors a cell, stride y, stride x; level after level. anchors then holds the cell
    anchors of all levels.
    """
    if not len(anchor_grid):
        return anchors
    tables, first = [], 0
    for height, width, k, stride_y, stride_x in zip(*[iter(anchor_grid)] * 5):
        cells = anchors[first : first + k]
        tables.append(grid_anchors(cells, (height, width), (stride_y, stride_x), offset=anchor_offset))
        first += k
    return np.concatenate(tables)


def _size_and_centre(boxes: np.ndarray, axis: int, legacy: bool) -> tuple[np.ndarray, np.ndarray]:
    low = boxes[..., axis]
    length = box.side(low, boxes[..., axis + 2], legacy)
    return length, low + boxes.dtype.type(0.5) * length


def decode(
    deltas: np.ndarray,
    anchors: np.ndarray,
    *,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    clamp: float = DELTA_CLAMP,
    legacy: bool = False,
) -> np.ndarray:
    """Boxes [..., 4] of deltas [..., 4] relative to anchors (broadcast), neither clipped nor checked."""
    dtype = deltas.dtype.type
    half, limit = dtype(0.5), dtype(clamp)
    decoded = np.empty(np.broadcast_shapes(deltas.shape, anchors.shape), deltas.dtype)
    with np.errstate(all="ignore"):
        for axis in (0, 1):
            length, centre = _size_and_centre(anchors, axis, legacy)
            shift = deltas[..., axis] / dtype(weights[axis])
            growth = deltas[..., axis + 2] / dtype(weights[axis + 2])
            growth = np.where(growth > limit, limit, growth)
            new_centre = shift * length + centre
            new_length = exp_(growth) * length
            decoded[..., axis] = new_centre - half * new_length
            decoded[..., axis + 2] = new_centre + half * new_length
    return decoded


def _clip_limits(image_sizes: np.ndarray, dtype: np.dtype, legacy: bool) -> np.ndarray:
    """[B, 1, 4] upper limits in box order (W, H, W, H), one less for inclusive pixels."""
    limits = np.asarray(image_sizes).astype(dtype)[:, [1, 0, 1, 0]]
    return (limits - dtype.type(1) if legacy else limits)[:, None, :]


def decode_clip(
    deltas: np.ndarray,
    anchors: np.ndarray,
    image_sizes: np.ndarray,
    *,
    image_scales: np.ndarray | None = None,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    clamp: float = DELTA_CLAMP,
    min_size: float = 0.0,
    legacy: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Decode deltas [B, A, 4], clip to image_sizes [B, 2] (h, w), judge: boxes [B, A, 4], valid bool [B, A].

    valid: finite before clipping, and both sides at least min_size * image_scale after it.
    """
    dtype = deltas.dtype.type
    decoded = decode(deltas, anchors, weights=weights, clamp=clamp, legacy=legacy)
    limits = _clip_limits(image_sizes, deltas.dtype, legacy)
    with np.errstate(all="ignore"):
        clipped = np.where(decoded < 0, dtype(0), np.where(decoded > limits, limits, decoded))
        scales = np.ones(len(deltas)) if image_scales is None else np.asarray(image_scales)
        least = (dtype(min_size) * scales.astype(deltas.dtype))[:, None]
        width = box.side(clipped[..., 0], clipped[..., 2], legacy)
        height = box.side(clipped[..., 1], clipped[..., 3], legacy)
        valid = box.finite(decoded) & (width >= least) & (height >= least)
    return clipped, valid


def decode_clip_backward(
    grad_boxes: np.ndarray,
    deltas: np.ndarray,
    anchors: np.ndarray,
    image_sizes: np.ndarray,
    *,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    clamp: float = DELTA_CLAMP,
    legacy: bool = False,
) -> np.ndarray:
    """Gradient in deltas [B, A, 4] of decode_clip's boxes; none through a clipped coordinate or a clamped delta."""
    dtype = deltas.dtype.type
    decoded = decode(deltas, anchors, weights=weights, clamp=clamp, legacy=legacy)
    limits = _clip_limits(image_sizes, deltas.dtype, legacy)
    grad_deltas = np.empty_like(deltas)
    with np.errstate(all="ignore"):
        moved = (decoded < 0) | (decoded > limits)
        through = np.where(moved, dtype(0), grad_boxes)
        for axis in (0, 1):
            length, _ = _size_and_centre(anchors, axis, legacy)
            growth = deltas[..., axis + 2] / dtype(weights[axis + 2])
            clamped = growth > dtype(clamp)
            half_length = dtype(0.5) * (exp_(np.where(clamped, dtype(clamp), growth)) * length)
            low, high = through[..., axis], through[..., axis + 2]
            grad_deltas[..., axis] = (low + high) * length / dtype(weights[axis])
            pull = (high - low) * half_length / dtype(weights[axis + 2])
            grad_deltas[..., axis + 2] = np.where(clamped, dtype(0), pull)
    return grad_deltas


def encode(
    gt_boxes: np.ndarray,
    anchors: np.ndarray,
    *,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    legacy: bool = False,
) -> np.ndarray:
    """Regression targets [..., 4] that decode to gt_boxes. A side of 0 gives -inf, a negative one NaN."""
    dtype = gt_boxes.dtype.type
    targets = np.empty(np.broadcast_shapes(gt_boxes.shape, anchors.shape), gt_boxes.dtype)
    with np.errstate(all="ignore"):
        for axis in (0, 1):
            gt_length, gt_centre = _size_and_centre(gt_boxes, axis, legacy)
            length, centre = _size_and_centre(anchors, axis, legacy)
            targets[..., axis] = (dtype(weights[axis]) * (gt_centre - centre)) / length
            targets[..., axis + 2] = dtype(weights[axis + 2]) * log_(gt_length / length)
    return targets
