"""RoIPool and RoIAlign of one feature map; roi_pyramid.py has RoIAlign over the levels of a pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frcnn_fast import reference
from frcnn_fast.ops import _checks
from frcnn_fast.ops._arrays import accepts_arrays
from frcnn_fast.ops._operator import Operator, contiguous_saved
from frcnn_fast.ops._rois import (
    dense,
    empty_maps,
    is_channels_last,
    output_pair,
    pools_channels_last,
    roi_tensor,
)
from frcnn_fast.ops._torch_private import unwrap_if_dead, within_functorch


def _pooled(a: Any) -> Tensor:
    """Uninitialised, [R, C, PH, PW], stored as the input is."""
    input, shape = a.input, (a.rois.shape[0], a.input.shape[1], a.output_height, a.output_width)
    return empty_maps(shape, input.dtype, input, is_channels_last(input))


def _pool_outputs(a: Any) -> tuple[Tensor, Tensor]:
    output = _pooled(a)
    if a.with_argmax:
        return output, torch.empty_like(output, dtype=torch.int32)
    return output, a.input.new_empty(0, dtype=torch.int32)


def _as_stored(maps: Tensor) -> Tensor:
    """channels_last maps in the order of memory, and so contiguous: what restores a saved tensor (save_on_cpu,
    checkpoints) keeps its values and shape, but not its strides."""
    return maps.permute(0, 2, 3, 1)


def _as_named(stored: Tensor) -> Tensor:
    """The way back."""
    return stored.permute(0, 3, 1, 2)


def _pool_setup(ctx: Any, a: Any, output: tuple[Tensor, Tensor]) -> None:
    ctx.with_argmax, ctx.scalars = a.with_argmax, (a.spatial_scale, a.rounded)
    ctx.layout = a.input.shape, is_channels_last(a.input)
    argmax = output[1]
    ctx.save_for_backward(a.rois, _as_stored(argmax) if a.with_argmax and ctx.layout[1] else argmax)


def _pool_gradient(ctx: Any, grad: Tensor, _: Tensor) -> dict[str, Tensor]:
    if not ctx.with_argmax:
        raise RuntimeError("roi_pool: called without argmax, which the gradient needs; pass with_argmax=True")
    rois, argmax = contiguous_saved(ctx)
    if ctx.layout[1]:
        argmax = _as_named(argmax)
    return {"input": _pool_backward(dense(grad), argmax, rois, *ctx.layout, *ctx.scalars)}


_pool = Operator(
    "roi_pool(Tensor input, Tensor rois, SymInt output_height, SymInt output_width, float spatial_scale, "
    "bool rounded, bool with_argmax) -> (Tensor output, Tensor argmax)",
    outputs=_pool_outputs,
    workspace=lambda C, a: C.roi_pool_workspace(a.input, a.rois, a.output_height, a.output_width),
    oracle=reference.roi_pool,
    triton="roi_pool.roi_pool_triton:roi_pool",
    setup_context=_pool_setup,
    backward=_pool_gradient,
)

# The last number of a row of argmax that the CUDA kernels have packed (kernels/roi_pool/roi_bins.cuh).
_PACKED = -(2**31)


def _pool_backward_oracle(argmax: np.ndarray, **arguments: Any) -> np.ndarray:
    if argmax.size and (argmax[:, -1, -1, -1] == _PACKED).any():
        raise ValueError("argmax: the reference cannot read what the CUDA kernels pack; run both passes on one backend")
    return reference.roi_pool_backward(argmax=argmax, **arguments)


_pool_backward = Operator(
    "roi_pool_backward(Tensor grad, Tensor argmax, Tensor rois, SymInt[] input_shape, bool channels_last, "
    "float spatial_scale, bool rounded) -> Tensor grad_input",
    outputs=lambda a: (empty_maps(a.input_shape, a.grad.dtype, a.grad, a.channels_last),),
    workspace=lambda C, a: C.roi_pool_backward_workspace(a.grad, a.rois, a.input_shape, a.channels_last),
    oracle=_pool_backward_oracle,
    triton="roi_pool.roi_pool_triton:roi_pool_backward",
)


@accepts_arrays
def roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    *,
    rounded: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Maxima over a grid of bins of each region of interest, [R, C, PH, PW] (Girshick 2015, section 2.1).

    input [B, C, H, W], contiguous or channels_last (the output is stored likewise; other strides are copied), fp16,
    bf16, fp32 or fp64. boxes: [R, 5] rows (image, x1, y1, x2, y2), or a list of [L, 4] boxes for each image, in pixels
    of the image; spatial_scale (map cells a pixel) takes them to the map. Boxes of another floating dtype are converted
    to float32 (float64 for a float64 input). output_size: bins, one number or (height, width).

    Caffe's and torchvision's rounding: corners are scaled and rounded (halves away from zero); the box then covers
    max(end - start + 1, 1) cells along each axis, divided by the number of bins; a bin runs from the floor of its start
    to the ceiling of its end, within the map. rounded=False is mmcv's rule: corners are scaled and not rounded, the
    lower and right ones after 1 has been added; a box that then has no width or no height gives 0. The maximum is over
    the cells that are not NaN; a bin of NaN alone gives NaN, an empty bin 0. A row with image index -1 (padding) and a
    box with a non-finite corner give 0.

    The gradient goes to the first largest cell in row-major order; sums run in the order of boxes, then bins. Forward
    and backward give the same bits on every backend, whatever the number of threads. There is no gradient to the boxes
    and no second derivative. O(C) times the cells in the boxes.

    ValueError: wrong shapes, mixed devices, an image index outside -1 ... B-1 (on CUDA such a row gives 0, unless
    FRCNN_FAST_CHECK=1). TypeError: wrong dtypes.
    """
    _checks.check_float("input", input, "[B, C, H, W]", 4)
    rois = roi_tensor(boxes, input)
    height, width = output_pair(output_size)
    # What vmap has around a tensor does not say whether somebody further out differentiates.
    with_argmax = torch.is_grad_enabled() and (input.requires_grad or within_functorch())
    scalars = (float(spatial_scale), bool(rounded), with_argmax)
    return _pool(dense(input), rois, height, width, *scalars, backend=backend)[0]


