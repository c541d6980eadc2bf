"""The RPN's proposal step (Ren et al. 2015, section 3.3): decode, top-N, NMS per level, top-n over levels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from .anchor_decode import DELTA_CLAMP, decode_clip
from .anchor_gather import anchor_table
from .nms import greedy
from .top_n import ranked


def rpn_proposals(
    scores: np.ndarray | Sequence[np.ndarray],
    deltas: np.ndarray | Sequence[np.ndarray],
    anchors: np.ndarray,
    image_sizes: np.ndarray,
    *,
    image_scales: np.ndarray | None = None,
    level_sizes: Sequence[int] | None = None,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    iou_threshold: float = 0.7,
    min_size: float = 0.0,
    filter_before_top_n: bool = False,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    clamp: float = DELTA_CLAMP,
    legacy: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Proposals of scores [B, A] and deltas [B, A, 4]: boxes [B, P, 4], scores [B, P], indices int64 [B, P],
    counts int64 [B], with P = post_nms_top_n and index = anchor index. Of scores and deltas `anchor_table` makes these
    tables."""
    scores, deltas = anchor_table(scores), anchor_table(deltas, 4)
    batch, total = scores.shape
    sizes = [total] if level_sizes is None else list(level_sizes)
    starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    decoded, valid = decode_clip(
        deltas,
        anchors,
        image_sizes,
        weights=weights,
        clamp=clamp,
        min_size=min_size,
        image_scales=image_scales,
        legacy=legacy,
    )
    out_boxes = np.zeros((batch, post_nms_top_n, 4), deltas.dtype)
    out_scores = np.zeros((batch, post_nms_top_n), scores.dtype)
    out_indices = np.full((batch, post_nms_top_n), -1, np.int64)
    counts = np.zeros(batch, np.int64)
    for image in range(batch):
        survivors = []
        for start, stop in itertools.pairwise(starts):
            order = start + ranked(scores[image, start:stop])
            if filter_before_top_n:
                order = order[valid[image, order]][:pre_nms_top_n]
            else:
                order = order[:pre_nms_top_n]
                order = order[valid[image, order]]
            survivors.append(greedy(decoded[image], order, iou_threshold, None, legacy))
        merged = np.sort(np.concatenate(survivors))
        chosen = merged[ranked(scores[image, merged])][:post_nms_top_n]
        counts[image] = len(chosen)
        out_boxes[image, : len(chosen)] = decoded[image, chosen]
        out_scores[image, : len(chosen)] = scores[image, chosen]
        out_indices[image, : len(chosen)] = chosen
    return out_boxes, out_scores, out_indices, counts
