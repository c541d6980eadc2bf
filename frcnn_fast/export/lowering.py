"""The ops of inference in terms of torch's own, and of a few that ONNX has by itself: what an exporter sees of them.

Shapes are fixed by the arguments, as the ops' own: what ranks and suppresses works on scores where -inf marks what
takes no part. A score of NaN or -inf is therefore never selected; all else follows the ops' rules, within rounding. The
leaves, `keep_mask` and `ranked_rows`, and the RoI ops themselves, have their ONNX nodes in translations.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from frcnn_fast import ops
from frcnn_fast.ops._checks import compute_dtype
from frcnn_fast.ops._operator import stand_ins

NAMESPACE = "frcnn_fast_export"
_NOTHING = -math.inf
_LARGEST = torch.finfo(torch.float32).max


@torch.library.custom_op(f"{NAMESPACE}::keep_mask", mutates_args=())
def keep_mask(boxes: Tensor, scores: Tensor, class_ids: Tensor | None, iou_threshold: float, max_output: int) -> Tensor:
    """Which rows NMS keeps, bool [B, N], at most the max_output best of an image (and class).

    boxes [B, N, 4], scores [B, N]; class_ids int64 [B, N].
    """
    with stand_ins({}):
        found = ops.nms_padded(boxes, scores, iou_threshold, max_output, class_ids=class_ids)
    B, N = scores.shape
    rows = found.keep.where(found.keep >= 0, N)
    mask = torch.zeros(B, N + 1, dtype=torch.bool, device=boxes.device).scatter(1, rows, True)
    return mask[:, :N] & (scores > _NOTHING)


@keep_mask.register_fake
def _(boxes: Tensor, scores: Tensor, class_ids: Tensor | None, iou_threshold: float, max_output: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


@torch.library.custom_op(f"{NAMESPACE}::ranked_rows", mutates_args=())
def ranked_rows(boxes: Tensor, scores: Tensor, class_ids: Tensor | None, iou_threshold: float) -> Tensor:
    """The rows that NMS keeps, by descending score: int64 [kept]. boxes [N, 4], scores [N], class_ids int64 [N]."""
    ids = torch.zeros_like(scores, dtype=torch.int64) if class_ids is None else class_ids
    with stand_ins({}):
        kept = ops.batched_nms(boxes, scores, ids, iou_threshold)
    return kept[scores[kept] > _NOTHING]


@ranked_rows.register_fake
def _(boxes: Tensor, scores: Tensor, class_ids: Tensor | None, iou_threshold: float) -> Tensor:
    return scores.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def _grid_anchors(anchors: Tensor, anchor_grid: Sequence[int], anchor_offset: float) -> Tensor:
    if not anchor_grid:
        return anchors
    tables: list[Tensor] = []
    first = 0
    for height, width, k, stride_y, stride_x in zip(*[iter(anchor_grid)] * 5):
        x = torch.arange(width, device=anchors.device).to(anchors.dtype) * stride_x + anchor_offset * stride_x
        y = torch.arange(height, device=anchors.device).to(anchors.dtype) * stride_y + anchor_offset * stride_y
        corner = torch.stack([x[None].expand(height, width), y[:, None].expand(height, width)], -1)
        cells = anchors[first : first + k]
        tables.append((torch.cat([corner, corner], -1)[:, :, None] + cells).reshape(-1, 4))
        first += k
    return tables[0] if len(tables) == 1 else torch.cat(tables)


def _decode_clip(
    deltas: Tensor,
    anchors: Tensor,
    anchor_grid: Sequence[int],
    anchor_offset: float,
    image_sizes: Tensor,
    image_scales: Tensor | None,
    weights: Sequence[float],
    clamp: float,
    min_size: float,
    legacy: bool,
) -> tuple[Tensor, Tensor]:
    anchors, deltas = _grid_anchors(anchors, anchor_grid, anchor_offset), deltas.to(compute_dtype(deltas))
    one = 1.0 if legacy else 0.0
    side = anchors[..., 2:] - anchors[..., :2] + one
    centre = anchors[..., :2] + 0.5 * side
    moved = (deltas[..., :2] / deltas.new_tensor(weights[:2])) * side + centre
    grown = (deltas[..., 2:] / deltas.new_tensor(weights[2:])).clamp(max=clamp).exp() * side
    decoded = torch.cat([moved - 0.5 * grown, moved + 0.5 * grown], -1)
    boxes = torch.minimum(decoded, (image_sizes.flip(1) - one).repeat(1, 2)[:, None]).clamp(min=0.0)
    least = min_size if image_scales is None else (min_size * image_scales)[:, None, None]
    large = (boxes[..., 2:] - boxes[..., :2] + one) >= least
    return boxes, (decoded.abs() <= _LARGEST).all(-1) & large.all(-1)


def _encode(gt_boxes: Tensor, anchors: Tensor, weights: Sequence[float], legacy: bool) -> Tensor:
    one = 1.0 if legacy else 0.0
    gt_boxes, anchors = (t.to(compute_dtype(t)) for t in (gt_boxes, anchors))
    gt_side, side = (t[..., 2:] - t[..., :2] + one for t in (gt_boxes, anchors))
    shift = (gt_boxes[..., :2] + 0.5 * gt_side) - (anchors[..., :2] + 0.5 * side)
    factor = gt_boxes.new_tensor(weights)
    return torch.cat([factor[:2] * shift / side, factor[2:] * (gt_side / side).log()], -1)


def _box_iou(boxes1: Tensor, boxes2: Tensor, legacy: bool) -> Tensor:
    one = 1.0 if legacy else 0.0
    a, b = boxes1[:, None].to(compute_dtype(boxes1)), boxes2[None].to(compute_dtype(boxes2))
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2]) + one
    overlap = sides.clamp(min=0.0).prod(-1)
    areas = [(t[..., 2:] - t[..., :2] + one).prod(-1) for t in (a, b)]
    return overlap / (areas[0] + areas[1] - overlap)


def _best(scores: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The n best of every row: scores, columns, and which of them are there at all."""
    values, columns = F.pad(scores, (0, n), value=_NOTHING).topk(n)
    real = values > _NOTHING
    return values, columns.where(real, 0), real


