"""Anchors, and the map between boxes and regression deltas (Ren et al. 2015, section 3.1.1 and eq. 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from frcnn_fast import reference
from frcnn_fast.ops._arrays import accepts_arrays
from frcnn_fast.ops._checks import (
    HALVES,
    check_float,
    check_positive,
    check_same,
    check_threshold,
    check_weights,
    compute_dtype,
    describe,
    image_scales_tensor,
    image_sizes_tensor,
)
from frcnn_fast.ops._operator import Operator, contiguous_saved
from frcnn_fast.ops.anchors import AnchorGrids, AnchorSource, check_grid_size, check_stride, grid_anchors_operator
from frcnn_fast.ops.results import DecodedBoxes

DELTA_CLAMP: float = math.log(1000.0 / 16.0)
CONVENTIONS = ("torchvision", "detectron2", "legacy")


def generate_anchors(
    sizes: Sequence[float], ratios: Sequence[float], *, convention: str = "torchvision", base_size: int = 16
) -> Tensor:
    """The anchor shapes of one cell, around its origin.

    sizes: square roots of the areas, in pixels (128, 256, 512), in every convention. ratios: height / width; a size s
    at ratio r is s / sqrt(r) wide and s * sqrt(r) high.
    convention: "torchvision": all sizes of the first ratio, then of the next; corners rounded half to even, in float32;
    half-open boxes centred on 0. "detectron2": all ratios of the first size first; not rounded. "legacy" (the paper's
    code): all sizes of the first ratio first; the sides of a base_size x base_size box (`base_size` counts here only)
    are rounded at each ratio, then scaled; inclusive pixels, centred on (base_size - 1) / 2.

    Returns float32 [k, 4] on the CPU, k = len(sizes) * len(ratios). ValueError for an unknown convention and for sizes,
    ratios or base_size that are not positive.
    """
    for name, values in (("sizes", sizes), ("ratios", ratios)):
        if not all(math.isfinite(v) and v > 0 for v in values):
            raise ValueError(f"{name}: expected positive numbers, got {tuple(values)!r}")
    check_positive("base_size", base_size)
    if convention == "torchvision":
        root = torch.tensor(list(ratios), dtype=torch.float32).sqrt()[:, None]
        side = torch.tensor(list(sizes), dtype=torch.float32)[None, :]
        w, h = ((1 / root) * side).flatten(), (root * side).flatten()
        return (torch.stack([-w, -h, w, h], 1) / 2).round()
    if convention == "detectron2":
        sides = [(math.sqrt(s**2.0 / r), r) for s in sizes for r in ratios]
        halves = [(w / 2.0, r * w / 2.0) for w, r in sides]
        return torch.tensor([(-x, -y, x, y) for x, y in halves], dtype=torch.float32).reshape(-1, 4)
    if convention != "legacy":
        raise ValueError(f"convention: expected one of {', '.join(CONVENTIONS)}, got {convention!r}")
    centre, rows = (base_size - 1) / 2.0, []
    for ratio in ratios:
        base_w = round(math.sqrt(base_size * base_size / ratio))
        base_h = round(base_w * ratio)
        for size in sizes:
            x, y = (base_w * (size / base_size) - 1) / 2.0, (base_h * (size / base_size) - 1) / 2.0
            rows.append((centre - x, centre - y, centre + x, centre + y))
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


@accepts_arrays
def grid_anchors(
    cell_anchors: Tensor,
    grid_size: tuple[int, int],
    stride: int | tuple[int, int],
    *,
    offset: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """A cell's anchors at every cell of a feature map.

    cell_anchors: [k, 4], float32 or float64, as `generate_anchors` gives them. grid_size: (height, width) of the map in
    cells. stride: pixels between cells, (y, x) or one for both. offset: of all anchors, in strides (detectron2: 0 or
    0.5).

    Returns [height * width * k, 4] in pixels, on the device of cell_anchors; the anchor a of cell (y, x) is row
    (y * width + x) * k + a: (x + offset) * stride + its cell coordinate, one rounded sum, so the bits are the same on
    every backend. Kernels that take `AnchorGrids` make the same numbers from the row's index, without this table.
    O(rows); a map without cells or no cell anchors give an empty table. ValueError: other shapes, a size below 0, a
    stride that is not a positive whole number. TypeError: other dtypes.
    """
    size, strides = check_grid_size(grid_size), check_stride(stride)
    if isinstance(cell_anchors, Tensor) and cell_anchors.dtype in HALVES:
        raise TypeError(f"cell_anchors: expected float32 or float64 elements, got {describe(cell_anchors)}")
    check_float("cell_anchors", cell_anchors, "[k, 4]", 2, 4)
    grid = [*size, len(cell_anchors), *strides]
    return grid_anchors_operator(cell_anchors.contiguous(), grid, float(offset), backend=backend)


@accepts_arrays
def decode_clip(
    deltas: Tensor,
    anchors: Tensor | AnchorGrids,
    image_sizes: Tensor | Sequence[Sequence[float]],
    *,
    image_scales: Tensor | None = None,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    clamp: float = DELTA_CLAMP,
    min_size: float = 0.0,
    legacy: bool = False,
    backend: str | None = None,
) -> DecodedBoxes:
    """Boxes from deltas, clipped to their images, and which of them are fit to be proposals.

    deltas: [B, A, 4] = (tx, ty, tw, th), float16, bfloat16, float32 or float64; computed in float32, for float64 in
    float64. anchors: `AnchorGrids`, or [A, 4] or [B, A, 4] in pixels, in the same precision. image_sizes: [B, 2]
    (height, width) in pixels. weights: what the deltas were multiplied by when learned. clamp: upper bound of tw and th
    before exp. min_size: the least side in pixels, multiplied by image_scales [B] (resized / original) where given.
    legacy: inclusive pixels: extents are high - low + 1, and boxes are clipped to width - 1, height - 1.

    Returns `DecodedBoxes`: boxes [B, A, 4] in the compute type, clipped to 0 .. width and 0 .. height, and valid bool
    [B, A]: finite before clipping, and both sides at least min_size after it. Rows that are not valid keep their
    numbers; NaN stays.

    Differentiable in deltas: nothing flows through a clipped coordinate or a clamped delta. Every operation is rounded
    by itself, so the bits are the same on every backend. O(B A); no image or A = 0 gives empty results. ValueError or
    TypeError for other shapes, types or devices.
    """
    check_float("deltas", deltas, "[B, A, 4]", 3, 4)
    B, A, _ = deltas.shape
    source = AnchorSource.of(anchors, deltas, B, A)
    clamp = float(clamp)
    if clamp != clamp:  # math.isnan is no operation of a compiled graph
        raise ValueError("clamp: expected a number, got nan")
    return _decode_clip(
        deltas.contiguous(),
        *source,
        image_sizes_tensor(image_sizes, B, deltas),
        image_scales_tensor(image_scales, B, deltas),
        check_weights(weights),
        clamp,
        check_threshold("min_size", min_size),
        bool(legacy),
        backend=backend,
    )


@accepts_arrays
def encode(
    gt_boxes: Tensor,
    anchors: Tensor,
    *,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    legacy: bool = False,
    backend: str | None = None,
) -> Tensor:
    """The deltas that decode to gt_boxes: regression targets.

    gt_boxes, anchors: [..., 4] in pixels, of one floating type, broadcast against each other. weights: factors (wx, wy,
    ww, wh) of the four deltas. legacy: inclusive pixels.

    Returns [..., 4] = (wx dx / wa, wy dy / ha, ww log(w / wa), wh log(h / ha)), in float32, for float64 input in
    float64. A ground-truth side of 0 gives -inf, a negative one NaN; anchors of no size give what division by zero
    gives. The bits are the same on every backend. No gradient. O(N); no box gives an empty result.

    ValueError: shapes that do not end in 4 or do not broadcast, weights that are not positive, different devices.
    TypeError: not tensors, other dtypes, dtypes that differ.
    """
    for name, boxes in (("gt_boxes", gt_boxes), ("anchors", anchors)):
        if not isinstance(boxes, Tensor):
            raise TypeError(f"{name}: expected a tensor [..., 4], got {describe(boxes)}")
        check_float(name, boxes, "[..., 4]", max(boxes.dim(), 1), 4)
    check_same("anchors", anchors, "gt_boxes", gt_boxes)
    if gt_boxes.shape != anchors.shape:
        try:
            gt_boxes, anchors = torch.broadcast_tensors(gt_boxes, anchors)
        except RuntimeError:
            expected = f"a shape that broadcasts with gt_boxes {list(gt_boxes.shape)}"
            raise ValueError(f"anchors: expected {expected}, got {describe(anchors)}") from None
    return _encode(gt_boxes.contiguous(), anchors.contiguous(), check_weights(weights), bool(legacy), backend=backend)


def _decode_outputs(a: Any) -> tuple[Tensor, Tensor]:
    deltas = a.deltas
    boxes = deltas.new_empty(deltas.shape, dtype=compute_dtype(deltas))
    return boxes, deltas.new_empty(deltas.shape[:2], dtype=torch.bool)


def _decode_setup(ctx: Any, a: Any, output: Any) -> None:
    ctx.save_for_backward(a.deltas, a.anchors, a.image_sizes)
    ctx.grid = a.anchor_grid, a.anchor_offset
    ctx.scalars = a.weights, a.clamp, a.legacy


def _decode_gradient(ctx: Any, grad_boxes: Tensor, grad_valid: Any) -> dict[str, Tensor]:
    deltas, anchors, image_sizes = contiguous_saved(ctx)
    grad_boxes = grad_boxes.contiguous()
    return {"deltas": _decode_clip_backward(grad_boxes, deltas, anchors, *ctx.grid, image_sizes, *ctx.scalars)}


_decode_clip = Operator(
    "decode_clip(Tensor deltas, Tensor anchors, SymInt[] anchor_grid, float anchor_offset, Tensor image_sizes, "
    "Tensor? image_scales, float[] weights, float clamp, float min_size, bool legacy) -> (Tensor boxes, Tensor valid)",
    outputs=_decode_outputs,
    oracle=reference.decode_clip,
    triton="anchor_decode.anchor_decode_triton:decode_clip",
    returns=DecodedBoxes,
    setup_context=_decode_setup,
    backward=_decode_gradient,
)

_decode_clip_backward = Operator(
    "decode_clip_backward(Tensor grad_boxes, Tensor deltas, Tensor anchors, SymInt[] anchor_grid, float anchor_offset, "
    "Tensor image_sizes, float[] weights, float clamp, bool legacy) -> Tensor grad_deltas",
    outputs=lambda a: (torch.empty_like(a.deltas),),
    oracle=reference.decode_clip_backward,
    triton="anchor_decode.anchor_decode_triton:decode_clip_backward",
)

_encode = Operator(
    "encode(Tensor gt_boxes, Tensor anchors, float[] weights, bool legacy) -> Tensor targets",
    outputs=lambda a: (torch.empty_like(a.gt_boxes, dtype=compute_dtype(a.gt_boxes)),),
    oracle=reference.encode,
    triton="anchor_decode.anchor_decode_triton:encode",
)
