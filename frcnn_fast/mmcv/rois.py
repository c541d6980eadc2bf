"""RoIAlign and the RoI pooling ops. Signatures are those of mmcv's compiled functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from frcnn_fast.mmcv.numbers import c_float
from frcnn_fast.ops._rois import dense, is_channels_last, roi_tensor
from frcnn_fast.ops.roi_pool import _align, _align_backward, _align_max, _align_max_backward, _pool, _pool_backward

MAX = 0  # of pool_mode; 1: mean

NOWHERE = -1.0  # in argmax_y and argmax_x
CONTIGUOUS = torch.contiguous_format

_LOWEST = -10_000.0  # what mmcv's RoIAlign begins with to look for a larger one


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Into output [R, C, PH, PW]; of maxima, the sample's place into argmax_y and argmax_x, in cells."""
    if not len(rois):
        return
    input, rois = dense(input), roi_tensor(rois, input)
    scalars = (aligned_height, aligned_width, c_float(spatial_scale), sampling_ratio, bool(aligned))
    if pool_mode == MAX:
        found, y, x = _align_max.run(None, input, rois, *scalars, True)
        nothing = y.isnan() | ~(found > _LOWEST)
        output.copy_(found.masked_fill_(nothing, _LOWEST))
        argmax_y.copy_(y.masked_fill_(nothing, NOWHERE))
        argmax_x.copy_(x.masked_fill_(nothing, NOWHERE))
    elif dense(output) is output:
        _align.run(None, input, rois, *scalars, is_channels_last(output), into=(output,))
    else:
        output.copy_(_align.run(None, input, rois, *scalars, False))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Into grad_input [B, C, H, W], which holds zeros."""
    if not len(rois):
        return
    rois = roi_tensor(rois, grad_input)
    arguments = (rois, grad_input.shape, False, c_float(spatial_scale), sampling_ratio, bool(aligned))
    into = grad_input if grad_input.is_contiguous() else torch.empty_like(grad_input, memory_format=CONTIGUOUS)
    if pool_mode == MAX:
        known = argmax_y != NOWHERE
        places = (t.to(rois.dtype).masked_fill(~known, math.nan).contiguous() for t in (argmax_y, argmax_x))
        _align_max_backward.run(None, dense(grad_output), *places, *arguments, into=(into,))
    else:
        _align_backward.run(None, dense(grad_output), *arguments, into=(into,))
    if into is not grad_input:
        grad_input.copy_(into)


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Into output [R, C, PH, PW] and argmax, int32, both contiguous; argmax is what the backward pass reads: on a CPU
    the cell of H * W, of an empty bin -1.

    mmcv's maximum begins with the lowest finite number, which is what a bin of nothing larger gives, and no place.
    """
    if not len(rois):
        return
    lowest = torch.finfo(input.dtype).min
    known = input.masked_fill(~(input > lowest), math.nan).contiguous()
    scalars = (pooled_height, pooled_width, c_float(spatial_scale), False, True)
    _pool.run(None, known, roi_tensor(rois, known), *scalars, into=(output, argmax))
    output.masked_fill_(output.isnan(), lowest)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Into grad_input [B, C, H, W], contiguous, which holds zeros."""
    if not len(rois):
        return
    scalars = (grad_input.shape, False, c_float(spatial_scale), False)
    _pool_backward.run(None, dense(grad_output), argmax, roi_tensor(rois, grad_input), *scalars, into=(grad_input,))
