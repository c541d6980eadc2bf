"""The detector's last step: the head's raw outputs in, the final boxes out."""

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
    check_positive,
    check_same,
    check_size,
    check_threshold,
    check_weights,
    compute_dtype,
    contiguous_in,
    describe,
    image_sizes_tensor,
)
from frcnn_fast.ops._operator import Operator
from frcnn_fast.ops.anchor_decode import DELTA_CLAMP
from frcnn_fast.ops.results import Detections


@accepts_arrays
def detections(
    class_logits: Tensor,
    box_deltas: Tensor,
    proposals: Tensor,
    counts: Tensor,
    image_sizes: Tensor | Sequence[Sequence[float]],
    *,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.3,
    max_detections: int = 100,
    min_size: float = 0.0,
    weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
    clamp: float = DELTA_CLAMP,
    background: str = "first",
    legacy: bool = False,
    backend: str | None = None,
) -> Detections:
    """Detections of a batch of images (Girshick 2015, section 2.3; Ren et al.).

    Every class of a proposal is a candidate of its own: its score is the softmax over the row's K + 1 logits, its box
    is decoded from the class' deltas and clipped to the image. Candidates with a score above `score_threshold`
    (strictly), a finite box and both sides of at least `min_size` go through greedy NMS within their class; over all
    classes the best `max_detections` remain.

    Args:
        class_logits: [B, N, K + 1], a column for the background and K for the classes; float16, bfloat16, float32 or
            float64.
        box_deltas: [B, N, (K + 1) * 4], four a column, or [B, N, 4] for all classes; same dtype. With the background
            last, [B, N, K * 4], four a class.
        proposals: [B, N, 4] (x1, y1, x2, y2) in pixels.
        counts: [B] int64: rows of an image from its count on do not exist.
        image_sizes: [B, 2] (height, width) in pixels, without padding.
        score_threshold, iou_threshold: compared in the compute precision (float64 for float64, else float32).
        max_detections: D, detections an image.
        min_size: smallest side in pixels. weights: of the deltas (wx, wy, ww, wh). clamp: upper bound of dw, dh.
        background: "first": column 0 of class_logits (torchvision, py-faster-rcnn); "last": column K (detectron2,
            mmdetection).
        legacy: inclusive pixels: every extent is high - low + 1.

    Returns:
        `Detections`: boxes [B, D, 4] and scores [B, D] in the compute dtype, labels [B, D] int64 (columns of
        class_logits: 1 to K, or 0 to K - 1 where the background is last), indices [B, D] int64 (rows of proposals),
        counts [B] int64. Sorted by score, ties by lower proposal, then lower class. Rows beyond an image's count hold 0
        (labels and indices -1). A row with a NaN logit gives nothing.

    One exact answer on every backend: the softmax adds in one fixed order. Deterministic, no gradient, no host
    synchronisation on CUDA. Time O(B N K) for the softmax plus NMS to the depth needed.

    Raises:
        TypeError, ValueError: wrong shapes, dtypes, devices, a negative threshold; a count outside [0, N] (on CUDA such
        an image counts as empty; FRCNN_FAST_CHECK=1 raises).
    """
    check_float("class_logits", class_logits, "[B, N, K + 1]", 3)
    B, N, classes = class_logits.shape
    if classes == 0:
        raise ValueError(
            f"class_logits: expected a background and K classes in the last dimension, got {describe(class_logits)}"
        )
    if background not in ("first", "last"):
        raise ValueError(f"background: expected 'first' or 'last', got {background!r}")
    of_a_row, width = ("(K + 1) * 4", 4 * classes) if background == "first" else ("K * 4", 4 * (classes - 1))
    check_float("box_deltas", box_deltas, f"[B, N, {of_a_row}] or [B, N, 4]", 3)
    if tuple(box_deltas.shape) not in ((B, N, width), (B, N, 4)):
        raise ValueError(
            f"box_deltas: expected shape [B, N, {of_a_row}] = {[B, N, width]} or [B, N, 4] = {[B, N, 4]}, "
            f"got {describe(box_deltas)}"
        )
    check_same("box_deltas", box_deltas, "class_logits", class_logits)
    check_float("proposals", proposals, "[B, N, 4]", 3, 4)
    check_size("proposals", proposals, "[B, N, 4]", (B, N, 4))
    check_same("proposals", proposals, "class_logits", class_logits, dtype=False)
    check_counts("counts", counts, B, N)
    check_same("counts", counts, "class_logits", class_logits, dtype=False)
    return _detections(
        class_logits.contiguous(),
        box_deltas.contiguous(),
        contiguous_in(proposals, compute_dtype(class_logits)),
        counts.contiguous(),
        image_sizes_tensor(image_sizes, B, class_logits),
        check_threshold("score_threshold", score_threshold),
        check_threshold("iou_threshold", iou_threshold),
        check_positive("max_detections", max_detections, zero=True),
        check_threshold("min_size", min_size),
        check_weights(weights),
        float(clamp),
        background == "last",
        bool(legacy),
        backend=backend,
    )


def _outputs(a: Any) -> tuple[Tensor, ...]:
    like, B, D, dtype = a.class_logits, a.class_logits.shape[0], a.max_detections, compute_dtype(a.class_logits)
    return (
        like.new_empty(B, D, 4, dtype=dtype),
        like.new_empty(B, D, dtype=dtype),
        like.new_empty(B, D, dtype=torch.int64),
        like.new_empty(B, D, dtype=torch.int64),
        like.new_empty(B, dtype=torch.int64),
    )


_detections = Operator(
    "detections(Tensor class_logits, Tensor box_deltas, Tensor proposals, Tensor counts, Tensor image_sizes, "
    "float score_threshold, float iou_threshold, int max_detections, float min_size, float[] weights, float clamp, "
    "bool background_last, bool legacy) -> (Tensor boxes, Tensor scores, Tensor labels, Tensor indices, Tensor counts)",
    outputs=_outputs,
    workspace=lambda C, a: C.detections_workspace(a.class_logits, a.box_deltas, a.score_threshold, a.max_detections),
    oracle=reference.detections,
    triton="detections.detections_triton:detections",
    returns=Detections,
)
