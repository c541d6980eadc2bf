"""What is measured on: the shapes of real detectors, and score fields from kind to hostile.

VGG: 600x1000 pixels, one level of 37x62 cells at stride 16, 9 anchors, 20,646 in all. FPN: 800x1333 pixels, five
levels, 3 anchors, 268,569 in all. Inputs are made by the oracle, so they do not depend on the code under test; the
same seed gives the same inputs everywhere.

Fields: `trained` (scores and boxes cluster on objects, as a trained network's do), `random` (a freshly initialised
network), `low_overlap` (boxes thrown about: little is suppressed), `tied` (one score for all), `chain` (a snake of
boxes, each of which overlaps the next and no other above the threshold: the longest dependency NMS can have),
`identical` (one box, many times).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frcnn_fast import ops, reference

FIELDS = ("trained", "random", "low_overlap", "tied", "chain", "identical")
RATIOS = (0.5, 1.0, 2.0)
THRESHOLD = 0.7


@dataclass(frozen=True)
class Shape:
    """A detector's image and anchors."""

    name: str
    height: int
    width: int
    sizes: tuple[tuple[int, ...], ...]  # anchor sizes of each level
    strides: tuple[int, ...]

    @property
    def maps(self) -> list[tuple[int, int]]:
        """(height, width) of each level: VGG's pooling rounds down; FPN's convolutions round up, on an image that is
        padded to a multiple of 32.
        """
        if len(self.strides) == 1:
            return [(self.height // self.strides[0], self.width // self.strides[0])]
        height, width = (math.ceil(side / 32) * 32 for side in (self.height, self.width))
        return [(math.ceil(height / s), math.ceil(width / s)) for s in self.strides]

    def cells(self) -> list[np.ndarray]:
        """Anchors of one cell, level by level."""
        return [reference.generate_anchors(sizes, RATIOS) for sizes in self.sizes]

    def anchors(self) -> Tensor:
        """[A, 4], all of them."""
        levels = zip(self.cells(), self.maps, self.strides)
        found = [reference.grid_anchors(cells, size, (s, s)) for cells, size, s in levels]
        return torch.from_numpy(np.concatenate(found))

    def grids(self, device: str) -> ops.AnchorGrids:
        """The same, to be made inside the kernel."""
        levels = zip(self.cells(), self.maps, self.strides)
        return ops.AnchorGrids([(torch.from_numpy(cells).to(device), size, (s, s)) for cells, size, s in levels])

    @property
    def level_sizes(self) -> list[int]:
        """Anchors of each level."""
        return [h * w * len(cells) for (h, w), cells in zip(self.maps, self.cells())]


VGG = Shape("vgg", 600, 1000, ((128, 256, 512),), (16,))
FPN = Shape("fpn", 800, 1333, ((32,), (64,), (128,), (256,), (512,)), (4, 8, 16, 32, 64))


@dataclass(frozen=True)
class Scene:
    """What a network says about a batch of B images, and their G objects."""

    shape: Shape
    anchors: Tensor  # [A, 4]
    logits: Tensor  # [B, A]
    deltas: Tensor  # [B, A, 4]
    gt_boxes: Tensor  # [B, G, 4]
    image_sizes: Tensor  # [B, 2]

    def to(self, device: str) -> Scene:
        """On that device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return dataclasses.replace(self, **moved)


@functools.lru_cache(maxsize=4)
def scene(shape: Shape, field: str = "trained", B: int = 1, G: int = 10, seed: int = 0) -> Scene:
    """B images of that field."""
    if field not in FIELDS:
        raise ValueError(f"field: expected one of {', '.join(FIELDS)}, got {field!r}")
    g = torch.Generator().manual_seed(seed)
    anchors = shape.anchors()
    objects = torch.stack([objects_in(g, shape, G) for _ in range(B)])
    images = [network_output(g, field, anchors, objects[b]) for b in range(B)]
    logits, deltas = (torch.stack(parts) for parts in zip(*images))
    sizes = torch.tensor([[shape.height, shape.width]], dtype=torch.float32).repeat(B, 1)
    return Scene(shape, anchors, logits, deltas, objects, sizes)


def network_output(g: torch.Generator, field: str, anchors: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
    """(logits [A], deltas [A, 4]) of one image."""
    A = len(anchors)
    if field == "trained":
        overlap = torch.from_numpy(reference.box_iou(anchors.numpy(), objects.numpy()))
        best, index = overlap.max(1)
        sure = ((best - 0.2).clamp(0, 0.5) / 0.5).sqrt()[:, None]
        reached = 0.85 + 0.15 * torch.rand(A, 1, generator=g)
        deltas = encoded(objects[index], anchors) * sure * reached + torch.randn(A, 4, generator=g) * 0.08
        return -4.5 + 9 * best + torch.randn(A, generator=g) * 1.2, deltas.clamp(-2, 2)
    if field == "random":
        return torch.randn(A, generator=g) * 0.05, torch.randn(A, 4, generator=g) * 0.02
    if field == "low_overlap":
        return torch.randn(A, generator=g), torch.randn(A, 4, generator=g) * torch.tensor([0.5, 0.5, 0.7, 0.7])
    if field == "tied":
        return torch.zeros(A), torch.randn(A, 4, generator=g) * 0.1
    if field == "chain":
        return -torch.arange(A, dtype=torch.float32), encoded(snake(A), anchors)
    box = torch.tensor([[100.0, 100.0, 300.0, 260.0]])
    return torch.randn(A, generator=g), encoded(box.expand(A, 4), anchors)


def encoded(boxes: Tensor, anchors: Tensor) -> Tensor:
    """The deltas that lead from anchors to boxes."""
    return torch.from_numpy(reference.encode(boxes.numpy(), anchors.numpy()))


def objects_in(g: torch.Generator, shape: Shape, G: int) -> Tensor:
    """G objects with sides of about 35 to 420 pixels, log-uniform, cut at the image's border."""
    side = torch.exp(torch.rand(G, generator=g) * math.log(12) + math.log(35))
    ratio = torch.exp((torch.rand(G, generator=g) - 0.5) * 1.4)
    w = (side * ratio.sqrt()).clamp(max=0.9 * shape.width)
    h = (side / ratio.sqrt()).clamp(max=0.9 * shape.height)
    x = torch.rand(G, generator=g) * shape.width
    y = torch.rand(G, generator=g) * shape.height
    found = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
    found[:, 0::2].clamp_(0, shape.width)
    found[:, 1::2].clamp_(0, shape.height)
    return found


def snake(N: int, side: float = 8.0, step: float = 1.25, across: int = 780, down: int = 8) -> Tensor:
    """N boxes on one path that fits into 600x1000 pixels: right, a little down, left, down, right again.

    A box has IoU 0.73 with the next, at most 0.56 with the one after, and meets no other part of the path.
    """
    i = np.arange(N)
    turn, place = np.divmod(i, across + down)
    along = np.minimum(place, across)
    x = np.where(turn % 2 == 0, along, across - along) * step
    y = (turn * down + np.maximum(place - across, 0)) * step
    corner = np.stack([x, y], 1).astype(np.float32)
    return torch.from_numpy(np.concatenate([corner, corner + np.float32(side)], 1))


@functools.lru_cache(maxsize=8)
def flat_boxes(field: str, N: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(boxes [N, 4], scores [N]) as NMS meets them: the best N of a VGG scene, decoded, in any order."""
    s = scene(VGG, field, seed=seed)
    if len(s.anchors) < N:
        raise ValueError(f"N: got {N}, a VGG scene has {len(s.anchors)} boxes")
    decoded, _ = reference.decode_clip(s.deltas.numpy(), s.anchors.numpy(), s.image_sizes.numpy())
    order = s.logits[0].argsort(descending=True, stable=True)[:N]
    order = order[torch.randperm(N, generator=torch.Generator().manual_seed(seed))]
    return torch.from_numpy(decoded)[0][order], s.logits[0][order]


def head_maps(shape: Shape, table: Tensor) -> list[Tensor]:
    """A table [B, A] or [B, A, 4] as a head gives it, level by level: NCHW."""
    values, maps = 4 if table.dim() == 3 else 1, []
    for rows, (height, width) in zip(table.split(shape.level_sizes, 1), shape.maps, strict=True):
        channels = rows.shape[1] // (height * width) * values
        maps.append(rows.reshape(len(rows), height, width, channels).permute(0, 3, 1, 2).contiguous())
    return maps


def rois(K: int, B: int = 1, shape: Shape = VGG, seed: int = 0) -> Tensor:
    """[K, 5] regions as a proposal step gives them, image by image."""
    g = torch.Generator().manual_seed(seed)
    image = torch.arange(K).mul(B).div(max(K, 1), rounding_mode="floor").float()[:, None]
    return torch.cat([image, objects_in(g, shape, K)], 1)


def classified(N: int, classes: int, B: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(logits [B, N, K + 1], deltas [B, N, 4 (K + 1)], proposals [B, N, 4]) as a trained head gives them.

    Proposals crowd around objects; most regions are background with confidence, the others have one or two likely
    classes.
    """
    g = torch.Generator().manual_seed(seed)
    objects = objects_in(g, VGG, max(N // 20, 1))
    near = objects[torch.randint(len(objects), (B, N), generator=g)]
    extent = (near[..., 2:] - near[..., :2]).repeat(1, 1, 2)
    proposals = near + torch.randn(B, N, 4, generator=g) * 0.1 * extent
    low, high = proposals[..., :2].minimum(proposals[..., 2:]), proposals[..., :2].maximum(proposals[..., 2:])
    logits = torch.randn(B, N, classes, generator=g)
    logits[..., 0] += 4.0
    likely = torch.randint(1, classes, (B, N, 2), generator=g)
    logits.scatter_add_(2, likely, torch.rand(B, N, 2, generator=g) * 6.0)
    deltas = torch.randn(B, N, 4 * classes, generator=g) * 0.5
    return logits, deltas, torch.cat([low, high], -1).clamp(min=0)
