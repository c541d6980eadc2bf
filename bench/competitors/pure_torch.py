"""The steps that pure torch can do in fixed shapes, for torch.compile: what a good user gets without any extension."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.case import Competitor

CLAMP = math.log(1000.0 / 16)


def decode_clip(deltas: Tensor, anchors: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """(boxes [B, A, 4] clipped, valid [B, A])."""
    extent = anchors[:, 2:] - anchors[:, :2]
    centre = anchors[:, :2] + 0.5 * extent
    moved = deltas[..., :2] * extent + centre
    half = 0.5 * torch.exp(deltas[..., 2:].clamp(max=CLAMP)) * extent
    limit = sizes.flip(-1)[:, None]
    low = torch.minimum((moved - half).clamp(min=0), limit)
    high = torch.minimum((moved + half).clamp(min=0), limit)
    return torch.cat([low, high], -1), ((high - low) >= 1e-3).all(-1)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """[N, M]."""
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    area_a, area_b = ((t[:, 2] - t[:, 0]) * (t[:, 3] - t[:, 1]) for t in (a, b))
    return inter / (area_a[:, None] + area_b[None] - inter)


def assign(anchors: Tensor, gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(labels [A], matched [A]) of one image, low-quality matches included."""
    overlap = box_iou(gt_boxes, anchors)
    best, matched = overlap.max(0)
    peak = overlap.max(1, keepdim=True).values
    positive = (best >= 0.7) | ((overlap == peak) & (peak > 0)).any(0)
    labels = torch.where(positive, 1, torch.where(best < 0.3, 0, -1)).to(torch.int8)
    return labels, torch.where(positive, matched, -1)


def rpn_targets(anchors: Tensor, gt_boxes: Tensor) -> tuple[Tensor, ...]:
    """Assignment, a random sample of 256 and the targets of its positives, of one image."""
    labels, matched = assign(anchors, gt_boxes)
    key = torch.rand(len(anchors), device=anchors.device)
    positive = torch.topk(torch.where(labels == 1, key, -1.0), 128)
    negative = torch.topk(torch.where(labels == 0, key, -1.0), 256)
    taken = positive.values >= 0
    room = torch.arange(256, device=anchors.device) < 256 - taken.sum()
    drawn = positive.indices
    return drawn, taken, negative.indices, room, encode(gt_boxes[matched[drawn]], anchors[drawn])


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Deltas that lead from anchors to boxes."""
    extent, wanted = anchors[:, 2:] - anchors[:, :2], boxes[:, 2:] - boxes[:, :2]
    shift = (boxes[:, :2] + 0.5 * wanted - anchors[:, :2] - 0.5 * extent) / extent
    return torch.cat([shift, torch.log(wanted / extent)], -1)


def compiled(function: Callable[..., Any], *args: Any) -> dict[str, Competitor]:
    """torch.compile's default mode, and on CUDA also the one that replays graphs."""
    modes: dict[str, str | None] = {"torch.compile": None}
    if args[0].is_cuda:
        modes["torch.compile, reduce-overhead"] = "reduce-overhead"
    torch._dynamo.reset()  # each row gets a program for its own shapes, and none falls over the limit of recompilations
    found = {}
    for name, mode in modes.items():
        found[name] = Competitor(_bind(function, mode, args), one_setting=True, capturable=mode is None)
    return found


def _bind(function: Callable[..., Any], mode: str | None, args: tuple[Any, ...]) -> Callable[[], Any]:
    ready = torch.compile(function, fullgraph=True, dynamic=False, mode=mode)
    return lambda: ready(*args)