def _rows(table: Tensor, columns: Tensor) -> Tensor:
    """Of a table [B, N, 4], or [N, 4] for all images, the rows [B, n]."""
    if table.dim() == 2:
        return table[columns]
    return table.gather(1, columns[..., None].expand(-1, -1, 4))


def _padded(real: Tensor, *results: Tensor) -> list[Tensor]:
    """Beyond the count, floats are 0 and integers -1."""
    found = []
    for result in results:
        rows = real[..., None] if result.dim() == 3 else real
        found.append(result.where(rows, 0.0 if result.is_floating_point() else -1))
    return found


def _inclusive(boxes: Tensor, legacy: bool) -> Tensor:
    """As half-open boxes of the same sides."""
    return boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0]) if legacy else boxes


def _top_n(scores: Tensor, n: int) -> tuple[Tensor, ...]:
    values, columns, real = _best(scores.where(~scores.isnan(), _NOTHING), n)
    return (*_padded(real, values, columns), real.sum(1))


def _taking_part(boxes: Tensor, scores: Tensor) -> Tensor:
    """The scores of finite boxes, else -inf."""
    return scores.where((boxes.abs() <= _LARGEST).all(-1) & ~scores.isnan(), _NOTHING)


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return ranked_rows(boxes, _taking_part(boxes, scores), None, iou_threshold)


def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    return ranked_rows(boxes, _taking_part(boxes, scores), idxs, iou_threshold)


def _nms_padded(
    boxes: Tensor,
    scores: Tensor,
    class_ids: Tensor | None,
    counts: Tensor | None,
    iou_threshold: float,
    max_output: int,
    legacy: bool,
) -> tuple[Tensor, Tensor]:
    ranked = _taking_part(boxes, scores)
    if counts is not None:
        ranked = ranked.where(torch.arange(boxes.shape[1], device=boxes.device) < counts[:, None], _NOTHING)
    keep = keep_mask(_inclusive(boxes, legacy), ranked, class_ids, iou_threshold, max_output)
    _, rows, real = _best(ranked.where(keep, _NOTHING), max_output)
    return _padded(real, rows)[0], real.sum(1)


def _table(of_head: Sequence[Tensor], *values: int) -> Tensor:
    """A head's maps as [B, A], or with 4 `values` an anchor as [B, A, 4]; a table as it is."""
    if of_head[0].dim() < 4:
        return of_head[0]
    return torch.cat([m.permute(0, 2, 3, 1).reshape(m.shape[0], -1, *values) for m in of_head], 1)


