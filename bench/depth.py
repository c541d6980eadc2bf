"""How much work an exact suppression cannot avoid: what makes two NMS figures comparable."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from torch import Tensor

from frcnn_fast import reference

PAIR_FLOPS = 13  # operations of one IoU and its comparison
BLOCK = 1024


def pairs(kept: int, depth: int) -> int:
    """IoUs that greedy NMS needs when `kept` of the first `depth` boxes are kept: a kept box must be tested against
    all kept before it, a dropped one only against the one that drops it.
    """
    return kept * (kept - 1) // 2 + (depth - kept)


def last_rank(scores: Tensor, keep: Tensor) -> int:
    """How many of the best boxes had to be looked at: the rank of the last that was kept, counted from 1."""
    order = reference.ranked(scores.cpu().numpy())
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return int(rank[keep.cpu().numpy()].max()) + 1 if len(keep) else 0


def of_nms(boxes: Tensor, scores: Tensor, keep: Tensor, threshold: float) -> dict[str, Any]:
    """Facts about one list of boxes and what NMS kept of it: kept, depth (rank of the last kept box), and rounds (the
    longest chain of decisions that wait for each other).
    """
    depth = last_rank(scores, keep)
    best = boxes.cpu().numpy()[reference.ranked(scores.cpu().numpy())[:depth]]
    return {"of": len(boxes), "kept": len(keep), "depth": depth, "rounds": rounds(best, threshold)}


def rounds(boxes: np.ndarray, threshold: float) -> int:
    """Steps until every box's fate is known, when each step settles all boxes that wait for no earlier one any more."""
    suppresses = np.zeros((len(boxes), len(boxes)), bool)
    for start in range(0, len(boxes), BLOCK):
        block = reference.box_iou(boxes[start : start + BLOCK], boxes)
        suppresses[start : start + BLOCK] = np.triu(block > np.float32(threshold), start + 1)
    waiting = suppresses.sum(0)
    open_ = np.ones(len(boxes), bool)
    found = 0
    while open_.any():
        keep = open_ & (waiting == 0)
        drop = suppresses[keep].any(0) & open_
        open_ &= ~(keep | drop)
        waiting -= suppresses[drop].sum(0)
        found += 1
    return found


def of_proposals(scores: Tensor, indices: Tensor, counts: Tensor, level_sizes: list[int]) -> dict[str, Any]:
    """Facts about proposals of a batch: kept an image, depth (candidates that had to be looked at, all levels and
    images together) and pairs (IoUs needed, likewise).
    """
    depth = needed = 0
    starts = np.concatenate([[0], np.cumsum(level_sizes)])
    for row, chosen, count in zip(scores.cpu().numpy(), indices.cpu().numpy(), counts.tolist()):
        chosen = chosen[:count]
        for low, high in itertools.pairwise(starts):
            here = chosen[(chosen >= low) & (chosen < high)] - low
            if len(here):
                rank = np.empty(high - low, np.int64)
                order = reference.ranked(row[low:high])
                rank[order] = np.arange(len(order))
                deep = int(rank[here].max()) + 1
                depth += deep
                needed += pairs(len(here), deep)
    return {"kept": counts.tolist(), "depth": depth, "pairs": needed}
