"""RoIPool and RoIAlign of one feature map; roi_pyramid.py has RoIAlign over the levels of a pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frcnn_fast import reference as oracle
from frcnn_fast._extension import extension
from frcnn_fast.ops import _checks
from frcnn_fast.ops._arrays import accepts_arrays
from frcnn_fast.ops._operator_positional import Operator
from frcnn_fast.ops._rois import (
    dense,
    empty_maps,
    is_channels_last,
    no_second_derivative,
    output_pair,
    roi_tensor,
    workspace,
)

# roi_pool


def _pool_outputs(
    input: Tensor, rois: Tensor, height: int, width: int, spatial_scale: float, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    shape = (rois.shape[0], input.shape[1], height, width)
    last = is_channels_last(input)
    argmax = empty_maps(shape, torch.int32, input, last) if with_argmax else input.new_empty(0, dtype=torch.int32)
    return empty_maps(shape, input.dtype, input, last), argmax


def _pool_launch(
    input: Tensor,
    rois: Tensor,
    height: int,
    width: int,
    spatial_scale: float,
    with_argmax: bool,
    output: Tensor,
    argmax: Tensor,
) -> None:
    C = extension()
    memory = workspace(C.roi_pool_workspace(input, rois, output), input)
    C.roi_pool(input, rois, spatial_scale, memory, output, argmax if with_argmax else None)


def _pool_oracle(
    input: np.ndarray, rois: np.ndarray, height: int, width: int, spatial_scale: float, with_argmax: bool
) -> tuple[np.ndarray, np.ndarray]:
    output, argmax = oracle.roi_pool(input, rois, (height, width), spatial_scale)
    return output, argmax if with_argmax else np.empty(0, np.int32)


# The last number of a row of argmax that the CUDA kernels have packed (kernels/roi_pool/roi_bins.cuh).
_PACKED = -(2**31)


def _pool_backward_oracle(
    grad: np.ndarray, argmax: np.ndarray, rois: np.ndarray, B: int, C: int, H: int, W: int, *_: object
) -> np.ndarray:
    if argmax.size and (argmax[:, -1, -1, -1] == _PACKED).any():
        raise ValueError("argmax: the reference cannot read what the CUDA kernels pack; run both passes on one backend")
    return oracle.roi_pool_backward(grad, argmax, rois, (B, C, H, W))


def _pool_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, rois, _, _, ctx.spatial_scale, ctx.with_argmax = inputs
    ctx.shape, ctx.channels_last = input.shape, is_channels_last(input)
    ctx.save_for_backward(rois, output[1])


def _pool_gradient(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    if not ctx.with_argmax:
        raise RuntimeError("roi_pool: called without argmax, which the gradient needs; pass with_argmax=True")
    rois, argmax = ctx.saved_tensors
    grad_input = _pool_backward(dense(grad), argmax, rois, *ctx.shape, ctx.channels_last, ctx.spatial_scale)
    return grad_input, None, None, None, None, None


_pool = Operator(
    "roi_pool(Tensor input, Tensor rois, SymInt height, SymInt width, float spatial_scale, bool with_argmax)"
    " -> (Tensor, Tensor)",
    outputs=_pool_outputs,
    launch=_pool_launch,
    triton="roi_pool.roi_pool_triton:roi_pool",
    reference=_pool_oracle,
    setup_context=_pool_setup,
    backward=_pool_gradient,
)


def _pool_backward_launch(
    grad: Tensor,
    argmax: Tensor,
    rois: Tensor,
    B: int,
    channels: int,
    H: int,
    W: int,
    last: bool,
    spatial_scale: float,
    grad_input: Tensor,
) -> None:
    C = extension()
    memory = workspace(C.roi_pool_backward_workspace(grad, rois, grad_input), grad)
    C.roi_pool_backward(grad, argmax, rois, spatial_scale, memory, grad_input)


_pool_backward = Operator(
    "roi_pool_backward(Tensor grad, Tensor argmax, Tensor rois, SymInt batch, SymInt channels, SymInt map_height,"
    " SymInt map_width, bool channels_last, float spatial_scale) -> Tensor",
    outputs=lambda grad, argmax, rois, B, C, H, W, last, scale: (empty_maps((B, C, H, W), grad.dtype, grad, last),),
    launch=_pool_backward_launch,
    triton="roi_pool.roi_pool_triton:roi_pool_backward",
    reference=_pool_backward_oracle,
    setup_context=lambda ctx, inputs, output: None,
    backward=no_second_derivative("roi_pool"),
)


@accepts_arrays
def roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    *,
    backend: str | None = None,
) -> Tensor:
    """Maxima over a grid of bins of each region of interest, [K, C, height, width] (Girshick 2015, section 2.1).

    input [B, C, H, W], contiguous or channels_last (the output is stored likewise; other strides are copied), fp16,
    bf16, fp32 or fp64. boxes: [K, 5] rows (image, x1, y1, x2, y2), or a list of [L, 4] boxes for each image, in pixels
    of the image; spatial_scale (map cells a pixel) takes them to the map. Boxes of another floating dtype are converted
    to float32 (float64 for a float64 input). output_size: bins, one number or (height, width).

    Caffe's and torchvision's rounding: corners are scaled and rounded (halves away from zero); the box then covers
    max(end - start + 1, 1) cells along each axis, divided by the number of bins; a bin runs from the floor of its start
    to the ceiling of its end, within the map. The maximum is over the cells that are not NaN; a bin of NaN alone gives
    NaN, an empty bin 0. A row with image index -1 (padding) and a box with a non-finite corner give 0.

    The gradient goes to the first largest cell in row-major order; sums run in the order of boxes, then bins. Forward
    and backward give the same bits on every backend, whatever the number of threads. There is no gradient to the boxes
    and no second derivative. O(C) times the cells in the boxes.

    ValueError: wrong shapes, mixed devices, an image index outside -1 ... B-1 (on CUDA such a row gives 0, unless
    FRCNN_FAST_CHECK=1). TypeError: wrong dtypes.
    """
    _checks.check_float("input", input, "[B, C, H, W]", 4)
    rois = roi_tensor(boxes, input)
    height, width = output_pair(output_size)
    with_argmax = torch.is_grad_enabled() and input.requires_grad
    return _pool(dense(input), rois, height, width, float(spatial_scale), with_argmax, backend=backend)[0]


# roi_align


def _align_outputs(
    input: Tensor, rois: Tensor, height: int, width: int, scale: float, ratio: int, aligned: bool
) -> tuple[Tensor]:
    shape = (rois.shape[0], input.shape[1], height, width)
    return (empty_maps(shape, input.dtype, input, is_channels_last(input)),)


def _align_launch(
    input: Tensor, rois: Tensor, height: int, width: int, scale: float, ratio: int, aligned: bool, output: Tensor
) -> None:
    C = extension()
    memory = workspace(C.roi_align_workspace((input,), rois, (scale,), (), ratio, aligned, output), input)
    C.roi_align((input,), rois, (scale,), (), ratio, aligned, memory, output)


def _align_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, rois, _, _, *ctx.scalars = inputs
    ctx.shape, ctx.channels_last = input.shape, is_channels_last(input)
    ctx.save_for_backward(rois)


def _align_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (rois,) = ctx.saved_tensors
    grad_input = _align_backward(dense(grad), rois, *ctx.shape, ctx.channels_last, *ctx.scalars)
    return grad_input, None, None, None, None, None, None


_align = Operator(
    "roi_align(Tensor input, Tensor rois, SymInt height, SymInt width, float spatial_scale, int sampling_ratio,"
    " bool aligned) -> Tensor",
    outputs=_align_outputs,
    launch=_align_launch,
    triton="roi_pool.roi_align_triton:roi_align",
    reference=lambda input, rois, height, width, *scalars: oracle.roi_align(input, rois, (height, width), *scalars),
    setup_context=_align_setup,
    backward=_align_gradient,
)


def _align_backward_launch(
    grad: Tensor,
    rois: Tensor,
    B: int,
    channels: int,
    H: int,
    W: int,
    last: bool,
    scale: float,
    ratio: int,
    aligned: bool,
    grad_input: Tensor,
) -> None:
    C = extension()
    maps = (grad_input,)
    memory = workspace(C.roi_align_backward_workspace(grad, rois, (scale,), (), ratio, aligned, maps), grad)
    C.roi_align_backward(grad, rois, (scale,), (), ratio, aligned, memory, maps)


_align_backward = Operator(
    "roi_align_backward(Tensor grad, Tensor rois, SymInt batch, SymInt channels, SymInt map_height, SymInt map_width,"
    " bool channels_last, float spatial_scale, int sampling_ratio, bool aligned) -> Tensor",
    outputs=lambda grad, rois, B, C, H, W, last, *_: (empty_maps((B, C, H, W), grad.dtype, grad, last),),
    launch=_align_backward_launch,
    triton="roi_pool.roi_align_triton:roi_align_backward",
    reference=lambda grad, rois, B, C, H, W, last, *scalars: oracle.roi_align_backward(
        grad, rois, (B, C, H, W), grad.shape[2:], *scalars
    ),
    setup_context=lambda ctx, inputs, output: None,
    backward=no_second_derivative("roi_align"),
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
    backend: str | None = None,
) -> Tensor:
    """Means of bilinear samples over a grid of bins of each region, [K, C, height, width] (He et al. 2017, section 3).

    input, boxes, output_size and spatial_scale as in `roi_pool`. sampling_ratio: samples along each axis of a bin;
    not positive: ceil(side of the bin in cells), at most 2^20. aligned: False, a corner at x lies on cell x and boxes
    are at least 1 x 1 cells; True, half a cell earlier, and boxes keep their size (an inverted one then gives 0 where
    sampling_ratio is not positive).

    A sample further than one cell outside the map adds 0 but is counted; one outside by less reads the border. NaN and
    infinity spread to every sample between whose cells they are. A row with image index -1 (padding) and a box with a
    non-finite corner give 0.

    Computed in float32 (float64 for float64), rounded once to the input's dtype. Sums run over the touched cells in
    row-major order, in the backward pass over boxes, then bins, so results repeat to the bit and are the same on the
    CPU and on CUDA; both are within 64 units in the last place of the sum of magnitudes. There is no gradient to the
    boxes and no second derivative. O(C) times the cells that samples touch.

    ValueError and TypeError as `roi_pool`.
    """
    _checks.check_float("input", input, "[B, C, H, W]", 4)
    rois = roi_tensor(boxes, input)
    height, width = output_pair(output_size)
    scalars = (float(spatial_scale), int(sampling_ratio), bool(aligned))
    return _align(dense(input), rois, height, width, *scalars, backend=backend)
