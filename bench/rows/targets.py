"""Training targets of the RPN and of the head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench import competitors
from bench.case import Case, Competitor, Row
from bench.checks import equal_to_reference
from bench.competitors import pure_torch
from bench.workloads import FPN, VGG, Shape, rois, scene
from frcnn_fast import ops

FAMILY, PLACE = "targets", 4

IOU_FLOPS = 12


def meeting(boxes: Tensor, gt_boxes: Tensor) -> int:
    """Pairs of a box and a ground truth that overlap, all images together: no answer can do without their IoU."""
    left, top, right, bottom = boxes.T.contiguous().cpu().numpy()
    return sum(
        int(((right > x1) & (left < x2) & (bottom > y1) & (top < y2)).sum())
        for x1, y1, x2, y2 in gt_boxes.flatten(0, -2).tolist()
    )


def _rpn_targets(shape: Shape, G: int, B: int, fused: bool) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        s = scene(shape, "random", B, G).to(device)
        grids = shape.grids(device)
        counts, rng = torch.full((B,), G, device=device), torch.tensor([1, 2], device=device)

        def run(backend: str | None = None) -> Any:
            if fused:
                return ops.rpn_targets(grids, s.gt_boxes, counts, rng, backend=backend)
            return ops.assign_anchors(grids, s.gt_boxes, counts, backend=backend)

        against: dict[str, Competitor] = {}
        if not competitors.torchvision_missing:
            from bench.competitors.torchvision_steps import Rpn

            theirs = Rpn.of(s)
            against["torchvision"] = Competitor(theirs.targets_of_a_sample if fused else theirs.assign)
        if B == 1 and G == 20 and not competitors.compiler_missing():
            step = pure_torch.rpn_targets if fused else pure_torch.assign
            against |= pure_torch.compiled(step, s.anchors, s.gt_boxes[0])
        A = len(s.anchors)
        written = 256 * 29 if fused else 5 * A
        facts = {"sampled": run()[4].tolist()} if fused else {"positive": int((run()[0] == 1).sum())}
        flops = IOU_FLOPS * meeting(s.anchors, s.gt_boxes)
        return Case(run, equal_to_reference(run), against, B * (16 * G + written), flops, facts)

    return make


def _sample_anchors(shape: Shape) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        s = scene(shape, "random", 1, 20).to(device)
        labels = ops.assign_anchors(shape.grids(device), s.gt_boxes, torch.full((1,), 20, device=device)).labels
        rng = torch.tensor([1, 2], device=device)

        def run(backend: str | None = None) -> Any:
            return ops.sample_anchors(labels, rng, backend=backend)

        facts = {"sampled": run().counts.tolist()}
        return Case(run, equal_to_reference(run), bytes=labels.numel() + 256 * 9, facts=facts)

    return make


def _sample_rois(N: int, G: int, B: int) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        gt_boxes = scene(VGG, "random", B, G).gt_boxes.to(device)
        g = torch.Generator().manual_seed(3)
        near = gt_boxes.cpu()[:, torch.randint(G, (N,), generator=g)]
        proposals = torch.where(torch.rand(B, N, 1, generator=g) < 0.5, near, rois(N)[:, 1:])
        proposals = (proposals + torch.randn(B, N, 4, generator=g) * 8).to(device)
        proposals[..., 2:] = torch.maximum(proposals[..., 2:], proposals[..., :2] + 1)
        labels = torch.randint(1, 21, (B, G), generator=g).to(device)
        counts, gt_counts = torch.full((B,), N, device=device), torch.full((B,), G, device=device)
        rng = torch.tensor([1, 2], device=device)

        def run(backend: str | None = None) -> Any:
            return ops.sample_rois(proposals, counts, gt_boxes, labels, gt_counts, rng, batch_size=128, backend=backend)

        against: dict[str, Competitor] = {}
        if not competitors.torchvision_missing:
            from bench.competitors.torchvision_steps import sampled_rois

            against["torchvision"] = Competitor(sampled_rois(proposals, gt_boxes, labels, 128))
        facts = {"sampled": run()[4].tolist()}
        moved = B * (16 * N + 24 * G + 128 * 44)
        return Case(run, equal_to_reference(run), against, moved, B * IOU_FLOPS * (N + G) * G, facts)

    return make


def _rows() -> Iterator[Row]:
    for shape in (VGG, FPN):
        yield Row("sample_anchors", f"{shape.name} b1", _sample_anchors(shape))
    for shape, graph_us in ((VGG, 8.0), (FPN, 15.0)):
        for G in (1, 5, 20, 50, 100):
            goal = {"cuda": graph_us} if G == 20 else {}
            if shape is FPN and G == 20:
                goal["cpu"] = 30.0
            make = _rpn_targets(shape, G, 1, True)
            axis = (f"ground truths ({shape.name})", G)
            yield Row("rpn_targets", f"{shape.name} {G} gt b1", make, goal=goal, headline=G in (20, 100), axis=axis)
        for G in (20, 100):
            yield Row("rpn_targets", f"{shape.name} {G} gt b8", _rpn_targets(shape, G, 8, True))
        yield Row("assign_anchors", f"{shape.name} 20 gt b1", _rpn_targets(shape, 20, 1, False))
    yield Row("sample_rois", "2000 proposals 20 gt b1", _sample_rois(2000, 20, 1), headline=True)
    yield Row("sample_rois", "2000 proposals 20 gt b8", _sample_rois(2000, 20, 8))
    yield Row("sample_rois", "300 proposals 100 gt b1", _sample_rois(300, 100, 1))


ROWS = tuple(_rows())
