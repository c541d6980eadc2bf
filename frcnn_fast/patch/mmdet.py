"""Our steps under mmdetection's detectors, without a change of their code. They need no compiled half of mmcv."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from frcnn_fast import ops
from frcnn_fast.mmcv.numbers import c_float
from frcnn_fast.ops._checks import INTEGERS
from frcnn_fast.ops._torch_private import plain_eager
from frcnn_fast.ops.anchors import MOST_LEVELS
from frcnn_fast.patch.core import Library, Patch, are_served


def patch_mmdet() -> Patch:
    """Puts the fast steps under mmdetection's detectors, until it is undone.

        frcnn_fast.stand_in_for_mmcv()  # where mmcv has no compiled half of its own
        with frcnn_fast.patch_mmdet():
            runner.train()

    As `patch_torchvision`, it holds for the whole process, patches count, and functions are replaced in every module
    that has imported them by name. Replaced are:

    - `mmcv.ops.batched_nms` (type nms): `ops.batched_nms`, which compares boxes of several classes or levels where they
      lie. mmcv moves them apart first, which rounds them: an IoU within that rounding of the threshold can be decided
      otherwise.
    - `SingleRoIExtractor.forward`: `ops.multiscale_roi_align`, one call for all levels. A region whose size is within
      some millionths of a level's bound can go to the level beside it.
    - `mmdet.structures.bbox.bbox_overlaps` (IoU of every pair, on a CPU): `ops.box_iou`; the same bits.
    - `RPNHead._predict_by_feat_single` (one logit an anchor): `ops.rpn_proposals`. Scores and boxes are within rounding
      of theirs, and so an IoU within that of the threshold can be decided otherwise. Equal scores go by the lower
      index, and a box that is not finite is no proposal.
    - `MaxIoUAssigner.assign` with low-quality matches, as of an RPN: `ops.assign_anchors`, without a matrix of ground
      truths x priors; the same bits. `max_overlaps` of the result is computed when somebody asks for it.
    - `MaxIoUAssigner.assign_wrt_overlaps`: without a loop over the ground truths; the same bits.

    A call that these do not serve runs mmdetection's own code: other modes, layers and settings, inputs other than
    plain tensors of one dtype, float32 or float64, everything under torch.compile, tracing and functorch.

    Returns:
        The patch, with `undo()` and `replaced`, a list of names; also a context manager.

    Raises:
        ImportError: mmdet (or mmcv, or its compiled half and what stands in for it) is not there, or is of a version
            that lacks what would be replaced.
    """
    return _MMDET.patch()


class _NmsOptions(NamedTuple):
    threshold: float
    most: int  # of all classes together; 0 or less: all
    agnostic: bool


def _nms_options(nms_cfg: Any, class_agnostic: bool = False) -> _NmsOptions | None:
    """What mmcv's batched_nms is asked for; None if it is anything but plain NMS."""
    if nms_cfg is None:
        return None
    cfg = dict(nms_cfg)
    agnostic = cfg.pop("class_agnostic", class_agnostic)
    kind, threshold, most = cfg.pop("type", "nms"), cfg.pop("iou_threshold", None), cfg.pop("max_num", -1)
    cfg.pop("split_thr", None)  # from how many boxes on mmcv goes class by class
    if kind != "nms" or not isinstance(threshold, float) or threshold < 0 or cfg:
        return None
    return _NmsOptions(c_float(threshold), most, agnostic)


def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, nms_cfg: Any, class_agnostic: bool = False) -> Any:
    options = _nms_options(nms_cfg, class_agnostic)
    if not (
        options is not None
        and are_served(boxes, scores)
        and plain_eager((idxs,))
        and boxes.dim() == 2
        and boxes.shape[1] == 4
        and len(boxes)
        and scores.shape == idxs.shape == boxes.shape[:1]
        and idxs.dtype in INTEGERS
    ):
        return NotImplemented
    where, by = boxes.detach(), scores.detach()
    if options.agnostic:
        keep = ops.nms(where, by, options.threshold)
    else:
        keep = ops.batched_nms(where, by, idxs, options.threshold)
    if options.most > 0:
        keep = keep[: options.most]
    return torch.cat([boxes[keep], scores[keep, None]], 1), keep


