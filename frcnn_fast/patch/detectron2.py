"""Our steps under detectron2's R-CNN detectors, without a change of their code. They need no compiled half of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frcnn_fast import ops
from frcnn_fast.ops._torch_private import plain_eager
from frcnn_fast.ops.anchors import MOST_LEVELS
from frcnn_fast.patch.core import Library, Patch, are_served, patch_all
from frcnn_fast.patch.torchvision import _TORCHVISION, _iou_threshold


def patch_detectron2() -> Patch:
    """Puts the fast steps under detectron2's detectors, until it is undone; includes `patch_torchvision`.

        with frcnn_fast.patch_detectron2():
            predictions = model(inputs)

    As `patch_torchvision`, it holds for the whole process, and patches count. Replaced are, beside torchvision's
    functions that detectron2 calls (nms, batched_nms, roi_align, roi_pool):

    - `RPN.predict_proposals`: `ops.rpn_proposals`;
    - `RPN.label_and_sample_anchors`: `ops.assign_anchors`, without a matrix of objects x anchors. The samples are
      detectron2's own draws, so losses and gradients are the same to the bit;
    - `ROIPooler.forward` over several levels: `ops.multiscale_roi_align`. A region whose size is within some millionths
      of a level's bound can go to the level beside it;
    - `FastRCNNOutputLayers.inference`: `ops.detections`, with the rows that were kept.

    A call that these do not serve runs detectron2's own code: rotated boxes, other transforms, matchers and poolers,
    sigmoid scores, inputs other than plain tensors of one dtype, float32 or float64, a diverged training (detectron2
    raises), everything under torch.compile, tracing and scripting.

    By design it differs where detectron2's answer is arbitrary: equal scores go by the lower index; an object that no
    anchor overlaps makes no anchor an object (detectron2: every anchor that overlaps no object); boxes of several
    levels or classes are compared where they lie, not moved apart first, which rounds them; of a row with a score or
    box that is not finite the finite classes stay.

    Returns:
        The patch, with `undo()` and `replaced`, a list of names; also a context manager.

    Raises:
        ImportError: detectron2 or torchvision is not there, or is of a version that lacks what would be replaced.
    """
    if importlib.util.find_spec("detectron2") is None:
        raise ImportError(
            "detectron2 is needed here and is not installed: put its source tree on PYTHONPATH (R-CNN detectors need "
            "nothing of it compiled)"
        )
    return patch_all(_TORCHVISION, _DETECTRON2)


def _are_plain_boxes(*boxes: Any) -> bool:
    from detectron2.structures import Boxes

    return all(type(b) is Boxes for b in boxes)


def _is_plain_transform(transform: Any) -> bool:
    """Not the rotated one, nor the one that trains on distances. (A scripted class has no class to compare with.)"""
    return type(transform).__name__ == "Box2BoxTransform"


def _predict_proposals(
    self: Any, anchors: Any, pred_objectness_logits: list[Tensor], pred_anchor_deltas: list[Tensor], image_sizes: Any
) -> Any:
    from detectron2.structures import Boxes, Instances

    levels = pred_objectness_logits
    if not (
        _are_plain_boxes(*anchors)
        and _is_plain_transform(self.box2box_transform)
        and are_served(*levels, *pred_anchor_deltas, *(a.tensor for a in anchors))
        and 0 < len(levels) == len(pred_anchor_deltas) == len(anchors) <= MOST_LEVELS
        and self.nms_thresh >= 0
        and self.min_box_size >= 0
    ):
        return NotImplemented
    if self.training and not all(bool(x.isfinite().all()) for x in (*levels, *pred_anchor_deltas)):
        return NotImplemented
    # A level's table is a map of one row of cells with an anchor each.
    logits = [level[:, None, None] for level in levels]
    deltas = [level.permute(0, 2, 1)[:, :, None] for level in pred_anchor_deltas]
    dtype = np.float64 if logits[0].dtype == torch.float64 else np.float32
    boxes, scores, _, counts = ops.rpn_proposals(
        logits,
        deltas,
        torch.cat([a.tensor for a in anchors]),
        list(image_sizes),
        pre_nms_top_n=self.pre_nms_topk[self.training],
        post_nms_top_n=self.post_nms_topk[self.training],
        iou_threshold=_iou_threshold(deltas[0], self.nms_thresh),
        # detectron2 wants sides above the least size, we at least the size.
        min_size=float(np.nextafter(dtype(self.min_box_size), dtype(np.inf))),
        filter_order="after_top_n",
        weights=self.box2box_transform.weights,
        clamp=self.box2box_transform.scale_clamp,
    )
    found = []
    for b, (size, count) in enumerate(zip(image_sizes, counts.tolist())):
        proposals = Instances(size)
        proposals.proposal_boxes = Boxes(boxes[b, :count])
        proposals.objectness_logits = scores[b, :count]
        found.append(proposals)
    return found


def _label_and_sample_anchors(self: Any, anchors: Any, gt_instances: Any) -> Any:
    from detectron2.modeling.matcher import Matcher

    matcher = self.anchor_matcher
    if not (
        type(matcher) is Matcher
        and matcher.labels == [0, -1, 1]
        and self.anchor_boundary_thresh < 0
        and anchors
        and _are_plain_boxes(*anchors, *(x.gt_boxes for x in gt_instances))
        and are_served(*(a.tensor for a in anchors), *(x.gt_boxes.tensor for x in gt_instances))
    ):
        return NotImplemented
    table = torch.cat([a.tensor for a in anchors])
    labels, matched = [], []
    for instances in gt_instances:
        gt_boxes = instances.gt_boxes.tensor
        count = torch.full((1,), len(gt_boxes), device=table.device)
        label, index = ops.assign_anchors(
            table,
            gt_boxes[None],
            count,
            positive_iou=matcher.thresholds[2],
            negative_iou=matcher.thresholds[1],
            low_quality=matcher.allow_low_quality_matches,
        )
        labels.append(self._subsample_labels(label[0]))
        # Only an object's row is looked at.
        matched.append(gt_boxes[index[0].clamp(min=0)] if len(gt_boxes) else torch.zeros_like(table))
    return labels, matched


def _pool(self: Any, x: list[Tensor], box_lists: Any) -> Any:
    from detectron2.layers import ROIAlign

    poolers = list(self.level_poolers)
    if not (
        isinstance(x, list)
        and isinstance(box_lists, list)
        and 1 < len(x) == len(poolers) <= MOST_LEVELS
        and all(type(pooler) is ROIAlign for pooler in poolers)
        and len({(pooler.aligned, pooler.sampling_ratio) for pooler in poolers}) == 1
        and len(box_lists) == x[0].shape[0] > 0
        and _are_plain_boxes(*box_lists)
        and are_served(*x, *(b.tensor for b in box_lists))
    ):
        return NotImplemented
    return ops.multiscale_roi_align(
        x,
        [b.tensor for b in box_lists],
        self.output_size,
        [pooler.spatial_scale for pooler in poolers],
        poolers[0].sampling_ratio,
        aligned=poolers[0].aligned,
        canonical_scale=self.canonical_box_size,
        canonical_level=self.canonical_level,
        memory_format=torch.contiguous_format,
    )


def _inference(self: Any, predictions: Any, proposals: Any) -> Any:
    from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
    from detectron2.structures import Boxes, Instances

    logits, deltas = predictions
    boxes = [p.proposal_boxes for p in proposals]
    own = ("predict_boxes", "predict_probs")
    if not (
        all(getattr(type(self), name, None) is getattr(FastRCNNOutputLayers, name) for name in own)
        and not getattr(self, "use_sigmoid_ce", False)
        and _is_plain_transform(self.box2box_transform)
        and proposals
        and _are_plain_boxes(*boxes)
        and are_served(logits, deltas, *(b.tensor for b in boxes))
        and plain_eager((logits, deltas))
        and not (torch.is_grad_enabled() and (logits.requires_grad or deltas.requires_grad))
        and logits.shape[1] > 1
        and deltas.shape[1] in (4, 4 * (logits.shape[1] - 1))
        and min(self.test_score_thresh, self.test_nms_thresh, self.test_topk_per_image) >= 0
    ):
        return NotImplemented
    lengths = [len(b) for b in boxes]

    def padded(rows: Any) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)

    found = ops.detections(
        padded(logits.split(lengths)),
        padded(deltas.split(lengths)),
        padded([b.tensor for b in boxes]),
        torch.tensor(lengths, device=logits.device),
        [p.image_size for p in proposals],
        score_threshold=self.test_score_thresh,
        iou_threshold=_iou_threshold(logits, self.test_nms_thresh),
        max_detections=self.test_topk_per_image,
        weights=self.box2box_transform.weights,
        clamp=self.box2box_transform.scale_clamp,
        background="last",
    )
    results, kept = [], []
    for b, (p, count) in enumerate(zip(proposals, found.counts.tolist())):
        result = Instances(p.image_size)
        result.pred_boxes = Boxes(found.boxes[b, :count])
        result.scores = found.scores[b, :count]
        result.pred_classes = found.labels[b, :count]
        results.append(result)
        kept.append(found.indices[b, :count])
    return results, kept


_INSTEAD_OF: dict[str, Callable[..., Any]] = {
    "modeling.proposal_generator.rpn:RPN:predict_proposals": _predict_proposals,
    "modeling.proposal_generator.rpn:RPN:label_and_sample_anchors": _label_and_sample_anchors,
    "modeling.poolers:ROIPooler:forward": _pool,
    "modeling.roi_heads.fast_rcnn:FastRCNNOutputLayers:inference": _inference,
}

_DETECTRON2 = Library("detectron2", _INSTEAD_OF)
