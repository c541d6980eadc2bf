"""Box IoU and greedy non-maximum suppression."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from frcnn_fast import reference
from frcnn_fast._extension import extension
from frcnn_fast.ops import _checks
from frcnn_fast.ops._arrays import accepts_arrays
from frcnn_fast.ops._backends import asked_for
from frcnn_fast.ops._operator import Operator, contiguous_saved
from frcnn_fast.ops._torch_private import can_bypass_dispatcher
from frcnn_fast.ops.results import PaddedKeep, SoftKeep

# box_iou


def _box_iou_setup(ctx: Any, a: Any, output: Tensor) -> None:
    ctx.legacy = a.legacy
    ctx.wanted = (a.boxes1.requires_grad, a.boxes2.requires_grad)
    ctx.save_for_backward(a.boxes1, a.boxes2)


def _box_iou_gradient(ctx: Any, grad: Tensor) -> dict[str, Tensor]:
    boxes1, boxes2 = contiguous_saved(ctx)
    grad, found = grad.contiguous(), {}
    if ctx.wanted[0]:
        found["boxes1"] = _box_iou_backward(grad, boxes1, boxes2, False, ctx.legacy)
    if ctx.wanted[1]:
        found["boxes2"] = _box_iou_backward(grad, boxes2, boxes1, True, ctx.legacy)
    return found


_box_iou = Operator(
    "box_iou(Tensor boxes1, Tensor boxes2, bool legacy) -> Tensor iou",
    outputs=lambda a: (
        a.boxes1.new_empty(a.boxes1.shape[0], a.boxes2.shape[0], dtype=_checks.compute_dtype(a.boxes1)),
    ),
    oracle=reference.box_iou,
    triton="nms.box_iou_triton:box_iou",
    setup_context=_box_iou_setup,
    backward=_box_iou_gradient,
)

# The gradient of boxes1; grad is [boxes1, boxes2], or transposed.
_box_iou_backward = Operator(
    "box_iou_backward(Tensor grad, Tensor boxes1, Tensor boxes2, bool transposed, bool legacy) -> Tensor grad_boxes",
    outputs=lambda a: (torch.empty_like(a.boxes1),),
    oracle=reference.box_iou_backward,
    triton="nms.box_iou_triton:box_iou_backward",
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


def _kept_outputs(a: Any) -> tuple[Tensor]:
    return (a.boxes.new_empty(a.boxes.shape[0], dtype=torch.int64),)


_nms = Operator(
    "nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor keep",
    outputs=_kept_outputs,
    workspace=lambda C, a: C.nms_workspace(a.boxes),
    oracle=reference.nms,
    triton="nms.nms_triton:nms",
    dynamic_rows=True,
)

_batched_nms = Operator(
    "batched_nms(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold) -> Tensor keep",
    outputs=_kept_outputs,
    workspace=lambda C, a: C.batched_nms_workspace(a.boxes),
    oracle=reference.batched_nms,
    triton="nms.nms_triton:batched_nms",
    dynamic_rows=True,
)

_nms_padded = Operator(
    "nms_padded(Tensor boxes, Tensor scores, Tensor? class_ids, Tensor? counts, float iou_threshold, int max_output, "
    "bool legacy) -> (Tensor keep, Tensor num_keep)",
    outputs=lambda a: (
        a.boxes.new_empty(a.boxes.shape[0], a.max_output, dtype=torch.int64),
        a.boxes.new_empty(a.boxes.shape[0], dtype=torch.int64),
    ),
    workspace=lambda C, a: C.nms_padded_workspace(a.boxes, a.class_ids, a.max_output),
    oracle=reference.nms_padded,
    triton="nms.nms_triton:nms_padded",
    returns=PaddedKeep,
)

_soft_nms = Operator(
    "soft_nms(Tensor boxes, Tensor scores, Tensor? counts, float iou_threshold, float sigma, float score_threshold, "
    "int max_output, str method, bool legacy) -> (Tensor keep, Tensor kept_scores, Tensor num_keep)",
    outputs=lambda a: (
        a.boxes.new_empty(a.boxes.shape[0], a.max_output, dtype=torch.int64),
        a.boxes.new_empty(a.boxes.shape[0], a.max_output, dtype=_checks.compute_dtype(a.boxes)),
        a.boxes.new_empty(a.boxes.shape[0], dtype=torch.int64),
    ),
    workspace=lambda C, a: C.soft_nms_workspace(a.boxes),
    oracle=reference.soft_nms,
    triton="nms.soft_nms_triton:soft_nms",
    returns=SoftKeep,
)

SOFT_METHODS = ("linear", "gaussian", "hard")


def _check_boxes_and_scores(boxes: Tensor, scores: Tensor) -> None:
    _checks.check_float("boxes", boxes, "[N, 4]", 2, 4)
    if _checks.alike(scores, boxes.shape[:1], boxes):
        return
    _checks.check_float("scores", scores, "[N]", 1)
    _checks.check_size("scores", scores, "[N]", boxes.shape[:1])
    _checks.check_same("scores", scores, "boxes", boxes)


def _check_images(boxes: Tensor, scores: Tensor, counts: Tensor | None) -> Tensor | None:
    """The counts, contiguous."""
    _checks.check_float("boxes", boxes, "[B, N, 4]", 3, 4)
    _checks.check_float("scores", scores, "[B, N]", 2)
    _checks.check_size("scores", scores, "[B, N]", boxes.shape[:2])
    _checks.check_same("scores", scores, "boxes", boxes)
    if counts is None:
        return None
    _checks.check_counts("counts", counts, boxes.shape[0], boxes.shape[1])
    _checks.check_same("counts", counts, "boxes", boxes, dtype=False)
    return counts.contiguous()


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
    Exact and bitwise repeatable. No boxes give an empty result. Time O(N log N) for the order plus, at most, boxes
    times boxes kept; memory O(N). Source: Felzenszwalb et al. 2010, section 5.2; Ren et al. 2015, section 3.3.
    """
    if backend is None and type(boxes) is Tensor and boxes.is_cpu:
        keep = _nms_of_few(boxes, scores, iou_threshold)
        if keep is not None:
            return keep
    _check_boxes_and_scores(boxes, scores)
    threshold = _checks.check_threshold("iou_threshold", iou_threshold)
    return _nms(boxes.contiguous(), scores.contiguous(), threshold, backend=backend)


