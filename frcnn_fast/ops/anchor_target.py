"""Training targets: which anchors and proposals train the two stages, and towards what (Ren et al. 2015, section 3.1.2
and 3.1.3; Girshick 2015, section 2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from frcnn_fast import reference as oracle
from frcnn_fast._extension import extension
from frcnn_fast.ops import _checks
from frcnn_fast.ops._arrays import accepts_arrays
from frcnn_fast.ops._operator_positional import Operator
from frcnn_fast.ops.anchor_grids import AnchorGrids, explicit_anchors

# What the ops share


def _num_anchors(anchors: Tensor, grid: Sequence[int]) -> int:
    if not grid:
        return anchors.shape[-2]
    return sum(grid[i] * grid[i + 1] * grid[i + 2] for i in range(0, len(grid), 5))


def _workspace(size: int, like: Tensor) -> Tensor | None:
    return like.new_empty(size, dtype=torch.uint8) if size else None


def _wide(t: Tensor) -> Tensor:
    """Contiguous, halves widened exactly to the type that is computed in."""
    return t.contiguous() if t.dtype in (torch.float32, torch.float64) else t.float().contiguous()


def _gt_args(gt_boxes: Tensor, gt_counts: Tensor, crowd: Tensor | None) -> Tensor:
    _checks.check_float("gt_boxes", gt_boxes, "[B, G, 4]", 3, 4)
    B, G = gt_boxes.shape[:2]
    _checks.check_counts("gt_counts", gt_counts, B, G)
    _checks.check_same("gt_counts", gt_counts, "gt_boxes", gt_boxes, dtype=False)
    if crowd is not None:
        _checks.check_int("crowd", crowd, "[B, G]", (B, G), torch.bool)
        _checks.check_same("crowd", crowd, "gt_boxes", gt_boxes, dtype=False)
    return _wide(gt_boxes)


def _anchor_args(anchors: Tensor | AnchorGrids, gt_boxes: Tensor) -> tuple[Tensor, Sequence[int], float]:
    """(table, grid, offset): given anchors and an empty grid, or the grid's cell anchors; in the computed type."""
    dtype = _checks.compute_dtype(gt_boxes)
    if isinstance(anchors, AnchorGrids):
        _checks.check_same("anchors", anchors.cells, "gt_boxes", gt_boxes, dtype=False)
        return _checks.contiguous_in(anchors.cells, dtype), anchors.grid, anchors.offset
    B = gt_boxes.shape[0]
    of_each_image = isinstance(anchors, Tensor) and anchors.dim() == 3
    _checks.check_float("anchors", anchors, "[A, 4], [B, A, 4] or AnchorGrids", 3 if of_each_image else 2, 4)
    if of_each_image and anchors.shape[0] != B:
        raise ValueError(f"anchors: expected [A, 4] or [B, A, 4] with B = {B}, got {_checks.describe(anchors)}")
    _checks.check_same("anchors", anchors, "gt_boxes", gt_boxes, dtype=False)
    if _checks.compute_dtype(anchors) != dtype:
        raise TypeError(
            f"anchors: expected the precision of gt_boxes ({gt_boxes.dtype}), got {_checks.describe(anchors)}; "
            "convert one of them"
        )
    return _wide(anchors), [], 0.0


def _rng_arg(rng: Tensor, like_name: str, like: Tensor) -> Tensor:
    _checks.check_int("rng", rng, "[2] (seed, step)", (2,))
    _checks.check_same("rng", rng, like_name, like, dtype=False)
    return rng.contiguous()


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


# assign_anchors


def _assign_outputs(anchors: Tensor, grid: Sequence[int], offset: float, gt_boxes: Tensor, *_: Any):
    size = (gt_boxes.shape[0], _num_anchors(anchors, grid))
    return gt_boxes.new_empty(*size, dtype=torch.int8), gt_boxes.new_empty(*size, dtype=torch.int32)


def _assign_launch(*args: Any) -> None:
    *inputs, labels, matched = args
    if not labels.numel():
        return
    C = extension()
    gt_boxes = inputs[3]
    size = C.assign_anchors_workspace(gt_boxes, inputs[1], labels.shape[1])
    C.assign_anchors(*inputs, _workspace(size, gt_boxes), labels, matched)


