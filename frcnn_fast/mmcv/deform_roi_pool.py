"""RoI pooling with bins that move (Dai et al. 2017). Signatures are those of mmcv's compiled functions."""

from __future__ import annotations

import torch
from torch import Tensor

from frcnn_fast.mmcv.numbers import c_float
from frcnn_fast.mmcv.sampling import Regions, add, corners_of, read, regions, slopes_of
from frcnn_fast.ops import _checks


def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """RoIAlign (aligned, means) whose bins are moved by offset [R, 2 (x, y), PH, PW] times gamma and the region's side;
    without offsets (an empty tensor), RoIAlign itself. Into output [R, C, PH, PW]."""
    maps, rois = _wide(input), rois.to(_checks.compute_dtype(input))
    bins = (pooled_height, pooled_width)
    for found in regions(rois, input.shape[1], bins, c_float(spatial_scale), sampling_ratio, True):
        y, x = _moved(found, offset, gamma)
        corners = corners_of(y, x, *input.shape[2:])
        values = (read(maps, found.image, corners.cells) * corners.weights[..., None]).sum(0)
        means = values.sum(3) / max(values.shape[3], 1)
        output[found.rows] = means.permute(0, 3, 1, 2).to(output.dtype)


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Adds to grad_input [B, C, H, W] and, where there are offsets, to grad_offset."""
    maps, rois = _wide(input), rois.to(_checks.compute_dtype(input))
    bins = (pooled_height, pooled_width)
    sums = torch.zeros_like(maps, memory_format=torch.contiguous_format)
    for found in regions(rois, input.shape[1], bins, c_float(spatial_scale), sampling_ratio, True):
        y, x = _moved(found, offset, gamma)
        if not y.shape[3]:
            continue
        corners = corners_of(y, x, *input.shape[2:])
        share = _wide(grad_output)[found.rows].permute(0, 2, 3, 1)[:, :, :, None] / y.shape[3]  # [r, PH, PW, 1, C]
        add(sums, found.image, corners.cells, share * corners.weights[..., None])
        if offset.numel():
            values = (read(maps, found.image, corners.cells) * share).sum(-1)  # [4, r, PH, PW, samples]
            along_y, along_x = slopes_of(y, x, *input.shape[2:])
            for axis, along in ((0, along_x), (1, along_y)):
                side = found.size[:, 1 - axis].view(-1, 1, 1)
                slope = gamma * side * (values * along).sum((0, 4))
                grad_offset[found.rows, axis] += slope.to(grad_offset.dtype)
    grad_input.add_(sums)


def _moved(found: Regions, offset: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """The places of the samples."""
    if not offset.numel():
        return found.y, found.x
    by = gamma * found.size.flip(1)[:, :, None, None] * offset[found.rows].to(found.size.dtype)  # x, y
    return found.y + by[:, 1, :, :, None], found.x + by[:, 0, :, :, None]


def _wide(maps: Tensor) -> Tensor:
    return maps.to(_checks.compute_dtype(maps))
