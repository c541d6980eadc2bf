"""Box IoU and greedy non-maximum suppression."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from frcnn_fast import reference as oracle
from frcnn_fast._extension import extension
from frcnn_fast.ops import _checks
from frcnn_fast.ops._arrays import accepts_arrays
from frcnn_fast.ops._operator_positional import Operator

# box_iou


def _box_iou_outputs(boxes1: Tensor, boxes2: Tensor, legacy: bool) -> tuple[Tensor]:
    return (boxes1.new_empty(boxes1.shape[0], boxes2.shape[0], dtype=_checks.compute_dtype(boxes1)),)


def _box_iou_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    boxes1, boxes2, ctx.legacy = inputs
    ctx.wanted = (boxes1.requires_grad, boxes2.requires_grad)
    ctx.save_for_backward(boxes1, boxes2)


def _box_iou_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    boxes1, boxes2 = ctx.saved_tensors
    grad = grad.contiguous()
    first = _box_iou_backward(grad, boxes1, boxes2, False, ctx.legacy) if ctx.wanted[0] else None
    second = _box_iou_backward(grad, boxes2, boxes1, True, ctx.legacy) if ctx.wanted[1] else None
    return first, second, None


_box_iou = Operator(
    "box_iou(Tensor boxes1, Tensor boxes2, bool legacy) -> Tensor",
    outputs=_box_iou_outputs,
    launch=lambda *args: extension().box_iou(*args),
    triton="nms.box_iou_triton:box_iou",
    reference=lambda boxes1, boxes2, legacy: oracle.box_iou(boxes1, boxes2, legacy=legacy),
    setup_context=_box_iou_setup,
    backward=_box_iou_gradient,
)

# The gradient of `boxes`; grad is [boxes, others], or transposed.
_box_iou_backward = Operator(
    "box_iou_backward(Tensor grad, Tensor boxes, Tensor others, bool transposed, bool legacy) -> Tensor",
    outputs=lambda grad, boxes, others, transposed, legacy: (torch.empty_like(boxes),),
    launch=lambda *args: extension().box_iou_backward(*args),
    triton="nms.box_iou_triton:box_iou_backward",
    reference=lambda grad, boxes, others, transposed, legacy: oracle.box_iou_backward(
        grad.T if transposed else grad, boxes, others, legacy=legacy
    ),
)


@accepts_arrays
def box_iou(boxes1: Tensor, boxes2: Tensor, *, legacy: bool = False, backend: str | None = None) -> Tensor:
    """Intersection over union of every pair, [N, M].

    boxes1 [N, 4] and boxes2 [M, 4] hold (x1, y1, x2, y2) in pixels, of one floating or integer dtype. The result is
    float64 for float64 boxes and float32 for all others; integer boxes are computed in float64. `legacy`: inclusive
    pixels, every side is high - low + 1.

    iou = inter / ((area1 + area2) - inter), every operation rounded by itself. A box with a non-finite coordinate gives
    NaN, and so do two boxes without area (0/0). An inverted box intersects nothing. No boxes: an empty matrix.
    Differentiable in both (the derivative of torchvision's formula: ties of max and min split evenly); forward and
    backward are bitwise repeatable. O(N M) time, no memory beyond the result.

    TypeError: not tensors, other dtypes, dtypes that differ. ValueError: shapes other than [N, 4], different devices.
    """
    if isinstance(boxes1, Tensor) and boxes1.dtype in _checks.INTEGERS:
        _checks.check_int("boxes2", boxes2, "[M, 4]", (len(boxes2), 4), boxes1.dtype)
        return box_iou(boxes1.double(), boxes2.double(), legacy=legacy, backend=backend).float()
    _checks.check_float("boxes1", boxes1, "[N, 4]", 2, 4)
    _checks.check_float("boxes2", boxes2, "[M, 4]", 2, 4)
    _checks.check_same("boxes2", boxes2, "boxes1", boxes1)
    return _box_iou(boxes1.contiguous(), boxes2.contiguous(), bool(legacy), backend=backend)


# nms


def _nms_launch(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_output: int,
    class_ids: Tensor | None,
    counts: Tensor | None,
    legacy: bool,
    keep: Tensor,
    num_keep: Tensor,
) -> None:
    C = extension()
    bytes_needed = C.nms_workspace(boxes, num_keep.shape[0], scores.shape[-1], max_output, class_ids is not None)
    workspace = boxes.new_empty(bytes_needed, dtype=torch.uint8) if bytes_needed else None
    C.nms_padded(boxes, scores, iou_threshold, max_output, class_ids, counts, legacy, workspace, keep, num_keep)


class _KeptOnly(Operator):
    """An op that returns as many rows as were kept, so its size depends on the data (on a GPU: one synchronisation)."""

    def run(self, backend: str | None, *args: Any) -> Tensor:
        keep, count = super().run(backend, *args)
        return keep[: int(count)]

    def _fake(self, *args: Any) -> Tensor:
        return args[0].new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def _kept_outputs(boxes: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return boxes.new_empty(boxes.shape[0], dtype=torch.int64), boxes.new_empty(1, dtype=torch.int64)


def _padded(keep: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.pad(keep, (0, len(boxes) - len(keep)), constant_values=-1), np.asarray([len(keep)])


_nms = _KeptOnly(
    "nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor",
    outputs=_kept_outputs,
    launch=lambda boxes, scores, threshold, keep, count: _nms_launch(
        boxes, scores, threshold, boxes.shape[0], None, None, False, keep, count
    ),
    triton="nms.nms_triton:nms",
    reference=lambda boxes, scores, threshold: _padded(oracle.nms(boxes, scores, threshold), boxes),
)

_batched_nms = _KeptOnly(
    "batched_nms(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold) -> Tensor",
    outputs=_kept_outputs,
    launch=lambda boxes, scores, idxs, threshold, keep, count: _nms_launch(
        boxes, scores, threshold, boxes.shape[0], idxs, None, False, keep, count
    ),
    triton="nms.nms_triton:batched_nms",
    reference=lambda boxes, scores, idxs, threshold: _padded(oracle.batched_nms(boxes, scores, idxs, threshold), boxes),
)

_nms_padded = Operator(
    "nms_padded(Tensor boxes, Tensor scores, float iou_threshold, int max_output, Tensor? class_ids, Tensor? counts, "
    "bool legacy) -> (Tensor, Tensor)",
    outputs=lambda boxes, scores, iou_threshold, max_output, *_: (
        boxes.new_empty(boxes.shape[0], max_output, dtype=torch.int64),
        boxes.new_empty(boxes.shape[0], dtype=torch.int64),
    ),
    launch=_nms_launch,
    triton="nms.nms_triton:nms_padded",
    reference=lambda boxes, scores, iou_threshold, max_output, class_ids, counts, legacy: oracle.nms_padded(
        boxes, scores, iou_threshold, max_output, class_ids=class_ids, counts=counts, legacy=legacy
    ),
)


def _check_boxes_and_scores(boxes: Tensor, scores: Tensor) -> None:
    _checks.check_float("boxes", boxes, "[N, 4]", 2, 4)
    _checks.check_float("scores", scores, "[N]", 1)
    _checks.check_size("scores", scores, "[N]", boxes.shape[:1])
    _checks.check_same("scores", scores, "boxes", boxes)


@accepts_arrays
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, *, backend: str | None = None) -> Tensor:
    """Greedy non-maximum suppression: the indices of the boxes kept, int64 [kept], by descending score.

    boxes [N, 4] (x1, y1, x2, y2) in pixels and scores [N] of one floating dtype. A box is kept unless its IoU with an
    earlier kept one is above iou_threshold, strictly, compared in the compute precision (float64 for float64, else
    float32). Equal scores (-0.0 equals 0.0) go by ascending index; infinite scores are ordinary. A box with a
    non-finite coordinate or a NaN score is never kept and suppresses nothing. Not differentiable.

    torchvision's signature and, where it is defined, its result (torchvision keeps NaN boxes and ranks NaN scores
    first). The size of the result depends on the data: on a GPU this synchronises once. nms_padded does not.

    TypeError: not tensors, integer or mixed dtypes. ValueError: other shapes, a negative threshold, mixed devices.
    Exact and bitwise repeatable. Source: Felzenszwalb et al. 2010, section 5.2; Ren et al. 2015, section 3.3.
    """
    _check_boxes_and_scores(boxes, scores)
    threshold = _checks.check_threshold("iou_threshold", iou_threshold)
    return _nms(boxes.contiguous(), scores.contiguous(), threshold, backend=backend)


@accepts_arrays
def batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, *, backend: str | None = None
) -> Tensor:
    """nms within each class: boxes suppress only boxes of the same id. Indices int64 [kept], by descending score.

    idxs [N] holds integer class ids of any value (compared as integers: coordinates are not shifted, so no precision is
    lost). Otherwise as nms, and as torchvision's batched_nms.
    """
    _check_boxes_and_scores(boxes, scores)
    if isinstance(idxs, Tensor) and idxs.dtype in _checks.INTEGERS:
        idxs = idxs.long()
    _checks.check_int("idxs", idxs, "[N]", boxes.shape[:1])
    _checks.check_same("idxs", idxs, "boxes", boxes, dtype=False)
    threshold = _checks.check_threshold("iou_threshold", iou_threshold)
    return _batched_nms(boxes.contiguous(), scores.contiguous(), idxs.contiguous(), threshold, backend=backend)


@accepts_arrays
def nms_padded(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_output: int,
    *,
    class_ids: Tensor | None = None,
    counts: Tensor | None = None,
    legacy: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The first max_output boxes that nms keeps of every image, in fixed shapes: no synchronisation on a GPU.

    boxes [B, N, 4] and scores [B, N] of one floating dtype. class_ids int64 [B, N]: only equal ids suppress each other.
    counts int64 [B]: rows from counts[b] on do not exist. `legacy`: inclusive pixels.

    Returns keep int64 [B, max_output], rows of the image by descending score, then -1; and num_keep int64 [B]. Rules as
    for nms. It stops at max_output kept boxes an image: the cost follows what is kept, not N^2; memory is O(B N).

    A count outside [0, N] is a ValueError on the CPU; on a GPU that image counts as empty (FRCNN_FAST_CHECK=1 raises).
    """
    _checks.check_float("boxes", boxes, "[B, N, 4]", 3, 4)
    _checks.check_float("scores", scores, "[B, N]", 2)
    _checks.check_size("scores", scores, "[B, N]", boxes.shape[:2])
    _checks.check_same("scores", scores, "boxes", boxes)
    threshold = _checks.check_threshold("iou_threshold", iou_threshold)
    max_output = _checks.check_positive("max_output", max_output, zero=True)
    if class_ids is not None:
        _checks.check_int("class_ids", class_ids, "[B, N]", boxes.shape[:2])
        _checks.check_same("class_ids", class_ids, "boxes", boxes, dtype=False)
        class_ids = class_ids.contiguous()
    if counts is not None:
        _checks.check_counts("counts", counts, boxes.shape[0], boxes.shape[1])
        _checks.check_same("counts", counts, "boxes", boxes, dtype=False)
        counts = counts.contiguous()
    return _nms_padded(
        boxes.contiguous(), scores.contiguous(), threshold, max_output, class_ids, counts, bool(legacy), backend=backend
    )
