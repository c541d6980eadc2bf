"""What the ops return. B images; every tensor is padded to a fixed shape, and a count says how many rows are real."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from frcnn_fast.ops._torch_private import register_results


class TopN(NamedTuple):
    """Of `top_n`."""

    values: Tensor  # [B, n]; 0 beyond the count
    indices: Tensor  # int64 [B, n], columns of scores; -1 beyond
    counts: Tensor  # int64 [B]


class PaddedKeep(NamedTuple):
    """Of `nms_padded`."""

    keep: Tensor  # int64 [B, max_output], rows of boxes by descending score; -1 beyond
    num_keep: Tensor  # int64 [B]


class SoftKeep(NamedTuple):
    """Of `soft_nms`."""

    keep: Tensor  # int64 [B, max_output], rows of boxes in the order in which they were kept; -1 beyond
    kept_scores: Tensor  # [B, max_output], their scores when they were kept; 0 beyond
    num_keep: Tensor  # int64 [B]


class DecodedBoxes(NamedTuple):
    """Of `decode_clip`."""

    boxes: Tensor  # [B, A, 4]
    valid: Tensor  # bool [B, A]


class Proposals(NamedTuple):
    """Of `rpn_proposals`. P = post_nms_top_n."""

    boxes: Tensor  # [B, P, 4]; 0 beyond the count
    scores: Tensor  # [B, P]; 0 beyond
    indices: Tensor  # int64 [B, P], anchors; -1 beyond
    counts: Tensor  # int64 [B]


class AnchorLabels(NamedTuple):
    """Of `assign_anchors`."""

    labels: Tensor  # int8 [B, A]: 1 object, 0 background, -1 ignored
    matched: Tensor  # int32 [B, A]: row of gt_boxes, -1 where there is no object


class AnchorSamples(NamedTuple):
    """Of `sample_anchors`. S = batch_size."""

    indices: Tensor  # int64 [B, S], anchors; -1 beyond the counts
    labels: Tensor  # int8 [B, S]: 1 object, 0 background, -1 beyond
    counts: Tensor  # int64 [B, 2]: objects, background


class RpnTargets(NamedTuple):
    """Of `rpn_targets`. S = batch_size."""

    indices: Tensor  # int64 [B, S], anchors; -1 beyond the counts
    labels: Tensor  # int8 [B, S]: 1 object, 0 background, -1 beyond
    targets: Tensor  # [B, S, 4]; 0 where there is no object
    matched: Tensor  # int32 [B, S]: row of gt_boxes, -1 where there is no object
    counts: Tensor  # int64 [B, 2]: objects, background


class RoiTargets(NamedTuple):
    """Of `sample_rois`. S = batch_size."""

    rois: Tensor  # [B, S, 4]; 0 beyond the counts
    labels: Tensor  # int64 [B, S]: the class, 0 background, -1 beyond
    targets: Tensor  # [B, S, 4]; 0 where there is no object
    matched: Tensor  # int32 [B, S]: row of gt_boxes, -1 where there is no object
    counts: Tensor  # int64 [B, 2]: objects, background


class Detections(NamedTuple):
    """Of `detections`. D = max_detections."""

    boxes: Tensor  # [B, D, 4]; 0 beyond the count
    scores: Tensor  # [B, D]; 0 beyond
    labels: Tensor  # int64 [B, D]: columns of class_logits; -1 beyond
    indices: Tensor  # int64 [B, D]: rows of proposals; -1 beyond
    counts: Tensor  # int64 [B]


for _kind in (
    TopN, PaddedKeep, SoftKeep, DecodedBoxes, Proposals, AnchorLabels, AnchorSamples, RpnTargets, RoiTargets,
    Detections,
):  # fmt: skip
    register_results(_kind)