_FEW = 128  # boxes: all that such a call works in fits on its stack, and it takes no longer than what stands around it


def _nms_of_few(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor | None:
    """The same for plain tensors of few boxes on a CPU, checked by the binding; None: take the usual way."""
    if not can_bypass_dispatcher() or type(scores) is not Tensor or type(iou_threshold) is not float:
        return None
    N = scores.numel()
    if N > _FEW or asked_for(None) is not None:
        return None
    keep = boxes.new_empty(N, dtype=torch.int64)
    kept = extension().nms_small(boxes, scores, iou_threshold, keep)
    return None if kept < 0 else keep.resize_(kept)


def _class_ids(idxs: Tensor) -> Tensor:
    """As int64. ValueError for floats that are not whole; on a GPU, where looking would wait for it, they are cut."""
    if idxs.is_floating_point() and idxs.device.type == "cpu" and not torch.compiler.is_compiling():
        odd = (idxs != idxs.trunc()) | ~idxs.isfinite()
        if odd.any():
            raise ValueError(f"idxs: expected whole numbers, got {idxs[odd][0].item()!r}; number the classes")
    return idxs if idxs.is_complex() else idxs.long()  # complex ids are refused as no integers


@accepts_arrays
def batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, *, backend: str | None = None
) -> Tensor:
    """nms within each class: boxes suppress only boxes of the same id. Indices int64 [kept], by descending score.

    idxs [N] holds class ids of any value, integers, bools or whole floats (compared as integers: coordinates are not
    shifted, so no precision is
    lost). Otherwise as `nms`, also for an empty input, errors and complexity (a box meets the kept boxes of its own
    class alone), and as torchvision's batched_nms.
    """
    _check_boxes_and_scores(boxes, scores)
    if isinstance(idxs, Tensor):
        idxs = _class_ids(idxs)
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
) -> PaddedKeep:
    """The first max_output boxes that nms keeps of every image, in fixed shapes: no synchronisation on a GPU.

    boxes [B, N, 4] and scores [B, N] of one floating dtype. class_ids int64 [B, N]: only equal ids suppress each other.
    counts int64 [B]: rows from counts[b] on do not exist. `legacy`: inclusive pixels.

    Returns `PaddedKeep`: keep int64 [B, max_output], rows of the image by descending score, then -1; and num_keep int64
    [B]. Rules as for nms. It stops at max_output kept boxes an image: the cost follows what is kept, not N^2; memory is
    O(B N).

    A count outside [0, N] is a ValueError on the CPU; on a GPU that image counts as empty (FRCNN_FAST_CHECK=1 raises).
    """
    counts = _check_images(boxes, scores, counts)
    threshold = _checks.check_threshold("iou_threshold", iou_threshold)
    max_output = _checks.check_positive("max_output", max_output, zero=True)
    if class_ids is not None:
        _checks.check_int("class_ids", class_ids, "[B, N]", boxes.shape[:2])
        _checks.check_same("class_ids", class_ids, "boxes", boxes, dtype=False)
        class_ids = class_ids.contiguous()
    return _nms_padded(
        boxes.contiguous(), scores.contiguous(), class_ids, counts, threshold, max_output, bool(legacy), backend=backend
    )


