"""From the detection head's raw outputs to final boxes (Girshick 2015, section 2.3; Ren et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .anchor_decode import DELTA_CLAMP, decode_clip
from .arithmetic import exp_
from .nms import greedy
from .top_n import ranked

_LANES = 32


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis of [R, C], with one fixed order of summation: lane l adds classes l, l + 32, ...
    in turn, then lanes are folded in halves. A row with NaN gives NaN."""
    rows, classes = logits.shape
    with np.errstate(all="ignore"):
        powers = exp_(logits - logits.max(axis=1, keepdims=True))
        partial = np.zeros((rows, _LANES), logits.dtype)
        for c in range(classes):
            partial[:, c % _LANES] = partial[:, c % _LANES] + powers[:, c]
        width = _LANES // 2
        while width:
            partial[:, :width] = partial[:, :width] + partial[:, width : 2 * width]
            width //= 2
        return powers / partial[:, :1]


def detections(
    class_logits: np.ndarray,
    box_deltas: np.ndarray,
    proposals: np.ndarray,
    counts: np.ndarray,
    image_sizes: np.ndarray,
    *,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.3,
    max_detections: int = 100,
    min_size: float = 0.0,
    weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
    clamp: float = DELTA_CLAMP,
    background_last: bool = False,
    legacy: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """boxes [B, D, 4], scores [B, D], labels int64 [B, D] (columns of class_logits), indices int64 [B, D] (rows of
    proposals) and counts int64 [B], D = max_detections.

    class_logits [B, N, K + 1], class 0 is the background; box_deltas [B, N, (K + 1)*4] or class-agnostic
    [B, N, 4]. background_last: column K is the background; box_deltas [B, N, K*4].
    """
    batch, _, classes = class_logits.shape
    foreground = classes - 1
    dtype = class_logits.dtype.type
    out_boxes = np.zeros((batch, max_detections, 4), class_logits.dtype)
    out_scores = np.zeros((batch, max_detections), class_logits.dtype)
    out_labels = np.full((batch, max_detections), -1, np.int64)
    out_indices = np.full((batch, max_detections), -1, np.int64)
    out_counts = np.zeros(batch, np.int64)
    if foreground <= 0:
        return out_boxes, out_scores, out_labels, out_indices, out_counts
    first_class = 0 if background_last else 1
    for image in range(batch):
        count = int(counts[image])
        per_class = box_deltas[image, :count].reshape(count, box_deltas.shape[2] // 4, 4)
        agnostic = per_class.shape[1] == 1
        per_class = np.repeat(per_class, foreground, axis=1) if agnostic else per_class[:, first_class:]
        anchors = np.repeat(proposals[image, :count], foreground, axis=0)
        boxes, valid = decode_clip(
            per_class.reshape(1, -1, 4),
            anchors,
            image_sizes[image : image + 1],
            weights=weights,
            clamp=clamp,
            min_size=min_size,
            legacy=legacy,
        )
        scores = softmax(class_logits[image, :count])[:, first_class : first_class + foreground].reshape(-1)
        candidates = np.flatnonzero((scores > dtype(score_threshold)) & valid[0])
        order = candidates[ranked(scores[candidates])]
        class_of = np.tile(np.arange(first_class, first_class + foreground), count)
        kept = greedy(boxes[0], order, iou_threshold, class_of, legacy)[:max_detections]
        out_counts[image] = len(kept)
        out_boxes[image, : len(kept)] = boxes[0, kept]
        out_scores[image, : len(kept)] = scores[kept]
        out_labels[image, : len(kept)] = class_of[kept]
        out_indices[image, : len(kept)] = kept // foreground
    return out_boxes, out_scores, out_labels, out_indices, out_counts
