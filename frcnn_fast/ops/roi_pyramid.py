"""RoIAlign over the levels of a feature pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from frcnn_fast import reference as oracle
from frcnn_fast._extension import extension
from frcnn_fast.kernels.roi_pool.roi_levels import level_thresholds
from frcnn_fast.ops import _checks
from frcnn_fast.ops._backends import asked_for
from frcnn_fast.ops._operator_positional import Operator, plain_eager
from frcnn_fast.ops._rois import (
    dense,
    empty_maps,
    is_channels_last,
    no_second_derivative,
    output_pair,
    roi_tensor,
    workspace,
)


class _OverLevels(Operator):
    """An op whose first argument is a list of maps, through which gradients flow."""

    def __call__(self, *inputs: Any, backend: str | None = None) -> Any:
        features, *args = inputs
        if not plain_eager([*features, args[0]]):
            return self._registered(features, *args, asked_for(backend))
        if torch.is_grad_enabled() and any(f.requires_grad for f in features):
            return _EagerLevels.apply(self, backend, len(features), *features, *args)
        return self.run(backend, features, *args)


class _EagerLevels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: Operator, backend: str | None, levels: int, *args: Any) -> Tensor:
        ctx.op, ctx.levels = op, levels
        inputs = (args[:levels], *args[levels:])
        result = op.run(backend, *inputs)
        op._setup(ctx, backend, inputs, result)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        grads, *others = ctx.op._gradient(ctx, (grad,))
        return (None, None, None, *grads, *others)


class _ToLevels(Operator):
    """An op that returns a list of maps."""

    def run(self, backend: str | None, *args: Any) -> list[Tensor]:
        maps = super().run(backend, *args)
        return [maps] if isinstance(maps, Tensor) else list(maps)

    def _fake(self, *args: Any) -> list[Tensor]:
        return list(self.outputs(*args[:-1]))


def _pyramid_outputs(features: Sequence[Tensor], rois: Tensor, height: int, width: int, *_: Any) -> tuple[Tensor]:
    first = features[0]
    shape = (rois.shape[0], first.shape[1], height, width)
    return (empty_maps(shape, first.dtype, first, is_channels_last(first)),)


def _pyramid_launch(
    features: Sequence[Tensor],
    rois: Tensor,
    height: int,
    width: int,
    scales: Sequence[float],
    ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
    output: Tensor,
) -> None:
    C = extension()
    thresholds = level_thresholds(tuple(scales), canonical_scale, canonical_level)
    memory = workspace(C.roi_align_workspace(features, rois, scales, thresholds, ratio, aligned, output), output)
    C.roi_align(features, rois, scales, thresholds, ratio, aligned, memory, output)


def _pyramid_oracle(
    features: Any, rois: Any, height: int, width: int, scales: Any, ratio: int, aligned: bool, *canonical: Any
) -> Any:
    names = dict(zip(("canonical_scale", "canonical_level"), canonical))
    return oracle.multiscale_roi_align(features, rois, scales, (height, width), ratio, aligned=aligned, **names)


def _pyramid_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, rois, _, _, *ctx.scalars = inputs
    ctx.shapes = [side for f in features for side in f.shape]
    ctx.layouts = [is_channels_last(f) for f in features]
    ctx.save_for_backward(rois)


def _pyramid_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (rois,) = ctx.saved_tensors
    grads = _pyramid_backward(dense(grad), rois, ctx.shapes, ctx.layouts, *ctx.scalars)
    return grads, *[None] * 8


_pyramid = _OverLevels(
    "multiscale_roi_align(Tensor[] features, Tensor rois, SymInt height, SymInt width, float[] spatial_scales,"
    " int sampling_ratio, bool aligned, float canonical_scale, int canonical_level) -> Tensor",
    outputs=_pyramid_outputs,
    launch=_pyramid_launch,
    triton="roi_pool.roi_align_triton:multiscale_roi_align",
    reference=_pyramid_oracle,
    setup_context=_pyramid_setup,
    backward=_pyramid_gradient,
)


def _maps(grad: Tensor, shapes: Sequence[int], layouts: Sequence[bool]) -> tuple[Tensor, ...]:
    return tuple(empty_maps(shapes[4 * i : 4 * i + 4], grad.dtype, grad, last) for i, last in enumerate(layouts))


def _pyramid_backward_launch(
    grad: Tensor,
    rois: Tensor,
    shapes: Sequence[int],
    layouts: Sequence[bool],
    scales: Sequence[float],
    ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
    *maps: Tensor,
) -> None:
    C = extension()
    thresholds = level_thresholds(tuple(scales), canonical_scale, canonical_level)
    size = C.roi_align_backward_workspace(grad, rois, scales, thresholds, ratio, aligned, maps)
    C.roi_align_backward(grad, rois, scales, thresholds, ratio, aligned, workspace(size, grad), maps)


def _pyramid_backward_oracle(
    grad: Any, rois: Any, shapes: Any, layouts: Any, scales: Any, ratio: int, aligned: bool, *canonical: Any
) -> Any:
    names = dict(zip(("canonical_scale", "canonical_level"), canonical))
    sizes = [tuple(shapes[i : i + 4]) for i in range(0, len(shapes), 4)]
    return oracle.multiscale_roi_align_backward(
        grad, rois, sizes, scales, grad.shape[2:], ratio, aligned=aligned, **names
    )


_pyramid_backward = _ToLevels(
    "multiscale_roi_align_backward(Tensor grad, Tensor rois, SymInt[] shapes, bool[] channels_last,"
    " float[] spatial_scales, int sampling_ratio, bool aligned, float canonical_scale, int canonical_level)"
    " -> Tensor[]",
    outputs=lambda grad, rois, shapes, layouts, *_: _maps(grad, shapes, layouts),
    launch=_pyramid_backward_launch,
    triton="roi_pool.roi_align_triton:multiscale_roi_align_backward",
    reference=_pyramid_backward_oracle,
    setup_context=lambda ctx, inputs, output: None,
    backward=no_second_derivative("multiscale_roi_align"),
)


def multiscale_roi_align(
    features: Sequence[Tensor],
    rois: Tensor | Sequence[Tensor],
    spatial_scales: Sequence[float],
    output_size: int | tuple[int, int],
    sampling_ratio: int,
    *,
    aligned: bool = False,
    canonical_scale: float = 224.0,
    canonical_level: int = 4,
    backend: str | None = None,
) -> Tensor:
    """RoIAlign of each region on its own level of a pyramid, [K, C, height, width] (Lin et al. 2017, equation 1).

    features: up to 8 maps [B, C, H_l, W_l] of one dtype, each contiguous or channels_last (the output is stored as the
    first one), finest first; spatial_scales: cells a pixel of each, neighbouring powers of two. rois: [K, 5] rows
    (image, x1, y1, x2, y2), or a list of [L, 4] boxes for each image, in pixels. sampling_ratio, aligned, the order of
    the sums, errors and the treatment of padding and of odd values as in `roi_align`.

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
    boxes = roi_tensor(rois, first, "rois")
    maps = [dense(f) for f in features]
    return _pyramid(maps, boxes, height, width, scales, int(sampling_ratio), bool(aligned), *canonical, backend=backend)
