"""The last step of a two-stage detector: from the head's raw outputs to the boxes a user sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from frcnn_fast import reference
from frcnn_fast._extension import extension
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
    describe,
    image_sizes_tensor,
)
from frcnn_fast.ops._operator import Operator
from frcnn_fast.ops.anchor_decode import DELTA_CLAMP


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
    legacy: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Softmax, per-class decode and clip, score threshold, per-class NMS, the best of an image (Girshick 2015, 2.3).

    Args:
        class_logits: [B, N, K + 1], class 0 is the background; float16, bfloat16, float32 or float64.
        box_deltas: [B, N, 4 * (K + 1)], four deltas a class, or class-agnostic [B, N, 4]; same dtype.
        proposals: [B, N, 4] in pixels, in the compute dtype (float64 for float64 input, else float32).
        counts: int64 [B]: the first counts[b] proposals of image b are real.
        image_sizes: [B, 2] (height, width): boxes are clipped to them.
        score_threshold: a class is a candidate when its probability is strictly greater.
        iou_threshold: a box is dropped when its IoU with a better kept box of its class is strictly greater.
        max_detections: D, detections an image over all classes.
        min_size: boxes with a smaller side after clipping, in pixels, are dropped.
        weights, clamp, legacy: as in `decode_clip`.

    Returns:
        boxes [B, D, 4] and scores [B, D] in the compute dtype, labels int64 [B, D] (1 to K) and counts int64 [B]; rows
        beyond an image's count hold 0 (labels -1). Best first, ties by lower proposal, then lower class. A proposal with
        a NaN logit and a box that decodes to a non-finite coordinate give nothing. N = 0 or K = 0: counts of 0.

    One exact answer on every backend: the softmax adds its classes in one order (32 lanes, folded in halves).
    Deterministic, without gradient, no host synchronisation on CUDA. Time O(N K) and the NMS of the candidates.

    Raises:
        TypeError, ValueError: wrong shapes, dtypes, devices; a negative threshold; on the CPU counts outside [0, N] (on a
        GPU such an image counts as empty; FRCNN_FAST_CHECK=1 raises).
    """
    check_float("class_logits", class_logits, "[B, N, K + 1]", 3)
    B, N, C = class_logits.shape
    if C < 1:
        raise ValueError(f"class_logits: expected at least the background's column, got {describe(class_logits)}")
    check_float("box_deltas", box_deltas, "[B, N, 4 * (K + 1)] or [B, N, 4]", 3)
    if tuple(box_deltas.shape) not in ((B, N, 4 * C), (B, N, 4)):
        raise ValueError(
            f"box_deltas: expected shape [B, N, 4 * (K + 1)] = {[B, N, 4 * C]} or [B, N, 4] = {[B, N, 4]}, "
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
        proposals.to(compute_dtype(class_logits)).contiguous(),
        counts.contiguous(),
        image_sizes_tensor(image_sizes, B, class_logits),
        check_threshold("score_threshold", score_threshold),
        check_threshold("iou_threshold", iou_threshold),
        check_positive("max_detections", max_detections),
        check_threshold("min_size", min_size),
        check_weights(weights),
        float(clamp),
        bool(legacy),
        backend=backend,
    )


def _outputs(class_logits: Tensor, *args: Any) -> tuple[Tensor, ...]:
    B, D, dtype = class_logits.shape[0], args[6], compute_dtype(class_logits)
    return (
        class_logits.new_empty((B, D, 4), dtype=dtype),
        class_logits.new_empty((B, D), dtype=dtype),
        class_logits.new_empty((B, D), dtype=torch.int64),
        class_logits.new_empty((B,), dtype=torch.int64),
    )


def _launch(class_logits: Tensor, *args: Any) -> None:
    inputs, outputs = args[:-4], args[-4:]
    C = extension()
    size = C.detections_workspace(class_logits, inputs[6])
    workspace = class_logits.new_empty((size,), dtype=torch.uint8)
    C.detections(class_logits, *inputs, workspace, *outputs)


def _reference(
    class_logits: Any, box_deltas: Any, proposals: Any, counts: Any, image_sizes: Any, score_threshold: float,
    iou_threshold: float, max_detections: int, min_size: float, weights: Any, clamp: float, legacy: bool,
) -> Any:  # fmt: skip
    return reference.detections(
        class_logits,
        box_deltas,
        proposals,
        counts,
        image_sizes,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
        min_size=min_size,
        weights=weights,
        clamp=clamp,
        legacy=legacy,
    )


_detections = Operator(
    "detections(Tensor class_logits, Tensor box_deltas, Tensor proposals, Tensor counts, Tensor image_sizes, "
    "float score_threshold, float iou_threshold, int max_detections, float min_size, float[] weights, float clamp, "
    "bool legacy) -> (Tensor, Tensor, Tensor, Tensor)",
    outputs=_outputs,
    launch=_launch,
    reference=_reference,
)
