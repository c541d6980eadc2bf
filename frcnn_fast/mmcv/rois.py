"""RoIAlign and the RoI pooling ops. Signatures are those of mmcv's compiled functions."""

from __future__ import annotations

import torch
from torch import Tensor

from frcnn_fast.mmcv.numbers import c_float
from frcnn_fast.mmcv.sampling import MOST_VALUES, corners_of, read, regions
from frcnn_fast.ops import _checks
from frcnn_fast.ops._rois import dense, is_channels_last, roi_tensor
from frcnn_fast.ops.roi_pool import _align, _align_backward

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
    """Into output [R, C, PH, PW] and argmax int32, the cell of H * W; of an empty bin 0 and -1.

    mmcv's rounding, which is not Caffe's: corners are scaled and not rounded, the right and lower ones after 1 has been
    added. A region without a side gives 0 everywhere.
    """
    H, W = input.shape[2:]
    scale = c_float(spatial_scale)
    rois = rois.to(_checks.compute_dtype(input))
    starts, ends = rois[:, [2, 1]] * scale, (rois[:, [4, 3]] + 1) * scale
    sides = ends - starts
    rows = _bins(starts[:, 0], sides[:, 0], pooled_height, H)
    columns = _bins(starts[:, 1], sides[:, 1], pooled_width, W)
    output.zero_()
    argmax.fill_(-1)
    lowest = torch.finfo(input.dtype).min
    maps = input.masked_fill(input.isnan(), lowest)
    for r in (sides > 0).all(1).nonzero()[:, 0].tolist():
        image = maps[int(rois[r, 0])]
        for j, (left, right) in enumerate(columns[r]):
            if right <= left:
                continue
            high, low = rows[r][0][0], rows[r][-1][1]  # of the region's rows
            across, column = image[:, high:low, left:right].max(2)
            column = column + torch.arange(high, low, device=column.device) * W + left
            for i, (top, bottom) in enumerate(rows[r]):
                if bottom <= top:
                    continue
                value, row = across[:, top - high : bottom - high].max(1)
                cell = column.gather(1, row[:, None] + (top - high))[:, 0]
                output[r, :, i, j] = value.clamp(min=lowest)
                argmax[r, :, i, j] = torch.where(value > lowest, cell, -1)


def _bins(start: Tensor, side: Tensor, bins: int, limit: int) -> list[list[list[int]]]:
    """(first cell, cell after the last) of every bin of every region."""
    each = torch.arange(bins + 1, device=start.device) * (side / bins)[:, None] + start[:, None]
    low, high = each[:, :-1].floor(), each[:, 1:].ceil()
    return torch.stack([low, high], 2).clamp(0, limit).long().tolist()


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Adds to grad_input [B, C, H, W]."""
    B, C, H, W = grad_input.shape
    channel = torch.arange(C, device=rois.device).view(1, C, 1, 1)
    places = (rois[:, 0].long().view(-1, 1, 1, 1) * C + channel) * (H * W) + argmax.long()
    found = argmax >= 0
    sums = torch.zeros(B * C * H * W, dtype=_checks.compute_dtype(grad_output), device=grad_output.device)
    sums.scatter_add_(0, places[found], grad_output[found].to(sums.dtype))
    grad_input.add_(sums.view(B, C, H, W))