@accepts_arrays
def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    max_output: int,
    *,
    method: str = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    counts: Tensor | None = None,
    legacy: bool = False,
    backend: str | None = None,
) -> SoftKeep:
    """Soft-NMS: a kept box lowers the scores of those that it overlaps. The first max_output boxes kept of every image.

    boxes [B, N, 4] (x1, y1, x2, y2) in pixels and scores [B, N] of one floating dtype. counts int64 [B]: rows from
    counts[b] on do not exist. `legacy`: inclusive pixels. At each step the box with the highest score as it is now is
    kept, and every other score is multiplied by a weight of the box's IoU with it:

      linear     1 - iou where iou > iou_threshold, strictly, else 1
      gaussian   exp(-(iou * iou) / sigma)
      hard       0 where iou > iou_threshold, else 1: `nms`

    A box takes part while its score is above score_threshold, strictly.

    Returns `SoftKeep`: keep int64 [B, max_output], rows in the order in which they were kept (so by descending score),
    then -1; kept_scores [B, max_output], those at that moment, in the compute dtype (float64 for float64, else
    float32), then 0; num_keep int64 [B]. No boxes or no images: nothing is kept.

    Equal scores go by ascending index, also where a lowered score ties with another. NaN scores and boxes with a
    non-finite coordinate take part in nothing; an IoU of 0/0 lowers nothing; an infinite score that is lowered to NaN
    (infinity times 0) is out. Products are rounded one after the other, in the order of the kept boxes: one exact
    answer on every backend, bitwise repeatable. No gradient. O(N) time a kept box, O(B N) memory; on a GPU one block an
    image and no synchronisation.

    TypeError: not tensors, integer or mixed dtypes. ValueError: other shapes, devices or methods, negative thresholds,
    a sigma that is not positive; on the CPU a count outside [0, N] (on a GPU that image counts as empty). Source: Bodla
    et al. 2017, section 3.
    """
    counts = _check_images(boxes, scores, counts)
    if method not in SOFT_METHODS:
        raise ValueError(f"method: expected one of {', '.join(SOFT_METHODS)}, got {method!r}")
    sigma = _checks.check_threshold("sigma", sigma)
    if sigma == 0.0:
        raise ValueError("sigma: expected a positive number, got 0.0; method='hard' is what it tends to")
    return _soft_nms(
        boxes.contiguous(),
        scores.contiguous(),
        counts,
        _checks.check_threshold("iou_threshold", iou_threshold),
        sigma,
        _checks.check_threshold("score_threshold", score_threshold),
        _checks.check_positive("max_output", max_output, zero=True),
        method,
        bool(legacy),
        backend=backend,
    )
