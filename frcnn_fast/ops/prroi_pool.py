"""Precise RoI pooling: differentiable in the boxes too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from frcnn_fast import reference
from frcnn_fast.ops import _checks
from frcnn_fast.ops._arrays import accepts_arrays
from frcnn_fast.ops._operator import Operator
from frcnn_fast.ops._rois import dense, empty_maps, is_channels_last, output_pair, roi_tensor
from frcnn_fast.ops._torch_private import unwrap_if_dead


def _outputs(a: Any) -> tuple[Tensor]:
    shape = (a.rois.shape[0], a.features.shape[1], a.output_height, a.output_width)
    return (empty_maps(shape, a.features.dtype, a.features, is_channels_last(a.features)),)


def _setup(ctx: Any, a: Any, output: Tensor) -> None:
    ctx.wanted = (a.features.requires_grad, a.rois.requires_grad)
    ctx.layout = a.features.shape, is_channels_last(a.features)
    ctx.spatial_scale = a.spatial_scale
    # The gradient of the features needs their shape alone.
    ctx.save_for_backward(a.rois, *([a.features] if ctx.wanted[1] else []))


def _gradient(ctx: Any, grad: Tensor) -> dict[str, Tensor]:
    rois, *features = map(unwrap_if_dead, ctx.saved_tensors)
    grad, rois, found = dense(grad), rois.contiguous(), {}
    if ctx.wanted[0]:
        found["features"] = _backward(grad, rois, *ctx.layout, ctx.spatial_scale)
    if ctx.wanted[1]:
        found["rois"] = _rois_backward(grad, dense(features[0]), rois, ctx.spatial_scale)
    return found


_prroi_pool = Operator(
    "prroi_pool(Tensor features, Tensor rois, SymInt output_height, SymInt output_width, float spatial_scale) "
    "-> Tensor output",
    outputs=_outputs,
    workspace=lambda C, a: C.prroi_pool_workspace(*a),
    oracle=reference.prroi_pool,
    triton="roi_pool.prroi_pool_triton:prroi_pool",
    setup_context=_setup,
    backward=_gradient,
)

_backward = Operator(
    "prroi_pool_backward(Tensor grad, Tensor rois, SymInt[] input_shape, bool channels_last, float spatial_scale) "
    "-> Tensor grad_features",
    outputs=lambda a: (empty_maps(a.input_shape, a.grad.dtype, a.grad, a.channels_last),),
    workspace=lambda C, a: C.prroi_pool_backward_workspace(*a),
    oracle=reference.prroi_pool_backward,
    triton="roi_pool.prroi_pool_triton:prroi_pool_backward",
)

_rois_backward = Operator(
    "prroi_pool_rois_backward(Tensor grad, Tensor features, Tensor rois, float spatial_scale) -> Tensor grad_rois",
    outputs=lambda a: (torch.empty_like(a.rois),),
    workspace=lambda C, a: C.prroi_pool_rois_backward_workspace(*a),
    oracle=reference.prroi_pool_rois_backward,
    triton="roi_pool.prroi_pool_triton:prroi_pool_rois_backward",
)


@accepts_arrays
def prroi_pool(
    features: Tensor,
    rois: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    *,
    backend: str | None = None,
) -> Tensor:
    """Means over a grid of bins of each region, as exact integrals, [R, C, PH, PW] (Jiang et al. 2018, section 4.2).

    Takes features, rois, output_size and spatial_scale as `roi_pool` takes input, boxes and the rest. The map is
    interpolated bilinearly between its cells, whose centres are at whole numbers (a corner at x * spatial_scale = 2 is
    on cell 2), and is 0 beyond them: it falls to 0 within one cell of the border. The mean of a bin is the integral
    over it divided by its area, so nothing is rounded and nothing sampled. A box whose sides are not both positive
    gives 0, as do a padded row (image index -1), a box with a non-finite corner, and what lies beyond the map. NaN and
    infinity spread to every bin that a cell's bilinear hat reaches into.

    Differentiable in the features and in the boxes, whose corners move the bins' edges; the derivatives are continuous
    but where a side vanishes (there they are 0; none flows to the image index). They divide by the sides of the bins:
    for bins of s cells expect errors of about 1e-7 / s times the features in float32. There is no second derivative.

    Computed in float32 (float64 for float64), each result rounded once to its input's dtype. Every sum has one order
    (see frcnn_fast/reference/prroi_pool.py), so results, forward and backward, are exact and repeatable: the same bits
    on every backend. O(C) times the cells that bins touch; four times that for the gradient of the boxes.

    ValueError and TypeError as `roi_pool`.
    """
    _checks.check_float("features", features, "[B, C, H, W]", 4)
    rows = roi_tensor(rois, features, "rois", differentiable=True)
    height, width = output_pair(output_size)
    return _prroi_pool(dense(features), rows, height, width, float(spatial_scale), backend=backend)
