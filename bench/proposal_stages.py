"""The proposal step in one call, and taken apart into the library's own smaller ops."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.workloads import FPN, THRESHOLD, Shape, scene
from frcnn_fast import ops

Stage = Callable[[str], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class Problem:
    """Inputs and settings of one proposal step."""

    title: str
    logits: Tensor  # [B, A]
    deltas: Tensor  # [B, A, 4]
    grids: ops.AnchorGrids
    anchors: Tensor  # [A, 4], the same
    image_sizes: Tensor  # [B, 2]
    image_scales: Tensor | None
    before: int
    after: int
    iou_threshold: float
    min_size: float
    filter_first: bool

    @property
    def level_sizes(self) -> list[int]:
        """Anchors of each level."""
        return list(self.grids.level_sizes)


def of_scene(shape: Shape, field: str, B: int, train: bool, device: str) -> Problem:
    """A step on one of the benchmark's workloads."""
    if shape is FPN:
        before, after = (2000, 2000) if train else (1000, 1000)
    else:
        before, after = (12000, 2000) if train else (6000, 300)
    s = scene(shape, field, B).to(device)
    return Problem(
        f"{shape.name} {'train' if train else 'test'} {before}->{after} b{B} {field}",
        s.logits,
        s.deltas,
        shape.grids(device),
        s.anchors,
        s.image_sizes,
        None,
        before,
        after,
        THRESHOLD,
        1e-3,
        False,
    )


def of_checkpoint(checkpoint: Path, image: Path, device: str) -> Problem:
    """The step of a trained detector on an image, with the detector's own settings."""
    from frcnn_fast.data import Collate, read_image, resize
    from frcnn_fast.model import load_detector

    detector = load_detector(checkpoint, device=device)
    config = detector.config
    pixels, scale = resize(read_image(image), config.shorter, config.longer)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scale": scale}
    batch = Collate(config.preprocess)([(pixels, nothing)]).to(device)
    with torch.no_grad():
        images = batch.images.contiguous(memory_format=torch.channels_last)
        rpn = detector.rpn(detector.backbone(images), (images.shape[-2], images.shape[-1]))
    logits, deltas = rpn.tables()
    before, after = config.proposals_test
    return Problem(
        f"{checkpoint.name} on {image.name} {before}->{after}",
        logits,
        deltas,
        rpn.anchors,
        rpn.anchors.materialize(),
        batch.image_sizes,
        batch.image_scales,
        before,
        after,
        config.proposal_iou,
        config.min_size,
        config.filter_order == "before_top_n",
    )


def fused(p: Problem, stage: Stage) -> tuple[Tensor, ...]:
    """All in one call."""
    with stage("fused"):
        return ops.rpn_proposals(
            p.logits,
            p.deltas,
            p.grids,
            p.image_sizes,
            pre_nms_top_n=p.before,
            post_nms_top_n=p.after,
            iou_threshold=p.iou_threshold,
            min_size=p.min_size,
            image_scales=p.image_scales,
            filter_order="before_top_n" if p.filter_first else "after_top_n",
        )


def staged(p: Problem, stage: Stage) -> tuple[Tensor, ...]:
    """The same result from decode_clip, top_n and nms_padded: what it costs not to fuse."""
    scores, candidates, boxes = p.logits, None, None
    if p.filter_first:
        with stage("decode"):
            boxes, valid = _decode(p, p.deltas, p.anchors)
            scores = torch.where(valid, scores, torch.nan)
    with stage("top-N"):
        ranked = [_level(scores, start, size, p.before) for start, size in _levels(p)]
        values, candidates = (torch.cat(parts, 1) for parts in zip(*ranked))
        index = candidates.clamp(min=0)
    with stage("decode"):
        if boxes is None:
            deltas = p.deltas.gather(1, index[..., None].expand(-1, -1, 4))
            boxes, valid = _decode(p, deltas, p.anchors[index])
            values = torch.where(valid, values, torch.nan)
        else:
            boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4))
        values = torch.where(candidates >= 0, values, torch.nan)
    with stage("NMS"):
        kept, start = [], 0
        for part, _ in ranked:
            stop = start + part.shape[1]
            keep, _ = ops.nms_padded(
                boxes[:, start:stop].contiguous(),
                values[:, start:stop].contiguous(),
                p.iou_threshold,
                min(p.after, stop - start),
            )
            kept.append(torch.where(keep >= 0, keep + start, -1))
            start = stop
    with stage("merge"):
        keep = torch.cat(kept, 1)
        place = keep.clamp(min=0)
        survivors = torch.where(keep >= 0, values.gather(1, place), torch.nan)
        best, position, counts = ops.top_n(survivors, p.after)
        chosen = place.gather(1, position.clamp(min=0))
        real = position >= 0
        found = torch.where(real[..., None], boxes.gather(1, chosen[..., None].expand(-1, -1, 4)), 0.0)
        anchors = torch.where(real, candidates.gather(1, chosen), -1)
    return found, best, anchors, counts


def _levels(p: Problem) -> list[tuple[int, int]]:
    starts = [sum(p.level_sizes[:i]) for i in range(len(p.level_sizes))]
    return list(zip(starts, p.level_sizes))


def _level(scores: Tensor, start: int, size: int, before: int) -> tuple[Tensor, Tensor]:
    values, index, _ = ops.top_n(scores[:, start : start + size], min(before, size))
    return values, torch.where(index >= 0, index + start, -1)


def _decode(p: Problem, deltas: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    return ops.decode_clip(deltas, anchors, p.image_sizes, min_size=p.min_size, image_scales=p.image_scales)
