"""Box arithmetic: decoding, encoding, IoU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench import competitors
from bench.case import Case, Competitor, Row
from bench.checks import equal, equal_to_reference
from bench.competitors import pure_torch
from bench.rows.proposals import DECODE_FLOPS, MIN_SIZE
from bench.workloads import FPN, VGG, Shape, flat_boxes, head_maps, scene
from frcnn_fast import ops

FAMILY, PLACE = "boxes", 3


def _decode_clip(shape: Shape, B: int) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        s = scene(shape, "trained", B).to(device)
        grids = shape.grids(device)

        def run(backend: str | None = None) -> Any:
            return ops.decode_clip(s.deltas, grids, s.image_sizes, min_size=MIN_SIZE, backend=backend)

        against: dict[str, Competitor] = {}
        if not competitors.torchvision_missing:
            from bench.competitors.torchvision_steps import Rpn

            against["torchvision"] = Competitor(Rpn.of(s).decode_and_clip)
        if not competitors.compiler_missing():
            against |= pure_torch.compiled(pure_torch.decode_clip, s.deltas, s.anchors, s.image_sizes)
        A = s.logits.numel()
        return Case(run, equal_to_reference(run), against, bytes=33 * A, flops=DECODE_FLOPS * A)

    return make


def _small_decode(N: int) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        s = scene(VGG).to(device)
        deltas, anchors = s.deltas[:, :N].contiguous(), s.anchors[:N].contiguous()

        def run(backend: str | None = None) -> Any:
            return ops.decode_clip(deltas, anchors, s.image_sizes, min_size=MIN_SIZE, backend=backend)

        against: dict[str, Competitor] = {}
        if not competitors.torchvision_missing:
            import torchvision.ops as tv
            from torchvision.models.detection._utils import BoxCoder

            coder, size = BoxCoder((1.0, 1.0, 1.0, 1.0)), (VGG.height, VGG.width)
            against["torchvision"] = Competitor(
                lambda: tv.clip_boxes_to_image(coder.decode_single(deltas[0], anchors), size)
            )
        return Case(run, equal_to_reference(run), against, bytes=49 * N, flops=DECODE_FLOPS * N)

    return make


def _grid_anchors(shape: Shape) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        grids = shape.grids(device)

        def run(backend: str | None = None) -> Any:
            with ops.use_backend(backend):
                return grids.materialize()

        def check(got: Any) -> None:
            equal(got, scene(shape).anchors.to(device), "the table of the scene")

        return Case(run, check, bytes=16 * grids.num_anchors)

    return make


def _gather(shape: Shape, S: int) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        s = scene(shape).to(device)
        maps = head_maps(shape, s.deltas)
        A = s.deltas.shape[1]
        indices = torch.randperm(A, generator=torch.Generator().manual_seed(1))[None, :S].to(device)

        def run(backend: str | None = None) -> Any:
            return ops.gather_anchors(maps, indices, 4, backend=backend)

        def from_a_table() -> Any:
            rows = [m.permute(0, 2, 3, 1).reshape(len(m), -1, 4) for m in maps]
            return torch.cat(rows, 1).gather(1, indices[..., None].expand(-1, -1, 4))

        return Case(run, equal_to_reference(run), {"PyTorch": Competitor(from_a_table)}, bytes=40 * S)

    return make


def _encode(N: int) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        anchors = scene(FPN if N > 20646 else VGG).anchors[:N].to(device)
        boxes = flat_boxes("low_overlap", 20000)[0].repeat(N // 20000 + 1, 1)[:N].to(device)
        boxes[:, 2:] += 1  # a box that clipping left without a side has no logarithm

        def run(backend: str | None = None) -> Any:
            return ops.encode(boxes, anchors, backend=backend)

        against: dict[str, Competitor] = {}
        if not competitors.torchvision_missing:
            from torchvision.models.detection._utils import BoxCoder

            coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
            against["torchvision"] = Competitor(lambda: coder.encode_single(boxes, anchors))
        return Case(run, equal_to_reference(run), against, bytes=48 * N, flops=60 * N)

    return make


def _box_iou(N: int, M: int) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        boxes, others = flat_boxes("low_overlap", N)[0].to(device), flat_boxes("random", M)[0].to(device)

        def run(backend: str | None = None) -> Any:
            return ops.box_iou(boxes, others, backend=backend)

        against: dict[str, Competitor] = {}
        if not competitors.torchvision_missing:
            import torchvision.ops as tv

            against["torchvision"] = Competitor(lambda: tv.box_iou(boxes, others))
        if N > 100 and not competitors.compiler_missing():
            against |= pure_torch.compiled(pure_torch.box_iou, boxes, others)
        return Case(run, equal_to_reference(run), against, bytes=16 * (N + M) + 4 * N * M, flops=12 * N * M)

    return make


def _iou_kind(name: str, N: int, M: int) -> Callable[[str], Case]:
    """torchvision's generalized, distance or complete IoU of every pair."""

    def make(device: str) -> Case:
        boxes, others = flat_boxes("low_overlap", N)[0].to(device), flat_boxes("random", M)[0].to(device)

        def run(backend: str | None = None) -> Any:
            return getattr(ops, name)(boxes, others, backend=backend)

        against: dict[str, Competitor] = {}
        if not competitors.torchvision_missing:
            import torchvision.ops as tv

            against["torchvision"] = Competitor(lambda: getattr(tv, name)(boxes, others))
        return Case(run, equal_to_reference(run), against, bytes=16 * (N + M) + 4 * N * M, flops=30 * N * M)

    return make


def _iou_loss(name: str, N: int) -> Callable[[str], Case]:
    """The sum of a loss, and its gradient to the first boxes."""

    def make(device: str) -> Case:
        others = flat_boxes("low_overlap", N)[0].to(device)
        leaf = (others + 2).requires_grad_()

        def step(loss: Callable[..., Any], **how: Any) -> Any:
            found = loss(leaf, others, reduction="sum", **how)
            return found.detach(), torch.autograd.grad(found, leaf)[0]

        def run(backend: str | None = None) -> Any:
            return step(getattr(ops, name), backend=backend)

        against: dict[str, Competitor] = {}
        if not competitors.torchvision_missing:
            import torchvision.ops as tv

            against["torchvision"] = Competitor(lambda: step(getattr(tv, name)))
        return Case(run, equal_to_reference(run), against, bytes=84 * N, flops=120 * N)

    return make


def _rows() -> Iterator[Row]:
    for shape, B in ((VGG, 1), (FPN, 1), (FPN, 8)):
        yield Row("decode_clip", f"{shape.name} b{B}", _decode_clip(shape, B), headline=shape is FPN and B == 1)
    for shape in (VGG, FPN):
        yield Row("gather_anchors", f"{shape.name} 256", _gather(shape, 256))
    yield Row("grid_anchors", "vgg", _grid_anchors(VGG))
    for N in (1, 10, 100):
        yield Row("decode_clip", f"{N} boxes", _small_decode(N))
        yield Row("encode", f"{N} boxes", _encode(N))
        yield Row("box_iou", f"{N}x{N}", _box_iou(N, N), goal={"cpu": 1.0})
    yield Row("encode", "268569 boxes", _encode(268569))
    yield Row("box_iou", "20000x50", _box_iou(20000, 50), goal={"cpu": 2.0}, headline=True)
    for kind in ("generalized", "distance", "complete"):
        name = f"{kind}_box_iou"
        yield Row(name, "300x50", _iou_kind(name, 300, 50))
        yield Row(f"{name}_loss", "2048 rows, and the gradient", _iou_loss(f"{name}_loss", 2048))


ROWS = tuple(_rows())