def _bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, mode: str = "iou", is_aligned: bool = False, eps: float = 1e-6
) -> Any:
    if not (
        mode == "iou"
        and not is_aligned
        and are_served(bboxes1, bboxes2)
        and bboxes1.device.type == "cpu"
        and all(b.dim() == 2 and b.shape[1] == 4 and len(b) for b in (bboxes1, bboxes2))
        and not (torch.is_grad_enabled() and (bboxes1.requires_grad or bboxes2.requires_grad))
        # A union is as large as either box or larger: `eps`, the least that mmdetection divides by, changes nothing.
        and all(_least_area(b) >= 2 * eps for b in (bboxes1, bboxes2))
    ):
        return NotImplemented
    return ops.box_iou(bboxes1, bboxes2)


def _least_area(boxes: Tensor) -> float:
    """-1 where an area is not finite, as of a box with a corner that is not, and where a side is negative."""
    sides = boxes[:, 2:] - boxes[:, :2]
    least, most = sides.prod(1).aminmax()
    return float(least) if math.isfinite(float(most)) and bool((sides >= 0).all()) else -1.0


def _assign(self: Any, pred_instances: Any, gt_instances: Any, gt_instances_ignore: Any = None, **kwargs: Any) -> Any:
    from mmdet.models.task_modules.assigners.assign_result import AssignResult
    from mmdet.models.task_modules.assigners.iou2d_calculator import BboxOverlaps2D
    from mmdet.structures.bbox import get_box_tensor

    calculator = self.iou_calculator
    boxes, priors = get_box_tensor(gt_instances.bboxes), get_box_tensor(pred_instances.priors)
    labels = gt_instances.labels
    if not (
        self.match_low_quality
        and self.gt_max_assign_all
        and getattr(self, "perm_repeat_gt_cfg", None) is None
        and not 0 < self.gpu_assign_thr < len(boxes)
        and type(calculator) is BboxOverlaps2D
        and calculator.dtype is None
        and isinstance(self.neg_iou_thr, float)
        and self.neg_iou_thr >= 0 < self.pos_iou_thr
        and self.min_pos_iou >= 0
        and _are_full_boxes(priors)
        and _are_full_boxes(boxes)
        and are_served(priors, boxes)
        and plain_eager((labels,))
    ):
        return NotImplemented
    ignored = boxes[:0]
    if gt_instances_ignore is not None and self.ignore_iof_thr > 0:
        ignored = get_box_tensor(gt_instances_ignore.bboxes)
        if ignored.numel() and not (
            self.ignore_wrt_candidates and are_served(boxes, ignored) and bool(ignored.isfinite().all())
        ):
            return NotImplemented
    ignored = ignored.reshape(-1, 4)
    rows = torch.arange(len(boxes) + len(ignored), device=boxes.device)
    dtype = np.float64 if boxes.dtype == torch.float64 else np.float32
    kinds, objects = ops.assign_anchors(
        priors,
        torch.cat([boxes, ignored])[None],
        torch.full((1,), len(rows), device=boxes.device),
        crowd=(rows >= len(boxes))[None] if len(ignored) else None,
        positive_iou=self.pos_iou_thr,
        negative_iou=self.neg_iou_thr,
        min_quality=self.min_pos_iou,
        overwrite=True,
        # mmdetection ignores what is covered by more than the threshold, we what is covered by at least that much.
        crowd_overlap=float(np.nextafter(dtype(max(self.ignore_iof_thr, 0)), dtype(np.inf))),
    )
    if not self.min_pos_iou and not _meets_all(priors, boxes, objects[0], bool(len(ignored))):
        return NotImplemented

    def max_overlaps() -> Tensor:
        highest: Tensor = calculator(boxes, priors).amax(0)
        if len(ignored):
            highest[calculator(priors, ignored, mode="iof").amax(1) > self.ignore_iof_thr] = -1
        return highest

    gt_inds = torch.where(kinds[0] > 0, objects[0].long() + 1, kinds[0].long())
    assigned = torch.where(gt_inds > 0, labels[(gt_inds - 1).clamp(min=0)], -1)
    return _lazily(AssignResult)(max_overlaps, num_gts=len(boxes), gt_inds=gt_inds, labels=assigned)