def _rpn_proposals(
    of_head: Sequence[Tensor],
    deltas_of_head: Sequence[Tensor],
    anchors: Tensor,
    anchor_grid: Sequence[int],
    anchor_offset: float,
    image_sizes: Tensor,
    image_scales: Tensor | None,
    level_sizes: Sequence[int],
    pre_nms_top_n: int,
    post_nms_top_n: int,
    iou_threshold: float,
    min_size: float,
    filter_before_top_n: bool,
    weights: Sequence[float],
    clamp: float,
    legacy: bool,
) -> tuple[Tensor, ...]:
    scores, deltas = _table(of_head), _table(deltas_of_head, 4)
    anchors = _grid_anchors(anchors, anchor_grid, anchor_offset)
    images = image_sizes, image_scales, weights, clamp, min_size, legacy
    ranked = scores.where(~scores.isnan(), _NOTHING)
    if filter_before_top_n:
        decoded, valid = _decode_clip(deltas, anchors, [], 0.0, *images)
        ranked = ranked.where(valid, _NOTHING)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    first = 0
    for size in level_sizes:
        values, rows, _ = _best(ranked[:, first : first + size], pre_nms_top_n)
        rows = rows + first
        if filter_before_top_n:
            boxes = _rows(decoded, rows)
        else:
            boxes, valid = _decode_clip(_rows(deltas, rows), _rows(anchors, rows), [], 0.0, *images)
            values = values.where(valid, _NOTHING)
        # Of no level are more than post_nms_top_n wanted.
        keep = keep_mask(_inclusive(boxes, legacy), values, None, iou_threshold, post_nms_top_n)
        found.append((boxes, values.where(keep, _NOTHING), rows))
        first = first + size
    boxes, values, rows = found[0] if len(found) == 1 else (torch.cat(each, 1) for each in zip(*found))
    values, places, real = _best(values, post_nms_top_n)
    return (*_padded(real, _rows(boxes, places), values, rows.gather(1, places)), real.sum(1))


def _detections(
    class_logits: Tensor,
    box_deltas: Tensor,
    proposals: Tensor,
    counts: Tensor,
    image_sizes: Tensor,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    min_size: float,
    weights: Sequence[float],
    clamp: float,
    background_last: bool,
    legacy: bool,
) -> tuple[Tensor, ...]:
    B, N, classes = class_logits.shape
    K, first = int(classes) - 1, 0 if background_last else 1
    scores = class_logits.to(compute_dtype(class_logits)).softmax(-1)[..., first : first + K]
    deltas = box_deltas.reshape(B, N, -1, 4)
    deltas = deltas.expand(B, N, K, 4) if box_deltas.shape[2] == 4 else deltas[:, :, first : first + K]
    boxes, valid = _decode_clip(
        deltas.reshape(B, -1, 4),
        proposals[:, :, None].expand(B, N, K, 4).reshape(B, -1, 4),
        [], 0.0, image_sizes, None, weights, clamp, min_size, legacy,
    )  # fmt: skip
    exists = torch.arange(N, device=counts.device) < counts[:, None]
    candidates = valid.reshape(B, N, K) & exists[..., None] & (scores > score_threshold)
    ranked = scores.where(candidates, _NOTHING)
    # A class of an image suppresses by itself: every one is an image of its own.
    by_class = _inclusive(boxes, legacy).reshape(B, N, K, 4).transpose(1, 2).reshape(-1, N, 4)
    keep = keep_mask(by_class, ranked.transpose(1, 2).reshape(-1, N), None, iou_threshold, max_detections)
    keep = keep.reshape(B, K, N).transpose(1, 2)
    values, places, real = _best(ranked.where(keep, _NOTHING).reshape(B, -1), max_detections)
    rows = torch.div(places, K, rounding_mode="floor")
    labels = places - rows * K + first
    return (*_padded(real, _rows(boxes, places), values, labels, rows), real.sum(1))


def _without_onnx(name: str) -> Callable[..., Any]:
    def refuse(*args: Any) -> Any:
        raise NotImplementedError(
            f"{name}: not in terms of ONNX's operators; export a model without it, or as pt2 (torch.export)"
        )

    return refuse


# By the op's name, with its schema's arguments. roi_pool, roi_align and multiscale_roi_align stay.
LOWERED: dict[str, Callable[..., Any]] = {
    "grid_anchors": _grid_anchors,
    "decode_clip": _decode_clip,
    "encode": _encode,
    "box_iou": _box_iou,
    "top_n": _top_n,
    "nms": _nms,
    "batched_nms": _batched_nms,
    "nms_padded": _nms_padded,
    "rpn_proposals": _rpn_proposals,
    "detections": _detections,
    **{
        name: _without_onnx(name)
        for name in (
            "prroi_pool",
            "roi_align_max",
            "soft_nms",
            "assign_anchors",
            "sample_anchors",
            "rpn_targets",
            "sample_rois",
        )
    },
}
