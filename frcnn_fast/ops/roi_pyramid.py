"""RoIAlign over the levels of a feature pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from frcnn_fast import reference
from frcnn_fast.kernels.roi_pool.roi_levels import level_thresholds
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


def _outputs(a: Any) -> tuple[Tensor]:
    first = a.features[0]
    shape = (a.rois.shape[0], first.shape[1], a.output_height, a.output_width)
    return (empty_maps(shape, first.dtype, first, a.channels_last),)


def _setup(ctx: Any, a: Any, output: Tensor) -> None:
    ctx.shapes = [side for f in a.features for side in f.shape]
    ctx.layouts = [is_channels_last(f) for f in a.features]
    ctx.scalars = a.spatial_scales, a.sampling_ratio, a.aligned, a.canonical_scale, a.canonical_level
    ctx.save_for_backward(a.rois)


def _gradient(ctx: Any, grad: Tensor) -> dict[str, list[Tensor]]:
    (rois,) = contiguous_saved(ctx)
    return {"features": _multiscale_backward(dense(grad), rois, ctx.shapes, ctx.layouts, *ctx.scalars)}


_multiscale = Operator(
    "multiscale_roi_align(Tensor[] features, Tensor rois, SymInt output_height, SymInt output_width, "
    "float[] spatial_scales, int sampling_ratio, bool aligned, float canonical_scale, int canonical_level, "
    "bool channels_last) -> Tensor output",
    outputs=_outputs,
    workspace=lambda C, a: C.multiscale_roi_align_workspace(*a),
    oracle=reference.multiscale_roi_align,
    triton="roi_pool.roi_align_triton:multiscale_roi_align",
    setup_context=_setup,
    backward=_gradient,
)


def _backward_outputs(a: Any) -> tuple[list[Tensor]]:
    """One list of maps. input_shapes: (B, C, H, W) of one level after the other."""
    grad, sides = a.grad, a.input_shapes
    return ([empty_maps(sides[4 * i : 4 * i + 4], grad.dtype, grad, last) for i, last in enumerate(a.channels_last)],)


_multiscale_backward = Operator(
    "multiscale_roi_align_backward(Tensor grad, Tensor rois, SymInt[] input_shapes, bool[] channels_last, "
    "float[] spatial_scales, int sampling_ratio, bool aligned, float canonical_scale, int canonical_level) "
    "-> Tensor[] grad_features",
    outputs=_backward_outputs,
    workspace=lambda C, a: C.multiscale_roi_align_backward_workspace(*a),
    oracle=reference.multiscale_roi_align_backward,
    triton="roi_pool.roi_align_triton:multiscale_roi_align_backward",
)


@accepts_arrays
def multiscale_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scales: Sequence[float],
    sampling_ratio: int,
    *,
    aligned: bool = False,
    canonical_scale: float = 224.0,
    canonical_level: int = 4,
    memory_format: torch.memory_format | None = None,
    backend: str | None = None,
) -> Tensor:
    """RoIAlign of each region on its own level of a pyramid, [R, C, PH, PW] (Lin et al. 2017, equation 1).

    features: up to 8 maps [B, C, H_l, W_l] of one dtype, each contiguous or channels_last, finest first;
    spatial_scales: cells a pixel of each, neighbouring powers of two. boxes, output_size, sampling_ratio, aligned,
    memory_format (None: as the first of the features), the order of the sums, errors and the treatment of padding and
    of odd values as in `roi_align`.

    Level: floor(canonical_level + log2(sqrt(area) / canonical_scale) + 1e-6), at least the finest and at most the
    coarsest one, found by comparing the area with thresholds, which every backend does alike. A NaN area belongs to the
    finest level. One call, one output: no RoI is moved.
    """
    if not isinstance(features, (list, tuple)) or not features:
        raise TypeError(f"features: expected a list of tensors [B, C, H, W], got {_checks.describe(features)}")
    first = features[0]
    for level, feature in enumerate(features):
        _checks.check_float(f"features[{level}]", feature, "[B, C, H, W]", 4)
        _checks.check_same(f"features[{level}]", feature, "features[0]", first)
        if feature.shape[:2] != first.shape[:2]:
            raise ValueError(
                f"features[{level}]: expected the batch and channels of features[0] ({list(first.shape[:2])}), "
                f"got {_checks.describe(feature)}"
            )
    scales = tuple(float(s) for s in spatial_scales)
    if len(scales) != len(features) or not all(0.0 < s < math.inf for s in scales):
        raise ValueError(f"spatial_scales: expected {len(features)} positive numbers, got {list(scales)}")
    if len(features) > 8:
        raise ValueError(f"features: expected at most 8 levels, got {len(features)}")
    canonical = (float(canonical_scale), int(canonical_level))
    if canonical[0] <= 0.0:
        raise ValueError(f"canonical_scale: expected a positive number of pixels, got {canonical[0]!r}")
    if not torch.compiler.is_compiling():
        level_thresholds(scales, *canonical)  # refuses scales that are no pyramid
    height, width = output_pair(output_size)
    rois = roi_tensor(boxes, first)
    maps = [dense(f) for f in features]
    channels_last = pools_channels_last(memory_format, maps[0])
    scalars = (scales, int(sampling_ratio), bool(aligned), *canonical, channels_last)
    return _multiscale(maps, rois, height, width, *scalars, backend=backend)
