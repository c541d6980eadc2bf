"""Training targets of the RPN: which anchors train it, and towards what (Ren et al. 2015, sections 3.1.2 and 3.1.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from frcnn_fast import reference
from frcnn_fast.ops._arrays import accepts_arrays
from frcnn_fast.ops._checks import (
    check_ground_truth,
    check_int,
    check_positive,
    check_rng,
    check_threshold,
    check_weights,
    compute_dtype,
    contiguous,
    contiguous_in,
    describe,
    image_sizes_tensor,
)
from frcnn_fast.ops._operator import Operator
from frcnn_fast.ops.anchors import AnchorGrids, AnchorSource, num_anchors
from frcnn_fast.ops.results import AnchorLabels, AnchorSamples, RpnTargets


def _assign_outputs(a: Any) -> tuple[Tensor, Tensor]:
    like, B, A = a.gt_boxes, a.gt_boxes.shape[0], num_anchors(a.anchors, a.anchor_grid)
    return like.new_empty(B, A, dtype=torch.int8), like.new_empty(B, A, dtype=torch.int32)


_assign_anchors = Operator(
    "assign_anchors(Tensor anchors, SymInt[] anchor_grid, float anchor_offset, Tensor gt_boxes, Tensor gt_counts, "
    "Tensor? image_sizes, Tensor? crowd, float positive_iou, float negative_iou, bool low_quality, "
    "float min_quality, bool overwrite, float crowd_overlap, bool legacy) -> (Tensor labels, Tensor matched)",
    outputs=_assign_outputs,
    workspace=lambda C, a: C.assign_anchors_workspace(a.anchors, a.anchor_grid, a.gt_boxes),
    oracle=reference.assign_anchors,
    triton="anchor_target.anchor_target_triton:assign_anchors",
    returns=AnchorLabels,
)


@accepts_arrays
def assign_anchors(
    anchors: Tensor | AnchorGrids,
    gt_boxes: Tensor,
    gt_counts: Tensor,
    *,
    image_sizes: Tensor | Sequence[Sequence[float]] | None = None,
    crowd: Tensor | None = None,
    positive_iou: float = 0.7,
    negative_iou: float = 0.3,
    low_quality: bool = True,
    min_quality: float = 0.0,
    overwrite: bool = False,
    crowd_overlap: float = 0.7,
    legacy: bool = False,
    backend: str | None = None,
) -> AnchorLabels:
    """Labels every anchor as object, background or neither.

    anchors: [A, 4], [B, A, 4] or AnchorGrids. gt_boxes [B, G, 4] in pixels, of which the first gt_counts [B] (int64) of
    each image are real. image_sizes [B, 2] (height, width): if given, anchors that cross the border are ignored. crowd:
    bool [B, G], boxes around many objects: never matched, and anchors that they cover are ignored. legacy: inclusive
    pixels. Half inputs are computed in float32; grids in the type of gt_boxes.

    Returns `AnchorLabels`: labels int8 [B, A] (1 object, 0 background, -1 ignored) and matched int32 [B, A]: the box of
    gt_boxes that an object anchor belongs to, else -1.

    An anchor takes part if it is finite, inside its image where image_sizes is given (x1 >= 0, y1 >= 0, x2 <= width,
    y2 <= height; < with legacy), and no crowd box covers at least crowd_overlap of its own area. A ground-truth box
    takes part if it is real, finite and no crowd. An IoU of 0/0 counts as 0. Object: the highest IoU is at least
    positive_iou and above 0; or, with low_quality, it is the highest (or ties for the highest) of the participating
    anchors with some box, above 0 and at least min_quality. It belongs to the box with which its own IoU is highest,
    the first of equals; with overwrite (mmdetection's rule), an anchor that is so the best of some box belongs to that
    one, the last of several, whatever its other IoUs. Background: no object, and the highest IoU is below negative_iou,
    or there is no box at all.

    One exact answer on every backend. No gradient. O(A G) time at most (on the CPU, grids cost what the boxes' windows
    cost), O(A) memory. ValueError: bad shapes or thresholds, different devices; on the CPU, gt_counts outside [0, G]
    (on a GPU such an image has no boxes; FRCNN_FAST_CHECK=1 raises). TypeError: other dtypes.
    """
    check_ground_truth(gt_boxes, gt_counts, crowd)
    B = gt_boxes.shape[0]
    return _assign_anchors(
        *AnchorSource.of(anchors, gt_boxes, B),
        contiguous_in(gt_boxes, compute_dtype(gt_boxes)),
        gt_counts.contiguous(),
        None if image_sizes is None else image_sizes_tensor(image_sizes, B, gt_boxes),
        contiguous(crowd),
        check_threshold("positive_iou", positive_iou),
        check_threshold("negative_iou", negative_iou),
        bool(low_quality),
        check_threshold("min_quality", min_quality),
        bool(overwrite),
        check_threshold("crowd_overlap", crowd_overlap),
        bool(legacy),
        backend=backend,
    )


def _sample_outputs(a: Any) -> tuple[Tensor, ...]:
    labels, B, S = a.labels, a.labels.shape[0], a.batch_size
    return (
        labels.new_empty(B, S, dtype=torch.int64),
        labels.new_empty(B, S),
        labels.new_empty(B, 2, dtype=torch.int64),
    )


_sample_anchors = Operator(
    "sample_anchors(Tensor labels, Tensor rng, int batch_size, float positive_fraction, int stream) "
    "-> (Tensor indices, Tensor labels, Tensor counts)",
    outputs=_sample_outputs,
    workspace=lambda C, a: C.sample_anchors_workspace(a.labels, a.batch_size),
    oracle=reference.sample_anchors,
    triton="anchor_target.anchor_target_triton:sample_anchors",
    returns=AnchorSamples,
)


@accepts_arrays
def sample_anchors(
    labels: Tensor,
    rng: Tensor,
    *,
    batch_size: int = 256,
    positive_fraction: float = 0.5,
    stream: int = 0,
    backend: str | None = None,
) -> AnchorSamples:
    """Draws each image's mini-batch from its labelled anchors.

    labels: int8 [B, A], 1 object, 0 background, anything else: not drawn. rng: int64 [2] (seed, step) on the device of
    labels; it is read there, so a captured CUDA graph draws anew once the step is advanced. stream: draws of different
    kinds under one rng.

    Returns `AnchorSamples`: indices int64 [B, batch_size], labels int8 [B, batch_size] (those of the drawn) and counts
    int64 [B, 2] (objects, background): at most int(batch_size * positive_fraction) objects, then as much background as
    there is room for; objects ascending by index, then background ascending, then -1.

    Each anchor's key is the first word of Philox4x32-10 for counter (index, image, step, stream) and the seed as key;
    the smallest keys of each kind are drawn, ties by lower index. So every backend draws the same sample, uniformly. No
    gradient. O(A) time. No image gives empty results, an image without anchors counts of 0. ValueError: bad shapes or
    sizes, a fraction outside [0, 1], different devices. TypeError: other dtypes.
    """
    if not isinstance(labels, Tensor) or labels.dim() != 2:
        raise ValueError(f"labels: expected an int8 tensor [B, A], got {describe(labels)}")
    check_int("labels", labels, "[B, A]", labels.shape, torch.int8)
    check_rng(rng, "labels", labels)
    return _sample_anchors(
        labels.contiguous(),
        rng.contiguous(),
        check_positive("batch_size", batch_size),
        check_threshold("positive_fraction", positive_fraction, high=1.0),
        check_positive("stream", stream, zero=True),
        backend=backend,
    )


def _rpn_outputs(a: Any) -> tuple[Tensor, ...]:
    like, B, S = a.gt_boxes, a.gt_boxes.shape[0], a.batch_size
    return (
        like.new_empty(B, S, dtype=torch.int64),
        like.new_empty(B, S, dtype=torch.int8),
        like.new_empty(B, S, 4),
        like.new_empty(B, S, dtype=torch.int32),
        like.new_empty(B, 2, dtype=torch.int64),
    )


_rpn_targets = Operator(
    "rpn_targets(Tensor anchors, SymInt[] anchor_grid, float anchor_offset, Tensor gt_boxes, Tensor gt_counts, "
    "Tensor rng, Tensor? image_sizes, Tensor? crowd, float positive_iou, float negative_iou, bool low_quality, "
    "float crowd_overlap, int batch_size, float positive_fraction, float[] weights, bool legacy, int stream) "
    "-> (Tensor indices, Tensor labels, Tensor targets, Tensor matched, Tensor counts)",
    outputs=_rpn_outputs,
    workspace=lambda C, a: C.rpn_targets_workspace(a.anchors, a.anchor_grid, a.gt_boxes, a.batch_size),
    oracle=reference.rpn_targets,
    triton="anchor_target.anchor_target_triton:rpn_targets",
    returns=RpnTargets,
)


@accepts_arrays
def rpn_targets(
    anchors: Tensor | AnchorGrids,
    gt_boxes: Tensor,
    gt_counts: Tensor,
    rng: Tensor,
    *,
    image_sizes: Tensor | Sequence[Sequence[float]] | None = None,
    crowd: Tensor | None = None,
    positive_iou: float = 0.7,
    negative_iou: float = 0.3,
    low_quality: bool = True,
    crowd_overlap: float = 0.7,
    batch_size: int = 256,
    positive_fraction: float = 0.5,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    legacy: bool = False,
    stream: int = 0,
    backend: str | None = None,
) -> RpnTargets:
    """The RPN's mini-batch in one step: assign_anchors, sample_anchors, and regression targets of what was drawn.

    Arguments are those of the two, and the weights (wx, wy, ww, wh) of encode.

    Returns `RpnTargets`: indices int64 [B, batch_size] (anchors; -1 beyond the counts), labels int8 [B, batch_size] (1,
    0; -1 beyond), targets [B, batch_size, 4] (0 where there is no object; float64 for float64 gt_boxes, else float32),
    matched int32 [B, batch_size] (-1 where there is no object) and counts int64 [B, 2] (objects, background). Objects
    come first, then background, each ascending by index.

    Ties, NaN, errors, time and an empty input (no image, no anchor, no ground truth) are as in `assign_anchors` and
    `sample_anchors`. One exact answer on every backend, run after run. No gradient. No array of A labels leaves the
    workspace.
    """
    check_ground_truth(gt_boxes, gt_counts, crowd)
    check_rng(rng, "gt_boxes", gt_boxes)
    B = gt_boxes.shape[0]
    return _rpn_targets(
        *AnchorSource.of(anchors, gt_boxes, B),
        contiguous_in(gt_boxes, compute_dtype(gt_boxes)),
        gt_counts.contiguous(),
        rng.contiguous(),
        None if image_sizes is None else image_sizes_tensor(image_sizes, B, gt_boxes),
        contiguous(crowd),
        check_threshold("positive_iou", positive_iou),
        check_threshold("negative_iou", negative_iou),
        bool(low_quality),
        check_threshold("crowd_overlap", crowd_overlap),
        check_positive("batch_size", batch_size),
        check_threshold("positive_fraction", positive_fraction, high=1.0),
        check_weights(weights),
        bool(legacy),
        check_positive("stream", stream, zero=True),
        backend=backend,
    )
