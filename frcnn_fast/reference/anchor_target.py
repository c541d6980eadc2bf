"""Training targets of the RPN (Ren et al. 2015, sections 3.1.2 and 3.1.3) and of the head (Girshick 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import boxes as box
from .anchor_decode import encode
from .rng import sample_keys


def _overlaps(candidates: np.ndarray, gt_boxes: np.ndarray, legacy: bool) -> np.ndarray:
    """[M, G] IoU with NaN counted as 0."""
    overlap = box.iou(candidates[:, None, :], gt_boxes[None, :, :], legacy)
    return np.where(np.isnan(overlap), overlap.dtype.type(0), overlap)


def _split_gt(gt_boxes: np.ndarray, gt_count: int, crowd: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the objects that take part, and of the crowd boxes, of one image."""
    exists = (np.arange(len(gt_boxes)) < gt_count) & box.finite(gt_boxes)
    is_crowd = np.zeros(len(gt_boxes), bool) if crowd is None else np.asarray(crowd, bool)
    return np.flatnonzero(exists & ~is_crowd), np.flatnonzero(exists & is_crowd)


def _on_crowd(candidates: np.ndarray, crowd_boxes: np.ndarray, least: float, legacy: bool) -> np.ndarray:
    """[M] bool: some crowd box covers at least `least` of the candidate's own area."""
    with np.errstate(all="ignore"):
        overlap = box.intersection(candidates[:, None, :], crowd_boxes[None, :, :], legacy)
        covered = overlap / box.area(candidates, legacy)[:, None]
        return (covered >= candidates.dtype.type(least)).any(axis=1)


