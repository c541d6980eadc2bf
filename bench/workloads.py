"""What is measured on: shapes of real detectors, and score fields from kind to hostile.

VGG: 600x1000 pixels, one level of 37x62 cells at stride 16, 9 anchors. FPN: 800x1333, five levels, 3 anchors, 268,569 in
all. Fields: `trained` (scores and boxes cluster on objects), `random` (a freshly initialised network), `low_overlap`
(boxes thrown about, little is suppressed), `tied` (one score for all), `chain` (every box suppresses the next only:
the longest dependency NMS can have), `identical` (one box, many times).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from frcnn_fast import ops

FIELDS = ("trained", "random", "low_overlap", "tied", "chain", "identical")


@dataclass(frozen=True)
class Shape:
    """A detector's anchors."""

    name: str
    height: int
    width: int
    sizes: tuple[tuple[int, ...], ...]  # per level
    strides: tuple[int, ...]

    def grids(self, device: str = "cpu") -> ops.AnchorGrids:
        """Its anchor grids, ratio-major, three ratios."""
        cells = [ops.generate_anchors(level, (0.5, 1.0, 2.0)).to(device) for level in self.sizes]
        if len(self.strides) == 1:  # VGG's pooling floors, FPN's strided convolutions round up
            maps = [(self.height // self.strides[0], self.width // self.strides[0])]
        else:
            maps = [(math.ceil(self.height / s), math.ceil(self.width / s)) for s in self.strides]
        return ops.AnchorGrids(list(zip(cells, maps, [(s, s) for s in self.strides])))


VGG = Shape("vgg", 600, 1000, ((128, 256, 512),), (16,))
FPN = Shape("fpn", 800, 1333, ((32,), (64,), (128,), (256,), (512,)), (4, 8, 16, 32, 64))


@dataclass
class Scene:
    """One batch of network outputs and its ground truth."""

    shape: Shape
    grids: ops.AnchorGrids
    anchors: Tensor  # [A, 4]
    logits: Tensor  # [B, A]
    deltas: Tensor  # [B, A, 4]
    gt_boxes: Tensor  # [B, G, 4]
    image_sizes: Tensor  # [B, 2]


def gt_boxes(generator: torch.Generator, shape: Shape, G: int) -> Tensor:
    """G objects with sides of about 35 to 420 pixels, log-uniform."""
    side = torch.exp(torch.rand(G, generator=generator) * math.log(12) + math.log(35))
    ratio = torch.exp((torch.rand(G, generator=generator) - 0.5) * 1.4)
    w = (side * ratio.sqrt()).clamp(max=0.9 * shape.width)
    h = (side / ratio.sqrt()).clamp(max=0.9 * shape.height)
    x = torch.rand(G, generator=generator) * shape.width
    y = torch.rand(G, generator=generator) * shape.height
    found = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
    found[:, 0::2].clamp_(0, shape.width)
    found[:, 1::2].clamp_(0, shape.height)
    return found


def scene(shape: Shape, field: str = "trained", B: int = 1, G: int = 10, seed: int = 0) -> Scene:
    """Network outputs of that field. Deterministic by seed."""
    g = torch.Generator().manual_seed(seed)
    grids = shape.grids()
    anchors = grids.materialize()
    A = anchors.shape[0]
    objects = torch.stack([gt_boxes(g, shape, G) for _ in range(B)])
    logits, deltas = torch.empty(B, A), torch.zeros(B, A, 4)
    for b in range(B):
        if field == "trained":
            best = torch.zeros(A)
            index = torch.zeros(A, dtype=torch.int64)
            for i, box in enumerate(objects[b]):
                overlap = ops.box_iou(anchors, box[None])[:, 0]
                index = torch.where(overlap > best, i, index)
                best = torch.maximum(overlap, best)
            targets = ops.encode(objects[b][index], anchors)
            sure = ((best - 0.2).clamp(0, 0.5) / 0.5).sqrt()[:, None]
            noise = torch.randn(A, 4, generator=g) * 0.08
            deltas[b] = (targets * sure * (0.85 + 0.15 * torch.rand(A, 1, generator=g)) + noise).clamp(-2, 2)
            logits[b] = -4.5 + 9 * best + torch.randn(A, generator=g) * 1.2
        elif field == "random":
            logits[b] = torch.randn(A, generator=g) * 0.05
            deltas[b] = torch.randn(A, 4, generator=g) * 0.02
        elif field == "low_overlap":
            logits[b] = torch.randn(A, generator=g)
            deltas[b] = torch.randn(A, 4, generator=g) * torch.tensor([0.5, 0.5, 0.7, 0.7])
        elif field == "tied":
            logits[b] = 0.0
            deltas[b] = torch.randn(A, 4, generator=g) * 0.1
        elif field == "identical":
            logits[b] = torch.randn(A, generator=g)
            box = torch.tensor([100.0, 100.0, 300.0, 260.0]).expand(A, 4)
            deltas[b] = ops.encode(box, anchors)
        elif field == "chain":
            logits[b] = -torch.arange(A, dtype=torch.float32) / A
            deltas[b] = ops.encode(chain(A), anchors)
        else:
            raise ValueError(f"field: expected one of {', '.join(FIELDS)}, got {field!r}")
    sizes = torch.tensor([[shape.height, shape.width]], dtype=torch.float32).expand(B, 2).contiguous()
    return Scene(shape, grids, anchors, logits, deltas, objects, sizes)


def chain(N: int, step: float = 12.0) -> Tensor:
    """Boxes of 100x100 pixels, each `step` pixels from the last: IoU 0.79 with the next, 0.61 with the one after."""
    x = torch.arange(N, dtype=torch.float32)
    row, column = torch.div(x, 60, rounding_mode="floor"), x.remainder(60)
    corner = torch.stack([column * step, row.remainder(4) * 120], 1)
    return torch.cat([corner, corner + 100.0], 1)


def flat_boxes(field: str, N: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(boxes [N, 4], scores [N]) as NMS meets them."""
    g = torch.Generator().manual_seed(seed)
    if field == "chain":
        return chain(N), -torch.arange(N, dtype=torch.float32)
    if field == "identical":
        return torch.tensor([10.0, 10.0, 60.0, 60.0]).repeat(N, 1), torch.randn(N, generator=g)
    if field in ("trained", "random", "low_overlap") and N <= 20646:
        s = scene(VGG, field, seed=seed)
        decoded, _ = ops.decode_clip(s.deltas, s.grids, s.image_sizes)
        order = s.logits[0].argsort(descending=True, stable=True)[:N]
        shuffle = torch.randperm(N, generator=g)
        return decoded[0][order][shuffle], s.logits[0][order][shuffle]
    corner = torch.rand(N, 2, generator=g) * torch.tensor([900.0, 500.0])
    side = torch.exp(torch.rand(N, 2, generator=g) * 3 + 2)
    scores = torch.zeros(N) if field == "tied" else torch.randn(N, generator=g)
    return torch.cat([corner, corner + side], 1), scores


def rois(K: int, shape: Shape = VGG, seed: int = 0) -> Tensor:
    """[K, 5] regions as a proposal step gives them: image 0, log-uniform sides."""
    g = torch.Generator().manual_seed(seed)
    return torch.cat([torch.zeros(K, 1), gt_boxes(g, shape, K)], 1)