def _align_outputs(a: Any) -> tuple[Tensor]:
    shape = (a.rois.shape[0], a.input.shape[1], a.output_height, a.output_width)
    return (empty_maps(shape, a.input.dtype, a.input, a.channels_last),)


def _align_setup(ctx: Any, a: Any, output: Tensor) -> None:
    ctx.wanted = (a.input.requires_grad, a.rois.requires_grad)
    ctx.layout = a.input.shape, is_channels_last(a.input)
    ctx.scalars = a.spatial_scale, a.sampling_ratio, a.aligned
    # The gradient of the input needs its shape alone.
    ctx.save_for_backward(a.rois, *([a.input] if ctx.wanted[1] else []))


def _align_gradient(ctx: Any, grad: Tensor) -> dict[str, Tensor]:
    rois, *input = map(unwrap_if_dead, ctx.saved_tensors)
    grad, rois, found = dense(grad), rois.contiguous(), {}
    if ctx.wanted[0]:
        found["input"] = _align_backward(grad, rois, *ctx.layout, *ctx.scalars)
    if ctx.wanted[1]:
        found["rois"] = _align_rois_backward(grad, dense(input[0]), rois, *ctx.scalars)
    return found


_align = Operator(
    "roi_align(Tensor input, Tensor rois, SymInt output_height, SymInt output_width, float spatial_scale, "
    "int sampling_ratio, bool aligned, bool channels_last) -> Tensor output",
    outputs=_align_outputs,
    workspace=lambda C, a: C.roi_align_workspace(*a),
    oracle=reference.roi_align,
    triton="roi_pool.roi_align_triton:roi_align",
    setup_context=_align_setup,
    backward=_align_gradient,
)

_align_backward = Operator(
    "roi_align_backward(Tensor grad, Tensor rois, SymInt[] input_shape, bool channels_last, float spatial_scale, "
    "int sampling_ratio, bool aligned) -> Tensor grad_input",
    outputs=lambda a: (empty_maps(a.input_shape, a.grad.dtype, a.grad, a.channels_last),),
    workspace=lambda C, a: C.roi_align_backward_workspace(*a),
    oracle=reference.roi_align_backward,
    triton="roi_pool.roi_align_triton:roi_align_backward",
)

_align_rois_backward = Operator(
    "roi_align_rois_backward(Tensor grad, Tensor input, Tensor rois, float spatial_scale, int sampling_ratio, "
    "bool aligned) -> Tensor grad_rois",
    outputs=lambda a: (torch.empty_like(a.rois),),
    workspace=lambda C, a: C.roi_align_rois_backward_workspace(*a),
    oracle=reference.roi_align_rois_backward,
    triton="roi_pool.roi_align_rois_triton:roi_align_rois_backward",
)


def _max_outputs(a: Any) -> tuple[Tensor, ...]:
    output, kind = _pooled(a), a.rois.dtype
    if a.with_argmax:
        return output, torch.empty_like(output, dtype=kind), torch.empty_like(output, dtype=kind)
    return output, a.input.new_empty(0, dtype=kind), a.input.new_empty(0, dtype=kind)


def _max_setup(ctx: Any, a: Any, output: tuple[Tensor, ...]) -> None:
    ctx.with_argmax, ctx.scalars = a.with_argmax, (a.spatial_scale, a.sampling_ratio, a.aligned)
    ctx.layout = a.input.shape, is_channels_last(a.input)
    argmax = [_as_stored(t) if a.with_argmax and ctx.layout[1] else t for t in output[1:]]
    ctx.save_for_backward(a.rois, *argmax)