def _are_full_boxes(boxes: Tensor, least: float = 2e-6) -> bool:
    """Boxes with an area that is twice the one which mmdetection replaces smaller ones by, or larger."""
    return boxes.dim() == 2 and boxes.shape[1] == 4 and len(boxes) > 0 and _least_area(boxes) >= least


def _meets_all(priors: Tensor, boxes: Tensor, matched: Tensor, some_ignored: bool) -> bool:
    """Whether every box overlaps some prior. One that does not is, without a least IoU, given to all priors that do not
    overlap it by mmdetection, and to none by us."""
    unseen = torch.ones(len(boxes) + 1, dtype=torch.bool, device=boxes.device)
    unseen[matched.long()] = False
    left = boxes[unseen[:-1]]
    return not len(left) or (not some_ignored and bool((ops.box_iou(left, priors).amax(1) > 0).all()))


@functools.cache
def _lazily(result: type) -> Any:
    """mmdetection's class of results, whose `max_overlaps` are computed when they are first read."""

    class Lazily(result):
        _max_overlaps: Tensor | None

        def __init__(self, compute: Callable[[], Tensor], **fields: Any) -> None:
            super().__init__(max_overlaps=None, **fields)
            self._compute = compute

        @property
        def max_overlaps(self) -> Tensor:
            highest = self._compute() if self._max_overlaps is None else self._max_overlaps
            self._max_overlaps = highest
            return highest

        @max_overlaps.setter
        def max_overlaps(self, value: Any) -> None:
            self._max_overlaps = value

    return Lazily


def _assign_wrt_overlaps(self: Any, overlaps: Tensor, gt_labels: Tensor) -> Any:
    from mmdet.models.task_modules.assigners.assign_result import AssignResult

    negative = self.neg_iou_thr
    if not (
        plain_eager((overlaps, gt_labels))
        and overlaps.numel()
        and isinstance(negative, (float, tuple))
        and not (isinstance(negative, tuple) and len(negative) != 2)
    ):
        return NotImplemented
    highest, nearest = overlaps.max(0)
    gt_inds = torch.full_like(nearest, -1)
    low, high = negative if isinstance(negative, tuple) else (0, negative)
    gt_inds[(highest >= low) & (highest < high)] = 0
    gt_inds = torch.where(highest >= self.pos_iou_thr, nearest + 1, gt_inds)
    if self.match_low_quality:
        best, place = overlaps.max(1)
        wanted = best >= self.min_pos_iou
        if self.gt_max_assign_all:
            gt, prior = ((overlaps == best[:, None]) & wanted[:, None]).nonzero(as_tuple=True)
        else:
            gt, prior = wanted.nonzero()[:, 0], place[wanted]
        # Of several ground truths that want a box, the last one gets it.
        taken = torch.zeros_like(gt_inds).scatter_reduce_(0, prior, gt + 1, "amax")
        gt_inds = torch.where(taken > 0, taken, gt_inds)
    labels = torch.where(gt_inds > 0, gt_labels[(gt_inds - 1).clamp(min=0)], -1)
    return AssignResult(num_gts=len(overlaps), gt_inds=gt_inds, max_overlaps=highest, labels=labels)