def _best(overlap: np.ndarray, objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Highest IoU of each row and the object that has it (lowest index on ties); 0 and -1 without objects."""
    if not len(objects):
        return np.zeros(len(overlap), overlap.dtype), np.full(len(overlap), -1, np.int64)
    return overlap.max(axis=1), objects[overlap.argmax(axis=1)]


def assign_anchors(
    anchors: np.ndarray,
    gt_boxes: np.ndarray,
    gt_counts: np.ndarray,
    *,
    image_sizes: np.ndarray | None = None,
    crowd: np.ndarray | None = None,
    positive_iou: float = 0.7,
    negative_iou: float = 0.3,
    low_quality: bool = True,
    min_quality: float = 0.0,
    overwrite: bool = False,
    crowd_overlap: float = 0.7,
    legacy: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """labels int8 [B, A]: 1 object, 0 background, -1 ignored; matched int32 [B, A]: its object, else -1."""
    dtype = gt_boxes.dtype.type
    batch, total = len(gt_boxes), anchors.shape[-2]
    labels = np.full((batch, total), -1, np.int8)
    matched = np.full((batch, total), -1, np.int32)
    for image in range(batch):
        rows = anchors if anchors.ndim == 2 else anchors[image]
        objects, crowds = _split_gt(gt_boxes[image], int(gt_counts[image]), None if crowd is None else crowd[image])
        takes_part = box.finite(rows)
        if image_sizes is not None:
            height, width = np.asarray(image_sizes[image]).astype(gt_boxes.dtype)
            inside = (rows[:, 0] >= 0) & (rows[:, 1] >= 0)
            if legacy:
                inside &= (rows[:, 2] < width) & (rows[:, 3] < height)
            else:
                inside &= (rows[:, 2] <= width) & (rows[:, 3] <= height)
            takes_part &= inside
        takes_part &= ~_on_crowd(rows, gt_boxes[image, crowds], crowd_overlap, legacy)
        taking = np.flatnonzero(takes_part)

        overlap = _overlaps(rows[taking], gt_boxes[image, objects], legacy)
        best, best_object = _best(overlap, objects)
        positive = (best >= dtype(positive_iou)) & (best > 0)
        if low_quality and len(taking) and len(objects):
            peak = overlap.max(axis=0)
            is_best = (overlap == peak) & (peak > 0) & (peak >= dtype(min_quality))
            positive |= is_best.any(axis=1)
            if overwrite:
                last = objects[len(objects) - 1 - is_best[:, ::-1].argmax(axis=1)]
                best_object = np.where(is_best.any(axis=1), last, best_object)
        negative = (best < dtype(negative_iou)) & ~positive if len(objects) else np.ones(len(taking), bool)
        labels[image, taking[negative]] = 0
        labels[image, taking[positive]] = 1
        matched[image, taking[positive]] = best_object[positive]
    return labels, matched


def _draw(
    positives: np.ndarray,
    negatives: np.ndarray,
    image: int,
    rng: np.ndarray,
    batch_size: int,
    positive_fraction: float,
    stream: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The sampled positives and negatives, each ascending: those with the smallest (key, index)."""

    def smallest(candidates: np.ndarray, count: int) -> np.ndarray:
        keys = sample_keys(candidates, image, rng, stream)
        return np.sort(candidates[np.lexsort((candidates, keys))][:count])

    positives = smallest(positives, int(batch_size * positive_fraction))
    return positives, smallest(negatives, batch_size - len(positives))


def sample_anchors(
    labels: np.ndarray,
    rng: np.ndarray,
    *,
    batch_size: int = 256,
    positive_fraction: float = 0.5,
    stream: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """indices int64 [B, S], labels int8 [B, S], counts int64 [B, 2] (positives, negatives)."""
    batch = len(labels)
    indices = np.full((batch, batch_size), -1, np.int64)
    sampled = np.full((batch, batch_size), -1, np.int8)
    counts = np.zeros((batch, 2), np.int64)
    for image, row in enumerate(labels):
        positives, negatives = _draw(
            np.flatnonzero(row == 1), np.flatnonzero(row == 0), image, rng, batch_size, positive_fraction, stream
        )
        chosen = np.concatenate([positives, negatives])
        indices[image, : len(chosen)] = chosen
        sampled[image, : len(chosen)] = row[chosen]
        counts[image] = len(positives), len(negatives)
    return indices, sampled, counts


def rpn_targets(
    anchors: np.ndarray,
    gt_boxes: np.ndarray,
    gt_counts: np.ndarray,
    rng: np.ndarray,
    *,
    image_sizes: np.ndarray | None = None,
    crowd: np.ndarray | None = None,
    positive_iou: float = 0.7,
    negative_iou: float = 0.3,
    low_quality: bool = True,
    crowd_overlap: float = 0.7,
    batch_size: int = 256,
    positive_fraction: float = 0.5,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    legacy: bool = False,
    stream: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """assign_anchors, sample_anchors and encode: indices int64 [B, S], labels int8 [B, S], targets [B, S, 4],
    matched int32 [B, S], counts int64 [B, 2]."""
    labels, objects = assign_anchors(
        anchors,
        gt_boxes,
        gt_counts,
        image_sizes=image_sizes,
        crowd=crowd,
        positive_iou=positive_iou,
        negative_iou=negative_iou,
        low_quality=low_quality,
        crowd_overlap=crowd_overlap,
        legacy=legacy,
    )
    indices, sampled, counts = sample_anchors(
        labels, rng, batch_size=batch_size, positive_fraction=positive_fraction, stream=stream
    )
    targets = np.zeros((*indices.shape, 4), gt_boxes.dtype)
    matched = np.full(indices.shape, -1, np.int32)
    for image in range(len(gt_boxes)):
        rows = anchors if anchors.ndim == 2 else anchors[image]
        drawn = indices[image, : counts[image, 0]]
        found = objects[image, drawn]
        matched[image, : len(drawn)] = found
        targets[image, : len(drawn)] = encode(gt_boxes[image, found], rows[drawn], weights=weights, legacy=legacy)
    return indices, sampled, targets, matched, counts


def sample_rois(
    proposals: np.ndarray,
    counts: np.ndarray,
    gt_boxes: np.ndarray,
    gt_labels: np.ndarray,
    gt_counts: np.ndarray,
    rng: np.ndarray,
    *,
    crowd: np.ndarray | None = None,
    batch_size: int = 128,
    positive_fraction: float = 0.25,
    positive_iou: float = 0.5,
    negative_iou_high: float = 0.5,
    negative_iou_low: float = 0.0,
    append_gt: bool = True,
    crowd_overlap: float = 0.7,
    weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
    legacy: bool = False,
    stream: int = 1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A mini-batch of RoIs: rois [B, S, 4], labels int64 [B, S] (0 background), targets [B, S, 4],
    matched int32 [B, S], counts int64 [B, 2]. Candidate g of the ground truth has random index N + g."""
    dtype = proposals.dtype.type
    batch, rows = proposals.shape[:2]
    rois = np.zeros((batch, batch_size, 4), proposals.dtype)
    labels = np.full((batch, batch_size), -1, np.int64)
    targets = np.zeros((batch, batch_size, 4), proposals.dtype)
    matched = np.full((batch, batch_size), -1, np.int32)
    drawn_counts = np.zeros((batch, 2), np.int64)
    for image in range(batch):
        gts = gt_boxes[image]
        objects, crowds = _split_gt(gts, int(gt_counts[image]), None if crowd is None else crowd[image])
        pool = np.concatenate([proposals[image], gts])
        usable = (np.arange(rows) < int(counts[image])) & box.finite(proposals[image])
        usable &= ~_on_crowd(proposals[image], gts[crowds], crowd_overlap, legacy)
        candidates = np.flatnonzero(usable)
        if append_gt:
            candidates = np.concatenate([candidates, rows + objects])

        best, best_object = _best(_overlaps(pool[candidates], gts[objects], legacy), objects)
        positive = (best >= dtype(positive_iou)) & (best > 0)
        negative = (best >= dtype(negative_iou_low)) & (best < dtype(negative_iou_high)) & ~positive
        positives, negatives = _draw(
            candidates[positive],
            candidates[negative],
            image,
            rng,
            batch_size,
            positive_fraction,
            stream,
        )
        chosen = np.concatenate([positives, negatives])
        rois[image, : len(chosen)] = pool[chosen]
        drawn_counts[image] = len(positives), len(negatives)
        found = best_object[np.searchsorted(candidates, positives)]
        labels[image, : len(chosen)] = 0
        labels[image, : len(positives)] = gt_labels[image, found]
        matched[image, : len(positives)] = found
        targets[image, : len(positives)] = encode(gts[found], pool[positives], weights=weights, legacy=legacy)
    return rois, labels, targets, matched, drawn_counts