def _max_gradient(ctx: Any, grad: Tensor, *_: Any) -> dict[str, Tensor]:
    if not ctx.with_argmax:
        raise RuntimeError("roi_align_max: called without argmax, which the gradient needs; pass with_argmax=True")
    rois, *argmax = contiguous_saved(ctx)
    if ctx.layout[1]:
        argmax = [_as_named(t) for t in argmax]
    return {"input": _align_max_backward(dense(grad), *argmax, rois, *ctx.layout, *ctx.scalars)}


_align_max = Operator(
    "roi_align_max(Tensor input, Tensor rois, SymInt output_height, SymInt output_width, float spatial_scale, "
    "int sampling_ratio, bool aligned, bool with_argmax) -> (Tensor output, Tensor argmax_y, Tensor argmax_x)",
    outputs=_max_outputs,
    workspace=lambda C, a: C.roi_align_max_workspace(*a[:-1]),
    oracle=reference.roi_align_max,
    triton="roi_pool.roi_align_max_triton:roi_align_max",
    setup_context=_max_setup,
    backward=_max_gradient,
)

_align_max_backward = Operator(
    "roi_align_max_backward(Tensor grad, Tensor argmax_y, Tensor argmax_x, Tensor rois, SymInt[] input_shape, "
    "bool channels_last, float spatial_scale, int sampling_ratio, bool aligned) -> Tensor grad_input",
    outputs=lambda a: (empty_maps(a.input_shape, a.grad.dtype, a.grad, a.channels_last),),
    workspace=lambda C, a: C.roi_align_max_backward_workspace(a.grad, *a[3:]),
    oracle=reference.roi_align_max_backward,
    triton="roi_pool.roi_align_max_triton:roi_align_max_backward",
)


@accepts_arrays
def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    mode: str = "avg",
    box_gradients: bool = False,
    memory_format: torch.memory_format | None = None,
    backend: str | None = None,
) -> Tensor:
    """Means of bilinear samples over a grid of bins of each region, [R, C, PH, PW] (He et al. 2017, section 3).

    input, boxes, output_size and spatial_scale as in `roi_pool`. sampling_ratio: samples along each axis of a bin;
    not positive: ceil(side of the bin in cells), at most 2^20. aligned: False, a corner at x lies on cell x and boxes
    are at least 1 x 1 cells; True, half a cell earlier, and boxes keep their size (an inverted one then gives 0 where
    sampling_ratio is not positive).

    mode: "avg", the mean of a bin's samples, or "max", the largest that is not NaN (mmcv's pool_mode). The gradient of
    a maximum goes to the cells beside its sample, of equal ones the first in row-major order; a bin of NaN alone gives
    NaN. Maxima are the same bits on every backend.

    memory_format: how the output is stored, torch.contiguous_format or torch.channels_last, whatever the input is;
    None: as the input. The mean is written so at once, which costs less than a copy afterwards (a head that flattens
    channels_last regions copies them); maxima are copied. Gradients of the output are read in either format.

    A sample further than one cell outside the map adds 0 but is counted; one outside by less reads the border. NaN and
    infinity spread to every sample between whose cells they are. A row with image index -1 (padding) and a box with a
    non-finite corner give 0.

    Computed in float32 (float64 for float64), rounded once to the input's dtype. Sums run over the touched cells in
    row-major order, in the backward pass over boxes, then bins, so results repeat to the bit and are the same on the
    CPU and on CUDA; both are within 64 units in the last place of the sum of magnitudes. There is no second derivative.
    O(C) times the cells that samples touch.

    box_gradients: boxes that require a gradient get one (else none); of means alone. It is the derivative of the mean
    of these samples as they move with the corners, their number held fixed, also where it follows the box's side. A
    sample outside the map gives 0, and so does, along an axis, one at or beyond the centre of the first or the last
    cell, which reads that cell wherever it is; one on the centre of another cell has the slope to the right of it (or
    below it). Where aligned=False enlarges a box to one cell, the upper and left corner alone moves it. Padding and
    boxes with a non-finite corner get 0. The same bits on every backend; on a processor it takes four to seven times as
    long as the forward pass. `prroi_pool` has derivatives without kinks.

    ValueError and TypeError as `roi_pool`; ValueError for another mode or memory_format, or gradients of maxima.
    """
    _checks.check_float("input", input, "[B, C, H, W]", 4)
    rois = roi_tensor(boxes, input, differentiable=bool(box_gradients))
    height, width = output_pair(output_size)
    scalars = (float(spatial_scale), int(sampling_ratio), bool(aligned))
    if mode not in ("avg", "max"):
        raise ValueError(f"mode: expected 'avg' or 'max', got {mode!r}")
    if box_gradients and mode != "avg":
        raise ValueError("box_gradients: there is no gradient of maxima to the boxes; use mode='avg', or prroi_pool")
    input = dense(input)
    channels_last = pools_channels_last(memory_format, input)
    if mode == "max":
        with_argmax = torch.is_grad_enabled() and (input.requires_grad or within_functorch())
        output = _align_max(input, rois, height, width, *scalars, with_argmax, backend=backend)[0]
        return output if memory_format is None else output.contiguous(memory_format=memory_format)
    return _align(input, rois, height, width, *scalars, channels_last, backend=backend)
