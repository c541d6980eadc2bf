"""Training targets of the head: which proposals train it, and towards what (Girshick 2015, section 2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from frcnn_fast import reference
from frcnn_fast.ops._arrays import accepts_arrays
from frcnn_fast.ops._checks import (
    check_counts,
    check_float,
    check_ground_truth,
    check_int,
    check_positive,
    check_rng,
    check_same,
    check_size,
    check_threshold,
    check_weights,
    compute_dtype,
    contiguous,
    contiguous_in,
)
from frcnn_fast.ops._operator import Operator
from frcnn_fast.ops.results import RoiTargets


def _outputs(a: Any) -> tuple[Tensor, ...]:
    like, B, S = a.gt_boxes, a.gt_boxes.shape[0], a.batch_size
    return (
        like.new_empty(B, S, 4),
        like.new_empty(B, S, dtype=torch.int64),
        like.new_empty(B, S, 4),
        like.new_empty(B, S, dtype=torch.int32),
        like.new_empty(B, 2, dtype=torch.int64),
    )


_sample_rois = Operator(
    "sample_rois(Tensor proposals, Tensor counts, Tensor gt_boxes, Tensor gt_labels, Tensor gt_counts, Tensor rng, "
    "Tensor? crowd, int batch_size, float positive_fraction, float positive_iou, float negative_iou_high, "
    "float negative_iou_low, bool append_gt, float crowd_overlap, float[] weights, bool legacy, int stream) "
    "-> (Tensor rois, Tensor labels, Tensor targets, Tensor matched, Tensor counts)",
    outputs=_outputs,
    workspace=lambda C, a: C.sample_rois_workspace(a.proposals, a.gt_boxes, a.batch_size),
    oracle=reference.sample_rois,
    triton="anchor_target.roi_targets_triton:sample_rois",
    returns=RoiTargets,
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
    crowd: Tensor | None = None,
    batch_size: int = 128,
    positive_fraction: float = 0.25,
    positive_iou: float = 0.5,
    negative_iou_high: float = 0.5,
    negative_iou_low: float = 0.0,
    append_gt: bool = True,
    crowd_overlap: float = 0.7,
    weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
    legacy: bool = False,
    stream: int = 1,
    backend: str | None = None,
) -> RoiTargets:
    """The head's mini-batch: RoIs drawn from the proposals and the ground truth, their classes and regression targets.

    proposals [B, N, 4] in pixels, of which the first counts [B] (int64) of each image are real; gt_boxes [B, G, 4],
    gt_labels int64 [B, G] (classes, from 1), gt_counts int64 [B]; crowd bool [B, G]; rng int64 [2] (seed, step) as for
    sample_anchors. legacy: inclusive pixels. Half inputs are computed in float32.

    Returns `RoiTargets`: rois [B, batch_size, 4] (float64 for float64 proposals, else float32), labels int64 [B,
    batch_size] (the class, 0 background, -1 beyond the counts), targets [B, batch_size, 4] (encode with `weights`; 0
    for background), matched int32 [B, batch_size] (row of gt_boxes, -1 for background) and counts int64 [B, 2]
    (objects, background).

    Candidates are the real, finite proposals that no crowd box covers by at least crowd_overlap of their own area
    (index n), and, with append_gt, the real, finite boxes of gt_boxes that are no crowd (index N + g). Object: the
    highest IoU with a box is at least positive_iou and above 0. Background: no object, and negative_iou_low <= highest
    IoU < negative_iou_high. At most int(batch_size * positive_fraction) objects are drawn, then as much background as
    there is room for; the smallest keys as in sample_anchors, candidates in ascending order. An object belongs to the
    box with which its IoU is highest, the first of equals. An IoU of 0/0 counts as 0.

    One exact answer on every backend, run after run. No gradient: the RoIs are constants. N = 0 and G = 0 are ordinary,
    an image without candidates gets counts of 0, and no image gives empty results. O((N + G) G) time, O(N + G)
    memory. ValueError: bad shapes or thresholds, different devices; on the CPU, counts outside [0, N] or gt_counts
    outside [0, G] (on a GPU such an image has none; FRCNN_FAST_CHECK=1 raises). TypeError: other dtypes.
    """
    check_float("proposals", proposals, "[B, N, 4]", 3, 4)
    B, N = proposals.shape[:2]
    check_counts("counts", counts, B, N)
    check_same("counts", counts, "proposals", proposals, dtype=False)
    check_ground_truth(gt_boxes, gt_counts, crowd)
    G = gt_boxes.shape[1]
    check_size("gt_boxes", gt_boxes, "[B, G, 4]", (B, G, 4))
    check_same("gt_boxes", gt_boxes, "proposals", proposals)
    check_int("gt_labels", gt_labels, "[B, G]", (B, G))
    check_same("gt_labels", gt_labels, "proposals", proposals, dtype=False)
    check_rng(rng, "proposals", proposals)
    return _sample_rois(
        contiguous_in(proposals, compute_dtype(proposals)),
        counts.contiguous(),
        contiguous_in(gt_boxes, compute_dtype(gt_boxes)),
        gt_labels.contiguous(),
        gt_counts.contiguous(),
        rng.contiguous(),
        contiguous(crowd),
        check_positive("batch_size", batch_size),
        check_threshold("positive_fraction", positive_fraction, high=1.0),
        check_threshold("positive_iou", positive_iou),
        check_threshold("negative_iou_high", negative_iou_high),
        check_threshold("negative_iou_low", negative_iou_low),
        bool(append_gt),
        check_threshold("crowd_overlap", crowd_overlap),
        check_weights(weights),
        bool(legacy),
        check_positive("stream", stream, zero=True),
        backend=backend,
    )