def _predict_rpn(
    self: Any,
    cls_score_list: list[Tensor],
    bbox_pred_list: list[Tensor],
    score_factor_list: Any,
    mlvl_priors: list[Tensor],
    img_meta: Any,
    cfg: Any,
    rescale: bool = False,
    with_nms: bool = True,
) -> Any:
    from mmdet.models.dense_heads.rpn_head import RPNHead
    from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
    from mmengine.structures import InstanceData

    cfg, coder = self.test_cfg if cfg is None else cfg, self.bbox_coder
    levels = list(zip(cls_score_list, bbox_pred_list, mlvl_priors))
    options = _nms_options(cfg.get("nms"))
    if not (
        options is not None
        and not options.agnostic
        and cfg.max_per_img > 0
        and with_nms
        and not rescale
        and type(self)._bbox_post_process is RPNHead._bbox_post_process
        and self.use_sigmoid_cls
        and self.cls_out_channels == 1
        and type(coder) is DeltaXYWHBBoxCoder
        and coder.clip_border
        and not coder.add_ctr_clamp
        and not coder.use_box_type
        and not any(coder.means)
        and 0 < len(levels) <= MOST_LEVELS
        and are_served(*(tensor for level in levels for tensor in level))
        and all(len(priors) == scores.numel() for scores, _, priors in levels)
    ):
        return NotImplemented
    most = cfg.max_per_img if options.most <= 0 else min(options.most, cfg.max_per_img)
    before, least = cfg.get("nms_pre", -1), cfg.get("min_bbox_size", -1)
    limit = abs(float(np.log(16 / 1000)))  # of dw and dh, either way; ops.rpn_proposals clamps them from above
    dtype = np.float64 if cls_score_list[0].dtype == torch.float64 else np.float32
    boxes, scores, _, counts = ops.rpn_proposals(
        [level.detach()[None].sigmoid() for level in cls_score_list],  # ties of the sigmoid are theirs, too
        [_with_least_sides(level.detach()[None], [-limit / std for std in coder.stds[2:]]) for level in bbox_pred_list],
        torch.cat(mlvl_priors),
        [img_meta["img_shape"][:2]],
        pre_nms_top_n=before if before > 0 else max(map(len, mlvl_priors)),
        post_nms_top_n=most,
        iou_threshold=options.threshold,
        # mmdetection wants sides above the least size, we at least the size.
        min_size=float(np.nextafter(dtype(least), dtype(np.inf))) if least >= 0 else 0.0,
        filter_order="after_top_n",
        weights=[1 / std for std in coder.stds],
        clamp=limit,
    )
    results = InstanceData()
    results.bboxes, results.scores = boxes[0, : counts[0]], scores[0, : counts[0]]
    results.labels = torch.zeros_like(results.scores, dtype=torch.long)
    return results


def _with_least_sides(deltas: Tensor, least: list[float]) -> Tensor:
    """A level's deltas, with dw and dh of at least that much."""
    dx, dy, dw, dh = deltas.unflatten(1, (-1, 4)).unbind(2)
    return torch.stack([dx, dy, dw.clamp(min=least[0]), dh.clamp(min=least[1])], 2).flatten(1, 2)


def _extract(self: Any, feats: Any, rois: Tensor, roi_scale_factor: float | None = None) -> Any:
    from mmcv.ops import RoIAlign
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    strides, layers = list(self.featmap_strides), list(self.roi_layers)
    first = layers[0]
    rois = rois.type_as(feats[0])
    if not (
        roi_scale_factor is None
        and 1 < len(feats) == len(strides) <= MOST_LEVELS
        and are_served(*feats, rois)
        and len(rois)
        and type(self).map_roi_levels is SingleRoIExtractor.map_roi_levels
        and all(type(layer) is RoIAlign for layer in layers)
        and len({(layer.output_size, layer.sampling_ratio, layer.aligned) for layer in layers}) == 1
        and all(layer.pool_mode == "avg" and not layer.use_torchvision for layer in layers)
        and [layer.spatial_scale for layer in layers] == [1 / stride for stride in strides]
        and all(feat.dim() == 4 and feat.shape[:2] == feats[0].shape[:2] for feat in feats)
        and self.finest_scale > 0
    ):
        return NotImplemented
    finest = int(strides[0]).bit_length() - 1
    if strides != [2 ** (finest + level) for level in range(len(strides))]:
        return NotImplemented
    return ops.multiscale_roi_align(
        list(feats),
        rois,
        first.output_size,
        [layer.spatial_scale for layer in layers],
        first.sampling_ratio,
        aligned=first.aligned,
        canonical_scale=self.finest_scale,
        canonical_level=finest,
        memory_format=torch.contiguous_format,
    )


_INSTEAD_OF: dict[str, Callable[..., Any]] = {
    "models.layers.bbox_nms:batched_nms": _batched_nms,
    "structures.bbox.bbox_overlaps:bbox_overlaps": _bbox_overlaps,
    "models.task_modules.assigners.max_iou_assigner:MaxIoUAssigner:assign": _assign,
    "models.task_modules.assigners.max_iou_assigner:MaxIoUAssigner:assign_wrt_overlaps": _assign_wrt_overlaps,
    "models.dense_heads.rpn_head:RPNHead:_predict_by_feat_single": _predict_rpn,
    "models.roi_heads.roi_extractors.single_level_roi_extractor:SingleRoIExtractor:forward": _extract,
}

_MMDET = Library("mmdet", _INSTEAD_OF)
