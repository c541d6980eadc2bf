"""RoIAlign and the RoI pooling ops. Signatures are those of mmcv's compiled functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from frcnn_fast.mmcv.numbers import c_float
from frcnn_fast.mmcv.sampling import MOST_VALUES, corners_of, read, regions
from frcnn_fast.ops._rois import dense, is_channels_last, roi_tensor
from frcnn_fast.ops.roi_pool import _align, _align_backward, _pool, _pool_backward

MAX = 0  # of pool_mode; 1: mean

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
    if pool_mode != MAX:
        scalars = (aligned_height, aligned_width, c_float(spatial_scale), sampling_ratio, bool(aligned))
        if output.is_contiguous() and not is_channels_last(input):
            _align.run(None, input, rois, *scalars, into=(output,))
        else:
            output.copy_(_align.run(None, input, rois, *scalars))
        return
    wide = input.to(rois.dtype)
    bins = (aligned_height, aligned_width)
    for found in regions(rois, input.shape[1], bins, c_float(spatial_scale), sampling_ratio, aligned):
        corners = corners_of(found.y, found.x, *input.shape[2:])
        values = (read(wide, found.image, corners.cells) * corners.weights[..., None]).sum(0)
        values = values.masked_fill(values.isnan(), _LOWEST)
        # A sample that has nothing larger before it, of all and of the lowest number.
        lowest = values.new_full((*values.shape[:3], 1, values.shape[-1]), _LOWEST)
        value, place = torch.cat([lowest, values], 3).max(3)
        output[found.rows] = value.permute(0, 3, 1, 2).to(output.dtype)
        for coordinates, argmax in ((found.y, argmax_y), (found.x, argmax_x)):
            known = torch.nn.functional.pad(coordinates, (1, 0), value=-1.0)
            argmax[found.rows] = known.gather(3, place).permute(0, 3, 1, 2).to(argmax.dtype)


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
    if pool_mode != MAX:
        scalars = (c_float(spatial_scale), sampling_ratio, bool(aligned))
        if grad_input.is_contiguous():
            _align_backward.run(None, dense(grad_output), rois, grad_input.shape, False, *scalars, into=(grad_input,))
        else:
            grad_input.copy_(_align_backward.run(None, dense(grad_output), rois, grad_input.shape, False, *scalars))
        return
    B, C, H, W = grad_input.shape
    channel = torch.arange(C, device=rois.device).view(1, C, 1, 1) * (H * W)
    sums = torch.zeros(B * C * H * W, dtype=rois.dtype, device=rois.device)
    at_once = max(1, MOST_VALUES // grad_output[0].numel())
    for part in zip(*(t.split(at_once) for t in (rois, grad_output, argmax_y, argmax_x))):
        image, (grad, y, x) = part[0][:, 0].long(), (t.to(rois.dtype) for t in part[1:])
        corners = corners_of(y, x, H, W)
        first = image.view(-1, 1, 1, 1) * (C * H * W) + channel
        grad = grad * (y != -1)
        for cells, weights in zip(corners.cells, corners.weights):
            sums.scatter_add_(0, (first + cells).flatten(), (grad * weights).flatten())
    grad_input.add_(sums.view(B, C, H, W))


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