def _assign_reference(anchors, grid, offset, gt_boxes, gt_counts, image_sizes, crowd, p, n, low_quality, c, legacy):
    return oracle.assign_anchors(
        explicit_anchors(anchors, grid, offset),
        gt_boxes,
        gt_counts,
        image_sizes=image_sizes,
        crowd=crowd,
        positive_iou=p,
        negative_iou=n,
        low_quality=low_quality,
        crowd_overlap=c,
        legacy=legacy,
    )


_assign_anchors = Operator(
    "assign_anchors(Tensor anchors, int[] grid, float anchor_offset, Tensor gt_boxes, Tensor gt_counts, "
    "Tensor? image_sizes, Tensor? crowd, float positive_iou, float negative_iou, bool low_quality, "
    "float crowd_overlap, bool legacy) -> (Tensor, Tensor)",
    outputs=_assign_outputs,
    launch=_assign_launch,
    triton="anchor_target.anchor_target_triton:assign_anchors",
    reference=_assign_reference,
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
    crowd_overlap: float = 0.7,
    legacy: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Labels every anchor as object, background or neither.

    anchors: [A, 4], [B, A, 4] or AnchorGrids. gt_boxes [B, G, 4] in pixels, of which the first gt_counts [B] (int64) of
    each image are real. image_sizes [B, 2] (height, width): if given, anchors that cross the border are ignored. crowd:
    bool [B, G], boxes around many objects: never matched, and anchors that they cover are ignored. legacy: inclusive
    pixels. Half inputs are computed in float32; grids in the type of gt_boxes.

    Returns labels int8 [B, A] (1 object, 0 background, -1 ignored) and matched int32 [B, A]: the box of gt_boxes that
    an object anchor belongs to, else -1.

    An anchor takes part if it is finite, inside its image where image_sizes is given (x1 >= 0, y1 >= 0, x2 <= width,
    y2 <= height; < with legacy), and no crowd box covers at least crowd_overlap of its own area. A ground-truth box
    takes part if it is real, finite and no crowd. An IoU of 0/0 counts as 0. Object: the highest IoU is at least
    positive_iou and above 0; or, with low_quality, it is the highest (or ties for the highest) of the participating
    anchors with some box, and above 0. It belongs to the box with which its own IoU is highest, the first of equals.
    Background: no object, and the highest IoU is below negative_iou, or there is no box at all.

    One exact answer on every backend. No gradient. O(A G) time at most (on the CPU, grids cost what the boxes' windows
    cost), O(A) memory. ValueError: bad shapes or thresholds, different devices; on the CPU, gt_counts outside [0, G]
    (on a GPU such an image has no boxes; FRCNN_FAST_CHECK=1 raises). TypeError: other dtypes.
    """
    boxes = _gt_args(gt_boxes, gt_counts, crowd)
    table, grid, offset = _anchor_args(anchors, gt_boxes)
    sizes = None if image_sizes is None else _checks.image_sizes_tensor(image_sizes, boxes.shape[0], boxes)
    return _assign_anchors(
        table,
        grid,
        offset,
        boxes,
        gt_counts.contiguous(),
        sizes,
        _contiguous(crowd),
        _checks.check_threshold("positive_iou", positive_iou),
        _checks.check_threshold("negative_iou", negative_iou),
        bool(low_quality),
        _checks.check_threshold("crowd_overlap", crowd_overlap),
        bool(legacy),
        backend=backend,
    )


# sample_anchors


def _sample_outputs(labels: Tensor, rng: Tensor, batch_size: int, *_: Any):
    B = labels.shape[0]
    return (
        labels.new_empty(B, batch_size, dtype=torch.int64),
        labels.new_empty(B, batch_size),
        labels.new_empty(B, 2, dtype=torch.int64),
    )


def _sample_launch(labels: Tensor, rng: Tensor, batch_size: int, max_positive: int, stream: int, *outputs: Tensor):
    if not labels.shape[0]:
        return
    C = extension()
    size = C.sample_anchors_workspace(labels, batch_size)
    C.sample_anchors(labels, rng, batch_size, max_positive, stream, _workspace(size, labels), *outputs)


_sample_anchors = Operator(
    "sample_anchors(Tensor labels, Tensor rng, int batch_size, int max_positive, int stream) "
    "-> (Tensor, Tensor, Tensor)",
    outputs=_sample_outputs,
    launch=_sample_launch,
    triton="anchor_target.anchor_target_triton:sample_anchors",
    reference=lambda labels, rng, batch_size, max_positive, stream: oracle.sample_anchors(
        labels, rng, batch_size=batch_size, max_positive=max_positive, stream=stream
    ),
)


@accepts_arrays
def sample_anchors(
    labels: Tensor,
    rng: Tensor,
    *,
    batch_size: int = 256,
    max_positive: int = 128,
    stream: int = 0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws each image's mini-batch from its labelled anchors.

    labels: int8 [B, A], 1 object, 0 background, anything else: not drawn. rng: int64 [2] (seed, step) on the device of
    labels; it is read there, so a captured CUDA graph draws anew once the step is advanced. stream: draws of different
    kinds under one rng.

    Returns indices int64 [B, batch_size], sampled int8 [B, batch_size] (their labels) and counts int64 [B, 2] (objects,
    background): at most max_positive objects, then as much background as there is room for; objects ascending by
    index, then background ascending, then -1.

    Each anchor's key is the first word of Philox4x32-10 for counter (index, image, step, stream) and the seed as key;
    the smallest keys of each kind are drawn, ties by lower index. So every backend draws the same sample, uniformly. No
    gradient. O(A) time. ValueError: bad shapes or sizes, different devices. TypeError: other dtypes.
    """
    if not isinstance(labels, Tensor) or labels.dim() != 2:
        raise ValueError(f"labels: expected an int8 tensor [B, A], got {_checks.describe(labels)}")
    _checks.check_int("labels", labels, "[B, A]", labels.shape, torch.int8)
    return _sample_anchors(
        labels.contiguous(),
        _rng_arg(rng, "labels", labels),
        _checks.check_positive("batch_size", batch_size),
        _checks.check_positive("max_positive", max_positive, zero=True),
        _checks.check_positive("stream", stream, zero=True),
        backend=backend,
    )


# rpn_targets


def _rpn_outputs(anchors, grid, offset, gt_boxes, gt_counts, rng, image_sizes, crowd, p, n, q, c, batch_size, *_):
    size = (gt_boxes.shape[0], batch_size)
    return (
        gt_boxes.new_empty(*size, dtype=torch.int64),
        gt_boxes.new_empty(*size, dtype=torch.int8),
        gt_boxes.new_empty(*size, 4),
        gt_boxes.new_empty(*size, dtype=torch.int32),
        gt_boxes.new_empty(size[0], 2, dtype=torch.int64),
    )


def _rpn_launch(anchors: Tensor, grid: Sequence[int], offset: float, gt_boxes: Tensor, *rest: Any) -> None:
    inputs, outputs = rest[:-5], rest[-5:]
    if not gt_boxes.shape[0]:
        return
    C = extension()
    A = _num_anchors(anchors, grid)
    size = C.rpn_targets_workspace(gt_boxes, grid, A, outputs[0].shape[1])
    C.rpn_targets(anchors, grid, offset, A, gt_boxes, *inputs, _workspace(size, gt_boxes), *outputs)


def _rpn_reference(
    anchors, grid, offset, gt_boxes, gt_counts, rng, image_sizes, crowd, p, n, q, c, size, most, w, y, s
):
    return oracle.rpn_targets(
        explicit_anchors(anchors, grid, offset),
        gt_boxes,
        gt_counts,
        rng,
        image_sizes=image_sizes,
        crowd=crowd,
        positive_iou=p,
        negative_iou=n,
        low_quality=q,
        crowd_overlap=c,
        batch_size=size,
        max_positive=most,
        weights=w,
        legacy=y,
        stream=s,
    )


_rpn_targets = Operator(
    "rpn_targets(Tensor anchors, int[] grid, float anchor_offset, Tensor gt_boxes, Tensor gt_counts, Tensor rng, "
    "Tensor? image_sizes, Tensor? crowd, float positive_iou, float negative_iou, bool low_quality, "
    "float crowd_overlap, int batch_size, int max_positive, float[] weights, bool legacy, int stream) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    outputs=_rpn_outputs,
    launch=_rpn_launch,
    triton="anchor_target.anchor_target_triton:rpn_targets",
    reference=_rpn_reference,
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
    max_positive: int = 128,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    legacy: bool = False,
    stream: int = 0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The RPN's mini-batch in one step: assign_anchors, sample_anchors, and regression targets of what was drawn.

    Arguments are those of the two, and the weights (wx, wy, ww, wh) of encode.

    Returns indices int64 [B, batch_size] (anchors; -1 beyond the counts), labels int8 [B, batch_size] (1, 0; -1
    beyond), targets [B, batch_size, 4] (0 where there is no object; float64 for float64 gt_boxes, else float32),
    matched int32 [B, batch_size] (-1 where there is no object) and counts int64 [B, 2] (objects, background). Objects
    come first, then background, each ascending by index.

    One exact answer on every backend, run after run. No gradient. No array of A labels leaves the workspace.
    """
    boxes = _gt_args(gt_boxes, gt_counts, crowd)
    table, grid, offset = _anchor_args(anchors, gt_boxes)
    sizes = None if image_sizes is None else _checks.image_sizes_tensor(image_sizes, boxes.shape[0], boxes)
    return _rpn_targets(
        table,
        grid,
        offset,
        boxes,
        gt_counts.contiguous(),
        _rng_arg(rng, "gt_boxes", boxes),
        sizes,
        _contiguous(crowd),
        _checks.check_threshold("positive_iou", positive_iou),
        _checks.check_threshold("negative_iou", negative_iou),
        bool(low_quality),
        _checks.check_threshold("crowd_overlap", crowd_overlap),
        _checks.check_positive("batch_size", batch_size),
        _checks.check_positive("max_positive", max_positive, zero=True),
        _checks.check_weights(weights),
        bool(legacy),
        _checks.check_positive("stream", stream, zero=True),
        backend=backend,
    )


# sample_rois


def _roi_outputs(proposals, counts, gt_boxes, gt_labels, gt_counts, rng, crowd, batch_size, *_):
    size = (gt_boxes.shape[0], batch_size)
    return (
        gt_boxes.new_empty(*size, 4),
        gt_boxes.new_empty(*size, dtype=torch.int64),
        gt_boxes.new_empty(*size, 4),
        gt_boxes.new_empty(*size, dtype=torch.int32),
        gt_boxes.new_empty(size[0], 2, dtype=torch.int64),
    )


def _roi_launch(proposals: Tensor, counts: Tensor, gt_boxes: Tensor, *rest: Any) -> None:
    inputs, outputs = rest[:-5], rest[-5:]
    if not gt_boxes.shape[0]:
        return
    C = extension()
    size = C.sample_rois_workspace(gt_boxes, proposals.shape[1], outputs[1].shape[1])
    C.sample_rois(proposals, counts, gt_boxes, *inputs, _workspace(size, gt_boxes), *outputs)


def _roi_reference(proposals, counts, gt_boxes, gt_labels, gt_counts, rng, crowd, size, part, p, h, lo, a, c, w, y, s):
    return oracle.sample_rois(
        proposals,
        counts,
        gt_boxes,
        gt_labels,
        gt_counts,
        rng,
        batch_size=size,
        positive_fraction=part,
        positive_iou=p,
        negative_iou_high=h,
        negative_iou_low=lo,
        append_gt=a,
        crowd=crowd,
        crowd_overlap=c,
        weights=w,
        legacy=y,
        stream=s,
    )


_sample_rois = Operator(
    "sample_rois(Tensor proposals, Tensor counts, Tensor gt_boxes, Tensor gt_labels, Tensor gt_counts, Tensor rng, "
    "Tensor? crowd, int batch_size, float positive_fraction, float positive_iou, float negative_iou_high, "
    "float negative_iou_low, bool append_gt, float crowd_overlap, float[] weights, bool legacy, int stream) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    outputs=_roi_outputs,
    launch=_roi_launch,
    triton="anchor_target.roi_targets_triton:sample_rois",
    reference=_roi_reference,
)


@accepts_arrays
def sample_rois(
    proposals: Tensor,
    counts: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    gt_counts: Tensor,
    rng: Tensor,
    *,
    batch_size: int = 128,
    positive_fraction: float = 0.25,
    positive_iou: float = 0.5,
    negative_iou_high: float = 0.5,
    negative_iou_low: float = 0.0,
    append_gt: bool = True,
    crowd: Tensor | None = None,
    crowd_overlap: float = 0.7,
    weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
    legacy: bool = False,
    stream: int = 1,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The head's mini-batch: RoIs drawn from the proposals and the ground truth, their classes and regression targets.

    proposals [B, N, 4] in pixels, of which the first counts [B] (int64) of each image are real; gt_boxes [B, G, 4],
    gt_labels int64 [B, G] (classes, from 1), gt_counts int64 [B]; crowd bool [B, G]; rng int64 [2] (seed, step) as for
    sample_anchors. legacy: inclusive pixels. Half inputs are computed in float32.

    Returns rois [B, batch_size, 4] (float64 for float64 proposals, else float32), labels int64 [B, batch_size] (the
    class, 0 background, -1 beyond the counts), targets [B, batch_size, 4] (encode with `weights`; 0 for background),
    matched int32 [B, batch_size] (row of gt_boxes, -1 for background) and counts int64 [B, 2] (objects, background).

    Candidates are the real, finite proposals that no crowd box covers by at least crowd_overlap of their own area
    (index n), and, with append_gt, the real, finite boxes of gt_boxes that are no crowd (index N + g). Object: the
    highest IoU with a box is at least positive_iou and above 0. Background: no object, and negative_iou_low <= highest
    IoU < negative_iou_high. At most int(batch_size * positive_fraction) objects are drawn, then as much background as
    there is room for; the smallest keys as in sample_anchors, candidates in ascending order. An object belongs to the
    box with which its IoU is highest, the first of equals. An IoU of 0/0 counts as 0.

    One exact answer on every backend, run after run. No gradient: the RoIs are constants. O((N + G) G) time, O(N + G)
    memory. ValueError: bad shapes or thresholds, different devices; on the CPU, counts outside [0, N] or gt_counts
    outside [0, G] (on a GPU such an image has none; FRCNN_FAST_CHECK=1 raises). TypeError: other dtypes.
    """
    _checks.check_float("proposals", proposals, "[B, N, 4]", 3, 4)
    B, N = proposals.shape[:2]
    _checks.check_counts("counts", counts, B, N)
    _checks.check_same("counts", counts, "proposals", proposals, dtype=False)
    boxes = _gt_args(gt_boxes, gt_counts, crowd)
    G = boxes.shape[1]
    _checks.check_size("gt_boxes", gt_boxes, "[B, G, 4]", (B, G, 4))
    _checks.check_same("gt_boxes", gt_boxes, "proposals", proposals)
    _checks.check_int("gt_labels", gt_labels, "[B, G]", (B, G))
    _checks.check_same("gt_labels", gt_labels, "proposals", proposals, dtype=False)
    return _sample_rois(
        _wide(proposals),
        counts.contiguous(),
        boxes,
        gt_labels.contiguous(),
        gt_counts.contiguous(),
        _rng_arg(rng, "proposals", proposals),
        _contiguous(crowd),
        _checks.check_positive("batch_size", batch_size),
        _checks.check_threshold("positive_fraction", positive_fraction, high=1.0),
        _checks.check_threshold("positive_iou", positive_iou),
        _checks.check_threshold("negative_iou_high", negative_iou_high),
        _checks.check_threshold("negative_iou_low", negative_iou_low),
        bool(append_gt),
        _checks.check_threshold("crowd_overlap", crowd_overlap),
        _checks.check_weights(weights),
        bool(legacy),
        _checks.check_positive("stream", stream, zero=True),
        backend=backend,
    )
